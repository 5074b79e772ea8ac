"""The form of an answer as the clients of other servers write it: llama.cpp's and vLLM's words for response_format."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from ...faults import RequestError
from ...models.contract import OutputFormat
from ..schemas import check_schema
from .bodies import ChatBody, CompletionBody, JsonSchemaFormat, ResponseFormat, StructuredOutputs


def form_of(body: ChatBody | CompletionBody, max_schema_bytes: int) -> OutputFormat:
    """What the answer must be. Raises RequestError when two forms are given, or one is wrong."""
    forms: dict[str, ResponseFormat] = {}
    if body.response_format is not None:
        forms["response_format"] = _own(body.response_format)
    if body.json_schema is not None:
        forms["json_schema"] = _schema(body.json_schema)
    guided = StructuredOutputs(body.guided_json, body.guided_regex, body.guided_choice)
    forms |= _structured(guided, "guided_")
    if isinstance(body.structured_outputs, StructuredOutputs):
        forms |= _structured(body.structured_outputs, "structured_outputs.")
    asked = {name: form for name, form in forms.items() if form.type != "text"}
    if len(asked) > 1:
        first, second, *_ = asked
        raise RequestError(f"{first} and {second} both say what the answer must be: give one", param=second)
    if not asked:
        return OutputFormat()
    ((name, form),) = asked.items()
    try:
        return _output(form, max_schema_bytes)
    except RequestError as error:
        if name == "response_format":
            raise
        raise RequestError(f"{name}: {error}", param=name) from None


def _output(form: ResponseFormat, max_schema_bytes: int) -> OutputFormat:
    """What the answer must be."""
    if form.type == "text":
        return OutputFormat()
    if form.type == "json_object":
        return OutputFormat("json")
    if form.type == "json_schema":
        if form.json_schema is None:
            raise RequestError(
                "response_format.json_schema is missing, which the type json_schema needs", param="response_format"
            )
        check_schema(form.json_schema.schema, "response_format.json_schema.schema", max_schema_bytes)
        return OutputFormat("json_schema", schema=form.json_schema.schema, is_strict=form.json_schema.strict is True)
    source = form.pattern if form.type == "regex" else form.grammar
    if source is None:
        needed = "pattern" if form.type == "regex" else "grammar"
        raise RequestError(f"response_format.{needed} is missing, which the type {form.type} needs")
    return OutputFormat(form.type, grammar=source)


def _own(form: ResponseFormat) -> ResponseFormat:
    """A `schema` beside the type means the same as one inside json_schema."""
    if form.schema is None:
        return form
    RequestError.when(
        form.type not in ("json_object", "json_schema") or form.json_schema is not None,
        "response_format.schema goes with the types json_object and json_schema, instead of json_schema",
        param="response_format.schema",
    )
    return _schema(form.schema)


def _schema(schema: dict[str, Any]) -> ResponseFormat:
    return ResponseFormat("json_schema", json_schema=JsonSchemaFormat(schema=schema))


_META = re.compile(r"[\\.+*?()|\[\]{}^$/&~#-]")
_ENDS_OF_LINES = str.maketrans({"\n": "\\n", "\r": "\\r", "\t": "\\t"})


def _choice(choices: list[str]) -> ResponseFormat:
    escaped = (_META.sub(r"\\\g<0>", choice).translate(_ENDS_OF_LINES) for choice in choices)
    return ResponseFormat("regex", pattern="|".join(escaped))


def _object(value: dict[str, Any] | str, param: str) -> dict[str, Any]:
    """A schema, which may come as JSON text."""
    if isinstance(value, dict):
        return value
    try:
        found = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"{param} is no JSON Schema: {error}", param=param) from None
    if not isinstance(found, dict):
        raise RequestError(f"{param} must be a JSON Schema, an object", param=param)
    return found


def _structured(wish: StructuredOutputs, prefix: str) -> dict[str, ResponseFormat]:
    forms = {
        "json": None if wish.json is None else _schema(_object(wish.json, f"{prefix}json")),
        "regex": None if wish.regex is None else ResponseFormat("regex", pattern=wish.regex),
        "choice": None if wish.choice is None else _choice(wish.choice),
        "json_object": ResponseFormat("json_object") if wish.json_object else None,
    }
    return {prefix + name: form for name, form in forms.items() if form is not None}
