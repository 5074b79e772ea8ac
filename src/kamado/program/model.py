"""A model ready to be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .operation import Operation
from .ops import Pool, Pooling
from .state import Pages, Record, Source, State, Window, is_by_position
from .stateful import Attend


@dataclass(frozen=True, slots=True)
class Program:
    """A model ready to be run: its operations in order and what the caller must know of its shape.

    `states`: what a sequence keeps, by the number that operations name. Not given: pages, or a window where one is set,
    for each Attend that stores, in the order of their numbers.
    """

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

    states: tuple[State, ...] = ()
    longer: tuple[int, Program] | None = None  # what runs instead when a context of more than these tokens is planned

    def __post_init__(self) -> None:
        """Derives `states` where none are given."""
        if not self.states:
            stored = {op.state: _kept(op) for op in self.ops if isinstance(op, Attend) and op.stores}
            object.__setattr__(self, "states", tuple(stored[number] for number in sorted(stored)))

    def for_context(self, tokens: int) -> Program:
        """The program for conversations of up to `tokens`, where the rotation depends on how long they may become."""
        if self.longer is None or tokens <= self.longer[0]:
            return self
        return replace(self.longer[1], overridden=self.overridden)

    @property
    def has_record(self) -> bool:
        """Whether a step replaces state, so that sequences cannot be cut and forked anywhere."""
        return any(isinstance(state, Record) for state in self.states)

    @property
    def record_bytes(self) -> int:
        """Of what steps replace, at one length of a sequence."""
        return sum(state.num_bytes for state in self.states if isinstance(state, Record))

    @property
    def attends_by_kv_layer(self) -> tuple[tuple[Attend, ...], ...]:
        """The Attends on each KV layer, the one that stores first: the states that grow with a sequence, in order.

        Presets and measurements of the cache number these layers.
        """
        attends = sorted((op for op in self.ops if isinstance(op, Attend)), key=lambda op: not op.stores)
        return tuple(
            tuple(op for op in attends if op.state == number)
            for number, state in enumerate(self.states)
            if is_by_position(state)
        )

    @property
    def is_encoder(self) -> bool:
        """Whether it makes vectors of texts, and no text."""
        return isinstance(self.ops[-1], Pool)

    @property
    def is_causal(self) -> bool:
        """Whether no row sees later ones; otherwise a text must be computed in one step."""
        attends = (op for op in self.ops if isinstance(op, Attend))
        return all(op.causal or isinstance(self.states[op.state], Source) for op in attends)

    @property
    def output_width(self) -> int:
        """Numbers a row of the result has: logits, or the values of a vector."""
        return self.hidden if self.is_encoder else self.vocab_size


def _kept(op: Attend) -> State:
    """What a storing Attend needs to be kept, and no more."""
    if op.causal and op.window:
        return Window(op.num_kv_heads, op.head_dim, op.v_dim, op.window)
    return Pages(op.num_kv_heads, op.head_dim, op.v_dim)
