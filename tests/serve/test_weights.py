"""Recipes use the weights of their base."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2

from kamado.library.store import Store
from kamado.serve.config import ServeConfig
from kamado.serve.models.contract import LoadOptions, Recipe
from kamado.serve.models.library import StoreLibrary
from kamado.serve.models.loader import EngineLoader, EngineSettings

from .running import running

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}!"


def test_a_recipe_has_the_weights_of_its_base_and_its_own_template(tmp_path: Path, tiny_checkpoint: Path) -> None:
    library = StoreLibrary(Store(tmp_path), {"tiny": tiny_checkpoint})
    loader = EngineLoader(library, EngineSettings(threads=1, context=256))

    async def use() -> None:
        await library.create("other", Recipe("tiny", template=TEMPLATE))
        assert await loader.share("other") is None  # nothing is loaded yet
        first = await loader.load("tiny", LoadOptions(), None)
        nbytes = first.memory_bytes
        second = await loader.share("other")
        assert second is not None
        assert (second.info.name, second.memory_bytes) == ("other", 0)
        assert await second.stats() == {}
        assert second._model._scheduler is first._model._scheduler  # type: ignore[attr-defined]
        templates = [model._model._checkpoint.chat_template for model in (first, second)]  # type: ignore[attr-defined]
        assert templates[0] != templates[1] == TEMPLATE
        await first.close()
        assert (first.memory_bytes, second.memory_bytes) == (0, nbytes)  # who is left pays
        assert len(await second.tokenize("hi")) > 0
        await second.close()
        assert await loader.share("tiny") is None

    asyncio.run(use())


def test_one_load_serves_a_model_and_its_recipes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    library = StoreLibrary(Store(tmp_path), {"tiny": tiny_checkpoint})
    loads = []

    class Counting(EngineLoader):
        async def load(self, name, options, memory_bytes):  # type: ignore[no-untyped-def]
            loads.append(name)
            return await super().load(name, options, memory_bytes)

    loader = Counting(library, EngineSettings(threads=1, context=256))
    with (
        running(library, loader, ServeConfig(port=0)) as server,
        httpx2.Client(base_url=server.url, timeout=60) as http,
    ):
        for name in ("a", "b"):
            made = {"model": name, "from": "tiny", "template": TEMPLATE, "stream": False}
            assert http.post("/api/create", json=made).status_code == 200
        for name in ("a", "tiny", "b"):
            asked = {"model": name, "messages": [{"role": "user", "content": "hi"}], "stream": False}
            answer = http.post("/api/chat", json=asked | {"options": {"num_predict": 2}})
            assert answer.status_code == 200, answer.text
        assert loads == ["a"]
        sizes = [model["size"] for model in http.get("/api/ps").json()["models"]]
        assert sorted(map(bool, sizes)) == [False, False, True]
        assert http.request("DELETE", "/api/delete", content=json.dumps({"model": "a"})).status_code == 200
        sizes = [model["size"] for model in http.get("/api/ps").json()["models"]]
        assert sorted(map(bool, sizes)) == [False, True]


def test_what_a_recipe_says_of_answers_holds_where_a_request_does_not(tmp_path: Path, tiny_checkpoint: Path) -> None:
    library = StoreLibrary(Store(tmp_path), {"tiny": tiny_checkpoint})
    loader = EngineLoader(library, EngineSettings(threads=1, context=256))
    parameters = {"num_predict": 5, "seed": 3, "repeat_penalty": 1.5, "num_ctx": 128}
    asked = {"messages": [{"role": "user", "content": "hi"}], "stream": False}
    with (
        running(library, loader, ServeConfig(port=0)) as server,
        httpx2.Client(base_url=server.url, timeout=60) as http,
    ):

        def answer(model: str, **options: int | float) -> tuple[str, int]:
            found = http.post("/api/chat", json={"model": model, **asked, "options": options}).json()
            return found["message"]["content"], found["eval_count"]

        made = {"model": "brief", "from": "tiny", "template": TEMPLATE, "parameters": parameters, "stream": False}
        assert http.post("/api/create", json=made).status_code == 200
        made = {"model": "plain", "from": "tiny", "template": TEMPLATE, "stream": False}
        assert http.post("/api/create", json=made).status_code == 200
        assert answer("brief") == answer("plain", **parameters)
        assert answer("brief")[1] == 5
        assert answer("brief", num_predict=2)[1] == 2
        assert answer("brief", seed=4) == answer("plain", **parameters | {"seed": 4})
        long = {"model": "brief", "messages": [{"role": "user", "content": "word " * 35}]}
        assert http.post("/api/chat", json=long).status_code == 400  # more than num_ctx
        assert http.post("/api/chat", json={**long, "model": "plain"}).status_code == 200


RAW, TEXT, TALK, OPENAI = "/api/generate", "/v1/completions", "/api/chat", "/v1/chat/completions"


def test_a_recipe_s_limits_hold_for_raw_texts_too_and_a_request_may_lift_them(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    library = StoreLibrary(Store(tmp_path), {"tiny": tiny_checkpoint})
    loader = EngineLoader(library, EngineSettings(threads=1, context=256))
    with (
        running(library, loader, ServeConfig(port=0)) as server,
        httpx2.Client(base_url=server.url, timeout=60) as http,
    ):
        for name, base, parameters in (
            ("plain", "tiny", {}),
            ("brief", "tiny", {"num_predict": 5, "num_ctx": 64, "seed": 3}),
            ("long", "brief", {"num_predict": -1}),  # recipes of recipes lift limits too
            ("varied", "brief", {"seed": -1}),
        ):
            made = {"model": name, "from": base, "template": TEMPLATE, "parameters": parameters, "stream": False}
            assert http.post("/api/create", json=made).status_code == 200

        def ask(model: str, path: str, prompt: str = "a", **options: int) -> httpx2.Response:
            body: dict[str, Any] = {"model": model, "stream": False}
            body |= {"raw": True} if path == RAW else {}
            body |= {"prompt": prompt} if path in (RAW, TEXT) else {"messages": [{"role": "user", "content": prompt}]}
            return http.post(path, json=body | (options if path.startswith("/v1") else {"options": options}))

        def length(model: str, path: str, **options: int) -> int:
            answer = ask(model, path, **options).json()
            return int(answer["usage"]["completion_tokens"] if path.startswith("/v1") else answer["eval_count"])

        for path in (RAW, TEXT, TALK, OPENAI):
            limit = "max_tokens" if path.startswith("/v1") else "num_predict"
            assert length("brief", path) == 5, path
            assert length("brief", path, **{limit: 2}) == 2, path
            assert 60 < length("brief", path, **{limit: -1}) < 64, path  # until the recipe's context is full
            assert 60 < length("long", path) < 64, path
            assert ask("brief", path, "word " * 20).status_code == 400, path  # more than num_ctx
            assert ask("plain", path, "word " * 20).status_code == 200, path
        assert length("plain", TEXT, seed=3) == 16  # OpenAI's, where nobody says another

        def texts(model: str, **options: int) -> set[str]:
            return {ask(model, RAW, num_predict=40, **options).json()["response"] for _ in range(2)}

        assert [len(texts("brief")), len(texts("brief", seed=-1)), len(texts("varied"))] == [1, 2, 2]
