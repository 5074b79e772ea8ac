"""What this machine is: processors we may use, bytes we may use, and its limits once they were measured."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from ..files.atomic import user_folder, write_atomically

# cgroup v1 writes "no limit" as the largest multiple of the page size: nothing near it is a limit.
_NO_LIMIT = 1 << 60
_PROFILE_VERSION = 1
_LEAST_MARGIN_BYTES = 16 << 20
_LIMIT_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as this process may use it."""

    cpus: int  # processors by affinity and cgroup quota: what `threads` is by default
    cpus_online: int  # processors of the machine
    memory_bytes: int  # the least over MemTotal and every enclosing cgroup
    memory_total_bytes: int  # MemTotal
    memory_limited_by: str  # "machine", or the cgroup's path
    cpu_model: str
    cpu_features: tuple[str, ...]  # of those that kernels use
    cache_bytes: dict[str, int] = field(default_factory=dict)  # "L1d", "L2", "L3": one instance of each
    system: str = ""  # "Linux 6.1 x86_64"
    tier: str | None = None  # the kernel tier in use; None when the native module is not there
    # What a model may take by default: the least over machine and cgroups of what others leave, less a margin. 0 when
    # that could not be read.
    usable_bytes: int = 0


_FEATURES = ("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16")
_FEATURES_OTHER = ("amx_tile", "amx_int8", "asimd", "asimddp", "i8mm", "sve", "bf16")


def machine(root: Path = Path("/")) -> Machine:
    """Looks the machine over. `root` is where /proc and /sys are found, for tests."""
    info = _cpuinfo(root)
    total_bytes = _memory_total_bytes(root)
    limit_bytes, limited_by = least_cgroup_limit(root)
    if limit_bytes >= total_bytes:
        limit_bytes, limited_by = total_bytes, "machine"
    known = set(info.get("flags", info.get("Features", "")).split())
    return Machine(
        cpus=available_cpus(root),
        cpus_online=os.cpu_count() or 1,
        memory_bytes=limit_bytes,
        memory_total_bytes=total_bytes,
        memory_limited_by=limited_by,
        cpu_model=info.get("model name") or info.get("Processor") or platform.processor() or platform.machine(),
        cpu_features=tuple(f for f in (*_FEATURES, *_FEATURES_OTHER) if f in known),
        cache_bytes=_cache_bytes(root),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        tier=_active_tier(),
        usable_bytes=usable_bytes(root),
    )


def available_cpus(root: Path = Path("/")) -> int:
    """Processors this process may use at once: affinity, then every enclosing cgroup's quota rounded up; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for directory in _cgroup_directories(root, "cpu"):
        quota, period = _quota(directory)
        if quota > 0 and period > 0:
            cpus = min(cpus, math.ceil(quota / period))
    return max(1, cpus)


def _quota(directory: Path) -> tuple[int, int]:
    """(quota, period) in microseconds of one cgroup; a quota of 0 means no limit."""
    v2 = _read(directory / "cpu.max").split()
    if len(v2) == 2:
        return _as_int(v2[0], 0), _as_int(v2[1], 0)
    return max(0, _as_int(_read(directory / "cpu.cfs_quota_us"), 0)), _as_int(_read(directory / "cpu.cfs_period_us"), 0)


def least_cgroup_limit(root: Path) -> tuple[int, str]:
    """The least memory limit over all enclosing cgroups, v1 and v2, and the cgroup that sets it."""
    least, path = _NO_LIMIT, ""
    for directory in _cgroup_directories(root, "memory"):
        for name in _LIMIT_FILES:
            limit = _as_int(_read(directory / name), _NO_LIMIT)
            if 0 < limit < least:
                least, path = limit, str(directory)
    return least, path


def innermost_memory_cgroup(root: Path = Path("/")) -> Path | None:
    """The directory of the memory cgroup this process is in, as far as it can be seen."""
    return next(_cgroup_directories(root, "memory"), None)


def usable_bytes(root: Path = Path("/")) -> int:
    """What this process may take without anyone being pushed out: the least over the machine and every enclosing cgroup
    of limit - what others hold and cannot give back - margin. Cached file pages count as free, our own memory too. 0
    when that cannot be read."""
    total_bytes = _memory_total_bytes(root)
    status = kib_fields(root / "proc/self/status")
    own = status.get("VmRSS", 0) - status.get("RssFile", 0)  # mapped file pages are among the cached ones
    available = kib_fields(root / "proc/meminfo").get("MemAvailable", 0)
    if not available:
        return 0
    least = min(total_bytes, available + own) - margin_bytes(total_bytes)
    for directory in _cgroup_directories(root, "memory"):
        limits = (_as_int(_read(directory / name), 0) for name in _LIMIT_FILES)
        limit = min((n for n in limits if n > 0), default=_NO_LIMIT)
        if limit >= total_bytes:
            continue
        used = cgroup_number(directory, "memory.current", "memory.usage_in_bytes") or 0
        stat = cgroup_stat(directory)
        prefix = "total_" if "total_inactive_file" in stat else ""  # v1, children included
        cached = sum(stat.get(f"{prefix}{name}_file", 0) for name in ("active", "inactive"))
        least = min(least, limit - max(0, used - cached - own) - margin_bytes(limit))
    return max(1, least)


def cgroup_number(directory: Path, *names: str) -> int | None:
    """What the first of these files holds that can be read (v2's name, v1's)."""
    for name in names:
        number = _as_int(_read(directory / name), -1)
        if number >= 0:
            return number
    return None


def cgroup_stat(directory: Path) -> dict[str, int]:
    """The fields of memory.stat; empty where it cannot be read."""
    pairs = (line.split(None, 1) for line in _read(directory / "memory.stat").splitlines() if " " in line)
    return {name: _as_int(value, 0) for name, value in pairs}


def margin_bytes(limit_bytes: int) -> int:
    """Of a limit, what is left to the kernel's own pages and to what grows beside us."""
    return max(_LEAST_MARGIN_BYTES, limit_bytes // 32)


def kib_fields(path: Path) -> dict[str, int]:
    """Bytes of the "Name:  123 kB" lines of /proc/meminfo or /proc/self/status."""
    fields: dict[str, int] = {}
    for line in _read(path).splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            fields[name] = _as_int(words[0], 0) * 1024
    return fields


def _cgroup_directories(root: Path, controller: str) -> Iterator[Path]:
    """Directories of every cgroup that encloses this process for a controller, innermost first.

    Inside a container the path in /proc/self/cgroup may be the host's and not exist below the mount; the mount's root
    is then the container's own cgroup, so ancestors are tried up to and with the root.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, cgroup_path = rest.partition(":")
        names = controllers.split(",")
        if hierarchy == "0" and controllers == "":
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif controller in names:
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        relative = Path(cgroup_path.strip().lstrip("/"))
        if ".." in relative.parts:  # a cgroup outside our namespace: only the mount's root can be read
            relative = Path()
        for mount in mounts:
            if mount.is_dir():
                yield from (mount / part for part in (relative, *relative.parents) if (mount / part).is_dir())
                break


def _memory_total_bytes(root: Path) -> int:
    total_bytes = kib_fields(root / "proc/meminfo").get("MemTotal", 0)
    if total_bytes:
        return total_bytes
    if hasattr(os, "sysconf"):  # not on Windows
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _NO_LIMIT


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    block = _read(root / "proc/cpuinfo").split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cache_bytes(root: Path) -> dict[str, int]:
    caches: dict[str, int] = {}
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = (_read(index / name).strip() for name in ("type", "level", "size"))
        if kind != "Instruction" and size.endswith("K"):
            caches[f"L{level}d" if level == "1" else f"L{level}"] = _as_int(size[:-1], 0) * 1024
    return caches


def kernel_tiers() -> tuple[str, ...]:
    """Tiers that this processor can run, slowest first; empty when the native module is not built."""
    try:
        from .. import _native
    except ImportError:
        return ()
    return tuple(_native.tiers())


def _active_tier() -> str | None:
    try:
        from .. import _native
    except ImportError:
        return None
    return _native.active_tier()


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _as_int(text: str, default: int) -> int:
    try:
        return int(text.strip())
    except ValueError:
        return default


# (bytes of a read, bytes a second of such reads), by rising size
DiskCurve = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """A machine's limits: as `kamado bench --limits` measured this one, for one processor, thread count and tier, or as
    a file states them (device.py)."""

    cpu_model: str
    num_threads: int
    tier: str
    read_bytes_per_second: float  # sequential reads, all threads together
    int8_ops_per_second: float  # two operations a product, from L1
    measured_at: str = ""  # UTC, ISO 8601
    f32_ops_per_second: float | None = None  # multiply-adds in registers, two operations each
    disk_bytes_per_second: float | None = None  # reads of about 1 MiB at random places of a model's file
    disk_curve: DiskCurve = ()  # of stated machines, in the place of the figure above

    def disk_speed(self, request_bytes: int) -> float | None:
        """Bytes a second of reads of that size, several at once; None when the disk is not known.

        Between two points of the curve the time of a read grows evenly with its size. A smaller read than the first
        takes as long as that one; a larger one than the last is as fast.
        """
        if not self.disk_curve or request_bytes <= 0:
            return self.disk_bytes_per_second
        small_bytes, small_rate = self.disk_curve[0]
        if request_bytes <= small_bytes:
            return request_bytes / small_bytes * small_rate
        for large_bytes, large_rate in self.disk_curve[1:]:
            if request_bytes <= large_bytes:
                part = (request_bytes - small_bytes) / (large_bytes - small_bytes)
                begin, end = small_bytes / small_rate, large_bytes / large_rate
                return request_bytes / (begin + part * (end - begin))
            small_bytes, small_rate = large_bytes, large_rate
        return small_rate


def profile_path() -> Path:
    """Where the device profile lies: under KAMADO_HOME when set, else $XDG_CACHE_HOME/kamado or ~/.cache/kamado."""
    return user_folder("cache", "device.json")


def measure_device(num_threads: int, *, megabytes: int = 512, seconds: float = 1.0) -> DeviceProfile:
    """Measures this machine's limits; takes about twice `seconds` and `megabytes` of memory."""
    from .. import _native

    return DeviceProfile(
        cpu_model=machine().cpu_model,
        num_threads=num_threads,
        tier=_native.active_tier(),
        read_bytes_per_second=_native.measure_bandwidth(num_threads, megabytes, seconds),
        int8_ops_per_second=_native.measure_int8(num_threads, seconds),
        f32_ops_per_second=_native.measure_f32(num_threads, min(seconds, 0.5)),
        measured_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def save_device_profile(profile: DeviceProfile, path: Path | None = None) -> Path:
    """Writes the profile (atomically) and returns where. One profile is kept per number of threads."""
    path = path or profile_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = [p for p in _load_all(path) if (p.cpu_model, p.num_threads, p.tier) != _key(profile)]
    document = {"version": _PROFILE_VERSION, "profiles": [asdict(p) for p in [*kept, profile]]}
    write_atomically(path, json.dumps(document, indent=2), "\n")
    return path


def load_device_profile(
    cpu_model: str, num_threads: int, tier: str | None, path: Path | None = None
) -> DeviceProfile | None:
    """The profile measured for this processor, thread count and tier; None when there is none or it cannot be read."""
    for profile in _load_all(path or profile_path()):
        if _key(profile) == (cpu_model, num_threads, tier):
            return profile
    return None


def why_no_profile(here: Machine, num_threads: int, path: Path | None = None) -> str:
    """Why `load_device_profile` has none for this machine and so many threads: what was measured, and what to run."""
    measured = _load_all(path or profile_path())
    same = [profile for profile in measured if profile.cpu_model == here.cpu_model]
    usual = [profile for profile in same if profile.tier == here.tier]
    todo = "kamado bench --limits" + ("" if num_threads == here.cpus else f" -j {num_threads}")
    wanted = f"{num_threads} thread{'' if num_threads == 1 else 's'}"
    if usual:
        counts = sorted({profile.num_threads for profile in usual})
        had = f"{' and '.join(map(str, counts))} thread{'' if counts == [1] else 's'}"
        return f"measured with {had}, not with {wanted}: {todo}"
    if same:
        tiers = ", ".join(sorted({profile.tier for profile in same}))
        return f"measured with the tier {tiers}, not with {here.tier}, which is in use: {todo}"
    if measured:
        return f"measured on another processor ({measured[-1].cpu_model}): {todo}"
    return f"not measured yet: {todo}"


def _key(profile: DeviceProfile) -> tuple[str, int, str]:
    return profile.cpu_model, profile.num_threads, profile.tier


def _load_all(path: Path) -> list[DeviceProfile]:
    try:
        document = json.loads(path.read_text())
        if document["version"] != _PROFILE_VERSION:
            return []
        names = {f.name for f in fields(DeviceProfile)} - {"disk_curve"}
        profiles = [DeviceProfile(**{k: v for k, v in p.items() if k in names}) for p in document["profiles"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # a cache: what cannot be read is measured again
    return [p for p in profiles if _is_plausible(p)]


def _is_plausible(profile: DeviceProfile) -> bool:
    rates: tuple[object, ...] = (profile.read_bytes_per_second, profile.int8_ops_per_second)
    return all(isinstance(rate, (int, float)) and rate > 0 and math.isfinite(rate) for rate in rates)
