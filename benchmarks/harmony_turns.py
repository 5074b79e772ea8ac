#!/usr/bin/env python3
"""Sampled turns of a donor in Harmony's format, read by a parser that is not Kamado's: how many are malformed, bound
and not. By hand: python3 benchmarks/harmony_turns.py --donor SMOLLM2.gguf --json harmony.json

The donor's reserved tokens are named as Harmony's; nothing else of it changes, and what their rows say is chance. So
that turns come to their headers and ends often, the marks have a bias (`--bias`), bound and not alike. Each turn is one
of four: tools that may be called, a tool that must be, an answer that is JSON, plain chat.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np

import harmony_reader as harmony
import kamado
from kamado.files import open_checkpoint
from kamado.files.gguf_header import read_header
from kamado.files.gguf_writer import GgufWriter

FIRST_RESERVED = 3  # of SmolLM2: 3 to 16 are tokens of code that no chat has
TEMPLATE = (
    "<|start|>system<|message|>You are a helpful assistant.<|end|>"
    "{% if tools %}<|start|>developer<|message|>{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|end|>{% endif %}"
    "{% set last = namespace(tool='') %}{% for m in messages %}"
    "{% if m.role == 'tool' %}<|start|>functions.{{ last.tool }} to=assistant<|channel|>commentary<|message|>"
    "{{ m.content | tojson }}<|end|>"
    "{% elif m.role != 'assistant' %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>"
    "{% elif m.tool_calls %}{% set last.tool = m.tool_calls[0].function.name %}"
    "<|start|>assistant to=functions.{{ last.tool }}<|channel|>commentary json<|message|>"
    "{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% else %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    kamado.Tool("get_weather", "Weather of a city", SCHEMA),
    kamado.Tool("get", "Gets", {"type": "object", "properties": {}, "additionalProperties": False}),
]
COUNTED = (
    "malformed", "cut", "whole", "messages", "analysis", "commentary", "final", "calls", "wrong_calls", "json",
    "wrong_json", "tokens",
)  # fmt: skip
QUESTIONS = ("What is the weather in Oslo?", "Tell me a joke.", "Name three rivers.", "How tall is a giraffe?")


def main() -> int:
    """Makes the donor, samples the turns and prints what came of them."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--donor", type=Path, required=True)
    options.add_argument("--turns", type=int, default=10_000)
    options.add_argument("--first", type=int, default=0, help="number of the first turn, which is its seed")
    options.add_argument("--free-turns", type=int, default=1000, help="turns without the constraint")
    options.add_argument("--tokens", type=int, default=48)
    options.add_argument("--at-once", type=int, default=8)
    options.add_argument("--bias", type=float, default=8.0)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = write_donor(given.donor, Path(folder) / "harmony.gguf")
        with kamado.load(path, context=1024 * given.at_once, kv="exact") as model:
            rows = []
            for name, is_bound, count in (("bound", True, given.turns), ("free", False, given.free_turns)):
                began = time.perf_counter()
                counts = run(model, count, is_bound, given)
                seconds = time.perf_counter() - began
                rows.append({"run": name, "turns": count, "seconds": round(seconds, 1), **counts})
                print(json.dumps(rows[-1]), flush=True)
    if given.json:
        settings = {"tokens": given.tokens, "at_once": given.at_once, "bias": given.bias, "donor": given.donor.name}
        given.json.write_text(json.dumps({"settings": settings, "results": rows}, indent=1) + "\n")
    bound, free = rows
    is_wrong = any(bound[name] for name in ("malformed", "wrong_calls", "wrong_json"))
    return 1 if is_wrong or (given.free_turns and not free["malformed"]) else 0


def write_donor(source: Path, path: Path) -> Path:
    """The donor with its reserved tokens named as Harmony's, and a template of that format."""
    checkpoint = open_checkpoint(source)
    header = read_header(checkpoint.files[0])
    writer = GgufWriter(checkpoint.architecture)
    for key, value in header.metadata.items():
        if key == "general.architecture":
            continue
        if key == "tokenizer.ggml.tokens":
            value = list(value)
            value[FIRST_RESERVED : FIRST_RESERVED + len(harmony.MARKS)] = harmony.MARKS
        elif key == "tokenizer.ggml.eos_token_id":
            value = FIRST_RESERVED + harmony.MARKS.index(harmony.RETURN)
        elif key == "tokenizer.chat_template":
            value = TEMPLATE
        writer.add(key, value, *header.types[key])
    for name, ref in checkpoint.tensors.items():
        writer.add_tensor(name, ref.shape, ref.layout)
    with writer.open(path) as sink:
        for name, ref in checkpoint.tensors.items():
            with ref.file.open("rb") as file:
                file.seek(ref.offset)
                sink.write(name, np.frombuffer(file.read(ref.nbytes), np.uint8))
    return path


def run(model: kamado.Model, count: int, is_bound: bool, given: argparse.Namespace) -> dict[str, Any]:
    """Samples the turns and counts."""
    special = {model.tokenize(mark, special=True)[-1]: mark for mark in harmony.MARKS}
    bias = dict.fromkeys(special, given.bias)
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()

    def one(i: int) -> None:
        turn, kind = turn_of(model, i)
        pieces = list(
            model.generate(
                list(turn.tokens), form=turn.compiled if is_bound else None, temperature=1.0, top_k=0, top_p=1.0,
                repetition_penalty=1.0, max_tokens=given.tokens, seed=i, logit_bias=bias,
            )
        )  # fmt: skip
        is_cut = pieces[-1].finish_reason == "length"
        items = [
            (True, special[p.token]) if p.token in special else (False, model.token_bytes(p.token).decode("latin-1"))
            for p in pieces
        ]
        if not is_cut and items[-1][1] not in (harmony.RETURN, harmony.CALL):
            items.append((True, harmony.CALL))  # nothing but the end could follow, which is not sampled then
        counts["cut"] += is_cut
        counts["tokens"] += len(pieces)
        try:
            messages = harmony.read(items, is_cut=is_cut)
        except harmony.MalformedError as error:
            counts["malformed"] += 1
            reasons[str(error)[:40]] += 1
            return
        counts["messages"] += len(messages)
        counts["whole"] += not is_cut
        for message in messages:
            counts[message.channel] += 1
            if message.recipient and message.end == harmony.CALL:
                counts["calls"] += 1
                counts["wrong_calls"] += not is_right_call(message)
        if kind == "required" and not is_cut:
            counts["wrong_calls"] += not messages[-1].recipient
        if kind == "json" and not is_cut:
            counts["json"] += 1
            counts["wrong_json"] += not is_json(messages[-1])

    with ThreadPoolExecutor(given.at_once) as pool:
        for _ in pool.map(one, range(given.first, given.first + count)):
            pass
    return {**{name: counts[name] for name in COUNTED}, "reasons": dict(reasons.most_common(5))}


def turn_of(model: kamado.Model, i: int) -> tuple[Any, str]:
    """The i-th turn, and which of the four kinds it is."""
    kind = ("auto", "required", "json", "plain")[i % 4]
    options: dict[str, Any] = {"think": kamado.Think()}
    if kind in ("auto", "required"):
        options |= {"tools": TOOLS, "tool_choice": kind}
    elif kind == "json":
        options["schema"] = SCHEMA
    question = QUESTIONS[i // 4 % len(QUESTIONS)]
    return model.prepare_chat([{"role": "user", "content": question}], **options), kind


def is_json(message: harmony.Message) -> bool:
    """Whether a final text is what the schema asks for."""
    return message.channel == "final" and fits(message.text)


def fits(text: str) -> bool:
    """Whether a text is JSON that SCHEMA allows."""
    try:
        value = json.loads(text)
    except ValueError:
        return False
    is_known = isinstance(value, dict) and set(value) <= {"city", "days"}
    return is_known and value.get("city") in ("Oslo", "Rome") and value.get("days", 1) in range(1, 10)


def is_right_call(message: harmony.Message) -> bool:
    """Whether a call is to a tool that was offered, with arguments that its schema allows."""
    if message.recipient == "functions.get":
        return message.text == "{}"
    return message.recipient == "functions.get_weather" and fits(message.text)


if __name__ == "__main__":
    sys.exit(main())
