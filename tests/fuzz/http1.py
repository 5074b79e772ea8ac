"""Fuzz a connection's bytes: nothing fails, what is written are whole answers, and what waits is bounded.

The first byte says how many bytes a read has, and the second how often the rest is repeated. The same bytes in one
read and in many are the same requests. Half of the answers are streamed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serve.lines import Seen, Talk, answers  # tests/serve

_BOUNDS = {"max_header_bytes": 1024, "header_seconds": 0.0, "idle_seconds": 0.0}
_MAX_READ = 16 << 10
_MAX_BODY = 64 << 10
_MAX_BODY_READ = 256 << 10
_MAX_SECONDS = 10.0  # of this process's processor for one input; some milliseconds are usual
_REPEATS = (1, 1, 1, 1, 1, 2, 3, 20)


class _Listener(Talk):
    """A connection that is watched while it reads."""

    def turn(self) -> None:
        super().turn()
        waiting = self.connection._parser.trailing_data[0]
        assert len(waiting) <= _BOUNDS["max_header_bytes"] + 2 * _MAX_READ, len(waiting)
        request = self.connection._request
        assert request is None or len(request._body) <= _MAX_BODY + _MAX_BODY_READ


def _talk(data: bytes, piece: int) -> tuple[list[Seen], list[int]]:
    """What the application was asked, and the statuses that the client got."""
    with _Listener(**_BOUNDS) as talk:
        talk.say(data, piece)
        num_written = -1
        while len(talk.transport.written) > num_written:  # until nothing is answered any more
            num_written = len(talk.transport.written)
            talk.turn()
            talk.say(b"", piece)
        assert not talk.faults, talk.faults
        methods = [method for method, _, _ in talk.seen]
        found = answers(talk.heard, methods, has_ended=talk.transport.is_closed)
        statuses = [status for status, _ in found if status >= 200]
        assert set(statuses) <= {200, 400, 431}, statuses
        assert statuses.count(200) == len(talk.seen)
        refusals = [status for status in statuses if status != 200]
        assert refusals == statuses[len(talk.seen) :], "an answer after the last"
        assert len(refusals) <= 1
        assert talk.transport.is_closed or not refusals
    assert not talk.state.tasks
    assert not talk.state.connections
    assert len(talk.book) == 0
    assert not talk.faults, talk.faults
    return talk.seen, refusals


def fuzz_one(data: bytes) -> None:
    """One connection's bytes. Raises only for a fault of ours."""
    begun = time.process_time()
    repeats = _REPEATS[data[1] % len(_REPEATS)] if len(data) > 1 else 1
    piece = 1 + data[0] if data else 1
    rest = data[2:] * repeats
    whole, refused = _talk(rest, 1 << 20)
    pieces, refused_in_pieces = _talk(rest, piece)
    # In pieces a line that is too long is refused before all of it is here, and in one read it may be in order.
    if 431 not in (*refused, *refused_in_pieces):
        assert pieces == whole
        assert refused == refused_in_pieces
    assert time.process_time() - begun < _MAX_SECONDS


if __name__ == "__main__":
    from _loop import run

    words = (
        "GET|POST|HEAD|OPTIONS|CONNECT| / |/stream|?a=b|%00| HTTP/1.1\r\n| HTTP/1.0\r\n|HTTP/2.0|host: x\r\n|\r\n|\n|"
        "\r|\r\n\r\n|content-length: 5\r\n|content-length: 0\r\n|transfer-encoding: chunked\r\n|connection: close\r\n|"
        "connection: upgrade\r\nupgrade: h2c\r\n|expect: 100-continue\r\n| folded\r\n|\t|\0|:|,|0\r\n\r\n|"
        "5\r\nhello\r\n|ffffffffffffffffffff\r\n|1;x=y\r\n|hello|GET /stream HTTP/1.1\r\nhost: x\r\n\r\n"
    )
    run("http1", fuzz_one, tuple(word.encode() for word in words.split("|")))
