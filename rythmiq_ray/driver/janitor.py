"""Paths that ended attempts left behind, of this driver or any other, because it died or a removal failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from rythmiq_ray.config import DriverConfig
from rythmiq_ray.model import Job
from rythmiq_ray.queue import Queue

LEASES: Final = 2.0
"""After this many leases, what is left of ended attempts is looked for again."""
AGAIN_S: Final = 1800.0
"""After this a path that could not be removed is tried again."""
FULL_S: Final = 1.0
"""Between two looks while there is more than one look shows."""


class Janitor:
    """Looks for them now and then; times are seconds of :mod:`rythmiq_ray.clock`."""

    def __init__(self, config: DriverConfig, queue: Queue, *, clean: Callable[[Job], None]) -> None:
        """``clean`` has a path removed."""
        self._config = config
        self._queue = queue
        self._clean = clean
        self._handed_at: dict[UUID, float] = {}
        """Those that were taken up lately: what cannot be removed must not keep the others from it."""
        self.due_at = 0.0
        """When it looks round next."""

    def look_round(self, now: float) -> None:
        """Takes up what it finds, if it is due. Raises DatabaseUnavailable."""
        if now < self.due_at:
            return
        interval_s = LEASES * self._config.lease_s
        self.due_at = now + interval_s
        self._handed_at = {key: at for key, at in self._handed_at.items() if now - at < AGAIN_S}
        limit = self._config.batch_size
        found = self._queue.uncleaned(limit, older_than_s=interval_s, but=self._handed_at)
        for job in found:
            self._handed_at[job.job_id] = now
            self._clean(job)
        if len(found) >= limit:
            self.due_at = now + FULL_S
