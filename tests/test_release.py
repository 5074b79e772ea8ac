"""What a release says of itself, its packages' descriptions and the container's steps, on a wheel of a few bytes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from releasing import container, project, statements, trees, wheels
from releasing.project import ROOT, ReleaseError

ZIG = {"name": "zig", "version": "0.17.1"}
FILES = {"kamado/__init__.py": b"x = 1\n", "kamado/build.json": b"{}"}


def write_wheel(folder: Path, name: str = "", files: dict[str, bytes] = FILES) -> Path:
    path = folder / (name or f"kamado-{project.version()}-cp312-abi3-manylinux_2_28_x86_64.whl")
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for inner, content in files.items():
            archive.writestr(inner, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            rows.append(f"{inner},sha256={digest},{len(content)}\n")
        archive.writestr("kamado-0.dist-info/RECORD", "".join(rows) + "kamado-0.dist-info/RECORD,,\n")
    return path


def test_a_lock_is_read_whole() -> None:
    for name in ("core", "serve", "build"):
        pins = project.read_lock(name)
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        assert len(pins) == len(re.findall(r"^\S+==", text, re.MULTILINE))
        assert sum(len(pin.sha256) for pin in pins) == text.count("--hash=sha256:")
        assert all(pin.wanted_by for pin in pins)
    numpy = [pin for pin in project.read_lock("core") if pin.name == "numpy"]
    chosen = [[p.version for p in numpy if p.is_for(project.environment(v, "x86_64"))] for v in ("3.11", "3.13")]
    assert [len(versions) for versions in chosen] == [1, 1]
    assert chosen[0] != chosen[1]


def test_a_lock_without_a_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "core.txt").write_text("# made\nclick==8.5.1\n    # via kamado (pyproject.toml)\n")
    with pytest.raises(ReleaseError, match="pins no version and hash"):
        project.read_lock("core", tmp_path)


def test_the_bill_names_every_file_package_and_linked_library(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    locks = [project.read_lock(name) for name in ("core", "serve", "build")]
    bill = statements.bill_of_materials("9.9.9", [wheel], *locks, ZIG, 1_790_000_000)
    refs = [component["bom-ref"] for component in bill["components"]]
    assert len(refs) == len(set(refs))
    scopes = {component["name"]: component.get("scope") for component in bill["components"]}
    assert (scopes["numpy"], scopes["uvicorn"], scopes["nanobind"]) == ("required", "optional", "required")
    assert {"libc++", "libc++abi", "libunwind", "compiler-rt"} <= scopes.keys()
    assert "scikit-build-core" not in scopes
    (of_wheel,) = [component for component in bill["components"] if component["name"] == wheel.name]
    assert of_wheel["hashes"][0]["content"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
    inner = {c["name"]: c["hashes"][0]["content"] for c in of_wheel["components"]}
    assert inner == {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    on = {entry["ref"]: entry["dependsOn"] for entry in bill["dependencies"]}
    assert any(ref.startswith("pkg:pypi/jinja2@") for ref in on["pkg:pypi/kamado@9.9.9"])
    (jinja,) = [ref for ref in on if ref.startswith("pkg:pypi/jinja2@")]
    assert [ref.partition("@")[0] for ref in on[jinja]] == ["pkg:pypi/markupsafe"]
    assert bill == statements.bill_of_materials("9.9.9", [wheel], *locks, ZIG, 1_790_000_000)


def test_provenance_names_bytes_commit_and_builder(tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path)
    commit = "0123456789abcdef0123456789abcdef01234567"
    made = {"builder": "urn:kamado:by-hand", "run": "", "compiler": ZIG, "started": 0, "finished": 60, "tag": ""}
    lock = ROOT / "requirements" / "core.txt"
    said = statements.provenance([wheel], f"{commit}-dirty", repository="", locks=[lock], **made)
    assert (said["_type"], said["predicateType"]) == (
        "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1",
    )  # fmt: skip
    assert said["subject"] == [{"name": wheel.name, "digest": {"sha256": project.sha256(wheel)}}]
    source, locked = said["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source["digest"] == {"gitCommit": commit}
    assert "uri" not in source
    assert "changed" in source["annotations"]
    assert locked == {"name": "requirements/core.txt", "digest": {"sha256": project.sha256(lock)}}
    details = said["predicate"]["runDetails"]
    assert details["builder"]["id"] == "urn:kamado:by-hand"
    assert details["metadata"] == {"startedOn": "1970-01-01T00:00:00Z", "finishedOn": "1970-01-01T00:01:00Z"}
    tagged = statements.provenance(
        [wheel], commit, repository="https://example.org/k", locks=[], **{**made, "tag": "v9.9.9", "run": "r"}
    )
    (source,) = tagged["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert source == {
        "name": "source", "digest": {"gitCommit": commit}, "uri": "git+https://example.org/k@refs/tags/v9.9.9",
    }  # fmt: skip


def test_checksums_are_what_sha256sum_reads(tmp_path: Path) -> None:
    paths = [tmp_path / "b", tmp_path / "a"]
    for path in paths:
        path.write_bytes(path.name.encode())
    lines = statements.checksums(paths).splitlines()
    assert lines == [f"{hashlib.sha256(name.encode()).hexdigest()}  {name}" for name in ("a", "b")]


def changed_in(root: Path, changelog: str) -> Path:
    """A project of version 1.2.3 with that changelog."""
    (root / "pyproject.toml").write_text('[project]\nname = "kamado"\nversion = "1.2.3"\n')
    (root / "CHANGELOG.md").write_text(f"# Changelog\n\n{changelog}")
    return root


@pytest.mark.parametrize(
    ("changelog", "wrong"),
    [
        ("## 1.2.3 (2026-12-01)\n\n- new\n", None),
        ("## Unreleased\n\n## [1.2.3]\n", None),
        ("## 1.2.2\n", "CHANGELOG.md is 1.2.2"),
        ("## 1.2.33\n", "CHANGELOG.md is 1.2.33"),
        ("## 1.2.3 (no tag)\n", "no tag"),
        ("", "is nothing"),
        ("## Unreleased\n\n- new\n\n## 1.2.3\n", "under Unreleased"),
    ],
)
def test_tag_version_and_changelog_agree(changelog: str, wrong: str | None, tmp_path: Path) -> None:
    root = changed_in(tmp_path, changelog)
    if wrong is None:
        project.check_tag("v1.2.3", root)
    else:
        with pytest.raises(ReleaseError, match=re.escape(wrong)):
            project.check_tag("v1.2.3", root)


@pytest.mark.parametrize("tag", ["v1.2.4", "1.2.3"])
def test_a_tag_of_another_version_is_refused(tag: str, tmp_path: Path) -> None:
    root = changed_in(tmp_path, "## 1.2.3\n")
    with pytest.raises(ReleaseError, match=r"tag v1\.2\.3"):
        project.check_tag(tag, root)


@pytest.mark.parametrize(
    ("name", "files", "wrong"),
    [
        ("kamado-{}-cp312-abi3-linux_x86_64.whl", FILES, "not the name"),
        ("kamado-{}-cp312-abi3-manylinux_2_36_x86_64.whl", FILES, "not the name"),
        ("kamado-9.9-cp312-abi3-manylinux_2_28_x86_64.whl", FILES, "not the name"),
        ("kamado-{}-cp312-abi3-manylinux_2_28_x86_64.whl", FILES, "no module"),
        (
            "kamado-{}-cp312-abi3-manylinux_2_28_x86_64.whl",
            {"kamado/_native.cpython-313-x86_64-linux-gnu.so": b"", "kamado/build.json": b"{}"},
            "says cp312-abi3, but holds",
        ),
        ("kamado-{}-cp311-cp311-manylinux_2_28_x86_64.whl", {"kamado/_native.abi3.so": b""}, "no kamado/build.json"),
    ],
)
def test_a_wheel_that_is_not_what_it_says_is_refused(
    name: str, files: dict[str, bytes], wrong: str, tmp_path: Path
) -> None:
    with pytest.raises(ReleaseError, match=wrong):
        wheels.check_wheel(write_wheel(tmp_path, name.format(project.version()), files))


def fake_tree(folder: Path) -> Path:
    root = folder / "tree"
    (root / "usr" / "lib" / "kamado" / "lib").mkdir(parents=True)
    (root / "usr" / "lib" / "kamado" / "lib" / "a.py").write_text("x = 1\n")
    (root / "usr" / "bin").mkdir()
    (root / "usr" / "bin" / "kamado").symlink_to("../lib/kamado/bin/kamado")
    (root / "usr" / "share" / "man" / "man1").mkdir(parents=True)
    (root / "usr" / "share" / "man" / "man1" / "kamado.1.gz").write_bytes(b"")
    return root


def test_the_spec_lists_our_folder_and_every_other_file(tmp_path: Path) -> None:
    spec = trees.rpm_spec(fake_tree(tmp_path), "3.12")
    listed = spec.partition("%files\n")[2].split()
    assert listed == ["/usr/bin/kamado", "/usr/lib/kamado", "/usr/share/man/man1/kamado.1.gz*"]
    assert f"Version: {project.version()}\nRelease: 1+py312\n" in spec
    assert "Requires: /usr/bin/python3.12\n" in spec


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is missing")
def test_a_deb_is_read_by_dpkg(tmp_path: Path) -> None:
    path = trees.build_deb(fake_tree(tmp_path), "3.11", "aarch64", tmp_path)
    assert path.name == f"kamado_{project.version()}-1+py311_arm64.deb"
    shown = subprocess.run(["dpkg-deb", "--info", path], capture_output=True, text=True, check=True).stdout
    assert "Depends: python3.11, libc6 (>= 2.31)" in shown
    assert "Architecture: arm64" in shown
    files = subprocess.run(["dpkg-deb", "--contents", path], capture_output=True, text=True, check=True).stdout
    assert "./usr/bin/kamado -> ../lib/kamado/bin/kamado" in files
    assert {line.split()[1] for line in files.splitlines()} == {"root/root"}
    again = trees.build_deb(tmp_path / "tree", "3.11", "aarch64", tmp_path)
    assert project.sha256(again) == project.sha256(path)


def test_the_wheel_of_a_package_is_that_of_its_python(tmp_path: Path) -> None:
    stable = write_wheel(tmp_path)
    own = write_wheel(tmp_path, f"kamado-{project.version()}-cp311-cp311-manylinux_2_28_x86_64.whl")
    assert trees.wheel_for("3.11", "x86_64", tmp_path) == own
    assert trees.wheel_for("3.13", "x86_64", tmp_path) == stable
    with pytest.raises(ReleaseError, match="no cp312-abi3 wheel for aarch64"):
        trees.wheel_for("3.13", "aarch64", tmp_path)


def test_the_container_is_no_root_and_says_whether_it_works() -> None:
    build, last = container.read_stages((ROOT / "packaging" / "Containerfile").read_text())
    assert build.name == "build"
    assert build.base == last.base
    steps = dict(last.steps)
    assert steps["USER"] == "kamado"
    assert steps["VOLUME"] in [value.partition("=")[2] for word, value in last.steps if word == "ENV"]
    assert json.loads(steps["ENTRYPOINT"]) == ["kamado"]
    assert json.loads(steps["CMD"])[0] == "serve"
    words = json.loads(steps["HEALTHCHECK"].partition("CMD ")[2])
    assert f":{steps['EXPOSE']}/health" in words[2]
    compile(words[2], "health", "exec")
    order = [word for word, _ in last.steps]
    assert "RUN" not in order[order.index("USER") :]


@pytest.mark.parametrize("text", ["RUN true", "FROM a\nADD x y", 'FROM a\nSHELL ["x"]', "FROM a b c", "ARG X\nFROM a"])
def test_an_instruction_that_is_not_known_is_an_error(text: str) -> None:
    with pytest.raises(ReleaseError, match="cannot read"):
        container.read_stages(text)


def test_copy_takes_files_of_the_context_and_of_stages(tmp_path: Path) -> None:
    (tmp_path / "context" / "dist").mkdir(parents=True)
    (tmp_path / "context" / "dist" / "a.whl").write_text("a")
    (tmp_path / "base").mkdir()
    stages = container.read_stages(
        "ARG WHICH=base\nFROM ${WHICH} AS one\nCOPY dist/*.whl /in/\nENV A=b\n"
        "FROM ${WHICH}\nCOPY --from=one /in /out\nUSER u\nWORKDIR /w\n"
        "VOLUME /v\nEXPOSE 1\nCMD [\"c\"]\nENTRYPOINT [\"e\"]\n"
    )  # fmt: skip
    image = container.build(stages, tmp_path / "context", tmp_path / "work", lambda name: tmp_path / name)
    assert (image.root / "out" / "a.whl").read_text() == "a"
    assert not (image.root / "in").exists()
    assert (image.user, image.folder, image.volumes, image.ports, image.env) == ("u", "/w", ["/v"], ["1"], {})
    assert image.started("x")[-1].endswith("sh -c 'cd /w && exec e x'")
    missing = container.read_stages("FROM base\nCOPY no-such /x")
    with pytest.raises(ReleaseError, match="no-such is not in"):
        container.build(missing, tmp_path / "context", tmp_path / "work", lambda name: tmp_path / name)
