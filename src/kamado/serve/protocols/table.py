"""The one table of parameters: every row of every endpoint. docs/compatibility.md is made from it and its tests."""

from __future__ import annotations

from typing import Any

from ..http.parameters import LeftOut, Table, tidy
from .anthropic import rows as anthropic
from .ollama import rows as ollama
from .openai import rows as openai

TABLE = Table((*openai.ROWS, *anthropic.ROWS, *ollama.ROWS))


def admit(endpoint: str, body: dict[str, Any], kind: type) -> list[LeftOut]:
    """Makes `body` ready to become a `kind`: tidied, and without what is left out, which is returned.

    Raises RequestError naming a parameter that is refused. `body` is changed.
    """
    tidy(body, kind, is_ollama=endpoint.partition(" ")[2].startswith("/api/"))
    return TABLE.admit(endpoint, body)
