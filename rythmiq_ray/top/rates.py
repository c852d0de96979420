"""How many jobs of each queue ended in each of the last minutes, kept from look to look: each reads what is new."""

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
"""Ends of each way that one look reads; beyond that the oldest of the first look are not known."""


@dataclass(frozen=True)
class Rate:
    """Ends by minute, the oldest first; the last one goes on."""

    minutes: Sequence[int] = (0,) * MINUTES

    @property
    def last(self) -> int:
        """In the last whole minute."""
        return self.minutes[-2]


@dataclass(frozen=True)
class Throughput:
    """The last :data:`MINUTES` minutes."""

    queues: Mapping[str, Rate]
    whole: Rate
    ended: Mapping[JobState, int]
    """How many ended, and how."""

    def of(self, queue: str) -> Rate:
        return self.queues.get(queue, Rate())


class Rates:
    """For one thread at a time. Steps are numbered by the database's clock."""

    def __init__(self) -> None:
        self._jobs: dict[tuple[int, str, JobState], int] = {}
        self._read_at: float | None = None

    def read(self, connection: Connection) -> Throughput:
        """Looks at the steps since the last look and at the one before, as an end is seen once it is committed."""
        now = time.monotonic()
        steps = _STEPS
        if self._read_at is not None:
            steps = min(_STEPS, 1 + math.ceil((now - self._read_at) / _STEP_S))
        this, found = console.ends_by_queue(connection, steps=steps, step_s=_STEP_S, most=_MOST)
        for each in found:
            place = (each.step, each.queue, each.state)
            # The oldest step of a look that reached its bound is not whole.
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
            # A job that ended while the clock was set back stands in the last minute.
            minute = min(MINUTES - 1, (step - first) // (60 // _STEP_S))
            queues[queue][minute] += jobs
            whole[minute] += jobs
            ended[state] += jobs
        return Throughput({queue: Rate(minutes) for queue, minutes in queues.items()}, Rate(whole), dict(ended))
