"""One answer as its caller sees it: an iterator over pieces that can be left at any time."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from ..errors import ClosedError, ExpertReadError, KamadoError, ModelChangedError, NativeError
from .forms.json_schema import CompiledSchema
from .piece import Piece, Usage
from .schedule.repeats import Repeat
from .schedule.request import Request
from .schedule.scheduler import Scheduler


class Owner(Protocol):
    """A model, as its answers see it."""

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token."""
        ...


class Generation(Iterator[Piece]):
    """The pieces of one answer, as they come. Dropping it, `close()` or Ctrl-C ends the work for it."""

    def __init__(
        self,
        request: Request,
        scheduler: Scheduler,
        owner: Owner,
        *,
        on_end: Callable[[str], None] | None = None,
        on_tokens: Callable[[Sequence[int]], None] | None = None,
        on_repeat: Callable[[Repeat, Sequence[int]], None] | None = None,
        schema: CompiledSchema | None = None,
    ) -> None:
        """When the answer has ended or was stopped, `on_end` is called once with the text that was taken, `on_tokens`
        with the prompt's ids and those that were generated, if any were, and `on_repeat` with these if they only
        repeat themselves. `schema`: what the answer is held to."""
        self._request = request
        self._scheduler = scheduler
        self._owner = owner  # the model must not be closed by garbage collection while an answer runs
        self._is_done = False
        self._on_end = on_end
        self._on_tokens = on_tokens
        self._on_repeat = on_repeat
        self._texts: list[str] = []
        self.schema = schema
        scheduler.submit(request)

    def __next__(self) -> Piece:
        if self._is_done:
            raise StopIteration
        self._scheduler.check_process()
        request = self._request
        try:
            item = request.output.get()
        except BaseException:
            self.close()
            raise
        if request.is_paused:
            self._scheduler.wake()
        if isinstance(item, Piece):
            if self._on_end is not None:
                self._texts.append(item.text)
            if item.finish_reason is not None:
                self._end()
            return item
        self._end()
        if item is None:
            raise StopIteration
        raise public_error(item)

    @property
    def is_ready(self) -> bool:
        """Whether `next` would not wait: a piece, the end or an error is there."""
        return self._is_done or not self._request.output.empty()

    def on_news(self, listener: Callable[[], None] | None) -> None:
        """`listener` is called when something comes, by the scheduler's thread: it must be short and not raise."""
        self._request.output.listener = listener
        if listener is not None and self.is_ready:
            listener()

    @property
    def num_computed_tokens(self) -> int:
        """Tokens of the prompt and the answer that the executor has computed so far."""
        return self._request.num_cached

    def token_bytes(self, token: int) -> bytes:
        """See Model.token_bytes."""
        return self._owner.token_bytes(token)

    @property
    def has_logprobs(self) -> bool:
        """Whether log-probabilities were asked for."""
        return self._request.has_logprobs

    def close(self) -> None:
        """Stops the answer. Its executor is free within 250 ms; may be called again, and from another thread."""
        if self._is_done:
            return
        if not self._scheduler.is_own_process:  # a forked child's copy: the answer goes on in the parent
            self._is_done = True
            return
        self._scheduler.cancel(self._request)
        self._end()

    def _end(self) -> None:
        self._is_done = True
        on_tokens, self._on_tokens = self._on_tokens, None
        if on_tokens is not None and self._request.num_generated:
            on_tokens(self._request.tokens)
        on_repeat, self._on_repeat = self._on_repeat, None
        if on_repeat is not None and self._request.repeats.found is not None:
            on_repeat(self._request.repeats.found, self._request.tokens)
        if self._on_end is not None:
            on_end, self._on_end = self._on_end, None
            on_end("".join(self._texts))

    def __del__(self) -> None:
        if not getattr(self, "_is_done", True):
            self.close()

    @property
    def seed(self) -> int:
        """The seed in use: given again, it gives the same answer."""
        return self._request.sampler.seed

    @property
    def usage(self) -> Usage:
        """Tokens and seconds so far."""
        return self._request.usage()


@contextmanager
def public_errors() -> Iterator[None]:
    """What is raised inside, as a caller sees it."""
    try:
        yield
    except KamadoError:
        raise
    except Exception as error:
        raise public_error(error) from error


def public_error(error: BaseException) -> BaseException:
    """What a caller sees of an error that came from the scheduler's thread."""
    if isinstance(error, KamadoError) and not isinstance(error, ClosedError):
        return error
    if isinstance(error, ClosedError):  # one instance is shared by all who waited: each gets its own traceback
        return ClosedError(str(error))
    if isinstance(error, OSError):
        kind = ModelChangedError if error.errno == errno.ESTALE else ExpertReadError
        fault: KamadoError = kind(error.strerror or str(error))
        fault.__cause__ = error
        return fault
    # Not finite numbers in a step (`_native.NotFinite`) speak for themselves.
    wrapped = NativeError(str(error) if isinstance(error, FloatingPointError) else f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
