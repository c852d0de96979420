"""A driver's session with Postgres: its id, its lease, and a connection that is reopened when it is lost."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg2
import psycopg2.extensions

from rythmiq_ray import __version__
from rythmiq_ray.errors import DatabaseUnavailable
from rythmiq_ray.queue.connection import CONFLICT_TRIES, Conflict, StatementTimeout, connect, fetch
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.secret import Secret

_SQL: Final = queries("driver")
PATIENCE_S: Final = 300.0
"""The timeout of a statement about one attempt with very many files."""
_MOST_PARTS: Final = 6
"""Parts of a lease: a statement of a heartbeat may take one of them."""


class Session:
    """Runs a driver's statements, each its own transaction. Not thread-safe.

    Every method raises DatabaseUnavailable when Postgres does not answer, and the next call reconnects. After a
    deadlock a statement is repeated a few times. ``now`` replaces the database's clock in tests.
    """

    def __init__(
        self,
        dsn: Secret,
        *,
        lease_s: float,
        connect_timeout_s: float,
        statement_timeout_s: float,
        lock_timeout_s: float = 0.0,
        silence_s: float = 30.0,
        queues: Sequence[str] | None = None,
    ) -> None:
        self._dsn = dsn
        self._queues = list(queues) if queues else None
        self._lease_s = lease_s
        self._timeouts = {
            "connect_timeout_s": connect_timeout_s,
            "statement_timeout_s": statement_timeout_s,
            "lock_timeout_s": lock_timeout_s,
            "silence_s": silence_s,
        }
        self._connection: psycopg2.extensions.connection | None = None
        self.driver_id: UUID = uuid4()
        self.now: datetime | None = None

    def register(self) -> UUID:
        """Takes a lease under a new driver id, and returns that. A lost lease's id is never used again, so its writes
        stay fenced off."""
        self.driver_id = uuid4()
        self._run(
            "register",
            hostname=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            lease_s=self._lease_s,
            queues=self._queues,
        )
        return self.driver_id

    def renew(self) -> bool:
        """Sends a heartbeat; returns False if the lease had ended already."""
        return bool(self._run("renew", lease_s=self._lease_s))

    def resign(self) -> None:
        """Ends the lease, so that other drivers need not wait until it expires."""
        self._run("resign")

    def close(self) -> None:
        if self._connection is not None:
            with suppress(psycopg2.Error):
                self._connection.close()
            self._connection = None

    def _run(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        if self._connection is None or self._connection.closed:
            self._connection = self._open()
        parameters |= {"driver_id": self.driver_id, "now": self.now}
        try:
            for _ in range(CONFLICT_TRIES - 1):
                with suppress(Conflict):
                    return fetch(self._connection, _SQL[name], parameters)
            return fetch(self._connection, _SQL[name], parameters)
        except (Conflict, StatementTimeout):
            raise
        except DatabaseUnavailable:
            # Also if the server is only read-only: the next connection may reach the new primary.
            self.close()
            raise

    @contextmanager
    def _patiently(self) -> Iterator[None]:
        """Statements in here may take PATIENCE_S."""
        if self._connection is None or self._connection.closed:
            self._connection = self._open()
        fetch(self._connection, f"SET statement_timeout = {int(PATIENCE_S * 1000)}", {})
        try:
            yield
        finally:
            if self._connection is not None and not self._connection.closed:
                usual_s = self._timeouts["statement_timeout_s"]
                fetch(self._connection, f"SET statement_timeout = {round(usual_s * 1000)}", {})

    def _open(self) -> psycopg2.extensions.connection:
        connection = connect(self._dsn, **self._timeouts)
        # Each statement is its own transaction: one round trip instead of three, and no lock is held between.
        connection.autocommit = True
        return connection


class Heartbeat(Session):
    """The lease's statements, on their own connection and for their own thread, so that no other statement delays them.

    Timeouts are short compared with the lease. The ``driver_id`` that :meth:`register` returns has to be given to the
    driver's :class:`~rythmiq_ray.queue.queue.Queue`, which uses it for all other statements.
    """

    def __init__(
        self, dsn: Secret, *, lease_s: float, connect_timeout_s: float = 10.0, queues: Sequence[str] | None = None
    ) -> None:
        """``queues``: the queues that the driver serves, to be shown; None = all."""
        part_s = lease_s / _MOST_PARTS
        super().__init__(
            dsn,
            lease_s=lease_s,
            connect_timeout_s=min(connect_timeout_s, part_s),
            statement_timeout_s=part_s,
            lock_timeout_s=part_s / 2,
            silence_s=2 * part_s,
            queues=queues,
        )
