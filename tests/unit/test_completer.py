"""What is written, in which batches, and what is kept when Postgres goes in the middle of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast
from uuid import UUID, uuid4

import pytest

from rythmiq_ray.driver.completer import Completer
from rythmiq_ray.errors import DatabaseUnavailable
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import Ending, Queue, Written


class LeavingQueue:
    """Answers so many calls, then is away until it is back. No Postgres goes between two statements on demand."""

    def __init__(self, calls: int) -> None:
        self.calls = calls
        self.written: list[UUID] = []

    def finish(self, endings: Iterable[Ending]) -> Written:
        if self.calls == 0:
            raise DatabaseUnavailable("Postgres does not answer")
        self.calls -= 1
        ids = [ending.job_id for ending in endings]
        self.written += ids
        return Written(ours=frozenset(ids))


def test_each_ending_is_told_once_also_where_postgres_goes_between_two_batches() -> None:
    completer = Completer(batch_size=2)
    ids = [uuid4() for _ in range(5)]
    for job_id in ids:
        completer.ending(Ending(job_id=job_id, attempt=1, state=JobState.SUCCEEDED))
    queue = LeavingQueue(calls=1)
    told: list[UUID] = []

    def flush() -> None:
        for ending, ours in completer.flush(cast(Queue, queue)):
            assert ours
            told.append(ending.job_id)

    with pytest.raises(DatabaseUnavailable):
        flush()
    assert told == ids[:2], "what was written is told, or the job would stay in the driver's memory for good"
    assert completer.endings == 3
    queue.calls = 10
    flush()
    assert told == queue.written == ids
    assert len(completer) == 0
