"""Costs by day. A day that is over is summed once, in the background, so pages never wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from rythmiq_ray.console.database import FAULTS, Database, said_of
from rythmiq_ray.queue import console
from rythmiq_ray.queue.console import Spent

DAYS: Final = 30
_MOST_NAMES: Final = 50
_FRESH_S: Final = 10.0
"""How long the sums of today are used, in seconds."""
_OVER_S: Final = 3600.0
"""How long the sums of an earlier day are used; its jobs may still be retried or pruned."""
_SETTLED: Final = timedelta(minutes=10)
"""How long after the end of a day all its jobs' ends are certainly written, whatever the clocks."""
_AGAIN_S: Final = 10.0
"""After a fault."""


@dataclass(frozen=True)
class Day:
    """What ended on a day, in UTC."""

    day: date
    spent: Sequence[Spent]

    @property
    def credits(self) -> float:
        return sum(each.credits for each in self.spent)

    @property
    def jobs(self) -> int:
        return sum(each.jobs for each in self.spent)


def tally(spent: Iterable[Spent], name_of: Callable[[Spent], str | None]) -> list[tuple[str | None, int, int, float]]:
    """Name, jobs, failed jobs and credits, the most expensive first."""
    sums: dict[str | None, tuple[int, int, float]] = {}
    for each in spent:
        jobs, failed, credits = sums.get(name_of(each), (0, 0, 0.0))
        sums[name_of(each)] = (jobs + each.jobs, failed + each.failed, credits + each.credits)
    rows = [(name, *row) for name, row in sums.items()]
    return sorted(rows, key=lambda row: (-row[3], -row[1], row[0] or ""))[:_MOST_NAMES]


class DailyCosts:
    """Sums of the last days, made when somebody asks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._days: dict[date, tuple[float, Day]] = {}
        self._thread: threading.Thread | None = None
        self._fault: str | None = None

    def days(self, count: int = DAYS, *, now: datetime | None = None, wait_s: float = 0.1) -> list[Day | None]:
        """The last days, the newest first; None for a day that is not summed yet, whose sum is then begun."""
        now = (now or datetime.now(UTC)).astimezone(UTC)
        today = now.date()
        wanted = [today - timedelta(days=back) for back in range(count)]
        with self._lock:
            if self._thread is None and any(self._stale(day) for day in wanted):
                self._thread = threading.Thread(
                    target=self._sum, args=(wanted, now), name="console-ledger", daemon=True
                )
                self._thread.start()
            thread = self._thread
        if thread is not None:
            thread.join(wait_s)
        with self._lock:
            return [self._days[day][1] if day in self._days else None for day in wanted]

    @property
    def fault(self) -> str | None:
        """Why days could not be summed."""
        return self._fault

    def _stale(self, day: date) -> bool:
        return day not in self._days or time.monotonic() > self._days[day][0]

    def _sum(self, wanted: Sequence[date], now: datetime) -> None:
        try:
            with self._database.patient() as connection:
                for day in wanted:
                    with self._lock:
                        stale = self._stale(day)
                    if not stale:
                        continue
                    start = datetime(day.year, day.month, day.day, tzinfo=UTC)
                    end = start + timedelta(days=1)
                    spent = console.spent(connection, start, end)
                    good_s = _OVER_S if now > end + _SETTLED else _FRESH_S
                    with self._lock:
                        self._days[day] = (time.monotonic() + good_s, Day(day, spent))
            self._fault = None
        except FAULTS as error:
            self._fault = said_of(error)
            time.sleep(_AGAIN_S)
        finally:
            with self._lock:
                self._thread = None
