"""A console that runs, and how its pages are asked for and looked through."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import requests

from rythmiq_ray.web.server import Server

TOKEN = "a-token-for-tests-only"


@dataclass
class Served:
    """A console that runs, and a session that has its cookie."""

    server: Server
    session: requests.Session

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}{self.server.base}"

    @property
    def address(self) -> str:
        return self.server.address

    def get(self, path: str, **options: Any) -> requests.Response:
        return self.session.get(f"{self.url}{path}", timeout=30, **options)

    def post(self, path: str, data: dict[str, str], **options: Any) -> requests.Response:
        return self.session.post(f"{self.url}{path}", data=data, timeout=30, **options)


Serve = Callable[..., Served]


def csrf_of(page: str) -> str:
    found = re.search(r'name="csrf" value="([0-9a-f]+)"', page)
    assert found
    return found[1]


def cookie_of(console: Served) -> str:
    (cookie,) = console.session.cookies
    return f"{cookie.name}={cookie.value}"


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        assert "\u202e" not in data


def is_harmless(page: str) -> None:
    """As a parser of HTML sees it."""
    tags = _Tags()
    tags.feed(page)
    for tag, attributes in tags.found:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        assert tag not in ("iframe", "object", "embed", "base", "style")
        if tag == "script":
            assert (attributes["src"] or "").startswith("/static/console.js")
        for name in ("href", "src", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("/", "#")), value
            assert value is None or not value.startswith("//"), value
    assert "'49'" not in page, "no template is made of what a row holds"


def until(look: Callable[[], object], within_s: float = 20.0) -> None:
    """Waits until ``look`` finds what it is for."""
    end = time.monotonic() + within_s
    while not look():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
