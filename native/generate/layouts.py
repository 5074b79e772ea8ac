"""Writes KAMADO_LAYOUTS(X), the native side's copy of the rows in checkpoint/layouts.py: `layouts.py TABLE HEADER`."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def header(table: Path) -> str:
    """`X(name, type id, block_values, block_bytes, {fields}, {tile})` a layout, as LayoutInfo has them."""
    lines = [
        f"// Written by native/generate/layouts.py from {table.name}.",
        "#pragma once",
        "#define KAMADO_LAYOUTS(X) \\",
    ]
    for layout in runpy.run_path(str(table))["Layout"]:
        block = layout.block
        low, high = (None if codes is None else codes[0] for codes in (block.low, block.high))
        high_planes = block.planes(block.high)
        fields = _braces(
            d=block.d, dmin=block.dmin, scales=block.scales, high=high, low=low,
            d_bytes=block.d_bytes, sub_blocks=block.sub_blocks,
        )  # fmt: skip
        tile = _braces(
            group_blocks=block.group_blocks, header_bytes=block.header_bytes,
            planes=high_planes + block.planes(block.low), high_planes=high_planes,
        )  # fmt: skip
        lines.append(f"  X({layout.name}, {layout:d}, {block.values}, {block.nbytes}, {fields}, {tile}) \\")
    return "\n".join(lines) + "\n\n"


def _braces(**members: int | None) -> str:
    return f"{{{', '.join(f'.{name} = {-1 if number is None else number}' for name, number in members.items())}}}"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(header(Path(sys.argv[1])))
