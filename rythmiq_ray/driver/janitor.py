"""Removes paths of ended attempts that are still in the stash, because a driver died or a removal failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from rythmiq_ray.config import DriverConfig
from rythmiq_ray.model import Job
from rythmiq_ray.queue import Queue

LEASES: Final = 2.0
"""The time between two rounds, in leases."""
AGAIN_S: Final = 1800.0
"""Pause before a path that could not be removed is tried again."""
FULL_S: Final = 1.0
"""The time between two rounds while one round does not show all paths."""


class Janitor:
    """Looks for such paths at intervals. Times are seconds of :mod:`rythmiq_ray.clock`."""

    def __init__(self, config: DriverConfig, queue: Queue, *, clean: Callable[[Job], None]) -> None:
        """``clean`` starts the removal of a job's path."""
        self._config = config
        self._queue = queue
        self._clean = clean
        self._handed_at: dict[UUID, float] = {}
        """When jobs were last given to ``clean``: paths that cannot be removed must not keep others from their turn."""
        self.due_at = 0.0
        """When the next round begins."""

    def tick(self, now: float) -> None:
        """Does a round if one is due. Raises DatabaseUnavailable."""
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
