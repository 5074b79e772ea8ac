"""A response as it is put together, and each step of that as an event."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from typing import Any

from ...models.contract import (
    Done,
    Event,
    Finish,
    ReasoningDelta,
    Started,
    TextDelta,
    TokenCounts,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)
from .family import new_id
from .responses_bodies import ENCRYPTED, ResponsesBody, named_parts
from .results import ChatLogprob, account_of, chat_logprob

# How an item of text begins: what its id begins with, and its own fields.
_HEADS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "message": ("msg_", {"role": "assistant", "status": "in_progress"}),
    "reasoning": ("rs_", {"status": "in_progress", "summary": ()}),
}


class ResponseMaker:
    """Puts a response together, and says each step as an event."""

    def __init__(self, body: ResponsesBody) -> None:
        self._number = 0
        self._started: Started | None = None
        self._item: dict[str, Any] | None = None  # the open one
        self._text: list[str] = []  # of the open item
        self._logprobs: list[ChatLogprob] = []
        self._calls: dict[int, int] = {}  # a call's index -> its place in the output
        include = body.include or ()
        self._has_logprobs = body.top_logprobs is not None or any("logprobs" in name for name in include)
        self._seals_reasoning = ENCRYPTED in include
        self._spaces = named_parts(body.tools)
        reasoning = body.reasoning
        text_format = body.text.format if body.text is not None else None
        self.response: dict[str, Any] = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "model": body.model,
            "output": [],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": body.temperature,
            "text": {"format": _format_of(text_format), "verbosity": "medium"},
            "tool_choice": body.tool_choice if body.tool_choice is not None else "auto",
            "tools": [_tool_of(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": body.truncation or "disabled",
            "usage": None,
            "user": body.user,
            "metadata": body.metadata or {},
        }

    def take(self, event: Event) -> list[dict[str, Any]]:
        """The response's events that one of the stream becomes."""
        if isinstance(event, Started):
            self._started = event
            return [self._whole("response.created"), self._whole("response.in_progress")]
        if isinstance(event, TextDelta):
            return self._more("message", event.text, event.logprobs)
        if isinstance(event, ReasoningDelta):
            return self._more("reasoning", event.text, ())
        if isinstance(event, ToolCallStart):
            call = {
                "type": "function_call",
                "id": new_id("fc_"),
                "call_id": event.id,
                **self._named(event.name),
                "arguments": "",
                "status": "in_progress",
            }
            return [*self._close(), *self._open(call)]
        if isinstance(event, ToolCallDelta):
            assert self._item is not None
            self._text.append(event.arguments)
            place = self._place()
            return [self._event("response.function_call_arguments.delta", **place, delta=event.arguments)]
        if isinstance(event, ToolCallEnd):
            return self._close("incomplete" if event.is_cut else "completed")
        if isinstance(event, Finish):
            is_cut = event.reason == "length"
            closing = self._close("incomplete" if is_cut else "completed")
            self.response["status"] = "incomplete" if is_cut else "completed"
            if is_cut:
                self.response["incomplete_details"] = {"reason": "max_output_tokens"}
            return closing
        if isinstance(event, Done):
            self.complete(event.counts)
            return [self._whole(f"response.{self.response['status']}")]
        return []

    def _named(self, name: str) -> dict[str, Any]:
        """A call's name as its tool was given: a function of a namespace has both names."""
        if name not in self._spaces:
            return {"name": name}
        namespace, own = self._spaces[name]
        return {"namespace": namespace, "name": own}

    def complete(self, counts: TokenCounts) -> None:
        """Adds the account."""
        assert self._started is not None
        self.response["usage"] = {
            "input_tokens": counts.num_prompt_tokens,
            "input_tokens_details": {"cached_tokens": counts.num_cached_tokens, "cache_write_tokens": 0},
            "output_tokens": counts.num_generated_tokens,
            "output_tokens_details": {"reasoning_tokens": counts.num_reasoning_tokens},
            "total_tokens": counts.num_prompt_tokens + counts.num_generated_tokens,
        }
        self.response["completed_at"] = int(time.time())
        self.response["kamado"] = account_of(self._started, counts)

    def fail(self, message: str) -> list[dict[str, Any]]:
        """The last events of a response that met a fault: an item that was open ends as it is."""
        closing = self._close("incomplete")
        self.response["status"] = "failed"
        self.response["error"] = {"code": "server_error", "message": message}
        return [*closing, self._whole("response.failed")]

    def _more(self, kind: str, text: str, logprobs: tuple[TokenLogprob, ...]) -> list[dict[str, Any]]:
        events = []
        if self._item is None or self._item["type"] != kind:
            events += self._close()
            prefix, head = _HEADS[kind]
            events += self._open({"type": kind, "id": new_id(prefix), **head, "content": []})
            events.append(self._event("response.content_part.added", **self._place(0), part=self._part("", [])))
        self._text.append(text)
        shown = [chat_logprob(token) for token in logprobs]
        self._logprobs += shown
        events.append(self._text_event("delta", delta=text, logprobs=shown))
        return events

    def _text_event(self, step: str, **fields: Any) -> dict[str, Any]:
        """More or the end of the open item's text; what is reasoned has no log-probabilities."""
        part = self._part("", [])["type"]
        if part == "reasoning_text":
            del fields["logprobs"]
        return self._event(f"response.{part}.{step}", **self._place(0), **fields)

    def _open(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        self._item, self._text, self._logprobs = item, [], []
        self.response["output"].append(item)
        return [self._event("response.output_item.added", output_index=self._index(), item=dict(item))]

    def _close(self, status: str = "completed") -> list[dict[str, Any]]:
        item = self._item
        if item is None:
            return []
        text = "".join(self._text)
        item["status"] = status
        events = []
        if item["type"] == "function_call":
            item["arguments"] = text
            events.append(
                self._event("response.function_call_arguments.done", **self._place(), arguments=text, name=item["name"])
            )
        else:
            part = self._part(text, self._logprobs)
            events.append(self._text_event("done", text=text, logprobs=list(self._logprobs)))
            events.append(self._event("response.content_part.done", **self._place(0), part=part))
            item["content"] = [part]
            if item["type"] == "reasoning" and self._seals_reasoning:
                item["encrypted_content"] = base64.b64encode(text.encode()).decode("ascii")
        events.append(self._event("response.output_item.done", output_index=self._index(), item=dict(item)))
        self._item = None
        return events

    def _part(self, text: str, logprobs: list[ChatLogprob]) -> dict[str, Any]:
        assert self._item is not None
        if self._item["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        part: dict[str, Any] = {"type": "output_text", "text": text, "annotations": []}
        if self._has_logprobs:
            part["logprobs"] = list(logprobs)
        return part

    def _index(self) -> int:
        return len(self.response["output"]) - 1

    def _place(self, content_index: int | None = None) -> dict[str, Any]:
        assert self._item is not None
        place = {"item_id": self._item["id"], "output_index": self._index()}
        return place if content_index is None else {**place, "content_index": content_index}

    def _whole(self, kind: str) -> dict[str, Any]:
        return self._event(kind, response={**self.response, "output": list(self.response["output"])})

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}


def _format_of(form: Any) -> dict[str, Any]:
    if form is None:
        return {"type": "text"}
    if form.type != "json_schema":
        return {"type": form.type}
    return {
        "type": form.type,
        "name": form.name or "answer",
        "description": form.description,
        "schema": form.schema,
        "strict": form.strict,
    }


def _tool_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") == "namespace":
        return {**tool, "tools": [_tool_of(inner) for inner in tool["tools"]]}
    return {
        "type": "function",
        "name": tool["name"],
        "description": tool.get("description"),
        "parameters": tool.get("parameters"),
        "strict": tool.get("strict") is True,
    }
