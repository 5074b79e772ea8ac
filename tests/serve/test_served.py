"""Which models a server shows: those that it was named, and nothing else, over every protocol and after a reload."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from kamado.errors import ModelNotFoundError, UsageError
from kamado.serve.config import ServeConfig
from kamado.serve.models.contract import Recipe
from kamado.serve.models.served import ServedLibrary
from kamado.serve.share import server_share

from .fake import INFO, FakeLibrary, FakeWorld
from .processes import Process, started
from .running import Running, running, wait_until
from .stores import put

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def home(tmp_path: Path, write_tiny: Callable[..., Path]) -> Path:
    """A store with "first:a", "first:b" and "second", each another file."""
    for seed, name in enumerate(("first:a", "first:b", "second")):
        put(tmp_path / "home", name, write_tiny(seed=seed))
    return tmp_path / "home"


def names_of(http: httpx2.Client) -> dict[str, list[str]]:
    """What every list of the server says."""
    return {
        "openai": [m["id"] for m in http.get("/v1/models").json()["data"]],
        "ollama": [m["name"] for m in http.get("/api/tags").json()["models"]],
        "anthropic": [
            m["id"] for m in http.get("/v1/models", headers={"anthropic-version": "2023-06-01"}).json()["data"]
        ],
        "page": [m["name"] for m in http.get("/web/status.json").json()["models"]],
    }


def uses(model: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """A request of every kind that names a model and changes nothing."""
    return {
        "chat": ("/v1/chat/completions", {"model": model, "messages": HELLO, "max_tokens": 2}),
        "completion": ("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 2}),
        "responses": ("/v1/responses", {"model": model, "input": "a", "max_output_tokens": 2}),
        "embeddings": ("/v1/embeddings", {"model": model, "input": "a"}),
        "messages": ("/v1/messages", {"model": model, "messages": HELLO, "max_tokens": 2}),
        "count": ("/v1/messages/count_tokens", {"model": model, "messages": HELLO}),
        "api chat": ("/api/chat", {"model": model, "messages": HELLO, "stream": False, "options": {"num_predict": 2}}),
        "api generate": ("/api/generate", {"model": model, "prompt": "a", "stream": False}),
        "api load": ("/api/generate", {"model": model}),
        "api embed": ("/api/embed", {"model": model, "input": "a"}),
        "api show": ("/api/show", {"model": model}),
        "api copy": ("/api/copy", {"source": model, "destination": "third"}),
    }


def check_only_second(http: httpx2.Client, alias: str) -> None:
    for protocol, names in names_of(http).items():
        assert "second" in names, protocol
        assert {*names, alias} == {"second", alias}, protocol
    for kind, (path, body) in uses("first:a").items():
        found = http.post(path, json=body)
        assert found.status_code == 404, f"{kind}: {found.text}"
    assert http.get("/v1/models/first:a").status_code == 404
    assert http.request("DELETE", "/v1/models/first:a").status_code == 404
    assert http.request("DELETE", "/api/delete", json={"model": "first:a"}).status_code == 404
    text = http.post("/v1/chat/completions", json={"model": "first:a", "messages": HELLO}).text
    assert "this server serves: second" in text
    assert "first:b" not in text, "others are not told"


def test_a_named_model_is_served_and_nothing_else(home: Path, tmp_path: Path) -> None:
    """The real process: over every protocol, and after SIGHUP with other settings."""
    settings = tmp_path / "serve.toml"
    settings.write_text('[aliases]\n"gpt-4o" = "second"\n')
    with started(home, "second", "--config", settings) as process:
        check_only_second(process.http, "gpt-4o")
        for model in ("second", "gpt-4o"):
            path, body = uses(model)["chat"]
            assert process.http.post(path, json=body).status_code == 200, model
        for path, body, code in (
            ("/api/create", {"model": "third", "from": "second", "stream": False}, 400),
            ("/api/copy", {"source": "second", "destination": "third"}, 400),
            ("/api/pull", {"model": "first:b", "stream": False}, 400),
            ("/api/create", {"model": "third", "from": "first:a", "stream": False}, 404),
        ):
            found = process.http.post(path, json=body)
            assert found.status_code == code, found.text
            assert code == 404 or "--all" in found.text
        settings.write_text('serve_all = true\n[aliases]\n"gpt-4" = "second"\n"mine" = "first:a"\n')
        process.popen.send_signal(signal.SIGHUP)
        wait_until(lambda: any(event["event"] == "settings reloaded" for event in process.events()))
        assert any(event.get("settings") == ["serve_all"] for event in process.events()), "it needs a restart"
        check_only_second(process.http, "gpt-4")
        for model, code in (("gpt-4", 200), ("mine", 404)):
            path, body = uses(model)["chat"]
            assert process.http.post(path, json=body).status_code == code, model


def test_several_or_all(home: Path) -> None:
    def served(process: Process) -> list[str]:
        assert len({tuple(names) for names in names_of(process.http).values()}) == 1
        return names_of(process.http)["openai"]

    with started(home, "second", "first:b") as process:
        assert served(process) == ["first:b", "second"]
        path, body = uses("first")["chat"]
        assert process.http.post(path, json=body).status_code == 200, "the only first that is served"
    with started(home, "second", "--all") as process:
        assert served(process) == ["first:a", "first:b", "second"]
    with started(home) as process:
        assert served(process) == ["first:a", "first:b", "second"]
    with started(home, KAMADO_SERVE_MODELS="second") as process:
        assert served(process) == ["second"]


def test_files_outside_of_the_store(home: Path, write_tiny: Callable[..., Path]) -> None:
    with started(home, write_tiny(seed=5), write_tiny(seed=6)) as process:
        assert names_of(process.http)["openai"] == ["tiny", "tiny-2"]


@pytest.fixture
def library() -> ServedLibrary:
    return ServedLibrary(FakeWorld().library, ["fake", "gone"])


async def collect(steps: Any) -> list[Any]:
    return [step async for step in steps]


def test_the_library_of_named_models(library: ServedLibrary) -> None:
    import asyncio

    async def main() -> None:
        assert [info.name for info in await library.list()] == ["fake"], "one that is not there is passed over"
        assert (await library.get("fake")).name == "fake"
        for name in ("other", "fa", "fake:latest", "nothing"):
            with pytest.raises(ModelNotFoundError, match="this server serves: fake"):
                await library.get(name)
        for work in (
            library.copy("fake", "copied"),
            library.create("made", Recipe("fake")),
            collect(library.pull("other")),
        ):
            with pytest.raises(UsageError, match="serve_all = true"):
                await work
        with pytest.raises(ModelNotFoundError):
            await library.copy("other", "gone")
        await library.copy("fake", "gone")
        assert [info.name for info in await library.list()] == ["fake", "gone"]
        with pytest.raises(ModelNotFoundError):
            await library.delete("other")
        await library.delete("gone")
        assert [info.name for info in await library.list()] == ["fake"]

    asyncio.run(main())


@pytest.fixture
def small() -> FakeWorld:
    """A world with one more model, which is the first of the list."""
    world = FakeWorld()
    world.library.infos["a-large"] = replace(INFO, name="a-large")
    return world


def status(up: Running) -> dict[str, Any]:
    found = httpx2.get(f"{up.url}/web/status.json")
    assert found.status_code == 200
    return dict(json.loads(found.text))


def with_models_memory(nbytes: int) -> ServeConfig:
    """Settings of a budget that leaves models so much."""
    config = ServeConfig(port=0, memory=1 << 30)
    return ServeConfig(port=0, memory=nbytes + server_share(config).total, max_bodies_bytes=config.bodies_bytes)


def test_the_default_is_what_can_be_had(small: FakeWorld) -> None:
    with running(small.library, small.loader, with_models_memory(4_000_000)) as up:
        small.loader.bytes_of.update({"a-large": 5_000_000, "fake": 1_000_000})
        found = status(up)
        assert [(m["name"], m["fits"]) for m in found["models"]] == [("a-large", False), ("fake", True)]
        assert found["default"] == "fake"


def test_the_default_is_the_one_in_memory(small: FakeWorld) -> None:
    with running(small.library, small.loader, ServeConfig(port=0)) as up:
        assert status(up)["default"] == "a-large", "all fit and none is loaded: the first"
        up.call(lambda: up.server.service.load("fake"))
        assert status(up)["default"] == "fake"
        up.call(lambda: up.server.service.load("a-large"))
        assert status(up)["default"] == "a-large", "the last that was loaded"


def test_a_pinned_model_comes_first_and_takes_its_room(small: FakeWorld) -> None:
    small.loader.bytes_of.update({"a-large": 3_000_000, "fake": 2_000_000})
    with running(small.library, small.loader, with_models_memory(4_000_000)) as up:
        up.call(lambda: up.server.service.load("fake", pinned=True))
        found = status(up)
        assert [(m["name"], m["fits"]) for m in found["models"]] == [("a-large", False), ("fake", True)]
        assert found["default"] == "fake"
        assert found["loaded"][0]["is_pinned"]
        assert found["loaded"][0]["bytes_by_owner"] == {"weights": 600, "kv": 400}


def test_an_alias_has_the_room_of_its_model(small: FakeWorld) -> None:
    with running(small.library, small.loader, ServeConfig(port=0, aliases={"gpt-4o": "fake"})) as up:
        up.call(lambda: up.server.service.load("fake"))
        found = {model["name"]: (model["is_loaded"], model["fits"]) for model in status(up)["models"]}
        assert found.get("gpt-4o", found["fake"]) == found["fake"] == (True, True)
        assert found["a-large"] == (False, True)


def test_no_model_that_chats_is_no_default() -> None:
    library = FakeLibrary()
    with running(library, FakeWorld().loader) as up:
        assert status(up) == {"models": [], "default": None, "loaded": []}
