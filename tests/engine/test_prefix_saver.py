"""Prefixes and conversations that outlive the process, at the level of a model: same answers, fewer rows."""

from __future__ import annotations

import errno
import logging
import os
import random
import subprocess
import threading
from pathlib import Path

import pytest

from kamado.engine.cache import prefix_file
from kamado.engine.cache import prefix_store as store_module
from kamado.engine.cache.prefix_saver import PrefixSaver
from kamado.engine.cache.prefix_store import PrefixStore
from kamado.engine.model import Model
from kamado.engine.turns.conversations import ConversationStore
from kamado.errors import CorruptFileError, ModelNotFoundError, UsageError

from .fakes import FOREVER, FakeExecutor, make_model, scripted
from .test_scheduler import executor_of, hold, tokens_of, wait_for

PROMPT = random.Random(3).choices(range(250), k=700)
OPTIONS = {"temperature": 1.0, "seed": 7, "max_tokens": 30, **FOREVER}


def model_on(root: Path, *, encodes: bool = True, cap_bytes: int = 1 << 30, **settings) -> Model:
    executor = FakeExecutor(encodes=encodes)
    return make_model(executor, context=4096, store=PrefixStore(root, cap_bytes=cap_bytes), **settings)


@pytest.fixture(scope="module")
def expected() -> list[int]:
    with make_model(context=4096) as model:
        return tokens_of(model.generate([*PROMPT, 1, 2], **OPTIONS))


@pytest.mark.parametrize("encodes", [False, True])
def test_a_prompt_is_not_computed_again_after_a_restart(tmp_path: Path, expected: list[int], encodes: bool) -> None:
    with model_on(tmp_path, encodes=encodes) as model:
        tokens_of(model.generate(PROMPT, max_tokens=1))
    with model_on(tmp_path, encodes=encodes) as model:
        generation = model.generate([*PROMPT, 1, 2], **OPTIONS)
        assert tokens_of(generation) == expected
        assert generation.usage.num_reused_tokens == 700
        assert executor_of(model).num_rows == 2 + 29
        stats = model.stats.prefix_store
        assert stats is not None
        assert (stats["num_restored"], stats["num_restored_tokens"]) == (1, 700)


def test_an_exact_cache_restores_a_beginning_that_went_on_differently(tmp_path: Path) -> None:
    with model_on(tmp_path, encodes=False) as model:
        tokens_of(model.generate(PROMPT, max_tokens=1))
    with model_on(tmp_path, encodes=False) as model:
        generation = model.generate([*PROMPT[:400], 1, 2], max_tokens=1)
        tokens_of(generation)
        assert generation.usage.num_reused_tokens == 400


def test_the_same_prompt_after_a_restart_starts_at_its_end(tmp_path: Path, expected: list[int]) -> None:
    for reused in (0, 701):
        with model_on(tmp_path) as model:
            generation = model.generate([*PROMPT, 1, 2], **OPTIONS)
            assert tokens_of(generation) == expected
            assert generation.usage.num_reused_tokens == reused, "the answer ended in the same page"


def test_the_place_where_prompts_part_is_stored_as_well(tmp_path: Path) -> None:
    reused = []
    for i in range(4):
        with model_on(tmp_path) as model:
            generation = model.generate([*PROMPT, *([i] * 300)], max_tokens=1)
            tokens_of(generation)
            reused.append(generation.usage.num_reused_tokens)
    assert reused == [0, 0, 640, 640], "five common pages were on disk; a mark at their end made them usable"


def test_a_turn_adds_only_its_own_pages(tmp_path: Path) -> None:
    tokens = list(PROMPT)
    with model_on(tmp_path) as model:
        for _ in range(3):
            tokens += tokens_of(model.generate(tokens, max_tokens=200, **FOREVER))
            tokens += [1] * 50
            wait_for(lambda: not model._saver._entries and not model._saver._queued_bytes)
    pages = list(tmp_path.glob("*/pages/*.kv"))
    assert len(pages) == (700 + 3 * 200 + 2 * 50 - 1) // 128 - 1
    assert len(list(tmp_path.glob("*/points/*.kv"))) == 3


@pytest.mark.parametrize("where", ["pages", "points"])
def test_a_damaged_entry_is_refused_removed_and_recomputed(
    tmp_path: Path, expected: list[int], where: str, caplog: pytest.LogCaptureFixture
) -> None:
    with model_on(tmp_path) as model:
        tokens_of(model.generate(PROMPT, max_tokens=1))
    path = sorted(tmp_path.glob(f"*/{where}/*.kv"))[-1]
    data = bytearray(path.read_bytes())
    data[-20] ^= 4
    path.write_bytes(data)
    with model_on(tmp_path) as model:
        generation = model.generate([*PROMPT, 1, 2], **OPTIONS)
        assert tokens_of(generation) == expected
        assert generation.usage.num_reused_tokens == 0
        assert model._saver.stats.num_refused == 1
    assert "computed again" in caplog.text
    with model_on(tmp_path) as model:  # and is whole again
        generation = model.generate([*PROMPT, 1, 2, *expected, 3], max_tokens=1)
        tokens_of(generation)
        assert generation.usage.num_reused_tokens == 731


@pytest.mark.parametrize("settings", [{"binding": "another model"}, {"owner": "bob"}])
def test_another_model_or_owner_gets_nothing(tmp_path: Path, settings: dict[str, str]) -> None:
    owner = settings.pop("owner", "")
    with model_on(tmp_path) as model:
        tokens_of(model.generate(PROMPT, max_tokens=1))
    with model_on(tmp_path, **settings) as model:
        generation = model.generate([*PROMPT, 1], max_tokens=1, owner=owner)
        tokens_of(generation)
        assert generation.usage.num_reused_tokens == 0


def test_the_owner_is_not_written_to_disk(tmp_path: Path) -> None:
    with model_on(tmp_path) as model:
        tokens_of(model.generate(PROMPT, max_tokens=1, owner="sk-secret-key"))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(b"sk-secret" in path.read_bytes() or "sk-secret" in str(path) for path in files)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_cannot_be_written_costs_one_warning(
    tmp_path: Path, expected: list[int], code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(store_module.os, "fsync", fail)
    with caplog.at_level(logging.WARNING), model_on(tmp_path) as model:
        tokens_of(model.generate(PROMPT, max_tokens=1))
        assert tokens_of(model.generate([*PROMPT, 1, 2], **OPTIONS)) == expected
        wait_for(lambda: model._saver.stats.num_given_up > 0)
        tokens_of(model.generate([9] * 400, max_tokens=1))
    assert len([r for r in caplog.records if "cannot be stored" in r.message]) == 1
    assert os.strerror(code) in caplog.text
    assert not list(tmp_path.rglob("*.kv"))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_that_is_really_full(tmp_path: Path, expected: list[int]) -> None:
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)], capture_output=True
    ).returncode:
        pytest.skip("no tmpfs may be mounted here")
    try:
        with model_on(tmp_path / "store") as model:
            tokens_of(model.generate(PROMPT * 5, max_tokens=1))
            assert tokens_of(model.generate([*PROMPT, 1, 2], **OPTIONS)) == expected
        assert not list(tmp_path.rglob("*.tmp"))
        assert not list(tmp_path.rglob("*/points/*.kv"))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_session_that_must_go_is_saved_first(tmp_path: Path) -> None:
    def model() -> Model:
        return make_model(FakeExecutor(encodes=True), context=1024, store=PrefixStore(tmp_path))

    with model() as loaded:
        tokens_of(loaded.generate(PROMPT, max_tokens=1))
        tokens_of(loaded.generate([9] * 1000, max_tokens=1))  # needs all pages
        wait_for(lambda: loaded._saver.stats.num_saved == 1)
        again = loaded.generate([*PROMPT, 1], max_tokens=1)
        tokens_of(again)
        assert again.usage.num_reused_tokens == 700
        assert executor_of(loaded).num_imports == 1


def test_a_request_that_leaves_while_its_prefix_is_read(tmp_path: Path) -> None:
    with model_on(tmp_path) as model:
        tokens_of(model.generate(PROMPT, max_tokens=1))
    for _ in range(5):
        with model_on(tmp_path) as model:
            executor = hold(model)
            model.generate([*PROMPT, 1]).close()
            executor.hold.set()
            assert len(tokens_of(model.generate([5, 5], max_tokens=3, **FOREVER))) == 3


def test_a_restore_that_does_not_fit_beside_the_plan_is_left(tmp_path: Path) -> None:
    with model_on(tmp_path) as model:
        tokens_of(model.generate(PROMPT, max_tokens=1))
    executor = FakeExecutor(encodes=True)
    size = prefix_file.file_bytes(700, executor.tail_bytes(700))  # of the largest file
    for spare, is_restored in ((size, True), (size - 1, False)):
        saver = PrefixSaver(PrefixStore(tmp_path), executor, binding={"model": "fake"}, spare_bytes=lambda n=spare: n)
        found = saver.begin_restore([*PROMPT, 1], "", above=0, max_tokens=4096)
        assert (found is not None) == is_restored


def test_two_models_on_one_store_at_once(tmp_path: Path) -> None:
    rng = random.Random(2)
    prompts = [[rng.randrange(3)] * rng.randrange(150, 600) + [rng.randrange(250)] for _ in range(25)]
    alone = []
    with make_model(context=4096) as model:
        alone = [tokens_of(model.generate(p, **OPTIONS)) for p in prompts]
    models = [model_on(tmp_path, cap_bytes=60_000) for _ in range(2)]
    results: list[list[list[int]]] = [[], []]

    def work(i: int) -> None:
        order = prompts if i == 0 else prompts[::-1]
        results[i] = [tokens_of(models[i].generate(p, **OPTIONS)) for p in order]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for model in models:
        model.close()
    assert results[0] == alone
    assert results[1] == alone[::-1]


# --- conversations ----------------------------------------------------------------------------------------------------


def text_of(generation) -> str:
    return "".join(piece.text for piece in generation)


def test_a_conversation_goes_on_after_a_restart(tmp_path: Path) -> None:
    question = {"role": "user", "content": "Tell me of the hearth. " * 10}
    with model_on(tmp_path) as model:
        prompt = model.encode_chat([question])
        executor_of(model).logits_of = scripted("It is warm.", len(prompt))
        answer = text_of(model.chat([question], session="fire", temperature=0))
        assert answer == "It is warm."
    with model_on(tmp_path) as model:
        messages = model.conversation("fire")
        assert messages == [question, {"role": "assistant", "content": answer}]
        more = model.chat([*messages, {"role": "user", "content": "More."}], session="fire", max_tokens=5, **FOREVER)
        text_of(more)
        assert more.usage.num_reused_tokens == len(prompt) + len(answer)
        assert len(model.conversation("fire")) == 4
        assert model.conversation("fire", owner="bob") == []
        assert model.conversation("another") == []


def test_a_stopped_answer_is_kept_as_far_as_it_came() -> None:
    with make_model() as model:
        generation = model.chat([{"role": "user", "content": "a"}], session="s", **FOREVER)
        text = next(generation).text + next(generation).text
        generation.close()
        assert model.conversation("s")[-1]["content"] == text


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", ".hidden", "x" * 65, "a\nb", "a\0b", 5])
def test_names_that_no_conversation_may_have(name) -> None:
    with make_model() as model, pytest.raises(UsageError, match="no name for a session"):
        model.chat([{"role": "user", "content": "a"}], session=name)


def test_conversations_are_listed_and_removed() -> None:
    store = ConversationStore()
    assert store.list() == []
    store.record("Ärger 1", "m", [{"role": "user", "content": "a"}])
    store.record("two", "m", [{"role": "user", "content": "b"}], owner="bob")
    assert [c.name for c in store.list()] == ["Ärger 1"]
    assert [c.name for c in store.list("bob")] == ["two"]
    [path] = (store.root / "local").glob("*.json")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    store.remove("Ärger 1")
    with pytest.raises(ModelNotFoundError, match="there is none"):
        store.remove("Ärger 1")


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"version": 99}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_conversation_is_one_clear_error(content: bytes) -> None:
    store = ConversationStore()
    store.record("s", "m", [{"role": "user", "content": "a"}])
    [path] = (store.root / "local").glob("*.json")
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match="remove the file"):
        store.load("s")
    assert store.list() == []


def test_a_flipped_bit_in_a_conversation_is_noticed() -> None:
    store = ConversationStore()
    messages = [{"role": "user", "content": "Is it 7 or 8?"}]
    store.record("s", "m", messages)
    [path] = (store.root / "local").glob("*.json")
    whole = path.read_bytes()
    num_refused = 0
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            found = store.load("s")
        except CorruptFileError:
            num_refused += 1
        else:
            assert found is not None
            assert found.messages == messages, "white space for other white space"
    assert num_refused > 8 * len(whole) * 0.9
