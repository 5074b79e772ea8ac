#!/usr/bin/env python3
"""Clients that attack a server: grammars that are too deep, bodies that stall, silence, templates, paths, long names.

    python3 benchmarks/hostile.py --url http://127.0.0.1:8417 --model smollm2:135m --clients 16 --seconds 60
    python3 benchmarks/hostile.py … --only A2        # one kind
    python3 benchmarks/hostile.py … --only lists

Each client sends one attack after the other by lot. An attack is answered as it should when it gets a 4xx, a 503 with
Retry-After, a closed connection, or (where it asks for something that can be had) 200. Prints one line of JSON: how
often each attack was sent, the statuses, and every answer that was none of these. benchmarks/serve_load.py --hostile N
runs it as a process of its own beside honest clients.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import urlsplit

SILENT_SECONDS = 12.0  # longer than a header may take
ANSWER_SECONDS = 120.0
MAX_ECHO_BYTES = 6000  # of a refusal: it must not repeat what it was sent


@dataclass
class Target:
    """Whom to attack, and what came of it."""

    host: str
    port: int
    model: str
    sent: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    longest_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Attack:
    """One kind."""

    case: str  # as in the list of cases: A1, A2, …
    name: str
    run: Callable[[Target, random.Random], Awaitable[str]]  # the status, or how the connection ended


# --- speaking ---------------------------------------------------------------------------------------------------------


async def exchange(target: Target, head: str, body: bytes | Iterator[bytes], *, may_be_fine: bool = True) -> str:
    """Sends a request on a connection of its own; the status of its answer, or "closed"."""
    reader, writer = await asyncio.open_connection(target.host, target.port)
    try:
        sender = asyncio.create_task(_send(writer, head, body))
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await _read(reader)
        except TimeoutError:
            raise AssertionError(f"no answer in {ANSWER_SECONDS:.0f} s") from None
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
    finally:
        writer.transport.abort()
    if not answer:
        return "closed"
    status = answer[9:12].decode("ascii", "replace")
    if status.startswith("5") and (status != "503" or b"retry-after:" not in answer.lower()):
        raise AssertionError(f"{status}: {answer[-300:]!r}")
    if status == "200" and not may_be_fine:
        raise AssertionError(f"taken: {answer[-300:]!r}")
    if status != "200" and len(answer) > MAX_ECHO_BYTES:
        raise AssertionError(f"{status} of {len(answer)} bytes: {answer[:300]!r}")
    return status


async def _send(writer: asyncio.StreamWriter, head: str, body: bytes | Iterator[bytes]) -> None:
    writer.write(head.encode("latin-1"))
    if isinstance(body, bytes):
        writer.write(body)
        await writer.drain()
        return
    for chunk in body:
        writer.write(chunk)
        await writer.drain()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """An answer up to its end, 64 KiB of it at the most."""
    found = b""
    try:
        while len(found) < 65536:
            chunk = await reader.read(65536)
            if not chunk:
                break
            found += chunk
            head, is_whole, rest = found.partition(b"\r\n\r\n")
            if not is_whole:
                continue
            length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
            if length is not None and len(rest) >= int(length[1]):
                break
            if length is None and rest.endswith(b"0\r\n\r\n"):
                break
    except ConnectionError:
        pass
    return found


def post(target: Target, path: str, body: bytes, *, more: str = "", method: str = "POST") -> tuple[str, bytes]:
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost:{target.port}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n{more}\r\n", body


async def send_json(target: Target, path: str, value: Any, *, may_be_fine: bool = True, method: str = "POST") -> str:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return await exchange(target, *post(target, path, body, method=method), may_be_fine=may_be_fine)


# --- A1: grammars -----------------------------------------------------------------------------------------------------


@cache
def deep_schema(kind: str, links: int) -> dict[str, Any]:
    """A chain of references through objects, allOf or arrays; below 256 KiB, which are refused for their size."""

    def link(i: int) -> dict[str, Any]:
        next_one = {"$ref": f"#/$defs/d{i + 1}"}
        if kind == "allOf":
            return {"allOf": [next_one]}
        if kind == "items":
            return {"type": "array", "items": next_one}
        return {"type": "object", "properties": {"x": next_one}, "required": ["x"], "additionalProperties": False}

    definitions = {f"d{i}": link(i) for i in range(links)} | {f"d{links}": {"type": "string"}}
    return {"$defs": definitions, "type": "object", "properties": {"x": {"$ref": "#/$defs/d0"}}, "required": ["x"]}


@cache
def deep_lark(kind: str, rules: int) -> str:
    """A chain of rules or of terminals, or rules in a circle."""
    if kind == "terminals":
        return "\n".join(["start: T0", *(f"T{i}: T{i + 1}" for i in range(rules)), f'T{rules}: "a"'])
    end = "r0" if kind == "circle" else '"a"'
    return "\n".join(["start: r0", *(f"r{i}: r{i + 1}" for i in range(rules)), f"r{rules}: {end}"])


def _chat(target: Target, **more: Any) -> dict[str, Any]:
    return {"model": target.model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **more}


async def deep_references(target: Target, lots: random.Random) -> str:
    schema = deep_schema(lots.choice(("object", "allOf", "items")), lots.choice((300, 931, 1500, 2200)))
    tool = {"name": "f", "description": "", "parameters": schema}
    form = {"type": "json_schema", "json_schema": {"name": "f", "schema": schema}}
    path, body = lots.choice(
        (
            ("/v1/chat/completions", _chat(target, response_format=form)),
            ("/v1/chat/completions", _chat(target, tools=[{"type": "function", "function": tool}])),
            (
                "/v1/chat/completions",
                _chat(target, tools=[{"type": "function", "function": tool}], tool_choice="required"),
            ),
            ("/api/chat", {"model": target.model, "messages": [], "format": schema, "options": {"num_predict": 4}}),
            ("/v1/messages", _chat(target, tools=[{"name": "f", "input_schema": schema}])),
            (
                "/v1/responses",
                {
                    "model": target.model,
                    "input": "hi",
                    "max_output_tokens": 16,
                    "text": {"format": {"type": "json_schema", "name": "f", "schema": schema}},
                },
            ),
        )
    )
    return await send_json(target, path, body)


async def deep_rules(target: Target, lots: random.Random) -> str:
    grammar = deep_lark(lots.choice(("rules", "terminals", "circle")), lots.choice((500, 2718, 5000)))
    return await send_json(
        target, "/v1/chat/completions", _chat(target, response_format={"type": "lark", "grammar": grammar})
    )


# --- A2: bodies -------------------------------------------------------------------------------------------------------


@cache
def stalling_body(kind: str, model: str) -> bytes:
    """Bodies that size alone does not bound."""
    name = json.dumps(model).encode()
    size = 27_000_000
    if kind == "lists":
        return b'{"model":%b,"messages":[%b[]]}' % (name, b"[]," * (size // 3))
    if kind == "objects":
        return b'{"model":%b,"metadata":{"a":[%b1]},"messages":[]}' % (name, b'{"a":[]},' * (size // 9))
    if kind == "numbers":
        return b'{"model":%b,"messages":[],"stop":[%b1]}' % (name, b"1," * (size // 2))
    if kind == "messages":
        one = b'{"role":"user","content":"a"}'
        return b'{"model":%b,"messages":[%b]}' % (name, b",".join([one] * (size // (len(one) + 1))))
    if kind == "keys":
        keys = b",".join(b'"%x":1' % i for i in range(size // 10))
        return b'{"model":%b,"messages":[],"logit_bias":{%b}}' % (name, keys)
    if kind == "keys_below":  # as many as the gate lets pass
        keys = b",".join(b'"%x":1' % i for i in range(195_000))
        return b'{"model":%b,"messages":[],"logit_bias":{%b}}' % (name, keys)
    if kind == "objects_below":
        return b'{"model":%b,"messages":[],"metadata":{"a":[%b1]}}' % (name, b'{"a":1},' * 105_000)
    if kind == "deep":
        return b'{"model":%b,"messages":%b%b}' % (name, b"[" * (size // 2), b"]" * (size // 2))
    if kind == "wide":
        text = b"a" * size + "😀".encode()
        return b'{"model":%b,"messages":[{"role":"user","content":"%b"}]}' % (name, text)
    assert kind == "quotes"
    return b'{"model":%b,"messages":[{"role":"user","content":"%b"}]}' % (name, rb"\"" * (size // 2))


def _body_attack(kind: str) -> Callable[[Target, random.Random], Awaitable[str]]:
    async def run(target: Target, lots: random.Random) -> str:
        return await send_json(target, "/v1/chat/completions", stalling_body(kind, target.model), may_be_fine=False)

    return run


async def token_ids(target: Target, lots: random.Random) -> str:
    body = b'{"model":%b,"prompt":[%b1],"max_tokens":1}' % (json.dumps(target.model).encode(), b"1," * 450_000)
    return await send_json(target, "/v1/completions", body, may_be_fine=False)


async def long_text(target: Target, lots: random.Random) -> str:
    """Within every bound of the gate; no context has room for it."""
    body = json.dumps(_chat(target) | {"messages": [{"role": "user", "content": "word " * 400_000}]}).encode()
    return await send_json(target, "/v1/chat/completions", body, may_be_fine=False)


async def crumbs(target: Target, lots: random.Random) -> str:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost:{target.port}\r\ntransfer-encoding: chunked\r\n\r\n"
    return await exchange(target, head, (b"1\r\n \r\n" * 10_000 for _ in range(100)), may_be_fine=False)


async def held_body(target: Target, lots: random.Random) -> str:
    """Most of a body, and then nothing for a while."""
    head, body = post(target, "/v1/chat/completions", b" " * 20_000_000)
    _, writer = await asyncio.open_connection(target.host, target.port)
    try:
        sender = asyncio.create_task(_send(writer, head, body[:-1]))
        await asyncio.sleep(lots.uniform(1, 4))
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
    finally:
        writer.transport.abort()
    return "left"


# --- A3: connections --------------------------------------------------------------------------------------------------


async def silence(target: Target, lots: random.Random) -> str:
    """Many connections without a word, or with the beginning of one."""
    start = time.monotonic()
    lines = [await asyncio.open_connection(target.host, target.port) for _ in range(40)]
    try:
        for _, writer in lines[::2]:
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\nx")
        while time.monotonic() - start < SILENT_SECONDS:
            await asyncio.sleep(2.0)
            for _, writer in lines[::2]:
                writer.write(b"a")
        for reader, _ in lines:
            async with asyncio.timeout(SILENT_SECONDS):
                await _read(reader)
    except TimeoutError:
        raise AssertionError("a silent connection was not closed") from None
    except ConnectionError:
        pass
    finally:
        for _, writer in lines:
            writer.transport.abort()
    return "closed"


# --- A4: templates ----------------------------------------------------------------------------------------------------

TEMPLATES: tuple[str, ...] = (
    "{%- set a = (range(0, 20000*(2**61-1), 2**61-1)|unique|list)|length %}{{ a }}",
    "{{a}}" * 100_000,
    "{% if a %}" + "{% elif b %}" * 30_000 + "{% endif %}",
    "{%- for a in range(99999) %}{%- for b in range(99999) %}{%- endfor %}{%- endfor %}",
    "{{ range(99999)|map('string')|list|sort|join('')|length }}{{ messages|groupby('role')|list }}" * 50,
    "{{ ('a' * 100000) * 100000 }}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
)


async def template(target: Target, lots: random.Random) -> str:
    """Makes a model with a hostile template, asks it, and takes it away again."""
    name = f"hostile-{lots.randrange(1 << 30):x}"
    made = {"model": name, "from": target.model, "template": lots.choice(TEMPLATES), "stream": False}
    status = await send_json(target, "/api/create", made)
    if status == "200":
        asked = {"model": name, "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 1}}
        status = await send_json(target, "/api/chat", asked | {"stream": False, "keep_alive": 0})
        await send_json(target, "/api/delete", {"model": name}, method="DELETE")
    return status


# --- A6: paths --------------------------------------------------------------------------------------------------------

PATHS = (
    "./pyproject.tom", "src/kamado", "/etc/passw", "~/.bashr", "../kamad", "pyproject.tom", "README.m", "tests",
    "..", ".", "a/../../etc", "hf:../..", "file:///etc/passwd", "docs/serve.m", "\\\\host\\share", "x.gguf",
)  # fmt: skip


async def path(target: Target, lots: random.Random) -> str:
    name = lots.choice(PATHS)
    where, method, body = lots.choice(
        (
            ("/api/pull", "POST", {"model": name, "stream": False}),
            ("/api/show", "POST", {"model": name}),
            ("/api/create", "POST", {"model": "hostile-path", "from": name, "stream": False}),
            ("/api/copy", "POST", {"source": name, "destination": "hostile-copy"}),
            ("/api/delete", "DELETE", {"model": name}),
            ("/v1/chat/completions", "POST", _chat(target, model=name)),
        )
    )
    return await send_json(target, where, body, method=method, may_be_fine=False)


# --- A7: what is repeated, what is hidden -----------------------------------------------------------------------------


async def long_names(target: Target, lots: random.Random) -> str:
    long = lots.choice("aé\x1b ") * lots.choice((300, 30_000, 1_000_000))
    place = lots.randrange(6)
    body: dict[str, Any] = _chat(target)
    if place == 0:
        body[long] = 1
    elif place == 1:
        body["model"] = long
    elif place == 2:
        body["messages"] = [{"role": long, "content": "hi"}]
    elif place == 3:
        body["tools"] = [{"type": "function", "function": {"name": "f", "parameters": {"type": long}}}]
    elif place == 4:
        body["response_format"] = {"type": long}
    else:
        body["logit_bias"] = {long: 1}
    # A tool that is not strict may have parameters of any type: they are left open, and it is offered as it is.
    return await send_json(target, "/v1/chat/completions", body, may_be_fine=place == 3)


async def long_header(target: Target, lots: random.Random) -> str:
    return await exchange(
        target, *post(target, "/health", b"", more="x: " + "a" * 120_000 + "\r\n", method="GET"), may_be_fine=False
    )


async def foreign_page(target: Target, lots: random.Random) -> str:
    more = "sec-fetch-site: cross-site\r\nsec-fetch-mode: navigate\r\n"
    body = json.dumps(_chat(target)).encode()
    return await exchange(target, *post(target, "/v1/chat/completions", body, more=more), may_be_fine=False)


async def odd_numbers(target: Target, lots: random.Random) -> str:
    number = lots.choice((b"1e-320", b"5e-324", b"-0.0", b"1e308", b"1e999", b"2"))
    name = lots.choice((b"temperature", b"top_p", b"min_p", b"repetition_penalty", b"presence_penalty"))
    body = json.dumps(_chat(target)).encode()[:-1] + b', "%b": %b}' % (name, number)
    return await send_json(target, "/v1/chat/completions", body)


ATTACKS: tuple[Attack, ...] = (
    Attack("A1", "references", deep_references),
    Attack("A1", "rules", deep_rules),
    *(
        Attack("A2", kind, _body_attack(kind))
        for kind in (
            "lists",
            "objects",
            "numbers",
            "messages",
            "keys",
            "keys_below",
            "objects_below",
            "deep",
            "wide",
            "quotes",
        )
    ),
    Attack("A2", "token_ids", token_ids),
    Attack("A2", "long_text", long_text),
    Attack("A2", "crumbs", crumbs),
    Attack("A2", "held_body", held_body),
    Attack("A3", "silence", silence),
    Attack("A4", "template", template),
    Attack("A6", "path", path),
    Attack("A7", "long_names", long_names),
    Attack("A7", "long_header", long_header),
    Attack("A7", "foreign_page", foreign_page),
    Attack("A7", "odd_numbers", odd_numbers),
)


# --- the run ----------------------------------------------------------------------------------------------------------


async def client(number: int, target: Target, attacks: list[Attack], end: float, pause: float) -> None:
    """One attacker. Each kind of case is as likely as another."""
    lots = random.Random(number)
    cases = sorted({attack.case for attack in attacks})
    while time.monotonic() < end:
        case = lots.choice(cases)
        attack = lots.choice([attack for attack in attacks if attack.case == case])
        name = f"{attack.case} {attack.name}"
        target.sent[name] += 1
        begun = time.monotonic()
        try:
            target.statuses[await attack.run(target, lots)] += 1
        except AssertionError as error:
            target.faults.append(f"{name}: {error}")
        except OSError as error:
            target.statuses[type(error).__name__] += 1
            if isinstance(error, ConnectionRefusedError):
                target.faults.append(f"{name}: nobody listens any more")
                return
        target.longest_seconds[name] = max(target.longest_seconds.get(name, 0.0), time.monotonic() - begun)
        await asyncio.sleep(lots.uniform(0, 2 * pause))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--pause", type=float, default=0.5, help="between a client's attacks, seconds in the mean")
    parser.add_argument("--only", default="", help="cases (A2) or names (lists), separated by commas")
    options = parser.parse_args()
    if hasattr(os, "nice"):
        os.nice(10)  # what is measured is the server's work, not ours
    wanted = set(filter(None, options.only.split(",")))
    attacks = [attack for attack in ATTACKS if not wanted or wanted & {attack.case, attack.name}]
    if not attacks:
        parser.error(f"there is no attack of {options.only!r}")
    parts = urlsplit(options.url)
    target = Target(parts.hostname or "127.0.0.1", parts.port or 80, options.model)
    end = time.monotonic() + options.seconds

    async def run() -> None:
        await asyncio.gather(*(client(i, target, attacks, end, options.pause) for i in range(options.clients)))

    asyncio.run(run())
    report = {
        "sent": dict(sorted(target.sent.items())),
        "statuses": dict(sorted(target.statuses.items())),
        "longest_seconds": {name: round(value, 2) for name, value in sorted(target.longest_seconds.items())},
        "faults": target.faults[:20],
        "num_faults": len(target.faults),
    }
    print(json.dumps(report))
    return 1 if target.faults else 0


if __name__ == "__main__":
    sys.exit(main())
