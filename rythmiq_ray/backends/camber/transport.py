"""How a call travels: by requests from a thread, by aiohttp from a fiber; with the same settings, key and errors.

Both read proxies and the bundle of certificates from the environment once, as requests does. A requests session would
work these out anew for each call, which took more than half of a small call's processor time (measured with requests
2.34), so its transport adapter is used without one.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import aiohttp
import certifi
import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import select_proxy
from urllib3.connectionpool import ConnectionPool
from urllib3.exceptions import MaxRetryError, NameResolutionError, NewConnectionError
from yarl import URL

from rythmiq_ray.backends.camber.answers import Answer
from rythmiq_ray.backends.camber.bundle import Upload
from rythmiq_ray.backends.camber.key import usable
from rythmiq_ray.errors import ConfigurationError
from rythmiq_ray.fibers import in_fiber, wait_for
from rythmiq_ray.secret import Secret

_BLOCK_BYTES: Final = 256 * 1024
_MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024


class Unanswered(Exception):
    """A request that brought no whole answer. The text says what happened, and quotes no URL and no header."""

    def __init__(self, what: str, *, never_sent: bool = False) -> None:
        super().__init__(what)
        self.never_sent = never_sent
        """Whether it failed before there was a connection to send it over, so that the server knows nothing of it."""


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
    """Sends requests to one endpoint, with the key; follows no redirect and keeps no cookie. Thread-safe."""

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
        self._proxy = select_proxy(self._endpoint, self._settings["proxies"])
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def call(self, request: Request) -> Answer:
        """The whole answer. Raises Unanswered."""
        if in_fiber() and not isinstance(request.data, Upload):
            return wait_for(self._call(request))
        return whole(self.open(request))

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
        session, self._session = self._session, None
        if session is not None and self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(session.close(), self._loop)

    async def _call(self, request: Request) -> Answer:
        session = self._session or self._new_session()
        with _translated():
            async with session.request(
                request.method,
                URL(f"{self._endpoint}{request.path}", encoded=True),
                headers=self._own_headers(request),
                data=_body(request),
                timeout=_timeout(request.connect_timeout_s, request.read_timeout_s),
                allow_redirects=False,
                proxy=self._proxy,
            ) as response:
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    _check_length(body)
                return Answer(response.status, response.headers, bytes(body))

    def _new_session(self) -> aiohttp.ClientSession:
        session = self._session = aiohttp.ClientSession(
            # One connection for each call that is under way; a limit would count as a slow connect.
            connector=aiohttp.TCPConnector(limit=0, ssl=_trusted(self._settings["verify"])),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._headers["User-Agent"]},
        )
        # It would send a PUT or a DELETE again by itself where a kept connection breaks, and routes are configuration:
        # the create may be one of them. There is no public switch; a test sees to it that this one works.
        session._retry_connection = False
        self._loop = asyncio.get_running_loop()
        return session

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
    return request.data if request.json is None else json.dumps(request.json, allow_nan=False).encode()


@lru_cache
def _timeout(connect_s: float, read_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=connect_s, sock_read=read_s)


def _check_length(body: bytearray) -> None:
    if len(body) > _MAX_ANSWER_BYTES:
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
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise _of_aiohttp(error) from error


def _of_requests(error: requests.RequestException) -> Unanswered:
    cause = error.args[0] if error.args else None
    reason = cause.reason if isinstance(cause, MaxRetryError) else cause
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


def _of_aiohttp(error: Exception) -> Unanswered:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return Unanswered("no connection in time", never_sent=True)
    if isinstance(error, TimeoutError):
        return Unanswered("no answer in time")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Unanswered("its name does not resolve", never_sent=True)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Unanswered("its certificate is not trusted", never_sent=True)
    if isinstance(error, aiohttp.ClientSSLError):
        return Unanswered("a TLS fault")
    if isinstance(error, aiohttp.ClientConnectorError):
        return Unanswered("no connection", never_sent=True)
    if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
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
