"""When the remote list is polled: one poll at a time, once an interval, and sooner while many jobs end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rythmiq_ray.driver.attempts import Attempts
from rythmiq_ray.driver.poller import Poll

FEWEST_ENDS: Final = 20
"""Jobs that must have ended for a poll before its time; for fewer, a finish is not worth a call of its own."""
SHORTEST_GAP: Final = 0.25
"""Of the interval. A poll reads all pages down to the oldest job that waits, so the fewer polls, the fewer pages."""


def next_poll_s(interval_s: float, *, elapsed_s: float, waiting: int, ended: int, took_s: float = 0.0) -> float:
    """Seconds from the start of a poll to that of the next: the interval, or less while many jobs end.

    A poll costs a page for each hundred jobs that wait, ended or not. So it comes before its time only once, at the
    rate of the last ``elapsed_s``, in which ``ended`` were found, half of those that wait have ended, and never for a
    few. So jobs of seconds do not wait for an interval that was made for jobs of hours. A poll that took long, for
    the pages and calls that old jobs cost, is followed by a pause of thrice that, as far as the interval allows.
    """
    worth = max(FEWEST_ENDS, waiting / 2)
    early_s = interval_s if ended == 0 else elapsed_s * worth / ended
    return min(interval_s, max(early_s, interval_s * SHORTEST_GAP, 4 * took_s))


class PollSchedule:
    """Begins polls and hears how they went; times are seconds of :mod:`rythmiq_ray.clock`."""

    def __init__(self, interval_s: float, *, send: Callable[[Poll], None]) -> None:
        """``send`` has a poll made."""
        self._interval_s = interval_s
        self._send = send
        self._gap_s = interval_s
        self._next_at = 0.0
        self._last_at = 0.0
        self._count = 0
        self._ends = 0
        self._under_way = False
        self._wanted_since: float | None = None

    @property
    def due_at(self) -> float | None:
        """When the next may begin; None while one is under way."""
        return None if self._under_way else self._next_at

    def age_s(self, now: float) -> float:
        """For how long something has waited without a whole poll; 0 where nothing waits."""
        return 0.0 if self._wanted_since is None else now - self._wanted_since

    def begin(self, attempts: Attempts, now: float) -> None:
        """Begins one for all that waits, if it is due and something waits."""
        if self._under_way or now < self._next_at:
            return
        self._next_at = now + self._gap_s
        waiting, searched = attempts.waiting_ids(), attempts.searched_paths()
        if not waiting and not searched:
            self._wanted_since = None
            return
        self._wanted_since = now if self._wanted_since is None else self._wanted_since
        self._count += 1
        self._ends = 0
        self._under_way = True
        self._send(
            Poll(
                number=self._count,
                waiting=waiting,
                searched=searched,
                search_age_s=attempts.search_age_s(now),
                paths=attempts.paths(),
                started_at=now,
            )
        )

    def found_end(self) -> None:
        """The poll under way has found a job that ended."""
        self._ends += 1

    def succeeded(self, poll: Poll, now: float) -> None:
        """Paces the next one by what this one found and by what it took."""
        self._under_way = False
        self._wanted_since = poll.started_at
        self._gap_s = next_poll_s(
            self._interval_s,
            elapsed_s=min(self._interval_s, poll.started_at - self._last_at),
            waiting=len(poll.waiting),
            ended=self._ends,
            took_s=now - poll.started_at,
        )
        self._last_at = poll.started_at
        self._next_at = poll.started_at + self._gap_s

    def failed(self, now: float) -> None:
        """After a fault the next comes in its own time."""
        self._under_way = False
        self._gap_s = self._interval_s
        self._next_at = now + self._gap_s
