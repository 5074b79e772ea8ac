"""Answers that are cut at every token: whole and streamed say the same, and what was said is taken back as history.

The engine itself behind every protocol, on an executor that writes a given answer wherever a prompt ends.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import numpy as np
import pytest
from engine.chat_families import FAMILIES, Family, FamilyTokenizer
from engine.fakes import FakeExecutor, make_model

from kamado.serve.config import ServeConfig
from kamado.serve.http.keys import KeyRing
from kamado.serve.models.contract import ChatRequest, CompletionRequest, LoadOptions, ModelInfo, ServedModel
from kamado.serve.models.engine_model import EngineModel
from kamado.serve.run import make_server

from .fake import FakeLibrary

INFO = ModelInfo("m", capabilities=frozenset({"completion", "chat"}), max_context=4096)
PARAMETERS = {
    "type": "object",
    "properties": {"text": {"type": "string"}, "n": {"type": "integer"}},
    "required": ["text"],
    "additionalProperties": False,
}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
NAME = "put"
CALLS = (("put", {"text": 'é"\\\U0001f600', "n": 12}), ("put", {"text": "b"}))


class WritingModel(EngineModel):
    """An engine's model that writes `answer` after any prompt."""

    def __init__(self, family: Family, context: int = 4096) -> None:
        self.family = family
        tokenizer = FamilyTokenizer(family.specials)
        kv = {"context": context, "kv_tokens": 4 * context}
        self.answer: list[int] = []
        self.begin = 0
        self.prompts: list[tuple[int, ...]] = []

        def logits_of(tokens: Any) -> np.ndarray:
            row = np.zeros(tokenizer.vocab_size, np.float32)
            at = len(tokens) - self.begin
            row[self.answer[at] if 0 <= at < len(self.answer) else sorted(tokenizer.stop_ids)] = 10.0
            return row

        executor = FakeExecutor(vocab_size=tokenizer.vocab_size, kv_tokens=4 * context, logits_of=logits_of)
        model = make_model(executor, tokenizer=tokenizer, template=family.template, **kv)
        self.engine = model
        super().__init__(model, INFO)

    def _prepare(self, request: ChatRequest, context: int) -> Any:
        found: Any = super()._prepare(request, context)
        self.begin = len(found[0].tokens)
        self.prompts.append(found[0].tokens)
        return found

    def _prompts(self, request: CompletionRequest, context: int) -> Any:
        found: Any = super()._prompts(request, context)
        self.begin = len(found[0][0])
        return found


class WritingLoader:
    """Loads it."""

    def __init__(self, model: WritingModel) -> None:
        self._model = model

    async def share(self, name: str) -> ServedModel | None:
        return None

    async def estimate(self, name: str, options: LoadOptions) -> int:
        return 1000

    async def load(self, name: str, options: LoadOptions, memory_bytes: int | None) -> ServedModel:
        return self._model


@dataclass
class Said:
    """An answer, whatever the protocol."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[tuple[str, Any], ...] = ()  # name, and arguments as the protocol has them
    finish: str = ""
    num_tokens: int = 0
    more: Any = None  # what else must be equal
    back: Any = None  # the answer as it is put back into a conversation


_OWN_ID = re.compile(r"_[0-9a-f]{24,}")
Post = Callable[[str, Mapping[str, Any]], Awaitable[httpx.Response]]


def server_events(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def object_lines(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


class Chat:
    """OpenAI's chat."""

    path = "/v1/chat/completions"
    base: Mapping[str, Any] = {"stream_options": {"include_usage": True}}

    def body(self, history: list[Any], limit: int, kind: str) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": history, "max_tokens": limit}
        if kind in ("auto", "required"):
            function = {"name": NAME, "description": "Puts.", "parameters": PARAMETERS}
            body |= {"tools": [{"type": "function", "function": function}], "tool_choice": kind}
            body |= {"parallel_tool_calls": True}
        if kind == "schema":
            body["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
        return body

    def question(self, text: str) -> list[Any]:
        return [{"role": "user", "content": text}]

    def whole(self, answer: httpx.Response) -> Said:
        found = answer.json()
        choice = found["choices"][0]
        return self._said(choice["message"], choice["finish_reason"], found["usage"])

    def streamed(self, answer: httpx.Response) -> Said:
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        finish, usage = "", {}
        for event in server_events(answer):
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                finish = choice["finish_reason"] or finish
                delta = choice["delta"]
                for name in ("content", "reasoning_content"):
                    if delta.get(name):
                        message[name] = message.get(name, "") + delta[name]
                for call in delta.get("tool_calls", ()):
                    calls = message.setdefault("tool_calls", [])
                    if "id" in call:
                        calls.append({**call, "function": dict(call["function"])})
                    else:
                        calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        return self._said(message, finish, usage)

    def _said(self, message: dict[str, Any], finish: str, usage: Any) -> Said:
        return Said(
            message.get("content") or "",
            message.get("reasoning_content", ""),
            tuple((c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ())),
            finish,
            usage["completion_tokens"],
            usage["completion_tokens_details"],
            [message],
        )

    def results(self, said: Said) -> list[Any]:
        calls = said.back[0].get("tool_calls", ())
        return [{"role": "tool", "tool_call_id": call["id"], "content": "no"} for call in calls]


class Responses(Chat):
    """OpenAI's responses."""

    path = "/v1/responses"
    base: Mapping[str, Any] = {"store": False}

    def body(self, history: list[Any], limit: int, kind: str) -> dict[str, Any]:
        body: dict[str, Any] = {"input": history, "max_output_tokens": limit}
        if kind in ("auto", "required"):
            tool = {"type": "function", "name": NAME, "description": "Puts.", "parameters": PARAMETERS}
            body |= {"tools": [tool], "tool_choice": kind, "parallel_tool_calls": True}
        if kind == "schema":
            body["text"] = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}
        return body

    def whole(self, answer: httpx.Response) -> Said:
        return self._of(answer.json())

    def streamed(self, answer: httpx.Response) -> Said:
        events = server_events(answer)
        items: list[dict[str, Any]] = []
        for event in events:
            if event["type"] == "response.output_item.added":
                items.append({**event["item"], "said": ""})
            elif event["type"].endswith(".delta"):
                items[event["output_index"]]["said"] += event["delta"]
            elif event["type"] == "response.output_item.done":
                said = items[event["output_index"]].pop("said")
                items[event["output_index"]] = event["item"]
                assert said == self._text(event["item"])
        response = events[-1]["response"]
        assert events[-1]["type"] == f"response.{response['status']}"
        assert items == response["output"]
        return self._of(response)

    @staticmethod
    def _text(item: dict[str, Any]) -> str:
        return item["arguments"] if item["type"] == "function_call" else "".join(p["text"] for p in item["content"])

    def _of(self, response: dict[str, Any]) -> Said:
        output = response["output"]
        texts = {k: "".join(self._text(i) for i in output if i["type"] == k) for k in ("message", "reasoning")}
        usage = response["usage"]
        states = tuple(item["status"] for item in output)
        if response["status"] == "incomplete":
            assert response["incomplete_details"] == {"reason": "max_output_tokens"}
            assert all(status == "completed" for status in states[:-1])
        else:
            assert set(states) <= {"completed"}
        return Said(
            texts["message"],
            texts["reasoning"],
            tuple((item["name"], item["arguments"]) for item in output if item["type"] == "function_call"),
            {"completed": "stop", "incomplete": "length"}[response["status"]],
            usage["output_tokens"],
            (states, usage["output_tokens_details"]),
            output,
        )

    def results(self, said: Said) -> list[Any]:
        calls = [item for item in said.back if item["type"] == "function_call"]
        return [{"type": "function_call_output", "call_id": call["call_id"], "output": "no"} for call in calls]


class Messages(Chat):
    """Anthropic's."""

    path = "/v1/messages"
    base: Mapping[str, Any] = {}

    def body(self, history: list[Any], limit: int, kind: str) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": history, "max_tokens": limit}
        if kind in ("auto", "required"):
            choice = {"type": {"auto": "auto", "required": "any"}[kind], "disable_parallel_tool_use": False}
            tool = {"name": NAME, "description": "Puts.", "input_schema": PARAMETERS}
            body |= {"tools": [tool], "tool_choice": choice}
        if kind == "schema":
            body["output_config"] = {"format": {"type": "json_schema", "schema": SCHEMA}}
        return body

    def whole(self, answer: httpx.Response) -> Said:
        return self._of(answer.json())

    def streamed(self, answer: httpx.Response) -> Said:
        jiter = pytest.importorskip("jiter")  # what the official client reads the input of a call with
        message: dict[str, Any] = {}
        arguments = ""
        for event in server_events(answer):
            kind = event["type"]
            if kind == "message_start":
                message = event["message"]
            elif kind == "content_block_start":
                message["content"].append(dict(event["content_block"]))
                arguments = ""
            elif kind == "content_block_delta":
                delta, block = event["delta"], message["content"][-1]
                if delta["type"] == "input_json_delta":
                    arguments += delta["partial_json"]
                    block["input"] = jiter.from_json(arguments.encode(), partial_mode=True)
                else:
                    name = delta["type"].removesuffix("_delta")
                    block[name] += delta[name]
            elif kind == "message_delta":
                message |= event["delta"]
                message["usage"] |= event["usage"]
        return self._of(message)

    def _of(self, message: dict[str, Any]) -> Said:
        blocks = message["content"]
        texts = {k: "".join(b[k] for b in blocks if b["type"] == k) for k in ("text", "thinking")}
        reasons = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls"}
        return Said(
            texts["text"],
            texts["thinking"],
            tuple((b["name"], b["input"]) for b in blocks if b["type"] == "tool_use"),
            reasons[message["stop_reason"]],
            message["usage"]["output_tokens"],
            ([b["type"] for b in blocks], message["usage"]["output_tokens_details"]),
            [{"role": "assistant", "content": blocks}],
        )

    def results(self, said: Said) -> list[Any]:
        calls = [block for block in said.back[0]["content"] if block["type"] == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": c["id"], "content": "no", "is_error": True} for c in calls]
        return [{"role": "user", "content": results}] if results else []


class OllamaChat(Chat):
    """Ollama's chat."""

    path = "/api/chat"
    base: Mapping[str, Any] = {}

    def body(self, history: list[Any], limit: int, kind: str) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": history, "options": {"num_predict": limit, "temperature": 0}}
        if kind == "auto":
            function = {"name": NAME, "description": "Puts.", "parameters": PARAMETERS}
            body["tools"] = [{"type": "function", "function": function}]
        if kind == "schema":
            body["format"] = SCHEMA
        return body

    def whole(self, answer: httpx.Response) -> Said:
        return self._of([answer.json()])

    def streamed(self, answer: httpx.Response) -> Said:
        return self._of(object_lines(answer))

    def _of(self, lines: list[dict[str, Any]]) -> Said:
        last = lines[-1]
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        for line in lines:
            part = line["message"]
            for name in ("content", "thinking"):
                if part.get(name):
                    message[name] = message.get(name, "") + part[name]
            if "tool_calls" in part:
                message["tool_calls"] = message.get("tool_calls", []) + part["tool_calls"]
        calls = message.get("tool_calls", ())
        cut = last.get("cut_call", {}).get("function")
        return Said(
            message["content"],
            message.get("thinking", ""),
            tuple((call["function"]["name"], call["function"]["arguments"]) for call in calls),
            last["done_reason"],
            last["eval_count"],
            cut,
            [message],
        )

    def results(self, said: Said) -> list[Any]:
        calls = said.back[0].get("tool_calls", ())
        return [{"role": "tool", "tool_name": call["function"]["name"], "content": "no"} for call in calls]


PROTOCOLS = {"chat": Chat(), "responses": Responses(), "messages": Messages(), "ollama": OllamaChat()}


@asynccontextmanager
async def serving(model: WritingModel) -> AsyncIterator[Post]:
    server = make_server(ServeConfig(port=0), FakeLibrary({"m": INFO}), WritingLoader(model), keys=KeyRing())
    transport = httpx.ASGITransport(app=server.app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:

        async def post(path: str, body: Mapping[str, Any]) -> httpx.Response:
            return await client.post(path, json={"model": "m", "temperature": 0, **body} if "/v1" in path else
                                     {"model": "m", **body})  # fmt: skip

        yield post
    await server.service.close()


def encode(family: Family, text: str) -> list[int]:
    return FamilyTokenizer(family.specials).encode(text, special=True)


def call_text(model: WritingModel, num_calls: int) -> str:
    from kamado.engine.turns.tool_format.syntax import Call

    syntax = model.engine.chat_format.syntax
    assert syntax is not None
    return syntax.render([Call(name, arguments) for name, arguments in CALLS[:num_calls]])


# What the model writes, and what is asked for; {1} and {2} stand for one and two calls.
ANSWERS = {
    "text": ("Grüße,\n 1 < 2 \U0001f600 <t", "plain"),
    "text with tools": ("Grüße,\n 1 < 2 \U0001f600", "auto"),
    "reasoning": ("<think>Hm, é\n</think>\n\nYes é.", "plain"),
    "reasoning and a call": ("<think>So</think>\n\n{1}", "auto"),
    "text and a call": ("Let me see.\n{1}", "auto"),
    "two calls": ("{2}", "required"),
    "one call": ("{1}", "auto"),
    "schema": ('{"city":"Zürich","days":12}', "schema"),
}
CASES = [
    *((key, "qwen3", protocol) for key in ANSWERS if key != "one call" for protocol in PROTOCOLS),
    *(("one call", key, protocol) for key in ("llama3", "gemma") for protocol in ("chat", "messages")),
    *(("one call", "harmony", protocol) for protocol in PROTOCOLS),
    *(("two calls", "gemma4", protocol) for protocol in PROTOCOLS),
    ("two calls", "mistral", "chat"),
    ("reasoning and a call", "qwen3_tokens", "responses"),
    ("two calls", "glm", "chat"),
    ("two calls", "seed", "messages"),
    *(
        pytest.param("two calls", key, protocol, marks=pytest.mark.slow)
        for key in ("generic", "qwen_tokens", "mistral_named", "granite", "granite_text")
        for protocol in ("chat", "messages")
    ),
]


@pytest.mark.parametrize(("key", "family", "protocol"), CASES)
def test_wherever_an_answer_is_cut(key: str, family: str, protocol: str) -> None:
    asyncio.run(check_every_cut(key, family, PROTOCOLS[protocol]))


async def check_every_cut(key: str, family_key: str, protocol: Chat) -> None:
    family = FAMILIES[family_key]
    text, kind = ANSWERS[key]
    if kind == "required" and isinstance(protocol, OllamaChat):
        kind = "auto"
    model = WritingModel(family)
    for i in (1, 2):
        if f"{{{i}}}" in text:
            text = text.replace(f"{{{i}}}", call_text(model, i))
    model.answer = encode(family, text)
    question = protocol.question("Do it.")
    async with serving(model) as post:

        async def ask(history: list[Any], limit: int, **more: Any) -> httpx.Response:
            body = {**protocol.body(history, limit, kind), **more}
            answer = await post(protocol.path, body)
            assert answer.status_code == 200, (limit, answer.text)
            return answer

        full = protocol.whole(await ask(question, 1000, stream=False))
        assert full.finish in ("stop", "tool_calls")
        assert len(full.calls) == text.count(NAME)
        seen: set[str] = set()
        for limit in range(1, len(model.answer) + 1):
            whole = protocol.whole(await ask(question, limit, stream=False))
            prompt = model.prompts[-1]
            base = {k: v for k, v in protocol.base.items() if k != "store"}
            streamed = protocol.streamed(await ask(question, limit, stream=True, **base))
            assert replace(streamed, back=None) == replace(whole, back=None)
            assert whole.num_tokens == limit
            if limit < len(model.answer) - 1:
                assert whole.finish == "length"
            check_beginning(whole, full, kind, protocol)
            for said in (whole, streamed):
                shape = _OWN_ID.sub("", json.dumps(said.back, sort_keys=True))
                if shape in seen:
                    continue
                seen.add(shape)
                # Every other time with results of the calls, as agents have it.
                results = protocol.results(said) if limit % 2 else []
                history = [*question, *said.back, *results, *protocol.question("Go on.")]
                await ask(history, 1, stream=limit % 4 < 2)
                check_shared(prompt, model.answer[:limit], model.prompts[-1], said, family_key)
    await model.close()


def check_beginning(cut: Said, full: Said, kind: str, protocol: Chat) -> None:
    """A cut answer is a beginning of the full one, and never shows half a tag, call or character."""
    assert full.reasoning.startswith(cut.reasoning)
    assert full.text.startswith(cut.text.rstrip())
    if kind == "required":
        assert not cut.text
    for (name, arguments), (full_name, full_arguments) in zip(cut.calls, full.calls, strict=False):
        assert name == full_name
        if isinstance(arguments, str):
            assert full_arguments.startswith(arguments)
        else:
            assert set(arguments) <= set(full_arguments)
            assert all(full_arguments[key] == value or key == "n" for key, value in arguments.items())
    assert len(cut.calls) <= len(full.calls)
    if isinstance(protocol, OllamaChat) and cut.more is not None:
        assert cut.finish == "length"
        assert cut.more["name"] == NAME
        wanted = full.calls[len(cut.calls)][1]
        forms = [json.dumps(wanted, ensure_ascii=False, separators=one) for one in ((", ", ": "), (",", ":"))]
        assert any(form.startswith(cut.more["arguments"]) for form in forms)


def check_shared(
    prompt: tuple[int, ...], generated: list[int], after: tuple[int, ...], said: Said, family_key: str
) -> None:
    """The next prompt begins with what was generated, as far as the template writes it."""
    if family_key not in ("qwen3", "generic") or said.reasoning or not said.calls:
        return  # reasoning of earlier turns is not in these prompts
    if not isinstance(said.calls[-1][1], str):
        return
    wanted = [*prompt, *generated]
    shared = next((i for i, (a, b) in enumerate(zip(wanted, after, strict=False)) if a != b), len(wanted))
    lost = bytes(token for token in wanted[shared:] if token < 256).decode("utf-8", "replace")
    # A key, an escape or half a character, or the end of the turn.
    assert len(lost) <= len(', "text": '), lost


def test_completions_are_cut_alike() -> None:
    async def check() -> None:
        model = WritingModel(FAMILIES["generic"])
        model.answer = encode(FAMILIES["generic"], "é < \U0001f600 end")
        text = "é < \U0001f600 end"
        async with serving(model) as post:
            for limit in range(1, len(model.answer) + 1):
                found = []
                for path, limited in (
                    ("/v1/completions", {"max_tokens": limit}),
                    ("/api/generate", {"raw": True, "options": {"num_predict": limit, "temperature": 0}}),
                ):
                    body = {"prompt": "Say", **limited}
                    whole = await post(path, {**body, "stream": False})
                    stream = await post(path, {**body, "stream": True})
                    assert whole.status_code == stream.status_code == 200
                    if path == "/api/generate":
                        lines = object_lines(stream)
                        said = "".join(line["response"] for line in lines)
                        assert (said, lines[-1]["done_reason"]) == (whole.json()["response"], "length")
                    else:
                        choices = [event["choices"][0] for event in server_events(stream)]
                        said = "".join(choice["text"] for choice in choices)
                        one = whole.json()["choices"][0]
                        assert (said, choices[-1]["finish_reason"]) == (one["text"], one["finish_reason"])
                    assert text.startswith(said)
                    assert "\ufffd" not in said
                    found.append(said)
                    await post(path, {**body, "prompt": "Say" + said, "stream": False})
                assert found[0] == found[1]
        await model.close()

    asyncio.run(check())


@pytest.mark.parametrize("protocol", ["chat", "messages", "ollama"])
@pytest.mark.parametrize("family", ["qwen3", "generic", "llama3"])
def test_text_that_was_cut_goes_on_where_it_ended(family: str, protocol: str) -> None:
    """Put back as the last message, with tools on offer: both parts together are the full text, spaces and all."""

    async def check() -> None:
        model = WritingModel(FAMILIES[family])
        call = call_text(model, 1) if family != "llama3" else ""
        texts = [" Grüße,\n  1 < 2 <tool", "A  b.\n" + call]
        how = PROTOCOLS[protocol]
        async with serving(model) as post:
            for text in texts:
                answer = encode(FAMILIES[family], text)
                shown = text.removesuffix(call).rstrip("\n") if call and text.endswith(call) else text
                for limit in range(2, len(answer) - len(call.encode())):
                    model.answer = answer
                    body = how.body(how.question("Do it."), limit, "auto")
                    cut = how.whole(await post(how.path, {**body, "stream": False}))
                    if not cut.text:
                        continue
                    assert shown.lstrip().startswith(cut.text.rstrip())
                    at = text.index(cut.text) + len(cut.text)
                    model.answer = encode(FAMILIES[family], text[at:])
                    history = [*how.question("Do it."), *cut.back]
                    more = {"continue_final_message": True} if protocol == "chat" else {}
                    answered = await post(how.path, {**how.body(history, 1000, "auto"), **more, "stream": False})
                    assert answered.status_code == 200, answered.text
                    rest = how.whole(answered)
                    assert (cut.text + rest.text).strip() == shown.strip()
                    assert len(rest.calls) == bool(call and text.endswith(call))
        await model.close()

    asyncio.run(check())


@pytest.mark.parametrize("protocol", ["messages", "ollama"])
def test_a_conversation_may_end_with_a_call(protocol: str) -> None:
    """Clients of these protocols ask so for an answer to go on; a call does not, and a turn begins after it."""

    async def check() -> None:
        model = WritingModel(FAMILIES["qwen3"])
        how = PROTOCOLS[protocol]
        async with serving(model) as post:
            model.answer = encode(FAMILIES["qwen3"], call_text(model, 1))
            body = how.body(how.question("Do it."), 1000, "auto")
            said = how.whole(await post(how.path, {**body, "stream": False}))
            assert len(said.calls) == 1
            history = [*how.question("Do it."), *said.back]
            answered = await post(how.path, {**how.body(history, 9, "auto"), "stream": False})
            assert answered.status_code == 200, answered.text
        await model.close()

    asyncio.run(check())
