"""Reading a catalog file: every entry checked before anything of it is used; a broken one costs only itself.

The user's own file is read by the same rules as ours, and is trusted as little: sizes, counts and lengths are bounded,
names are such as a store can have, paths stay inside the model.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_origin

from ..errors import UsageError
from .catalog import Catalog, CatalogEntry, CatalogFile, HubSource, Wheel
from .names import MODEL_NAME, REPO, SHA256, safe_path

MAX_BYTES = 4 << 20
MAX_ENTRIES = 2000
MAX_TEXT = 1000
MAX_ITEMS = 5000  # of one list
MAX_NUMBER = 1 << 50

_TEXTS = {
    "title": "description", "architecture": "architecture", "format": "format", "license": "license",
    "languages": "languages", "parameters": "parameters", "active": "active", "size": "size", "origin": "origin",
    "facts": "facts",
}  # fmt: skip
_KEYS = {"name", "aliases", "good_for", "context", "hub", "wheel", "file", *_TEXTS}

T = TypeVar("T")


class _WrongEntry(ValueError):
    """Says what is wrong with an entry."""


def read_catalog(path: Path) -> Catalog:
    """The entries of a file. What is wrong with it, or with one of them, is among the problems, a sentence each."""
    try:
        if not path.is_file():
            return Catalog({}, (f"{path}: is no regular file: not read",))
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            return Catalog({}, (f"{path}: has more than {MAX_BYTES} bytes: not read",))
        document = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        return Catalog({}, (f"{path}: cannot be read: {error.strerror or error}",))
    except (ValueError, RecursionError) as error:
        reason = "is no UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"is no TOML: {_short(error)}"
        return Catalog({}, (f"{path}: {reason}; none of its models are known until that is mended",))
    models = document.get("model", [])
    if set(document) - {"model"} or not isinstance(models, list) or len(models) > MAX_ENTRIES:
        return Catalog({}, (f"{path}: holds [[model]] tables alone, at most {MAX_ENTRIES}: none of it is used",))
    entries: dict[str, CatalogEntry] = {}
    problems = []
    for number, model in enumerate(models, 1):
        label = f"model {number}"
        try:
            if not isinstance(model, dict):
                raise _WrongEntry("is no table")
            if isinstance(model.get("name"), str):
                label += f" ({model['name'][:80]!r})"
            entry = read_entry(model)
            taken = next((one for one in (entry.name, *entry.aliases) if _is_taken(one, entries)), None)
            if taken is not None:
                raise _WrongEntry(f"{taken!r} is another model's name in this file already")
            entries[entry.name] = entry
        except (_WrongEntry, UsageError) as error:
            problems.append(f"{path}: {label}: {error}; it is left out, the others are known")
    return Catalog(MappingProxyType(entries), tuple(problems))


def _is_taken(name: str, entries: Mapping[str, CatalogEntry]) -> bool:
    return name in entries or any(name in entry.aliases for entry in entries.values())


def read_entry(model: Mapping[str, Any]) -> CatalogEntry:
    """One [[model]] table. Raises ValueError or UsageError that says what is wrong with it."""
    _known(model, _KEYS, "it")
    texts = {field: _text(model, key, MAX_TEXT) for key, field in _TEXTS.items()}
    texts["format"] = texts["format"] or "gguf"
    if texts["format"] not in ("gguf", "safetensors"):
        raise _WrongEntry(f"format is {texts['format'][:40]!r}: it is gguf or safetensors")
    wheels = tuple(_wheel(item) for item in _tables(model, "wheel"))
    files = tuple(_file(item, len(wheels)) for item in _tables(model, "file"))
    hub = _hub(model["hub"]) if "hub" in model else None
    if (hub is None) == (not files) or bool(files) != bool(wheels):
        raise _WrongEntry("it needs one source: [model.hub], or [[model.wheel]] with [[model.file]]")
    return CatalogEntry(
        name=_name(_text(model, "name", 200)),
        wheels=wheels,
        files=files,
        hub=hub,
        aliases=tuple(map(_name, _list(model, "aliases", str))),
        good_for=tuple(one[:80] for one in _list(model, "good_for", str)),
        context=_number(model, "context") if "context" in model else 0,
        **texts,  # type: ignore[arg-type]  # format was checked
    )


def _hub(table: object) -> HubSource:
    if not isinstance(table, dict):
        raise _WrongEntry("hub is no table")
    _known(table, {"repo", "file", "quant", "sha256", "sha256_from"}, "hub")
    repo, file, quant = (_text(table, key, 200) for key in ("repo", "file", "quant"))
    if REPO.fullmatch(repo) is None:
        raise _WrongEntry(f"hub.repo is {repo[:80]!r}: it looks like OWNER/REPO")
    if file and (not file.endswith(".gguf") or str(safe_path(file)) != file):
        raise _WrongEntry(f"hub.file is {file[:80]!r}: it is the path of a .gguf file in the repository")
    if quant and re.fullmatch(r"[\w.-]{1,60}", quant) is None:
        raise _WrongEntry(f"hub.quant is {quant[:80]!r}: it looks like Q4_K_M")
    digests = table.get("sha256", {})
    if not isinstance(digests, dict) or len(digests) > MAX_ITEMS:
        raise _WrongEntry("hub.sha256 is no table of file names and digests")
    for name, digest in digests.items():
        if not isinstance(digest, str) or SHA256.fullmatch(digest) is None or "/" in name:
            raise _WrongEntry(f"hub.sha256 of {name[:80]!r} is no file name with 64 hexadecimal digits")
    stated_by = _text(table, "sha256_from", MAX_TEXT)
    return HubSource(repo, file or None, quant or None, MappingProxyType(digests), stated_by)


def _wheel(table: Mapping[str, Any]) -> Wheel:
    _known(table, {"project", "version", "nbytes", "sha256"}, "a wheel")
    project, version = _text(table, "project", 100), _text(table, "version", 40)
    if re.fullmatch(r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?", project, re.ASCII) is None:
        raise _WrongEntry(f"{project[:80]!r} is no project of a package index")
    if re.fullmatch(r"[A-Za-z0-9.+!]+", version) is None:
        raise _WrongEntry(f"{version[:40]!r} is no version of a wheel")
    filename = f"{project.replace('-', '_')}-{version}-py3-none-any.whl"
    return Wheel(project, version, filename, _number(table, "nbytes"), _digest(table))


def _file(table: Mapping[str, Any], num_wheels: int) -> CatalogFile:
    _known(table, {"path", "nbytes", "sha256", "members"}, "a file")
    path = _text(table, "path", 200)
    members = []
    for member in _list(table, "members", list[Any]):
        if len(member) != 2 or type(member[0]) is not int or not isinstance(member[1], str):
            raise _WrongEntry("a file's members are pairs: the wheel's number, from 0, and the name in it")
        if not 0 <= member[0] < num_wheels:
            raise _WrongEntry(f"a file's member is in wheel {member[0]}, and there are {num_wheels}")
        members.append((member[0], member[1][:MAX_TEXT]))
    if not members:
        raise _WrongEntry(f"the file {path[:80]!r} has no members")
    return CatalogFile(str(safe_path(path)), _number(table, "nbytes"), _digest(table), tuple(members))


def _known(table: Mapping[str, Any], known: set[str], what: str) -> None:
    if odd := sorted(set(table) - known):
        raise _WrongEntry(f"{what} has a key {odd[0][:40]!r}; known are {', '.join(sorted(known))}")


def _text(table: Mapping[str, Any], key: str, longest: int) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or len(value) > longest or any(ord(letter) < 0x20 for letter in value):
        raise _WrongEntry(f"{key} is no text of one line and at most {longest} characters")
    return value


def _number(table: Mapping[str, Any], key: str) -> int:
    value = table.get(key)
    if type(value) is not int or not 0 < value <= MAX_NUMBER:
        raise _WrongEntry(f"{key} is no whole number above 0")
    return value


def _digest(table: Mapping[str, Any]) -> str:
    digest = _text(table, "sha256", 100)
    if SHA256.fullmatch(digest) is None:
        raise _WrongEntry("sha256 has 64 hexadecimal digits, small letters")
    return digest


def _tables(table: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    return _list(table, key, dict[str, Any])


def _list(table: Mapping[str, Any], key: str, kind: type[T]) -> list[T]:
    value, plain = table.get(key, []), get_origin(kind) or kind
    if not isinstance(value, list) or len(value) > MAX_ITEMS or not all(type(item) is plain for item in value):
        raise _WrongEntry(f"{key} is no list of {'tables' if plain is dict else f'{plain.__name__} values'}")
    return value


def _name(name: str) -> str:
    if MODEL_NAME.fullmatch(name) is None or name.startswith(("hf:", "ollama:", "lmstudio:", "hfcache:")):
        raise _WrongEntry(f"{name[:80]!r} is no name for a model: letters, digits and . _ : / @ + - only")
    return name


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
