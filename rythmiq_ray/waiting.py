"""Waits for jobs and groups to end: by notifications of Postgres, and by a slow poll in case one is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self
from uuid import UUID

from rythmiq_ray.errors import DatabaseUnavailable
from rythmiq_ray.queue.connection import connect, fetch, translated
from rythmiq_ray.queue.listing import Found, Progress, progress
from rythmiq_ray.secret import Secret
from rythmiq_ray.wakeup import Wakeup

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

SLOW_S: Final = 5.0
"""The interval of polls without a notification, and how long the connection stays open without a wait."""
_SOON_S: Final = 0.1
"""How long to wait for more notifications after the first, because many jobs may end at once."""
_GIVE_UP_S: Final = 60.0
"""How long an outage of Postgres may last during a wait."""
_AGAIN_S: Final = 1.0
"""The interval of attempts to connect during an outage."""
_FIRST_S: Final = 2.0
"""The least time of the first poll, so that with a timeout of 0 a job that has ended is found."""

_CLOSED: Final = "The client was closed during this wait"

Look = dict[UUID, Progress]
"""The progress of each job and group, without deleted ones."""


@dataclass(eq=False)
class _Asked:
    """A wait for progress that differs from the last."""

    found: Sequence[Found]
    last: Look | None
    look: Future[Look] = field(default_factory=Future)


class Waiting:
    """All waits of a client, in threads and event loops, over one connection. Thread-safe.

    A thread holds the connection while there are waits, and reconnects after an outage. The timeout of each wait holds
    during an outage too.
    """

    def __init__(self, url: Secret, *, slow_s: float = SLOW_S) -> None:
        self._url = url
        self._slow_s = slow_s
        self._lock = threading.Lock()
        self._asked: list[_Asked] = []
        self._wakeup: Wakeup | None = None
        """Of the running thread; None if none runs."""
        self._thread: threading.Thread | None = None
        self._closings = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; waits that have not ended raise DatabaseUnavailable."""
        with self._lock:
            self._closings += 1
            asked, self._asked = self._asked, []
            thread, self._thread = self._thread, None
            if self._wakeup is not None:
                self._wakeup.set()
                self._wakeup = None
        _fail(asked, DatabaseUnavailable(_CLOSED))
        if thread is not None:
            thread.join(_AGAIN_S)  # Bounded: libpq may be waiting for a server that does not answer.

    def changes(self, found: Sequence[Found], timeout_s: float | None = None) -> Iterator[Look | None]:
        """The progress of all, first at once and then whenever it has changed, until all have ended.

        If ``timeout_s`` is over before, the last item is None. Raises ConfigurationError, and DatabaseUnavailable if
        Postgres is unreachable at the start or for a minute.
        """
        until, closings = _Until(timeout_s), self._closings
        look: Look | None = None
        while look is None or not _all_ended(look):
            asked = self._ask(found, look, closings)
            try:
                look = asked.look.result(until.left(first=look is None))
            except TimeoutError:
                yield None
                return
            finally:
                asked.look.cancel()
            yield look

    async def changes_async(self, found: Sequence[Found], timeout_s: float | None = None) -> AsyncIterator[Look | None]:
        """As :meth:`changes`, without a thread for each wait."""
        until, closings = _Until(timeout_s), self._closings
        look: Look | None = None
        while look is None or not _all_ended(look):
            asked = asyncio.wrap_future(self._ask(found, look, closings).look)
            try:
                look = await asyncio.wait_for(asked, until.left(first=look is None))
            except TimeoutError:
                yield None
                return
            yield look

    def _ask(self, found: Sequence[Found], last: Look | None, closings: int) -> _Asked:
        asked = _Asked(found, last)
        with self._lock:
            if self._closings != closings:  # between two polls of this wait
                raise DatabaseUnavailable(_CLOSED)
            self._asked.append(asked)
            if self._wakeup is None:
                self._wakeup = Wakeup()
                self._thread = threading.Thread(
                    target=self._run, args=[self._wakeup], name="rythmiq-waiting", daemon=True
                )
                self._thread.start()
            self._wakeup.set()
        return asked

    def _run(self, wakeup: Wakeup) -> None:
        """Polls for all waits; ends when there was none for a while."""
        connection: Connection | None = None
        good_at: float | None = None
        idle = False
        while (asked := self._outstanding(wakeup, ending=idle)) is not None:
            idle = not asked
            if idle:
                wakeup.wait(self._slow_s)
                continue
            try:
                with translated():
                    connection = connection or self._connect()
                    self._look(connection, asked)
                    good_at = time.monotonic()
                    self._rest(connection, wakeup)
            except Exception as error:  # noqa: BLE001 - any other error would leave the waits without an end
                bridged = good_at is not None and time.monotonic() < good_at + _GIVE_UP_S
                if isinstance(error, DatabaseUnavailable) and bridged:
                    wakeup.wait(_AGAIN_S)
                else:
                    good_at = None
                    _fail(asked, error)
                if connection is not None:
                    connection.close()
                    connection = None
        if connection is not None:
            connection.close()
        wakeup.close()

    def _outstanding(self, wakeup: Wakeup, *, ending: bool) -> list[_Asked] | None:
        """The waits that have not ended; None if the thread is to end, after which :meth:`_ask` starts another."""
        with self._lock:
            if self._wakeup is not wakeup:
                return None
            self._asked = [each for each in self._asked if not each.look.done()]
            if ending and not self._asked:
                self._wakeup = self._thread = None
                return None
            return list(self._asked)

    def _connect(self) -> Connection:
        connection = connect(self._url)
        connection.autocommit = True
        fetch(connection, "LISTEN rythmiq_events", {})
        return connection

    def _look(self, connection: Connection, asked: Sequence[_Asked]) -> None:
        """Polls by one statement, and answers the waits whose progress has changed."""
        connection.notifies.clear()
        known = progress(connection, {item for each in asked for item in each.found})
        for each in asked:
            look = {item.id: known[item.id] for item in each.found if item.id in known}
            if look != each.last:
                with suppress(InvalidStateError):  # it was cancelled meanwhile
                    each.look.set_result(look)

    def _rest(self, connection: Connection, wakeup: Wakeup) -> None:
        """Returns when Postgres notifies of an end, when another wait begins, or after the interval of polls."""
        if not connection.notifies:  # else they came with the answer to the poll, which may not have seen these ends
            wakeup.wait(self._slow_s, [connection.fileno()])
            connection.poll()
        if connection.notifies:
            time.sleep(_SOON_S)
            connection.poll()


class _Until:
    """When the timeout of a wait is over."""

    def __init__(self, timeout_s: float | None) -> None:
        self._at = None if timeout_s is None else time.monotonic() + timeout_s

    def left(self, *, first: bool) -> float | None:
        return None if self._at is None else max(self._at - time.monotonic(), _FIRST_S if first else 0.0)


def _all_ended(look: Mapping[UUID, Progress]) -> bool:
    return all(each.done for each in look.values())


def _fail(asked: Sequence[_Asked], error: Exception) -> None:
    for each in asked:
        with suppress(InvalidStateError):
            each.look.set_exception(error)
