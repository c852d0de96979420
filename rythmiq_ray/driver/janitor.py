"""The end of an attempt's path: it goes once the artifacts are safe and the row says so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from uuid import UUID

from rythmiq_ray.config import DriverConfig
from rythmiq_ray.model import Cleaned, Job, Order, Step, StepResult
from rythmiq_ray.queue import Queue

LEASES: Final = 2.0
"""After this many leases, what is left of ended attempts is looked for again."""
TRIES: Final = 3


class Janitor:
    """Has paths removed, those of this driver's attempts at once and any others' later; monotonic seconds."""

    def __init__(
        self, config: DriverConfig, queue: Queue, *, send: Callable[[Order], None], cleaned: Callable[[Job], None]
    ) -> None:
        """``send`` has an order carried out; ``cleaned`` is told of each path that is gone."""
        self._config = config
        self._queue = queue
        self._send = send
        self._cleaned = cleaned
        self._tries: dict[tuple[UUID, int], int] = {}
        self.due_at = 0.0
        """When it looks round next."""

    @property
    def busy(self) -> bool:
        return bool(self._tries)

    def clean(self, job: Job) -> None:
        """Has the path of an attempt removed whose end is written."""
        if job.remote_path is None:
            return
        self._tries.setdefault((job.job_id, job.attempt), 0)
        self._send(Order(step=Step.CLEAN, job=job))

    def settle(self, order: Order, result: StepResult) -> None:
        """Takes what became of an order; the last failure leaves the path to a later round, anybody's."""
        key = (order.job.job_id, order.job.attempt)
        if isinstance(result, Cleaned):
            self._tries.pop(key, None)
            self._cleaned(order.job)
            return
        tries = self._tries.get(key, 0) + 1
        if tries < TRIES:
            self._tries[key] = tries
            self._send(order)
        else:
            self._tries.pop(key, None)

    def look_round(self, now: float) -> None:
        """Takes up paths that ended attempts left, also those of other drivers. Raises DatabaseUnavailable."""
        if now < self.due_at:
            return
        interval_s = LEASES * self._config.lease_s
        self.due_at = now + interval_s
        for job in self._queue.uncleaned(self._config.batch_size, older_than_s=interval_s):
            if (job.job_id, job.attempt) not in self._tries:
                self.clean(job)
