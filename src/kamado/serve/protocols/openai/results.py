"""OpenAI's answers, as types: the handlers fill them in and the OpenAPI document is made from them."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from ...models.contract import ModelInfo, Started, TokenCounts, TokenLogprob

Finish = Literal["stop", "length", "tool_calls"]


class Problem(Struct):
    """What is wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    num_prompt_tokens: int | UnsetType = UNSET  # of a prompt that does not fit
    context_tokens: int | UnsetType = UNSET


class ErrorResult(Struct):
    """Every error answer."""

    error: Problem


class TruncatedResult(Struct):
    """What was left out of the prompt, because the request allowed it."""

    messages: int
    tokens: int
    rule: str


class ContextResult(Struct):
    """Kamado's account of a request: an extension, in every answer."""

    context: int  # tokens that prompt and answer may have together
    used: int
    seed: int | None = None
    truncated: TruncatedResult | None = None
    load_seconds: float = 0.0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    schema_violations: list[str] | UnsetType = UNSET  # by the finished answer, of what was left open


class PromptDetails(Struct):
    """Of the prompt's tokens."""

    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionDetails(Struct):
    """Of the answer's tokens."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class UsageResult(Struct):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Struct):
    """One of the likeliest tokens."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A token that was picked."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    """Of a choice."""

    content: list[ChatLogprob]
    refusal: None = None


class FunctionCall(Struct):
    """A call's name and arguments."""

    name: str
    arguments: str


class ToolCallResult(Struct):
    """A call."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class MessageResult(Struct):
    """The assistant's message. `reasoning` and `reasoning_content` are the same under the two names in use."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    annotations: list[Any] = field(default_factory=list)
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallResult] | UnsetType = UNSET


class ChatChoice(Struct):
    """One answer."""

    index: int
    message: MessageResult
    finish_reason: Finish
    logprobs: ChatLogprobs | None = None


class Account(Struct, kw_only=True):
    """What ends every answer that makes text."""

    system_fingerprint: str | None = None
    usage: UsageResult | UnsetType | None = UNSET
    kamado: ContextResult | UnsetType = UNSET


class Made(Account):
    """What begins it."""

    id: str
    created: int
    model: str


class ChatResult(Made):
    """POST /v1/chat/completions."""

    choices: list[ChatChoice]
    object: Literal["chat.completion"] = "chat.completion"
    service_tier: str = "default"


class FunctionDelta(Struct):
    """More of a call."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ToolCallDeltaResult(Struct):
    """More of the call at `index`."""

    index: int
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET


class Delta(Struct):
    """More of a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDeltaResult] | UnsetType = UNSET


class ChunkChoice(Struct):
    """More of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class Chunk(Made):
    """One event of a streamed chat."""

    choices: list[ChunkChoice]
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    service_tier: str = "default"


class TextLogprobs(Struct):
    """Of a completion: one entry a token in every list. The prompt's first token has no log-probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Struct):
    """One completion, or more of it."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: Finish | None = None


class TextResult(Made):
    """POST /v1/completions, whole or one event of it."""

    choices: list[TextChoice]
    object: Literal["text_completion"] = "text_completion"


class EmbeddingResult(Struct):
    """One vector: numbers, or base64 of little-endian float32."""

    index: int
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingUsage(Struct):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResult(Struct):
    """POST /v1/embeddings."""

    data: list[EmbeddingResult]
    model: str
    usage: EmbeddingUsage
    object: Literal["list"] = "list"


class ModelResult(Struct):
    """One model. What follows `owned_by` is an extension."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "local"
    context_length: int | None = None  # tokens of prompt and answer together as served; null before the first load
    max_context_length: int | None = None
    capabilities: list[str] = field(default_factory=list)
    size_bytes: int = 0
    quantization: str = ""
    is_loaded: bool = False


class ModelsResult(Struct):
    """GET /v1/models."""

    data: list[ModelResult]
    object: Literal["list"] = "list"


class DeletedResult(Struct):
    """DELETE /v1/models/{model}."""

    id: str
    object: str = "model"
    deleted: bool = True


def usage_of(counts: TokenCounts) -> UsageResult:
    """OpenAI's count of tokens."""
    return UsageResult(
        counts.num_prompt_tokens,
        counts.num_generated_tokens,
        counts.num_prompt_tokens + counts.num_generated_tokens,
        PromptDetails(counts.num_cached_tokens),
        CompletionDetails(counts.num_reasoning_tokens),
    )


def account_of(started: Started, counts: TokenCounts) -> ContextResult:
    """Kamado's own count."""
    cut = started.truncated
    return ContextResult(
        context=started.context,
        used=counts.num_prompt_tokens + counts.num_generated_tokens,
        seed=started.seed,
        truncated=None if cut is None else TruncatedResult(cut.num_messages, cut.num_tokens, cut.rule),
        load_seconds=round(counts.load_seconds, 6),
        queue_seconds=round(counts.queue_seconds, 6),
        prefill_seconds=round(counts.prefill_seconds, 6),
        decode_seconds=round(counts.decode_seconds, 6),
        schema_violations=list(counts.violations) or UNSET,
    )


def token_text(data: bytes) -> str:
    """A token as text. Half a character is shown as OpenAI does: bytes:\\xe2\\x80."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprob(token: TokenLogprob) -> ChatLogprob:
    """A token's own and those of the likeliest."""
    top = [TopLogprob(token_text(data), logprob, list(data)) for _, data, logprob in token.top]
    return ChatLogprob(token_text(token.text), token.logprob, list(token.text), top)


def chat_logprobs(tokens: tuple[TokenLogprob, ...]) -> ChatLogprobs | None:
    """Of a delta or a message; None when there are none."""
    return ChatLogprobs([chat_logprob(token) for token in tokens]) if tokens else None


def model_result(info: ModelInfo, is_loaded: bool) -> ModelResult:
    """A model as OpenAI lists it, with what one wants to know of it."""
    return ModelResult(
        id=info.name,
        created=info.created,
        context_length=info.context or info.max_context or None,
        max_context_length=info.max_context or None,
        capabilities=sorted(info.capabilities),
        size_bytes=info.nbytes,
        quantization=info.quantization,
        is_loaded=is_loaded,
    )
