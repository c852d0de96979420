"""Whether a database fits this program: its schema's revision, its encoding, and what stands between."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import psycopg2
import psycopg2.extensions

from rythmiq_ray.errors import ConfigurationError, DatabaseUnavailable
from rythmiq_ray.queue.connection import fetch, opened, prepare
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.secret import Secret

REVISION: Final = "0007"
"""The schema that this program is written for."""
USABLE_FROM: Final = "0001"
"""The oldest program, by the revision that it is written for, which may work on this schema beside newer ones. It
changes only with a migration that takes away what that program needs; adding columns and tables does not."""
_RECORDED: Final = re.compile(r"revision (\d{4}), usable by programs of (\d{4}) or later")
_PARAMETER: Final = re.compile(r"%\((\w+)\)s")
_FIRST: Final = "0001"
"""It has no record of itself."""
_RECORD: Final = """
SELECT c.oid IS NOT NULL AS there, obj_description(c.oid, 'pg_class') AS record
FROM (SELECT) AS one
LEFT JOIN (pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = 'rythmiq')
    ON c.relname = 'migrations' AND c.relkind = 'r'
"""


_HELPERS: Final = 3
"""So many connections are opened beside the first to see whether one is given its server process."""
_BACKEND: Final = "SELECT pg_backend_pid() AS pid"
SETTINGS: Final = frozenset({"session"})
"""Statements of a driver that need no right, and that cannot be explained."""
RETENTION: Final = frozenset({"expired_artifacts", "forget_artifacts", "delete_expired"})
"""Statements of a driver whose role needs rights of its own (deploy/sql/roles.sql)."""


def check_database(dsn: Secret, *, retention: bool = False, connect_timeout_s: float = 10.0) -> None:
    """What a driver asks before it begins. ``retention``: whether it will delete what has expired.

    Raises ConfigurationError for an address, a database or a pooler that will not do, and DatabaseUnavailable for a
    server that does not answer, a schema that does not fit or a role that lacks a right.
    """
    connection = opened(dsn, connect_timeout_s=connect_timeout_s)
    try:
        check_encoding(connection)
        check_schema(connection)
        _check_rights(connection, queries("driver").keys() - SETTINGS - (frozenset() if retention else RETENTION))
        _check_pooler(connection, dsn, connect_timeout_s)
    finally:
        connection.close()


def connect_checked(dsn: Secret, *, statement_timeout_s: float) -> psycopg2.extensions.connection:
    """A connection for a command: the schema fits, and no pooler shares what is set there. Raises as check_database."""
    connection = opened(dsn)
    try:
        check_schema(connection)
        if connection.info.backend_pid != fetch(connection, _BACKEND, {})[0]["pid"]:
            _check_pooler(connection, dsn, connect_timeout_s=10.0)
        connection.rollback()  # So that what follows is the first of its transaction, and may be repeated.
        prepare(connection, statement_timeout_s=statement_timeout_s)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_rights(connection: psycopg2.extensions.connection, names: Iterable[str]) -> None:
    """Raises DatabaseUnavailable where the role may not run one of a driver's statements: they are planned, not run."""
    for name in sorted(names):
        statement = queries("driver")[name]
        fetch(connection, f"EXPLAIN {statement}", dict.fromkeys(_PARAMETER.findall(statement)))


def _check_pooler(connection: psycopg2.extensions.connection, dsn: Secret, connect_timeout_s: float) -> None:
    """Raises ConfigurationError where server processes are shared between connections from transaction to transaction.

    A connection has one process for as long as it is open. So no other may be given the same one meanwhile, and it may
    never find itself in another. Each helper holds a transaction open, so that the next one is given another process,
    until it is the turn of the first connection's or that one is given another. Nothing was set there before, and
    nothing is left behind.
    """
    connection.rollback()  # A transaction has its process for as long as it is open, whatever stands before it.
    pid = fetch(connection, _BACKEND, {})[0]["pid"]
    connection.rollback()
    helpers: list[psycopg2.extensions.connection] = []
    try:
        for _ in range(_HELPERS):
            helper = opened(dsn, connect_timeout_s=connect_timeout_s)
            helpers.append(helper)
            shared = fetch(helper, _BACKEND, {})[0]["pid"] == pid or fetch(connection, _BACKEND, {})[0]["pid"] != pid
            connection.rollback()
            if shared:
                raise ConfigurationError(
                    "database.url: a pooler in transaction mode stands before Postgres, which keeps neither LISTEN nor"
                    " settings: use its session mode, or the server's own address"
                )
            if connection.info.backend_pid == pid:
                return  # The process says so itself; a pooler gives numbers of its own.
    finally:
        for helper in helpers:
            helper.close()


def record(revision: str, usable_from: str) -> str:
    """The statement by which a migration says in the schema what it is. Every login may read a comment."""
    return f"COMMENT ON TABLE rythmiq.migrations IS 'revision {revision}, usable by programs of {usable_from} or later'"


def check_schema(connection: psycopg2.extensions.connection) -> None:
    """Raises DatabaseUnavailable where the schema is missing, older than this program, or too new for it."""
    (found,) = fetch(connection, _RECORD, {})
    if not found["there"]:
        raise DatabaseUnavailable("The schema rythmiq is missing: run `rythmiq migrate`")
    recorded = _RECORDED.search(found["record"] or "")
    revision, usable_from = (recorded[1], recorded[2]) if recorded else (_FIRST, _FIRST)
    if revision < REVISION:
        raise DatabaseUnavailable(
            f"The schema rythmiq is older than this program ({revision}, needed is {REVISION}): run `rythmiq migrate`"
        )
    if usable_from > REVISION:
        raise DatabaseUnavailable(
            f"This program is older than the schema rythmiq ({revision}, usable from {usable_from} on, and this"
            f" program is written for {REVISION}): upgrade it"
        )


def check_encoding(connection: psycopg2.extensions.connection) -> None:
    """Raises ConfigurationError for a database that cannot hold every text."""
    encoding = fetch(connection, "SHOW server_encoding", {})[0]["server_encoding"]
    if encoding != "UTF8":
        raise ConfigurationError(
            f"The database's encoding is {encoding}, and commands are any text: create one with ENCODING 'UTF8'"
        )
