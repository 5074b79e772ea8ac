"""The store: content kept once, names that stay inside, errors that help."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from files.builders import write_gguf

from kamado.errors import DownloadError, ModelNotFoundError, UsageError
from kamado.files import open_checkpoint
from kamado.library.names import safe_path
from kamado.library.store import Store, StoredFile


def adopt(store: Store, content: bytes, path: str) -> StoredFile:
    """Content into the store, as a pull does it."""
    store.downloads_dir.mkdir(parents=True, exist_ok=True)
    partial = store.downloads_dir / "x.part"
    partial.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    store.adopt(partial, sha256)
    return StoredFile(path, sha256, len(content))


def test_models_share_content_until_the_last_goes(store: Store) -> None:
    shared, own = adopt(store, b"shared", "a.gguf"), adopt(store, b"own", "b.txt")
    path = store.add("one:1b", [shared], {"kind": "test"})
    store.add("two:1b", [shared, own], {"kind": "test"})
    assert path.read_bytes() == b"shared"
    assert path.samefile(store.resolve("two:1b"))
    assert [(model.name, model.nbytes) for model in store.list()] == [("one:1b", 6), ("two:1b", 9)]
    store.remove("two:1b")
    assert sorted(blob.name for blob in store.blobs_dir.iterdir()) == [shared.sha256]
    assert store.resolve("one:1b").read_bytes() == b"shared"
    store.remove("one:1b")
    assert list(store.blobs_dir.iterdir()) == []
    assert list(store.models_dir.iterdir()) == []


def test_adding_again_replaces(store: Store) -> None:
    store.add("m", [adopt(store, b"old", "a.gguf")], {})
    store.add("m", [adopt(store, b"new", "a.gguf")], {"kind": "second"})
    assert store.resolve("m").read_bytes() == b"new"
    assert len(list(store.blobs_dir.iterdir())) == 1
    model = store.get("m")
    assert model is not None
    assert model.source == {"kind": "second"}


def test_a_directory_model_resolves_to_its_directory(store: Store) -> None:
    files = [adopt(store, b"{}", "config.json"), adopt(store, b"p", "1_Pooling/config.json")]
    path = store.add("hf:owner/repo@main", files, {})
    assert (path / "1_Pooling" / "config.json").read_bytes() == b"p"
    assert path.parent == store.models_dir
    assert store.resolve("hf:owner/repo@main") == path
    assert store.resolve("hf:owner/repo") == path


def test_split_model_resolves_to_its_first_shard(store: Store) -> None:
    names = ["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"]
    assert store.add("m", [adopt(store, name.encode(), name) for name in names], {}).name == names[1]


def test_paths_are_used_in_place(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "here.gguf")
    assert store.resolve(str(path)) == path
    assert store.resolve(path) == path
    monkeypatch.chdir(tmp_path)
    assert store.resolve("here.gguf") == path
    assert store.resolve("./here.gguf") == path
    (tmp_path / "plain").mkdir()
    assert store.resolve("plain") == tmp_path / "plain"
    assert open_checkpoint(store.resolve("here.gguf")).architecture == "llama"
    assert not store.root.exists()


def test_the_part_before_the_colon_is_enough_when_unique(store: Store) -> None:
    path = store.add("llm:1b", [adopt(store, b"1", "a.gguf")], {})
    assert store.resolve("llm") == path
    store.add("llm:2b", [adopt(store, b"2", "a.gguf")], {})
    with pytest.raises(ModelNotFoundError, match="'llm' may be any of llm:1b, llm:2b"):
        store.resolve("llm")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2:135m", "did you mean smollm2:135m"),
        ("smollm2:135m", "not fetched yet; fetch it with: kamado pull smollm2:135m"),
        ("gemma", "did you mean .*gemma3:270m"),
        ("zzz", "known names: smollm2:135m, gemma3:270m"),
        ("hf:a/b", "kamado pull hf:a/b"),
        ("", "the model's name is empty"),
        ("dir/none.gguf", "no such file"),
    ],
)
def test_unknown_names_get_near_ones(store: Store, name: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message):
        store.resolve(name)


def test_near_file_names(store: Store, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model-q4.gguf")
    with pytest.raises(ModelNotFoundError, match=r"did you mean model-q4\.gguf"):
        store.resolve(str(tmp_path / "model-q5.gguf"))


@pytest.mark.parametrize("name", ["..", "../x", "/etc/passwd", ".hidden", "a\0b", "a b", "", "x" * 201, "a\\b", "ü"])
def test_names_that_could_leave_the_store_are_refused(store: Store, name: str) -> None:
    with pytest.raises(UsageError):
        store.add(name, [], {})
    with pytest.raises(ModelNotFoundError):
        store.remove(name)


@pytest.mark.parametrize("name", ["a/../../b", "hf:../..", "a:b/../c"])
def test_odd_names_stay_inside(store: Store, name: str) -> None:
    path = store.add(name, [adopt(store, b"1", "a.gguf")], {})
    assert path.resolve().parent.parent == store.models_dir
    store.remove(name)
    assert list(store.models_dir.iterdir()) == []


@pytest.mark.parametrize("path", ["../a", "/a", "a/../../b", "", "a\\b", "C:a", "entry.json", "a\0"])
def test_file_paths_that_could_leave_a_model_are_refused(path: str) -> None:
    with pytest.raises(UsageError, match="is no file name that a model may have"):
        safe_path(path)


def test_a_damaged_entry_is_passed_over_and_a_failed_add_leaves_nothing(store: Store) -> None:
    store.add("good", [adopt(store, b"1", "a.gguf")], {})
    broken = store.models_dir / "bad"
    broken.mkdir()
    (broken / "entry.json").write_text('{"name": "bad"')
    assert [model.name for model in store.list()] == ["good"]
    before = sorted(store.models_dir.iterdir())
    with pytest.raises(OSError, match="No such file"):
        store.add("m", [StoredFile("a.gguf", "0" * 64, 1)], {})
    assert sorted(store.models_dir.iterdir()) == before


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("last", [0, 1, 2, 3, 4])  # entry.json, the new directory, the old one, its place
def test_a_kill_while_a_model_is_replaced_leaves_the_old_or_the_new_one(
    store: Store, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    store.add("m", [adopt(store, b"old", "a.gguf")], {})
    new = adopt(store, b"new", "a.gguf")
    num_renames = 0

    def replace(source: Path, target: Path) -> None:
        nonlocal num_renames
        if num_renames == last:
            raise Killed
        num_renames += 1
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("kamado.library.store.os.replace", replace)
        patch.setattr("kamado.library.store.shutil.rmtree", lambda *_, **__: None)  # nor does it clean up
        if last < 4:
            with pytest.raises(Killed):
                store.add("m", [new], {})
        else:
            store.add("m", [new], {})
    after = Store(store.root)
    assert [model.name for model in after.list()] == ["m"]
    assert after.resolve("m").read_bytes() == (b"old" if last < 2 else b"new")
    for path in after.models_dir.glob(".*.new"):
        os.utime(path, (1, 1))  # an hour later
    after.add("other", [new], {})
    assert sorted(path.name for path in after.models_dir.iterdir()) == ["m", "other"]
    after.remove("m")
    after.remove("other")
    assert [blob.read_bytes() for blob in after.blobs_dir.iterdir()] == []


def test_what_is_left_of_a_removed_model_is_no_model(store: Store) -> None:
    store.add("m", [adopt(store, b"x", "a.gguf")], {})
    os.replace(store.models_dir / "m", store.models_dir / ".0.removed")  # as a kill inside remove() leaves it
    assert store.list() == []
    store.add("n", [adopt(store, b"y", "a.gguf")], {})
    assert [blob.read_bytes() for blob in store.blobs_dir.iterdir()] == [b"y"]
    assert [path.name for path in store.models_dir.iterdir()] == ["n"]


def test_two_pulls_of_one_model_do_not_mix(store: Store) -> None:
    with store.lock("m"), pytest.raises(DownloadError, match="m is being fetched by another process"), store.lock("m"):
        pass
    with store.lock("m"):
        pass


def test_home_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAMADO_HOME", str(tmp_path / "k"))
    assert Store().root == tmp_path / "k"
    monkeypatch.delenv("KAMADO_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert Store().root == tmp_path / "xdg" / "kamado"
