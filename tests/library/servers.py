"""A web server that tests talk to: files with ranges, faults on demand, and a record of what was asked."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMITS = ["1" * 40, "2" * 40]


@dataclass
class Reply:
    """What a path answers."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    has_ranges: bool = True
    # after how many bytes the connection breaks, one entry a request; whole answers when used up
    breaks: list[int] = field(default_factory=list)
    # after how many bytes nothing more comes until the client has gone, one entry a request
    pauses: list[int] = field(default_factory=list)


@dataclass
class Server:
    """Replies by path (query left out), and the requests so far as (method, path, Range header)."""

    url: str
    replies: dict[str, Reply] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)  # of the requests, with their queries
    fallback: Callable[[str], Reply | None] = lambda path: None

    def ranges_of(self, path: str) -> list[str | None]:
        """Range headers of the GETs of `path`."""
        return [asked for method, at, asked in self.requests if method == "GET" and at == path]


@contextmanager
def serve() -> Iterator[Server]:
    """A server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            asked = self.headers.get("Range")
            state.targets.append(self.path)
            state.requests.append((self.command, path, asked))
            reply = state.replies.get(path) or state.fallback(path) or Reply(b"not here", 404)
            body, status, headers = reply.body, reply.status, dict(reply.headers)
            match = re.match(r"bytes=(\d+)-", asked or "")
            if match and reply.has_ranges and status == 200:
                begin = int(match[1])
                status = 206 if begin < len(body) else 416
                headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
                body = body[begin:]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body and reply.pauses:
                self.wfile.write(body[: reply.pauses.pop(0)])
                self.wfile.flush()
                self.connection.settimeout(60)
                with suppress(OSError):
                    self.connection.recv(1)  # nothing is sent to us any more: it returns when the client is gone
                self.close_connection = True
            elif with_body:
                stop = reply.breaks.pop(0) if reply.breaks else None
                self.wfile.write(body if stop is None else body[:stop])
                if stop is not None:
                    self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        state = Server(f"http://127.0.0.1:{httpd.server_port}")
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            httpd.shutdown()
            thread.join()


class Hub:
    """As much of the Hugging Face Hub's protocol as huggingface_hub needs, of one repository, `owner/repo`."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.server.fallback = lambda path: None

    def publish(
        self,
        files: dict[str, bytes],
        *,
        commit: str = COMMITS[0],
        revisions: tuple[str, ...] = ("main",),
        license: str | None = None,
    ) -> None:
        siblings = []
        for name, data in files.items():
            git_id = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            sibling = {"rfilename": name, "size": len(data), "blobId": git_id}
            if name.endswith((".gguf", ".safetensors")):
                sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}
            siblings.append(sibling)
            self.server.replies[f"/owner/repo/resolve/{commit}/{name}"] = Reply(
                data, headers={"X-Repo-Commit": commit, "ETag": f'"{git_id}"'}
            )
        answer = {"id": "owner/repo", "sha": commit, "siblings": siblings}
        if license is not None:
            answer["tags"] = ["gguf", f"license:{license}"]
        info = Reply(json.dumps(answer).encode())
        info.headers["Content-Type"] = "application/json"
        for revision in (*revisions, commit):
            self.server.replies[f"/api/models/owner/repo/revision/{revision}"] = info
        if "main" in revisions:
            self.server.replies["/api/models/owner/repo"] = info

    def reply(self, name: str) -> Reply:
        return self.server.replies[f"/owner/repo/resolve/{COMMITS[0]}/{name}"]
