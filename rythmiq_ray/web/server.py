"""Serves the console: on loopback, or with TLS, or without both only if ``--insecure`` says so."""

from __future__ import annotations

import secrets
import signal
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import uvicorn

from rythmiq_ray.console.why import Why
from rythmiq_ray.errors import ConfigurationError
from rythmiq_ray.secret import Secret
from rythmiq_ray.web.app import make_app
from rythmiq_ray.web.security import is_loopback
from rythmiq_ray.web.state import Console, Settings

_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_ANY: Final = ("0.0.0.0", "::", "")  # noqa: S104 - addresses that are asked about here, not bound to
_LEAST_TOKEN: Final = 16


@dataclass(frozen=True)
class Serving:
    """The options of the command line."""

    host: str = "127.0.0.1"
    port: int = 8266
    actions: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    root_path: str = ""
    allow_hosts: tuple[str, ...] = ()
    token: Secret | None = None
    """None: a new one."""

    def check(self) -> None:
        """Raises ConfigurationError with each fault."""
        faults = []
        if (self.tls_cert is None) != (self.tls_key is None):
            faults.append("--tls-cert and --tls-key go together")
        if not is_loopback(self.host) and self.tls_cert is None and not self.insecure:
            faults.append(
                f"--host {self.host} is reached by others: give --tls-cert and --tls-key, or --insecure where a network"
                " of your own keeps the token from being read"
            )
        if self.root_path and (not self.root_path.startswith("/") or '"' in self.root_path or "//" in self.root_path):
            faults.append("--root-path begins with one slash, such as /rythmiq")
        if self.token is not None and len(self.token.reveal()) < _LEAST_TOKEN:
            faults.append(f"RYTHMIQ_WEB_TOKEN has fewer than {_LEAST_TOKEN} characters")
        if faults:
            raise ConfigurationError("\n".join(faults))

    @property
    def secure(self) -> bool:
        """Whether this program itself speaks TLS."""
        return self.tls_cert is not None


class Server:
    """A console on an open port."""

    def __init__(self, url: Secret, serving: Serving, why: Why) -> None:
        """Raises ConfigurationError, and OSError where the port cannot be had."""
        serving.check()
        self._serving = serving
        self._token = serving.token or Secret(secrets.token_urlsafe(24))
        self._socket = _listening(serving.host, serving.port)
        self.port: int = self._socket.getsockname()[1]
        self.base = serving.root_path.rstrip("/")
        names = {*_LOOPBACK, *serving.allow_hosts}
        if serving.host not in _ANY:
            names.add(f"[{serving.host}]" if ":" in serving.host else serving.host)
        else:
            names.add(socket.gethostname())
        settings = Settings(
            token=self._token,
            port=self.port,
            hosts=tuple(names),
            actions=serving.actions,
            base=self.base,
            secure=serving.secure,
        )
        self.console = Console(url, settings, why)
        self._server = _Uvicorn(
            self.console,
            uvicorn.Config(
                make_app(self.console),
                # No access log, because the first address contains the token.
                access_log=False,
                log_config=None,
                log_level="warning",
                server_header=False,
                date_header=True,
                ws="none",
                lifespan="on",
                timeout_graceful_shutdown=2,
                proxy_headers=False,
                ssl_certfile=serving.tls_cert,
                ssl_keyfile=serving.tls_key,
            ),
        )

    @property
    def address(self) -> str:
        """The address for a browser; it contains the token."""
        host = self._serving.host if self._serving.host not in _ANY else socket.gethostname()
        name = f"[{host}]" if ":" in host else host
        scheme = "https" if self._serving.secure else "http"
        return f"{scheme}://{name}:{self.port}{self.base}/?{urlencode({'token': self._token.reveal()})}"

    @property
    def token(self) -> Secret:
        return self._token

    def run(self) -> None:
        """Serves until SIGINT or SIGTERM."""
        if threading.current_thread() is threading.main_thread():
            # After an orderly end, Uvicorn raises the signal again, which must not end the process.
            signal.signal(signal.SIGTERM, lambda *_: None)
            signal.signal(signal.SIGINT, lambda *_: None)
        self._server.run(sockets=[self._socket])

    @property
    def started(self) -> bool:
        """Whether it answers."""
        return self._server.started

    def stop(self) -> None:
        """Asks :meth:`run`, of another thread, to return."""
        self._server.should_exit = True


class _Uvicorn(uvicorn.Server):
    """Ends streams first: otherwise the server would wait for them, and then abort them with an error."""

    def __init__(self, console: Console, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._console = console

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._console.end()
        await super().shutdown(sockets)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        raise ConfigurationError(f"--host {host} --port {port} cannot be had: {error.strerror or error}") from None
    return listening
