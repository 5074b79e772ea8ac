"""Conversations with tools and thinking by the makers' own templates (of llama.cpp's sources, pinned by hash), through
all protocols, streamed and whole: what is answered, and every prompt to the byte as the template renders it.

The expected prompts are made of messages written by hand, with jinja2 itself, set up as the templates' makers say.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
import jinja2.ext
import peer
import pytest
from engine.chat_families import GEMMA4_TOKENS, HARMONY_TOKENS, SOLAR_TOKENS, Family, FamilyTokenizer

from kamado.engine.repeat_causes import KNOWN_TEMPLATES, template_hash

from .test_cut_answers import NAME, PARAMETERS, PROTOCOLS, Chat, WritingModel, serving

pytestmark = pytest.mark.slow

TEXT, NUMBER = 'é"\\ {', 12
THOUGHT, AGAIN, SAID = "I should put.", "It worked, é.", "It is put: é."
TOOL = {"type": "function", "function": {"name": NAME, "description": "Puts.", "parameters": PARAMETERS}}
ANY_ID = re.compile(r"(<\|tool_(?:call|response):begin\|>)[a-z0-9]{10}")
REASONS: Mapping[str, Mapping[str, Any]] = {
    "chat": {"reasoning_effort": "medium"},
    "responses": {"reasoning": {"effort": "medium"}},
    "messages": {"thinking": {"type": "enabled", "budget_tokens": 1024}},
    "ollama": {"think": True},
}
SILENT: Mapping[str, Mapping[str, Any]] = {
    "chat": {"reasoning_effort": "none"},
    "responses": {"reasoning": {"effort": "none"}},
    "messages": {"thinking": {"type": "disabled"}},
    "ollama": {"think": False},
}


@dataclass(frozen=True)
class Golden:
    """A maker's template, what its model writes, and how its conversations look in the template's own terms."""

    file: str
    specials: tuple[str, ...]
    call: str  # what the model writes first, reasoning included
    answer: str  # and after the result
    thinking: str  # the key of reasoning
    end_of_prompt: str  # where the first prompt ends, when reasoning is asked for
    silent_end: str  # and when it is not
    on: Mapping[str, Any] = field(default_factory=dict)  # variables of the template
    off: Mapping[str, Any] = field(default_factory=dict)
    results_name: str = ""


_GEMMA_CALL = (
    f'<|channel>thought\n{THOUGHT}LINE<channel|><|tool_call>call:put{{n:12,text:<|"|>{TEXT}<|"|>}}<tool_call|>'
)
_GEMMA = Golden(
    "google-gemma-4-31B-it", GEMMA4_TOKENS, _GEMMA_CALL.replace("LINE", "\n"),
    f"<|channel>thought\n{AGAIN}\n<channel|>{SAID}", "reasoning_content", "<turn|>\n<|turn>model\n",
    "<|turn>model\n<|channel>thought\n<channel|>", {"enable_thinking": True}, {"enable_thinking": False},
)  # fmt: skip
_JSON = json.dumps({"text": TEXT, "n": NUMBER}, ensure_ascii=False)
GOLDEN = {
    "gpt-oss": Golden(
        "openai-gpt-oss-120b", HARMONY_TOKENS,
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant"
        f" to=functions.put<|channel|>commentary json<|message|>{_JSON}<|call|>",
        f"<|channel|>analysis<|message|>{AGAIN}<|end|><|start|>assistant<|channel|>final<|message|>{SAID}<|return|>",
        "thinking", "<|end|><|start|>assistant", "<|end|><|start|>assistant", {"reasoning_effort": "medium"},
        {"reasoning_effort": "low"},
    ),
    "gemma4": _GEMMA,
    "gemma4-first": Golden(
        **{**{name: getattr(_GEMMA, name) for name in Golden.__dataclass_fields__},
           "file": "google-gemma-4-31B-it-interleaved", "call": _GEMMA_CALL.replace("LINE", ""),
           "results_name": "tool_responses"}
    ),
    "solar": Golden(
        "upstage-Solar-Open-100B", SOLAR_TOKENS,
        f"<|think|>{THOUGHT}<|end|><|begin|>assistant<|tool_calls|><|tool_call:begin|>a1b2c3d4e5<|tool_call:name|>put"
        f"<|tool_call:args|>{_JSON}<|tool_call:end|><|calls|>",
        f"<|think|>{AGAIN}<|end|><|begin|>assistant<|content|>{SAID}<|end|>", "reasoning", "<|end|><|begin|>assistant",
        "<|begin|>assistant<|think|><|end|><|begin|>assistant", {"reasoning_effort": "medium"},
        {"reasoning_effort": "minimal"},
    ),
}  # fmt: skip


@cache
def source(file: str) -> str:
    return peer.templates()[file]


def rendered(golden: Golden, messages: list[dict[str, Any]], variables: Mapping[str, Any], bos: str) -> str:
    """The prompt by jinja2, without anything of ours."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["raise_exception"] = _refuse
    template = environment.from_string(source(golden.file))
    return template.render(messages=messages, tools=[TOOL], add_generation_prompt=True, bos_token=bos, **variables)


def _refuse(message: str) -> None:
    raise AssertionError(message)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("key", GOLDEN)
def test_a_conversation_with_a_tool(key: str, protocol: str) -> None:
    for is_streamed in (False, True):
        asyncio.run(check_conversation(GOLDEN[key], protocol, is_streamed))


async def check_conversation(golden: Golden, protocol: str, is_streamed: bool) -> None:
    how = PROTOCOLS[protocol]
    model = WritingModel(Family("", source(golden.file), golden.specials), context=8192)
    tokenizer = FamilyTokenizer(golden.specials)
    reasons = REASONS[protocol]
    variables = dict(golden.on)
    if protocol in ("messages", "ollama"):
        variables.pop("reasoning_effort", None)  # asked to think, without an effort

    async with serving(model) as post:

        async def ask(history: list[Any], answer: str, more: Mapping[str, Any]) -> Any:
            model.answer = tokenizer.encode(answer, special=True)
            body = {**how.body(history, 2048, "auto"), **more, "stream": is_streamed}
            if is_streamed:
                body |= {k: v for k, v in how.base.items() if k != "store"}
            found = await post(how.path, body)
            assert found.status_code == 200, found.text
            return how.streamed(found) if is_streamed else how.whole(found)

        def check_prompt(messages: list[dict[str, Any]], more: Mapping[str, Any] = variables) -> str:
            bos = "<|bos|>" if "bos_token" in source(golden.file) else ""
            text = tokenizer.decode(model.prompts[-1], skip_special=False)
            wanted = rendered(golden, messages, more, bos=tokenizer.decode([256], skip_special=False) if bos else "")
            assert ANY_ID.sub(r"\1ID", text) == ANY_ID.sub(r"\1ID", wanted)
            return text

        question = {"role": "user", "content": "Do it."}
        said = await ask(how.question("Do it."), golden.call, reasons)
        assert (said.text, said.reasoning, said.finish) == ("", THOUGHT, finish_of(how, "tool_calls"))
        ((name, arguments),) = said.calls
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        assert (name, arguments) == (NAME, {"text": TEXT, "n": NUMBER})
        assert check_prompt([question]).endswith(golden.end_of_prompt)

        results = how.results(said)
        for block in results[0]["content"] if protocol == "messages" else ():
            del block["is_error"]
        history = [*how.question("Do it."), *said.back, *results]
        answered = await ask(history, golden.answer, reasons)
        assert (answered.text, answered.reasoning, answered.finish) == (SAID, AGAIN, finish_of(how, "stop"))
        assert not answered.calls
        called: dict[str, Any] = {
            "role": "assistant", "content": "", golden.thinking: THOUGHT,
            "tool_calls": [
                {"id": "a1b2c3d4e5", "type": "function", "function": {"name": NAME, "arguments": arguments}}
            ],
        }  # fmt: skip
        result = {"role": "tool", "name": NAME, "tool_call_id": "a1b2c3d4e5", "content": "no"}
        told = [question, called, result]
        if golden.results_name:
            told = [question, {**called, golden.results_name: [{"name": NAME, "response": "no"}]}]
        text = check_prompt(told)
        assert golden.call.split("<|tool_call:begin|>")[0] in text  # the reasoning goes back with the call

        go_on = how.question("Go on.")
        await ask([*history, *answered.back, *go_on], golden.answer, reasons)
        final = {"role": "assistant", "content": SAID, golden.thinking: AGAIN}
        text = check_prompt([*told, final, {"role": "user", "content": "Go on."}])
        assert THOUGHT not in text  # and is left out of turns that are over

        await ask(how.question("Do it."), golden.answer, SILENT[protocol])
        assert check_prompt([question], golden.off).endswith(golden.silent_end)
    await model.close()


def finish_of(how: Chat, reason: str) -> str:
    """What a protocol calls the end: responses and Ollama have no word of their own for calls."""
    return "stop" if how.path in ("/v1/responses", "/api/chat") else reason


def test_the_templates_that_are_known_are_these() -> None:
    """engine/repeat_causes.py: of Gemma 4 and gpt-oss."""
    assert {template_hash(source(GOLDEN[key].file)) for key in ("gemma4", "gemma4-first")} == KNOWN_TEMPLATES["gemma4"]
    assert {template_hash(source(GOLDEN["gpt-oss"].file))} == KNOWN_TEMPLATES["gpt-oss"]
