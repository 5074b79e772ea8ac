"""A model ready to be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .operation import Operation
from .ops import Attend, Pool, Pooling


@dataclass(frozen=True, slots=True)
class Program:
    """A model ready to be run: its operations in order and what the caller must know of its shape."""

    architecture: str
    ops: Sequence[Operation]
    num_layers: int
    hidden: int
    vocab_size: int
    context_length: int  # what the model was trained for
    num_experts: int = 0
    top_k: int = 0
    pooling: Pooling | None = None  # how the rows of a text become its vector, where the file says so
    notes: tuple[str, ...] = field(default=())
    overridden: tuple[str, ...] = ()  # settings of the file that nobody read and the user allowed

    @property
    def is_encoder(self) -> bool:
        """Whether it makes vectors of texts, and no text."""
        return isinstance(self.ops[-1], Pool)

    @property
    def is_causal(self) -> bool:
        """Whether no row sees later ones; otherwise a text must be computed in one step."""
        return all(op.causal for op in self.ops if isinstance(op, Attend))

    @property
    def output_width(self) -> int:
        """Numbers a row of the result has: logits, or the values of a vector."""
        return self.hidden if self.is_encoder else self.vocab_size
