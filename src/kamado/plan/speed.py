"""The least time that memory, arithmetic and the disk allow for a token: bounds on speed, from a machine's limits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .kv_pages import PAGE_TOKENS, KvLayer
from .machine import DeviceProfile


@dataclass(frozen=True, slots=True)
class Bound:
    """Tokens a second at most, and what limits them."""

    tokens_per_second: float | None
    limited_by: str | None


UNKNOWN: Final = Bound(None, None)


def decode_bound(profile: DeviceProfile, token_bytes: float, miss_bytes: float, disk_speed: float | None) -> Bound:
    """Of one token after the other: `token_bytes` of memory each, while `miss_bytes` are read from the disk."""
    return _slower("memory", token_bytes / profile.read_bytes_per_second, miss_bytes, disk_speed)


def prefill_bound(
    profile: DeviceProfile, ops: float, f32_ops: float, token_disk_bytes: float, disk_speed: float | None
) -> Bound:
    """Of the tokens of a prompt: `ops` of products each and `f32_ops` of scans, while their share of a step's experts
    is read."""
    seconds = ops / profile.int8_ops_per_second
    if profile.f32_ops_per_second:
        seconds += f32_ops / profile.f32_ops_per_second
    return _slower("arithmetic", seconds, token_disk_bytes, disk_speed)


def _slower(name: str, seconds: float, disk_bytes: float, disk_speed: float | None) -> Bound:
    """The bound of what takes longer: `seconds` of `name`, or the disk, where its speed is known."""
    disk_seconds = disk_bytes / disk_speed if disk_speed else 0.0
    return Bound(1 / disk_seconds, "disk") if disk_seconds > seconds else Bound(1 / seconds, name)


def kv_read_bytes(layers: Iterable[KvLayer], depth: float) -> float:
    """Bytes of the cache that a decoded token at `depth` reads: at most two pages as f16 where there are codes."""
    total = 0.0
    for layer in layers:
        exact_tokens = min(depth, layer.window or depth)
        if layer.code_bytes:
            exact_tokens = min(depth, 1.5 * PAGE_TOKENS)
            total += layer.code_bytes / PAGE_TOKENS * (depth - exact_tokens)
        total += layer.exact_bytes / PAGE_TOKENS * exact_tokens
    return total
