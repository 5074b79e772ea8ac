"""Bodies on the wire: what they may cost in values and memory, alone and together, and that nobody waits for them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from kamado._native import JsonCost
from kamado.errors import UsageError
from kamado.library.store import Store
from kamado.serve.config import ServeConfig
from kamado.serve.faults import FaultError
from kamado.serve.http.bodies import BodyBudget
from kamado.serve.models.library import StoreLibrary
from kamado.serve.models.loader import EngineLoader, EngineSettings
from kamado.serve.share import models_bytes, server_share

from .fake import FakeWorld
from .processes import started
from .running import Running, running

MIB = 1 << 20
CHAT = "/v1/chat/completions"


@contextlib.contextmanager
def serving(**settings: object) -> Iterator[Running]:
    world = FakeWorld({})
    with running(world.library, world.loader, ServeConfig(port=0, **settings)) as found:  # type: ignore[arg-type]
        yield found


# --- the cost of a text -----------------------------------------------------------------------------------------------


def by_hand(text: bytes) -> tuple[int, int]:
    """Depth and weight, a byte at a time."""
    depth = level = weight = num_slow = 0
    in_string = escaped = False
    for byte in text:
        if in_string:
            num_slow += (byte == ord("\\") and not escaped) or byte >= 0xC0
            if escaped:
                escaped = False
            elif byte == ord("\\"):
                escaped = True
            elif byte == ord('"'):
                in_string = False
        elif byte == ord('"'):
            in_string = True
        elif byte in b"[{":
            level += 1
            depth = max(depth, level)
            weight += 4
        elif byte in b"]}":
            level -= 1
        else:
            weight += {ord(","): 1, ord(":"): 16}.get(byte, 0)
    return depth, weight + num_slow // 4


def some_json(lots: random.Random, depth: int = 0) -> object:
    kind = lots.randrange(7 if depth < 5 else 4)
    if kind < 2:
        return "".join(lots.choice('a"\\[]{},:é日😀\n') for _ in range(lots.randrange(12)))
    if kind < 4:
        return lots.choice((1, -2.5, True, None, 10**20))
    if kind < 6:
        return [some_json(lots, depth + 1) for _ in range(lots.randrange(5))]
    return {str(some_json(lots, 9)): some_json(lots, depth + 1) for _ in range(lots.randrange(4))}


def json_cost(text: bytes, piece_bytes: int) -> JsonCost:
    cost = JsonCost()
    for at in range(0, len(text), piece_bytes):
        cost.take(text[at : at + piece_bytes])
    return cost


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 64, 1 << 17])
def test_the_cost_is_what_counting_by_hand_finds(piece_bytes: int) -> None:
    lots = random.Random(piece_bytes)
    for i in range(150):
        text = json.dumps(some_json(lots), ensure_ascii=i % 2 == 0).encode()
        cost = json_cost(text, piece_bytes)
        assert (cost.depth, cost.weight) == by_hand(text), text


@pytest.mark.parametrize("piece_bytes", [5, 1 << 17])
def test_strings_are_counted_by_their_own_widest_character(piece_bytes: int) -> None:
    def nbytes(text: str) -> int:
        return json_cost(text.encode(), piece_bytes).nbytes

    plain = nbytes('["%s"]' % ("a" * 10_000))
    assert 10_000 <= plain <= 11_000
    assert nbytes('["%s"]' % ("a" * 10_000 + "😀")) >= 50_000  # CPython copies it into four bytes a character
    assert nbytes('["%s"]' % ("a" * 10_000 + "\\ud83d\\ude00")) >= 50_000
    assert nbytes(f'["{"a" * 10_000}", "\\u65e5😀"]') <= plain + 500  # another's does not matter
    assert nbytes('["%s"' % ("a" * 10_000)) >= 10_000  # without an end, too


# --- one body ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b'{"model":"x","messages":[%b[]]}' % (b"[]," * 9000), 413, "values"),
        (b'{"model":"x","messages":[],"metadata":{"a":[%b1]}}' % (b"1," * 70_000), 413, "values"),
        (b'{"model":"x","messages":[],"metadata":{%b}}' % b",".join(b'"%d":1' % i for i in range(9000)), 413, "values"),
        (b'{"model":"x","messages":[{"role":"user","content":"%b"}]}' % ("a" * 900_000 + "😀").encode(), 413, "memory"),
        (b'{"model":"x","messages":%b' % (b"[" * 200_000), 400, "nested"),
        (b'{"model":"x","messages":["%b' % (b"\\\\" * 70_000), 400, "JSON"),
        (b'{"model":"x","messages":["%b' % (b"\\\\" * 100_000), 413, "values"),
    ],
)  # fmt: skip
def test_a_large_body_is_bounded_in_what_it_becomes(body: bytes, status: int, words: str) -> None:
    with serving(max_json_values=20_000, max_body_bytes=MIB) as server, httpx2.Client(base_url=server.url) as http:
        answer = http.post(CHAT, content=body)
        assert answer.status_code == status
        assert words in answer.json()["error"]["message"]
        text = "[]{},:" * 100_000  # in a string they are text
        fine = http.post(CHAT, json={"model": "fake", "messages": [{"role": "user", "content": text}]})
        assert fine.status_code == 200


def test_a_body_past_a_bound_is_refused_before_the_rest_of_it_came() -> None:
    with serving() as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as line:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 27000000\r\n\r\n"
            line.sendall(head.encode() + b'{"model":"fake","messages":[' + b"[]," * 300_000)
            assert line.recv(64).startswith(b"HTTP/1.1 413 ")


def _head(path: str, *more: str) -> bytes:
    return "\r\n".join((f"POST {path} HTTP/1.1", "host: localhost", *more, "", "")).encode()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (_head(CHAT, "content-length: 3000100"), 413),
        (_head(CHAT, "transfer-encoding: chunked") + b"200000\r\n", 413),
        (_head("/nowhere", "content-length: 3000100", "connection: close"), 404),
        (_head(CHAT, "content-length: 3000100", "transfer-encoding: chunked"), 400),
        (_head(CHAT, "transfer-encoding: chunked") + b"no length\r\n", 400),
        (_head(CHAT, "x-large: " + "x" * (64 << 10)), 431),
    ],
    ids=["length", "chunks", "nowhere", "two lengths", "no chunk", "large header"],
)
def test_who_sends_all_before_reading_reads_why_it_was_refused(head: bytes, status: int) -> None:
    with serving(max_body_bytes=MIB) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as line:
            line.sendall(head)
            for _ in range(30):  # a reset by the server would show here
                line.sendall(b" " * 100_000)
                time.sleep(0.005)
            heard = b""
            while chunk := line.recv(65536):
                heard += chunk
        assert heard.startswith(b"HTTP/1.1 %d " % status)
        body = heard.partition(b"\r\n\r\n")[2]
        assert json.loads(body)["error"]["message"]


@pytest.mark.parametrize(("piece", "pause"), [(b" ", 0.02), (b" " * 65536, 0.0)], ids=["drip", "flood"])
def test_who_sends_on_after_the_last_answer_is_cut(piece: bytes, pause: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if not pause:
        monkeypatch.setattr("kamado.serve.http.http1._DROP_SECONDS", 60.0)
    with serving(max_body_bytes=MIB) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as line:
            line.sendall(_head(CHAT, "content-length: 30000000000"))
            assert line.recv(64).startswith(b"HTTP/1.1 413 ")
            began = time.monotonic()
            num_sent = 0
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - began < 15:
                    line.sendall(piece)
                    num_sent += len(piece)
                    time.sleep(pause)
                raise AssertionError(f"it was taken for 15 seconds, {num_sent} bytes")
            assert num_sent < 64 * MIB


def test_a_large_body_is_answered_like_a_small_one() -> None:
    with serving() as server, httpx2.Client(base_url=server.url) as http:
        long = "a" * (2 * MIB)  # one word
        for more, status, words in (
            ({}, 200, ""),
            ({"nothing": 1}, 400, "unknown parameter 'nothing'"),
            ({"max_tokens": "x"}, 400, "max_tokens"),
        ):
            body = {"model": "fake", "messages": [{"role": "user", "content": long}], **more}
            answer = http.post(CHAT, json=body)
            assert answer.status_code == status
            assert words in answer.text
        with_mark = b"\xef\xbb\xbf" + json.dumps({"model": "fake", "messages": body["messages"]}).encode()
        assert http.post(CHAT, content=with_mark).status_code == 200


def test_a_prompt_that_no_context_has_room_for_is_refused_untokenized(tmp_path: Path, tiny_checkpoint: Path) -> None:
    library = StoreLibrary(Store(tmp_path), {"tiny": tiny_checkpoint})
    loader = EngineLoader(library, EngineSettings(threads=1, context=256))
    with (
        running(library, loader, ServeConfig(port=0)) as server,
        httpx2.Client(base_url=server.url, timeout=60) as http,
    ):
        long = "a " * (140 << 10)
        asked = [
            (CHAT, {"messages": [{"role": "user", "content": long}]}),
            ("/v1/completions", {"prompt": long}),
            ("/v1/completions", {"prompt": ["hi", long]}),
            ("/api/chat", {"messages": [{"role": "user", "content": long}], "stream": False}),
            ("/api/generate", {"prompt": long, "raw": True, "stream": False}),
        ]
        for path, body in asked:
            answer = http.post(path, json={"model": "tiny", **body})
            assert answer.status_code == 400, path
            assert "without counting" in answer.text, path
        assert (
            http.post(CHAT, json={"model": "tiny", **asked[0][1]}).json()["error"]["code"] == "context_length_exceeded"
        )
        shorter = http.post("/v1/completions", json={"model": "tiny", "prompt": long[: 100 << 10]})
        assert "tokens and the context holds 256" in shorter.text  # counted exactly


def test_what_may_be_cut_is_cut_before_it_is_tokenized(tmp_path: Path, write_tiny: Callable[..., Path]) -> None:
    library = StoreLibrary(Store(tmp_path), {"tiny": write_tiny(), "vectors": write_tiny(pooling_type=3)})
    loader = EngineLoader(library, EngineSettings(threads=1, context=256))
    with (
        running(library, loader, ServeConfig(port=0)) as server,
        httpx2.Client(base_url=server.url, timeout=60) as http,
    ):
        long = "a " * (140 << 10)
        turns = [("user", long), ("assistant", "yes"), ("user", "and now?")]
        messages = [{"role": role, "content": text} for role, text in turns]
        body = {"model": "tiny", "messages": messages, "max_tokens": 2, "truncation": "auto"}
        answer = http.post(CHAT, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["kamado"]["truncated"]["messages"] == 1
        assert answer.json()["kamado"]["truncated"]["tokens"] >= len(long) // 64
        end = {"model": "tiny", "prompt": long, "max_tokens": 2, "truncation": "auto"}
        assert http.post("/v1/completions", json=end).status_code == 200
        whole = http.post("/api/embed", json={"model": "vectors", "input": long})  # truncate is Ollama's default
        assert whole.status_code == 200, whole.text
        first = http.post("/api/embed", json={"model": "vectors", "input": long[:4000]})
        assert whole.json()["embeddings"] == first.json()["embeddings"]
        assert http.post("/v1/embeddings", json={"model": "vectors", "input": long}).status_code == 400


# --- all together -----------------------------------------------------------------------------------------------------


def test_bodies_in_flight_have_one_budget_and_small_ones_a_part_of_their_own() -> None:
    with serving(max_bodies_bytes=MIB, body_timeout=30) as server, httpx2.Client(base_url=server.url) as http:
        host, port = server.url.removeprefix("http://").split(":")
        small = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
        large = {"model": "fake", "messages": [{"role": "user", "content": "a" * 200_000}]}
        assert http.post(CHAT, json=large).status_code == 200
        with socket.create_connection((host, int(port)), timeout=20) as line:
            head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 780000\r\n\r\n"
            line.sendall(head.encode() + b" " * 770_000)  # and then nothing
            end = time.monotonic() + 20
            while server.server._bodies.used_bytes < 770_000:
                assert time.monotonic() < end
                time.sleep(0.01)
            refused = http.post(CHAT, json=large)
            assert refused.status_code == 503
            assert 1 <= int(refused.headers["retry-after"]) <= 60
            assert refused.json()["error"]["code"] == "bodies_in_flight"
            assert http.post(CHAT, json=small).status_code == 200
            found = re.search(r'^kamado_memory_bytes\{model="",owner="server"\} (\d+)', http.get("/metrics").text, re.M)
            assert found is not None
            assert int(found[1]) > 770_000
        end = time.monotonic() + 20
        while http.post(CHAT, json=large).status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.02)
        too_large = http.post(CHAT, content=b" " * MIB)
        assert too_large.status_code == 413  # it could never be had


def test_a_budget_counts_both_parts() -> None:
    budget = BodyBudget(4 * MIB)
    charges = [budget.open() for _ in range(16)]
    for charge in charges:
        charge.resize(64 << 10)
    with pytest.raises(FaultError, match="try again"):
        budget.open().resize(1)
    charges[0].resize(3 * MIB + (64 << 10))
    with pytest.raises(FaultError, match="try again"):
        charges[1].resize((64 << 10) + 1)
    assert charges[1].nbytes == 64 << 10
    for charge in charges:
        charge.close()
        charge.close()
    assert budget.used_bytes == 0


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_servers_share_is_taken_from_what_models_may_have() -> None:
    config = ServeConfig(memory="2GiB")
    share = server_share(config)
    assert share.bodies == 128 * MIB
    assert share.worker == 80 * MIB
    assert share.schemas == 4 * MIB
    assert share.connections == 512 * (80 << 10)
    assert share.libraries == 108 * MIB
    assert share.total == sum(share.parts().values())
    assert models_bytes(config) == 2048 * MIB - share.total
    assert models_bytes(ServeConfig()) is None
    assert server_share(ServeConfig(memory="512MiB")).bodies == 64 * MIB  # an eighth
    assert server_share(ServeConfig(memory="512MiB", max_bodies_bytes=32 * MIB)).bodies == 32 * MIB
    with pytest.raises(UsageError, match="max_bodies_bytes"):
        models_bytes(ServeConfig(memory="100MiB"))


def test_models_share_the_libraries(tmp_path: Path) -> None:
    """The server has them once; a plan counts them for its model alone."""
    pytest.importorskip("kamado._native", reason="the native module is not built")
    from kamado.files import open_checkpoint
    from kamado.library.store import Store
    from kamado.serve.models.contract import LoadOptions
    from kamado.serve.models.library import StoreLibrary
    from kamado.serve.models.loader import EngineLoader, EngineSettings
    from kamado.synth.synthesize import synthesize

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
    from smoke import write_donor

    write_donor(tmp_path / "donor.gguf")
    synthesize(
        tmp_path / "tiny.gguf", "llama", tokenizer_from=open_checkpoint(tmp_path / "donor.gguf"), layers=2, hidden=256,
        heads=4, kv_heads=2, head_dim=64, ffn=512, context=512,
    )  # fmt: skip
    library = StoreLibrary(Store(tmp_path / "store"), {"tiny": tmp_path / "tiny.gguf"})
    loader = EngineLoader(library, EngineSettings(threads=1))

    async def load() -> None:
        most = 1 << 30
        needed = await loader.estimate("tiny", LoadOptions(memory_bytes=most))
        assert needed < 100 * MIB  # the libraries alone are that
        model = await loader.load("tiny", LoadOptions(), needed)
        try:
            assert 0 < model.memory_bytes <= needed
            stats = await model.stats()
            planned = stats["planned_by_owner"]
            assert planned["libraries"] == server_share(ServeConfig()).libraries
            assert sum(planned.values()) - planned["libraries"] - planned["worker"] == model.memory_bytes
        finally:
            await model.close()

    asyncio.run(load())


def test_the_share_is_shown() -> None:
    with serving(memory="1GiB") as server:
        assert server.server.service.pool._memory_bytes == models_bytes(ServeConfig(memory="1GiB"))
        text = httpx2.get(f"{server.url}/metrics").text
        assert f'kamado_server_share_bytes{{part="bodies"}} {128 * MIB}' in text
        assert 'kamado_memory_bytes{model="",owner="server"} ' in text


# --- a real process ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_bodies_of_27_mb_neither_stall_others_nor_stay(tmp_path: Path) -> None:
    bodies = [
        b'{"model":"x","messages":[%b[]]}' % (b"[]," * 9_000_000),
        b'{"model":"x","messages":[],"metadata":{"a":[%b1]}}' % (b'{"a":[]},' * 3_000_000),
        b'{"model":"x","messages":[%b]}' % (b'"\\"" ,' * 4_500_000),
        b'{"model":"x","prompt":"%b"}' % ("a" * 26_000_000 + "😀").encode(),
        b"[" * 27_000_000,
    ]
    with started(tmp_path) as process:

        def mib(name: str) -> int:
            text = Path(f"/proc/{process.popen.pid}/status").read_text()
            found = re.search(rf"{name}:\s+(\d+) kB", text)
            assert found is not None
            return int(found[1]) >> 10

        before = mib("VmRSS")
        longest = 0.0
        is_over = threading.Event()

        def look() -> None:
            nonlocal longest
            with httpx2.Client(base_url=process._url, timeout=60) as http:
                while not is_over.is_set():
                    begun = time.monotonic()
                    assert http.get("/health").status_code == 200
                    longest = max(longest, time.monotonic() - begun)
                    time.sleep(0.01)

        looker = threading.Thread(target=look)
        looker.start()
        try:
            for body in bodies:
                assert process.http.post(CHAT, content=body).status_code in (400, 413)
        finally:
            is_over.set()
            looker.join()
        assert longest < 3.0  # it was 4 to 12; benchmarks/attack_gaps.py measures the pauses of a stream
        assert mib("VmHWM") - before < 110  # three times 32 MiB and what else came to be meanwhile
        assert mib("VmRSS") - before < 48
