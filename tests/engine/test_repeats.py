"""Answers that only repeat themselves: what ended them is told truly, the log names the first known cause, and
`stop_on_repeat` ends them, where it is asked for."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from kamado.engine.repeat_causes import KNOWN_TEMPLATES, template_hash
from kamado.engine.schedule.repeats import TOLD_TOKENS, RepeatWatch
from kamado.engine.turns import chat_types as ct
from kamado.errors import UsageError

from .chat_families import FAMILIES, GEMMA4
from .fakes import CHATML, VOCAB, FakeExecutor, make_model
from .test_turn import ASK, family_model, run

GREEDY = {"temperature": 0}


def writing(text: bytes, *, background: float = 0.0, lead: float = 10.0):
    """Logits that write `text` over and over."""

    def logits_of(tokens) -> np.ndarray:
        row = np.full(VOCAB, background, np.float32)
        row[text[len(tokens) % len(text)]] = lead
        return row

    return FakeExecutor(logits_of=logits_of)


def told(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name == "kamado.repeats"]


@pytest.mark.parametrize("size", [1, 3, 7, 64])
def test_a_repetition_is_seen_when_it_is_long_enough(size) -> None:
    watch = RepeatWatch(None)
    row = np.zeros(8, np.float32)
    tokens = [7, 9, 8, *([*range(100, 100 + size)] * 400)]
    seen = next(i for i, token in enumerate(tokens) if watch.accept(token, row) or watch.found)
    assert seen + 1 == 3 + TOLD_TOKENS
    assert watch.found.num_tokens == size


def test_what_is_no_repetition_is_not_seen() -> None:
    rng = np.random.default_rng(3)
    row = np.zeros(8, np.float32)
    for tokens in (
        rng.integers(0, 3, 5000),
        [i // 2 for i in range(5000)],
        [t for i in range(100) for t in (*b"the same again and again ", i)],
        [*range(70)] * 50,  # more than a quarter of what is looked at
        [1] * (TOLD_TOKENS - 1),
    ):
        watch = RepeatWatch(None)
        assert not any(watch.accept(int(token), row) for token in tokens)
        assert watch.found is None


def test_it_ends_an_answer_only_where_that_is_asked(caplog) -> None:
    for options, num_tokens in (({}, 400), ({"stop_on_repeat": 40}, 40), ({"stop_on_repeat": 8}, 8)):
        with make_model(writing(b"---\n" if num_tokens > 8 else b"-")) as model:
            pieces = list(model.generate("Hello", max_tokens=400, **options, **GREEDY))
            assert len(pieces) == num_tokens
            assert [piece.finish_reason for piece in pieces[-2:]] == [None, "length"]
    assert len(told(caplog)) == 3
    for wrong in (7, 4097, 1.5, True):
        with make_model(writing(b"-")) as model, pytest.raises(UsageError, match="stop_on_repeat"):
            model.generate("x", stop_on_repeat=wrong)


def test_a_call_that_is_ended_is_cut() -> None:
    text = b'<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "' + b"-" * 3000
    tool = ct.Tool("add", "", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}})
    with family_model(FAMILIES["qwen"], list(text)) as model:
        turn = model.prepare_chat(ASK, tools=(tool,))
        found = run(model, turn, stop_on_repeat=50, **GREEDY)
        assert found[-1] == ct.Finish("length")
        assert found[-2] == ct.ToolCallEnd(0, is_cut=True)


def gemma4(model, template: str | None) -> None:
    model._checkpoint = replace(model._checkpoint, architecture="gemma4", chat_template=template)


def test_the_log_names_a_template_that_is_not_the_family_s(caplog, monkeypatch) -> None:
    for template, words in ((GEMMA4, "none of the 2 known of gemma4"), (None, "no chat template")):
        with make_model(writing(b"---\n"), template=template) as model:
            gemma4(model, template)
            # Nothing else is looked at, though a token is spelled as text here.
            list(model.generate("<|im_start|>user", max_tokens=300, **GREEDY))
        assert words in told(caplog)[-1]
        assert "repeats the same 4 tokens" in told(caplog)[-1]
    monkeypatch.setitem(KNOWN_TEMPLATES, "gemma4", frozenset({template_hash(f"\n{GEMMA4} ")}))
    with make_model(writing(b"---\n"), template=GEMMA4) as model:
        gemma4(model, GEMMA4)
        list(model.generate("Hello", max_tokens=300, **GREEDY))
    assert "none of the known causes" in told(caplog)[-1]


def test_the_log_names_a_special_token_that_was_spelled_as_text(caplog) -> None:
    with make_model(writing(b"-")) as model:
        list(model.generate("<|im_start|>user\nHello", max_tokens=300, **GREEDY))
        assert "<|im_start|> was spelled as text" in told(caplog)[-1]
        assert "repeats the same token:" in told(caplog)[-1]
        list(model.generate("<|im_start|>user\nHello", max_tokens=300, special=True, **GREEDY))
        assert "none of the known causes" in told(caplog)[-1]


@pytest.mark.parametrize(
    ("background", "lead", "words"),
    [(0.0, 1e-3, "flat"), (-np.inf, 1.0, "not all finite"), (0.0, 10.0, "none of the known causes")],
)
def test_the_log_names_logits_that_say_nothing(background, lead, words, caplog) -> None:
    with make_model(writing(b"-", background=background, lead=lead)) as model:
        list(model.generate("Hello", max_tokens=300, **GREEDY))
    assert [words in message for message in told(caplog)] == [True]


def test_it_is_told_once_and_also_of_an_answer_that_was_left(caplog) -> None:
    caplog.set_level(logging.WARNING)
    with make_model(writing(b"ab"), template=CHATML) as model:
        stream = model.chat([{"role": "user", "content": "Hello"}], **GREEDY)
        for _ in range(TOLD_TOKENS + 10):
            next(stream)
        assert not told(caplog)
        stream.close()
        assert len(told(caplog)) == 1
