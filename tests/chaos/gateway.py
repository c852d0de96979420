"""What stands between a driver and Camber: it passes on everything, and a test may change each answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final, Self
from urllib.parse import urlsplit

_OF_THE_CONNECTION: Final = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request."""

    method: str
    target: str
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Reply:
    """Its answer."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    """What it says of its length; None: the truth. The connection is closed after a lie."""


class Gateway:
    """An HTTP server in threads of the test's process."""

    def __init__(self, endpoint: str, change: Callable[[Call, Callable[[], Reply]], Reply]) -> None:
        """``change`` gives the answer to a call; what it is handed beside that asks the service, once."""
        parts = urlsplit(endpoint)
        self._backend = (parts.hostname or "", parts.port or 80)
        self._change = change
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                self.raw_requestline = self.rfile.readline(65_537)
                if not self.raw_requestline:
                    self.close_connection = True
                elif self.parse_request():
                    gateway._answer(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}{parts.path}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", "0")))
        call = Call(method=handler.command, target=handler.path, body=body)
        reply = self._change(call, lambda: self._ask(call, dict(handler.headers)))
        handler.send_response_only(reply.status)
        for name, value in reply.headers.items():
            if name.lower() not in _OF_THE_CONNECTION:
                handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(reply.body) if reply.length is None else reply.length))
        handler.end_headers()
        try:
            handler.wfile.write(reply.body)
            handler.wfile.flush()
        except OSError:
            handler.close_connection = True
        if reply.length is not None or handler.headers.get("Connection") == "close":
            handler.close_connection = True

    def _ask(self, call: Call, headers: dict[str, str]) -> Reply:
        connection = HTTPConnection(*self._backend, timeout=30)
        try:
            connection.request(call.method, call.target, body=call.body, headers={**headers, "Connection": "close"})
            answer = connection.getresponse()
            return Reply(status=answer.status, body=answer.read(), headers=dict(answer.getheaders()))
        finally:
            connection.close()
