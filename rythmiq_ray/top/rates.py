"""Counts how many jobs of each queue ended in each of the last minutes; each read adds only what is new."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rythmiq_ray.model import JobState
from rythmiq_ray.queue import console

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

MINUTES: Final = 30
_STEP_S: Final = 10
_STEPS: Final = MINUTES * 60 // _STEP_S
_MOST: Final = 50_000
"""The most ended jobs of each state that one read counts; if there are more, the first read lacks the oldest."""


@dataclass(frozen=True)
class Rate:
    """Ended jobs by minute, the oldest first; the last minute is not over yet."""

    minutes: Sequence[int] = (0,) * MINUTES

    @property
    def last(self) -> int:
        """How many ended in the last whole minute."""
        return self.minutes[-2]


@dataclass(frozen=True)
class Throughput:
    """The jobs that ended in the last :data:`MINUTES` minutes."""

    queues: Mapping[str, Rate]
    whole: Rate
    ended: Mapping[JobState, int]
    """How many ended, and how."""

    def of(self, queue: str) -> Rate:
        return self.queues.get(queue, Rate())


class Rates:
    """Not thread-safe. Steps of time are numbered by the database's clock."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[int, str, JobState], int] = {}
        self._read_at: float | None = None

    def read(self, connection: Connection) -> Throughput:
        """Reads the steps since the last read and the one before it: ends are visible only once they are committed."""
        now = time.monotonic()
        steps = _STEPS
        if self._read_at is not None:
            steps = min(_STEPS, 1 + math.ceil((now - self._read_at) / _STEP_S))
        this, found = console.ends_by_queue(connection, steps=steps, step_s=_STEP_S, most=_MOST)
        for each in found:
            place = (each.step, each.queue, each.state)
            # If a read reached its limit, the count of its oldest step is too small.
            self._jobs[place] = max(each.jobs, self._jobs.get(place, 0))
        first = this - this % (60 // _STEP_S) - (MINUTES - 1) * (60 // _STEP_S)
        self._jobs = {place: jobs for place, jobs in self._jobs.items() if place[0] >= first}
        self._read_at = now
        return self._summed(first)

    def _summed(self, first: int) -> Throughput:
        queues: dict[str, list[int]] = defaultdict(lambda: [0] * MINUTES)
        whole = [0] * MINUTES
        ended: dict[JobState, int] = defaultdict(int)
        for (step, queue, state), jobs in self._jobs.items():
            # A job with an end in the future, because the clock was set back, counts in the last minute.
            minute = min(MINUTES - 1, (step - first) // (60 // _STEP_S))
            queues[queue][minute] += jobs
            whole[minute] += jobs
            ended[state] += jobs
        return Throughput({queue: Rate(minutes) for queue, minutes in queues.items()}, Rate(whole), dict(ended))
