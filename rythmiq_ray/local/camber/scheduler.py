"""Moves a job from create to its end, with or without a process."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from random import Random

from rythmiq_ray.local.camber.deadlines import Deadlines
from rythmiq_ray.local.camber.faults import Mischief
from rythmiq_ray.local.camber.instant import leave_result
from rythmiq_ray.local.camber.ledger import Job, Ledger, Status
from rythmiq_ray.local.camber.processes import Processes
from rythmiq_ray.local.camber.settings import Range, Settings
from rythmiq_ray.local.camber.stash import Stash


class Scheduler:
    """Moves jobs from PENDING to RUNNING and to a terminal status."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        stash: Stash,
        processes: Processes,
        deadlines: Deadlines,
        mischief: Mischief,
        settings: Settings,
    ) -> None:
        self._ledger = ledger
        self._stash = stash
        self._processes = processes
        self._deadlines = deadlines
        self._mischief = mischief
        self._settings = settings
        self._draws = Random(settings.seed)  # noqa: S311 - to be repeatable is its purpose

    def recover(self) -> None:
        """After a restart: jobs that were RUNNING become FAILED, those that were PENDING go on."""
        self._processes.recover()
        for job in self._ledger.all():
            if job.status is Status.PENDING:
                self.accept(job)

    def accept(self, job: Job) -> None:
        """Schedules a PENDING job."""
        if self._mischief.strikes("self_cancel"):
            self._deadlines.after(self._mischief.faults.self_cancel_after_s, partial(self._give_up, job))
        else:
            self._deadlines.after(self._draw(self._settings.queue_wait_s), partial(self._start, job))

    def cancel(self, job: Job) -> None:
        """Cancels a job for its owner; does nothing if it has ended."""
        if not job.status.terminal:
            self._ledger.cancel(job, by="owner")
            self._processes.kill(job)

    def _give_up(self, job: Job) -> None:
        if job.status is Status.PENDING:
            self._ledger.cancel(job, by="service")

    def _start(self, job: Job) -> None:
        if job.status is not Status.PENDING:
            return
        if self._settings.instant_s is None:
            self._processes.start(job)
        else:
            self._ledger.start(job)
            self._deadlines.after(self._draw(self._settings.instant_s), partial(self._end_instant, job))

    def _end_instant(self, job: Job) -> None:
        if job.status is not Status.RUNNING:
            return
        self._ledger.end(job, Status.COMPLETED, 0)
        if self._settings.sync_delay_s > 0.0:
            self._deadlines.after(self._settings.sync_delay_s, partial(self._leave_result, job))
        else:
            self._leave_result(job)

    def _leave_result(self, job: Job) -> None:
        with suppress(OSError):  # a file stands where a folder is needed
            leave_result(self._stash, job)

    def _draw(self, limits: Range) -> float:
        return self._draws.uniform(*limits)
