"""A machine from a file: every figure with its source, nothing unknown, nothing out of bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kamado.errors import UsageError
from kamado.files.toml_file import MAX_BYTES
from kamado.plan.device import MAX_CURVE_POINTS, MAX_NAME_LENGTH, MAX_SOURCE_LENGTH, Device, read_device
from kamado.plan.machine import DeviceProfile

PAGE = Path(__file__).parents[2] / "docs" / "plan-device.md"
DEVICES = Path(__file__).parents[2] / "benchmarks" / "devices"
FIGURES: dict[str, Any] = {
    "memory_bytes": 64 << 30,
    "threads": 8,
    "memory_bytes_per_second": 80e9,
    "int8_ops_per_second": 2e12,
    "disk_bytes_per_second": 7e9,
}


def text_of(figures: dict[str, Any], name: str = '"A machine"') -> str:
    """The file; a text is put down as it is."""
    lines = [f"name = {name}"] if name else []
    for key, value in figures.items():
        lines.append(f'{key} = {value if isinstance(value, str) else f"""{{ value = {value}, source = "test" }}"""}')
    return "\n".join(lines)


def read(folder: Path, text: str) -> Device:
    path = folder / "device.toml"
    path.write_text(text)
    return read_device(path)


def test_a_file_is_a_machine_with_its_sources(tmp_path: Path) -> None:
    device = read(tmp_path, text_of(FIGURES))
    assert (device.name, device.file) == ("A machine", tmp_path / "device.toml")
    here = device.machine
    assert (here.cpus, here.memory_bytes, here.memory_limited_by) == (8, 64 << 30, "A machine")
    assert here.usable_bytes == (64 << 30) - (2 << 30)  # a 32nd is left
    profile = device.profile
    assert profile is not None
    assert profile.read_bytes_per_second == 80e9
    assert (profile.int8_ops_per_second, profile.f32_ops_per_second) == (2e12, None)
    assert profile.disk_speed(1 << 20) == profile.disk_speed(1) == 7e9
    document: Any = device.to_dict()
    assert document["figures"]["threads"] == {"value": 8, "source": "test"}
    assert document["figures"].keys() == FIGURES.keys()


def test_the_example_of_the_page_and_the_profiles_of_the_benchmarks_are_whole(tmp_path: Path) -> None:
    example = PAGE.read_text().partition("```toml\n")[2].partition("```")[0]
    device = read(tmp_path, example)
    assert device.machine.usable_bytes == 60_000_000_000
    assert device.profile is not None
    assert len(device.profile.disk_curve) == 3
    assert set(DEVICES.glob("*.toml")) >= {DEVICES / "flash-moe.toml", DEVICES / "flash-moe-cold.toml"}
    for path in DEVICES.glob("*.toml"):
        stated = read_device(path)
        assert stated.machine.memory_bytes == 48 << 30
        assert stated.profile is not None
        # No peak of int8 is published: that of float32 stands for it.
        assert stated.profile.int8_ops_per_second == stated.profile.f32_ops_per_second == 14.2e12


def test_every_key_of_the_page_is_known_and_the_other_way_round(tmp_path: Path) -> None:
    rows = PAGE.read_text().partition("| Key | What |")[2].partition("\n\n")[0]
    listed = {row.split("`")[1] for row in rows.splitlines() if row.startswith("| `")}
    with pytest.raises(UsageError) as caught:
        read(tmp_path, "surprise = 1")
    assert listed == set(str(caught.value).rpartition("there are ")[2].split(", "))


def test_a_curve_is_read_at_the_size_of_a_read() -> None:
    curve = ((1000, 1e6), (3000, 1.5e6))  # 1 and 2 ms
    profile = DeviceProfile("m", 1, "", 1e9, 1e9, disk_curve=curve)
    assert profile.disk_speed(1000) == pytest.approx(1e6)
    assert profile.disk_speed(2000) == pytest.approx(2000 / 1.5e-3)
    assert profile.disk_speed(3000) == pytest.approx(1.5e6)
    assert profile.disk_speed(500) == pytest.approx(500 / 1e-3)
    assert profile.disk_speed(1 << 20) == pytest.approx(1.5e6)
    assert profile.disk_speed(0) is None  # nothing is read: nothing is said


CURVE = 'disk_curve = { points = %s, source = "test" }'


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory_bytes": None}, "memory_bytes missing: a figure is { value = …, source"),
        ({"memory_bytes": None, "threads": None}, "memory_bytes, threads missing"),
        ({"int8_ops_per_second": None}, "int8_ops_per_second or f32_ops_per_second is missing"),
        ({"memory": 1}, "there is no key 'memory'; there are name, memory_bytes, usable_bytes, threads,"),
        ({"x" * 500: 1}, "there is no key 'x{57}…'"),
        ({"threads": "8"}, 'threads must be { value = …, source = "…" }, not a number'),
        ({"threads": "{ value = 8 }"}, "threads.source is missing"),
        ({"threads": '{ source = "x" }'}, "threads.value is missing"),
        ({"threads": '{ value = 8, source = " " }'}, "threads.source must have 1 to"),
        ({"threads": "{ value = 8, source = 3 }"}, "threads.source must be a text, not a number"),
        ({"threads": '{ value = 8, source = "x", unit = "y" }'}, "threads has value and source, no 'unit'"),
        ({"threads": '{ value = true, source = "x" }'}, "threads.value must be a number, not a boolean"),
        ({"threads": '{ value = "8", source = "x" }'}, "threads.value must be a number, not a text"),
        ({"threads": '{ value = 2026-01-01, source = "x" }'}, "threads.value must be a number, not a date"),
        ({"threads": 8.5}, "threads.value must be a whole number"),
        ({"threads": 0}, "threads.value is out of range"),
        ({"memory_bytes": -1}, "memory_bytes.value is out of range"),
        ({"memory_bytes": 1 << 80}, "memory_bytes.value is out of range"),
        ({"usable_bytes": 65 << 30}, "usable_bytes is more than memory_bytes"),
        ({"memory_bytes_per_second": "{ value = nan, source = 'x' }"}, "memory_bytes_per_second.value is out of"),
        ({"memory_bytes_per_second": "{ value = inf, source = 'x' }"}, "memory_bytes_per_second.value is out of"),
        ({"disk_bytes_per_second": 0}, "disk_bytes_per_second.value is out of range"),
        ({"threads": f"{{ value = 8, source = '{'s' * (MAX_SOURCE_LENGTH + 1)}' }}"}, "threads.source must have 1 to"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    figures = {key: value for key, value in (FIGURES | change).items() if value is not None}
    with pytest.raises(UsageError, match=message.replace("{ ", r"\{ ").replace(" }", r" \}")) as caught:
        read(tmp_path, text_of(figures))
    assert str(caught.value).startswith(f"{tmp_path / 'device.toml'}: ")


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ("3", "disk_curve.points must be a list of 1 to"),
        ("[]", "disk_curve.points must be a list of 1 to"),
        (str([0] * (MAX_CURVE_POINTS + 1)), "disk_curve.points must be a list of 1 to"),
        ("[3]", r"disk_curve.points\[0\] must be \{ request_bytes"),
        ("[{ request_bytes = 4096 }]", r"disk_curve.points\[0\] must be"),
        ("[{ request_bytes = 4096, bytes_per_second = 1e9, x = 1 }]", r"disk_curve.points\[0\] must be"),
        ("[{ request_bytes = 4096, bytes_per_second = 0 }]", r"points\[0\].bytes_per_second is out of range"),
        ("[{ request_bytes = 1, bytes_per_second = 1e9 }]", r"points\[0\].request_bytes is out of range"),
        (
            "[{ request_bytes = 4096, bytes_per_second = 1e9 }, { request_bytes = 4096, bytes_per_second = 2e9 }]",
            r"points\[1\].request_bytes is not above the one before",
        ),
    ],
)
def test_a_curve_that_does_not_fit_is_refused_by_place(points: str, message: str, tmp_path: Path) -> None:
    figures = {key: value for key, value in FIGURES.items() if key != "disk_bytes_per_second"}
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text_of(figures) + "\n" + CURVE % points)


def test_one_disk_is_enough(tmp_path: Path) -> None:
    points = "[{ request_bytes = 4096, bytes_per_second = 1e9 }]"
    with pytest.raises(UsageError, match="disk_curve and disk_bytes_per_second: give one of them"):
        read(tmp_path, text_of(FIGURES) + "\n" + CURVE % points)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name is missing"),
        (text_of(FIGURES, name=""), "name is missing"),
        (text_of(FIGURES, name="3"), "name must be a text, not a number"),
        (text_of(FIGURES, name=f'"{"n" * (MAX_NAME_LENGTH + 1)}"'), "name must have 1 to"),
        ("name = ", "Invalid value"),
        ("threads = " + "9" * 5000, "device.toml: "),
        ("a = " + "[" * 5000, "device.toml: "),
        ("a = '" + "x" * MAX_BYTES + "'", "larger than 1 MiB"),
    ],
)
def test_what_is_no_profile_at_all(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read(tmp_path, text)


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="device.toml: "):
        read_device(tmp_path / "device.toml")
    with pytest.raises(UsageError, match="nothing.toml: No such file"):
        read_device(tmp_path / "nothing.toml")
    with pytest.raises(UsageError, match="Is a directory"):
        read_device(tmp_path)


def test_names_and_sources_have_no_lines(tmp_path: Path) -> None:
    text = text_of(FIGURES | {"threads": '{ value = 8, source = """a\n\tb""" }'}, name='"""A\nmachine"""')
    device = read(tmp_path, text)
    assert (device.name, device.figures["threads"].source) == ("A machine", "a b")
