"""When the remote list is swept: one sweep at a time, once an interval, and sooner while many jobs end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rythmiq_ray.driver.flights import Flights
from rythmiq_ray.driver.watcher import Sweep

FEWEST_ENDS: Final = 20
"""Jobs that must have ended for a sweep before its time; for fewer, a finish is not worth a call of its own."""
SHORTEST_GAP: Final = 0.25
"""Of the interval. A sweep reads all pages down to the oldest job that waits, so the fewer sweeps, the fewer pages."""


def next_sweep_s(interval_s: float, *, elapsed_s: float, waiting: int, ended: int, took_s: float = 0.0) -> float:
    """Seconds from the start of a sweep to that of the next: the interval, or less while many jobs end.

    A sweep costs a page for each hundred jobs that wait, ended or not. So it comes before its time only once, at the
    rate of the last ``elapsed_s``, in which ``ended`` were found, half of those that wait have ended, and never for a
    few. So jobs of seconds do not wait for an interval that was made for jobs of hours. A sweep that took long, for
    the pages and calls that old jobs cost, is followed by a pause of thrice that.
    """
    worth = max(FEWEST_ENDS, waiting / 2)
    early_s = interval_s if ended == 0 else elapsed_s * worth / ended
    return min(interval_s, max(early_s, interval_s * SHORTEST_GAP, 4 * took_s))


class Sweeps:
    """Begins sweeps and hears how they went; monotonic seconds."""

    def __init__(self, interval_s: float, *, send: Callable[[Sweep], None]) -> None:
        """``send`` has a sweep made."""
        self._interval_s = interval_s
        self._send = send
        self._gap_s = interval_s
        self._next_at = 0.0
        self._last_at = 0.0
        self._count = 0
        self._ends = 0
        self._under_way = False

    @property
    def due_at(self) -> float | None:
        """When the next may begin; None while one is under way."""
        return None if self._under_way else self._next_at

    def begin(self, flights: Flights, now: float) -> None:
        """Begins one for all that waits, if it is due and something waits."""
        if self._under_way or now < self._next_at:
            return
        self._next_at = now + self._gap_s
        waiting, paths = flights.waiting_ids(), flights.uncertain_paths()
        if not waiting and not paths:
            return
        self._count += 1
        self._ends = 0
        self._under_way = True
        self._send(
            Sweep(
                number=self._count,
                waiting=frozenset(waiting),
                paths=frozenset(paths),
                since=flights.uncertain_since(),
                started_at=now,
            )
        )

    def found_end(self) -> None:
        """The sweep under way has found a job that ended."""
        self._ends += 1

    def succeeded(self, sweep: Sweep, now: float) -> None:
        """Paces the next one by what this one found and by what it took."""
        self._under_way = False
        self._gap_s = next_sweep_s(
            self._interval_s,
            elapsed_s=min(self._interval_s, sweep.started_at - self._last_at),
            waiting=len(sweep.waiting),
            ended=self._ends,
            took_s=now - sweep.started_at,
        )
        self._last_at = sweep.started_at
        self._next_at = sweep.started_at + self._gap_s

    def failed(self, now: float) -> None:
        """After a fault the next comes in its own time."""
        self._under_way = False
        self._gap_s = self._interval_s
        self._next_at = now + self._gap_s
