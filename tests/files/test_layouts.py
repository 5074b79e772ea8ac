"""The table of layouts against the gguf package's numbers, and the lists that people read against the table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kamado.files.gguf_header import GGML_TYPES
from kamado.files.layouts import FILE_TYPES, Layout

gguf = pytest.importorskip("gguf")

ROOT = Path(__file__).parents[2]


def test_every_block_is_the_size_that_ggml_gives_it() -> None:
    known = {int(kind) for kind in gguf.GGMLQuantizationType}
    for layout in [layout for layout in Layout if int(layout) in known]:
        kind = gguf.GGMLQuantizationType(layout)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == GGML_TYPES[layout]


def test_file_types_are_named_as_llama_cpp_names_them() -> None:
    names = {int(kind): re.sub(r"^(MOSTLY|ALL)_", "", kind.name) for kind in gguf.LlamaFileType}
    for number, name in FILE_TYPES.items():
        assert names[number].removesuffix("_MOE") == name


@pytest.mark.parametrize("layout", [layout for layout in Layout if not layout.is_float])
def test_fields_lie_within_the_block_and_apart(layout: Layout) -> None:
    block = layout.block
    assert block.values in (32, 256)
    assert (block.scales is None) == (block.sub_blocks == 0) == (block.values == 32)
    taken: set[int] = set()
    spans = [(block.d, block.d_bytes), (block.dmin, 2), (block.scales, 1)]
    spans += [(codes[0], block.values * codes[1] // 8) for codes in (block.low, block.high) if codes is not None]
    for offset, count in spans:
        if offset is not None:
            field = set(range(offset, offset + count))
            assert not field & taken
            taken |= field
    assert max(taken) < block.nbytes
    assert len(taken) == block.nbytes or block.scales is not None  # all but the integer scales, of any form


@pytest.mark.parametrize("layout", [layout for layout in Layout if not layout.is_float])
def test_headers_of_tiles_are_whole_cache_lines(layout: Layout) -> None:
    block = layout.block
    assert block.header_bytes % 64 == 0
    assert block.group_blocks in (1, 2, 4)


def test_the_readme_lists_the_layouts() -> None:
    (listed,) = re.findall(r"^\| Layouts \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed.split()) == sorted(layout.name for layout in Layout)


def test_the_page_on_streaming_gives_every_layouts_size_in_a_tile() -> None:
    """`Tile ÷ file` of docs/streaming.md, for 2048 columns."""
    page = (ROOT / "docs" / "streaming.md").read_text()
    (names,) = re.findall(r"^\| Layout \| (.*) \|$", page, re.MULTILINE)
    (sizes,) = re.findall(r"^\| Tile ÷ file \| (.*) \|$", page, re.MULTILINE)
    stated = {
        name.strip(","): float(size)
        for group, size in zip(names.split(" | "), sizes.split(" | "), strict=True)
        for name in group.split()
    }
    assert stated.pop("floats") == 1
    for layout in Layout:
        if not layout.is_float:
            assert stated.pop(layout.name) == round(layout.packed_nbytes(16, 2048) / layout.nbytes(16 * 2048), 3)
    assert not stated
