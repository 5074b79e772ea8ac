"""A scripted model, library and loader: every shape of answer, in milliseconds, the same each time.

A `Script` is a list of events and deeds; `FakeModel.scripts` maps what the last message's text is to a script, so that
tests over HTTP choose one by what they ask. Without one, the model says its prompt's words back in capitals.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from kamado.errors import ContextOverflowError, KamadoError, MemoryBudgetError, ModelNotFoundError, UsageError
from kamado.serve.models import contract as b

ALL_CAPABILITIES = frozenset({"completion", "chat", "tools", "thinking", "embedding", "insert"})


@dataclass(frozen=True)
class Wait:
    """The model takes time: until `event` is set, or so many seconds."""

    seconds: float = 0.0
    event: asyncio.Event | None = None


@dataclass(frozen=True)
class Fail:
    """The model fails here."""

    error: BaseException


Step = b.Event | Wait | Fail
Script = Sequence[Step]


def text(*pieces: str, reason: str = "stop", choice: int = 0) -> list[Step]:
    """An answer of text."""
    return [*(b.TextDelta(piece, choice=choice) for piece in pieces), b.Finish(reason, choice=choice)]  # type: ignore[arg-type]


def thought(reasoning: str, answer: str) -> list[Step]:
    """An answer after reasoning."""
    return [b.ReasoningDelta(reasoning), b.TextDelta(answer), b.Finish("stop")]


def calls(*named: tuple[str, str], before: str = "") -> list[Step]:
    """Tool calls (name, arguments), the arguments in pieces of five characters."""
    steps: list[Step] = [b.TextDelta(before)] if before else []
    for i, (name, arguments) in enumerate(named):
        steps.append(b.ToolCallStart(i, f"call_{i}", name))
        steps += [b.ToolCallDelta(i, arguments[at : at + 5]) for at in range(0, len(arguments), 5)]
        steps.append(b.ToolCallEnd(i))
    return [*steps, b.Finish("tool_calls")]


def words_of(value: str) -> list[str]:
    """The fake's tokens: words, each with the blank before it."""
    out: list[str] = []
    for part in value.split(" "):
        out.append(part if not out else " " + part)
    return [word for word in out if word]


def token_of(word: str) -> int:
    """A word's id."""
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:2], "little") % 5000


@dataclass
class FakeModel:
    """A b.ServedModel that plays scripts."""

    info: b.ModelInfo
    scripts: dict[str, Script] = field(default_factory=dict)
    memory_bytes: int = 1000
    requests: list[Any] = field(default_factory=list)  # what it was asked, in order
    num_closed_early: int = 0  # streams that were closed before their end
    num_live: int = 0
    is_closed: bool = False
    cached_tokens: int = 0
    known: dict[int, str] = field(default_factory=dict)

    async def _play(self, script: Script, started: b.Started, counts: b.TokenCounts) -> AsyncGenerator[b.Event, None]:
        is_done = False
        self.num_live += 1
        try:
            yield started
            num_generated = 0
            for step in script:
                if isinstance(step, Wait):
                    if step.event is not None:
                        await step.event.wait()
                    else:
                        await asyncio.sleep(step.seconds)
                elif isinstance(step, Fail):
                    raise step.error
                else:
                    num_generated += isinstance(step, (b.TextDelta, b.ReasoningDelta, b.ToolCallDelta))
                    yield step
                    await asyncio.sleep(0)
            is_done = True
            reasoning = sum(isinstance(step, b.ReasoningDelta) for step in script)
            yield b.Done(replace(counts, num_generated_tokens=num_generated, num_reasoning_tokens=reasoning))
        finally:
            self.num_live -= 1
            self.num_closed_early += not is_done

    def _words(self, request: b.ChatRequest) -> list[str]:
        words = [word for message in request.messages for word in words_of(message.text)]
        return words + [tool.name for tool in request.tools]

    async def chat(self, request: b.ChatRequest) -> AsyncGenerator[b.Event, None]:
        self.requests.append(request)
        if "chat" not in self.info.capabilities:
            raise UsageError(f"{self.info.name} has no chat template")
        if request.tools and "tools" not in self.info.capabilities:
            raise UsageError(f"{self.info.name} cannot call tools")
        num_prompt = len(self._words(request))
        context = min(request.context or self.info.context, self.info.context)
        truncated = None
        if num_prompt >= context:
            if request.truncation == "refuse":
                raise ContextOverflowError(num_prompt, context)
            kept = list(request.messages)
            while len(kept) > 1 and sum(len(words_of(m.text)) for m in kept) >= context:
                kept.pop(next((i for i, m in enumerate(kept[:-1]) if m.role != "system"), 0))
            num_kept = sum(len(words_of(m.text)) for m in kept)
            truncated = b.Truncated(len(request.messages) - len(kept), num_prompt - num_kept, request.truncation)
            num_prompt = num_kept
        asked = request.messages[-1].text if request.messages else ""
        script = self.scripts.get(asked)
        if script is None:
            script = self._echo(asked, request)
        elif request.n > 1 and not any(getattr(step, "choice", 0) for step in script):
            script = [
                replace(step, choice=i) if hasattr(step, "choice") else step  # type: ignore[type-var]
                for step in script
                for i in range(request.n)
            ]
        seed = request.options.get("seed") or 7
        counts = b.TokenCounts(num_prompt, min(self.cached_tokens, num_prompt), 0)
        started = b.Started(num_prompt, context, truncated, seed)
        stream = self._play(script, started, counts)
        try:
            async for event in stream:
                yield event
        finally:
            await stream.aclose()

    def _echo(self, asked: str, request: b.ChatRequest | b.CompletionRequest, choice: int | None = None) -> list[Step]:
        words = words_of(asked.upper()) or ["NOTHING"]
        usual = request.usual_tokens if isinstance(request, b.CompletionRequest) else None
        limit = min(request.options.get("max_tokens", usual) or len(words), len(words))
        stops = request.options.get("stop") or ()
        steps: list[Step] = []
        for i in range(request.n) if choice is None else (choice,):
            said: list[Step] = []
            finish = b.Finish("length" if limit < len(words) else "stop", choice=i)
            for word in words[:limit]:
                stop = next((stop for stop in stops if stop in word), None)
                if stop is not None:
                    said.append(b.TextDelta(word[: word.index(stop)], choice=i))
                    finish = b.Finish("stop_sequence", stop, choice=i)
                    break
                said.append(b.TextDelta(word, self._logprobs(word, request.options.get("logprobs")), choice=i))
            steps += [*said, finish]
        return steps

    def _logprobs(self, word: str, num_top: int | None) -> tuple[b.TokenLogprob, ...]:
        if num_top is None:
            return ()
        token = token_of(word)
        self.known[token] = word
        top = tuple((token + i, (word if i == 0 else f"{word}{i}").encode(), -0.5 - i) for i in range(num_top))
        return (b.TokenLogprob(token, word.encode(), -0.5, top),)

    async def complete(self, request: b.CompletionRequest) -> AsyncGenerator[b.Event, None]:
        self.requests.append(request)
        prompts = [
            words_of(prompt) if isinstance(prompt, str) else [self.known.get(t, f" t{t}") for t in prompt]
            for prompt in request.prompts
        ]
        for words in prompts:
            if len(words) >= self.info.context:
                raise ContextOverflowError(len(words), self.info.context)
        steps: list[Step] = []
        for p, words in enumerate(prompts):
            for i in range(request.n):
                choice = p * request.n + i
                if request.prompt_logprobs is not None:
                    tokens = [lp for w in words for lp in self._logprobs(w, request.prompt_logprobs)]
                    tokens[0] = replace(tokens[0], logprob=float("nan"), top=())
                    steps.append(b.PromptLogprobs(tuple(tokens), choice))
                key = "".join(words)
                script = self.scripts.get(key)
                if script is not None:
                    steps += [replace(s, choice=choice) if hasattr(s, "choice") else s for s in script]  # type: ignore[type-var]
                elif request.is_scored_only:
                    steps.append(b.Finish("length", choice=choice))
                else:
                    steps += self._echo(key, request, choice)
        total = sum(map(len, prompts))
        stream = self._play(steps, b.Started(total, self.info.context, None, 7), b.TokenCounts(total, 0, 0))
        try:
            async for event in stream:
                yield event
        finally:
            await stream.aclose()

    async def embed(self, request: b.EmbedRequest) -> b.Embeddings:
        self.requests.append(request)
        if "embedding" not in self.info.capabilities:
            raise UsageError(f"{self.info.name} makes no embeddings")
        length = self.info.embedding_length
        if request.dimensions is not None and request.dimensions > length:
            raise UsageError(f"dimensions must be at most {length}, not {request.dimensions}")
        rows, counts = [], []
        for item in request.inputs:
            words = words_of(item) if isinstance(item, str) else [str(t) for t in item]
            if len(words) > self.info.context:
                if not request.truncate:
                    raise ContextOverflowError(len(words), self.info.context)
                words = words[: self.info.context]
            digest = hashlib.sha256(" ".join(words).encode()).digest()
            row = np.frombuffer(digest, np.uint8)[:length].astype(np.float32)[: request.dimensions] - 127.5
            rows.append(row / np.linalg.norm(row))
            counts.append(len(words))
        return b.Embeddings(np.stack(rows).astype(np.float32), tuple(counts))

    async def count_chat_tokens(self, request: b.ChatRequest) -> int:
        return len(self._words(request))

    async def tokenize(self, value: str, *, special: bool = False, add_bos: bool | None = None) -> list[int]:
        tokens = [] if add_bos is False else [1]
        self.known[1] = ""
        if special and value.startswith("<s>"):
            tokens, value = [1], value.removeprefix("<s>")
        for word in words_of(value):
            self.known[token_of(word)] = word
            tokens.append(token_of(word))
        return tokens

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        return [self.known.get(token, f" t{token}").encode("utf-8", "surrogateescape") for token in tokens]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return "".join(self.known.get(token, f" t{token}") for token in tokens)

    async def stats(self) -> Mapping[str, Any]:
        return {"tokens": {"prefill": 1, "decode": 2}, "bytes_by_owner": {"weights": 600, "kv": 400}, "requests": {}}

    async def close(self) -> None:
        self.is_closed = True


@dataclass
class FakeLoader:
    """Makes FakeModels; may be slow, fail, or lack memory."""

    scripts: dict[str, Script] = field(default_factory=dict)
    models: dict[str, FakeModel] = field(default_factory=dict)  # made so far, the newest of each name
    num_loads: int = 0
    bytes_of: dict[str, int] = field(default_factory=dict)
    error: KamadoError | None = None
    gate: asyncio.Event | None = None  # loads wait for it
    library: FakeLibrary | None = None

    async def estimate(self, name: str, options: b.LoadOptions) -> int:
        return self.bytes_of.get(name, 1000)

    async def share(self, name: str) -> b.ServedModel | None:
        return None

    async def load(self, name: str, options: b.LoadOptions, memory_bytes: int | None) -> b.ServedModel:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        nbytes = self.bytes_of.get(name, 1000)
        if memory_bytes is not None and nbytes > memory_bytes:
            raise MemoryBudgetError(f"{name} needs {nbytes} bytes and there are {memory_bytes}")
        assert self.library is not None
        self.num_loads += 1
        model = FakeModel(self.library.infos[name], self.scripts, nbytes)
        self.models[name] = model
        return model


@dataclass
class FakeLibrary:
    """Models that are on no disk."""

    infos: dict[str, b.ModelInfo] = field(default_factory=dict)
    pulls: dict[str, list[b.PullProgress | BaseException]] = field(default_factory=dict)
    recipes: dict[str, b.Recipe] = field(default_factory=dict)

    async def list(self) -> Sequence[b.ModelInfo]:
        return [self.infos[name] for name in sorted(self.infos)]

    async def get(self, name: str) -> b.ModelInfo:
        for candidate in (name, f"{name}:latest"):
            if candidate in self.infos:
                return self.infos[candidate]
        raise ModelNotFoundError(f"there is no model called {name[:100]!r}")

    async def pull(self, name: str) -> AsyncIterator[b.PullProgress]:
        if name not in self.pulls:
            raise ModelNotFoundError(f"there is no model called {name[:100]!r}")
        for step in self.pulls[name]:
            if isinstance(step, BaseException):
                raise step
            yield step
            await asyncio.sleep(0)
        self.infos[name] = replace(INFO, name=name)

    async def delete(self, name: str) -> None:
        info = await self.get(name)
        del self.infos[info.name]

    async def copy(self, source: str, target: str) -> None:
        info = await self.get(source)
        self.infos[target] = replace(info, name=target)

    async def create(self, name: str, recipe: b.Recipe) -> None:
        base = await self.get(recipe.base)
        self.recipes[name] = recipe
        self.infos[name] = replace(
            base,
            name=name,
            parent=base.name,
            system=recipe.system or "",
            template=recipe.template or base.template,
            parameters=dict(recipe.parameters),
        )


INFO = b.ModelInfo(
    name="fake",
    created=1_700_000_000,
    nbytes=123_456,
    digest="ab" * 32,
    architecture="llama",
    parameter_count=135_000_000,
    quantization="Q4_1",
    context=64,
    max_context=2048,
    embedding_length=16,
    capabilities=ALL_CAPABILITIES,
    template="{{ messages }}",
    license="Apache-2.0",
)


@dataclass
class FakeWorld:
    """A library with "fake" (can all) and "other" (text only), and its loader."""

    scripts: dict[str, Script] = field(default_factory=dict)

    def __post_init__(self) -> None:
        other = replace(INFO, name="other", capabilities=frozenset({"completion"}))
        self.library = FakeLibrary({"fake": INFO, "other": other})
        self.loader = FakeLoader(self.scripts, library=self.library)

    @property
    def model(self) -> FakeModel:
        """The loaded "fake"."""
        return self.loader.models["fake"]


__all__ = [
    "INFO",
    "Fail",
    "FakeLibrary",
    "FakeLoader",
    "FakeModel",
    "FakeWorld",
    "Wait",
    "calls",
    "text",
    "thought",
]
