"""All routes of all families, and which family a path belongs to. A new family is two lines here."""

from __future__ import annotations

from .http.routes import Family, Route
from .ops import health as ops
from .protocols import direct, model_lists, tokens
from .protocols.anthropic import handlers as anthropic
from .protocols.ollama import handlers as ollama
from .protocols.ollama import library as ollama_library
from .protocols.openai import handlers as openai
from .protocols.openai import responses
from .protocols.openai.family import FAMILY as OPENAI
from .web import page


def all_routes() -> list[Route]:
    """Every route there is."""
    modules = (ops, openai, responses, model_lists, tokens, anthropic, ollama, ollama_library, page)
    return [route for module in modules for route in module.ROUTES]


def own_routes() -> list[Route]:
    """Those of Kamado's own protocol, which no other program speaks and compatibility.md does not list."""
    return list(direct.ROUTES)


def family_of(path: str) -> Family:
    """The family in whose shape a fault on `path` is written when no route says so."""
    if path.startswith(("/kamado/", "/local/")):
        return direct.DIRECT
    if path.startswith("/api/"):
        return ollama.FAMILY
    return anthropic.FAMILY if path.startswith("/v1/messages") else OPENAI
