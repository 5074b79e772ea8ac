"""OpenAI's request bodies, and what they mean.

Every documented parameter is a field. Those that nothing here can honour are refused with the reason (`REFUSED_…`);
what is not a field is unknown and refused too, by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct

from .backend import ChatRequest, OutputFormat, SamplingOptions, Think, Tool, ToolChoice
from .faults import RequestError
from .openai_messages import to_messages
from .schemas import MAX_SCHEMA_BYTES, check_schema

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
MAX_TOOLS = 256
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 256
MAX_INPUTS = 2048

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Label = Annotated[str, Meta(max_length=512)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Probability = Annotated[float, Meta(gt=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Stop = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None
MaxTokens = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)] | None
JsonObject = dict[str, Any]


class StreamOptions(Struct, forbid_unknown_fields=True):
    """Of a streamed answer. Obfuscation is padding against eavesdroppers: there is none here."""

    include_usage: bool = False
    include_obfuscation: bool = False

    def __post_init__(self) -> None:
        if self.include_obfuscation:
            raise ValueError("include_obfuscation must be false: answers are not padded here")


class Extensions(Struct, kw_only=True):
    """Not OpenAI's: what local servers' clients send besides."""

    top_k: Annotated[int, Meta(ge=0, le=1 << 30)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    background: bool | None = None  # interactive requests go first
    deadline_seconds: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    keep_alive: float | str | None = None


class Shared(Extensions, kw_only=True, forbid_unknown_fields=True):
    """What several endpoints have. The names after `seed` in each are extensions that other local servers have too."""

    model: ModelName
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    user: Label | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """`regex` and `lark` are extensions; so is `json_schema` without a name."""

    type: Literal["text", "json_object", "json_schema", "regex", "lark"]
    json_schema: JsonSchemaFormat | None = None
    pattern: Annotated[str, Meta(min_length=1, max_length=65536)] | None = None
    grammar: Annotated[str, Meta(min_length=1, max_length=MAX_SCHEMA_BYTES)] | None = None


class JsonSchemaFormat(Struct, forbid_unknown_fields=True):
    """A schema that the answer will match, `strict` or not."""

    schema: JsonObject = msgspec.field(default_factory=dict)
    name: Annotated[str, Meta(max_length=64)] = ""
    description: str | None = None
    strict: bool | None = None


class FunctionSpec(Struct, forbid_unknown_fields=True):
    """A function of the chat endpoint's tools."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class ToolSpec(Struct, forbid_unknown_fields=True):
    """A tool. Functions only: `custom` ones have no form that an answer could be held to."""

    type: Literal["function"]
    function: FunctionSpec


class ChatBody(Shared, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[JsonObject], Meta(min_length=1, max_length=10_000)]
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    max_completion_tokens: MaxTokens = None
    max_tokens: MaxTokens = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    seed: Seed | None = None
    stop: Stops = None
    tools: Annotated[list[ToolSpec], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    prompt_cache_key: Label | None = None
    safety_identifier: Label | None = None
    service_tier: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    verbosity: str | None = None
    # Refused, each with its reason.
    audio: Any = UNSET
    function_call: Any = UNSET
    functions: Any = UNSET
    moderation: Any = UNSET
    prediction: Any = UNSET
    prompt_cache_options: Any = UNSET
    prompt_cache_retention: Any = UNSET
    web_search_options: Any = UNSET
    # Extensions.
    thinking_budget: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None = None
    chat_template_kwargs: JsonObject | None = None
    continue_final_message: bool | None = None
    truncation: Literal["disabled", "auto"] | None = None


REFUSED_CHAT = {
    "audio": "no model here speaks",
    "function_call": "it is deprecated: use `tool_choice`",
    "functions": "it is deprecated: use `tools`",
    "moderation": "no moderation model is here",
    "prediction": "predicted outputs are not used",
    "prompt_cache_options": "the prefix cache works by itself, for all prompts",
    "prompt_cache_retention": "how long prefixes are kept depends on memory, not on the request",
    "web_search_options": "nothing here searches the web",
}


class CompletionBody(Shared, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: Any  # text, texts, token ids, or lists of them
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None = 16
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    seed: Seed | None = None
    stop: Stops = None
    suffix: str | None = None
    response_format: ResponseFormat | None = None
    truncation: Literal["disabled", "auto"] | None = None


class EmbeddingBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/embeddings."""

    model: ModelName
    input: Any
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: Label | None = None
    truncate: bool | None = None  # an extension: cut what does not fit instead of refusing it
    keep_alive: float | str | None = None


def refuse(body: Struct, reasons: Mapping[str, str]) -> None:
    """Raises RequestError for the first parameter that was given and cannot be honoured. null is not giving it."""
    for name, reason in reasons.items():
        if getattr(body, name) is not UNSET and getattr(body, name) is not None:
            raise RequestError(f"{name} cannot be honoured: {reason}", param=name, code="unsupported_parameter")


def refuse_service(tier: str | None) -> bool:
    """Whether the request asked to wait behind others. Raises RequestError for tiers that are sold elsewhere."""
    if tier not in (None, "auto", "default", "flex"):
        raise RequestError(
            f"service_tier must be auto, default or flex (behind interactive requests), not {str(tier)[:40]!r}",
            param="service_tier",
            code="unsupported_parameter",
        )
    return tier == "flex"


def refuse_verbosity(value: str | None, param: str) -> None:
    """Raises RequestError for anything but the default: no model here has such a switch."""
    if value not in (None, "medium"):
        raise RequestError(
            f"{param} cannot be honoured: ask for short or long answers in the prompt",
            param=param,
            code="unsupported_parameter",
        )


def sampling_of(body: ChatBody | CompletionBody) -> SamplingOptions:
    """How tokens are picked."""
    return SamplingOptions(
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias=_bias(body.logit_bias),
        seed=seed_of(body.seed),
    )


def seed_of(seed: int | None) -> int | None:
    """OpenAI's seeds may be negative: the same bits as a number without sign."""
    return None if seed is None else seed & ((1 << 64) - 1)


def _bias(biases: Mapping[str, float] | None) -> dict[int, float] | None:
    if not biases:
        return None
    try:
        return {int(token): value for token, value in biases.items()}
    except ValueError:
        raise RequestError("logit_bias must map token ids to numbers", param="logit_bias") from None


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop sequences as a tuple."""
    return () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)


def output_of(form: ResponseFormat | None, max_schema_bytes: int) -> OutputFormat:
    """What the answer must be."""
    if form is None or form.type == "text":
        return OutputFormat()
    if form.type == "json_object":
        return OutputFormat("json")
    if form.type == "json_schema":
        if form.json_schema is None:
            raise RequestError(
                "response_format.json_schema is missing, which the type json_schema needs", param="response_format"
            )
        check_schema(form.json_schema.schema, "response_format.json_schema.schema", max_schema_bytes)
        return OutputFormat("json_schema", schema=form.json_schema.schema)
    source = form.pattern if form.type == "regex" else form.grammar
    if source is None:
        needed = "pattern" if form.type == "regex" else "grammar"
        raise RequestError(f"response_format.{needed} is missing, which the type {form.type} needs")
    return OutputFormat(form.type, grammar=source)


def tools_of(specs: list[ToolSpec] | None, max_schema_bytes: int) -> tuple[Tool, ...]:
    """The tools. Raises RequestError for two of one name and for schemas that are too large."""
    tools = []
    for i, spec in enumerate(specs or ()):
        function = spec.function
        schema = function.parameters or {}
        check_schema(schema, f"tools[{i}].function.parameters", max_schema_bytes)
        # Arguments match their schema in any case: what does not is of no use to anybody.
        tools.append(Tool(function.name, function.description or "", schema, strict=True))
    check_names([tool.name for tool in tools])
    return tuple(tools)


def check_names(names: list[str]) -> None:
    """Raises RequestError for two tools of one name."""
    if len(set(names)) != len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise RequestError(f"two tools are called {double!r}", param="tools")


def tool_choice_of(choice: Any, names: list[str], parallel: bool | None) -> ToolChoice:
    """Which tools may be called. Chat's shapes and those of /v1/responses."""
    many = parallel is not False
    if choice is None or choice == "auto":
        return ToolChoice(parallel=many)
    if choice == "none":
        return ToolChoice("none", parallel=many)
    if choice == "required":
        if not names:
            raise RequestError("tool_choice is required, but there are no tools", param="tool_choice")
        return ToolChoice("required", parallel=many)
    if isinstance(choice, dict):
        if choice.get("type") == "function":
            function = choice.get("function", choice)
            name = function.get("name") if isinstance(function, dict) else None
            if name in names:
                return ToolChoice("required", frozenset({name}), parallel=False)
            raise RequestError(f"tool_choice names {str(name)[:80]!r}, which is none of the tools", param="tool_choice")
        if choice.get("type") == "allowed_tools":
            return _allowed(choice.get("allowed_tools", choice), names, many)
    raise RequestError(
        'tool_choice must be "auto", "none", "required", a function or allowed_tools', param="tool_choice"
    )


def _allowed(spec: Any, names: list[str], many: bool) -> ToolChoice:
    tools = spec.get("tools") if isinstance(spec, dict) else None
    mode = spec.get("mode") if isinstance(spec, dict) else None
    if not isinstance(tools, list) or mode not in ("auto", "required"):
        raise RequestError("allowed_tools needs a mode, auto or required, and tools", param="tool_choice")
    allowed = set()
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if name not in names:
            raise RequestError(f"allowed_tools has {str(name)[:80]!r}, which is none of the tools", param="tool_choice")
        allowed.add(str(name))
    if not allowed:
        raise RequestError("allowed_tools allows none", param="tool_choice")
    return ToolChoice(mode, frozenset(allowed), parallel=many)


def think_of(effort: str | None, budget: int | None = None) -> Think:
    """How much to reason. `minimal` is not "none": some models have no way to reason less."""
    if effort is None:
        return Think(enabled=False if budget == 0 else None, max_tokens=budget or None)
    if effort == "none" or budget == 0:
        return Think(enabled=False)
    known = {"xhigh": "high", "max": "high"}.get(effort, effort)
    return Think(enabled=True, effort=known, max_tokens=budget)  # type: ignore[arg-type]


def chat_request(body: ChatBody, *, max_schema_bytes: int, max_image_bytes: int) -> ChatRequest:
    """What the chat endpoint's body asks for. Raises RequestError naming the parameter."""
    refuse(body, REFUSED_CHAT)
    if body.store:
        raise RequestError("store cannot be honoured here: /v1/responses keeps answers", param="store")
    if body.metadata:
        raise RequestError("metadata belongs to stored answers, and none is stored here", param="metadata")
    if body.modalities is not None and "audio" in body.modalities:
        raise RequestError("modalities: no model here speaks", param="modalities", code="unsupported_parameter")
    refuse_verbosity(body.verbosity, "verbosity")
    is_flex = refuse_service(body.service_tier)
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise RequestError("max_tokens and max_completion_tokens differ: give one", param="max_tokens")
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options needs stream to be true", param="stream_options")
    tools = tools_of(body.tools, max_schema_bytes)
    messages, is_task = to_messages(body.messages, max_image_bytes=max_image_bytes)
    if body.continue_final_message and messages[-1].role != "assistant":
        raise RequestError(
            "continue_final_message needs the last message to be the assistant's", param="continue_final_message"
        )
    max_tokens = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    return ChatRequest(
        messages=messages,
        tools=tools,
        tool_choice=tool_choice_of(body.tool_choice, [tool.name for tool in tools], body.parallel_tool_calls),
        output=output_of(body.response_format, max_schema_bytes),
        think=think_of(body.reasoning_effort, body.thinking_budget),
        sampling=sampling_of(body),
        max_tokens=max_tokens,
        stop=stops_of(body.stop),
        n=body.n or 1,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        continue_last=bool(body.continue_final_message),
        template_options=body.chat_template_kwargs or {},
        truncation="drop_oldest" if body.truncation == "auto" else "refuse",
        is_background=is_flex or (is_task if body.background is None else body.background),
        deadline_seconds=body.deadline_seconds,
    )
