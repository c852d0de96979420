"""What is still to be written to Postgres: taken one by one, written in batches, kept while Postgres is away."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, TypeVar
from uuid import UUID

from rythmiq_ray.clock import now_s
from rythmiq_ray.model import Job
from rythmiq_ray.queue import Ending, Progress, Queue

Attempt = tuple[UUID, int]
MOST_FILES: Final = 5000
"""Of a batch; a thousand take some 70 ms."""
_Item = TypeVar("_Item")


class Completer:
    """Progress and endings of attempts. A later one about the same attempt replaces an earlier one.

    What another session holds in Postgres is kept, and tried again after ``retry_s``, so that it neither holds up the
    others nor is asked for all the time.
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
        self._steps.pop(key, None)  # The ending says all that it would have said.
        self._endings[key] = ending

    def cleaned(self, job: Job) -> None:
        self._cleaned[job.job_id, job.attempt] = None

    def flush(self, queue: Queue) -> Iterator[tuple[Ending | Progress, bool]]:
        """Writes everything, in batches; gives each that was written, with whether the job was still ours.

        A step that was written without a word more to say of it is not given: of steps only those that are no longer
        ours. Raises DatabaseUnavailable with what was not written kept.
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
        """What is due, so many at a time, and no more files at a time than a statement stores quickly."""
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
        """The attempts of a batch that are settled; the others are held back for a while."""
        for key in batch:
            self._held.pop(key, None)
        retry_at = self._clock() + self._retry_s
        self._held.update(dict.fromkeys(locked, retry_at))
        return [key for key in batch if key not in locked]
