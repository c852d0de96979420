"""Access to the console: a token, then a cookie; and headers that restrict what a browser does with its pages.

The token is in the URL once; the cookie that takes its place is HttpOnly and SameSite=Strict, so that no other site's
page sends it. Names in the Host header are checked, because a name of somebody else's may lead to a loopback address.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rythmiq_ray.errors import place_of
from rythmiq_ray.secret import Secret
from rythmiq_ray.telemetry.logs import get_logger

log = get_logger("web")

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'"
)
FILE_POLICY: Final = "default-src 'none'; sandbox; frame-ancestors 'none'"
"""Of what jobs left: even a browser that shows it as a page runs nothing in it, and gives it no origin."""
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
MOST_BODY: Final = 64 * 1024
"""Bytes of a form."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Keys:
    """Values derived from the token; the token cannot be computed from them."""

    token: Secret
    _salt: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    @property
    def session(self) -> str:
        """The cookie's value; another one after each start."""
        return self._derived("session")

    @property
    def csrf(self) -> str:
        """The CSRF token that every form of an action contains."""
        return self._derived("csrf")

    def fits(self, token: str) -> bool:
        """Whether that is the token."""
        return hmac.compare_digest(token.encode(), self.token.reveal().encode())

    def _derived(self, purpose: str) -> str:
        key = self._salt + self.token.reveal().encode()
        return hmac.new(key, purpose.encode(), hashlib.sha256).hexdigest()


def same(given: str, expected: str) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(given.encode(), expected.encode())


class Guard:
    """Middleware in front of every route and the static files."""

    def __init__(
        self, app: ASGIApp, *, keys: Keys, hosts: Collection[str], base: str, cookie: str, secure: bool
    ) -> None:
        """``hosts``: names that the Host header may have. ``base``: the prefix of a proxy, or nothing."""
        self._app = app
        self._keys = keys
        self._hosts = {host.lower() for host in hosts}
        self._base = base
        self._cookie = cookie
        self._secure = secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        response = self._refusal(scope, headers)
        if response is not None:
            await response(scope, receive, self._with_headers(send))
            return
        inner = self._without_base(scope)
        try:
            cache = "no-cache" if inner["path"].startswith("/static/") else "no-store"
            await self._app(inner, receive, self._with_headers(send, cache))
        except Exception as error:  # noqa: BLE001 - it was answered already; a traceback could show a row's values
            log.error("A page failed", path=inner["path"], error=type(error).__name__, place=place_of(error))

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        if _name_of(headers.get("host", "")) not in self._hosts:
            return _said(421, "This console is not served under that name; `rythmiq web --allow-host NAME` allows one.")
        path = self._without_base(scope)["path"]
        query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        if scope["method"] in ("GET", "HEAD") and "token" in query and self._keys.fits(query["token"]):
            return self._admitted(path, scope)
        if path.startswith("/static/"):
            return None
        if not same(self._cookie_of(headers), self._keys.session):
            return _said(
                401,
                "This console needs its token: open the whole address that `rythmiq web` printed, with ?token=… in it.",
            )
        if scope["method"] not in ("GET", "HEAD"):
            return self._foreign(headers)
        return None

    def _foreign(self, headers: Headers) -> Response | None:
        """A check beside the CSRF token: browsers send a form's origin, with a referrer policy that allows it."""
        site = headers.get("sec-fetch-site", "same-origin")
        origin = headers.get("origin")
        if site not in ("same-origin", "none") or (
            origin is not None and _name_of(urlsplit(origin).netloc) not in self._hosts
        ):
            return _said(403, "This was asked for by another site's page.")
        return None

    def _admitted(self, path: str, scope: Scope) -> Response:
        # A redirect would still belong to the site from which the address was opened, so the browser would not send a
        # SameSite=Strict cookie. A page that forwards by itself belongs to this site.
        rest = [(k, v) for k, v in parse_qsl(scope["query_string"].decode("latin-1")) if k != "token"]
        # A path that starts with two slashes would name another host.
        target = f"{self._base}/{quote(path.lstrip('/'))}" + (f"?{urlencode(rest)}" if rest else "")
        target = target.replace("&", "&amp;").replace('"', "%22")
        response = Response(
            '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>rythmiq</title>'
            f'<link rel="icon" href="{self._base}/static/icon.png"><meta http-equiv="refresh" content="0;url={target}">'
            f'</head><body><main><p><a href="{target}">Go on to the console</a></p></main></body></html>',
            media_type="text/html",
        )
        response.set_cookie(
            self._cookie,
            self._keys.session,
            path=self._base or "/",
            httponly=True,
            samesite="strict",
            secure=self._secure,
        )
        return response

    def _cookie_of(self, headers: Headers) -> str:
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return ""
        return "" if found is None else found.value

    def _without_base(self, scope: Scope) -> Scope:
        """Some proxies take their prefix off, and some do not."""
        path = scope["path"]
        if self._base and (path == self._base or path.startswith(f"{self._base}/")):
            path = path[len(self._base) :] or "/"
            return {**scope, "path": path, "raw_path": quote(path).encode()}
        return scope

    def _with_headers(self, send: Send, cache: str = "no-store") -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Content-Security-Policy", POLICY)
                headers.setdefault("Cache-Control", cache)
            await send(message)

        return sending


def _name_of(host: str) -> str:
    """Without the port, in small letters."""
    name = host.strip().lower()
    if name.startswith("["):
        return name.partition("]")[0] + "]"
    return name.rpartition(":")[0] if ":" in name else name


def _said(status: int, text: str) -> Response:
    return Response(f"{text}\n", status_code=status, media_type="text/plain; charset=utf-8")
