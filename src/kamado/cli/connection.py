"""Who answers: a server of this user that runs here and would give the same, the one that --server names, or a model
that this process loads itself. Commands see one thing, `Answering`, whatever it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..errors import UsageError
from . import loading
from .options import LOAD_NAMES, given

if TYPE_CHECKING:
    from .. import Piece, Stats, Usage


class Pieces(Protocol):
    """One answer as it comes: what `kamado.Generation` is. Leaving it without `close` may go on with the work."""

    def __iter__(self) -> Iterator[Piece]:
        """Itself."""

    def __next__(self) -> Piece:
        """The next piece; waits for it."""

    def close(self) -> None:
        """Ends the work for it; may be called again, and from another thread."""

    @property
    def usage(self) -> Usage:
        """Tokens and seconds so far."""

    @property
    def num_computed_tokens(self) -> int:
        """Tokens of the prompt and the answer that were computed so far; may be read from another thread while
        `next` waits."""


class Vectors(Protocol):
    """What embedding gives: `vectors` float32[n, d] and the tokens of each text."""

    @property
    def vectors(self) -> Any:
        """A row a text, each of length 1."""

    @property
    def num_tokens(self) -> tuple[int, ...]:
        """Of each text."""


class Answering(Protocol):
    """A model that answers, here or elsewhere: the part of `kamado.Model` that `run`, `chat` and `embed` use."""

    @property
    def name(self) -> str:
        """What commands take for it."""

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""

    @property
    def is_encoder(self) -> bool:
        """Whether it makes vectors and no text."""

    @property
    def stats(self) -> Stats:
        """Totals since it was loaded, for --stats."""

    def chat(self, messages: Sequence[Mapping[str, Any]], *, session: str | None = None, **options: Any) -> Pieces:
        """See `kamado.Model.chat`, without tools and think: `options` are AnswerOptions, schema, regex, grammar."""

    def generate(self, prompt: str, *, special: bool = False, **options: Any) -> Pieces:
        """See `kamado.Model.generate`."""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The token ids that `chat` would send for `messages`: how full the context is."""

    def embed_counted(
        self, texts: Sequence[str], *, dimensions: int | None = None, truncate: bool = False
    ) -> Vectors:
        """See `kamado.Model.embed_counted`."""


@contextmanager
def opened(
    model: str,
    values: Mapping[str, Any],
    *,
    pull: bool = False,
    server: str | None = None,
    local: bool = False,
    for_chat: bool = False,
    names: tuple[str, ...] = LOAD_NAMES,
) -> Iterator[Answering]:
    """The model for the time of the block. `values`: a command's options by name, of which those of `names` are about
    loading. `for_chat`: a model that cannot chat is refused, before it is loaded if it is loaded here.

    `local` (--local): no server is asked. `server` (--server): this one and no other; nothing is loaded here then.
    """
    UsageError.when(local and server is not None, "--local and --server contradict each other: give one")
    path = loading.locate(model, pull=pull)
    if for_chat:
        loading.require_chat(path, model, values.get("allow_unknown") or ())
    with loading.load(path, given(values, names)) as loaded:
        yield cast("Answering", loaded)
