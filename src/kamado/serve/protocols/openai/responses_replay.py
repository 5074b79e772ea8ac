"""A stored response as the events that made it, for clients that fetch it as a stream. Texts come in one piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any


def replay(response: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The events in their order, numbered from 0; the last one carries the whole response."""
    numbers = count()

    def event(kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(numbers), **fields}

    begun = {**response, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for i, item in enumerate(response["output"]):
        empty: dict[str, Any] = {**item, "status": "in_progress"}
        empty["content" if "content" in item else "arguments"] = [] if "content" in item else ""
        yield event("response.output_item.added", output_index=i, item=empty)
        place = {"item_id": item["id"], "output_index": i}
        if item["type"] == "function_call":
            yield event("response.function_call_arguments.delta", **place, delta=item["arguments"])
            yield event(
                "response.function_call_arguments.done", **place, arguments=item["arguments"], name=item["name"]
            )
        for j, part in enumerate(item.get("content") or ()):
            here = {**place, "content_index": j}
            kind = "output_text" if part["type"] == "output_text" else "reasoning_text"
            more = {"logprobs": part.get("logprobs", [])} if kind == "output_text" else {}
            yield event("response.content_part.added", **here, part={**part, "text": ""})
            yield event(f"response.{kind}.delta", **here, delta=part["text"], **more)
            yield event(f"response.{kind}.done", **here, text=part["text"], **more)
            yield event("response.content_part.done", **here, part=part)
        yield event("response.output_item.done", output_index=i, item=item)
    yield event(f"response.{response['status']}", response=response)
