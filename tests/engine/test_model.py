"""The public interface with a scripted executor: text, limits, reuse, scores and what callers get wrong."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

import kamado
from kamado.errors import ContextOverflowError, TemplateError, TokenizerError, UsageError

from .fakes import BOS, EOS, FOREVER, ByteTokenizer, FakeExecutor, make_model, scripted


def text_of(pieces) -> str:
    return "".join(piece.text for piece in pieces)


def scripted_model(answer: str, prompt: str = "Q", **kwargs):
    return make_model(FakeExecutor(logits_of=scripted(answer, len(prompt.encode()))), **kwargs)


def test_characters_come_when_they_are_whole() -> None:
    with scripted_model("aé🔥b") as model:
        pieces = list(model.generate("Q", temperature=0))
        assert [p.text for p in pieces] == ["a", "", "é", "", "", "", "🔥", "b", ""]
        assert [p.finish_reason for p in pieces] == [None] * 8 + ["stop"]
        assert pieces[-1].token == EOS


def test_a_raw_answer_keeps_the_space_that_a_chat_answer_drops() -> None:
    with scripted_model(" yes") as model:
        assert text_of(model.generate("Q", temperature=0)) == " yes"
    conversation = [{"role": "user", "content": "Q"}]
    with make_model() as model:
        prompt = model.encode_chat(conversation)
    with make_model(FakeExecutor(logits_of=scripted(" yes", len(prompt)))) as model:
        assert text_of(model.chat(conversation, temperature=0)) == "yes"


def test_half_a_character_at_the_end_is_marked() -> None:
    with scripted_model("é") as model:
        pieces = list(model.generate("Q", temperature=0, max_tokens=1))
        assert [(p.text, p.finish_reason) for p in pieces] == [("\ufffd", "length")]


def test_a_stop_string_across_tokens_is_not_shown() -> None:
    with scripted_model("one two\n\nthree") as model:
        pieces = list(model.generate("Q", temperature=0, stop=["\n\nth", "zebra"]))
        assert text_of(pieces) == "one two"
        assert pieces[-1].finish_reason == "stop"
        assert len(pieces) == len("one two\n\nth")


def test_text_held_back_comes_at_the_end() -> None:
    with scripted_model("one tw") as model:
        assert text_of(model.generate("Q", temperature=0, stop="two")) == "one tw"
        pieces = list(model.generate("Q", temperature=0, stop="two", max_tokens=5))
        assert (text_of(pieces), pieces[-1].finish_reason) == ("one t", "length")


def test_a_stop_string_completed_by_the_last_allowed_token() -> None:
    with scripted_model("abc") as model:
        pieces = list(model.generate("Q", temperature=0, stop="bc", max_tokens=3))
        assert (text_of(pieces), pieces[-1].finish_reason) == ("a", "stop")


def test_logprobs_come_when_asked_for() -> None:
    with make_model() as model:
        (plain,) = model.generate("Q", max_tokens=1, temperature=0)
        (piece,) = model.generate("Q", max_tokens=1, temperature=0, logprobs=3, logit_bias={0: 1.0})
        assert (plain.logprob, plain.top_logprobs) == (None, ())
        assert piece.logprob is not None
        assert piece.top_logprobs[0] == (piece.token, piece.logprob)
        assert len(piece.top_logprobs) == 3
        logits = model.logits(model.tokenize("Q"))[-1].astype(float)
        assert piece.logprob == pytest.approx(logits.max() - math.log(np.exp(logits).sum()), abs=1e-5)


def test_a_prompt_must_leave_room_for_one_token() -> None:
    with make_model(context=128) as model:
        assert len(list(model.generate([1] * 127))) == 1
        with pytest.raises(ContextOverflowError, match=r"128 tokens .* holds 128"):
            model.generate([1] * 128)
        with pytest.raises(ContextOverflowError) as caught:
            model.generate("x" * 500)
        assert (caught.value.num_prompt_tokens, caught.value.context_tokens) == (500, 128)


def test_an_answer_ends_where_the_context_does() -> None:
    with make_model(context=128) as model:
        pieces = list(model.generate([1] * 100, **FOREVER))
        assert len(pieces) == 28
        assert pieces[-1].finish_reason == "length"


def test_the_next_turn_computes_only_what_is_new() -> None:
    with make_model() as model:
        messages = [{"role": "user", "content": "Hello, who are you?"}]
        first = model.chat(messages, temperature=0, max_tokens=10, logit_bias=dict.fromkeys(range(128, 260), -100))
        answer = text_of(first)
        before = model._executor.num_rows
        assert before == len(model.encode_chat(messages)) + 9
        messages += [{"role": "assistant", "content": answer.strip()}, {"role": "user", "content": "And then?"}]
        second = model.chat(messages, max_tokens=1)
        list(second)
        new = model._executor.num_rows - before
        assert second.usage.num_reused_tokens + new == second.usage.num_prompt_tokens
        assert second.usage.num_reused_tokens >= first.usage.num_prompt_tokens
        list(model.chat(messages, max_tokens=1))
        assert model._executor.num_rows == before + new + 1, "the same prompt again: its last token only"


def test_scores_are_the_log_probabilities_of_the_tokens() -> None:
    with make_model(max_rows=8) as model:
        tokens = model.tokenize("a longer text than one chunk")
        logits = np.stack([model._executor.hashed(tokens[: i + 1]) for i in range(len(tokens) - 1)]).astype(float)
        expected = logits[np.arange(len(tokens) - 1), tokens[1:]] - np.log(np.exp(logits).sum(axis=1))
        np.testing.assert_allclose(model.score(tokens), expected, rtol=1e-12)
        assert model.stats.requests["sessions"] == 0


def test_perplexity_follows_llamacpp() -> None:
    tokens = [(7 * i) % 250 for i in range(50)]
    with make_model(tokenizer=ByteTokenizer(add_bos=True)) as model:
        losses = []
        for start in (0, 16, 32):  # two tokens are left out
            part = [BOS, *tokens[start + 1 : start + 16]]
            losses += (-model.score(part)[8:]).tolist()
        seen: list[tuple[int, int]] = []
        result = model.perplexity(tokens, window=16, progress=lambda *done: seen.append(done))
        assert result.value == pytest.approx(math.exp(sum(losses) / len(losses)))
        assert result.num_tokens == len(losses) == 3 * 7
        assert result.standard_error > 0
        assert seen == [(1, 3), (2, 3), (3, 3)]


def test_logits_are_refused_when_they_are_more_than_was_planned() -> None:
    with make_model(max_logit_rows=16, max_rows=8) as model:
        logits = model.logits([1, 2, 3] * 5)
        assert logits.shape == (15, 260)
        np.testing.assert_array_equal(logits[9], model._executor.hashed(([1, 2, 3] * 5)[:10]))
        with pytest.raises(UsageError, match=r"17 tokens .* 16 rows: use score\(\)"):
            model.logits([1] * 17)


@pytest.mark.parametrize(
    ("prompt", "settings", "words"),
    [
        ("", {}, "empty"),
        ([], {}, "empty"),
        ([260], {}, "0 to 259"),
        ([-1], {}, "0 to 259"),
        ([0.5], {}, "whole numbers"),
        ([[1], [2, 3]], {}, "whole numbers"),
        ("Q", {"max_tokens": 0}, "1 or more"),
        ("Q", {"max_tokens": True}, "1 or more"),
        ("Q", {"logprobs": 65}, "0 to 64"),
        ("Q", {"temperature": -1}, "0 to 100"),
        ("Q", {"stop": [""]}, "1 to 512"),
        ("Q", {"logit_bias": {1000: 1.0}}, "go to 259"),
    ],
)
def test_wrong_arguments_are_refused_at_once(prompt, settings, words: str) -> None:
    with make_model() as model, pytest.raises(UsageError, match=words):
        model.generate(prompt, **settings)


def test_the_files_own_sampling_is_used_and_can_be_overruled() -> None:
    with make_model(sampling={"temperature": 0.0}) as model:
        assert model.generate("Q")._request.sampler.sampling.is_greedy
        assert model.generate("Q", temperature=0.5)._request.sampler.sampling.temperature == 0.5


def test_a_model_without_tokenizer_takes_and_gives_tokens() -> None:
    with make_model(tokenizer=None) as model:
        pieces = list(model.generate([1, 2, 3], max_tokens=3, **FOREVER))
        assert [p.text for p in pieces] == [""] * 3
        for call in (
            lambda: model.generate("text"),
            lambda: model.generate([1], stop="x"),
            lambda: model.tokenize("x"),
        ):
            with pytest.raises(TokenizerError, match=r"fake\.gguf has no tokenizer"):
                call()


def test_a_model_without_template_says_what_to_do() -> None:
    with make_model(template=None) as model:
        assert not model.has_chat_template
        with pytest.raises(TemplateError, match=r"use generate\(\)"):
            model.chat([{"role": "user", "content": "Hello"}])


def test_stats_count_what_was_done() -> None:
    with make_model() as model:
        list(model.generate([1] * 10, max_tokens=4, **FOREVER))
        stats = model.stats
        assert stats.tokens == {"prompt": 10, "reused": 0, "prefill": 10, "decode": 3}
        owners = dict(stats.bytes_by_owner)
        assert owners.pop("interpreter") > 0
        for name in ("libraries", "kernel"):  # where the system tells
            owners.pop(name, None)
        assert owners == {"weights": 1000, "kv": 200, "scratch": 30}
        assert stats.executor_seconds == {"linear": 0.5}
        assert stats.peak_bytes > 1 << 20
        assert stats.num_steps == 4
        assert stats.to_dict()["tokens"] == stats.tokens


def test_usage_of_an_answer() -> None:
    with make_model() as model:
        answer = model.generate([1] * 10, max_tokens=4, **FOREVER)
        list(answer)
        usage = answer.usage
        assert (usage.num_prompt_tokens, usage.num_reused_tokens, usage.num_generated_tokens) == (10, 0, 4)
        assert usage.prefill_seconds > 0
        assert usage.decode_tokens_per_second > 0


def test_import_brings_in_nothing_heavy() -> None:
    heavy = [
        "numpy",
        "jinja2",
        "tokenizers",
        "huggingface_hub",
        "httpx2",
        "asyncio",
        "importlib.metadata",
        "kamado.engine",
        "kamado._native",
    ]
    code = f"import sys, kamado; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_public_names_are_there() -> None:
    for name in kamado.__all__:
        if name not in ("__version__", "Effort", "FinishReason", "Role"):  # the distribution's; literals
            assert getattr(kamado, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        kamado.lode  # noqa: B018
