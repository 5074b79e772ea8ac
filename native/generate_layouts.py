"""Writes kamado/layout_table.h from the rows of src/kamado/files/layouts.py; CMake runs it with the folder for it.

Nothing but the standard library is needed.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

_TABLE = Path(__file__).resolve().parents[1] / "src" / "kamado" / "files" / "layouts.py"


def header() -> str:
    """KAMADO_LAYOUTS(X): X(name, type id, block_values, block_bytes, {fields}, {tile}) for each, as in LayoutInfo."""
    lines = ["// Written by native/generate_layouts.py.", "#pragma once", "#define KAMADO_LAYOUTS(X) \\"]
    for layout in runpy.run_path(str(_TABLE))["Layout"]:
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
    folder = Path(sys.argv[1]) / "kamado"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "layout_table.h"
    if not path.exists() or path.read_text(encoding="utf-8") != header():  # else nothing is compiled anew
        path.write_text(header(), encoding="utf-8")
