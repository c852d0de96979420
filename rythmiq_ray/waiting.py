"""Waiting for jobs and groups to end: told by Postgres, with a slow look behind it."""

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
"""Between two looks that no notification asked for; so long, too, the connection stays open for who asks next."""
_SOON_S: Final = 0.1
"""So long further notifications are waited for after the first: many jobs end at once."""
_GIVE_UP_S: Final = 60.0
"""Postgres may be away for so long while somebody waits."""
_AGAIN_S: Final = 1.0
"""Between two tries to connect meanwhile."""
_FIRST_S: Final = 2.0
"""The first look may take so long whatever the caller's time is: what has ended is found with no time at all."""

Look = dict[UUID, Progress]
"""How far each is, without those that are not there."""


@dataclass(eq=False)
class _Asked:
    """Who waits for a look that differs from the last one."""

    found: Sequence[Found]
    last: Look | None
    look: Future[Look] = field(default_factory=Future)


class Waiting:
    """One connection for all who wait, in threads and event loops, for whatever jobs and groups.

    Thread-safe. A thread of its own holds the connection while anybody waits, and connects anew after an outage; who
    waits has a time of their own, which holds in an outage too.
    """

    def __init__(self, url: Secret, *, slow_s: float = SLOW_S) -> None:
        self._url = url
        self._slow_s = slow_s
        self._lock = threading.Lock()
        self._asked: list[_Asked] = []
        self._wakeup: Wakeup | None = None
        """Of the thread, where one runs."""
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; who still waits gets DatabaseUnavailable."""
        with self._lock:
            asked, self._asked = self._asked, []
            thread, self._thread = self._thread, None
            if self._wakeup is not None:
                self._wakeup.set()
                self._wakeup = None
        _fail(asked, DatabaseUnavailable("The client was closed while somebody waited"))
        if thread is not None:
            thread.join(_AGAIN_S)  # No longer: libpq cannot be interrupted while a server does not answer.

    def changes(self, found: Sequence[Found], timeout_s: float | None = None) -> Iterator[Look | None]:
        """How far all are, at once and whenever that is another; stops once all have ended.

        None, as the last, where ``timeout_s`` is over before. Raises ConfigurationError, and DatabaseUnavailable where
        Postgres is away for a minute, or for the first look.
        """
        until = _Until(timeout_s)
        look: Look | None = None
        while look is None or not _all_ended(look):
            asked = self._ask(found, look)
            try:
                look = asked.look.result(until.left(first=look is None))
            except TimeoutError:
                yield None
                return
            finally:
                asked.look.cancel()
            yield look

    async def changes_async(self, found: Sequence[Found], timeout_s: float | None = None) -> AsyncIterator[Look | None]:
        """As :meth:`changes`, without a thread for each who waits."""
        until = _Until(timeout_s)
        look: Look | None = None
        while look is None or not _all_ended(look):
            asked = asyncio.wrap_future(self._ask(found, look).look)
            try:
                look = await asyncio.wait_for(asked, until.left(first=look is None))
            except TimeoutError:
                yield None
                return
            yield look

    def _ask(self, found: Sequence[Found], last: Look | None) -> _Asked:
        asked = _Asked(found, last)
        with self._lock:
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
        """Looks for all who ask, and ends once nobody has for a while."""
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
            except Exception as error:  # noqa: BLE001 - nobody may wait for ever, whatever it is
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
        """Who waits; None where the thread is to end, after which :meth:`_ask` starts another."""
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
        """One statement for all; tells those for whom something has changed."""
        connection.notifies.clear()
        known = progress(connection, {item for each in asked for item in each.found})
        for each in asked:
            look = {item.id: known[item.id] for item in each.found if item.id in known}
            if look != each.last:
                with suppress(InvalidStateError):  # cancelled meanwhile
                    each.look.set_result(look)

    def _rest(self, connection: Connection, wakeup: Wakeup) -> None:
        """Until Postgres tells of an end, somebody else asks, or it is time for the slow look."""
        if not connection.notifies:  # else they came with the look's answer, and may be about what it did not see yet
            wakeup.wait(self._slow_s, [connection.fileno()])
            connection.poll()
        if connection.notifies:
            time.sleep(_SOON_S)
            connection.poll()


class _Until:
    """The end of a caller's time."""

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
