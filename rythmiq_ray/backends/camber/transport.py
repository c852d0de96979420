"""How a call travels: requests' transport adapter over one pool of connections, without its session.

A session works out proxies, certificates, cookies and redirects anew for each call, which took more than half of a
small call's processor time (measured with requests 2.34). To one endpoint these are the same every time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connectionpool import ConnectionPool

from rythmiq_ray.backends.camber.bundle import Upload
from rythmiq_ray.backends.camber.key import usable
from rythmiq_ray.errors import ConfigurationError
from rythmiq_ray.secret import Secret

_BLOCK_BYTES: Final = 256 * 1024


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
        # Proxies and the bundle of certificates come from the environment, as in any program that uses requests.
        with requests.Session() as session:
            settings = session.merge_environment_settings(self._endpoint, {}, None, None, None)
        self._settings: dict[str, Any] = {name: settings[name] for name in ("proxies", "verify", "cert")}

    def send(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        data: bytes | Upload | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: tuple[float, float],
    ) -> requests.Response:
        """The answer, its body not read yet. ``path`` is quoted, ``body`` goes as JSON.

        ``timeout_s`` is for connecting and for each read. Raises requests.RequestException.
        """
        request = requests.PreparedRequest()
        request.method = method
        request.url = f"{self._endpoint}{path}"
        request.headers = CaseInsensitiveDict(self._headers)
        request.headers["Authorization"] = f"Bearer {self._key().reveal()}"
        request.headers.update(headers or {})
        if body is not None:
            data = json.dumps(body, allow_nan=False).encode()
            request.headers["Content-Type"] = "application/json"
        if isinstance(data, Upload) and data.len is None:
            request.headers["Transfer-Encoding"] = "chunked"
        elif data is not None or method not in ("GET", "HEAD"):
            length = data.len if isinstance(data, Upload) else len(data or b"")
            request.headers["Content-Length"] = str(length)
        request.body = data  # type: ignore[assignment]  # an iterable of bytes is fine, the stubs know only strings
        return self._adapter.send(request, stream=True, timeout=timeout_s, **self._settings)

    def close(self) -> None:
        """Closes the pooled connections."""
        self._adapter.close()


class _Adapter(HTTPAdapter):
    """One pool for the one endpoint; bodies go in larger blocks than http.client's 16 KiB."""

    _pool: ConnectionPool | None = None

    def init_poolmanager(self, *args: Any, **pool_arguments: Any) -> None:
        super().init_poolmanager(*args, **pool_arguments, blocksize=_BLOCK_BYTES)

    def get_connection_with_tls_context(self, *args: Any, **arguments: Any) -> ConnectionPool:
        if self._pool is None:
            self._pool = super().get_connection_with_tls_context(*args, **arguments)
        return self._pool
