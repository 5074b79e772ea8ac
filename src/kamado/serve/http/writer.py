"""The sending half of a connection: status and headers once, then bytes, with signs of life while there are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from functools import partial
from typing import Any

from .asgi import WriteNow

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Writer:
    """Writes one answer."""

    def __init__(
        self, send: Send, *, is_head: bool = False, write_timeout: float = 60.0, write_now: WriteNow | None = None
    ) -> None:
        """`write_now`: a shorter way for the parts of a streamed body."""
        self._send = send
        self._write_now = write_now
        self._is_head = is_head
        self._write_timeout = write_timeout or None
        self._lock = asyncio.Lock()  # a sign of life must not come between the parts of a chunk
        self._last_write = 0.0
        self.status: int | None = None
        self.num_bytes = 0
        self.is_started = False
        self.is_complete = False

    async def whole(self, status: int, content: bytes, media_type: str, headers: Mapping[str, str]) -> None:
        """An answer in one piece."""
        length = {"content-length": str(len(content))}
        if status == 204:
            length, media_type = {}, ""
        await self._begin(status, media_type, {**headers, **length})
        await self._body(b"" if self._is_head else content, more=False)

    async def stream(
        self,
        status: int,
        chunks: AsyncGenerator[bytes, None],
        media_type: str,
        headers: Mapping[str, str],
        *,
        comment: bytes,
        comment_seconds: float,
    ) -> None:
        """An answer as it comes. Raises what `chunks` raises; `finish` ends an answer that had begun."""
        company: asyncio.Task[None] | None = None
        loop = asyncio.get_running_loop()
        self._last_write = loop.time()
        begin = partial(self._begin, status, media_type, headers)
        if comment and comment_seconds:
            company = asyncio.create_task(self._keep_company(begin, comment, comment_seconds))
        try:
            async for chunk in chunks:
                if not self._write_at_once(chunk):
                    await self._part(begin, chunk)
                self._last_write = loop.time()
            await self._part(begin, b"", more=False)
        finally:
            if company is not None:
                company.cancel()
                with suppress(asyncio.CancelledError):
                    await company
            await chunks.aclose()

    def _write_at_once(self, chunk: bytes) -> bool:
        """Hands a chunk to the socket without waiting; False when that cannot be done, now or at all."""
        if self._write_now is None or self._lock.locked() or not self._write_now(chunk):
            return False
        self.num_bytes += len(chunk)
        return True

    async def finish(self, last: bytes) -> None:
        """Ends a stream that had begun, with its last words."""
        await self._body(last, more=False)

    def abort(self) -> None:
        """Leaves the answer incomplete, so that the connection is closed and the client knows."""
        self.is_complete = True

    async def _keep_company(self, begin: Callable[[], Awaitable[None]], comment: bytes, seconds: float) -> None:
        """Writes `comment` whenever nothing else was written for `seconds`."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(max(0.01, self._last_write + seconds - loop.time()))
            if loop.time() - self._last_write < seconds:
                continue
            await self._part(begin, comment)
            self._last_write = loop.time()

    async def _part(self, begin: Callable[[], Awaitable[None]], content: bytes, *, more: bool = True) -> None:
        """A part of a streamed body, after the answer's beginning."""
        async with self._lock:
            if not self.is_started:
                await begin()
            if not (more and self._is_head):
                await self._body(content, more=more)

    async def _begin(self, status: int, media_type: str, headers: Mapping[str, str]) -> None:
        self.status = status
        self.is_started = True
        pairs = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
        if media_type:
            pairs.append((b"content-type", media_type.encode("latin-1")))
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _body(self, content: bytes, *, more: bool) -> None:
        self.num_bytes += len(content)
        try:
            async with asyncio.timeout(self._write_timeout):
                await self._send({"type": "http.response.body", "body": content, "more_body": more})
        except TimeoutError:  # who reads nothing for so long is gone: what he holds is wanted by others
            raise asyncio.CancelledError from None
        self.is_complete = not more
