"""Fuzz request bodies: each becomes a request, or is refused by name, within its bounds of time and memory.

The first byte chooses the route; the rest is the body, which goes the way that app.py takes it: cost, plain data, the
table of parameters, the Struct, and the family's own request.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import msgspec
from serve.fake import FakeWorld  # tests/serve

from kamado.errors import KamadoError
from kamado.serve.app import Server
from kamado.serve.config import ServeConfig
from kamado.serve.families import all_routes
from kamado.serve.faults import MAX_MESSAGE_CHARACTERS, fault_of
from kamado.serve.http.bodies import BodyDecoder, BodyLimits, decode_body
from kamado.serve.http.keys import LOCAL, KeyRing
from kamado.serve.http.routes import Call
from kamado.serve.run import make_server

_LIMITS = BodyLimits(max_bytes=1 << 16, max_depth=32, timeout_seconds=1.0, max_values=5000, max_memory_bytes=1 << 20)
_MAX_SECONDS = 3.0  # of this process's processor for one input; a millisecond is usual
_ROUTES = [route for route in all_routes() if route.body is not None]
_loop = asyncio.new_event_loop()


def _server() -> Server:
    world = FakeWorld({})
    return make_server(ServeConfig(), world.library, world.loader, keys=KeyRing())


def fuzz_one(data: bytes) -> None:
    """One body for one route. Raises only for a fault of ours."""
    route = _ROUTES[data[0] % len(_ROUTES)] if data else _ROUTES[0]
    assert route.body is not None
    begun = time.process_time()
    server = _server()
    try:
        left_out: list[Any] = []
        decoder = BodyDecoder(route.body, _LIMITS, lambda value: server._admit(route, value, left_out))
        body = decode_body(data[1:], decoder)
        assert isinstance(body, msgspec.Struct)
        call = Call(server, body, dict.fromkeys(("model", "id"), "fake"), {}, {}, LOCAL, "req_fuzz")
        _loop.run_until_complete(_handle(route, call))
    except KamadoError as error:
        fault = fault_of(error)
        assert fault.kind != "internal", fault
        assert len(fault.message) <= MAX_MESSAGE_CHARACTERS + 2
    finally:
        _loop.run_until_complete(_close(server))
    assert time.process_time() - begun < _MAX_SECONDS


async def _handle(route: Any, call: Call[Any]) -> None:
    """The handler, to the end of its answer."""
    response = await route.handler(call)
    if response.chunks is not None:
        async for _ in response.chunks:
            pass


async def _close(server: Server) -> None:
    await server.service.close()
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    from _loop import run

    words = (
        '{ } [ ] , : "model" "fake" "messages" "role" "user" "system" "assistant" "tool" "content" "type" "text" '
        '"input" "tools" "function" "parameters" "name" "tool_choice" "response_format" "json_schema" "schema" "$ref" '
        '"format" "stream" true false null 0 1 -1 1e308 1e-320 0.5 "" "stop" "options" "think" "n" "logit_bias" '
        '"metadata" "image_url" "url" "tool_calls" "arguments" "id" "prompt" "suffix" "images" "template" "from" '
        "\\ud800"
    )
    run("body", fuzz_one, (*map(str.encode, words.split()), *(bytes([i]) for i in range(len(_ROUTES)))))
