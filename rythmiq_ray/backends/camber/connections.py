"""HTTP/1.1 on an event loop, as much of it as small calls need: kept connections, each with one request at a time.

Calls are most of what a worker does. One takes 28 us of processor time here and 96 us with aiohttp's client (twenty at
once, measured with 3.14), which would also send some requests again by itself. Here nothing is ever sent twice.
httptools, which reads the answers, is a binding of llhttp, the parser of Node.js.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final, cast

from httptools import HttpParserError, HttpResponseParser

from rythmiq_ray.backends.camber.answers import Answer

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_KEEP_S: Final = 15.0
"""An idle connection is used again within this time: servers and what stands before them close it at some later one."""


class Unanswered(Exception):
    """A request that brought no whole answer. The text says what happened, and quotes no URL and no header."""

    def __init__(self, what: str, *, never_sent: bool = False) -> None:
        super().__init__(what)
        self.never_sent = never_sent
        """Whether it failed before there was a connection to send it over, so that the server knows nothing of it."""


class Connections:
    """Kept connections to one server, as many as there are requests at once; belongs to one event loop."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self._host = host
        self._port = port
        self._tls = tls
        self._idle: list[_Connection] = []

    async def exchange(self, request: bytes, *, connect_timeout_s: float, read_timeout_s: float) -> Answer:
        """Sends a request, head and body, and returns the whole answer to it. Raises Unanswered."""
        connection = self._take() or await self._connect(connect_timeout_s)
        try:
            answer = await connection.exchange(request, read_timeout_s)
        finally:
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.abort()  # Also where the caller was cancelled: the answer must not meet the next request.
        return answer

    def close(self) -> None:
        """Closes the idle ones."""
        while self._idle:
            self._idle.pop().abort()

    def _take(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.fresh:
                return connection
            connection.abort()
        return None

    async def _connect(self, timeout_s: float) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, connection = await loop.create_connection(_Connection, self._host, self._port, ssl=self._tls)
        except TimeoutError as error:
            raise Unanswered("no connection in time", never_sent=True) from error
        except socket.gaierror as error:
            raise Unanswered("its name does not resolve", never_sent=True) from error
        except ssl.SSLCertVerificationError as error:
            raise Unanswered("its certificate is not trusted", never_sent=True) from error
        except ssl.SSLError as error:
            raise Unanswered("a TLS fault", never_sent=True) from error
        except OSError as error:
            raise Unanswered("no connection", never_sent=True) from error
        return connection


class _Connection(asyncio.Protocol):
    """One connection. The methods named ``on_…`` are called by the parser."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._until_closed = False
        self._complete = True
        self._spoilt = False
        self._timer: asyncio.TimerHandle | None = None
        self._timeout_s = 0.0
        self._heard_at = 0.0

    # What its owner does with it

    def exchange(self, request: bytes, timeout_s: float) -> asyncio.Future[Answer]:
        """``timeout_s``: for each wait for bytes of the answer."""
        assert self._transport is not None  # noqa: S101 - it is connected
        self._begin()
        self._complete = False
        self._timeout_s = timeout_s
        self._heard_at = self._loop.time()
        # A timer is left to run out rather than cancelled with each answer.
        if self._timer is None or self._timer.when() > self._heard_at + timeout_s:
            self._watch(timeout_s)
        answer = self._answer = self._loop.create_future()
        self._transport.write(request)
        return answer

    @property
    def reusable(self) -> bool:
        """Whether the last answer came whole, and another request may follow."""
        return self._complete and not self._spoilt

    @property
    def fresh(self) -> bool:
        return not self._spoilt and self._loop.time() - self._heard_at < _KEEP_S

    def abort(self) -> None:
        self._spoilt = True
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    # What the event loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self._fail("the answer is no HTTP")
        if len(self._body) > MAX_ANSWER_BYTES:
            self._fail("the answer is too long")

    def connection_lost(self, error: Exception | None) -> None:
        self._spoilt = True
        if self._until_closed and error is None:
            self._finish()
        else:
            self._fail("the connection broke")

    # What the parser tells

    def on_message_begin(self) -> None:
        if self._complete:  # Nobody asked for it.
            self._spoilt = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        # llhttp keeps no connection alive whose answer only its end can end.
        framed = "content-length" in self._headers or "transfer-encoding" in self._headers
        self._until_closed = not framed and self._parser.get_status_code() not in (204, 304)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if 100 <= self._parser.get_status_code() < 200:  # The answer proper follows.
            self._begin()
        else:
            self._spoilt = self._spoilt or not self._parser.should_keep_alive()
            self._finish()

    def _begin(self) -> None:
        self._headers = {}
        self._body = bytearray()
        self._until_closed = False

    def _finish(self) -> None:
        if self._complete:
            return
        self._complete = True
        if self._headers.get("content-encoding", "identity") != "identity":
            self._fail("the answer is encoded, which nobody asked for")
        elif self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(self._parser.get_status_code(), self._headers, bytes(self._body)))

    def _fail(self, what: str) -> None:
        self._spoilt = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Unanswered(what))

    def _watch(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._complete or self._spoilt:
            return
        left_s = self._heard_at + self._timeout_s - self._loop.time()
        if left_s > 0:
            self._watch(left_s)
        else:
            self._fail("no answer in time")
