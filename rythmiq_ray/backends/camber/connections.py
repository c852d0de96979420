"""HTTP/1.1 on an event loop, as much of it as small calls need: kept connections, each with one request at a time.

Calls are most of what a worker does. One takes 14 us of processor time here, on uvloop, and 96 us with aiohttp's client
(twenty at once, measured with aiohttp 3.14), which would also send some requests again by itself. Here nothing is ever
sent twice. httptools, which reads the answers, is a binding of llhttp, the parser of Node.js.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Any, Final, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from rythmiq_ray.backends.camber.answers import Answer

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_KEEP_S: Final = 15.0
"""An idle connection is used again within this time: servers and what stands before them close it at some later one."""
_HEAD_BYTES: Final = 1024 * 1024
"""What an answer may have beside its body: headers, chunk sizes, and answers before it."""
_RESOLVE_S: Final = 10.0
"""How long a name's addresses are taken for true: many connections are made at once."""


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
        self._closed = False
        self._lookup: asyncio.Task[Any] | None = None
        self._lookup_until = 0.0
        self._good: tuple[Any, ...] | None = None
        """The one that answered last, which is tried first."""

    async def exchange(self, request: bytes, *, connect_timeout_s: float, read_timeout_s: float) -> Answer:
        """Sends a request, head and body, and returns the whole answer to it. Raises Unanswered."""
        connection = self._take() or await self._connect(connect_timeout_s)
        try:
            answer = await connection.exchange(request, read_timeout_s)
        finally:
            if connection.reusable and not self._closed:
                connection.rest()
                self._idle.append(connection)
            else:
                connection.abort()  # Also where the caller was cancelled: the answer must not meet the next request.
        return answer

    def close(self) -> None:
        """Closes the idle ones, and each other one after its answer."""
        self._closed = True
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
        try:
            async with asyncio.timeout(timeout_s):
                return await self._connect_to_any(timeout_s)
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

    async def _connect_to_any(self, timeout_s: float) -> _Connection:
        """Tries the addresses in turn, each for its share of the time: one that is dead must not use up all of it."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        addresses = sorted([info[4] for info in await self._resolve()], key=lambda address: address != self._good)
        failure: OSError = TimeoutError()
        for tried, address in enumerate(addresses):
            name = self._host if self._tls else None
            try:
                async with asyncio.timeout((until - loop.time()) / (len(addresses) - tried)):
                    _, connection = await loop.create_connection(
                        lambda: _Connection(self._idle), *address[:2], ssl=self._tls, server_hostname=name
                    )
            except OSError as error:
                failure = error
            else:
                self._good = address
                return connection
        raise failure

    async def _resolve(self) -> list[Any]:
        """What getaddrinfo gives; asked once for all that connect within :data:`_RESOLVE_S`."""
        loop = asyncio.get_running_loop()
        if self._lookup is None or loop.time() > self._lookup_until:
            self._lookup = loop.create_task(loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM))
            self._lookup.add_done_callback(lambda lookup: lookup.cancelled() or lookup.exception())
            self._lookup_until = loop.time() + _RESOLVE_S
        lookup = self._lookup
        try:
            return await asyncio.shield(lookup)
        except OSError:
            if self._lookup is lookup:
                self._lookup = None
            raise


class _Connection(asyncio.Protocol):
    """One connection. The methods named ``on_…`` are called by the parser."""

    def __init__(self, idle: list[_Connection]) -> None:
        """``idle``: what it takes itself out of once it is closed."""
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[Answer] | None = None
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._until_closed = False
        self._complete = True
        self._spoilt = False
        self._ended = False
        self._received = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timeout_s = 0.0
        self._heard_at = 0.0

    # What its owner does with it

    def exchange(self, request: bytes, timeout_s: float) -> asyncio.Future[Answer]:
        """``timeout_s``: for each wait for bytes of the answer."""
        assert self._transport is not None  # noqa: S101 - it is connected
        self._complete = False
        self._received = 0
        self._timeout_s = timeout_s
        self._heard_at = self._loop.time()
        # A timer is left to run out rather than cancelled with each answer.
        if self._timer is None or self._timer.when() > self._heard_at + timeout_s:
            self._watch(timeout_s)
        answer = self._answer = self._loop.create_future()
        if self._spoilt:
            self._fail("the connection broke")
        else:
            self._transport.write(request)
        return answer

    @property
    def reusable(self) -> bool:
        """Whether the last answer came whole, and another request may follow."""
        sent = self._transport is not None and not self._transport.get_write_buffer_size()
        return self._complete and sent and not self._spoilt

    @property
    def fresh(self) -> bool:
        """Whether the server is likely to be there still."""
        open_ = self._transport is not None and not self._transport.is_closing() and not self._ended
        return open_ and not self._spoilt and self._loop.time() - self._heard_at < _KEEP_S

    def rest(self) -> None:
        """Lets go of the last answer; what is idle for too long closes itself."""
        self._answer = None
        self._begin()

    def abort(self) -> None:
        self._spoilt = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    # What the event loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._fail("the answer is no HTTP")
        if len(self._body) > MAX_ANSWER_BYTES or self._received > MAX_ANSWER_BYTES + _HEAD_BYTES:
            self._fail("the answer is too long")

    def eof_received(self) -> None:
        self._ended = True  # Told before the connection is lost.

    def connection_lost(self, error: Exception | None) -> None:
        self._spoilt = True
        with suppress(ValueError):
            self._idle.remove(self)
        if self._until_closed and error is None:
            self._finish()
        else:
            self._fail("the connection broke")

    # What the parser tells

    def on_message_begin(self) -> None:
        if self._complete:  # Nobody asked for it.
            self.abort()
        self._begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        # llhttp keeps no connection alive whose answer only its end can end.
        framed = "content-length" in self._headers or "transfer-encoding" in self._headers
        status = self._parser.get_status_code()
        self._until_closed = not framed and status >= 200 and status not in (204, 304)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if not 100 <= self._parser.get_status_code() < 200:  # After those the answer proper follows.
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
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Unanswered(what))
        self.abort()

    def _watch(self, delay_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        """Ends a wait for an answer that is too long, and an idleness that is."""
        self._timer = None
        limit_s = _KEEP_S if self._complete else self._timeout_s
        left_s = self._heard_at + limit_s - self._loop.time()
        if left_s > 0:
            self._watch(left_s)
        elif self._complete:
            self.abort()
        else:
            self._fail("no answer in time")
