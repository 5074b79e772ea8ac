"""Pulling from a hub: a small server that speaks as much of the protocol as huggingface_hub needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from files.builders import f32_entry, safetensors_bytes, write_gguf

from kamado.errors import DownloadError, KamadoError, ModelNotFoundError, UnsupportedError, UsageError
from kamado.files import open_checkpoint
from kamado.library.hub import HubName, choose, parse_name
from kamado.library.hub_api import RemoteFile
from kamado.library.pull import pull
from kamado.library.store import Store

from .servers import COMMITS, Hub, Reply


def _remote(path: str, nbytes: int = 1) -> RemoteFile:
    return RemoteFile(path, nbytes, None, None)


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    return write_gguf(tmp_path / "made.gguf", {"filler": "x" * 5000}).read_bytes()


def test_the_quant_that_was_asked_for(hub: Hub, store: Store, model: bytes) -> None:
    hub.publish({"m-Q4_K_M.gguf": model, "m-Q8_0.gguf": model + b"8", "mmproj-F16.gguf": b"x", "README.md": b"hi"})
    seen: list[tuple[int, int]] = []
    path = pull("hf:owner/repo", store, progress=lambda done, total: seen.append((done, total)))
    assert path.name == "m-Q4_K_M.gguf"
    assert open_checkpoint(path).architecture == "llama"
    assert seen[-1] == (len(model), len(model))
    assert pull("hf:owner/repo:q8_0", store).name == "m-Q8_0.gguf"
    assert pull("hf:owner/repo", store, quant="Q8_0").name == "m-Q8_0.gguf"
    assert {entry.name for entry in store.list()} == {"hf:owner/repo", "hf:owner/repo:q8_0", "hf:owner/repo:Q8_0"}
    entry = store.get("hf:owner/repo")
    assert entry is not None
    assert entry.source == {"kind": "hub", "repo": "owner/repo", "revision": "main", "commit": COMMITS[0]}


def test_interrupted_downloads_go_on(hub: Hub, store: Store, model: bytes) -> None:
    hub.publish({"m.gguf": model})
    hub.reply("m.gguf").breaks = [1000] + [0] * 20
    with pytest.raises(DownloadError, match=r"1000 of \d+ bytes are kept"):
        pull("hf:owner/repo", store)
    hub.reply("m.gguf").breaks = []
    assert pull("hf:owner/repo", store).read_bytes() == model
    assert hub.server.ranges_of(f"/owner/repo/resolve/{COMMITS[0]}/m.gguf")[-1] == "bytes=1000-"
    assert [file.suffix for file in store.downloads_dir.iterdir()] == [".lock"]


def test_changed_bytes_are_never_used(hub: Hub, store: Store, model: bytes) -> None:
    hub.publish({"m.gguf": model})
    hub.reply("m.gguf").body = model[:-1] + b"\xff"
    with pytest.raises(DownloadError, match="another hash"):
        pull("hf:owner/repo", store)
    files = {"config.json": b'{"model_type": "llama"}', "model.safetensors": safetensors_bytes({})}
    hub.publish(files)
    hub.reply("config.json").body = b'{"model_type": "other"}'
    with pytest.raises(DownloadError, match="another hash"):
        pull("hf:owner/repo", store)
    assert store.list() == []


def test_a_branch_that_moved_is_fetched_anew_and_a_commit_is_not(hub: Hub, store: Store, model: bytes) -> None:
    hub.publish({"m.gguf": model})
    assert pull("hf:owner/repo", store).read_bytes() == model
    num_requests = len(hub.server.requests)
    pull("hf:owner/repo", store)
    assert [path for _, path, _ in hub.server.requests[num_requests:]] == ["/api/models/owner/repo"]
    hub.publish({"m.gguf": model + b"2"}, commit=COMMITS[1])
    assert pull("hf:owner/repo", store).read_bytes() == model + b"2"
    pinned = f"hf:owner/repo@{COMMITS[0]}"
    assert pull(pinned, store).read_bytes() == model
    assert store.resolve(pinned).read_bytes() == model


def test_split_file_in_a_folder(hub: Hub, store: Store, tmp_path: Path) -> None:
    shards = {}
    for i in range(2):
        metadata = {"split.no": i, "split.count": 2}
        path = write_gguf(tmp_path / "x.gguf", metadata, {f"t{i}": __import__("numpy").zeros((1, 2), "float32")})
        shards[f"Q4_K_M/big-Q4_K_M-{i + 1:05d}-of-00002.gguf"] = path.read_bytes()
    hub.publish(shards)
    checkpoint = open_checkpoint(pull("hf:owner/repo", store))
    assert len(checkpoint.files) == 2
    assert set(checkpoint.tensors) == {"t0", "t1"}


def test_safetensors_directory(hub: Hub, store: Store) -> None:
    where = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    hub.publish(
        {name: safetensors_bytes({key: f32_entry([1], 0, 4)}, key.encode() * 4) for key, name in where.items()}
        | {
            "config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "pytorch_model.bin": b"pickle",
            "model.safetensors.index.json": json.dumps({"weight_map": where}).encode(),
            "1_Pooling/config.json": b"{}", "run.py": b"import os",
        }
    )  # fmt: skip
    path = pull("hf:owner/repo", store)
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.tensors) == {"a", "b"}
    assert checkpoint.tokenizer is not None
    names = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert "1_Pooling/config.json" in names
    assert not names & {"pytorch_model.bin", "run.py"}


@pytest.mark.parametrize(
    ("quant", "files", "kind", "message"),
    [
        (None, ["a-Q8_0.gguf", "a-Q5_0.gguf"], UsageError, "several files fit: choose with :QUANT from a-Q5_0, a-Q8_0"),
        ("Q4_K", ["a-Q4_K_M.gguf"], ModelNotFoundError, "no Q4_K; choose with :QUANT from a-Q4_K_M"),
        ("Q8_0", ["a-Q8_0.gguf", "b-Q8_0.gguf"], UsageError, "several files fit"),
        (None, ["a-Q4_K_M-00001-of-00002.gguf"], ModelNotFoundError, "a-Q4_K_M has 1 of its 2 shards"),
        (None, ["pytorch_model.bin"], UnsupportedError, "neither GGUF files nor config.json"),
        ("Q8_0", ["config.json", "model.safetensors"], ModelNotFoundError, "choose with :QUANT from safetensors"),
        ("Q8_0", [], ModelNotFoundError, "it has no GGUF or safetensors files at all"),
    ],
)
def test_no_single_choice(quant: str | None, files: list[str], kind: type[KamadoError], message: str) -> None:
    with pytest.raises(kind, match=message):
        choose(HubName("o/r", None, quant), [_remote(name) for name in files])


def test_choices() -> None:
    files = [_remote(n) for n in ("a-Q4_K_S.gguf", "a-Q4_K_M.gguf", "config.json", "model.safetensors", "imatrix.gguf")]
    assert [f.path for f in choose(HubName("o/r"), files)] == ["a-Q4_K_M.gguf"]
    assert [f.path for f in choose(HubName("o/r", None, "q4_k_s"), files)] == ["a-Q4_K_S.gguf"]
    assert {f.path for f in choose(HubName("o/r", None, "safetensors"), files)} == {"config.json", "model.safetensors"}
    assert [f.path for f in choose(HubName("o/r"), [_remote("only.gguf")])] == ["only.gguf"]
    split = [_remote(f"big/x-Q8_0-{i:05d}-of-00002.gguf") for i in (1, 2)]
    for name in ("big/x-Q8_0-00001-of-00002.gguf", "x-Q8_0-00001-of-00002.gguf", "x-Q8_0.gguf"):
        assert choose(HubName("o/r", None, name), [*files, *split]) == split
    assert [f.path for f in choose(HubName("o/r", None, "a-Q4_K_S.gguf"), [*files, *split])] == ["a-Q4_K_S.gguf"]
    both = [_remote("b-Q4_K_M.gguf"), _remote("b-UD-Q4_K_M.gguf"), _remote("b-Q4_K_M-00001-of-00002.gguf"),
            _remote("b-Q4_K_M-00002-of-00002.gguf")]  # fmt: skip
    assert choose(HubName("o/r"), both) == choose(HubName("o/r", None, "Q4_K_M"), both) == both[:1]
    assert choose(HubName("o/r", None, "UD-Q4_K_M"), both) == both[1:2]
    with pytest.raises(ModelNotFoundError, match=r"has no Q4_K_S\.gguf"):
        choose(HubName("o/r", None, "Q4_K_S.gguf"), files)


def test_names() -> None:
    assert parse_name("hf:o/r@v1.0/x:Q4_0") == HubName("o/r", "v1.0/x", "Q4_0")
    assert str(parse_name("hf:o/r", revision="dev", quant="Q8_0")) == "hf:o/r@dev:Q8_0"
    assert parse_name("hf:o/r:sub/m-Q4_0.gguf").source == "hf:o/r:sub/m-Q4_0.gguf"
    for wrong in ("hf:", "hf:o", "hf:o/r/x", "hf:../r", "hf:o/r:", "hf:o/r@", "hf:o r/x"):
        with pytest.raises(UsageError, match="a hub name looks like"):
            parse_name(wrong)
    with pytest.raises(UsageError, match="names quant 'Q4_0' and the option says 'Q8_0'"):
        parse_name("hf:o/r:Q4_0", quant="Q8_0")


def _error(code: str, status: int, message: str) -> Reply:
    return Reply(b"{}", status, {"X-Error-Code": code, "X-Error-Message": message})


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (_error("RepoNotFound", 404, "x"), ModelNotFoundError, "owner/repo is not on http"),
        (_error("RevisionNotFound", 404, "x"), ModelNotFoundError, "owner/repo has no revision 'v9'"),
        (_error("GatedRepo", 403, "x"), DownloadError, "asks for its terms to be accepted"),
        (Reply(b"{}", 400), DownloadError, "Bad request"),
        (Reply(b"no json"), DownloadError, "http"),
    ],
)
def test_hub_errors(hub: Hub, store: Store, reply: Reply, kind: type[KamadoError], message: str) -> None:
    hub.server.replies["/api/models/owner/repo/revision/v9"] = reply
    with pytest.raises(kind, match=message) as caught:
        pull("hf:owner/repo@v9", store)
    assert "\n" not in str(caught.value)


def test_hostile_file_names(hub: Hub, store: Store) -> None:
    hub.publish({"config.json": b"{}", "model.safetensors": b"x", "additional_chat_templates/../../../x": b"y"})
    with pytest.raises(UsageError, match="is no file name that a model may have"):
        pull("hf:owner/repo", store)
