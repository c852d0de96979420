"""How many remote jobs an account bears at once: a fixed number, or one found by trying.

Found as TCP finds its window: more by one for each full round that went well (twice as many until the first sign of
too many), fewer by a share at each sign. The signs are a create that Camber refuses for now (429), and a wait in its
queue that has grown far beyond the shortest one: then more jobs there only wait longer. Drivers of one account share
what they find, by way of the queue.
"""

from __future__ import annotations

from typing import Final, Literal

AUTO: Final = "auto"
FIRST: Final = 16
LOWEST: Final = 1
HIGHEST: Final = 100_000
AFTER_REFUSAL: Final = 0.5
AFTER_LONG_WAIT: Final = 0.8
"""A long wait costs nobody anything, so it is answered more gently than a refusal."""
GROWN: Final = 2.0
"""A wait of more than this many times the shortest one, plus the slack, is a sign of too many."""
WINDOW_S: Final = 1800.0
"""For so long, and at most twice so long, the shortest wait is remembered: services change."""


class ConcurrencyLimit:
    """The limit that holds now, in remote jobs. Times are monotonic seconds; it has no clock of its own."""

    def __init__(self, setting: int | Literal["auto"], *, slack_s: float) -> None:
        """``slack_s``: how much a wait may grow without being a sign; at least how exactly waits are seen."""
        self._fixed = setting != AUTO
        self._limit = float(FIRST if setting == AUTO else setting)
        self._slack_s = slack_s
        self._searching = True
        self._changed_at = 0.0
        self._shortest_s = [float("inf"), float("inf")]
        self._window_began = 0.0
        self._grown = 0.0
        self._lowered: tuple[float, float] | None = None
        """What was found since this was shared last; of a lowering its share, and when what was refused was sent."""

    @property
    def fixed(self) -> bool:
        """Whether it is a number that somebody set."""
        return self._fixed

    def found(self) -> tuple[float, float | None, float]:
        """What was found here since this was asked last: growth, the share it was lowered by, and since when."""
        (grown, lowered), self._grown, self._lowered = (self._grown, self._lowered), 0.0, None
        share, sent_at = lowered or (None, 0.0)
        return grown, share, sent_at

    def share(self, limit: float, lowered_at: float | None) -> None:
        """Takes what all drivers found together, and when it was lowered last; None = never."""
        self._limit = limit
        if lowered_at is not None and lowered_at > self._changed_at:
            self._changed_at = lowered_at
            self._searching = False

    def __int__(self) -> int:
        return int(self._limit)

    def refused(self, sent_at: float, now: float) -> None:
        """A create, sent at that time, was refused because there are too many."""
        self._lower(AFTER_REFUSAL, sent_at, now)

    def started(self, submitted_at: float, now: float, *, in_flight: int) -> None:
        """A remote job that was created at that time runs now, with so many in flight."""
        wait_s = max(0.0, now - submitted_at)
        self._remember(wait_s, now)
        if wait_s > GROWN * min(self._shortest_s) + self._slack_s:
            self._lower(AFTER_LONG_WAIT, submitted_at, now)
        # A limit that nobody reaches proves nothing by going well.
        elif not self._fixed and submitted_at >= self._changed_at and 2 * in_flight >= self._limit:
            more = min(HIGHEST - self._limit, 1.0 if self._searching else 1.0 / self._limit)
            self._limit += more
            self._grown += more

    def _lower(self, share: float, sent_at: float, now: float) -> None:
        # What was sent before the last change speaks of the limit before it: one burst is one sign.
        if self._fixed or sent_at < self._changed_at:
            return
        self._searching = False
        self._limit = max(LOWEST, self._limit * share)
        self._grown, self._lowered = 0.0, (share, sent_at)
        self._changed_at = now

    def _remember(self, wait_s: float, now: float) -> None:
        if now - self._window_began >= WINDOW_S:
            self._window_began = now
            current, former = self._shortest_s
            # Taken for too many, a slower service has brought the limit down: from there it is searched for anew.
            self._searching = self._searching or current > GROWN * former + self._slack_s
            self._shortest_s = [float("inf"), current]
        self._shortest_s[0] = min(self._shortest_s[0], wait_s)
