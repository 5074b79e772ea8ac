"""A model in a server as commands see it: `RemoteModel` is an `Answering` over a `Link`.

What goes wrong with the server before anything of an answer came is no fault of the question: the model is then loaded
here, once, and answers from there on. After that it is an error, since half an answer was shown already.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from ..errors import ServerError
from ..local.documents import ANSWER_PATH, EMBED_PATH, ENCODE_PATH, MODEL_PATH, STATS_PATH, Spent, Told, read
from .link import Link, Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .. import Piece, Stats, Usage
    from .connection import Answering, Pieces

T = TypeVar("T")

_MOST_TEXTS = 256  # of one request for vectors


class Fallback(Protocol):
    """Loads the model here, after `reason`."""

    def __call__(self, reason: str) -> Answering:
        """The model."""


class Vectors(NamedTuple):
    """As the engine's Embedded."""

    vectors: NDArray[np.float32]
    num_tokens: tuple[int, ...]


def tell(link: Link, model: str) -> Told:
    """Has the server load the model if it is not in its memory; how it is loaded then. Raises as the link does."""
    told = None
    for row in link.lines("POST", MODEL_PATH, {"model": model}):
        if "told" in row:
            told = read(Told, row["told"], "told")
            link.life_seconds = told.life_seconds
    if told is None:
        raise ServerError(f"{link.what} broke off while it loaded the model")
    return told


class RemoteModel:
    """See `Answering`. Use it in a `with` statement."""

    def __init__(self, link: Link, told: Told, fallback: Fallback | None = None) -> None:
        """`fallback` None: nobody else may answer."""
        self._link = link
        self._told = told.model
        self._fallback = fallback
        self._local: Any = None  # once the server is gone

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()
        if self._local is not None:
            self._local.close()

    @property
    def name(self) -> str:
        """See Answering."""
        return self._told.name if self._local is None else str(self._local.name)

    @property
    def memory(self) -> tuple[int, int]:
        """Bytes that the model was planned to take there, and what it was planned within."""
        return self._told.memory_bytes, self._told.budget_bytes

    @property
    def has_chat_template(self) -> bool:
        """See Answering."""
        return self._told.has_chat_template

    @property
    def where(self) -> str:
        """Who answers."""
        return self._link.what if self._local is None else "this process"

    @property
    def is_encoder(self) -> bool:
        """See Answering."""
        return self._told.is_encoder

    @property
    def context(self) -> int:
        """See Answering."""
        return self._told.context if self._local is None else int(self._local.context)

    @property
    def stats(self) -> Stats:
        """See Answering."""
        found: Stats = self._either(self._stats, lambda model: model.stats)
        return found

    def _stats(self) -> Stats:
        return _stats_of(self._link.ask("POST", STATS_PATH, {"model": self.name}, has_work=True).get("stats"))

    def chat(self, messages: Sequence[Mapping[str, Any]], *, session: str | None = None, **options: Any) -> Pieces:
        """See Answering."""
        body = {"messages": [dict(message) for message in messages], "session": session}
        return self._answer(body, options, lambda model: model.chat(messages, session=session, **options))

    def generate(self, prompt: str, *, special: bool = False, **options: Any) -> Pieces:
        """See Answering."""
        body = {"prompt": prompt, "special": special}
        return self._answer(body, options, lambda model: model.generate(prompt, special=special, **options))

    def _answer(self, body: Row, options: Mapping[str, Any], local: Callable[[Answering], Pieces]) -> Pieces:
        given = {name: value for name, value in options.items() if value is not None}
        if "logit_bias" in given:
            given["logit_bias"] = {str(token): bias for token, bias in given["logit_bias"].items()}
        request = {"model": self.name, **body, "options": given}

        def elsewhere(error: ServerError) -> Pieces:
            return local(self._switch(error))

        return self._either(lambda: RemoteAnswer(self._link, request, elsewhere), local)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """See Answering."""
        return self._either(lambda: self._encode(messages), lambda model: model.encode_chat(messages))

    def _encode(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        body = {"model": self.name, "messages": [dict(message) for message in messages]}
        tokens = self._link.ask("POST", ENCODE_PATH, body, has_work=True).get("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise ServerError(f"{self._link.what} answers nonsense: no token ids")
        return tokens

    def embed_counted(self, texts: Sequence[str], *, dimensions: int | None = None, truncate: bool = False) -> Vectors:
        """See Answering."""
        given: dict[str, Any] = {"dimensions": dimensions, "truncate": truncate}
        found: Vectors = self._either(
            lambda: self._embed(texts, given), lambda model: model.embed_counted(texts, **given)
        )
        return found

    def _embed(self, texts: Sequence[str], given: Row) -> Vectors:
        import numpy as np

        rows: list[Any] = []
        counts: list[int] = []
        for at in range(0, len(texts), _MOST_TEXTS):
            part = list(texts[at : at + _MOST_TEXTS])
            found = self._link.ask("POST", EMBED_PATH, {"model": self.name, "texts": part, **given}, has_work=True)
            try:
                numbers = np.frombuffer(base64.b64decode(found["vectors"], validate=True), np.dtype("<f4"))
                rows.append(numbers.reshape(len(part), -1))
                counts += [int(count) for count in found["num_tokens"]]
            except (KeyError, TypeError, ValueError):
                raise ServerError(f"{self._link.what} answers nonsense: no vectors") from None
        widths = {row.shape[1] for row in rows}
        if len(widths) != 1 or 0 in widths or len(counts) != len(texts) or not all(map(np.all, map(np.isfinite, rows))):
            raise ServerError(f"{self._link.what} answers nonsense: no vectors")
        return Vectors(np.concatenate(rows).astype(np.float32), tuple(counts))

    def _either(self, remote: Callable[[], T], local: Callable[[Any], T]) -> T:
        """What the server gives, or the model that was loaded here when it can give nothing."""
        if self._local is not None:
            return local(self._local)
        try:
            return remote()
        except ServerError as error:
            return local(self._switch(error))

    def _switch(self, error: ServerError) -> Answering:
        """The model here. Raises the error again where only the server may answer."""
        if self._fallback is None:
            raise error
        if self._local is None:
            self._local = self._fallback(str(error))
        model: Answering = self._local
        return model


class RemoteAnswer:
    """See `Pieces`. What is wrong with the request is raised when it is made, as a Generation does."""

    def __init__(self, link: Link, request: Row, elsewhere: Callable[[ServerError], Pieces]) -> None:
        """`elsewhere` gives the answer, or raises, when the server fails before the first piece."""
        self._what = link.what
        self._elsewhere: Callable[[ServerError], Pieces] | None = elsewhere
        self._other: Pieces | None = None
        self._spent: Spent | None = None
        self._is_over = False
        self._num_prompt = self._num_pieces = 0
        self.num_prefilled_tokens = 0
        self._began_at = self._first_at = self._last_at = time.monotonic()
        self._lines: Generator[Row, None, None] = link.lines("POST", ANSWER_PATH, request)
        try:
            while self._num_prompt == 0:
                self._take(self._next_row())
        except BaseException:
            self._lines.close()
            raise

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        if self._other is not None:
            return next(self._other)
        if self._is_over:
            raise StopIteration
        try:
            while (piece := self._take(self._next_row())) is None:
                if self._spent is not None:
                    self._is_over = True
                    next(self._lines, None)  # to the end, so that the connection stays of use
                    raise StopIteration
        except ServerError as error:
            self.close()
            if self._elsewhere is None:
                raise ServerError(f"{error}; the answer above is not whole: ask again") from None
            self._other = self._elsewhere(error)
            return next(self._other)
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise
        self._elsewhere = None  # from now on a failure is an error
        return piece

    def close(self) -> None:
        """See Pieces."""
        self._is_over = True
        self._lines.close()
        if self._other is not None:
            self._other.close()

    @property
    def usage(self) -> Usage:
        """See Pieces. Of an answer that was stopped, as it was seen from here."""
        if self._other is not None:
            return self._other.usage
        from .. import Usage

        if self._spent is not None:
            return Usage(*(getattr(self._spent, f.name) for f in fields(Spent)))
        prefill, decode = self._first_at - self._began_at, self._last_at - self._first_at
        return Usage(self._num_prompt, 0, self._num_pieces, 0.0, prefill, decode)

    @property
    def num_computed_tokens(self) -> int:
        """See Pieces."""
        if self._other is not None:
            return self._other.num_computed_tokens
        return self._num_prompt + self._num_pieces if self._num_pieces else self.num_prefilled_tokens

    def _next_row(self) -> Row:
        row = next(self._lines, None)
        if row is None:
            raise ServerError(f"{self._what} ended in the middle of the answer")
        return row

    def _take(self, row: Row) -> Piece | None:
        """What a row brings. Raises ServerError for one that cannot be."""
        from .. import Piece

        try:
            if "piece" in row:
                text, token, logprob, top, reason = row["piece"]
                if not isinstance(text, str) or type(token) is not int or reason not in (None, "stop", "length"):
                    raise ValueError
                self._last_at = time.monotonic()
                self._first_at = self._first_at if self._num_pieces else self._last_at
                self._num_pieces += 1
                tops = tuple((int(one), float(value)) for one, value in top)
                return Piece(text, token, None if logprob is None else float(logprob), tops, reason)
            if "started" in row:
                self._num_prompt = int(row["started"][0])
            elif "progress" in row and row["progress"][0] == "prefill":
                self.num_prefilled_tokens = int(row["progress"][1])
            elif "done" in row:
                self._spent = read(Spent, row["done"], "done")
        except (TypeError, ValueError, LookupError):
            raise ServerError(f"{self._what} answers nonsense: {str(row)[:60]}") from None
        return None


def _stats_of(value: object) -> Stats:
    """`Stats` of its `to_dict`. Raises ServerError."""
    from .. import Ledger, LedgerRow, Stats

    try:
        values: dict[str, Any] = {f.name: value[f.name] for f in fields(Stats)}  # type: ignore[index]
        told = values["ledger"]
        if told is not None:
            names = [f.name for f in fields(LedgerRow)]
            layers = {int(row["layer"]): LedgerRow(**{name: row[name] for name in names}) for row in told["layers"]}
            values["ledger"] = Ledger(
                layers,
                slots=told["slots"],
                slot_bytes=told["slot_bytes"],
                record_bytes=told["record_bytes"],
                is_direct=told["direct_io"],
                num_readers=told["readers"],
                busy_seconds=told["total"]["busy_seconds"],
            )
        return Stats(**values)
    except (TypeError, KeyError, ValueError):
        raise ServerError("the server answers nonsense: no figures") from None
