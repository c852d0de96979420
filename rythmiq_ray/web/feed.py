"""Tells open pages about changes: Postgres notifies of jobs' ends, and a slow poll finds all else."""

from __future__ import annotations

import asyncio
import select
import threading
import time
from collections.abc import AsyncIterator
from typing import Final

from psycopg2.extensions import connection as Connection

from rythmiq_ray.queue.connection import connect, fetch
from rythmiq_ray.secret import Secret

SLOW_S: Final = 5.0
"""The interval of polls, because changes of a job's phase are not notified."""
_SOON_S: Final = 0.4
"""How long to wait for more notifications after the first, because many jobs may end at once."""
_LEAST_S: Final = 1.0
"""The shortest time between two events for pages."""
_AWAY_S: Final = 2.0
MOST_LISTENERS: Final = 200


class Feed:
    """One thread and one connection for all open pages; both exist only while a page is open."""

    def __init__(self, url: Secret, *, slow_s: float = SLOW_S) -> None:
        self._url = url
        self._slow_s = slow_s
        self._lock = threading.Lock()
        self._listeners: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def close(self) -> None:
        """Ends the thread and every stream."""
        self._closed.set()
        self._tell()

    async def changes(self) -> AsyncIterator[None]:
        """Yields whenever pages should reload their data; ends with the console."""
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        with self._lock:
            if len(self._listeners) >= MOST_LISTENERS:
                return
            self._listeners[told] = loop
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="console-feed", daemon=True)
                self._thread.start()
        try:
            while not self._closed.is_set():
                await told.wait()
                told.clear()
                yield None
        finally:
            with self._lock:
                self._listeners.pop(told, None)

    def _tell(self) -> None:
        with self._lock:
            for told, loop in self._listeners.items():
                if not loop.is_closed():
                    loop.call_soon_threadsafe(told.set)

    def _run(self) -> None:
        connection: Connection | None = None
        while not self._closed.is_set():
            with self._lock:
                if not self._listeners:
                    self._thread = None
                    break
            began = time.monotonic()
            try:
                if connection is None:
                    connection = self._listen()
                self._wait(connection)
            except Exception:  # noqa: BLE001 - psycopg2's, ours, or of a closed socket: pages say what is wrong
                if connection is not None:
                    connection.close()
                connection = None
                self._closed.wait(_AWAY_S)
            self._tell()
            self._closed.wait(max(0.0, _LEAST_S - (time.monotonic() - began)))
        if connection is not None:
            connection.close()

    def _listen(self) -> Connection:
        connection = connect(self._url)
        connection.autocommit = True
        fetch(connection, "LISTEN rythmiq_events", {})
        return connection

    def _wait(self, connection: Connection) -> None:
        until = time.monotonic() + self._slow_s
        while time.monotonic() < until and not self._closed.is_set():
            if connection.notifies or select.select([connection], [], [], min(0.5, self._slow_s))[0]:
                self._closed.wait(_SOON_S)
                connection.poll()
                connection.notifies.clear()
                return
