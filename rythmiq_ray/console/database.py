"""The console's connections: a few read-only ones that its threads share, and a separate one for each action."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, LifoQueue
from typing import Final

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE
from psycopg2.extensions import connection as Connection

from rythmiq_ray.errors import DatabaseUnavailable, RythmiqError
from rythmiq_ray.queue.connection import fetch, translated
from rythmiq_ray.queue.schema import connect_checked
from rythmiq_ray.secret import Secret

_MOST: Final = 8
"""The most shared connections. Pages are quick, and more would only take connections from drivers."""
_PATIENCE_S: Final = 5.0
_STATEMENT_S: Final = 10.0
_LONG_S: Final = 120.0


FAULTS: Final = (RythmiqError, psycopg2.Error)
"""What a read in the background can raise; psycopg2's own errors come from a server that goes away during a call."""


def said_of(error: Exception) -> str:
    """A sentence for users. Messages of other libraries' errors are not shown, because they may quote a row."""
    return error.message if isinstance(error, RythmiqError) else f"Postgres does not answer: {type(error).__name__}"


class Database:
    """A pool of connections. Thread-safe. Raises DatabaseUnavailable and ConfigurationError."""

    def __init__(self, url: Secret) -> None:
        self.url = url
        self._idle: LifoQueue[Connection] = LifoQueue()
        self._places = threading.BoundedSemaphore(_MOST)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A read-only connection; each statement is its own transaction."""
        if not self._places.acquire(timeout=_PATIENCE_S):
            raise DatabaseUnavailable("Too many pages are being read at once, try again")
        try:
            connection = self._take()
            try:
                yield connection
            except DatabaseUnavailable:
                # The server may be gone, so the idle connections to it are closed too.
                connection.close()
                self.close()
                raise
            except BaseException:
                connection.close()
                raise
            self._idle.put(connection)
        finally:
            self._places.release()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection for one action, committed at the end."""
        connection = connect_checked(self.url, statement_timeout_s=_STATEMENT_S)
        try:
            yield connection
            with translated():
                connection.commit()
        finally:
            connection.close()

    @contextmanager
    def patient(self) -> Iterator[Connection]:
        """A separate read-only connection for long reads, which takes none of the shared ones."""
        connection = self._open(_LONG_S)
        # Parallel workers would slow down the queries of pages.
        fetch(connection, "SET max_parallel_workers_per_gather = 0", {})
        try:
            yield connection
        finally:
            connection.close()

    def close(self) -> None:
        """Closes idle connections."""
        with suppress(Empty):
            while True:
                self._idle.get_nowait().close()

    def _take(self) -> Connection:
        with suppress(Empty):
            while True:
                connection = self._idle.get_nowait()
                if _usable(connection):
                    return connection
                connection.close()
        return self._open(_STATEMENT_S)

    def _open(self, statement_timeout_s: float) -> Connection:
        connection = connect_checked(self.url, statement_timeout_s=statement_timeout_s)
        with translated():
            connection.set_session(readonly=True, autocommit=True)
        return connection


def _usable(connection: Connection) -> bool:
    """Whether the connection still works: a restart of the server closes idle ones, which shows only on use."""
    if connection.closed:
        return False
    try:
        fetch(connection, "SELECT 1", {})
        return bool(connection.info.transaction_status == TRANSACTION_STATUS_IDLE)
    except (DatabaseUnavailable, psycopg2.Error):
        return False
