"""Paths that ended attempts left behind, of this driver or any other, because it died or a removal failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rythmiq_ray.config import DriverConfig
from rythmiq_ray.model import Job
from rythmiq_ray.queue import Queue

LEASES: Final = 2.0
"""After this many leases, what is left of ended attempts is looked for again."""


class Janitor:
    """Looks for them now and then; times are seconds of :mod:`rythmiq_ray.clock`."""

    def __init__(self, config: DriverConfig, queue: Queue, *, clean: Callable[[Job], None]) -> None:
        """``clean`` has a path removed."""
        self._config = config
        self._queue = queue
        self._clean = clean
        self.due_at = 0.0
        """When it looks round next."""

    def look_round(self, now: float) -> None:
        """Takes up what it finds, if it is due. Raises DatabaseUnavailable."""
        if now < self.due_at:
            return
        interval_s = LEASES * self._config.lease_s
        self.due_at = now + interval_s
        for job in self._queue.uncleaned(self._config.batch_size, older_than_s=interval_s):
            self._clean(job)
