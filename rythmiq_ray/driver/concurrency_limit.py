"""How many remote jobs an account can run at once: a fixed number, or one found by trying.

``auto`` works as TCP's congestion window does. The limit grows by one for each full round of jobs that started well
(and doubles each round until the first sign of congestion), and shrinks by a share at each such sign. The signs are a
create that Camber refuses (429), and a start that waited much longer in Camber's queue than the fastest one: then more
jobs would only wait longer. Drivers of one account share the limit by way of the queue.
"""

from __future__ import annotations

from typing import Final, Literal

AUTO: Final = "auto"
FIRST: Final = 16
LOWEST: Final = 1
HIGHEST: Final = 100_000
AFTER_REFUSAL: Final = 0.5
AFTER_LONG_WAIT: Final = 0.8
"""The factor after a long wait. A wait costs nothing, so it lowers the limit less than a refusal does."""
GROWN: Final = 2.0
"""A wait above this many times the shortest one, plus the slack, is a sign of congestion."""
WINDOW_S: Final = 1800.0
"""How long the shortest wait is remembered, at the least; at most twice as long. Services change."""


class ConcurrencyLimit:
    """The limit that holds now, in remote jobs. Times are monotonic seconds; it has no clock of its own."""

    def __init__(self, setting: int | Literal["auto"], *, slack_s: float) -> None:
        """``slack_s``: seconds by which a wait may grow without being a sign; at least the interval of polls, because
        waits are measured no more exactly."""
        self._fixed = setting != AUTO
        self._limit = float(FIRST if setting == AUTO else setting)
        self._slack_s = slack_s
        self._searching = True
        self._changed_at = 0.0
        self._shortest_s = [float("inf"), float("inf")]
        self._window_began = 0.0
        self._grown = 0.0
        self._lowered: tuple[float, float] | None = None
        """A reduction since the last :meth:`found`: the factor, and when the refused or slow create was sent."""

    @property
    def fixed(self) -> bool:
        """Whether the limit is a configured number, and not ``auto``."""
        return self._fixed

    def found(self) -> tuple[float, float | None, float]:
        """What this driver learned since the last call, to be shared with the others: by how much the limit grew; the
        factor that lowered it, None = it was not lowered; and when the create that showed that was sent."""
        (grown, lowered), self._grown, self._lowered = (self._grown, self._lowered), 0.0, None
        share, sent_at = lowered or (None, 0.0)
        return grown, share, sent_at

    def share(self, limit: float, lowered_at: float | None) -> None:
        """Takes the limit that all drivers share, and when it was last lowered; None = never."""
        self._limit = limit
        if lowered_at is not None and lowered_at > self._changed_at:
            self._changed_at = lowered_at
            self._searching = False

    def __int__(self) -> int:
        return int(self._limit)

    def refused(self, sent_at: float, now: float) -> None:
        """A create that was sent at that time was refused, because the account is full."""
        self._lower(AFTER_REFUSAL, sent_at, now)

    def started(self, submitted_at: float, now: float, *, in_flight: int) -> None:
        """A remote job that was created at ``submitted_at`` has started, while ``in_flight`` jobs were in flight."""
        wait_s = max(0.0, now - submitted_at)
        self._remember(wait_s, now)
        if wait_s > GROWN * min(self._shortest_s) + self._slack_s:
            self._lower(AFTER_LONG_WAIT, submitted_at, now)
        # A start proves nothing about a limit that is not even half used.
        elif not self._fixed and submitted_at >= self._changed_at and 2 * in_flight >= self._limit:
            more = min(HIGHEST - self._limit, 1.0 if self._searching else 1.0 / self._limit)
            self._limit += more
            self._grown += more

    def _lower(self, share: float, sent_at: float, now: float) -> None:
        # A create from before the last change tests the limit before it, so one burst of refusals counts once.
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
            # The service itself became slower, which had lowered the limit. Search again from there.
            self._searching = self._searching or current > GROWN * former + self._slack_s
            self._shortest_s = [float("inf"), current]
        self._shortest_s[0] = min(self._shortest_s[0], wait_s)
