"""The lease under which a driver does everything: while it holds, nobody else can have the driver's jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rythmiq_ray.queue import Queue

HEARTBEATS_PER_LEASE: Final = 3


class Lease:
    """A lease of ``lease_s`` seconds, from when it was asked for: so it ends here no later than in Postgres.

    ``clock`` is monotonic seconds.
    """

    def __init__(self, queue: Queue, lease_s: float, *, clock: Callable[[], float]) -> None:
        self._queue = queue
        self._lease_s = lease_s
        self._clock = clock
        self._until: float | None = None
        self.renew_at = 0.0
        """When the next heartbeat is due; monotonic seconds."""

    def take(self) -> None:
        """Takes it as a new driver does; raises DatabaseUnavailable."""
        asked_at = self._clock()
        self._queue.register()
        self._begin(asked_at)

    def renew(self) -> bool:
        """False if it was lost, so that others may have the jobs by now. Raises DatabaseUnavailable."""
        asked_at = self._clock()
        held = self._queue.renew()
        if held:
            self._begin(asked_at)
        return held

    def held(self, now: float) -> bool:
        """Whether it holds; without it nothing is begun."""
        return self.left_s(now) > 0

    def left_s(self, now: float) -> float:
        """Seconds until it ends; negative after that."""
        return 0.0 if self._until is None else self._until - now

    def age_s(self, now: float) -> float | None:
        """Since it was last taken or renewed; None before that."""
        return None if self._until is None else now - (self._until - self._lease_s)

    def _begin(self, asked_at: float) -> None:
        self._until = asked_at + self._lease_s
        self.renew_at = asked_at + self._lease_s / HEARTBEATS_PER_LEASE
