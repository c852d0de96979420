"""Checks that a database suits this program: the schema's revision, the encoding, and no unsuitable pooler."""

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

REVISION: Final = "0009"
"""The schema that this program is written for."""
USABLE_FROM: Final = "0001"
"""The oldest program, by the revision that it is written for, which may work on this schema beside newer ones. It
changes only with a migration that takes away what that program needs; adding columns and tables does not."""
_RECORDED: Final = re.compile(r"revision (\d{4}), usable by programs of (\d{4}) or later")
_PARAMETER: Final = re.compile(r"%\((\w+)\)s")
_FIRST: Final = "0001"
"""The revision that does not record itself in the schema."""
_RECORD: Final = """
SELECT c.oid IS NOT NULL AS there, obj_description(c.oid, 'pg_class') AS record
FROM (SELECT) AS one
LEFT JOIN (pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = 'rythmiq')
    ON c.relname = 'migrations' AND c.relkind = 'r'
"""


_HELPERS: Final = 3
"""How many more connections are opened to see whether one of them gets the first one's server process."""
_BACKEND: Final = "SELECT pg_backend_pid() AS pid"
SETTINGS: Final = frozenset({"session"})
"""Statements of a driver that need no privilege and that EXPLAIN does not take."""
RETENTION: Final = frozenset({"expired_artifacts", "forget_artifacts", "delete_expired"})
"""Statements of a driver that need additional privileges (deploy/sql/roles.sql)."""


def check_database(dsn: Secret, *, retention: bool = False, connect_timeout_s: float = 10.0) -> None:
    """The checks of a driver before it starts. ``retention``: whether it will delete expired jobs.

    Raises ConfigurationError for an unsuitable address, database or pooler, and DatabaseUnavailable if the server does
    not answer, the schema does not fit, or the role lacks a privilege.
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
    """A connection for a CLI command, after the checks of schema and pooler. Raises as :func:`check_database`."""
    connection = opened(dsn)
    try:
        check_schema(connection)
        if connection.info.backend_pid != fetch(connection, _BACKEND, {})[0]["pid"]:
            _check_pooler(connection, dsn, connect_timeout_s=10.0)
        connection.rollback()  # Ends the checks' transaction, so that the command's own can be repeated.
        prepare(connection, statement_timeout_s=statement_timeout_s)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_rights(connection: psycopg2.extensions.connection, names: Iterable[str]) -> None:
    """Raises DatabaseUnavailable if the role may not run one of a driver's statements; they are planned, not run."""
    for name in sorted(names):
        statement = queries("driver")[name]
        fetch(connection, f"EXPLAIN {statement}", dict.fromkeys(_PARAMETER.findall(statement)))


def _check_pooler(connection: psycopg2.extensions.connection, dsn: Secret, connect_timeout_s: float) -> None:
    """Raises ConfigurationError if a pooler in transaction mode shares server processes between connections.

    Without such a pooler a connection keeps its own server process while it is open. So if a second connection gets the
    first one's process, or the first one gets another process, there is one. Each helper connection keeps a transaction
    open, so that the pooler has to give the next one another process. No settings are changed.
    """
    connection.rollback()  # An open transaction would keep its server process even behind a pooler.
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
                    "database.url: a pooler in transaction mode is in front of Postgres and keeps neither LISTEN nor"
                    " settings: use its session mode, or the server's own address"
                )
            if connection.info.backend_pid == pid:
                return  # Postgres reports its real process id; a pooler reports ids of its own.
    finally:
        for helper in helpers:
            helper.close()


def record(revision: str, usable_from: str) -> str:
    """The statement that records a revision in the schema: as a comment, because every login may read comments."""
    return f"COMMENT ON TABLE rythmiq.migrations IS 'revision {revision}, usable by programs of {usable_from} or later'"


def check_schema(connection: psycopg2.extensions.connection) -> None:
    """Raises DatabaseUnavailable if the schema is missing, older than this program, or too new for it."""
    (found,) = fetch(connection, _RECORD, {})
    if not found["there"]:
        raise DatabaseUnavailable("The schema rythmiq is missing: run `rythmiq migrate`")
    recorded = _RECORDED.search(found["record"] or "")
    revision, usable_from = (recorded[1], recorded[2]) if recorded else (_FIRST, _FIRST)
    if revision < REVISION:
        raise DatabaseUnavailable(
            f"The schema rythmiq is older than this program (revision {revision}; {REVISION} is needed): run"
            " `rythmiq migrate`"
        )
    if usable_from > REVISION:
        raise DatabaseUnavailable(
            f"This program is older than the schema rythmiq ({revision}, usable from {usable_from} on, and this"
            f" program is written for {REVISION}): upgrade it"
        )


def check_encoding(connection: psycopg2.extensions.connection) -> None:
    """Raises ConfigurationError if the database's encoding is not UTF8."""
    encoding = fetch(connection, "SHOW server_encoding", {})[0]["server_encoding"]
    if encoding != "UTF8":
        raise ConfigurationError(
            f"The database's encoding is {encoding}, but commands can contain any text: create one with ENCODING 'UTF8'"
        )
