"""A forward pass as a flat list of fused operations over named row buffers: what a model family writes down.

A *buffer* is float32[rows, width], one row a token of the step. An operation reads and writes whole buffers; the
executor decides how rows and columns are shared out, and what is fused. A program knows nothing of the processor.
Not here: how families write programs (models), nor how they are handed to the executor (lower).
"""

from .check import validate as validate
from .model import Program as Program
from .operation import Buffer as Buffer
from .operation import Operation as Op
from .operation import reads as reads
from .operation import tensors as tensors
from .operation import writes as writes
from .ops import *  # noqa: F403  # every operation, so that a new one is a class in `ops` and nothing here
from .show import format_program as format_program
from .state import Pages as Pages
from .state import Record as Record
from .state import Source as Source
from .state import State as State
from .state import Window as Window
from .stateful import *  # noqa: F403  # those with a state

__all__ = ["Op"]
