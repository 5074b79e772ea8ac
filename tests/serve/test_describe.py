"""What a model is said to be able to do is what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kamado
from kamado.errors import UnsupportedError, UsageError
from kamado.library.store import Store
from kamado.serve.config import load_config
from kamado.serve.models.contract import EmbedRequest, LoadOptions
from kamado.serve.models.library import StoreLibrary
from kamado.serve.models.loader import EngineLoader, EngineSettings

TEXTS = ("a man eats", "the girl reads a book")


def library_of(path: Path, tmp_path: Path) -> StoreLibrary:
    return StoreLibrary(Store(tmp_path / "store"), {"m": path})


def served(library: StoreLibrary, work: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        loader = EngineLoader(library, EngineSettings(threads=1, context=256))
        model = await loader.load("m", LoadOptions(), None)
        try:
            return await work(model)
        finally:
            await model.close()

    return asyncio.run(run())


@pytest.mark.parametrize(("kind", "is_mean"), [(1, True), (3, False)], ids=["mean", "last"])
def test_a_generating_model_that_names_its_pooling_embeds(
    write_tiny: Callable[..., Path], tmp_path: Path, kind: int, is_mean: bool
) -> None:
    path = write_tiny(pooling_type=kind)
    library = library_of(path, tmp_path)
    assert library.locate("m").info.capabilities >= {"completion", "chat", "embedding"}

    async def work(model: Any) -> Any:
        assert model.info.capabilities >= {"completion", "chat", "embedding"}
        return (await model.embed(EmbedRequest(TEXTS, asker="a"))).vectors

    vectors = served(library, work)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    with kamado.load(path, context=256, threads=1) as plain:
        np.testing.assert_array_equal(vectors, plain.embed(list(TEXTS)))
    with kamado.load(write_tiny(), context=256, threads=1) as other:  # pools by the mean, which nobody asked for
        assert np.array_equal(vectors, other.embed(list(TEXTS))) == is_mean


def test_a_generating_model_without_a_pooling_refuses_with_the_reason(tiny_checkpoint: Path, tmp_path: Path) -> None:
    library = library_of(tiny_checkpoint, tmp_path)
    assert "embedding" not in library.locate("m").info.capabilities

    async def work(model: Any) -> Any:
        assert "embedding" not in model.info.capabilities
        with pytest.raises(UsageError, match="names no pooling"):
            await model.embed(EmbedRequest(TEXTS, asker="a"))

    served(library, work)


def test_what_cannot_be_loaded_can_do_nothing(write_tiny: Callable[..., Path], tmp_path: Path) -> None:
    assert library_of(write_tiny(pooling_type=9), tmp_path).locate("m").info.capabilities == frozenset()


def test_settings_that_nobody_knows_are_left_out_where_the_server_was_told_so(
    write_tiny: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tiny(new_scale=2.5)
    config, _ = load_config(environment={"KAMADO_SERVE_ALLOW_UNKNOWN": "llama.new_scale"}, flags={})
    assert config.allow_unknown == ["llama.new_scale"]
    strict = library_of(path, tmp_path)
    assert strict.locate("m").info.capabilities == frozenset()
    library = StoreLibrary(Store(tmp_path / "store"), {"m": path}, config.allow_unknown)
    assert "completion" in library.locate("m").info.capabilities

    async def load(library: StoreLibrary, **settings: Any) -> None:
        loader = EngineLoader(library, EngineSettings(threads=1, context=256, **settings))
        await loader.estimate("m", LoadOptions())
        await (await loader.load("m", LoadOptions(), None)).close()

    with pytest.raises(UnsupportedError, match=r"llama\.new_scale"):
        asyncio.run(load(strict))
    asyncio.run(load(library, allow_unknown=config.allow_unknown))
    (told,) = (record for record in caplog.records if record.getMessage() == "settings not applied")
    assert told.settings == ["llama.new_scale"]  # type: ignore[attr-defined]
