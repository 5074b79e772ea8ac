"""How stored numbers are laid out: one row a layout, the only place where its numbers stand.

The native side has the same rows: `native/generate_layouts.py` writes them as a header whenever it is built. So this
module imports nothing but the standard library. How a new layout is added: docs/adding.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

TILE_ROWS = 16  # output rows that the linear kernels interleave in one tile
PLANE_BYTES = 4 * TILE_ROWS  # one 4-byte word of codes of each row


@dataclass(frozen=True, slots=True)
class Block:
    """Where the fields of one stored block lie, and what it takes in a packed tile (native/kernels/linear_tile.h).

    A value is d · code, and with integer scales d · scale · code; layouts with minimums then add m (32-value blocks)
    or subtract dmin · min (256-value blocks). Offsets are bytes from the block's start; None: it has no such field.
    """

    values: int
    nbytes: int
    file_types: tuple[int, ...] = ()  # `general.file_type` of such files; several: S, M, L
    d: int | None = None  # the scale; a float16 is its own
    d_bytes: int = 2  # of the scale: 2 a float16, 1 the exponent e of 2**(e - 128) (E8M0, halved: codes are doubled)
    dmin: int | None = None  # m or dmin, a float16
    scales: int | None = None  # integer scales (and minimums) of sub-blocks
    sub_blocks: int = 0  # that have an integer scale each
    low: tuple[int, int] | None = None  # (offset, bits a value) of the codes' low bits
    high: tuple[int, int] | None = None  # of their high bits
    header_bytes: int = 64  # of a tile: scales and minimums of all rows

    @property
    def group_blocks(self) -> int:
        """Blocks of a row that share a tile's header: as many as fill its 64 bytes with their scales and minimums."""
        if self.low is None or self.values == 256:
            return 1
        return self.header_bytes // (TILE_ROWS * (self.d_bytes + (0 if self.dmin is None else 2)))

    def planes(self, field: tuple[int, int] | None) -> int:
        """Planes that a field of codes takes in a tile."""
        return 0 if field is None else self.values * field[1] // 32


_BLOCKS: dict[int, Block] = {}  # by type id, filled by the rows below


def _row(type_id: int, block: Block) -> int:
    _BLOCKS[type_id] = block
    return type_id


class Layout(IntEnum):
    """How a tensor's numbers are stored: GGML's type id and block of each, as in llama.cpp's ggml-common.h."""

    F32 = _row(0, Block(1, 4, (0,)))
    F16 = _row(1, Block(1, 2, (1,), d=0))
    BF16 = _row(30, Block(1, 2, (32,)))
    Q4_0 = _row(2, Block(32, 18, (2,), d=0, low=(2, 4)))
    Q4_1 = _row(3, Block(32, 20, (3,), d=0, dmin=2, low=(4, 4)))
    Q5_0 = _row(6, Block(32, 22, (8,), d=0, high=(2, 1), low=(6, 4)))
    Q5_1 = _row(7, Block(32, 24, (9,), d=0, dmin=2, high=(4, 1), low=(8, 4)))
    Q8_0 = _row(8, Block(32, 34, (7,), d=0, low=(2, 8)))
    Q2_K = _row(10, Block(256, 84, (10,), d=80, dmin=82, scales=0, sub_blocks=16, low=(16, 2), header_bytes=320))
    Q3_K = _row(
        11, Block(256, 110, (11, 12, 13), d=108, scales=96, sub_blocks=16, high=(0, 1), low=(32, 2), header_bytes=320)
    )
    Q4_K = _row(12, Block(256, 144, (14, 15), d=0, dmin=2, scales=4, sub_blocks=8, low=(16, 4), header_bytes=320))
    Q5_K = _row(
        13, Block(256, 176, (16, 17), d=0, dmin=2, scales=4, sub_blocks=8, high=(16, 1), low=(48, 4), header_bytes=320)
    )
    Q6_K = _row(
        14, Block(256, 210, (18,), d=208, scales=192, sub_blocks=16, high=(128, 2), low=(0, 4), header_bytes=320)
    )
    IQ4_NL = _row(20, Block(32, 18, (25,), d=0, low=(2, 4)))
    IQ4_XS = _row(23, Block(256, 136, (30,), d=0, scales=4, sub_blocks=8, low=(8, 4), header_bytes=192))
    MXFP4 = _row(39, Block(32, 17, (38,), d=0, d_bytes=1, low=(1, 4)))

    @property
    def block(self) -> Block:
        """The layout's row."""
        return _BLOCKS[self]

    @property
    def block_values(self) -> int:
        """Values in one block: rows are a whole number of blocks."""
        return self.block.values

    def nbytes(self, num_values: int) -> int:
        """Bytes of `num_values` values, which must be a whole number of blocks."""
        if num_values % self.block_values:
            raise ValueError(f"{num_values} values are no whole number of {self.name} blocks of {self.block_values}")
        return num_values // self.block_values * self.block_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.block.nbytes

    @property
    def bits_per_value(self) -> float:
        """Stored bits a value, scales included."""
        return 8.0 * self.block_bytes / self.block_values

    @property
    def is_float(self) -> bool:
        """Whether values are floats as they are, not codes under a scale."""
        return self.block.low is None

    @property
    def scale_offsets(self) -> tuple[int, ...]:
        """Bytes of a block at which float16 scales lie; its values are linear in all of them together."""
        offsets = (self.block.d, self.block.dmin) if self.block.d_bytes == 2 else ()
        return tuple(offset for offset in offsets if offset is not None)

    def packed_nbytes(self, rows: int, cols: int) -> int:
        """Bytes of a matrix once it is packed into tiles of 16 rows."""
        tiles = -(-rows // TILE_ROWS)
        if self.is_float:
            return tiles * -(-self.nbytes(cols) * TILE_ROWS // PLANE_BYTES) * PLANE_BYTES
        block = self.block
        blocks = cols // block.values
        headers = -(-blocks // block.group_blocks) * block.header_bytes
        return tiles * (headers + blocks * (block.planes(block.low) + block.planes(block.high)) * PLANE_BYTES)


# `general.file_type` of GGUF -> its name. Mixtures of K layouts have three sizes.
FILE_TYPES: dict[int, str] = {
    number: layout.name if len(layout.block.file_types) == 1 else f"{layout.name}_{size}"
    for layout in Layout
    for number, size in zip(layout.block.file_types, "SML", strict=False)
}
