"""What is said to those who ask a model to reason that cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..http.parameters import LeftOut
from ..http.routes import Call
from ..models.contract import Effort, Think

# The protocols' words for how much to reason, but "none"; models here know of no more than high.
EFFORTS: Mapping[str, Effort] = {
    "minimal": "minimal", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high",
}  # fmt: skip


async def say_if_it_cannot_think(call: Call[Any], model: str, think: Think, *parameters: str) -> None:
    """Names what asked for reasoning among what was left out, when the model has no way to reason.

    Before a model was loaded, its template's words decide; after it, what the template was seen to do. Raises
    ModelNotFoundError.
    """
    if think.enabled is False or think == Think():
        return
    info = await call.server.service.model(model)
    if not info.capabilities or "thinking" in info.capabilities:
        return
    for name in parameters:
        call.leave_out(LeftOut(name, f"{info.name} has no way to reason"))
