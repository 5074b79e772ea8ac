"""The engine itself behind the server, on a scripted executor whose tokens are bytes and ChatML's marks."""

from __future__ import annotations

from engine import chat_families
from engine.spelling import Speller

from kamado.serve.models.contract import LoadOptions, ModelInfo, ServedModel
from kamado.serve.models.engine_model import EngineModel

INFO = ModelInfo("m", capabilities=frozenset({"completion", "chat"}), max_context=4096)


class SpellerLoader:
    """Loads the one model there is."""

    def __init__(self) -> None:
        self.speller = Speller(chat_families.QWEN)

    async def share(self, name: str) -> ServedModel | None:
        return None

    async def estimate(self, name: str, options: LoadOptions) -> int:
        return 1000

    async def load(self, name: str, options: LoadOptions, memory_bytes: int | None) -> ServedModel:
        return EngineModel(self.speller.model, INFO)
