"""All routes of all families, and which family a path belongs to. A new family is two lines here."""

from __future__ import annotations

from ..http.routes import Family, Route


def all_routes() -> list[Route]:
    """Every route there is. Imported when asked: the table is the first that needs the families."""
    from ..ops import health as ops
    from ..web import page
    from . import tokens
    from .anthropic import handlers as anthropic
    from .ollama import handlers as ollama
    from .ollama import library as ollama_library
    from .openai import handlers as openai
    from .openai import responses

    modules = (ops, openai, responses, tokens, anthropic, ollama, ollama_library, page)
    return [route for module in modules for route in module.ROUTES]


def family_of(path: str) -> Family:
    """The family in whose shape a fault on `path` is written when no route says so."""
    from .anthropic import handlers as anthropic
    from .ollama import handlers as ollama
    from .openai import handlers as openai

    if path.startswith("/api/"):
        return ollama.FAMILY
    return anthropic.FAMILY if path.startswith("/v1/messages") else openai.FAMILY
