"""Small models of the families that keep records, made as files and loaded as users load them: lives at random, KV
presets, what a plan counts, and what `kamado kv` measures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer
import pytest

import kamado
from kamado.engine.turns.chat import ChatEncoder
from kamado.files import open_checkpoint
from kamado.measure import measure_kv, prefix_store_bytes, program_of
from kamado.plan.forecast import plan
from kamado.synth.synthesize import synthesize

from .fakes import CHATML
from .lives import Life
from .peer_templates import TrustedTemplate

pytestmark = pytest.mark.slow

# Capital letters alone, whose text has one spelling: an answer goes on to its limit, and says something.
PLAIN = {"logit_bias": dict.fromkeys((*range(ord("A")), *range(ord("Z") + 1, 261)), -100.0)}

TINY = {"layers": 4, "hidden": 256, "heads": 4, "kv_heads": 2, "head_dim": 64}
EXPERTS = {"experts": 8, "top_k": 2, "expert_width": 256}
FAMILIES: dict[str, dict[str, int]] = {
    "lfm2": {**TINY, "ffn": 512},
    "lfm2-8b-a1b": {**TINY, "ffn": 512, **EXPERTS},
    "qwen35": {**TINY, "ffn": 512},
    "qwen35moe": {**TINY, **EXPERTS},
    "qwen3next": {**TINY, **EXPERTS},
}


@pytest.fixture(scope="module")
def file_of(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Callable[[str], Path]:
    """A file of the family, with bytes as tokens."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            path = tmp_path_factory.mktemp(family) / "tiny.gguf"
            tokens = open_checkpoint(tiny_checkpoint)
            made[family] = synthesize(path, family, tokenizer_from=tokens, context=4096, **FAMILIES[family]).path
        return made[family]

    return make


@pytest.fixture
def load(
    file_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., kamado.Model]:
    """`kamado.load` with a prefix store of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def run(family: str, **settings: Any) -> kamado.Model:
        options: dict[str, Any] = {"context": 2048, "threads": 1, "chat_template": CHATML, **settings}
        return kamado.load(file_of(family), **options)

    return run


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        *((family, {"kv": "exact"}) for family in FAMILIES),
        ("lfm2", {"kv": "balanced"}),
        ("qwen35", {"kv": "small"}),
        ("qwen35", {"kv": "balanced,layers=0:exact"}),
    ],
)
def test_answers_do_not_depend_on_what_was_asked_before(family, settings, load) -> None:
    life = Life(0)
    lived = sum(life.live(lambda: load(family, prefix_cache="256MiB", max_rows=48, **settings)) for _ in range(2))
    assert lived > 500
    life.check(lambda: load(family, **settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plan_counts_what_is_taken(family, load, file_of) -> None:
    talk = [{"role": "user", "content": "Tell me of rivers. " * 30}]
    with load(family, prefix_cache="256MiB") as model:
        for seed in range(4):
            for _ in model.chat(talk, max_tokens=5, seed=seed):
                pass
            talk = [*talk, {"role": "assistant", "content": "No."}, {"role": "user", "content": f"Why? {seed}"}]
        stats, owners = model.stats, model.plan.bytes_by_owner
        assert 0 < stats.bytes_by_owner["records"] <= owners["records"]
        assert stats.records["used"] + stats.records["free"] == model.plan.max_records
        assert stats.reuse_points["held"] >= 3
    checkpoint = open_checkpoint(file_of(family))
    program = program_of(checkpoint)
    bare, stored = (
        plan(checkpoint, program, context=2048, reserved_bytes=reserved).bytes_by_owner["interpreter"]
        for reserved in (0, prefix_store_bytes(program))
    )
    assert stored - bare == prefix_store_bytes(program) > 2 * program.record_bytes


def test_a_cache_is_measured_on_layers_that_have_one(file_of, load) -> None:
    del load  # the store of the test's own is where results are kept
    found = measure_kv(file_of("qwen35"), presets=("balanced", "small"), num_tokens=700, threads=1)
    assert [row.kv for row in found.rows[:3]] == ["exact", "balanced", "small"]
    assert all(row.num_tokens > 100 for row in found.rows)
    assert found.rows[1].bytes_per_token < found.rows[0].bytes_per_token
    assert {row.layer for row in found.layers} == {0}, "one layer of four attends"


@pytest.mark.parametrize(("family", "template"), [("qwen35", "Qwen3.5-4B"), ("lfm2-8b-a1b", "LFM2-8B-A1B")])
def test_a_conversation_goes_on_in_memory_and_after_a_restart(family, template, load) -> None:
    """By its own template, which leaves out what Qwen3.5 thought: it goes on behind the user's message, LFM2 behind
    its own answer, and both say what a model says that computes all of it."""
    source = peer.templates()[template]
    settings = {"chat_template": source, "context": 4096}
    system = {"role": "system", "content": "You speak of rivers and of nothing else. " * 5}
    talk: list[Any] = [system, {"role": "user", "content": "Where does the water come from? " * 10}]
    drawn = {"max_tokens": 70, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "logprobs": 2, **PLAIN}
    think = kamado.Think(max_tokens=24)

    def say(model: kamado.Model, seed: int) -> tuple[list[Any], kamado.Message, int]:
        model._prompts.encoder = ChatEncoder(model._tokenizer, TrustedTemplate(source), finds_turns=True)
        stream = model.chat(talk, think=think, seed=seed, **drawn)
        logprobs = [one for event in stream for one in getattr(event, "logprobs", ())]
        return logprobs, stream.message, stream.usage.num_reused_tokens

    places = []
    for seed in range(3):
        with load(family, prefix_cache="256MiB", **settings) as model:
            stored, message, reused = say(model, seed)
            assert reused == (places[-1] if places else 0)
            turn = model.prepare_chat(talk, think=think)
            again, _, reused = say(model, seed)
            assert again == stored
            assert len(stored) > 40
            assert turn.starts[-1] == reused == turn.answer_at, "asked again"
        with load(family, **settings) as model:
            fresh, _, reused = say(model, seed)
            assert (fresh, reused) == (stored, 0)
        thinks = turn.tags is not None
        assert bool(message.reasoning) == thinks
        places.append(turn.answer_at if thinks else turn.num_prompt_tokens + drawn["max_tokens"] - 1)
        talk += [message, {"role": "user", "content": f"And where does it go, {seed}? " * 10}]
