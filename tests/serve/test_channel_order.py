"""Messages of one answer in any order, through every protocol: whole and streamed say the same, and all of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from engine.chat_families import FAMILIES

from .test_cut_answers import PROTOCOLS, WritingModel, encode, serving

MORE = "<|end|><|start|>assistant"
SAID, THOUGHT = "<|channel|>commentary<|message|>I look.", "<|channel|>analysis<|message|>Hm."
FINAL, CALL = "<|channel|>final<|message|>So.", ' to=functions.put<|channel|>commentary json<|message|>{"text": "a"}'
# What is written; its text and its reasoning.
ANSWERS = {
    "text, reasoning, text": (f"{SAID}{MORE}{THOUGHT}{MORE}{FINAL}<|return|>", "I look.\n\nSo.", "Hm."),
    "two thoughts": (f"{THOUGHT}{MORE}{THOUGHT}{MORE}{FINAL}<|return|>", "So.", "Hm.\n\nHm."),
    "final, reasoning, final": (f"{FINAL}{MORE}{THOUGHT}{MORE}{FINAL}<|return|>", "So.\n\nSo.", "Hm."),
    "text, reasoning, call": (f"{SAID}{MORE}{THOUGHT}{MORE}{CALL}<|call|>", "I look.", "Hm."),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("key", ANSWERS)
def test_messages_in_any_order(key: str, protocol: str) -> None:
    written, text, reasoning = ANSWERS[key]
    how = PROTOCOLS[protocol]

    async def check() -> None:
        model = WritingModel(FAMILIES["harmony"])
        model.answer = encode(FAMILIES["harmony"], written)
        async with serving(model) as post:

            async def ask(history: list[Any], is_streamed: bool) -> Any:
                body = {**how.body(history, 1000, "auto"), "stream": is_streamed}
                if is_streamed:
                    body |= {name: value for name, value in how.base.items() if name != "store"}
                answer = await post(how.path, body)
                assert answer.status_code == 200, answer.text
                return how.streamed(answer) if is_streamed else how.whole(answer)

            for is_streamed in (False, True):
                said = await ask(how.question("Do it."), is_streamed)
                assert (said.text, said.reasoning) == (text, reasoning)
                assert len(said.calls) == written.count("put")
                # What came is taken back as history.
                await ask(
                    [*how.question("Do it."), *said.back, *how.results(said), *how.question("Go on.")], is_streamed
                )
        await model.close()

    asyncio.run(check())
