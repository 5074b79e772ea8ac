"""Hooks for schemathesis (SCHEMATHESIS_HOOKS): requests name a model that is there, to get past that check."""

from __future__ import annotations

from typing import Any

import schemathesis

_NAMES = ("model", "name", "source")


@schemathesis.hook
def map_body(context: Any, body: Any) -> Any:
    """Two of three texts that name a model name the scripted one; the third stays as it was generated."""
    if isinstance(body, dict):
        for field in _NAMES:
            if isinstance(body.get(field), str) and len(body[field]) % 3:
                body[field] = "fake"
        if isinstance(body.get("from"), str) and len(body["from"]) % 3:
            body["from"] = "other"
    return body


@schemathesis.hook
def map_path_parameters(context: Any, path_parameters: Any) -> Any:
    """The same for paths."""
    if isinstance(path_parameters, dict) and len(str(path_parameters.get("model", ""))) % 3:
        path_parameters["model"] = "fake"
    return path_parameters
