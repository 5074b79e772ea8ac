"""One file of the prefix store: a page of the KV cache, or a reuse point. What a file must look like to be believed.

    offset  bytes  field
    0       8      magic "KAMADOKV"
    8       4      format version
    12      4      kind: 1 a page, 2 a point
    16      4      num_tokens
    20      4      label bytes (a point may belong to a named session)
    24      8      payload bytes
    32      16     binding: digest of model, build, preset and owner
    48      16     key: digest of the binding and of all tokens from the first to the file's last
    64      16     checksum: blake2b of the fields above, tokens, label, and XXH64 of the payload
    80             int32 tokens[num_tokens], label, payload

Numbers are little-endian. A page holds its own 128 tokens, a point all tokens up to itself, so that a reader compares
tokens and not only digests. The checksum finds damage, and who may write these files could compute any other as well:
so nothing slower than XXH64 is spent on the payload. It checks about 10 GB a second, blake2b one.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ... import _native
from ...errors import KamadoError
from ...files.page_cache import forget_open
from ...plan.kv_pages import PAGE_TOKENS

VERSION = 2
PAGE, POINT = 1, 2
MAX_LABEL_BYTES = 128
DIGEST_BYTES = 16

_MAGIC = b"KAMADOKV"
_HEADER = struct.Struct("<8sIIIIQ16s16s16s")
_CHECKSUM_AT = 64
MAX_TOKENS = 1 << 24
MAX_PAYLOAD_BYTES = 1 << 32

Buffer = bytes | bytearray | memoryview


class DamagedPrefixError(KamadoError):
    """A file of the prefix store is not what it should be. It is removed and its tokens are computed again."""


@dataclass(frozen=True, slots=True)
class PrefixFile:
    """A file that was read and checked."""

    kind: int
    binding: bytes
    key: bytes
    tokens: bytes  # little-endian int32
    label: str
    payload: memoryview  # uint8


def token_bytes(tokens: Sequence[int]) -> bytes:
    """The tokens as little-endian int32."""
    return np.asarray(tokens, "<i4").tobytes()


def digest(*parts: Buffer) -> bytes:
    """16 bytes of blake2b over `parts` end to end."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        state.update(part)
    return state.digest()


def chain(binding: bytes, tokens: bytes) -> list[bytes]:
    """The keys of all full pages of `tokens`; each depends on the one before. 1 ms for 64k tokens."""
    size = 4 * PAGE_TOKENS
    keys = []
    key = binding
    for begin in range(0, len(tokens) - size + 1, size):
        key = digest(key, tokens[begin : begin + size])
        keys.append(key)
    return keys


def settled_pages(num_tokens: int) -> int:
    """Pages of a prefix that are stored as pages: all full ones but the last, which a point keeps exactly."""
    return max(0, num_tokens // PAGE_TOKENS - 1)


def point_key(binding: bytes, keys: Sequence[bytes], tokens: bytes) -> bytes:
    """The key of the reuse point after `tokens`; `keys` are those of its full pages, as `chain` gives them."""
    count = settled_pages(len(tokens) // 4)
    return digest(keys[count - 1] if count else binding, b"point", tokens[4 * PAGE_TOKENS * count :])


def file_bytes(num_tokens: int, payload_bytes: int) -> int:
    """Bytes of a file without a label."""
    return _HEADER.size + 4 * num_tokens + payload_bytes


def pack(kind: int, binding: bytes, key: bytes, tokens: bytes, payload: Buffer, label: str = "") -> list[Buffer]:
    """The parts of a file, to be written end to end. `payload` is not copied."""
    name = label.encode()
    assert len(name) <= MAX_LABEL_BYTES
    fields = (_MAGIC, VERSION, kind, len(tokens) // 4, len(name), len(payload), binding, key)
    checksum = _checksum(_HEADER.pack(*fields, b"")[:_CHECKSUM_AT], tokens, name, payload)
    return [_HEADER.pack(*fields, checksum), tokens, name, payload]


def read(
    path: Path,
    kind: int,
    binding: bytes,
    *,
    max_bytes: int,
    buffer: bytearray | None = None,
    keeps_cached: bool = True,
) -> PrefixFile:
    """What `path` holds, checked to the last bit. Raises DamagedPrefixError when it is anything else, a file larger
    than `max_bytes` included, and OSError.

    `buffer` is read into when the file fits, and the payload is a view of it. Without `keeps_cached`, what reading left
    in the page cache is dropped."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if not _HEADER.size <= size <= max_bytes:
            raise DamagedPrefixError(f"{path}: {size} bytes are no record's size")
        view = memoryview(buffer if buffer is not None and len(buffer) >= size else bytearray(size))[:size]
        done = 0
        while done < size:
            count = file.readinto(view[done:])
            if not count:
                raise DamagedPrefixError(f"{path}: it was cut short while it was read")
            done += count
        if not keeps_cached:
            forget_open(file.fileno())
    return _parse(path, view.toreadonly(), kind, binding)


def read_head(path: Path, kind: int, binding: bytes) -> tuple[bytes, bytes, str]:
    """Key, tokens and label of the file, without its payload, so unchecked by the checksum."""
    with open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # read-ahead would cache payloads
        size = os.fstat(file.fileno()).st_size
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            raise DamagedPrefixError(f"{path}: too short")
        num_tokens, label_bytes = _check_header(path, head, size, kind, binding)
        rest = file.read(4 * num_tokens + label_bytes)
    if len(rest) < 4 * num_tokens + label_bytes:
        raise DamagedPrefixError(f"{path}: too short")
    return head[48:64], rest[: 4 * num_tokens], rest[4 * num_tokens :].decode("utf-8", "replace")


def _checksum(fields: Buffer, tokens: Buffer, label: Buffer, payload: Buffer) -> bytes:
    return digest(fields, tokens, label, _native.xxh64(payload).to_bytes(8, "little"))


def _check_header(path: Path, head: Buffer, size: int, kind: int, binding: bytes) -> tuple[int, int]:
    magic, version, its_kind, num_tokens, label_bytes, payload_bytes, its_binding, _, _ = _HEADER.unpack(head)
    if magic != _MAGIC or version != VERSION or its_kind != kind:
        raise DamagedPrefixError(f"{path}: no record of kind {kind}, version {VERSION}")
    if its_binding != binding:
        raise DamagedPrefixError(f"{path}: made by another model, build, preset or owner")
    if num_tokens > MAX_TOKENS or label_bytes > MAX_LABEL_BYTES or payload_bytes > MAX_PAYLOAD_BYTES:
        raise DamagedPrefixError(f"{path}: impossible sizes")
    if _HEADER.size + 4 * num_tokens + label_bytes + payload_bytes != size:
        raise DamagedPrefixError(f"{path}: {size} bytes do not agree with its header")
    return num_tokens, label_bytes


def _parse(path: Path, data: memoryview, kind: int, binding: bytes) -> PrefixFile:
    num_tokens, label_bytes = _check_header(path, data[: _HEADER.size], len(data), kind, binding)
    label_at = _HEADER.size + 4 * num_tokens
    payload_at = label_at + label_bytes
    checksum = _checksum(
        data[:_CHECKSUM_AT], data[_HEADER.size : label_at], data[label_at:payload_at], data[payload_at:]
    )
    if checksum != data[_CHECKSUM_AT : _HEADER.size]:
        raise DamagedPrefixError(f"{path}: the checksum is wrong")
    return PrefixFile(
        kind,
        binding,
        bytes(data[48:64]),
        bytes(data[_HEADER.size : label_at]),
        bytes(data[label_at:payload_at]).decode("utf-8", "replace"),
        data[payload_at:],
    )
