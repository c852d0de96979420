"""An adapter for requests with deadlines for whole calls, and with connections that try all addresses of a host name.

The timeouts of requests and urllib3 apply to each read and each address, so a server that sends a byte now and then
can block its caller forever. Here all waiting for the other side is taken from one :class:`Patience`.
"""

from __future__ import annotations

import errno
import io
import os
import selectors
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Final

import certifi
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util.ssl_ import create_urllib3_context

from rythmiq_ray.clock import now_s

STEP_BYTES: Final = 16 * 1024
"""A stream must move at least this many bytes in each timeout: about 500 bytes a second if it is 30 s."""
KEEP_S: Final = 15.0
"""How long an idle connection may be used again; servers and gateways close it some time later."""
_BUNDLES: Final = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Environment variables that name certificates to trust; the first that is set counts."""
_BLOCK_BYTES: Final = 256 * 1024
_STAGGER_S: Final = 0.25
"""How long after one address of a name the next is tried (RFC 8305)."""

Address = tuple[Any, ...]
"""An entry of ``socket.getaddrinfo``."""


class Patience:
    """How many more seconds a call may wait for the other side. Used only by the thread that makes the call.

    A small call has one amount of time in total. A stream gets the full amount again after every :data:`STEP_BYTES`;
    time that its own reader or source takes does not count.
    """

    def __init__(
        self, seconds: float, *, streams: bool = False, may_reach: Callable[[str], bool] | None = None
    ) -> None:
        """``may_reach``: whether a connection to an address is allowed; None = to any."""
        self.may_reach = may_reach
        self._whole_s = self._left_s = seconds
        self._streams = streams
        self._passed = 0
        self.sent = False
        """Whether a byte of the request was sent, so that the server may have acted on it."""

    def stream(self, streams: bool) -> None:
        """Marks that a stream begins, or has ended; the full time is available again."""
        self._left_s, self._passed, self._streams = self._whole_s, 0, streams

    @property
    def streams(self) -> bool:
        return self._streams

    @property
    def left_s(self) -> float:
        """The seconds that are left; raises TimeoutError if there are none."""
        if self._left_s <= 0:
            raise TimeoutError("the time is over")
        return self._left_s

    def spend(self, action: Callable[[], Any]) -> Any:
        """Runs an action that waits for the other side, and subtracts the time that it took."""
        began = now_s()
        try:
            return action()
        finally:
            self._left_s -= now_s() - began

    def transfer(self, sock: socket.socket, move: Callable[[Any], int | None], data: Any) -> int:
        """Sends or receives; ``move`` returns the number of bytes moved, None = all of ``data``."""
        sock.settimeout(self.left_s)
        moved = self.spend(lambda: move(data))
        count = len(data) if moved is None else moved
        self._passed += count
        if self._streams and self._passed >= STEP_BYTES:
            self.stream(True)
        return int(count)


class _Current(threading.local):
    patience: Patience


current: Final = _Current()
"""The patience of the thread's present call, kept here because urllib3 cannot pass it to a connection."""


class Adapter(HTTPAdapter):
    """Mount it in a session, and set :data:`current` to the patience of each call."""

    def __init__(self, tls: ssl.SSLContext | None, *, connections: int) -> None:
        """``connections``: how many idle connections are kept; ``tls``: the trusted certificates, read only once."""
        self._settings: dict[str, Any] = {"blocksize": _BLOCK_BYTES}
        if tls is not None:
            self._settings["ssl_context"] = tls
        super().__init__(pool_connections=1, pool_maxsize=connections)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **kwargs, **self._settings)
        self.poolmanager.pool_classes_by_scheme = dict(_POOLS)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs, **self._settings)
        if not proxy.lower().startswith("socks"):
            manager.pool_classes_by_scheme = dict(_POOLS)
        return manager

    def cert_verify(self, *_: Any) -> None:
        """Does nothing: requests would read the certificates for each connection, and the context has them already."""


def trusted() -> ssl.SSLContext:
    """The certificates that the environment names, else certifi's. Raises ValueError, which says what is wrong."""
    name, place = next(
        ((name, value) for name in _BUNDLES if (value := os.environ.get(name))), ("certifi", certifi.where())
    )
    context = create_urllib3_context()
    folder = Path(place).is_dir()
    try:
        context.load_verify_locations(cafile=None if folder else place, capath=place if folder else None)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ValueError(f"No certificates can be read from {place}, which {name} names: {reason}") from None
    return context


class _Waited(io.RawIOBase):
    """The bytes that come in over a socket."""

    def __init__(self, sock: socket.socket, patience: Patience) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._patience = patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._patience.transfer(self._sock, self._raw.readinto, buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        patience = current.patience
        if patience.streams:  # The request's body was a stream; the answer is not.
            patience.stream(False)
        self.fp.close()
        self.fp = io.BufferedReader(_Waited(sock, patience), _BLOCK_BYTES)


class _Waits(HTTPConnection):
    """Connecting, writing and reading with a patience, for plain and TLS connections."""

    response_class = _Response
    _used_at = 0.0

    def connect(self) -> None:
        patience = current.patience
        self._used_at = now_s()
        try:
            patience.spend(super().connect)
        finally:
            patience.sent = False  # Only the CONNECT to a proxy was sent, not the request.

    def _new_conn(self) -> socket.socket:
        until = now_s() + min(current.patience.left_s, float(self.timeout or 0.0))
        try:
            addresses = _resolved(self._dns_host, self.port, until)
            if may_reach := current.patience.may_reach:
                addresses = [address for address in addresses if may_reach(str(address[4][0]))]
                if not addresses:
                    raise PermissionError("none of its addresses may be reached")
            sock = _connected(addresses, self.socket_options or (), until)
            sock.settimeout(max(0.001, until - now_s()))  # for a proxy's answer and the TLS handshake
        except (socket.gaierror, UnicodeError) as error:
            raise NameResolutionError(self.host, self, error) from error  # type: ignore[arg-type]
        except TimeoutError as error:
            raise ConnectTimeoutError(self, "no connection in time") from error
        except OSError as error:
            raise NewConnectionError(self, "no connection") from error
        return sock

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        patience = current.patience
        view = memoryview(data)
        for start in range(0, len(view), STEP_BYTES):
            patience.sent = True
            patience.transfer(self.sock, self.sock.sendall, view[start : start + STEP_BYTES])
        self._used_at = now_s()

    @property
    def is_connected(self) -> bool:
        """Whether it may be used again."""
        return now_s() - self._used_at < KEEP_S and super().is_connected


class _TlsWaits(_Waits, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Waits


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsWaits


_POOLS: Final = {"http": _Pool, "https": _TlsPool}


def _resolved(host: str, port: int, until: float) -> list[Address]:
    """The addresses of a name. A resolver that hangs cannot be interrupted, so a thread waits for it."""
    found: Queue[list[Address] | Exception] = Queue()

    def ask() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.put(error)

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        answer = found.get(timeout=max(0.0, until - now_s()))
    except Empty:
        raise TimeoutError("the resolver does not answer") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _connected(addresses: Sequence[Address], options: Sequence[Any], until: float) -> socket.socket:
    """A connection to the first address that answers; a dead address does not delay the others."""
    todo = list(addresses)
    failure: OSError = TimeoutError("no address answers")
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        while todo or selector.get_map():
            if todo:
                family, kind, protocol, _, place = todo.pop(0)
                try:
                    sock = stack.enter_context(socket.socket(family, kind, protocol))
                    sock.setblocking(False)
                    for option in options:
                        sock.setsockopt(*option)
                    if (code := sock.connect_ex(place)) not in (0, errno.EINPROGRESS):
                        raise OSError(code, os.strerror(code))  # as where there is no route
                    selector.register(sock, selectors.EVENT_WRITE)
                except OSError as error:
                    failure = error
                    continue
            left_s = until - now_s()
            if left_s <= 0:
                raise TimeoutError("no address answers")
            for key, _ in selector.select(min(left_s, _STAGGER_S) if todo else left_s):
                sock = key.fileobj  # type: ignore[assignment]
                selector.unregister(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    return socket.socket(fileno=sock.detach())  # The stack closes all that it has.
                failure = OSError(code, os.strerror(code))
    raise failure
