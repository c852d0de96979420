"""Sends notifications as signed POSTs, as Standard Webhooks defines them, and only to addresses that are allowed.

``webhook-id`` is the same for each try of one notification. ``webhook-timestamp`` is when it was sent, in seconds since
1970. ``webhook-signature`` is ``v1,`` and the base64 of HMAC-SHA256 over ``<id>.<timestamp>.<body>``. There are
libraries in many languages that verify these (https://www.standardwebhooks.com).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import requests
from requests.utils import get_environ_proxies, select_proxy
from urllib3.exceptions import HTTPError

from rythmiq_ray import __version__
from rythmiq_ray.hosts import is_loopback
from rythmiq_ray.http_adapter import Adapter, Patience, current, trusted
from rythmiq_ray.secret import Secret

SHORTEST_KEY: Final = 16
"""The fewest bytes that a signing key may have."""
_GLOBAL_UNICAST: Final = ipaddress.ip_network("2000::/3")
_INSIDE: Final = tuple(ipaddress.ip_network(network) for network in ("2002::/16", "168.63.129.16/32"))
"""Networks that count as public but lead to internal hosts: 6to4, which contains an IPv4 address; Azure metadata."""
SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what a secret begins with, not one


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The outcome of one try."""

    error: str | None
    """Why it was not delivered, without the URL's path, which may be a secret; None if it was delivered."""
    final: bool = False
    """Whether it must not be tried again, because another try would fail too."""
    silent: bool = False
    """Whether there was no answer, so that the try may have taken the whole timeout."""


class Webhooks:
    """Sends notifications. Thread-safe."""

    def __init__(
        self,
        secret: Secret,
        *,
        timeout_s: float,
        private_networks: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``timeout_s`` is for one whole POST; ``clock`` gives seconds since 1970.

        Raises ValueError for an invalid network, for a secret that is too short or has no base64 after ``whsec_``, and
        for certificates that cannot be read.
        """
        self._key = _key_of(secret)
        self._timeout_s = timeout_s
        self._networks = [ipaddress.ip_network(network) for network in private_networks]
        self._clock = clock
        self._tls = trusted()

    def send(self, notification_id: str, url: str, body: str) -> Answer:
        """Makes one try; any 2xx status counts as delivered. A redirect is not followed, and is an error."""
        try:
            host = urlsplit(url).hostname or ""
        except ValueError:
            return Answer(error="not a valid URL", final=True)
        proxied = not is_loopback(host) and select_proxy(url, get_environ_proxies(url, no_proxy=None))
        content = body.encode()
        try:
            if proxied and not self._may_be_asked_for(host):
                return Answer(error="the address is not public", final=True)
            with requests.Session() as session:
                session.trust_env = False
                for scheme in ("http://", "https://"):
                    session.mount(scheme, Adapter(self._tls, connections=1))
                # A proxy resolves the name itself, so only the proxy can check the address.
                current.patience = Patience(self._timeout_s, may_reach=None if proxied else self._may_reach)
                response = session.post(
                    url,
                    data=content,
                    headers=self._headers(notification_id, content),
                    timeout=self._timeout_s,
                    proxies={"http": proxied, "https": proxied} if proxied else None,
                    allow_redirects=False,
                    stream=True,  # The body of the answer is not needed.
                )
                response.close()
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            # With a proxy the fault may be the proxy's, so the notification is tried again.
            answer = _unanswered(error)
            return replace(answer, final=False, silent=True) if proxied else answer
        if HTTPStatus.OK <= response.status_code < HTTPStatus.MULTIPLE_CHOICES:
            return Answer(error=None)
        gone = response.status_code == HTTPStatus.GONE
        return Answer(error=f"the receiver answered {response.status_code}", final=gone)

    def _headers(self, notification_id: str, content: bytes) -> dict[str, str]:
        sent_at = str(int(self._clock()))
        signed = b".".join((notification_id.encode(), sent_at.encode(), content))
        signature = base64.b64encode(hmac.new(self._key, signed, hashlib.sha256).digest()).decode()
        return {
            "Content-Type": "application/json",
            "User-Agent": f"rythmiq-ray/{__version__}",
            "webhook-id": notification_id,
            "webhook-timestamp": sent_at,
            "webhook-signature": f"v1,{signature}",
        }

    def _may_reach(self, address: str) -> bool:
        found = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        if any(found in network for network in self._networks):
            return True
        # IPv6 addresses outside global unicast may stand for IPv4 addresses.
        global_unicast = isinstance(found, ipaddress.IPv4Address) or found in _GLOBAL_UNICAST
        inside = any(found in network for network in _INSIDE if network.version == found.version)
        return global_unicast and found.is_global and not found.is_multicast and not inside

    def _may_be_asked_for(self, host: str) -> bool:
        """Whether a proxy may be asked for this host. A name may always, because it is not resolved here."""
        try:
            return self._may_reach(host)
        except ValueError:
            pass
        try:
            # A resolver also accepts an address as a single number, in hexadecimal, or with fewer parts.
            return self._may_reach(socket.inet_ntoa(socket.inet_aton(host.rstrip("."))))
        except OSError:
            return True


def _key_of(secret: Secret) -> bytes:
    text = secret.reveal()
    if text.startswith(SECRET_PREFIX):
        try:
            key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
        except binascii.Error:
            raise ValueError("secret: what follows whsec_ is not base64") from None
    else:
        key = text.encode()
    if len(key) < SHORTEST_KEY:
        raise ValueError(f"secret: has only {len(key)} bytes and can be guessed; use at least {SHORTEST_KEY}")
    return key


def _unanswered(error: BaseException) -> Answer:
    reason: BaseException | None = error
    seen: set[int] = set()
    while reason is not None and id(reason) not in seen:
        if isinstance(reason, PermissionError):
            return Answer(error="the address is not public; notify.private_networks can allow it", final=True)
        seen.add(id(reason))
        inner = (getattr(reason, "reason", None), reason.__cause__, reason.__context__, *reason.args)
        reason = next((part for part in inner if isinstance(part, BaseException) and id(part) not in seen), None)
    if isinstance(error, requests.exceptions.InvalidSchema | requests.exceptions.InvalidURL):
        return Answer(error="not a valid URL", final=True)
    if isinstance(error, requests.exceptions.SSLError):
        return Answer(error="TLS failed, or the certificate is not trusted")
    if isinstance(error, requests.exceptions.Timeout | TimeoutError):
        return Answer(error="no answer in time", silent=True)
    return Answer(error="the connection failed or broke", silent=True)
