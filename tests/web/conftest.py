"""A console over a database of its own, with rows in it, and whoever asks it for pages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from web_console import TOKEN, Serve, Served

from rythmiq_ray.cli.operations import reasons_of
from rythmiq_ray.secret import Secret
from rythmiq_ray.web.server import Server, Serving


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves a console of a database; what is given beside is that of the command line."""
    running: list[tuple[Server, threading.Thread]] = []

    def start(url: str, **options: Any) -> Served:
        server = Server(Secret(url), Serving(**{"port": 0, "token": Secret(TOKEN)} | options), reasons_of)
        thread = threading.Thread(target=server.run, daemon=True)
        running.append((server, thread))
        thread.start()
        # It listens already, so the first request is answered once it has started.
        session = requests.Session()
        served = Served(server, session)
        if not options.get("tls_cert"):
            assert session.get(f"{served.url}/?token={TOKEN}", timeout=30).status_code == 200
        return served

    yield start
    for server, _ in running:
        server.stop()
    for _, thread in running:
        thread.join(20)


@pytest.fixture
def console(serve: Serve, database_url: str) -> Served:
    """A console that only shows."""
    return serve(database_url)
