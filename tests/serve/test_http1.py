"""HTTP/1.1 to the letter: what is a request, what is none, how answers are framed, and what waits for whom."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from .lines import Receive, Send, Talk, answer, answers

GET = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED_HEAD = b"POST /c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKED = CHUNKED_HEAD + b"5\r\nhello\r\nA;name=value\r\n, big worl\r\n1\r\nd\r\n0\r\ntrailer: x\r\n\r\n"


def head_of(heard: bytes) -> list[bytes]:
    return heard.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1 << 20])
def test_a_pipeline_is_answered_in_order_however_it_comes(piece: int) -> None:
    with Talk() as talk:
        talk.say(GET + POST + GET.replace(b"GET", b"HEAD") + CHUNKED + GET, piece)
        methods = ["GET", "POST", "HEAD", "POST", "GET"]
        assert [method for method, _, _ in talk.seen] == methods
        bodies = [b"GET /a\n", b"POST /b\nhello", b"", b"POST /c\nhello, big world", b"GET /a\n"]
        assert answers(talk.heard, methods) == [(200, body) for body in bodies]
        assert talk.book.count("idle") == 1
        assert not talk.faults


def test_a_chunked_body_may_be_cut_anywhere() -> None:
    for place in range(1, len(CHUNKED)):
        with Talk() as talk:
            talk.say(CHUNKED[:place])
            talk.say(CHUNKED[place:])
            assert talk.seen == [("POST", "/c", b"hello, big world")], place


def test_an_endless_pipeline_is_read_no_faster_than_it_is_answered() -> None:
    gate = asyncio.Event()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await gate.wait()
        await answer(send, b"")

    with Talk(app) as talk:
        talk.say(GET * 10_000)
        assert talk.transport.is_paused
        assert len(talk.connection._parser.trailing_data[0]) < 32 << 10
        gate.set()
        while len(talk.transport.written) < 10_000:
            talk.turn()
            talk.say(b"")
        assert len(answers(talk.heard, [])) == 10_000


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_is_read_no_faster_than_it_is_taken(is_chunked: bool) -> None:
    gate, taken = asyncio.Event(), bytearray()

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await gate.wait()
        while True:
            message = await receive()
            taken.extend(message["body"])
            if not message["more_body"]:
                break
        await answer(send, b"")

    content = bytes(range(256)) * 4096
    framing = b"transfer-encoding: chunked" if is_chunked else b"content-length: %d" % len(content)
    with Talk(app) as talk:
        talk.say(b"POST / HTTP/1.1\r\nhost: x\r\n" + framing + b"\r\n\r\n")
        talk.say(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content) if is_chunked else content)
        assert talk.transport.is_paused
        assert talk.connection._request is not None
        assert len(talk.connection._request._body) <= (64 << 10) + (256 << 10)
        gate.set()
        while not talk.heard:
            talk.turn()
            talk.say(b"")
        assert taken == content


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5, 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: +5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0x5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5_0\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length : 5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\na: b\r\n folded\r\n\r\n",
        b"GET / HTTP/1.1\r\n host: x\r\n\r\n",
        b"GET / HTTP/1.1\nhost: x\n\n",
        b"GET / HTTP/1.1\r\nhost: x\na: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\na: b\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\na: b\rc: d\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\na\x00b: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\na: b\x00c\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\na b: c\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /\x7f\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET  / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1 \r\nhost: x\r\n\r\n",
        b"GET / HTTP/11\r\nhost: x\r\n\r\n",
        b"GET /\r\n\r\n",
        b"\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        CHUNKED_HEAD + b"g\r\nhello\r\n0\r\n\r\n",
        CHUNKED_HEAD + b"-5\r\nhello\r\n0\r\n\r\n",
        CHUNKED_HEAD + b"0x5\r\nhello\r\n0\r\n\r\n",
        CHUNKED_HEAD + b" 5\r\nhello\r\n0\r\n\r\n",
        CHUNKED_HEAD + b"1" * 21 + b"\r\n",
        CHUNKED_HEAD + b"5;\n\r\nhello\r\n0\r\n\r\n",
        CHUNKED_HEAD + b"5\nhello\r\n0\r\n\r\n",
        CHUNKED_HEAD + b"5\r\nhello!\r\n0\r\n\r\n",
        CHUNKED_HEAD + b"5\r\nhello0\r\n\r\n",
        CHUNKED_HEAD + b"0\r\nno colon\r\n\r\n",
    ],
)
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_what_another_reader_could_take_for_something_else_is_refused(request_bytes: bytes, piece: int) -> None:
    with Talk() as talk:
        talk.say(request_bytes + GET, piece)
        assert [status for status, _ in answers(talk.heard, ["POST"])] == [400]
        assert talk.transport.is_closed
        assert talk.seen == []
        assert not talk.faults


def test_a_refused_request_in_a_pipeline_comes_after_the_answers_before_it() -> None:
    with Talk() as talk:
        talk.say(GET + b"nonsense\r\n\r\n" + GET)
        assert [status for status, _ in answers(talk.heard, [])] == [200, 400]
        assert len(talk.seen) == 1
        assert talk.transport.is_closed


def test_the_rest_of_a_body_that_breaks_after_its_answer_gets_none() -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await answer(send, b"early")

    with Talk(app) as talk:
        talk.say(CHUNKED_HEAD + b"5\r\nhello")
        assert answers(talk.heard, ["POST"]) == [(200, b"early")]
        assert talk.book.count("idle") == 1
        talk.say(b"nonsense")
        assert talk.transport.is_closed
        assert answers(talk.heard, ["POST"]) == [(200, b"early")]


# --- answers ----------------------------------------------------------------------------------------------------------


def test_head_has_the_header_of_get_and_nothing_else() -> None:
    for path in (b"/a", b"/stream"):
        heads = []
        for method in (b"GET", b"HEAD"):
            with Talk() as talk:
                talk.say(method + b" " + path + b" HTTP/1.1\r\nhost: x\r\n\r\n")
                heads.append(sorted(head_of(talk.heard)))
                is_all = talk.heard.endswith(b"\r\n\r\n") and talk.heard.count(b"\r\n\r\n") == 1
                assert is_all == (method == b"HEAD")
                assert not talk.transport.is_closed
        if path == b"/stream":
            assert heads[0] == heads[1]


@pytest.mark.parametrize("path", ["/a", "/stream"])
def test_an_old_client_gets_a_body_that_ends_with_the_connection(path: str) -> None:
    with Talk() as talk:
        talk.say(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert b"connection: close" in head_of(talk.heard)
        assert not [line for line in head_of(talk.heard) if line.startswith(b"transfer-encoding")]
        assert talk.heard.endswith(f"\r\n\r\nGET {path}\n".encode())
        assert talk.transport.is_closed


def test_a_client_that_says_close_is_told_so_and_closed() -> None:
    with Talk() as talk:
        talk.say(GET[:-2] + b"Connection: keep-alive, Close\r\n\r\n" + GET)
        assert b"connection: close" in head_of(talk.heard)
        assert len(answers(talk.heard, [])) == len(talk.seen) == 1
        assert talk.transport.is_closed


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_has_none(status: int) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})

    with Talk(app) as talk:
        talk.say(GET + GET)
        assert answers(talk.heard, []) == [(status, b"")] * 2
        assert b"transfer-encoding" not in talk.heard


def test_a_body_that_is_expected_is_asked_for_when_it_is_wanted() -> None:
    head = POST.replace(b"\r\n\r\nhello", b"\r\nExpect: 100-continue\r\n\r\n")
    with Talk() as talk:
        talk.say(head)
        assert talk.heard == b"HTTP/1.1 100 Continue\r\n\r\n"
        talk.say(b"hello" + head)
        talk.say(b"again" + GET)
        statuses = [status for status, _ in answers(talk.heard, ["POST", "POST", "GET"])]
        assert statuses == [100, 200, 100, 200, 200]

    async def refuse(scope: Any, receive: Receive, send: Send) -> None:
        await answer(send, b"too large", 413)

    with Talk(refuse) as talk:
        talk.say(head)
        assert answers(talk.heard, ["POST"]) == [(413, b"too large")]


def test_an_upgrade_is_not_taken_up() -> None:
    with Talk() as talk:
        for protocol in (b"websocket", b"h2c"):
            talk.say(GET[:-2] + b"connection: upgrade\r\nupgrade: " + protocol + b"\r\n\r\n")
        assert answers(talk.heard, []) == [(200, b"GET /a\n")] * 2


@pytest.mark.parametrize(
    "header",
    [(b"x", b"a\r\ninjected: b"), (b"x", b"a\nb"), (b"x\r\ny", b"a"), (b"x", b"a\0"), (b"", b"a"), (b"x:", b"")],
)
def test_a_header_that_would_begin_another_is_not_written(header: tuple[bytes, bytes]) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await answer(send, b"", 200, header)

    with Talk(app) as talk:
        talk.say(GET)
        assert [status for status, _ in answers(talk.heard, [])] == [500]
        assert b"injected" not in talk.heard
        assert talk.transport.is_closed


@pytest.mark.parametrize("content", [b"less", b"much more"])
def test_a_body_of_another_length_than_was_said_is_not_sent(content: bytes) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
        await send({"type": "http.response.body", "body": content})

    with Talk(app) as talk:
        talk.say(GET + GET)
        assert [status for status, _ in answers(talk.heard, [])] == [500]
        assert talk.transport.is_closed


@pytest.mark.parametrize("is_begun", [False, True])
def test_an_application_that_fails_leaves_no_answer_that_looks_whole(is_begun: bool) -> None:
    async def app(scope: Any, receive: Receive, send: Send) -> None:
        if is_begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise OSError

    with Talk(app) as talk:
        talk.say(GET + GET)
        assert talk.transport.is_closed
        if is_begun:
            with pytest.raises(AssertionError, match="incomplete"):
                answers(talk.heard, [])
        else:
            assert [status for status, _ in answers(talk.heard, [])] == [500]


def test_messages_out_of_order_are_our_own_fault() -> None:
    faults = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.body", "body": b"x"})
        except RuntimeError as error:
            faults.append(error)
        await answer(send, b"fine")
        try:
            await send({"type": "http.response.body", "body": b"x"})
        except RuntimeError as error:
            faults.append(error)

    with Talk(app) as talk:
        talk.say(GET)
        assert answers(talk.heard, []) == [(200, b"fine")]
        assert len(faults) == 2


# --- clients that read slowly, or leave -------------------------------------------------------------------------------


def test_a_slow_reader_holds_back_who_writes() -> None:
    progress = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        write_now = scope["extensions"]["kamado.write_now"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert not write_now(b"too early")
        for i in range(100):
            if not write_now(b"piece"):
                await send({"type": "http.response.body", "body": b"piece", "more_body": True})
            progress.append(i)
            if i == 9:
                talk.connection.pause_writing()
        await send({"type": "http.response.body"})
        assert not write_now(b"too late")

    with Talk(app) as talk:
        talk.say(GET)
        assert len(progress) == 10
        talk.connection.resume_writing()
        talk.turn()
        assert answers(talk.heard, []) == [(200, b"piece" * 100)]
        assert len(talk.transport.written) == 101, "one write a piece"
    progress.clear()
    with Talk(app) as talk:  # who leaves lets go of what waits for him
        talk.say(GET)
        talk.leave()
        assert len(progress) == 100
        assert not talk.state.tasks


def test_a_client_that_leaves_is_reported_at_once() -> None:
    with Talk() as talk:
        talk.say(POST[:-1])
        talk.leave()
        assert talk.notes == ["gone"]
        assert not talk.state.tasks
        assert not talk.state.connections
        assert len(talk.book) == 0


def test_a_client_that_closes_its_sending_half_is_gone() -> None:
    with Talk() as talk:
        assert not talk.connection.eof_received()  # asyncio closes the transport then


@pytest.mark.parametrize("does_read", [True, False])
def test_last_words_that_nobody_reads_are_not_kept(does_read: bool) -> None:
    with Talk(idle_seconds=0.001) as talk:
        talk.transport.num_unsent = 1000
        talk.say(GET[:-2] + b"connection: close\r\n\r\n")
        assert talk.transport.is_closed
        assert talk.book.count("idle") == 1  # whoever needs its place may have it
        if does_read:
            for _ in range(10):
                talk.transport.num_unsent -= 100
                talk.connection._await_reader(talk.transport.num_unsent + 1)
                assert not talk.transport.is_aborted
            talk.leave()
            assert talk.connection._timer is None
        else:
            while not talk.transport.is_aborted:
                talk.turn()


# --- going down -------------------------------------------------------------------------------------------------------


def test_an_answer_may_end_when_the_server_goes_down() -> None:
    with Talk() as talk:
        talk.say(POST[:-1])
        talk.connection.shutdown()
        assert not talk.transport.is_closed
        talk.say(b"o" + GET)
        assert b"connection: close" in head_of(talk.heard)
        assert len(answers(talk.heard, ["POST"])) == 1
        assert talk.transport.is_closed
        assert talk.state.total_requests == 1
    for before in (b"", GET, GET[:5]):
        with Talk() as talk:
            talk.say(before)
            talk.connection.shutdown()
            assert talk.transport.is_closed
