"""Settings of a safetensors directory that may stand in one of several files: how to sample, where to end, templates.

transformers decides which counts: generation_config.json, and config.json only where that file is not there at all
(`eos_token_id`: also where it has none); chat_template.jinja before chat_template.json before tokenizer_config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import MetadataError
from .plain_file import parse_json_object, read_limited, read_text

MAX_JSON_BYTES = 64 << 20
MAX_TOKEN_IDS = 1 << 20  # in a list of them: more than any vocabulary has
_ID_BITS = 62  # what can be an index at all
MAX_TEMPLATES = 64  # in additional_chat_templates/
_SAMPLING_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_GENERATION = "generation_config.json"
_CONFIG = "config.json"
_PARTS = ("text_config", "decoder", "generator")  # of a multimodal config.json: the language model's own


def json_object(path: Path) -> dict[str, Any]:
    """A JSON file's object. Raises CorruptFileError."""
    return parse_json_object(read_limited(path, MAX_JSON_BYTES), path)


def is_there(path: Path) -> bool:
    """Whether something has this name, a dangling link too: what cannot be read is reported, not passed over."""
    return path.exists() or path.is_symlink()


def default_end(config: Mapping[str, Any]) -> dict[str, Any]:
    """`eos_token_id` of config.json as an object of that key, empty when it has none; of its language part else."""
    for part in _parts(config):
        if part.get("eos_token_id") is not None:
            return {"eos_token_id": part["eos_token_id"]}
    return {}


def sampling(path: Path, generation: Mapping[str, Any] | None, config: Mapping[str, Any]) -> dict[str, float]:
    """Recommended sampling parameters of directory `path`; `generation` is None without generation_config.json.

    Raises MetadataError for values that are no finite numbers.
    """
    name = _CONFIG if generation is None else _GENERATION
    parts = _parts(config) if generation is None else [generation]
    out: dict[str, float] = {}
    for part in parts:
        for key in _SAMPLING_KEYS:
            value = part.get(key)
            if value is None or key in out:
                continue
            if not is_finite_number(value):
                raise MetadataError(f"{path / name}: key {key!r} must be a number, it is {shown(value)}")
            out[key] = value
    if next((part["do_sample"] for part in parts if part.get("do_sample") is not None), None) is False:
        out["temperature"] = 0.0
    return out


def suppressed(path: Path, generation: Mapping[str, Any] | None, config: Mapping[str, Any]) -> tuple[int, ...]:
    """`suppress_tokens` of directory `path`: ids that are never to be sampled. Raises MetadataError."""
    name = _CONFIG if generation is None else _GENERATION
    parts = _parts(config) if generation is None else [generation]
    found = next((part["suppress_tokens"] for part in parts if part.get("suppress_tokens") is not None), None)
    return token_ids(found, f"{path / name}: key 'suppress_tokens'")


def token_ids(value: object, where: str) -> tuple[int, ...]:
    """A list of token ids; None: there are none. Raises MetadataError, `where` in its text."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise MetadataError(f"{where} must be a list of token ids, it is {shown(value)}")
    if len(value) > MAX_TOKEN_IDS:
        raise MetadataError(f"{where} lists {len(value)} token ids, the limit is {MAX_TOKEN_IDS}")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, int) or item.bit_length() > _ID_BITS:
            raise MetadataError(f"{where} must be a list of token ids, it has {shown(item)}")
    return tuple(value)


def is_finite_number(value: object) -> bool:
    """Whether `value` is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON has integers of any length
        return False


def shown(value: object) -> str:
    """`value` for a message, cut short."""
    if isinstance(value, int) and value.bit_length() > 256:  # its decimal digits may be more than Python writes
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [config, *(part for key in _PARTS if isinstance(part := config.get(key), Mapping))]


def chat_templates(path: Path, config: Mapping[str, Any]) -> tuple[str | None, dict[str, str]]:
    """(default, named) of directory `path`; `config` is its tokenizer_config.json.

    Raises MetadataError for templates that are no text, CorruptFileError for files that cannot be read.
    """
    source: Any = config.get("chat_template")
    file = path / "tokenizer_config.json"
    if is_there(path / "chat_template.json"):
        file = path / "chat_template.json"
        source = json_object(file).get("chat_template", source)
    named: dict[str, str] = {}
    if isinstance(source, list):
        for entry in source:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise MetadataError(f"{file}: 'chat_template' has an entry without a name")
            named[entry["name"]] = _template_text(file, entry.get("template"))
    elif isinstance(source, dict):
        named = {name: _template_text(file, template) for name, template in source.items()}
    elif source is not None:
        named["default"] = _template_text(file, source)
    if is_there(path / "chat_template.jinja"):
        named["default"] = read_text(path / "chat_template.jinja", MAX_JSON_BYTES)
    for template in sorted((path / "additional_chat_templates").glob("*.jinja"))[:MAX_TEMPLATES]:
        named[template.stem] = read_text(template, MAX_JSON_BYTES)
    return named.pop("default", None), named


def _template_text(file: Path, value: Any) -> str:
    # JSON can write halves of characters, which no prompt can hold.
    if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value):
        raise MetadataError(f"{file}: key 'chat_template' must be text")
    return value
