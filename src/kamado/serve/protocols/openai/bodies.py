"""OpenAI's request bodies. What they mean is said in requests.py, answer_forms.py and messages.py.

What is honoured is a field. What is left out or refused is a row of rows.py and never comes here; what is
neither is unknown and refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from ..schemas import MAX_SCHEMA_BYTES
from ..tools import MAX_TOOLS, FunctionSpec

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
    stop_on_repeat: Annotated[int, Meta(ge=8, le=4096)] | None = None  # ends an answer that repeats so many tokens
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
