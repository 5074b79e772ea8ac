"""What the protocol families see of models: the contract between HTTP and whatever computes.

    HTTP  →  openai · ollama · anthropic  →  Service (service.py)  →  ServedModel  ←  the engine, or a scripted fake
                                             queue, keep_alive,        Loader      ←  kamado.load
                                             budget, deadlines         Library     ←  the model store

A protocol family reads its own JSON, makes one ChatRequest (CompletionRequest, EmbedRequest), iterates over events and
writes its own JSON. It never sees a thread, a token queue or a file.

Rules for every stream of events here:
  - It is an async generator. Closing it (`aclose`, or cancelling the task that reads it) frees the executor within one
    step; nobody has to drain it.
  - `Started` comes first, once. Then the choices' events, interleaved when n > 1; each choice ends with `Finish`.
    `Done` comes last, once. `Progress` may come anywhere before the first content.
  - An answer that was cut (`Finish` of reason "length") is finished where it is parsed, not in the protocols: a call
    that was open has its ToolCallEnd, with `is_cut`, and half a tag, call or character is not shown.
  - Faults are raised as KamadoError, never sent as events: UsageError (the request is wrong, or the model cannot do
    what it asks), ContextOverflowError (with both numbers), ModelNotFoundError, OverloadedError (with `retry_after`),
    DeadlineError, TemplateError, ClosedError (the server is going down). What is wrong with a request is raised before
    `Started`, so that an HTTP status can still say so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ... import (
    AnswerOptions,
    ContentEvent,
    Effort,
    Finish,
    FinishReason,
    ImagePart,
    Message,
    OutputFormat,
    Part,
    ReasoningDelta,
    Role,
    TextDelta,
    TextPart,
    Think,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    ToolChoice,
)
from ..faults import DeadlineError as DeadlineError
from ..faults import OverloadedError as OverloadedError

__all__ = [
    "AnswerOptions",
    "Capability",
    "ChatRequest",
    "CompletionRequest",
    "ContentEvent",
    "DeadlineError",
    "Done",
    "Effort",
    "EmbedRequest",
    "Embeddings",
    "Event",
    "Finish",
    "FinishReason",
    "ImagePart",
    "Library",
    "LoadOptions",
    "LoadedModel",
    "Loader",
    "Message",
    "ModelInfo",
    "OutputFormat",
    "OverloadedError",
    "Part",
    "Progress",
    "PromptLogprobs",
    "PullProgress",
    "ReasoningDelta",
    "Recipe",
    "Role",
    "ServedModel",
    "Started",
    "TextDelta",
    "TextPart",
    "Think",
    "TokenCounts",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolCallEnd",
    "ToolCallStart",
    "ToolChoice",
    "Truncated",
    "Truncation",
]

Capability = Literal["completion", "chat", "tools", "thinking", "vision", "embedding", "insert"]
Truncation = Literal["refuse", "drop_oldest", "drop_middle"]


# --- requests ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What every request to a model says of itself."""

    asker: str  # id of the API key, which limits count by; whose prefixes are shared is another matter (`owner`)
    deadline_seconds: float | None = None  # from now; DeadlineError after it
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted(Asked):
    """What every request for text says of its answers."""

    options: AnswerOptions = field(default_factory=AnswerOptions)  # None in it: asked for without, whatever recipes say
    output: OutputFormat = field(default_factory=OutputFormat)
    n: int = 1  # answers, from one prompt computed once
    context: int | None = None  # less than the model's context, for clients that ask for a smaller one

    @property
    def owner(self) -> str:
        """Whose it is; see AnswerOptions."""
        return self.options.get("owner", "")


@dataclass(frozen=True, slots=True)
class ChatRequest(Wanted):
    """A conversation to continue."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    think: Think = field(default_factory=Think)
    continue_last: bool = False  # the last message is the assistant's, and the answer goes on from its end
    template_options: Mapping[str, Any] = field(default_factory=dict)  # plain data for the model's own template
    truncation: Truncation = "refuse"  # of whole messages, system ones and the last kept; reported in Started


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest(Wanted):
    """Text to continue, as it is: no chat template. Each prompt gives n choices; choice = prompt index * n + i."""

    prompts: tuple[str | tuple[int, ...], ...]
    suffix: str | None = None  # fill in the middle; UsageError for a model without "insert"
    prompt_logprobs: int | None = None  # `logprobs` of the prompt's tokens: PromptLogprobs comes before the first text
    is_scored_only: bool = False  # nothing is generated: each choice ends at once, cut
    usual_tokens: int | None = None  # length of an answer at most where neither the request nor a recipe says one
    special: bool = False  # special tokens written in a text prompt become their ids
    add_bos: bool | None = None  # None: as the model wants it, and never twice
    truncation: Literal["refuse", "keep_end"] = "refuse"


@dataclass(frozen=True, slots=True)
class EmbedRequest(Asked):
    """Texts to embed, each a text or token ids."""

    inputs: tuple[str | tuple[int, ...], ...]
    dimensions: int | None = None  # the first so many, normalised again; UsageError when the model has fewer
    truncate: bool = False  # False: an input that does not fit raises ContextOverflowError


# --- events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Truncated:
    """What was left out of the prompt because the request allowed it."""

    num_messages: int  # whole messages left out (0 for completions)
    num_tokens: int  # tokens the prompt had more; at the least, where it was too long to be worth counting
    rule: Truncation | Literal["keep_end"]


@dataclass(frozen=True, slots=True)
class Started:
    """The request is accepted, its prompt known."""

    num_prompt_tokens: int  # of all prompts together
    context: int  # tokens of prompt and answer together
    truncated: Truncated | None = None
    seed: int | None = None  # that gives this answer again (of choice 0; choice i has seed + i)
    schemas: str = ""  # what is said of the request's schemas, as the header has it (schemas.py); "": it has none


@dataclass(frozen=True, slots=True)
class Progress:
    """How far waiting has come: place in the queue, bytes of a model being loaded, tokens of the prompt computed."""

    stage: Literal["queued", "loading", "prefill"]
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of a prompt's tokens, in order. The first has none: its `logprob` is NaN."""

    tokens: tuple[TokenLogprob, ...]
    choice: int = 0


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What a request took, all choices together."""

    num_prompt_tokens: int
    num_cached_tokens: int  # of the prompt, found in the cache
    num_generated_tokens: int  # reasoning included
    num_reasoning_tokens: int = 0
    load_seconds: float = 0.0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    violations: tuple[str, ...] = ()  # of schemas that were left open, by the finished answers


@dataclass(frozen=True, slots=True)
class Done:
    """The end of the stream."""

    counts: TokenCounts


Event: TypeAlias = Started | Progress | PromptLogprobs | ContentEvent | Finish | Done


@dataclass(frozen=True, slots=True)
class Embeddings:
    """float32[n, d], rows in the order of the inputs, each of length 1."""

    vectors: NDArray[np.float32]
    num_tokens: tuple[int, ...]  # of each input
    load_seconds: float = 0.0  # until the model was there


# --- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model without loading it; `context` and `capabilities` are exact once it was loaded."""

    name: str
    created: int = 0  # Unix seconds
    nbytes: int = 0
    digest: str = ""  # sha256, 64 hexadecimal digits
    format: str = "gguf"  # or "safetensors"
    architecture: str = ""
    parameter_count: int = 0
    quantization: str = ""  # "Q4_K_M", …
    context: int = 0  # tokens that prompt and answer may have together as served; 0: not known before it is loaded
    max_context: int = 0  # that the model was trained for
    embedding_length: int = 0
    capabilities: frozenset[Capability] = frozenset()
    template: str = ""
    system: str = ""  # of a recipe
    license: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)  # of a recipe or the file: temperature, stop, …
    parent: str = ""  # of a recipe
    details: Mapping[str, Any] = field(default_factory=dict)  # the file's metadata that is safe and small to show
    version: str = ""  # another one when the file or the recipe was replaced; says nothing else


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory."""

    info: ModelInfo
    memory_bytes: int
    expires_at: float | None  # Unix seconds; None: never
    num_active: int  # requests that run or wait
    is_pinned: bool = False  # loaded at the start: only asking for it unloads it


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a load may be told. None: as the server was told."""

    context: int | None = None
    memory_bytes: int | None = None
    threads: int | None = None
    kv: str | None = None
    allow_unknown: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model made of another: a Modelfile's content."""

    base: str  # a name of the library
    system: str | None = None
    template: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    license: str | None = None


@dataclass(frozen=True, slots=True)
class PullProgress:
    """How far a download has come."""

    status: str  # "resolving", "downloading", "verifying", "success"
    file: str = ""
    digest: str = ""
    done_bytes: int = 0
    total_bytes: int = 0


class ServedModel(Protocol):
    """One model in memory. Methods may be called by many tasks of one event loop at once."""

    @property
    def info(self) -> ModelInfo:
        """Exact: context, capabilities."""

    @property
    def memory_bytes(self) -> int:
        """Memory that the model was planned to take; 0 as long as another one that has its weights pays for them."""

    def chat(self, request: ChatRequest) -> AsyncGenerator[Event, None]:
        """Answers a conversation. See the rules at the top."""

    def complete(self, request: CompletionRequest) -> AsyncGenerator[Event, None]:
        """Continues texts."""

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Embeds texts. Raises UsageError for a model without "embedding"."""

    async def count_chat_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt that `chat` would compute; nothing is generated."""

    async def tokenize(self, text: str, *, special: bool = False, add_bos: bool | None = None) -> list[int]:
        """Token ids of a text. `add_bos` None: what the model wants before a text, and never twice."""

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """The bytes of each token, perhaps no whole character; of special ones, their names."""

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of token ids. UsageError for ids that the vocabulary does not have."""

    async def stats(self) -> Mapping[str, Any]:
        """Totals for /metrics: tokens, seconds, bytes by owner (engine/schedule/stats.py's Stats.to_dict)."""

    async def close(self) -> None:
        """Ends what runs with ClosedError and gives the memory back."""


class Loader(Protocol):
    """Makes served models of names."""

    async def estimate(self, name: str, options: LoadOptions) -> int:
        """Bytes that loading would take, from the header alone. Raises MemoryBudgetError when it can never fit."""

    async def share(self, name: str) -> ServedModel | None:
        """The model of this name, of weights that are in memory for another name; None when they are not."""

    async def load(self, name: str, options: LoadOptions, memory_bytes: int | None) -> ServedModel:
        """Loads a model within `memory_bytes` (None: what the machine has to give)."""


class Library(Protocol):
    """Models on disk. Names that leave the library raise ModelNotFoundError."""

    async def list(self) -> Sequence[ModelInfo]:
        """All models in name order."""

    async def get(self, name: str) -> ModelInfo:
        """One of them. Raises ModelNotFoundError with near names."""

    def pull(self, name: str) -> AsyncIterator[PullProgress]:
        """Fetches a model; closing the iterator stops the download, kept for the next try. Raises DownloadError."""

    async def delete(self, name: str) -> None:
        """Forgets a model."""

    async def copy(self, source: str, target: str) -> None:
        """A second name for a model."""

    async def create(self, name: str, recipe: Recipe) -> None:
        """A model made of another. Raises UsageError, ModelNotFoundError for its base."""
