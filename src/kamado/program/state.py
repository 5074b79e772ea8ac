"""What a sequence keeps from step to step. An operation names its state by number: `Program.states` lists them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, TypeGuard


@dataclass(frozen=True, slots=True)
class Pages:
    """Keys and values of every position, in pages of 128. Any length can be gone back to, as far as presets allow."""

    num_kv_heads: int
    head_dim: int
    v_dim: int


@dataclass(frozen=True, slots=True)
class Window(Pages):
    """Keys and values of which the next position sees the last `tokens`, its own included."""

    tokens: int


@dataclass(frozen=True, slots=True)
class Source(Pages):
    """Keys and values made once for a sequence before its first step (an encoder's rows), at most `tokens` of them.

    Every step reads them all; cutting a sequence leaves them, forks share them.
    """

    tokens: int


@dataclass(frozen=True, slots=True)
class Record:
    """`num_bytes` of float32 that every step replaces, zeros at first: a sum, a matrix, the tail of a convolution.

    A sequence can be cut or forked only where its record was kept: at its end, at marked lengths, and at 0.
    """

    name: str
    num_bytes: int


State: TypeAlias = Pages | Window | Source | Record


def is_by_position(state: State) -> TypeGuard[Pages]:
    """Whether it grows with the sequence: what `kv=` numbers and may encode."""
    return isinstance(state, Pages) and not isinstance(state, Source)
