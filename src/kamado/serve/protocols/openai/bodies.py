"""OpenAI's request bodies, and what they mean.

What is honoured is a field. What is left out or refused is a row of rows.py and never comes here; what is
neither is unknown and refused by name.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from ...faults import RequestError
from ...models.answer_options import body_options
from ...models.contract import ChatRequest, OutputFormat, Think, ToolChoice, Truncation
from ..schemas import MAX_SCHEMA_BYTES, check_schema
from ..thinking import EFFORTS
from ..tools import MAX_TOOLS, FunctionSpec, choose, tools_of
from .messages import to_messages

T = TypeVar("T")

MAX_CHOICES = 16
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 1000
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 256
MAX_INPUTS = 2048

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]
Label = Annotated[str, Meta(max_length=512)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Seed = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
Stop = Annotated[str, Meta(max_length=MAX_STOP_CHARACTERS)]
Stops = Stop | Annotated[list[Stop], Meta(max_length=MAX_STOPS)] | None
# -1, as local servers write it: as many as fit.
MaxTokens = Annotated[int, Meta(ge=-1, le=(1 << 31) - 1)] | None
Limit = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
JsonObject = dict[str, Any]
Pattern = Annotated[str, Meta(min_length=1, max_length=65536)]
Choices = Annotated[list[Annotated[str, Meta(min_length=1, max_length=10_000)]], Meta(min_length=1, max_length=1000)]


class ResponsesStreamOptions(Struct, forbid_unknown_fields=True):
    """Of a streamed response. Obfuscation is padding against eavesdroppers: there is none here."""

    include_obfuscation: bool = False

    def __post_init__(self) -> None:
        if self.include_obfuscation:
            raise ValueError("include_obfuscation must be false: answers are not padded here")


class StreamOptions(ResponsesStreamOptions, forbid_unknown_fields=True):
    """Of a streamed answer."""

    include_usage: bool = False


class Extensions(Struct, kw_only=True):
    """Not OpenAI's: what local servers' clients send besides. Two names of one thing are one field afterwards."""

    top_k: Annotated[int, Meta(ge=-1, le=1 << 30)] | None = None  # 0 and -1: off
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    repeat_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None  # llama.cpp's name
    repeat_last_n: Annotated[int, Meta(ge=-1, le=1 << 31)] | None = None  # tokens that penalties look at; -1: all
    background: bool | None = None  # interactive requests go first
    deadline_seconds: Annotated[float, Meta(gt=0, le=86_400)] | None = None
    keep_alive: float | str | None = None
    ttl: Annotated[float, Meta(ge=0)] | None = None  # LM Studio's name; seconds

    def __post_init__(self) -> None:
        if self.repetition_penalty is None:
            self.repetition_penalty = self.repeat_penalty
        if self.keep_alive is None:
            self.keep_alive = self.ttl


class Common(Extensions, kw_only=True):
    """What all endpoints that make text have."""

    model: ModelName
    stream: bool | None = False
    temperature: Temperature | None = None
    top_p: Probability | None = None
    user: Label | None = None
    truncation: Literal["auto", "disabled"] | None = None  # an extension but for /v1/responses


class Shared(Common, kw_only=True, forbid_unknown_fields=True):
    """What chat and completions have. The names after `stop` are extensions that other local servers have too."""

    stream_options: StreamOptions | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | None = None
    max_tokens: MaxTokens = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    response_format: ResponseFormat | None = None
    seed: Seed | None = None
    stop: Stops = None
    # Other servers' forms of response_format and max_tokens; answer_forms.py.
    json_schema: JsonObject | None = None
    guided_json: JsonObject | str | None = None
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    structured_outputs: StructuredOutputs | bool | None = None
    n_predict: MaxTokens = None
    cache_salt: Label | None = None

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's: one of them."""

    json: JsonObject | str | None = None
    regex: Pattern | None = None
    choice: Choices | None = None
    json_object: bool | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """`regex` and `lark` are extensions; so is `json_schema` without a name, and a `schema` of its own."""

    type: Literal["text", "json_object", "json_schema", "regex", "lark"]
    json_schema: JsonSchemaFormat | None = None
    schema: JsonObject | None = None  # llama.cpp's and others', of the types json_object and json_schema
    pattern: Pattern | None = None
    grammar: Annotated[str, Meta(min_length=1, max_length=MAX_SCHEMA_BYTES)] | None = None


class JsonSchemaFormat(Struct, forbid_unknown_fields=True):
    """A schema that the answer will match; what cannot be enforced is refused when it is `strict`, else checked."""

    schema: JsonObject = msgspec.field(default_factory=dict)
    name: Annotated[str, Meta(max_length=64)] = ""
    description: str | None = None
    strict: bool | None = None


class ToolSpec(Struct, forbid_unknown_fields=True):
    """A tool. Functions only: `custom` ones have no form that an answer could be held to."""

    type: Literal["function"]
    function: FunctionSpec


class ChatBody(Shared, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions."""

    messages: Annotated[list[JsonObject], Meta(min_length=1, max_length=10_000)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    max_completion_tokens: MaxTokens = None
    tools: Annotated[list[ToolSpec], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Effort | None = None
    prompt_cache_key: Label | None = None
    safety_identifier: Label | None = None
    service_tier: str | None = None
    # Extensions.
    thinking_budget: Limit | None = None
    chat_template_kwargs: JsonObject | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    transforms: list[Literal["middle-out"]] | None = None
    reasoning: ChatReasoning | None = None
    thinking: Thinking | None = None
    enable_thinking: bool | None = None
    include_reasoning: bool | None = None
    reasoning_format: Literal["auto", "deepseek", "parsed", "hidden"] | None = None
    usage: UsageWish | None = None


class ChatReasoning(Struct, forbid_unknown_fields=True):
    """OpenRouter's: how much to reason, and whether it is shown."""

    effort: Effort | None = None
    max_tokens: Limit | None = None
    enabled: bool | None = None
    exclude: bool | None = None


class Thinking(Struct, forbid_unknown_fields=True):
    """Anthropic's word for the same, which DeepSeek's, Zhipu's and other services' clients send to this endpoint."""

    type: Literal["enabled", "disabled", "adaptive", "auto"]
    budget_tokens: Limit | None = None


class UsageWish(Struct, forbid_unknown_fields=True):
    """OpenRouter's: whether a stream ends with the count of tokens."""

    include: bool | None = None


class CompletionBody(Shared, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/completions."""

    prompt: Any  # text, texts, token ids, or lists of them
    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    suffix: str | None = None
    parse_special: bool | None = None  # true, as in other servers: special tokens written in a prompt become their ids
    add_special_tokens: bool | None = None  # true: as the model wants it


class EmbeddingBody(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/embeddings."""

    model: ModelName
    input: Any
    dimensions: Annotated[int, Meta(ge=1, le=1 << 20)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    user: Label | None = None
    truncate: bool | None = None  # an extension: cut what does not fit instead of refusing it
    keep_alive: float | str | None = None


def stops_of(stop: str | list[str] | None) -> tuple[str, ...] | None:
    """Stop sequences as a tuple; empty ones end nothing."""
    return tuple(text for text in ([stop] if isinstance(stop, str) else stop or ()) if text) or None


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
        return OutputFormat("json_schema", schema=form.json_schema.schema, is_strict=form.json_schema.strict is True)
    source = form.pattern if form.type == "regex" else form.grammar
    if source is None:
        needed = "pattern" if form.type == "regex" else "grammar"
        raise RequestError(f"response_format.{needed} is missing, which the type {form.type} needs")
    return OutputFormat(form.type, grammar=source)


def tool_choice_of(choice: Any, names: list[str], parallel: bool | None) -> ToolChoice:
    """Which tools may be called. Chat's shapes and those of /v1/responses."""
    if choice is None or choice in ("auto", "none"):
        return choose(choice or "auto", names, parallel)
    if choice == "required":
        RequestError.when(not names, "tool_choice is required, but there are no tools", param="tool_choice")
        return choose("required", names, parallel)
    if isinstance(choice, dict):
        if choice.get("type") == "function":
            name = _name_of(choice)
            if name in names:
                return choose("required", {name}, parallel, is_bound=True)
            raise RequestError(f"tool_choice names {str(name)[:80]!r}, which is none of the tools", param="tool_choice")
        if choice.get("type") == "allowed_tools":
            return _allowed(choice.get("allowed_tools", choice), names, parallel)
    raise RequestError(
        'tool_choice must be "auto", "none", "required", a function or allowed_tools', param="tool_choice"
    )


def _name_of(tool: Any) -> Any:
    """The name of a function as either endpoint writes it."""
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    return function.get("name") if isinstance(function, dict) else None


def _allowed(spec: Any, names: list[str], parallel: bool | None) -> ToolChoice:
    tools = spec.get("tools") if isinstance(spec, dict) else None
    mode = spec.get("mode") if isinstance(spec, dict) else None
    if not isinstance(tools, list) or mode not in ("auto", "required"):
        raise RequestError("allowed_tools needs a mode, auto or required, and tools", param="tool_choice")
    allowed = set()
    for tool in tools:
        name = _name_of(tool)
        RequestError.when(
            name not in names, f"allowed_tools has {str(name)[:80]!r}, which is none of the tools", param="tool_choice"
        )
        allowed.add(str(name))
    RequestError.when(not allowed, "allowed_tools allows none", param="tool_choice")
    return choose(mode, allowed, parallel, is_bound=True)


def think_of(effort: str | None, budget: int | None = None) -> Think:
    """How much to reason. `minimal` is not "none": some models have no way to reason less."""
    if effort is None:
        return Think(enabled=False if budget == 0 else None, max_tokens=budget or None)
    if effort == "none" or budget == 0:
        return Think(enabled=False)
    return Think(enabled=True, effort=EFFORTS[effort], max_tokens=budget)


def think_of_chat(body: ChatBody) -> Think:
    """The same for the chat endpoint, whose clients have several words for it. Raises RequestError."""
    reasoning = body.reasoning or ChatReasoning()
    effort = _first(body.reasoning_effort, reasoning.effort)
    budget = _first(body.thinking_budget, reasoning.max_tokens)
    enabled = _first(body.enable_thinking, reasoning.enabled)
    if body.thinking is not None:
        budget = _first(budget, body.thinking.budget_tokens)
        enabled = _first(enabled, {"enabled": True, "disabled": False}.get(body.thinking.type))
    think = think_of(effort, budget)
    if enabled is None or think.enabled == enabled:
        return think
    RequestError.when(
        think.enabled is not None, "one parameter asks for reasoning and another for none", param="reasoning_effort"
    )
    return replace(think, enabled=enabled)


def _first(*given: T | None) -> T | None:
    """The first that is given at all."""
    return next((value for value in given if value is not None), None)


def thinking_parameters(body: ChatBody) -> list[str]:
    """Those of a body's parameters that ask for reasoning."""
    names = ("reasoning_effort", "thinking_budget", "reasoning", "thinking", "enable_thinking")
    return [name for name in names if getattr(body, name) is not None]


def hides_reasoning(body: ChatBody) -> bool:
    """Whether the answer is to be shown without its reasoning."""
    is_excluded = body.reasoning is not None and bool(body.reasoning.exclude)
    return is_excluded or body.include_reasoning is False or body.reasoning_format == "hidden"


def limit_of(*values: int | None, param: str = "max_tokens", least: int = 1) -> int | None:
    """Tokens that an answer may have, by whatever name; -1: as many as fit. Raises RequestError when two differ."""
    given = {value for value in values if value is not None}
    RequestError.when(len(given) > 1, f"{param} and another name of it differ: give one", param=param)
    limit = given.pop() if given else None
    RequestError.when(limit == 0 and least, f"{param} must be 1 or more, or -1 for as many as fit", param=param)
    return None if limit == -1 else limit


def _check_template_wishes(body: ChatBody) -> None:
    RequestError.when(
        body.add_generation_prompt is False and not body.continue_final_message,
        "add_generation_prompt: false needs continue_final_message: true: else the model would go on with your own "
        "message",
        param="add_generation_prompt",
    )
    RequestError.when(
        body.add_generation_prompt and body.continue_final_message,
        "add_generation_prompt and continue_final_message contradict each other",
        param="add_generation_prompt",
    )


def check_stream_options(body: Shared) -> None:
    """Raises RequestError for options of a stream that was not asked for."""
    RequestError.when(
        body.stream_options is not None and not body.stream,
        "stream_options needs stream to be true",
        param="stream_options",
    )


def chat_request(
    body: ChatBody, *, owner: str, request_id: str, max_schema_bytes: int, max_image_bytes: int
) -> ChatRequest:
    """What the chat endpoint's body asks for. Raises RequestError naming the parameter."""
    from .answer_forms import form_of  # above this module

    RequestError.when(
        body.top_logprobs and not body.logprobs, "top_logprobs needs logprobs to be true", param="top_logprobs"
    )
    check_stream_options(body)
    tools = tools_of(body.tools, max_schema_bytes)
    messages, is_task = to_messages(body.messages, max_image_bytes=max_image_bytes)
    RequestError.when(
        body.continue_final_message and messages[-1].role != "assistant",
        "continue_final_message needs the last message to be the assistant's",
        param="continue_final_message",
    )
    _check_template_wishes(body)
    is_flex = body.service_tier == "flex"
    truncation: Truncation = "drop_oldest" if body.truncation == "auto" else "refuse"
    return ChatRequest(
        messages=messages,
        tools=tools,
        tool_choice=tool_choice_of(body.tool_choice, [tool.name for tool in tools], body.parallel_tool_calls),
        output=form_of(body, max_schema_bytes),
        think=think_of_chat(body),
        options=body_options(
            body,
            max_tokens=limit_of(body.max_completion_tokens, body.max_tokens, body.n_predict),
            stop=stops_of(body.stop),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            background=is_flex or (is_task if body.background is None else body.background),
            owner=owner,
        ),
        n=body.n or 1,
        continue_last=bool(body.continue_final_message),
        template_options=body.chat_template_kwargs or {},
        truncation="drop_middle" if body.transforms else truncation,
        deadline_seconds=body.deadline_seconds,
        request_id=request_id,
    )
