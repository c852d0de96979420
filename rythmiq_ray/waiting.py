"""Waits for jobs and groups to end: by notifications of Postgres, and by a slow poll in case one is lost."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self
from uuid import UUID

from rythmiq_ray.errors import DatabaseUnavailable
from rythmiq_ray.queue.connection import connect, fetch
from rythmiq_ray.queue.listing import Found, Progress, progress
from rythmiq_ray.secret import Secret

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

SLOW_S: Final = 5.0
"""The interval of polls without a notification."""
_SOON_S: Final = 0.1
"""How long to wait for more notifications after the first, because many jobs may end at once."""
_GIVE_UP_S: Final = 60.0
"""How long an outage of Postgres may last during a wait."""


class Waiting:
    """A wait for jobs and groups, with its own connection. Not thread-safe."""

    def __init__(self, url: Secret, found: Sequence[Found], *, slow_s: float = SLOW_S) -> None:
        """Raises DatabaseUnavailable and ConfigurationError."""
        self._url = url
        self._found = list(found)
        self._slow_s = slow_s
        self._connection: Connection | None = self._connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def look(self) -> dict[UUID, Progress]:
        """The present progress of each, without deleted ones. Tries again during short outages of Postgres."""
        until = time.monotonic() + _GIVE_UP_S
        while True:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                self._connection.notifies.clear()
                return progress(self._connection, self._found)
            except DatabaseUnavailable:
                self.close()
                if time.monotonic() > until:
                    raise
                time.sleep(1.0)

    def changes(self, timeout_s: float | None = None) -> Iterator[dict[UUID, Progress] | None]:
        """The progress of all, first at once and then whenever one has ended, until all have ended.

        If ``timeout_s`` is over before, the last item is None.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        last: dict[UUID, Progress] | None = None
        while True:
            now = self.look()
            if now != last:
                last = now
                yield now
            if all(each.done for each in now.values()):
                return
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                yield None
                return
            self._told(self._slow_s if left is None else min(left, self._slow_s))

    async def told(self, within_s: float | None) -> None:
        """Returns when Postgres notifies of an end, at the latest after ``within_s`` or the interval of polls."""
        patience = self._slow_s if within_s is None else min(within_s, self._slow_s)
        connection = self._connection
        if connection is None or connection.closed:
            await asyncio.sleep(min(patience, 1.0))
            return
        if connection.notifies:
            return
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        descriptor = connection.fileno()
        loop.add_reader(descriptor, readable.set)
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(readable.wait(), patience)
                await asyncio.sleep(min(_SOON_S, patience))
        finally:
            loop.remove_reader(descriptor)

    def _connect(self) -> Connection:
        connection = connect(self._url)
        connection.autocommit = True
        fetch(connection, "LISTEN rythmiq_events", {})
        return connection

    def _told(self, within_s: float) -> None:
        """Returns when Postgres notifies of an end, or after ``within_s`` seconds."""
        if self._connection is None:
            time.sleep(min(within_s, 1.0))
            return
        if self._connection.notifies:
            return  # It came with the answer to the last poll, which may not have seen that end yet.
        try:
            if not select.select([self._connection], [], [], within_s)[0]:
                return
            time.sleep(min(_SOON_S, within_s))
            self._connection.poll()
        except Exception as error:  # noqa: BLE001 - psycopg2's, or that of a closed socket: the next look connects anew
            del error
            self.close()
