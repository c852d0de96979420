"""What is still to be written to Postgres: taken one by one, written in batches, kept while Postgres is away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final
from uuid import UUID

import psycopg2

from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import ErrorInfo, Job, JobState
from rythmiq_ray.queue import Ending, Progress, Queue

Attempt = tuple[UUID, int]

_REFUSED: Final = "Postgres refused to store how this attempt ended"


class Outbox:
    """Progress and endings of attempts. A later one about the same attempt replaces an earlier one."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._steps: dict[Attempt, Progress] = {}
        self._endings: dict[Attempt, Ending] = {}
        self._cleaned: dict[Attempt, None] = {}

    def __len__(self) -> int:
        return len(self._steps) + len(self._endings) + len(self._cleaned)

    @property
    def endings(self) -> int:
        return len(self._endings)

    def progress(self, step: Progress) -> None:
        self._steps[step.job_id, step.attempt] = step

    def ending(self, ending: Ending) -> None:
        key = (ending.job_id, ending.attempt)
        self._steps.pop(key, None)  # The ending says all that it would have said.
        self._endings[key] = ending

    def cleaned(self, job: Job) -> None:
        self._cleaned[job.job_id, job.attempt] = None

    def flush(self, queue: Queue) -> Iterator[tuple[Ending, bool]]:
        """Writes everything, in batches; gives each ending once it is written, with whether the job was still ours.

        Raises DatabaseUnavailable with what was not written kept.
        """
        while self._endings:
            batch = list(islice(self._endings.values(), self._batch_size))
            ours = self._finish(queue, batch)
            for ending in batch:
                del self._endings[ending.job_id, ending.attempt]
                yield ending, ending.job_id in ours
        while self._steps:
            steps = list(islice(self._steps.values(), self._batch_size))
            queue.advance(steps)
            for step in steps:
                del self._steps[step.job_id, step.attempt]
        while self._cleaned:
            cleaned = list(islice(self._cleaned, self._batch_size))
            queue.cleaned(cleaned)
            for key in cleaned:
                del self._cleaned[key]

    def _finish(self, queue: Queue, batch: Iterable[Ending]) -> set[UUID]:
        batch = list(batch)
        try:
            return queue.finish(batch)
        except psycopg2.Error:
            # One row that Postgres will not take must not hold up the others, nor come back for ever.
            ours: set[UUID] = set()
            for ending in batch:
                try:
                    ours |= queue.finish([ending])
                except psycopg2.Error as error:
                    ours |= queue.finish([_refused(ending, error)])
            return ours


def _refused(ending: Ending, error: psycopg2.Error) -> Ending:
    return Ending(
        job_id=ending.job_id,
        attempt=ending.attempt,
        state=JobState.FAILED,
        error=ErrorInfo(code=ErrorCode.INTERNAL, message=f"{_REFUSED}: SQLSTATE {error.pgcode}"),
        retryable=False,
        remote_id=ending.remote_id,
        remote_status=ending.remote_status,
    )
