"""Opens connections to Postgres, reads rows, and translates Postgres errors into RythmiqError."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, Self, TypeVar

import psycopg2
import psycopg2.extensions
import psycopg2.extras

from rythmiq_ray.errors import ConfigurationError, DatabaseRefused, DatabaseUnavailable
from rythmiq_ray.queue.dsn import check_dsn, refused
from rythmiq_ray.secret import Secret

psycopg2.extras.register_uuid()  # type: ignore[no-untyped-call]

EARLIEST: Final = datetime(2, 1, 1, tzinfo=UTC)
LATEST: Final = datetime(9998, 12, 31, tzinfo=UTC)
"""They replace earlier and later dates, which Postgres has and Python cannot represent. The distance from Python's own
limits leaves room for time zones."""

CONFLICT_TRIES: Final = 5
_CONFLICT_PAUSE_S: Final = 0.05
_T = TypeVar("_T")


class Conflict(DatabaseUnavailable):
    """A conflict with another session: a deadlock or a serialization failure.

    The transaction was rolled back and may be repeated; the connection can still be used.
    """


class StatementTimeout(DatabaseUnavailable):
    """A statement took longer than ``statement_timeout``: the server is slow, or the statement is large.

    The connection can still be used.
    """


def connect(
    dsn: Secret,
    *,
    connect_timeout_s: float = 10.0,
    statement_timeout_s: float = 30.0,
    lock_timeout_s: float = 0.0,
    silence_s: float = 30.0,
) -> psycopg2.extensions.connection:
    """Opens a connection for our statements; raises as :func:`opened`. Timeouts are in seconds; 0 means none."""
    connection = opened(dsn, connect_timeout_s=connect_timeout_s, silence_s=silence_s)
    prepare(connection, statement_timeout_s=statement_timeout_s, lock_timeout_s=lock_timeout_s)
    return connection


def prepare(
    connection: psycopg2.extensions.connection, *, statement_timeout_s: float, lock_timeout_s: float = 0.0
) -> None:
    """Sets what our statements need for as long as the connection is open."""
    with translated(), connection.cursor() as cursor:
        # Set here, because a role may default to an isolation in which a row that changed meanwhile is an error.
        cursor.execute(
            "SET statement_timeout = %s; SET lock_timeout = %s; SET default_transaction_isolation = 'read committed'",
            (round(statement_timeout_s * 1000), round(lock_timeout_s * 1000)),
        )
        connection.commit()


def opened(dsn: Secret, *, connect_timeout_s: float = 10.0, silence_s: float = 30.0) -> psycopg2.extensions.connection:
    """Opens a connection without any settings.

    A server that sends nothing for ``silence_s`` seconds counts as dead. Raises ConfigurationError if the DSN cannot be
    parsed, and DatabaseUnavailable.
    """
    if fault := check_dsn(dsn):
        raise ConfigurationError(f"database.url {fault} (DATABASE_URL; it is not shown, as it may hold a password)")
    try:
        return psycopg2.connect(
            dsn.reveal(),
            connect_timeout=max(2, round(connect_timeout_s)),
            application_name="rythmiq-ray",
            # Set here, so that no role setting or PGCLIENTENCODING changes it: commands and names may be any text.
            client_encoding="UTF8",
            keepalives=1,
            keepalives_idle=max(1, round(silence_s / 3)),
            keepalives_interval=max(1, round(silence_s / 6)),
            keepalives_count=3,
            tcp_user_timeout=round(silence_s * 1000),
        )
    except psycopg2.Error as error:
        reason = explain(error)
        kind = DatabaseRefused if refused(reason) else DatabaseUnavailable
        raise kind(f"Postgres cannot be reached{where(dsn)}: {reason}") from None


def where(dsn: Secret) -> str:
    """`` at host:port, database name`` without user and password; empty if the DSN cannot be parsed."""
    try:
        parts = psycopg2.extensions.parse_dsn(dsn.reveal())
    except psycopg2.Error:
        return ""
    host = parts.get("host", "the local socket")
    port = f":{parts['port']}" if "port" in parts else ""
    return f" at {host}{port}, database {parts.get('dbname', 'of the user')}"


def explain(error: psycopg2.Error) -> str:
    """libpq's own message on one line; it names host and user, never the password."""
    text = " ".join(str(error.diag.message_primary or error).split())
    return text or type(error).__name__


# --------------------------------------------------------------------------------------------------------- errors

_READ_ONLY: Final = "25006"
_CANCELED: Final = "57014"
_CONFLICTS: Final = "40"
"""Deadlock, serialization failure."""
_OUTAGES: Final = ("08", "53", "57", "58", "28", "3D", "25P03", "25P04", "55P03")
"""SQLSTATEs of outages: connection, resources, an operator or timeout that ended the session, the system, the login, a
missing database, a lock that was not granted in time."""
_NO_SCHEMA: Final = ("3F", "42P01")
_OTHER_SCHEMA: Final = ("42703", "42883", "42704")
_NO_RIGHT: Final = "42501"


def as_ours(error: psycopg2.Error) -> DatabaseUnavailable | None:
    """Our error for a Postgres error, by its SQLSTATE; None for a fault of the statement or of a row in it."""
    state, said = error.pgcode or "", explain(error)
    if not state:
        # A connection that was lost during a call has no SQLSTATE, and one of these three classes.
        lost = isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
        lost = lost or type(error) is psycopg2.DatabaseError
        return DatabaseUnavailable(f"Postgres does not answer: {said}") if lost else None
    if state == _READ_ONLY:
        return DatabaseUnavailable(f"Postgres is read-only, as it is during a fail-over: {said}")
    if state.startswith(_CONFLICTS):
        return Conflict(f"Conflict with another session, try again: {said}")
    if state == _CANCELED:
        return StatementTimeout(f"Postgres does not answer in time: {said}")
    if state.startswith(_OUTAGES):
        return DatabaseUnavailable(f"Postgres does not answer: {said}")
    if state.startswith(_NO_SCHEMA):
        return DatabaseUnavailable(f"The schema rythmiq is missing ({said}): run `rythmiq migrate`")
    if state in _OTHER_SCHEMA:
        return DatabaseUnavailable(f"The schema rythmiq does not fit this program ({said}): run `rythmiq migrate`")
    if state == _NO_RIGHT:
        return DatabaseUnavailable(f"The database role may not do this: {said}")
    return None


@contextmanager
def translated() -> Iterator[None]:
    """Turns errors of the server into DatabaseUnavailable or Conflict; errors about a row are passed on unchanged."""
    try:
        yield
    except psycopg2.Error as error:
        ours = as_ours(error)
        if ours is None:
            raise
        raise ours from None


def repeated(connection: psycopg2.extensions.connection, work: Callable[[], _T]) -> _T:
    """Runs ``work`` in a transaction, and runs it again after a conflict.

    If the caller had begun the transaction, Conflict is raised instead. With autocommit the transaction is committed
    here, so that ``work`` takes effect as a whole or not at all.
    """
    with translated():
        idle = connection.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE
    if not idle:
        return work()
    for left in reversed(range(CONFLICT_TRIES)):
        try:
            return _committed(connection, work) if connection.autocommit else work()
        except Conflict:
            if not connection.autocommit:
                connection.rollback()
            if not left:
                raise
            time.sleep(_CONFLICT_PAUSE_S * (1 + random.random()))  # noqa: S311 - spreads two sessions apart
    raise AssertionError("the last try returns or raises")


def _committed(connection: psycopg2.extensions.connection, work: Callable[[], _T]) -> _T:
    fetch(connection, "BEGIN", {})
    try:
        result = work()
        fetch(connection, "COMMIT", {})
    except BaseException:
        if not connection.closed:
            fetch(connection, "ROLLBACK", {})
        raise
    return result


# ----------------------------------------------------------------------------------------------------------- rows

Row = dict[str, Any]
_SPECIAL: Final = re.compile(r"[^ -~]|['\\\\]")


class _Ascii:
    """A text as an SQL literal in ASCII: a caller's connection may have an encoding that cannot represent it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __conform__(self, _protocol: object) -> Self:
        return self

    def getquoted(self) -> bytes:
        text = _SPECIAL.sub(lambda found: f"\\U{ord(found[0]):08x}", self._text)
        return f"E'{text}'".encode("ascii")


def _in_ascii(value: Any) -> Any:
    if isinstance(value, str) and not value.isascii():
        return _Ascii(value)
    return [_in_ascii(item) for item in value] if isinstance(value, list) else value


_BEFORE_CHRIST: Final = re.compile(r" BC$|^-infinity$")


def _as_date(text: str | bytes | None, cursor: psycopg2.extensions.cursor) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        date: datetime = psycopg2.extensions.PYDATETIMETZ(text, cursor)
        if date.tzinfo is not None and EARLIEST.year <= date.year < LATEST.year:
            return date
    except (ValueError, OverflowError, psycopg2.Error):
        pass
    early = _BEFORE_CHRIST.search(text) is not None or text.startswith("0001")
    return EARLIEST if early else LATEST


_DATE: Final = psycopg2.extensions.new_type((1184,), "RYTHMIQ_TIMESTAMPTZ", _as_date)
_JSON_TEXT: Final = psycopg2.extensions.new_type((114, 3802), "RYTHMIQ_JSON", lambda text, _cursor: text)


def fetch(connection: psycopg2.extensions.connection, sql: str, parameters: dict[str, Any]) -> list[Row]:
    """Runs one statement and returns its rows as dicts; an empty list if it returns none.

    No value of a row raises here: JSON is returned as text, to be decoded row by row, and dates that Python cannot
    represent become :data:`EARLIEST` or :data:`LATEST`.
    """
    # The plain cursor class, whatever the connection's default: a RealDictCursor takes twice as long for a batch.
    with translated(), connection.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
        psycopg2.extensions.register_type(_DATE, cursor)
        psycopg2.extensions.register_type(_JSON_TEXT, cursor)
        cursor.execute(sql, {name: _in_ascii(value) for name, value in parameters.items()})
        if cursor.description is None:
            return []
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
