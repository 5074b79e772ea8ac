"""What sequences keep, at the native level: the book of pages, sources, records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from native_programs import dense, random_tokens, step

from kamado.lower import build_executor

OPTIONS: dict[str, Any] = {
    "num_threads": 2, "max_rows": 320, "max_logit_rows": 320, "max_kv_tokens": 1024, "max_sequences": 4, "kv": "f16",
}  # fmt: skip


# --- the book of pages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_bits", [None, [(4, 4), (0, 0), (4, 4)]])
def test_pages_are_counted_once_and_reserved_before_a_step(
    tmp_path: Path, kv_bits: list[tuple[int, int]] | None
) -> None:
    program = dense(tmp_path / "weights.bin", heads=2, kv_heads=1, head_dim=64)
    executor = build_executor(program, **OPTIONS, kv_bits=kv_bits, kv_reuse_points=4)
    assert executor.num_pages == executor.num_free_pages == 8
    first = executor.create_sequence()
    assert executor.reserve(first, 300)
    assert executor.num_free_pages == 5
    assert not executor.reserve(first, 1025)
    assert executor.num_free_pages == 5
    step(executor, [(first, random_tokens(260))])
    executor.mark_reuse(first)
    assert executor.num_free_pages == 5
    second = executor.fork_sequence(first, 260)
    assert (executor.num_free_pages, executor.count_pages([first, second])) == (4, 4)
    assert (executor.shared_pages(second, 0), executor.shared_pages(second, 2)) == (2, 0)
    assert executor.reserve(second, 640)
    assert executor.num_free_pages == 2
    executor.give_back(second)
    assert executor.num_free_pages == 4
    executor.truncate(second, 256)
    executor.free_sequence(first)
    assert (executor.count_pages([second]), executor.num_free_pages) == (2, 6)
    with pytest.raises(ValueError, match="not live"):
        executor.count_pages([first])
    for call in (executor.give_back, lambda s: executor.reserve(s, 1), lambda s: executor.shared_pages(s, 0)):
        with pytest.raises(ValueError, match="sequence"):
            call(first)
