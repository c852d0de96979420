"""Logins of the roles, and the command in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from top_screen import Terminal
from web_rows import Connection, execute

ROOT = Path(__file__).parents[2]


@pytest.fixture
def login(connection: Connection, database_url: str) -> Iterator[Callable[[str], str]]:
    """The URL by which a new member of a role logs in."""
    execute(connection, (ROOT / "deploy/sql/roles.sql").read_text(encoding="utf-8"))
    made: list[str] = []

    def member(role: str) -> str:
        name = f"{role}_{uuid4().hex[:8]}"
        execute(connection, f"CREATE ROLE {name} LOGIN IN ROLE rythmiq_{role}")
        made.append(name)
        return database_url.replace("postgres@", f"{name}@", 1)

    yield member
    for name in made:
        execute(connection, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'")
        execute(connection, f"DROP ROLE {name}")


@pytest.fixture
def terminal(database_url: str) -> Iterator[Callable[..., Terminal]]:
    """Starts the command in a terminal of its own."""
    opened: list[Terminal] = []

    def start(*arguments: str, **options: Any) -> Terminal:
        opened.append(Terminal(options.pop("url", database_url), *arguments, **options))
        return opened[-1]

    yield start
    for each in opened:
        each.close()
