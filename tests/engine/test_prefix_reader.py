"""Restoring a stored prefix piece by piece: little memory, what is damaged, who gives way, who leaves."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kamado.engine.cache import prefix_reader as restore_module
from kamado.engine.cache.prefix_reader import Sizes, _Reader
from kamado.engine.cache.prefix_saver import PrefixSaver
from kamado.engine.cache.prefix_store import PrefixFolder, PrefixStore
from kamado.engine.model import Model

from . import fakes
from .fakes import FOREVER, FakeExecutor, make_model
from .test_prefix_saver import OPTIONS, PROMPT, model_on
from .test_scheduler import executor_of, tokens_of, wait_for


@pytest.fixture(scope="module")
def expected() -> list[int]:
    with make_model(context=4096) as model:
        return tokens_of(model.generate([*PROMPT, 1, 2], **OPTIONS))


def store_prompt(root: Path, *prompts: list[int], encodes: bool = True) -> None:
    for prompt in prompts or (PROMPT,):
        with model_on(root, encodes=encodes) as model:
            tokens_of(model.generate(prompt, max_tokens=1))


def page_of(root: Path, index: int) -> Path:
    """The file of the prompt's page `index`; each page's first token is at the same place."""
    wanted = PROMPT[128 * index : 128 * index + 128]
    [found] = [
        p
        for p in root.glob("*/pages/*.kv")
        if p.read_bytes()[80:592] == b"".join(t.to_bytes(4, "little") for t in wanted)
    ]
    return found


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def answer(model: Model, tokens: list[int]) -> tuple[list[int], int]:
    generation = model.generate(tokens, **OPTIONS)
    return tokens_of(generation), generation.usage.num_reused_tokens


@pytest.mark.parametrize("encodes", [False, True])
def test_16k_tokens_are_restored_in_the_memory_of_two_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encodes: bool
) -> None:
    long = random.Random(9).choices(range(250), k=16_300)
    settings = {"context": 17_000, "max_rows": 4096}

    def model(saver: Callable[..., PrefixSaver] = PrefixSaver) -> Model:
        executor = FakeExecutor(encodes=encodes)
        monkeypatch.setattr(fakes, "PrefixSaver", saver)
        return make_model(executor, store=PrefixStore(tmp_path), **settings)

    with model() as loaded:
        tokens_of(loaded.generate(long, max_tokens=1))
    size = FakeExecutor().page_bytes()
    spare = Sizes(size, 2 * size).largest(16_300)
    assert spare < 16_300 * 5, "less than the tokens themselves and a page"
    most = 0
    must_wait = _Reader._must_wait

    def watch(self: _Reader) -> bool:
        nonlocal most
        most = max(most, self._held_bytes)
        return must_wait(self)

    monkeypatch.setattr(_Reader, "_must_wait", watch)
    with model(lambda *args, **more: PrefixSaver(*args, **more, spare_bytes=lambda: spare)) as loaded:
        generation = loaded.generate([*long, 1], max_tokens=1)
        tokens_of(generation)
        assert generation.usage.num_reused_tokens == 16_300
    assert 0 < most <= spare


@pytest.mark.parametrize("index", [0, 2, 3])
def test_an_exact_cache_keeps_the_pages_before_the_damaged_one(tmp_path: Path, expected: list[int], index: int) -> None:
    store_prompt(tmp_path, encodes=False)
    damage(page_of(tmp_path, index))
    with model_on(tmp_path, encodes=False) as model:
        assert answer(model, [*PROMPT, 1, 2]) == (expected, 128 * index)
        assert model._saver.stats.num_refused == 1
        assert executor_of(model).imports == {}


def test_an_exact_cache_keeps_all_pages_when_the_point_is_damaged(tmp_path: Path, expected: list[int]) -> None:
    store_prompt(tmp_path, encodes=False)
    [point] = tmp_path.glob("*/points/*.kv")
    damage(point)
    with model_on(tmp_path, encodes=False) as model:
        assert answer(model, [*PROMPT, 1, 2]) == (expected, 512), "four settled pages"


def test_a_shorter_point_before_the_damaged_page_is_used(tmp_path: Path, expected: list[int]) -> None:
    store_prompt(tmp_path, PROMPT[:300], PROMPT)
    damage(page_of(tmp_path, 3))
    with model_on(tmp_path) as model:
        assert answer(model, [*PROMPT, 1, 2]) == (expected, 300)
        assert len(executor_of(model).sequences) == 1, "what was begun before was given back"


class Gate:
    """Holds readers at the file that comes after `num_files` others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_files: int) -> None:
        self.is_open = threading.Event()
        self.is_reached = threading.Event()
        self._left = num_files
        self._lock = threading.Lock()
        read = PrefixFolder._read

        def gated(folder: PrefixFolder, *arguments):
            with self._lock:
                self._left -= 1
                must_wait = self._left < 0
            if must_wait:
                self.is_reached.set()
                assert self.is_open.wait(20)
            return read(folder, *arguments)

        monkeypatch.setattr(PrefixFolder, "_read", gated)


def test_others_go_on_while_a_prefix_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_prompt(tmp_path)
    gate = Gate(monkeypatch, 2)
    with model_on(tmp_path) as model:
        waiting = model.generate([*PROMPT, 1], max_tokens=1)
        assert gate.is_reached.wait(20)
        assert len(tokens_of(model.generate([5, 5], max_tokens=20, **FOREVER))) == 20
        assert model.stats.requests["waiting"] == 1
        gate.is_open.set()
        tokens_of(waiting)
        assert waiting.usage.num_reused_tokens == 700


def test_a_prefix_that_is_being_restored_gives_way_to_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: list[int]
) -> None:
    store_prompt(tmp_path)
    gate = Gate(monkeypatch, 2)
    with make_model(FakeExecutor(encodes=True), context=1024, store=PrefixStore(tmp_path)) as model:
        waiting = model.generate([*PROMPT, 1, 2], **OPTIONS)
        assert gate.is_reached.wait(20)
        assert len(tokens_of(model.generate([9] * 900, max_tokens=100, **FOREVER))) == 100, "all eight pages"
        gate.is_open.set()
        assert tokens_of(waiting) == expected
        assert waiting.usage.num_reused_tokens == 0
        assert executor_of(model).imports == {}


def test_a_request_that_leaves_gives_its_pages_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_prompt(tmp_path)
    gate = Gate(monkeypatch, 2)
    with model_on(tmp_path) as model:
        executor = executor_of(model)
        waiting = model.generate([*PROMPT, 1, 2], **OPTIONS)
        assert gate.is_reached.wait(20)
        assert executor.num_used_pages == 6
        waiting.close()
        wait_for(lambda: not executor.sequences)
        assert executor.num_used_pages == 0
        gate.is_open.set()
        assert len(tokens_of(model.generate([5, 5], max_tokens=3, **FOREVER))) == 3
        assert executor.num_imports == 0
    wait_for(lambda: not [t for t in threading.enumerate() if t.name == "kamado-restore"])


def test_closing_while_a_prefix_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_prompt(tmp_path)
    gate = Gate(monkeypatch, 2)
    model = model_on(tmp_path)
    waiting = model.generate([*PROMPT, 1, 2], **OPTIONS)
    assert gate.is_reached.wait(20)
    model.close()
    with pytest.raises(Exception, match="closed"):
        tokens_of(waiting)
    gate.is_open.set()
    wait_for(lambda: not [t for t in threading.enumerate() if t.name == "kamado-restore"])


def test_a_reader_that_dies_leaves_no_request_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: list[int]
) -> None:
    store_prompt(tmp_path)

    def fail(*arguments: object) -> None:
        raise MemoryError("no buffer")

    monkeypatch.setattr(PrefixFolder, "_read", fail)
    with model_on(tmp_path) as model:
        assert answer(model, [*PROMPT, 1, 2]) == (expected, 0)
        assert len(executor_of(model).sequences) == 1


def test_a_slice_that_is_full_lets_answers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restoring goes on at the next step without anything else to wake the scheduler."""
    store_prompt(tmp_path)
    monkeypatch.setattr(restore_module, "_SLICE_BYTES", 1)
    with model_on(tmp_path) as model:
        generation = model.generate([*PROMPT, 1], max_tokens=1)
        tokens_of(generation)
        assert generation.usage.num_reused_tokens == 700


def test_every_length_is_restored_to_its_last_token(tmp_path: Path) -> None:
    """Partial pages too: the next turn computes what is new, and nothing else."""
    rng = random.Random(4)
    for length in sorted({*range(250, 262), *(rng.randrange(130, 1200) for _ in range(12))}):
        tokens = [rng.randrange(250) for _ in range(length)]
        with model_on(tmp_path) as model:
            tokens += tokens_of(model.generate(tokens, max_tokens=9, **FOREVER))
        with model_on(tmp_path) as model:
            generation = model.generate([*tokens, 1, 2, 3], max_tokens=1)
            tokens_of(generation)
            assert generation.usage.num_reused_tokens == len(tokens) - 1, "the last token was picked, not computed"
            assert executor_of(model).num_rows == 4


@pytest.mark.parametrize("encodes", [False, True])
def test_a_flipped_bit_in_any_file_changes_no_answer(tmp_path: Path, expected: list[int], encodes: bool) -> None:
    store_prompt(tmp_path / "whole", PROMPT[:300], PROMPT, encodes=encodes)
    rng = random.Random(11)
    files = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file())
    assert len(files) >= 7
    seen = set()
    for i, name in enumerate(rng.choices(files, k=25)):
        root = tmp_path / str(i)
        shutil.copytree(tmp_path / "whole", root)
        data = bytearray((root / name).read_bytes() or b"\0")
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (root / name).write_bytes(data)
        with model_on(root, encodes=encodes) as model:
            tokens, num_reused = answer(model, [*PROMPT, 1, 2])
            assert tokens == expected, name
            seen.add(num_reused)
        with model_on(root, encodes=encodes) as model:
            assert answer(model, [*PROMPT, 1, 2])[0] == expected, name
            assert model._saver.stats.num_refused == 0, "it was removed"
    assert 700 in seen, "a bit of what people read, or of an entry that was not needed"
    assert len(seen) > 1
