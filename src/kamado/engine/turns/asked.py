"""What callers of `Model.chat` may write, dictionaries among it, as the types of chat_types.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, TypeVar, cast, get_args

from ...errors import ConstraintError, UsageError
from ...options import AnswerOptions
from ..forms.grammar import Schema
from .chat import check_messages
from .chat_types import Effort, ImagePart, Message, OutputFormat, Role, TextPart, Think, Tool, ToolCall, ToolChoice

AnyMessage: TypeAlias = Message | Mapping[str, Any]
AnyTool: TypeAlias = Tool | Mapping[str, Any]
AnyThink: TypeAlias = Think | bool | Effort
AnyChoice: TypeAlias = ToolChoice | str

_EFFORTS, _ROLES = frozenset(get_args(Effort)), frozenset(get_args(Role))
# An output format without a schema is an object, as protocols mean it.
_ANY_JSON = {"type": ["object", "array", "string", "number", "boolean", "null"]}
_MODES = ("auto", "none", "required")
_TEXTS = ("reasoning", "tool_call_id", "name")  # of a message, beside its content
_KEYS = frozenset(("role", "content", "tool_calls", *_TEXTS))
Made = TypeVar("Made", Tool, ToolCall)


class FormOptions(TypedDict, total=False):
    """The form of an answer: one of these at the most."""

    schema: Schema | None  # JSON Schema: a dict, its text, or True for any JSON
    regex: str | None  # the whole answer matches it
    grammar: str | None  # in Lark's notation, rule `start`


class TurnOptions(FormOptions, total=False):
    """What `Model.chat` takes beside `tools` and `think` where one of those is given."""

    tool_choice: AnyChoice | None  # "auto", "none", "required", or a ToolChoice
    output: OutputFormat | None  # in place of schema, regex or grammar
    continue_last: bool  # the last message is the assistant's, and the answer goes on from its end
    template_options: Mapping[str, object] | None  # plain data for variables of the model's template


class PieceOptions(FormOptions, AnswerOptions, total=False):
    """What `Model.chat` takes when it yields pieces."""


class EventOptions(TurnOptions, AnswerOptions, total=False):
    """What `Model.chat` takes beside `tools` and `think` when it yields events."""


def message_of(i: int, given: object) -> Message:
    """A message, of one or of a dictionary: role and content, and where they are needed `tool_calls`, `tool_call_id`,
    `name` and `reasoning`. Raises UsageError with the message's number."""
    if isinstance(given, Message):
        return given
    if not isinstance(given, Mapping):
        raise UsageError(f"message {i} must be a Message or a dict, not {type(given).__name__}")
    for key in given:
        UsageError.when(key not in _KEYS, f"message {i} has {key!r}: {', '.join(sorted(_KEYS))} are known")
    role: Any = given.get("role")
    content = given.get("content")
    if role not in _ROLES:
        raise UsageError(f"message {i} needs a role of {', '.join(sorted(_ROLES))}, not {repr(role)[:40]}")
    calls = given.get("tool_calls") or ()
    if not isinstance(content, str) and not (content is None and calls):
        raise UsageError(f"message {i} needs a content of text, not {type(content).__name__}")
    texts = {name: given.get(name) or "" for name in _TEXTS}
    UsageError.when(not isinstance(calls, list | tuple), f"message {i}: tool_calls must be a list")
    for name, text in texts.items():
        UsageError.when(not isinstance(text, str), f"message {i}: {name} must be a text, not {text!r}")
    made = tuple(_function(f"message {i}: a tool call", call, ToolCall) for call in calls)
    return Message(role, (TextPart(content),) if content else (), tool_calls=made, **texts)


def message_dict(i: int, message: AnyMessage) -> dict[str, Any]:
    """The dictionary of a message, what is empty left out. Raises UsageError for a picture."""
    if not isinstance(message, Message):
        return dict(message)
    if any(isinstance(part, ImagePart) for part in message.parts):
        raise UsageError(f"message {i} has a picture: this model reads text only")
    values: dict[str, Any] = {"role": message.role, "content": message.text}
    values |= {name: text for name in _TEXTS if (text := getattr(message, name))}
    if message.tool_calls:
        values["tool_calls"] = [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in message.tool_calls]
    return values


def plain_messages(messages: object) -> list[dict[str, str]]:
    """Messages of role and content alone. Raises UsageError for others, with what to do about them."""
    if isinstance(messages, Sequence):
        messages = [message_dict(i, m) if isinstance(m, Message) else m for i, m in enumerate(messages)]
    return check_messages(messages)


def goes_on(said: Sequence[Mapping[str, str]], continue_last: object, form: Mapping[str, object]) -> bool:
    """Whether the answer goes on from the last message, where that was asked for. Raises UsageError where it cannot."""
    if not continue_last:
        return False
    UsageError.when(
        said[-1]["role"] != "assistant" or not said[-1]["content"],
        "continue_last goes on from the assistant's text: the last message must have one",
    )
    UsageError.when(
        any(value is not None for value in form.values()),
        "an answer that goes on from a given beginning cannot have a form",
    )
    return True


def tool_of(given: AnyTool) -> Tool:
    """A tool, of one or of a dictionary: name, description and parameters, or `{"function": {…}}` around them."""
    return _function("a tool", given, Tool)


def _function(what: str, given: object, kind: type[Made]) -> Made:
    """A tool or a call of its dictionary; `function` around a part of it, as in OpenAI's protocol, is looked into."""
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        raise UsageError(f"{what} must be a {kind.__name__} or a dict, not {type(given).__name__}")
    inner = given.get("function", {})
    UsageError.when(not isinstance(inner, Mapping), f"{what}: its function must be a dict")
    values = {key: value for key, value in {**given, **inner}.items() if key not in ("type", "function")}
    if kind is ToolCall:
        values.setdefault("id", "")
        if isinstance(values.get("arguments"), Mapping):
            values["arguments"] = json.dumps(values["arguments"], ensure_ascii=False)
    for key, value in values.items():
        wanted = {"parameters": Mapping, "strict": bool}.get(key, str)
        UsageError.when(not isinstance(value, wanted), f"{what}: {key} cannot be {repr(value)[:60]}")
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{what}: {str(error).removeprefix(f'{kind.__name__}.__init__() ')}") from None


def choice_of(given: AnyChoice | None) -> ToolChoice:
    """Whether tools are called, of a ToolChoice, its mode, or None. Raises UsageError."""
    if isinstance(given, ToolChoice) or given is None:
        return given or ToolChoice()
    if given not in _MODES:
        raise UsageError(f"tool_choice must be a ToolChoice or one of {', '.join(_MODES)}, not {given!r}")
    return ToolChoice(cast("Any", given))


def think_of(given: AnyThink | None) -> Think:
    """How much to reason, of a Think, True or False, an effort, or None. Raises UsageError."""
    if isinstance(given, Think) or given is None:
        return given or Think()
    if isinstance(given, bool):
        return Think(given)
    if given not in _EFFORTS:
        raise UsageError(f"think must be a Think, True, False or one of {', '.join(get_args(Effort))}, not {given!r}")
    return Think(True, given)


def output_of(options: TurnOptions) -> OutputFormat:
    """The form of the answer's text. Raises ConstraintError for two of them, or a schema that is no JSON object."""
    names = [name for name in ("schema", "regex", "grammar", "output") if options.get(name) is not None]
    if len(names) > 1:
        raise ConstraintError(f"{names[0]} and {names[1]} are both given: an answer has one form")
    if (schema := options.get("schema")) is not None:
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise ConstraintError(f"the schema is no JSON: {str(error)[:200]}") from None
        if schema is True or schema == {}:
            schema = _ANY_JSON
        if not isinstance(schema, Mapping):
            raise ConstraintError(f"a schema must be a JSON object, not {type(schema).__name__}")
        return OutputFormat("json_schema", schema)
    if (regex := options.get("regex")) is not None:
        return OutputFormat("regex", grammar=regex)
    if (grammar := options.get("grammar")) is not None:
        return OutputFormat("lark", grammar=grammar)
    return options.get("output") or OutputFormat()
