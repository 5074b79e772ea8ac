"""Without a restart: a model whose file was replaced, and settings that were changed."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kamado.errors import MemoryBudgetError
from kamado.library.store import Store
from kamado.serve.config import ServeConfig, load_config
from kamado.serve.http.keys import KeyRing
from kamado.serve.models.contract import Event, Finish, Recipe, TextDelta
from kamado.serve.models.library import StoreLibrary
from kamado.serve.ops import reload
from kamado.serve.ops.reload import Reloader
from kamado.serve.run import make_keys, make_server

from .fake import FakeWorld, Wait, text
from .processes import GREEDY, started
from .running import Running, running, wait_until
from .test_pool import answer, names, request, run, service_of

KEY, OTHER_KEY = "a-key-of-this-test", "another-key-of-it"


# --- models -----------------------------------------------------------------------------------------------------------


def change(world: FakeWorld, version: str) -> None:
    world.library.infos["fake"] = replace(world.library.infos["fake"], version=version)


def said(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def test_the_next_request_gets_the_new_model_and_the_running_one_ends_on_the_old() -> None:
    async def work() -> None:
        gate = asyncio.Event()
        world = FakeWorld({"wait": [TextDelta("old "), Wait(event=gate), *text("still old")]})
        service = service_of(world)
        stream = service.chat("fake", request("wait"))
        while not isinstance(event := await anext(stream), TextDelta):
            pass
        old = world.model
        change(world, "2")
        await answer(service, "hi")
        assert world.model is not old
        assert world.loader.num_loads == 2
        assert not old.is_closed
        assert names(service) == ["fake"], "the old one is on no list"
        gate.set()
        assert event.text + said([e async for e in stream]) == "old still old"
        while service.pool._replaced:
            await asyncio.sleep(0.01)
        assert old.is_closed
        await answer(service, "hi")
        assert world.loader.num_loads == 2, "once is enough"
        await service.close()

    run(work())


def test_an_idle_model_that_was_replaced_goes_at_once_and_stays_pinned() -> None:
    async def work() -> None:
        world = FakeWorld()
        service = service_of(world, keep_alive=0.0)
        await service.load("fake", pinned=True)
        old = world.model
        change(world, "2")
        await answer(service, "hi")
        assert old.is_closed
        assert [slot.is_pinned for slot in service.pool.slots] == [True]
        await service.close()

    run(work())


def test_the_new_model_waits_for_the_memory_that_the_old_one_holds() -> None:
    async def work() -> None:
        gate = asyncio.Event()
        world = FakeWorld({"wait": [Wait(event=gate), *text("done")]})
        service = service_of(world, memory_bytes=1500)
        running_answer = asyncio.create_task(answer(service, "wait"))
        while not names(service):
            await asyncio.sleep(0.01)
        change(world, "2")
        waiting = asyncio.create_task(answer(service, "hi"))
        await asyncio.sleep(0.05)
        assert world.loader.num_loads == 1, "two would be past the budget"
        gate.set()
        assert said(await running_answer) == "done"
        assert said(await waiting) == "HI"
        assert world.loader.num_loads == 2
        await service.close()

    run(work())


def test_unload_waits_for_both() -> None:
    async def work() -> None:
        gate = asyncio.Event()
        world = FakeWorld({"wait": [TextDelta("x"), Wait(event=gate), Finish("stop")]})
        service = service_of(world)
        task = asyncio.create_task(answer(service, "wait"))
        while not names(service):
            await asyncio.sleep(0.01)
        old = world.model
        change(world, "2")
        await answer(service, "hi")
        unload = asyncio.create_task(service.unload("fake"))
        await asyncio.sleep(0.02)
        assert not unload.done()
        gate.set()
        assert await unload
        assert old.is_closed
        assert world.model.is_closed
        await task
        await service.close()

    run(work())


def test_a_replacement_that_cannot_be_loaded_fails_alone_and_is_tried_again() -> None:
    async def work() -> None:
        world = FakeWorld()
        service = service_of(world)
        await answer(service, "hi")
        change(world, "2")
        world.loader.error = MemoryBudgetError("too large now")
        with pytest.raises(MemoryBudgetError):
            await answer(service, "hi")
        world.loader.error = None
        assert said(await answer(service, "hi")) == "HI"
        await service.close()

    run(work())


def version(library: StoreLibrary, name: str = "m") -> str:
    return library.locate(name).info.version


def test_what_makes_another_version(tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = tmp_path / "m.gguf"
    shutil.copy(tiny_checkpoint, path)
    library = StoreLibrary(Store(tmp_path / "store"), {"m": path})
    first = version(library)
    assert first == version(library)
    library._create("recipe", Recipe(base="m", system="one"))
    recipe = version(library, "recipe")
    library._create("recipe", Recipe(base="m", system="two"))
    assert recipe != version(library, "recipe"), "another recipe"
    recipe = version(library, "recipe")
    new = tmp_path / "new.gguf"
    shutil.copy(tiny_checkpoint, new)
    stat = path.stat()
    os.utime(new, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(new, path)
    second = version(library)
    assert first != second, "another file of the same size and time"
    assert recipe != version(library, "recipe"), "another base"
    shutil.copyfile(tiny_checkpoint, path)
    assert version(library) != second, "copied over"


def test_a_file_in_a_directory_and_a_shard_count(tmp_path: Path) -> None:
    from kamado.serve.models.library import _version

    (tmp_path / "config.json").write_text("{}")
    before = _version(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    assert _version(tmp_path) != before
    for i in (1, 2):
        (tmp_path / f"m-0000{i}-of-00002.gguf").write_text("x")
    before = _version(tmp_path / "m-00001-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").write_text("xy")
    assert _version(tmp_path / "m-00001-of-00002.gguf") != before


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "serve.toml"
    path.write_text("max_requests = 5\n")
    return path


def reader(path: Path, **flags: Any) -> Callable[[], tuple[ServeConfig, KeyRing]]:
    def read() -> tuple[ServeConfig, KeyRing]:
        config, _ = load_config(file=path, environment={}, flags=flags)
        return config, make_keys(config, announce=None)

    return read


@pytest.fixture
def up(settings: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Running, Reloader]]:
    monkeypatch.setattr(reload, "LOOK_SECONDS", 0.02)
    world = FakeWorld()
    config, keys = reader(settings)()
    with running(world.library, world.loader, config, keys) as server:
        reloader = Reloader(server.server, reader(settings), [settings], on_change=lambda: None)

        async def start() -> asyncio.Task[None]:
            return asyncio.create_task(reloader.watch())

        task = server.call(start)
        yield server, reloader
        server.loop.call_soon_threadsafe(task.cancel)


def status(server: Running, key: str | None = None, model: str = "fake") -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx2.post(f"{server.url}/v1/chat/completions", json=body, headers=headers).status_code


def test_a_changed_file_is_taken_without_a_restart(
    up: tuple[Running, Reloader], settings: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server, _ = up
    assert status(server) == 200
    assert status(server, model="mine") == 404
    with caplog.at_level(logging.INFO, "kamado.serve"):
        settings.write_text(
            f'max_requests = 7\nport = 9\n[aliases]\nmine = "fake"\n[[api_keys]]\nname = "one"\nkey = "{KEY}"\n'
        )
        wait_until(lambda: server.server.config.max_requests == 7)
        assert status(server) == 401  # an answer comes after the lines of the log
    assert status(server, KEY, "mine") == 200
    (done,) = (record for record in caplog.records if record.getMessage() == "settings reloaded")
    assert set(done.changed) == {"max_requests", "aliases", "api_keys"}  # type: ignore[attr-defined]
    assert KEY not in caplog.text
    (late,) = (record for record in caplog.records if record.getMessage() == "settings that need a restart")
    assert late.settings == ["port"]  # type: ignore[attr-defined]
    assert server.server.config.port == 8417
    settings.write_text(f'[[api_keys]]\nname = "two"\nkey = "{OTHER_KEY}"\n')
    wait_until(lambda: status(server, OTHER_KEY) == 200)
    assert status(server, KEY) == 401, "a key that is taken away opens nothing"


@pytest.mark.parametrize(
    "wrong", ["max_requests = 0\n", "max_requests = \n", "nonsense = 1\n", '[[api_keys]]\nname = "x"\n']
)
def test_what_is_wrong_changes_nothing(
    up: tuple[Running, Reloader], settings: Path, caplog: pytest.LogCaptureFixture, wrong: str
) -> None:
    server, _ = up
    settings.write_text(wrong)
    wait_until(lambda: "settings not reloaded" in caplog.text)
    assert server.server.config.max_requests == 5
    assert status(server) == 200


def test_a_file_that_is_gone_does_not_open_the_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On an address that others reach, settings without any key are refused as they are at the start."""

    async def work() -> None:
        path = tmp_path / "serve.toml"
        path.write_text(f'host = "0.0.0.0"\n[[api_keys]]\nkey = "{KEY}"\n')
        config, keys = reader(path)()
        world = FakeWorld()
        server = make_server(config, world.library, world.loader, keys=keys)
        reloader = Reloader(server, reader(path), [path], on_change=lambda: None)
        path.write_text('host = "127.0.0.1"\n')
        assert not await reloader.reload()
        assert server.keys.find(KEY) is not None
        assert server.keys.find(None) is None
        path.unlink()
        assert not await reloader.reload()
        await server.service.close()

    run(work())
    assert "an API key is needed" in str(caplog.records[0].reason)  # type: ignore[attr-defined]


def test_being_asked_reads_what_looks_the_same(up: tuple[Running, Reloader], caplog: pytest.LogCaptureFixture) -> None:
    server, reloader = up
    with caplog.at_level(logging.INFO, "kamado.serve"):
        server.loop.call_soon_threadsafe(reloader.ask)
        wait_until(lambda: "settings reloaded" in caplog.text)


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no SIGHUP there")
def test_a_real_server_takes_another_file_and_other_keys(
    tmp_path: Path, write_tiny: Callable[..., Path], settings: Path
) -> None:
    path = Path(shutil.copy(write_tiny(), tmp_path / "tiny.gguf"))
    settings.write_text("")
    question = [{"role": "user", "content": "tell me of the sea"}]

    def text_of(answer: dict[str, Any]) -> str:
        return str(answer["choices"][0]["message"]["content"])

    with started(tmp_path / "home", path, "--config", settings) as process:
        old = text_of(process.answer(question, max_tokens=400))
        body = {"model": "tiny", "messages": question, **GREEDY, "max_tokens": 400, "stream": True}
        said = new = ""
        with process.http.stream("POST", "/v1/chat/completions", json=body) as stream:
            for line in stream.iter_lines():
                if said and not new:
                    os.replace(write_tiny(seed=8), path)
                    new = text_of(process.answer(question, max_tokens=400))
                    assert text_of(process.answer(question, max_tokens=400)) == new
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        said += choice["delta"].get("content") or ""
        assert said == old, "the running answer ended on the file that it began with"
        assert new != old
        settings.write_text(f'[[api_keys]]\nname = "one"\nkey = "{KEY}"\n')
        process.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: process.http.get("/v1/models").status_code == 401)
        headers = {"authorization": f"Bearer {KEY}"}
        assert process.http.get("/v1/models", headers=headers).status_code == 200
        names = [event["event"] for event in process.events()]
        assert names.count("model loaded") == 2
        assert [event["reason"] for event in process.events() if event["event"] == "model unloaded"] == ["replaced"]
        assert "settings reloaded" in names
