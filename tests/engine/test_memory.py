"""Sizes, what the machine allows, and the forecast, on hand-made trees of /proc and /sys."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kamado.errors import MemoryBudgetError, UsageError
from kamado.files.types import Checkpoint, Layout, TensorRef
from kamado.plan.budget import format_size, format_size_up, parse_size
from kamado.plan.forecast import plan
from kamado.plan.machine import (
    DeviceProfile,
    Machine,
    available_cpus,
    load_device_profile,
    machine,
    profile_path,
    save_device_profile,
)
from kamado.program import Attend, Buffer, Embed, Experts, Head, Linear, Norm, Program


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("6GiB", 6 << 30),
        ("6g", 6 << 30),
        ("6GB", 6_000_000_000),
        ("512 MiB", 512 << 20),
        ("1.5k", 1536),
        ("100", 100),
        (100, 100),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(text: str | int, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("bad", ["", "GiB", "-1GiB", "1e9", "6 cows", "0", 0, -5, "0.0001k", True, None, 1.5, "9" * 30])
def test_what_is_no_size(bad: object) -> None:
    with pytest.raises(UsageError):
        parse_size(bad)  # type: ignore[arg-type]


@given(st.integers(1, 1 << 60))
def test_a_formatted_size_reads_back_within_half_a_percent(size: int) -> None:
    assert abs(parse_size(format_size(size)) - size) <= size * 0.006


@given(st.integers(1, 1 << 50))
def test_a_size_rounded_up_is_enough(size: int) -> None:
    assert size <= parse_size(format_size_up(size)) <= size * 1.02 + 1


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal:       16777216 kB\nMemFree: 1 kB\n"}


def test_the_machine_without_limits(tmp_path: Path) -> None:
    found = machine(
        write(
            tmp_path,
            {
                **MEMINFO,
                "proc/cpuinfo": "model name\t: Some CPU\nflags\t\t: fma avx2 other avx512f\n\nmodel name\t: No\n",
                "sys/devices/system/cpu/cpu0/cache/index0/type": "Data\n",
                "sys/devices/system/cpu/cpu0/cache/index0/level": "1\n",
                "sys/devices/system/cpu/cpu0/cache/index0/size": "32K\n",
            },
        )
    )
    assert found.memory_bytes == found.memory_total_bytes == 16 << 30
    assert found.memory_limited_by == "machine"
    assert found.cpu_model == "Some CPU"
    assert found.cpu_features == ("avx2", "fma", "avx512f")
    assert found.cache_bytes == {"L1d": 32768}


def test_v2_the_least_of_all_enclosing_cgroups(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/memory.max": str(2 << 30),
            "sys/fs/cgroup/outer/cpu.max": "150000 100000",
            "sys/fs/cgroup/outer/inner/memory.max": "max",
            "sys/fs/cgroup/outer/inner/memory.high": str(3 << 30),
            "sys/fs/cgroup/outer/inner/cpu.max": "max 100000",
        },
    )
    found = machine(root)
    assert found.memory_bytes == 2 << 30
    assert found.memory_limited_by.endswith("outer")
    assert found.cpus == min(2, len(os.sched_getaffinity(0)))


def test_v1_with_a_path_of_the_host_that_is_not_there(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/../outside\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(1 << 30),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/unified/memory.max": str(4 << 30),
        },
    )
    assert machine(root).memory_bytes == 1 << 30
    assert available_cpus(root) == 1


def test_v1_no_limit_is_none(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            **MEMINFO,
            "proc/self/cgroup": "4:memory:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/cpu.cfs_quota_us": "-1",
        },
    )
    assert machine(root).memory_limited_by == "machine"


PROFILE = DeviceProfile("Some CPU", 2, "avx2", 30e9, 200e9, "2026-01-01T00:00:00Z")


def test_device_profiles_are_kept_by_processor_threads_and_tier() -> None:
    assert load_device_profile("Some CPU", 2, "avx2") is None
    other = DeviceProfile("Some CPU", 1, "avx2", 15e9, 100e9)
    save_device_profile(PROFILE)
    save_device_profile(other)
    newer = DeviceProfile("Some CPU", 2, "avx2", 31e9, 201e9)
    assert save_device_profile(newer) == profile_path()
    assert load_device_profile("Some CPU", 2, "avx2") == newer
    assert load_device_profile("Some CPU", 1, "avx2") == other
    assert load_device_profile("Some CPU", 2, "avx512") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 2, "profiles": []}',
        '{"version": 1, "profiles": [{"cpu_model": "x"}]}',
        '{"version": 1}',
    ],
)
def test_a_profile_that_cannot_be_read_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    path.write_text(text)
    assert load_device_profile("Some CPU", 2, "avx2", path) is None
    save_device_profile(PROFILE, path)
    assert load_device_profile("Some CPU", 2, "avx2", path) == PROFILE
    document = json.loads(path.read_text())
    document["profiles"][0]["int8_ops_per_second"] = -1
    path.write_text(json.dumps(document))
    assert load_device_profile("Some CPU", 2, "avx2", path) is None


def test_the_profile_lies_under_the_xdg_cache_without_kamado_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KAMADO_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert profile_path() == tmp_path / "kamado" / "device.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert profile_path() == tmp_path / ".cache" / "kamado" / "device.json"


def ref(name: str, *shape: int, layout: Layout = Layout.F16) -> TensorRef:
    values = 1
    for dim in shape:
        values *= dim
    return TensorRef(name, Path("m.gguf"), 0, layout.nbytes(values), shape, layout)


def make_program(num_experts: int = 0, context: int = 8192) -> Program:
    x, q, k, v, a = (Buffer(n, w) for n, w in (("x", 64), ("q", 64), ("k", 32), ("v", 32), ("a", 64)))
    table = ref("table", 1000, 64)
    ops = [
        Embed(x, table),
        Norm(x, x, ref("norm", 64, layout=Layout.F32)),
        Linear((q, k, v), x, (ref("q", 64, 64), ref("k", 32, 64), ref("v", 32, 64))),
        Attend(a, q, k, v, state=0, num_heads=4, num_kv_heads=2, head_dim=16, v_dim=16, scale=0.25),
        Head(x, table),
    ]
    if num_experts:
        g = tuple(ref(f"g{i}", 32, 64) for i in range(num_experts))
        d = tuple(ref(f"d{i}", 64, 32) for i in range(num_experts))
        ops.insert(4, Experts(x, x, Buffer("r", num_experts), g, g, d))
    return Program("test", tuple(ops), 1, 64, 1000, context, num_experts, 2 if num_experts else 0)


CHECKPOINT = Checkpoint(Path("m.gguf"), (Path("m.gguf"),), "gguf", "test", {}, {}, None, None)


def on(memory_bytes: int, cpus: int = 2) -> Machine:
    return Machine(cpus, cpus, memory_bytes, memory_bytes, "machine", "Some CPU", ())


def test_bytes_by_hand() -> None:
    made = plan(CHECKPOINT, make_program(), context=1000, kv="exact", on=on(1 << 34), max_rows=10, max_logit_rows=2)
    assert made.kv_bytes_per_token == 2 * (16 + 16) * 2
    assert made.kv_tokens == 1024
    assert made.bytes_by_owner["kv"] == 1024 * 128
    packed = 2 * 64 * (64 + 32 + 32 + 1008)  # 1000 rows in tiles of 16
    assert made.bytes_by_owner["weights"] == packed + 4 * 64  # and the norm
    assert made.bytes_by_owner["file_cache"] == (8 << 20) + 1000 * 128  # pages in passing, and the table's
    assert made.weight_bytes_per_token == 2 * 64 * (64 + 32 + 32 + 1000)
    assert made.ops_per_token == 2 * 64 * 1128
    assert made.peak_bytes == sum(made.bytes_by_owner.values())
    assert made.fits
    assert json.loads(json.dumps(made.to_dict()))["peak_bytes"] == made.peak_bytes


def test_a_token_reads_only_its_experts() -> None:
    dense, moe = (plan(CHECKPOINT, make_program(n), context=100, on=on(1 << 34)) for n in (0, 8))
    one_expert = 3 * 32 * 64 * 2
    assert moe.weight_bytes_per_token - dense.weight_bytes_per_token == 2 * one_expert
    assert moe.bytes_by_owner["weights"] == dense.bytes_by_owner["weights"]
    assert moe.bytes_by_owner["experts"] == 8 * one_expert


def test_speeds_only_with_a_profile() -> None:
    made = plan(CHECKPOINT, make_program(), context=100, on=on(1 << 34))
    assert made.decode_tokens_per_second is made.prefill_tokens_per_second is None
    made = plan(CHECKPOINT, make_program(), context=100, on=on(1 << 34), profile=PROFILE)
    assert made.decode_tokens_per_second == pytest.approx(30e9 / (144384 + 128 * 50))
    assert made.prefill_tokens_per_second == pytest.approx(200e9 / 144384)


def test_the_default_context_is_what_fits() -> None:
    program = make_program(context=8192)
    large = plan(CHECKPOINT, program, on=on(1 << 34))
    assert large.context == 4096
    less = plan(CHECKPOINT, program, on=on(1 << 34), memory=large.peak_bytes - 1)
    assert less.context == 4096
    assert less.max_rows < large.max_rows  # smaller steps are given up before context is
    assert less.fits
    assert less.memory_limited_by == "budget"
    less = plan(CHECKPOINT, program, on=on(1 << 34), memory=large.least_bytes + (100 << 10))
    assert 256 <= less.context < 4096
    none = plan(CHECKPOINT, program, on=on(1 << 20))
    assert (none.context, none.fits) == (4096, False)


def test_a_budget_that_is_too_small_names_the_least() -> None:
    program = make_program()
    whole = plan(CHECKPOINT, program, context=4096, on=on(1 << 34))
    between = whole.shortest_bytes + (100 << 10)  # 4096 tokens take 480 KiB more than 256 do
    made = plan(CHECKPOINT, program, context=4096, on=on(1 << 34), memory=between)
    with pytest.raises(
        MemoryBudgetError, match=r"needs .* weights .* kv .*the budget is .* MiB: .*smaller context than 4096"
    ):
        made.require_fit()
    tight = plan(CHECKPOINT, program, context=4096, on=on(1 << 20))
    with pytest.raises(
        MemoryBudgetError, match=r"this machine has 1\.00 MiB to give: the least that works is .* 4096 tokens, .* 256"
    ):
        tight.require_fit()
    assert plan(CHECKPOINT, program, context=4096, on=on(1 << 34), memory=tight.least_bytes).fits
    exact = plan(CHECKPOINT, program, context=256, on=on(1 << 34), memory=tight.shortest_bytes)
    exact.require_fit()


@pytest.mark.parametrize("context", [1, 0, -4, 8193, True])
def test_contexts_out_of_range(context: int) -> None:
    with pytest.raises(UsageError, match="from 2 to 8192"):
        plan(CHECKPOINT, make_program(), context=context, on=on(1 << 34))
