"""One connection to Postgres, and its errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras

from rythmiq_ray.errors import DatabaseRefused, DatabaseUnavailable
from rythmiq_ray.queue.dsn import refused
from rythmiq_ray.secret import Secret

psycopg2.extras.register_uuid()  # type: ignore[no-untyped-call]


def connect(
    dsn: Secret, *, connect_timeout_s: float = 10.0, statement_timeout_s: float = 30.0
) -> psycopg2.extensions.connection:
    """Opens a connection that notices a dead server within some 30 s; raises DatabaseUnavailable.

    ``statement_timeout_s`` 0 means none.
    """
    try:
        connection = psycopg2.connect(
            dsn.reveal(),
            connect_timeout=max(2, round(connect_timeout_s)),
            application_name="rythmiq-ray",
            keepalives=1,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=30_000,
        )
    except psycopg2.Error as error:
        reason = explain(error)
        kind = DatabaseRefused if refused(reason) else DatabaseUnavailable
        raise kind(f"Postgres cannot be reached{where(dsn)}: {reason}") from None
    with translated(), connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = %s", (round(statement_timeout_s * 1000),))
        connection.commit()
    return connection


def where(dsn: Secret) -> str:
    """`` at host:port, database name`` without user and password; empty where the DSN cannot be read."""
    try:
        parts = psycopg2.extensions.parse_dsn(dsn.reveal())
    except psycopg2.Error:
        return ""
    host = parts.get("host", "the local socket")
    port = f":{parts['port']}" if "port" in parts else ""
    return f" at {host}{port}, database {parts.get('dbname', 'of the user')}"


def explain(error: psycopg2.Error) -> str:
    """libpq's own words on one line; they name host and user, never the password."""
    text = " ".join(str(error.diag.message_primary or error).split())
    return text or type(error).__name__


@contextmanager
def translated() -> Iterator[None]:
    """Turns the loss of the server into DatabaseUnavailable; faults of our own SQL stay what they are."""
    try:
        yield
    except (psycopg2.OperationalError, psycopg2.InterfaceError) as error:
        raise DatabaseUnavailable(f"Postgres does not answer: {explain(error)}") from None
    except psycopg2.errors.UndefinedTable as error:
        raise DatabaseUnavailable(f"The schema rythmiq is missing ({explain(error)}): run `rythmiq migrate`") from None
    except psycopg2.errors.InsufficientPrivilege as error:
        raise DatabaseUnavailable(f"The database role may not do this: {explain(error)}") from None
    except psycopg2.DatabaseError as error:
        # A server that crashed in the middle of a call gives the bare class; faults of SQL have classes of their own.
        if type(error) is not psycopg2.DatabaseError:
            raise
        raise DatabaseUnavailable(f"Postgres does not answer: {explain(error)}") from None


Row = dict[str, Any]


def fetch(connection: psycopg2.extensions.connection, sql: str, parameters: dict[str, Any]) -> list[Row]:
    """Runs one statement and returns its rows as dicts; none where it returns nothing."""
    # The plain class, whatever the connection's own: a RealDictCursor takes twice as long over a batch.
    with translated(), connection.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
        cursor.execute(sql, parameters)
        if cursor.description is None:
            return []
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
