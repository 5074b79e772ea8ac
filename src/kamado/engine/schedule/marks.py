"""Which lengths of a running request become reuse points. Belongs to the scheduler's thread."""

from __future__ import annotations

from ..cache.sequences import SequenceCache
from .request import Request


def mark_reached(sequences: SequenceCache, request: Request) -> bool:
    """A step has brought the request to its present length: marks it where others may want to start. True when it is a
    place that is worth storing at once."""
    sequence = request.sequence
    assert sequence is not None
    if request.is_marked(sequence.length):
        sequences.mark(sequence)
        return sequence.length == request.mark_at
    if request.is_answer_marked(sequence.length):
        sequences.mark(sequence)
        _forget_answer_mark(sequences, request)
        request.answer_mark_at = sequence.length
    return False


def mark_end(sequences: SequenceCache, request: Request) -> None:
    """The request leaves: its end is where the conversation goes on. A place before it is kept for one that was cut."""
    assert request.sequence is not None
    if request.is_ended:
        _forget_answer_mark(sequences, request)
    sequences.mark(request.sequence)


def _forget_answer_mark(sequences: SequenceCache, request: Request) -> None:
    if request.answer_mark_at and request.sequence is not None:
        sequences.unmark(request.sequence, request.answer_mark_at)
