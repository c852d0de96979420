"""Decides when the remote list is polled: one poll at a time, once an interval, and sooner while many jobs end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rythmiq_ray.driver.attempts import Attempts
from rythmiq_ray.driver.poller import Poll

FEWEST_ENDS: Final = 20
"""How many jobs must probably have ended for an early poll; for fewer, it is not worth its calls."""
SHORTEST_GAP: Final = 0.25
"""The shortest time between polls, as a part of the interval: each reads all pages down to the oldest waiting job."""


def next_poll_s(interval_s: float, *, elapsed_s: float, waiting: int, ended: int, took_s: float = 0.0) -> float:
    """Seconds from the start of a poll to the start of the next: the interval, or less while many jobs end.

    So short jobs do not wait for an interval that was set for long ones. A poll costs a page for each hundred waiting
    jobs. So an early poll comes only when half of the ``waiting`` jobs will have ended, at the rate at which ``ended``
    jobs were found in the last ``elapsed_s`` seconds, and never for a few jobs. After a poll that took ``took_s``, the
    pause is at least three times that, as far as the interval allows.
    """
    worth = max(FEWEST_ENDS, waiting / 2)
    early_s = interval_s if ended == 0 else elapsed_s * worth / ended
    return min(interval_s, max(early_s, interval_s * SHORTEST_GAP, 4 * took_s))


class PollSchedule:
    """Begins polls and takes their results. Times are seconds of :mod:`rythmiq_ray.clock`."""

    def __init__(self, interval_s: float, *, send: Callable[[Poll], None]) -> None:
        """``send`` starts a poll."""
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
        """When the next poll may begin; None while one is running."""
        return None if self._under_way else self._next_at

    def age_s(self, now: float) -> float:
        """How many seconds attempts have waited without a complete poll; 0 if none waits."""
        return 0.0 if self._wanted_since is None else now - self._wanted_since

    def begin(self, attempts: Attempts, now: float) -> None:
        """Begins a poll for all waiting attempts, if one is due and an attempt waits."""
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
        """The running poll has found a job that ended."""
        self._ends += 1

    def succeeded(self, poll: Poll, now: float) -> None:
        """Sets the time of the next poll by what this one found and how long it took."""
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
        """After a failed poll the next one comes after the whole interval."""
        self._under_way = False
        self._gap_s = self._interval_s
        self._next_at = now + self._gap_s
