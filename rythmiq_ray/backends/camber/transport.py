"""Sends HTTP calls to Camber with requests, in the calling thread, each with one deadline for the whole call.

Proxies and certificates come from the environment variables that requests reads, and from ``SSL_CERT_FILE`` and
``SSL_CERT_DIR``. They are read once. A call goes straight to an adapter of requests, without a session: nothing is sent
twice, no redirect is followed and no cookie is kept. A session would also merge its settings into each call, and costs
much processor time.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import requests
from urllib3 import exceptions as urllib3

from rythmiq_ray.backends.bundle import Upload
from rythmiq_ray.backends.camber.answers import Answer
from rythmiq_ray.backends.camber.key import usable
from rythmiq_ray.errors import BackendUnavailable, ConfigurationError
from rythmiq_ray.hosts import is_loopback
from rythmiq_ray.http_adapter import Adapter, Patience, current, trusted
from rythmiq_ray.secret import Secret

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_BLOCK_BYTES: Final = 256 * 1024
_HEADERS: Final = {"User-Agent": requests.utils.default_user_agent(), "Accept": "*/*", "Accept-Encoding": "identity"}
_OPENED: Final = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT)
_FAULTS: Final = (requests.RequestException, urllib3.HTTPError, http.client.HTTPException, OSError, ValueError)
"""What requests can raise for anything that a server sends; malformed header values raise ValueError."""


class Unanswered(Exception):
    """A request that got no complete answer. The text says what happened, and quotes no URL and no header."""

    def __init__(self, what: str, *, never_sent: bool = False) -> None:
        super().__init__(what)
        self.never_sent = never_sent
        """Whether no byte of it was sent, so that the server knows nothing of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request. ``path`` is URL-quoted and relative to the endpoint; ``json`` is encoded, ``data`` is sent as is."""

    method: str
    path: str
    json: object = None
    data: bytes | Upload | None = None
    headers: Mapping[str, str] | None = None
    connect_timeout_s: float
    """For resolving the host name and connecting to one of its addresses."""
    timeout_s: float
    """For the whole of a small call. A streamed body must make progress within each such time (:class:`Patience`)."""
    fresh: bool = False
    """Whether to use a new connection. The server may close a pooled one just as it is written to, and then it is not
    known whether the request arrived."""


class Transport:
    """Sends requests with the API key to one endpoint. Thread-safe."""

    def __init__(self, endpoint: str, key: Callable[[], Secret], threads: int) -> None:
        """``threads``: how many threads call at once; as many connections are kept.

        Raises ConfigurationError for a key that cannot be sent in a header and for an endpoint that is no URL, and
        BackendUnavailable if the certificates that the environment names cannot be read.
        """
        if not usable(key()):
            raise ConfigurationError("camber.api_key is empty or holds characters that no key has")
        self._endpoint = _normalized(endpoint)
        self._key = key
        self._tls = _trusted() if self._endpoint.startswith("https") else None
        self._proxies = _proxies(self._endpoint)
        self._adapter = Adapter(self._tls, connections=threads)

    def call(self, request: Request) -> Answer:
        """Sends a request and reads the whole answer. Raises Unanswered."""
        if not request.fresh:
            return whole(self._send(self._adapter, request))
        with closing(Adapter(self._tls, connections=1)) as adapter:
            return whole(self._send(adapter, request))

    def open(self, request: Request) -> requests.Response:
        """Sends a request; the body of the answer is not read yet. Raises Unanswered."""
        return self._send(self._adapter, request, streams=True)

    def close(self) -> None:
        """Closes the pooled connections."""
        self._adapter.close()

    def _send(self, adapter: Adapter, request: Request, *, streams: bool = False) -> requests.Response:
        patience = Patience(request.timeout_s, streams=isinstance(request.data, Upload))
        current.patience = patience
        with _translated(patience):
            response = adapter.send(
                self._prepared(request),
                timeout=(min(request.connect_timeout_s, request.timeout_s), request.timeout_s),
                stream=True,
                proxies=self._proxies,
            )
        if response.status_code < HTTPStatus.OK:
            response.close()  # What follows an interim answer must not be taken for the next one.
            raise Unanswered("an unexpected interim answer")
        if streams and response.status_code in _OPENED:
            patience.stream(True)
        return response

    def _prepared(self, request: Request) -> requests.PreparedRequest:
        prepared = requests.PreparedRequest()
        prepared.method = request.method
        prepared.url = f"{self._endpoint}{request.path}"
        prepared.prepare_headers(
            {
                **_HEADERS,
                "Connection": "close" if request.fresh else "keep-alive",
                **(request.headers or {}),
                "Authorization": f"Bearer {self._key().reveal()}",
            }
        )
        prepared.prepare_body(request.data, None, request.json)
        return prepared


def whole(response: requests.Response) -> Answer:
    """Reads a response's body, decoded if it is encoded, and closes the response. Raises Unanswered."""
    with _translated(), response:
        body = bytearray()
        for chunk in response.iter_content(_BLOCK_BYTES):
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                response.raw.close()
                raise Unanswered("the answer is too long")
        return Answer(response.status_code, response.headers, bytes(body))


def _normalized(endpoint: str) -> str:
    prepared = requests.PreparedRequest()
    try:
        prepared.prepare_url(endpoint.rstrip("/"), None)
    except (requests.RequestException, ValueError):
        raise ConfigurationError("camber.endpoint is not a URL that can be called") from None
    return str(prepared.url).rstrip("/")


def _proxies(endpoint: str) -> Mapping[str, str]:
    """The environment's proxies for this endpoint; none for a loopback address, which a proxy cannot reach."""
    host = urlsplit(endpoint).hostname or ""
    with requests.Session() as session:
        proxies: Mapping[str, str] = session.merge_environment_settings(endpoint, {}, None, None, None)["proxies"]
    return {} if is_loopback(host) else proxies


def _trusted() -> ssl.SSLContext:
    try:
        return trusted()
    except ValueError as error:
        raise BackendUnavailable(str(error)) from None


@contextmanager
def _translated(patience: Patience | None = None) -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        sent = patience is None or patience.sent
        raise Unanswered(_words(error, sent=sent), never_sent=not sent) from error


def _words(error: BaseException, *, sent: bool) -> str:
    """What happened, in words: the first entry of :data:`_WORDS` that fits the error or one that it wraps."""
    wrapped = list(_unwrapped(error, set()))
    return next(
        (words for kinds, words in _WORDS if any(isinstance(part, kinds) for part in wrapped)), "the connection broke"
    ).format(what="answer" if sent else "connection")


_WORDS: Final[tuple[tuple[tuple[type[BaseException], ...], str], ...]] = (
    # The endpoint was checked at the start, so a bad URL here is the proxy's.
    (
        (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, urllib3.LocationValueError),
        "the proxy that the environment names cannot be used",
    ),
    ((urllib3.ProxyError,), "the proxy did not let it through"),
    ((urllib3.NameResolutionError,), "its name does not resolve"),
    ((urllib3.ConnectTimeoutError, urllib3.ReadTimeoutError, TimeoutError), "no {what} in time"),
    ((urllib3.NewConnectionError,), "no connection"),
    ((ssl.SSLCertVerificationError,), "its certificate is not trusted"),
    ((urllib3.SSLError, ssl.SSLError), "a TLS fault"),
    ((urllib3.DecodeError,), "the answer cannot be decoded"),
    ((ConnectionError, urllib3.IncompleteRead), "the connection broke"),
    (
        (http.client.HTTPException, urllib3.InvalidHeader, urllib3.InvalidChunkLength, ValueError),
        "the answer is not HTTP",
    ),
)


def _unwrapped(error: BaseException, seen: set[int]) -> Iterator[BaseException]:
    if id(error) in seen:
        return
    seen.add(id(error))
    yield error
    inner: tuple[Any, ...] = (*error.args, getattr(error, "reason", None), error.__cause__, error.__context__)
    for part in inner:
        if isinstance(part, BaseException):
            yield from _unwrapped(part, seen)
