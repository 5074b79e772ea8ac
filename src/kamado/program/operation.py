"""What an operation is: a frozen dataclass whose fields' types say what it reads, writes and keeps.

The classes in `ops` are the one definition of the operations. Everything else that knows an operation's fields asks
`fields_of`: the checks (`check`), the lowering (`kamado.lower`), and `native/generate_ops.py`, which writes the
executor's structs, binding, checks and tables when the native module is built. So this file and `ops` need nothing
but the standard library to be imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, get_args

from .state import Record

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..files.types import TensorRef
    from .state import State

    Table: TypeAlias = TensorRef
    Matrix: TypeAlias = TensorRef
    Taps: TypeAlias = TensorRef
    Vector: TypeAlias = TensorRef
    Constants: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Buffer:
    """float32[rows, width]; `rows` is the step's."""

    name: str
    width: int

    @property
    def sized(self) -> str:
        """The name with the width, as outputs are printed."""
        return f"{self.name}[{self.width}]"


# The words that a field's type is made of, alone, as `X | None` or as `tuple[X, ...]`.
Reads: TypeAlias = Buffer
Writes: TypeAlias = Buffer
Updates: TypeAlias = Buffer
Routes: TypeAlias = Buffer
Routed: TypeAlias = Buffer
Keeps: TypeAlias = int
Added: TypeAlias = float
Float64: TypeAlias = float


class Kind(Enum):
    """What a field is to its operation. Values are the words that say so in the field's type."""

    READS = "Reads"  # a buffer whose values are needed
    WRITES = "Writes"  # a buffer that is filled
    UPDATES = "Updates"  # a buffer that is changed in place
    ROUTES = "Routes"  # a buffer of router logits; the choice made from it lives beside it
    ROUTED = "Routed"  # the choice that lives beside this buffer is needed, its values are not
    TABLE = "Table"  # a matrix that stays in its file, read row by row
    MATRIX = "Matrix"  # (rows, cols), packed for products
    TAPS = "Taps"  # (rows, cols), not packed: float32 in memory, of which operations see columns of `rows` values
    VECTOR = "Vector"
    CONSTANTS = "Constants"  # float64[n], finite
    KEEPS = "Keeps"  # number of the sequence state that is read, and written where `writes_state`; from 0
    ADDED = "Added"  # `weight_offset` is added to each value of `weight` when that is loaded
    INT = "int"
    FLOAT = "float"
    FLOAT64 = "Float64"  # not rounded to float32 in the executor
    BOOL = "bool"
    CHOICE = "Literal"


BUFFERS = frozenset({Kind.READS, Kind.WRITES, Kind.UPDATES, Kind.ROUTES, Kind.ROUTED})
READ = frozenset({Kind.READS, Kind.UPDATES, Kind.ROUTES, Kind.ROUTED})
WRITTEN = frozenset({Kind.WRITES, Kind.UPDATES})
_FILLED = frozenset({Kind.WRITES})
_KEPT = frozenset({Kind.KEEPS})
TENSORS = frozenset({Kind.TABLE, Kind.MATRIX, Kind.TAPS, Kind.VECTOR})
NUMBERS = frozenset({Kind.INT, Kind.FLOAT, Kind.FLOAT64, Kind.ADDED, Kind.KEEPS})


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an operation, as its type says."""

    name: str
    kind: Kind
    is_list: bool
    is_optional: bool  # of a list: its entries
    choices: tuple[str, ...]  # what a Literal may be
    alias: str  # the Literal's name
    default: Any  # dataclasses.MISSING: none


@dataclass(frozen=True, slots=True)
class Operation:
    """Base of all operations.

    Rules are Python expressions over the fields: a buffer has a `width`, a matrix `rows` and `cols`, a Routed buffer
    `choices` (experts of its route, 0 without one), lists and constants a `len`. `_` fits any number. They are checked
    by `validate` and, translated, by the executor's builder, so they use only what `native/generate_ops.py` knows.

    Without being told: buffers are read after they were written, and have one width; all written ones differ from each
    other and, unless `IN_PLACE`, from those that are read; numbers are finite, optional ones above 0 where given.
    """

    # condition -> what is wrong when it does not hold, with {expressions}; checked in order, before SHAPES
    RULES: ClassVar[dict[str, str]] = {}
    # field -> its width, its length, or its rows and columns; of a list, of each entry beside the other lists' entries
    SHAPES: ClassVar[dict[str, str]] = {}
    IN_PLACE: ClassVar[bool] = False  # whether out may be an input
    IS_ROW_WISE: ClassVar[bool] = False
    IS_LAST: ClassVar[bool] = False  # ends the program
    RECORD: ClassVar[str | None] = None  # float32 values of the record that it replaces
    # What an input is called when it is not finite; set where the kernel would make an ordinary number of that.
    GUARDS: ClassVar[str | None] = None

    @property
    def writes_state(self) -> bool:
        """Whether it changes what its sequences keep: all rows of a step must get there, wanted or not."""
        return False

    def state_misfit(self, state: State) -> str | None:
        """What is wrong with the state that its `Keeps` field names; None: nothing."""
        return None

    def text(self, show: Callable[[TensorRef | None], str]) -> str:
        """The operation on one line: outputs with widths, inputs, tensors by `show`, parameters that are unusual."""
        raise NotImplementedError

    @classmethod
    def label(cls) -> str:
        """Its name in texts, and in the executor."""
        return cls.__name__.lower()

    @classmethod
    def shape_of(cls, field: Field) -> str | None:
        """The width, length, or rows and columns that a field must have; None: any."""
        return cls.SHAPES.get(field.name)


@dataclass(frozen=True, slots=True)
class RowWise(Operation):
    """An operation with one kernel (inputs and parameters in the order of the fields, width, out) that sees one row.

    Has one `out: Writes`; inputs that SHAPES does not mention are as wide, and out may be any of those.
    """

    IN_PLACE = True
    IS_ROW_WISE = True

    @classmethod
    def shape_of(cls, field: Field) -> str | None:
        """As wide as out, unless SHAPES says otherwise."""
        return cls.SHAPES.get(field.name, "out.width" if field.kind is Kind.READS else None)


@dataclass(frozen=True, slots=True)
class Recurrent(Operation):
    """An operation that takes a sequence's rows in order and keeps a record of RECORD float32 values between steps."""

    RECORD: ClassVar[str]

    @property
    def writes_state(self) -> bool:
        """Always: the record is after the last row what it has made it."""
        return True

    @property
    def record_bytes(self) -> int:
        """Size of its record."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return 4 * int(eval(self.RECORD, {"__builtins__": {}}, values))  # a constant of `stateful`, never input

    def state_misfit(self, state: State) -> str | None:
        """A state that is no record of its size."""
        if isinstance(state, Record) and state.num_bytes == self.record_bytes:
            return None
        return f"the state is no record of {self.record_bytes} bytes"


def states_of(op: Operation) -> Iterator[int]:
    """Numbers of the states that `op` names."""
    return (getattr(op, name) for name, _ in _fields_of_kinds(type(op), _KEPT))


_FIELDS: dict[type[Operation], tuple[Field, ...]] = {}


def fields_of(operation: type[Operation]) -> tuple[Field, ...]:
    """The fields of an operation in order. Raises KeyError for a type that is made of other words."""
    if operation not in _FIELDS:
        _FIELDS[operation] = tuple(_read_fields(operation))
    return _FIELDS[operation]


def _read_fields(operation: type[Operation]) -> Iterator[Field]:
    module = vars(sys.modules[operation.__module__])
    for item in fields(operation):
        text = str(item.type)
        is_list = text.startswith("tuple[")
        text = text.removeprefix("tuple[").removesuffix(", ...]")
        word = text.removesuffix(" | None")
        is_known = word in Kind._value2member_map_
        kind = Kind(word) if is_known else Kind.CHOICE
        choices = () if is_known else get_args(module[word])
        yield Field(item.name, kind, is_list, word != text, choices, word, item.default)


def each(op: Operation, field: Field) -> tuple[Any, ...]:
    """The entries of a field that has several, or its one value; what is None is left out."""
    value = getattr(op, field.name)
    return tuple(item for item in (value if field.is_list else (value,)) if item is not None)


def tensors(op: Operation) -> Iterator[TensorRef]:
    """Every tensor that `op` reads: those of one list entry together, in the order of the fields."""
    of_kind = [field for field in fields_of(type(op)) if field.kind in TENSORS]
    lists = [getattr(op, field.name) if field.is_list else (getattr(op, field.name),) for field in of_kind]
    for i in range(max(map(len, lists), default=0)):
        yield from (entries[i] for entries in lists if i < len(entries) and entries[i] is not None)


def reads(op: Operation) -> tuple[Buffer, ...]:
    """Buffers whose contents `op` needs."""
    return _buffers(op, READ)


def fills(op: Operation) -> tuple[Buffer, ...]:
    """Buffers that `op` writes without reading them before."""
    return _buffers(op, _FILLED)


def writes(op: Operation) -> tuple[Buffer, ...]:
    """Buffers that `op` fills; Head's logits are no buffer."""
    return _buffers(op, WRITTEN)


_BUFFERS: dict[tuple[type[Operation], frozenset[Kind]], tuple[tuple[str, bool], ...]] = {}


def _fields_of_kinds(operation: type[Operation], kinds: frozenset[Kind]) -> tuple[tuple[str, bool], ...]:
    """Name, and whether it is a list."""
    key = operation, kinds
    if key not in _BUFFERS:
        _BUFFERS[key] = tuple((field.name, field.is_list) for field in fields_of(operation) if field.kind in kinds)
    return _BUFFERS[key]


def _buffers(op: Operation, kinds: frozenset[Kind]) -> tuple[Buffer, ...]:
    """Asked of every operation many times while a model loads."""
    found: list[Buffer] = []
    for name, is_list in _fields_of_kinds(type(op), kinds):
        value = getattr(op, name)
        found += value if is_list else () if value is None else (value,)
    return tuple(found)
