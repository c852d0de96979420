"""A driver's health over HTTP: ``/livez``, ``/readyz`` and ``/metrics``, off unless ``health.port`` is set.

``/livez`` is 503 only if a restart helps, because the loop is stuck. ``/readyz`` is 503 also in other cases, such as an
outage. Anybody can read both, so they show codes of errors but no messages.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import ClassVar, Final
from urllib.parse import urlsplit

from rythmiq_ray.errors import ConfigurationError
from rythmiq_ray.telemetry.logs import get_logger

log = get_logger("health")

_CLIENT_TIMEOUT_S: Final = 10.0
"""How long a client may take to send its request or read the answer."""


class Stage(StrEnum):
    """The stages of a driver's life."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """The state of one thing that a driver needs."""

    ok: bool
    reason: str | None = None
    """The error's code, if the check fails and the code is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """A driver's present health."""

    stage: Stage
    checks: Mapping[str, Check]
    lease_age_s: float | None
    """Seconds since the last heartbeat; None before the first."""
    tick_age_s: float | None
    """Seconds since the last tick began; None before the first, because the start has timeouts of its own."""
    stuck_after_s: float
    """A tick that began this long ago counts as stuck."""

    @property
    def alive(self) -> bool:
        return self.tick_age_s is None or self.tick_age_s < self.stuck_after_s

    @property
    def ready(self) -> bool:
        return self.stage is Stage.RUNNING and self.alive and all(check.ok for check in self.checks.values())

    def as_dict(self) -> dict[str, object]:
        """The body of ``/readyz``."""
        return {
            "ready": self.ready,
            "stage": self.stage,
            "checks": {
                name: {"ok": check.ok} if check.reason is None else {"ok": check.ok, "reason": check.reason}
                for name, check in self.checks.items()
            },
            "lease_age_s": _rounded(self.lease_age_s),
            "tick_age_s": _rounded(self.tick_age_s),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthResponse:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class HealthServer:
    """Answers on its own threads, so that it also answers while the driver's loop is stuck."""

    def __init__(self, status: Callable[[], Status], metrics_page: Callable[[str], tuple[bytes, str]]) -> None:
        """``metrics_page`` returns the body and its content type for an ``Accept`` header."""
        self._status = status
        self._metrics_page = metrics_page
        self._server: _Server | None = None

    def start(self, host: str, port: int) -> int:
        """Listens, and returns the port; ``port`` 0 chooses a free one.

        Raises ConfigurationError if it cannot listen there.
        """
        try:
            self._server = _Server(host, port, self._answer)
        except OSError as error:
            raise ConfigurationError(
                f"health.port: cannot listen on {host} port {port}: {error.strerror or error}: "
                "choose another PORT or health.host, or unset PORT"
            ) from None
        threading.Thread(target=self._server.serve_forever, name="rythmiq-health", daemon=True).start()
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Closes the port."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _answer(self, path: str, accept: str) -> HealthResponse:
        if path == "/metrics":
            body, content_type = self._metrics_page(accept)
            return HealthResponse(status=HTTPStatus.OK, body=body, content_type=content_type)
        if path == "/livez":
            status = self._status()
            if status.alive:
                return HealthResponse(status=HTTPStatus.OK, body=b"alive\n")
            body = f"stuck: the last tick began {status.tick_age_s:.0f} s ago\n".encode()
            return HealthResponse(status=HTTPStatus.SERVICE_UNAVAILABLE, body=body)
        if path == "/readyz":
            status = self._status()
            return HealthResponse(
                status=HTTPStatus.OK if status.ready else HTTPStatus.SERVICE_UNAVAILABLE,
                body=json.dumps(status.as_dict()).encode() + b"\n",
                content_type="application/json",
            )
        return HealthResponse(status=HTTPStatus.NOT_FOUND, body=b"there are /livez, /readyz and /metrics\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, answer: Callable[[str, str], HealthResponse]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.answer = answer
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind asks DNS for the host's name, which is not needed and may take long.
        TCPServer.server_bind(self)

    def handle_error(self, *_: object) -> None:
        error = sys.exception()
        if not isinstance(error, OSError):  # A client that closed its connection is no fault.
            log.warning("A health request failed", error=type(error).__name__)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout: ClassVar[float] = _CLIENT_TIMEOUT_S
    server_version = "rythmiq"
    sys_version = ""

    def do_GET(self) -> None:
        answer = self.server.answer(urlsplit(self.path).path, self.headers.get("Accept", ""))
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing, because probes come every few seconds."""


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
