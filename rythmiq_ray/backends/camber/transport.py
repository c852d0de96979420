"""How a call travels: by requests from a thread, over connections of our own from a fiber; with the same settings.

Both read proxies and the bundle of certificates from the environment once, as requests does. A requests session would
work these out anew for each call, which took more than half of a small call's processor time (measured with requests
2.34), so its transport adapter is used without one.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import certifi
import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import select_proxy
from urllib3.connectionpool import ConnectionPool
from urllib3.exceptions import MaxRetryError, NameResolutionError, NewConnectionError

from rythmiq_ray.backends.camber.answers import Answer
from rythmiq_ray.backends.camber.bundle import Upload
from rythmiq_ray.backends.camber.connections import MAX_ANSWER_BYTES, Connections, Unanswered
from rythmiq_ray.backends.camber.key import usable
from rythmiq_ray.errors import ConfigurationError
from rythmiq_ray.fibers import in_fiber, wait_for
from rythmiq_ray.secret import Secret

_BLOCK_BYTES: Final = 256 * 1024
_MOST_AT_ONCE: Final = 1000
"""No task has more orders. A thread is made when it is needed."""
_encode_json: Final = json.JSONEncoder(allow_nan=False).encode


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request; ``path`` is quoted and below the endpoint, ``json`` goes as JSON, ``data`` as it is."""

    method: str
    path: str
    json: object = None
    data: bytes | Upload | None = None
    headers: Mapping[str, str] | None = None
    connect_timeout_s: float
    read_timeout_s: float
    """For each read of the answer."""


class Transport:
    """Sends requests to one endpoint, with the key; follows no redirect and keeps no cookie.

    Thread-safe; fibers must be of one event loop.
    """

    def __init__(self, endpoint: str, key: Callable[[], Secret], threads: int) -> None:
        """``threads``: how many may send at once on a pooled connection.

        Raises ConfigurationError for a key that cannot go into a header.
        """
        if not usable(key()):
            raise ConfigurationError("camber.api_key is empty or holds characters that no key has")
        self._key = key
        self._adapter = _Adapter(pool_connections=1, pool_maxsize=threads)
        self._headers = requests.utils.default_headers()
        prepared = requests.PreparedRequest()
        prepared.prepare_url(endpoint.rstrip("/"), None)
        self._endpoint = str(prepared.url).rstrip("/")
        with requests.Session() as session:
            settings = session.merge_environment_settings(self._endpoint, {}, None, None, None)
        self._settings: dict[str, Any] = {name: settings[name] for name in ("proxies", "verify", "cert")}
        self._by_proxy = select_proxy(self._endpoint, self._settings["proxies"]) is not None
        # A call by a proxy is sent at once too: a create that waited for a thread could come after its lease.
        self._threads = ThreadPoolExecutor(_MOST_AT_ONCE, thread_name_prefix="proxied")
        where = urlsplit(self._endpoint)
        self._base = where.path
        self._fixed_head = (
            f"Host: {where.netloc.rpartition('@')[2]}\r\nUser-Agent: {self._headers['User-Agent']}\r\n"
            "Accept: */*\r\nAccept-Encoding: identity\r\n"
        )
        self._connections: Connections | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def call(self, request: Request) -> Answer:
        """The whole answer. Raises Unanswered."""
        if not in_fiber() or isinstance(request.data, Upload):
            return whole(self.open(request))
        if self._by_proxy:
            return wait_for(asyncio.wrap_future(self._threads.submit(lambda: whole(self.open(request)))))
        connections = self._connections or self._new_connections()
        return wait_for(
            connections.exchange(
                self._message(request),
                connect_timeout_s=request.connect_timeout_s,
                read_timeout_s=request.read_timeout_s,
            )
        )

    def open(self, request: Request) -> requests.Response:
        """The answer, its body not read yet; blocks also in a fiber. Raises Unanswered."""
        prepared = requests.PreparedRequest()
        prepared.method = request.method
        prepared.url = f"{self._endpoint}{request.path}"
        prepared.headers = CaseInsensitiveDict(self._headers)
        prepared.headers.update(self._own_headers(request))
        data = _body(request)
        if isinstance(data, Upload) and data.len is None:
            prepared.headers["Transfer-Encoding"] = "chunked"
        elif data is not None or request.method not in ("GET", "HEAD"):
            length = data.len if isinstance(data, Upload) else len(data or b"")
            prepared.headers["Content-Length"] = str(length)
        prepared.body = data  # type: ignore[assignment]  # an iterable of bytes is fine, the stubs know only strings
        timeouts_s = (request.connect_timeout_s, request.read_timeout_s)
        with _translated():
            return self._adapter.send(prepared, stream=True, timeout=timeouts_s, **self._settings)

    def close(self) -> None:
        """Closes the pooled connections."""
        self._adapter.close()
        self._threads.shutdown(wait=False)
        if self._connections is not None and self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._connections.close)

    def _new_connections(self) -> Connections:
        where = urlsplit(self._endpoint)
        tls = _trusted(self._settings["verify"]) if where.scheme == "https" else None
        self._connections = Connections(where.hostname or "", where.port or (443 if tls else 80), tls)
        self._loop = asyncio.get_running_loop()
        return self._connections

    def _message(self, request: Request) -> bytes:
        """Head and body as they go over the wire."""
        body = _body(request)
        assert not isinstance(body, Upload)  # noqa: S101 - those go by requests
        lines = "".join(f"{name}: {value}\r\n" for name, value in self._own_headers(request).items())
        if body is not None or request.method not in ("GET", "HEAD"):
            lines += f"Content-Length: {len(body or b'')}\r\n"
        head = f"{request.method} {self._base}{request.path} HTTP/1.1\r\n{self._fixed_head}{lines}\r\n"
        return head.encode("latin-1") + (body or b"")

    def _own_headers(self, request: Request) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self._key().reveal()}", **(request.headers or {})}
        if request.json is not None:
            headers["Content-Type"] = "application/json"
        return headers


def whole(response: requests.Response) -> Answer:
    """An answer with its body; closes it. Raises Unanswered."""
    with _translated(), response:
        body = bytearray()
        for chunk in response.iter_content(_BLOCK_BYTES):
            body += chunk
            _check_length(body)
        return Answer(response.status_code, response.headers, bytes(body))


def _body(request: Request) -> bytes | Upload | None:
    return request.data if request.json is None else _encode_json(request.json).encode()


def _check_length(body: bytearray) -> None:
    if len(body) > MAX_ANSWER_BYTES:
        raise Unanswered("the answer is too long")


def _trusted(verify: bool | str) -> ssl.SSLContext:
    """The certificates that requests would trust."""
    place = certifi.where() if verify is True else str(verify)
    folder = Path(place).is_dir()
    return ssl.create_default_context(cafile=None if folder else place, capath=place if folder else None)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except requests.RequestException as error:
        raise _of_requests(error) from error
    except OSError as error:
        raise Unanswered("the connection broke") from error


def _of_requests(error: requests.RequestException) -> Unanswered:
    cause = error.args[0] if error.args else None
    reason = cause.reason if isinstance(cause, MaxRetryError) else cause
    if isinstance(error, requests.exceptions.ProxyError):  # Once past the proxy, an error is of another kind.
        return Unanswered("no way through the proxy", never_sent=True)
    if isinstance(error, requests.ConnectTimeout):
        return Unanswered("no connection in time", never_sent=True)
    if isinstance(error, requests.Timeout):
        return Unanswered("no answer in time")
    if isinstance(reason, NameResolutionError):
        return Unanswered("its name does not resolve", never_sent=True)
    if isinstance(reason, NewConnectionError):
        return Unanswered("no connection", never_sent=True)
    if isinstance(error, requests.exceptions.SSLError):
        # The certificate is seen before anything is sent.
        untrusted = any(isinstance(part, ssl.SSLCertVerificationError) for part in getattr(reason, "args", ()))
        never_sent = untrusted and isinstance(cause, MaxRetryError)
        return Unanswered("its certificate is not trusted" if untrusted else "a TLS fault", never_sent=never_sent)
    if isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return Unanswered("the connection broke")
    return Unanswered(type(error).__name__)


class _Adapter(HTTPAdapter):
    """One pool for the one endpoint; bodies go in larger blocks than http.client's 16 KiB."""

    _pool: ConnectionPool | None = None

    def init_poolmanager(self, *args: Any, **pool_arguments: Any) -> None:
        super().init_poolmanager(*args, **pool_arguments, blocksize=_BLOCK_BYTES)

    def get_connection_with_tls_context(self, *args: Any, **arguments: Any) -> ConnectionPool:
        if self._pool is None:
            self._pool = super().get_connection_with_tls_context(*args, **arguments)
        return self._pool
