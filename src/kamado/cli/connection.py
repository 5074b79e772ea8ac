"""Who answers: a server of this user that runs here and would give the same, the one that --server names, or a model
that this process loads itself. Commands see one thing, `Answering`, whatever it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..errors import KamadoError, ModelNotFoundError, ServerError, UsageError
from . import loading
from .options import LOAD_NAMES, given
from .terminal import is_tty, note

if TYPE_CHECKING:
    from .. import Piece, Stats, Usage
    from .remote import RemoteModel


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

    def embed_counted(self, texts: Sequence[str], *, dimensions: int | None = None, truncate: bool = False) -> Vectors:
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
    for_vectors: bool = False,
    names: tuple[str, ...] = LOAD_NAMES,
) -> Iterator[Answering]:
    """The model for the time of the block. `values`: a command's options by name, of which those of `names` are about
    loading. `for_chat`: a model that cannot chat is refused, before it is loaded if it is loaded here. `for_vectors`:
    it is to make some.

    `local` (--local): no server is asked. `server` (--server): this one and no other; nothing is loaded here then.
    """
    UsageError.when(local and server is not None, "--local and --server contradict each other: give one")
    if server is not None:
        with _elsewhere(model, server, for_chat) as remote:
            yield remote
        return
    path = loading.locate(model, pull=pull)
    options = given(values, names)

    def load() -> Answering:
        if for_chat:
            loading.require_chat(path, model, values.get("allow_unknown") or ())
        return cast("Answering", loading.load(path, options))

    found = None if local else _beside(model, path, options, load, for_chat, for_vectors)
    with cast("Any", load() if found is None else found) as answering:
        yield answering


@contextmanager
def _elsewhere(model: str, url: str, for_chat: bool) -> Iterator[RemoteModel]:
    """A model in the server that --server names. Raises what that says, and ServerError."""
    from .link import Link
    from .remote import RemoteModel, tell

    link = Link.to(url, os.environ.get("KAMADO_API_KEY"))
    try:
        told = tell(link, model)
        _check_protocol(told.protocol, link.what)
        if told.kamado != (own := _version()):
            note(f"kamado: note: {link.what} is Kamado {told.kamado}, this is {own}")
        state = told.model
        if for_chat and (state.is_encoder or not state.has_chat_template):
            raise UsageError(f"{model} cannot chat there: it has no chat template; use kamado run --raw")
        with RemoteModel(link, told) as remote:
            yield remote
    finally:
        link.close()


def _beside(
    model: str, path: Path, options: Mapping[str, Any], load: Any, for_chat: bool, for_vectors: bool
) -> RemoteModel | None:
    """The model in this user's server on this machine, if it would give the same. Else None, and a note that says why;
    no note where no server runs."""
    from ..local import place

    try:
        folder = place.find()
        if folder is None:
            return None
        folder.close()
        return _same_there(model, path, options, load, for_chat, for_vectors)
    except ModelNotFoundError:
        reason = f"the server here does not serve {model}"
    except KamadoError as error:
        reason = " ".join(str(error).split())
    _note_local(reason)
    return None


def _same_there(
    model: str, path: Path, options: Mapping[str, Any], load: Any, for_chat: bool, for_vectors: bool
) -> RemoteModel | None:
    """See `_beside`. Raises KamadoErrors: why the server cannot answer."""
    from .link import Link
    from .remote import RemoteModel, tell
    from .same import differences, name_there

    link = Link.own()
    if link is None:
        return None

    def fall_back(reason: str) -> Answering:
        _note_local(reason)
        return cast("Answering", load())

    try:
        status = link.status()
        _check_protocol(status.protocol, link.what)
        if status.kamado != (own := _version()):
            raise ServerError(f"the server here is Kamado {status.kamado}, this is {own}")
        name = name_there(path, loading.called(path), status)
        if name is None:
            raise ModelNotFoundError(model)
        loaded = next((one for one in status.models if one.name == name and not one.is_loading), None)
        _check_same(differences(options, status, loaded))
        told = tell(link, name)
        status = link.status()
        loaded = next((one for one in status.models if one.name == told.model.name), None)
        _check_same(differences(options, status, loaded))
        if loaded is None or loaded.path != os.path.realpath(path):
            raise ServerError(f"the server here has another file for {model}")
        cannot_chat = for_chat and (loaded.is_encoder or not loaded.has_chat_template)
        if cannot_chat or (for_vectors and not loaded.embeds):  # what is said of that, the model here says
            link.close()
            return None
    except BaseException:
        link.close()
        raise
    if is_tty(sys.stderr):
        note(f"(answering from the server here, pid {status.pid})")
    return RemoteModel(link, told, fall_back)


def _check_same(found: Sequence[str]) -> None:
    if found:
        raise ServerError(f"the server here has other settings: {', '.join(found)}")


def _check_protocol(there: int, what: str) -> None:
    from ..local.documents import PROTOCOL

    ServerError.when(there != PROTOCOL, f"{what} is of another version: it speaks protocol {there}, not {PROTOCOL}")


def _version() -> str:
    import kamado

    return kamado.__version__


def _note_local(reason: str) -> None:
    note(f"kamado: note: {reason}: loading the model here")
