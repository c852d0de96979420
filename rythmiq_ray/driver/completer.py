"""Writes progress and outcomes of attempts to Postgres in batches, and keeps them while Postgres does not answer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, TypeVar
from uuid import UUID

from rythmiq_ray.clock import now_s
from rythmiq_ray.model import Job
from rythmiq_ray.queue import Ending, Progress, Queue

Attempt = tuple[UUID, int]
MOST_FILES: Final = 5000
"""The most artifacts in a batch; a thousand take about 70 ms."""
_Item = TypeVar("_Item")


class Completer:
    """Progress and endings of attempts. A later one about the same attempt replaces an earlier one.

    If another session holds a row, its entry is kept and tried again after ``retry_s``, so that it delays no others and
    is not tried all the time.
    """

    def __init__(self, batch_size: int, *, retry_s: float = 1.0, clock: Callable[[], float] = now_s) -> None:
        self._batch_size = batch_size
        self._retry_s = retry_s
        self._clock = clock
        self._steps: dict[Attempt, Progress] = {}
        self._endings: dict[Attempt, Ending] = {}
        self._cleaned: dict[Attempt, None] = {}
        self._held: dict[Attempt, float] = {}
        """Attempts whose rows another session holds, and when they are tried again."""

    def __len__(self) -> int:
        return len(self._steps) + len(self._endings) + len(self._cleaned)

    @property
    def endings(self) -> int:
        return len(self._endings)

    @property
    def due_at(self) -> float | None:
        """When there is something to write, by the clock; None while there is nothing."""
        keys = self._steps.keys() | self._endings.keys() | self._cleaned.keys()
        return min((self._held.get(key, 0.0) for key in keys), default=None)

    def progress(self, step: Progress) -> None:
        self._steps[step.job_id, step.attempt] = step

    def ending(self, ending: Ending) -> None:
        key = (ending.job_id, ending.attempt)
        self._steps.pop(key, None)  # The ending includes it.
        self._endings[key] = ending

    def cleaned(self, job: Job) -> None:
        self._cleaned[job.job_id, job.attempt] = None

    def flush(self, queue: Queue) -> Iterator[tuple[Ending | Progress, bool]]:
        """Writes everything that is due, in batches; yields (entry, whether the job was still this driver's).

        Every ending is yielded; progress only if the job was no longer this driver's. Raises DatabaseUnavailable, and
        keeps the entries that were not written.
        """
        for endings in self._batches(self._endings):
            written = queue.finish(endings.values())
            for key in self._done(endings, {key for key in endings if key[0] in written.locked}):
                yield self._endings.pop(key), key[0] in written.ours
        for steps in self._batches(self._steps):
            written = queue.advance(steps.values())
            for key in self._done(steps, {key for key in steps if key[0] in written.locked}):
                step = self._steps.pop(key)
                if key[0] not in written.ours:
                    yield step, False
        for cleaned in self._batches(self._cleaned):
            for key in self._done(cleaned, queue.cleaned(cleaned)):
                del self._cleaned[key]

    def _batches(self, waiting: Mapping[Attempt, _Item]) -> Iterator[dict[Attempt, _Item]]:
        """Entries that are due, in batches limited by number of entries and of files, so that a statement is quick."""
        now = self._clock()
        batch: dict[Attempt, _Item] = {}
        files = 0
        for key in [key for key in waiting if self._held.get(key, 0.0) <= now]:
            item = waiting[key]
            more = len(item.artifacts) if isinstance(item, Ending) else 0
            if batch and (len(batch) >= self._batch_size or files + more > MOST_FILES):
                yield batch
                batch, files = {}, 0
            batch[key] = item
            files += more
        if batch:
            yield batch

    def _done(self, batch: Mapping[Attempt, object], locked: Collection[Attempt]) -> list[Attempt]:
        """The attempts of a batch that were handled; locked ones are kept for a later try."""
        for key in batch:
            self._held.pop(key, None)
        retry_at = self._clock() + self._retry_s
        self._held.update(dict.fromkeys(locked, retry_at))
        return [key for key in batch if key not in locked]
