"""The events of one answer, read from its pieces: what answers of turns and of plain texts have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from ..forms.json_schema import CompiledSchema
from ..generation import Generation
from ..piece import Piece, Usage, whole_text
from .chat_types import (
    ContentEvent,
    Finish,
    Message,
    ReasoningDelta,
    TextDelta,
    TextPart,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)


class AnswerEvents(Iterator[ContentEvent | Finish]):
    """The events of one answer, as they come; `Finish` is the last. Dropping it or `close()` ends the work for it."""

    def __init__(
        self,
        generation: Generation,
        token_bytes: Callable[[int], bytes],
        *,
        choice: int,
        has_logprobs: bool,
        schemas: Mapping[str, CompiledSchema],
    ) -> None:
        """`choice` marks the events; `schemas` are those that the finished answer is checked against."""
        self._generation = generation
        self._token_bytes = token_bytes
        self._texts: list[str] = []
        self._choice = choice
        self._has_logprobs = has_logprobs
        self._schemas = schemas
        self._reasoning: list[str] = []
        self._calls: dict[int, tuple[ToolCallStart, list[str]]] = {}
        self._ended: set[int] = set()  # calls that are whole
        self._ready: deque[ContentEvent | Finish] = deque()
        self._is_done = False

    @abstractmethod
    def _take(self, piece: Piece) -> None:
        """Puts what the piece brings into `_ready`."""

    def __next__(self) -> ContentEvent | Finish:
        while (event := self._next()) is None:
            self._take(next(self._generation))
        return event

    def poll(self) -> ContentEvent | Finish | None:
        """The next event if it is there already, else None. Raises StopIteration after the last."""
        while (event := self._next()) is None and self._generation.is_ready:
            self._take(next(self._generation))
        return event

    def _next(self) -> ContentEvent | Finish | None:
        if not self._ready:
            if self._is_done:
                raise StopIteration
            return None
        event = self._ready.popleft()
        if isinstance(event, TextDelta):
            self._texts.append(event.text)
        elif isinstance(event, ReasoningDelta):
            self._reasoning.append(event.text)
        elif isinstance(event, ToolCallStart):
            self._calls[event.index] = (event, [])
        elif isinstance(event, ToolCallDelta):
            self._calls[event.index][1].append(event.arguments)
        elif isinstance(event, ToolCallEnd):
            if not event.is_cut:
                self._ended.add(event.index)
        elif event.reason in ("stop", "tool_calls"):
            event = replace(event, violations=self._violations())
        return event

    @property
    def message(self) -> Message:
        """The assistant's message, of the events that were taken so far; calls that are not whole are left out."""
        text = "".join(self._texts)
        calls = tuple(
            ToolCall(start.id, start.name, "".join(arguments))
            for index, (start, arguments) in self._calls.items()
            if index in self._ended
        )
        return Message("assistant", (TextPart(text),) if text else (), "".join(self._reasoning), calls)

    def _violations(self) -> tuple[str, ...]:
        """What the whole answer violates of what its schemas left open, each with the call and the place."""
        out: list[str] = []
        for index, (start, arguments) in self._calls.items():
            schema = self._schemas.get(start.name)
            if schema is not None and schema.open:
                out += [f"call {index} of {start.name}: {one}" for one in schema.violations("".join(arguments))]
        form = self._schemas.get("")
        if form is not None and form.open and (text := "".join(self._texts).strip()):
            out += form.violations(text)
        return tuple(out)

    def _logprob(self, piece: Piece) -> TokenLogprob:
        bytes_of = self._token_bytes
        top = tuple((token, bytes_of(token), value) for token, value in piece.top_logprobs)
        return TokenLogprob(piece.token, bytes_of(piece.token), piece.logprob or 0.0, top)

    def on_news(self, listener: Callable[[], None] | None) -> None:
        """`listener` is called, by the scheduler's thread, when `poll` may have something."""
        self._generation.on_news(listener)

    @property
    def num_computed_tokens(self) -> int:
        """Tokens of the prompt and the answer that were computed so far."""
        return self._generation.num_computed_tokens

    def close(self) -> None:
        """Stops the answer. May be called again, and from another thread."""
        self._is_done = True
        self._generation.close()

    @property
    def usage(self) -> Usage:
        """Tokens and seconds so far."""
        return self._generation.usage


class TextEvents(AnswerEvents):
    """The pieces of an answer that `Model.generate` began, as events: TextDelta, and Finish as the last."""

    def __init__(self, generation: Generation, choice: int = 0) -> None:
        """`choice` marks the events. The pieces are taken here, and nowhere else."""
        schemas = {} if generation.schema is None else {"": generation.schema}
        super().__init__(
            generation, generation.token_bytes, choice=choice, has_logprobs=generation.has_logprobs, schemas=schemas
        )

    def _take(self, piece: Piece) -> None:
        logprobs = (self._logprob(piece),) if self._has_logprobs else ()
        text = whole_text(piece, self._token_bytes)
        if text or logprobs:
            self._ready.append(TextDelta(text, logprobs, self._choice))
        if piece.finish_reason is not None:
            self._ready.append(Finish(piece.finish_reason, None, self._choice))
            self._is_done = True
