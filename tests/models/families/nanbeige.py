"""Nanbeige 4.1: the layers run twice, with the last norm between. transformers has no such class: llama.cpp is the
reference, and a plain Llama for one loop."""

from __future__ import annotations

from typing import Any

from family_cases import BASE, Family, Gguf


def _gguf_settings(w: Any, c: dict[str, Any]) -> None:
    w.add_uint32("nanbeige.num_loops", c["num_loops"])
    w.add_bool("nanbeige.skip_loop_final_norm", c["skip_loop_final_norm"])


FAMILY = Family(
    "nanbeige",
    tiny={**BASE, "num_loops": 2, "skip_loop_final_norm": False},
    golden=(4, [32, 52, 48, 67, 48, 39, 77, 69, 3, 24, 86, 43, 73, 9, 3, 35, 51, 25, 43, 43, 81, 57, 23, 77]),
    gguf=Gguf("LLAMA", architecture="nanbeige", permuted=True, settings=_gguf_settings),
    heading="layers 0-2, 0-2",
)
