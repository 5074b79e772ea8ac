"""What was asked and answered, in an SQLite file of the user's own: nothing is kept unless the user says so.

The file is readable by its user alone and bounded: the oldest entries go. A fault of it never costs an answer. Words
are found anywhere in a text, in any script: by FTS5's index of three letters each where SQLite has it, else by LIKE.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import KamadoError
from ..files.atomic import PRIVATE, user_folder
from .terminal import note

if TYPE_CHECKING:
    from .. import Piece
    from .connection import Answering, Pieces

VERSION = 1
MAX_ENTRIES = 10_000
MAX_BYTES = 256 << 20
MAX_TEXT = 1 << 20  # characters of a prompt or an answer
_INDEXED = 3  # letters that FTS5's index needs at least
_BUSY_SECONDS = 2.0
_COLUMNS = ("at", "command", "model", "system", "prompt", "answer", "session", "finish", "options",
            "prompt_tokens", "answer_tokens", "seconds")  # fmt: skip
_TABLE = """
CREATE TABLE IF NOT EXISTS answers(
    id INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL, command TEXT NOT NULL, model TEXT NOT NULL, system TEXT,
    prompt TEXT NOT NULL, answer TEXT NOT NULL, session TEXT, finish TEXT, options TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, answer_tokens INTEGER NOT NULL, seconds REAL NOT NULL, nbytes INTEGER NOT NULL)
"""
_INDEX = """
CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(prompt, answer, content='answers', content_rowid='id',
    tokenize='trigram')
"""


class LogError(KamadoError):
    """The log of prompts cannot be read or written. The message names the file and what to do."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A prompt and what came of it."""

    command: str
    model: str
    prompt: str
    answer: str = ""
    system: str | None = None
    session: str | None = None
    finish: str | None = None  # "stop" or "length"; None: it was stopped
    options: Mapping[str, Any] = field(default_factory=dict)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0
    at: str = ""  # ISO 8601, UTC
    id: int = 0

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {"id": self.id, **{name: getattr(self, name) for name in _COLUMNS}}


class PromptLog:
    """The file. Any number of processes may use it; a connection lives for one call."""

    def __init__(self, path: Path | None = None, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self.path = user_folder("state", "prompts.sqlite") if path is None else path
        self._max_entries, self._max_bytes = max_entries, max_bytes

    def add(self, entry: Entry) -> None:
        """Keeps an entry; the oldest go when there are too many. Raises LogError."""
        prompt, answer = entry.prompt[:MAX_TEXT], entry.answer[:MAX_TEXT]
        system = None if entry.system is None else entry.system[:MAX_TEXT]
        options = json.dumps(dict(entry.options), default=str)[:MAX_TEXT]
        at = entry.at or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        values = [at, entry.command, entry.model, system, prompt, answer, entry.session, entry.finish, options,
                  entry.prompt_tokens, entry.answer_tokens, entry.seconds]  # fmt: skip
        values = [_storable(value) for value in values]
        nbytes = sum(len(value.encode()) for value in values if isinstance(value, str))
        with self._opened(writes=True) as database:
            is_indexed = _has_index(database, repair=True)
            marks = ", ".join("?" * (len(_COLUMNS) + 1))
            made = database.execute(
                f"INSERT INTO answers({', '.join(_COLUMNS)}, nbytes) VALUES({marks})", (*values, nbytes)
            )
            if is_indexed:
                words = (made.lastrowid, values[4], values[5])
                database.execute("INSERT INTO words(rowid, prompt, answer) VALUES(?, ?, ?)", words)
            self._forget_oldest(database, is_indexed)

    def find(self, word: str | None = None, limit: int | None = None) -> list[Entry]:
        """Entries that have `word` in prompt or answer, the latest first. Raises LogError."""
        if not self.path.exists():
            return []
        with self._opened(writes=False) as database:
            where, values = "", []
            if word is not None and len(word) >= _INDEXED and _has_index(database):
                where = "WHERE id IN (SELECT rowid FROM words WHERE words MATCH ?)"
                quoted = word.replace('"', '""')
                values = [f'"{quoted}"']
            elif word is not None:
                where = r"WHERE prompt LIKE ? ESCAPE '\' OR answer LIKE ? ESCAPE '\'"
                pattern = "".join(f"\\{letter}" if letter in "%_\\" else letter for letter in word)
                values = [f"%{pattern}%"] * 2
            rows = database.execute(
                f"SELECT id, {', '.join(_COLUMNS)} FROM answers {where} ORDER BY id DESC LIMIT ?",
                (*values, -1 if limit is None else limit),
            )
            return [_entry(row) for row in rows]

    def clear(self) -> int:
        """Forgets everything, also what the file system would have kept of it. Returns how many entries there were.

        A file that is damaged is removed. Raises LogError.
        """
        if not self.path.exists():
            return 0
        try:
            with self._opened(writes=True) as database:
                count = int(database.execute("SELECT count(*) FROM answers").fetchone()[0])
                database.execute("DELETE FROM answers")
                _has_index(database, repair=True)
            with self._connected() as database:
                database.execute("VACUUM")
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return count
        except LogError as error:
            if not _is_damage(error.__cause__):
                raise
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        return 0

    def _forget_oldest(self, database: sqlite3.Connection, is_indexed: bool) -> None:
        count, nbytes = database.execute("SELECT count(*), coalesce(sum(nbytes), 0) FROM answers").fetchone()
        while count > 1 and (count > self._max_entries or nbytes > self._max_bytes):
            oldest = database.execute("SELECT id, prompt, answer, nbytes FROM answers ORDER BY id LIMIT 1").fetchone()
            if is_indexed:  # an index of another table's content is told what goes
                database.execute(
                    "INSERT INTO words(words, rowid, prompt, answer) VALUES('delete', ?, ?, ?)", oldest[:3]
                )
            database.execute("DELETE FROM answers WHERE id = ?", oldest[:1])
            count, nbytes = count - 1, nbytes - oldest[3]

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection without a transaction. Raises LogError."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Before SQLite makes it, which would ask the umask; its other files take these permissions.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), PRIVATE))
            database = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                database.execute("PRAGMA secure_delete = ON")
                yield database
            finally:
                database.close()
        except (OSError, sqlite3.Error) as error:
            what = getattr(error, "strerror", None) or error
            advice = ": 'kamado history --clear' begins a new one" if _is_damage(error) else ""
            raise LogError(f"the log of prompts {self.path}: {what}{advice}") from error

    @contextlib.contextmanager
    def _opened(self, *, writes: bool) -> Iterator[sqlite3.Connection]:
        """A connection inside a transaction, its tables made or brought up to date."""
        with self._connected() as database:
            version = database.execute("PRAGMA user_version").fetchone()[0]
            if version > VERSION:
                raise LogError(
                    f"the log of prompts {self.path} was written by a later Kamado: use that, or move it away"
                )
            if version < VERSION:
                database.execute("PRAGMA journal_mode = WAL")
            database.execute("BEGIN IMMEDIATE" if writes or version < VERSION else "BEGIN")
            try:
                if version < VERSION:
                    database.execute(_TABLE)
                    database.execute(f"PRAGMA user_version = {VERSION}")
                    with contextlib.suppress(sqlite3.OperationalError):  # SQLite without FTS5, or without trigrams
                        database.execute(_INDEX)
                yield database
                database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
                raise


def _has_index(database: sqlite3.Connection, *, repair: bool = False) -> bool:
    """Whether the index is there, can be used by this SQLite, and has every entry. `repair`: it gets those it lacks,
    which an SQLite without FTS5 has left."""
    try:
        num_indexed = database.execute("SELECT count(*) FROM words_docsize").fetchone()[0]
        database.execute("SELECT rowid FROM words LIMIT 0")
    except sqlite3.OperationalError:
        return False
    is_whole = bool(database.execute("SELECT count(*) FROM answers").fetchone()[0] == num_indexed)
    if not is_whole and repair:
        database.execute("INSERT INTO words(words) VALUES('rebuild')")
    return is_whole or repair


def _entry(row: Sequence[Any]) -> Entry:
    values = dict(zip(_COLUMNS, row[1:], strict=True))
    try:
        values["options"] = json.loads(values["options"])
    except ValueError:
        values["options"] = {}
    return Entry(id=row[0], **values)


def _storable(value: Any) -> Any:
    """SQLite keeps UTF-8: half a character becomes a question mark."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _is_damage(error: BaseException | None) -> bool:
    """Whether the file is no database, or a broken one; what comes of locks and full disks is another kind."""
    return type(error) is sqlite3.DatabaseError


class Recorder:
    """Keeps entries, and warns once when that fails."""

    def __init__(self, log: PromptLog | None = None) -> None:
        self._log = PromptLog() if log is None else log
        self._has_warned = False

    def add(self, entry: Entry) -> None:
        """Keeps it if it can."""
        try:
            self._log.add(entry)
        except KamadoError as error:
            if not self._has_warned:
                self._has_warned = True
                note(f"kamado: warning: the answer is not kept: {' '.join(str(error).split())}")


class RecordedPieces:
    """An answer that is kept when it has ended, as far as it came."""

    def __init__(self, pieces: Pieces, entry: Entry, recorder: Recorder) -> None:
        self._pieces, self._entry, self._recorder = pieces, entry, recorder
        self._texts: list[str] = []
        self._finish: str | None = None
        self._is_kept = False

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        piece = next(self._pieces)
        self._texts.append(piece.text)
        self._finish = piece.finish_reason
        return piece

    def close(self) -> None:
        """Ends the work, and keeps what came."""
        self._pieces.close()
        if self._is_kept:
            return
        self._is_kept = True
        usage, told = self._pieces.usage, self._entry
        self._recorder.add(
            Entry(
                told.command, told.model, told.prompt, "".join(self._texts), told.system, told.session, self._finish,
                told.options, usage.num_prompt_tokens, usage.num_generated_tokens,
                round(usage.prefill_seconds + usage.decode_seconds, 3),
            )
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pieces, name)


class RecordedModel:
    """A model whose answers are kept: in all else the model itself."""

    def __init__(self, model: Answering, command: str, recorder: Recorder | None = None) -> None:
        self._model, self._command = model, command
        self._recorder = Recorder() if recorder is None else recorder

    @classmethod
    def around(cls, model: Answering, command: str) -> Answering:
        """`model`, with every answer kept."""
        return cast("Answering", cls(model, command))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def chat(self, messages: Sequence[Mapping[str, Any]], *, session: str | None = None, **options: Any) -> Pieces:
        """See `Answering.chat`."""
        named = {} if session is None else {"session": session}
        return self.kept(self._model.chat(messages, **named, **options), messages, session, options)

    def kept(
        self, pieces: Pieces, messages: Sequence[Mapping[str, Any]], session: str | None, options: Mapping[str, Any]
    ) -> Pieces:
        """`pieces`, the answer to `messages`, kept when it has ended."""
        system = next((str(m["content"]) for m in messages if m["role"] == "system"), None)
        prompt = next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")
        entry = Entry(
            self._command,
            self._model.name,
            prompt,
            system=system,
            session=session,
            options=options,
        )
        return cast("Pieces", RecordedPieces(pieces, entry, self._recorder))
