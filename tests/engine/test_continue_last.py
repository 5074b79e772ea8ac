"""An answer that was cut goes on, as pieces: the same text as if it had not been cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import kamado
from kamado.errors import UsageError

ASK = [{"role": "user", "content": "Count."}]
WHOLE = 24
# Bytes are tokens, and the weights are random: what is no letter would not come back from the text.
LETTERS = {token: -100.0 for token in range(261) if not 0x61 <= token <= 0x7A}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Iterator[kamado.Model]:
    with kamado.load(tiny_checkpoint, threads=1, context=256) as loaded:
        yield loaded


def said(model: kamado.Model, messages: list[dict[str, str]], max_tokens: int, **how: object) -> str:
    pieces = model.chat(messages, temperature=0, logit_bias=LETTERS, max_tokens=max_tokens, **how)  # type: ignore[call-overload]
    return "".join(piece.text for piece in pieces)


def test_it_goes_on_where_it_was_cut(model: kamado.Model) -> None:
    answer = {"role": "assistant", "content": "One, two,"}
    first = said(model, [*ASK, answer], WHOLE // 2, continue_last=True)
    more = {"role": "assistant", "content": answer["content"] + first}
    rest = said(model, [*ASK, more], WHOLE // 2, continue_last=True)
    assert first + rest == said(model, [*ASK, answer], WHOLE, continue_last=True)
    assert first != said(model, ASK, WHOLE // 2)


def test_what_is_read_ends_with_the_answer(model: kamado.Model) -> None:
    answer = {"role": "assistant", "content": "One, two,"}
    pieces = model.chat([*ASK, answer], continue_last=True, max_tokens=1)
    turn = model.prepare_chat([*ASK, answer], continue_last=True)
    list(pieces)
    assert pieces.usage.num_prompt_tokens == turn.num_prompt_tokens


def test_a_session_has_one_answer(model: kamado.Model) -> None:
    answer = {"role": "assistant", "content": "One, two,"}
    text = said(model, [*ASK, answer], 6, continue_last=True, session="counting")
    assert model.conversation("counting") == [*ASK, {"role": "assistant", "content": "One, two," + text}]


@pytest.mark.parametrize(
    ("messages", "more"),
    [
        (ASK, {}),
        ([*ASK, {"role": "assistant", "content": ""}], {}),
        ([*ASK, {"role": "assistant", "content": "One"}], {"regex": "a+"}),
    ],
)
def test_what_cannot_go_on(model: kamado.Model, messages: list[dict[str, str]], more: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="goes on"):
        model.chat(messages, continue_last=True, **more)  # type: ignore[call-overload]


def test_defaults_are_the_files(model: kamado.Model) -> None:
    assert model.default_sampling.temperature == 0.7
