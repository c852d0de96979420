"""The jobs and their states, kept in memory; each change is written to the journal first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from time import gmtime, strftime, time
from typing import Any, Final

from rythmiq_ray.local.camber.answers import encode
from rythmiq_ray.local.camber.creating import JobRequest
from rythmiq_ray.local.camber.journal import Journal

FIRST_JOB_ID: Final = 1001


class Status(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        return self not in (Status.PENDING, Status.RUNNING)


class CreateAnswer(StrEnum):
    """What happened to the answer to a create. It is in the journal, for tests that count creates."""

    SENT = "sent"
    LOST = "lost"
    """The connection was closed instead."""
    GHOST = "ghost"
    """The answer was 500 with code 2."""

    @property
    def withheld(self) -> bool:
        return self is not CreateAnswer.SENT


def timestamp(time_s: float) -> str:
    """RFC 3339 in UTC with whole seconds, as the service writes it."""
    return _timestamp(int(time_s))


@lru_cache(maxsize=1024)
def _timestamp(time_s: int) -> str:
    return strftime("%Y-%m-%dT%H:%M:%SZ", gmtime(time_s))


@dataclass(slots=True, kw_only=True)
class Job:
    """One job. Times are in seconds since 1970; only :class:`Ledger` changes it."""

    job_id: int
    request: JobRequest
    created: float
    answer: CreateAnswer
    status: Status = Status.PENDING
    started: float | None = None
    ended: float | None = None
    _encoded: bytes | None = field(default=None, repr=False)

    @property
    def path(self) -> str:
        """The job's path in the stash, without a slash at its end."""
        return self.request.mount_dir.removesuffix("/")

    def as_dict(self, status: str | None = None) -> dict[str, Any]:
        """The job object of the API; ``status`` replaces the real one."""
        return {
            "job_id": self.job_id,
            "job_status": status or self.status.value,
            **self.request.as_dict(),
            "created_at": timestamp(self.created),
            "started_at": None if self.started is None else timestamp(self.started),
            "finished_at": None if self.ended is None else timestamp(self.ended),
        }

    def encoded(self) -> bytes:
        """The job object as JSON, cached: a page of a list has a hundred of these."""
        if self._encoded is None:
            self._encoded = encode(self.as_dict())
        return self._encoded

    def move(self, status: Status, at: float) -> None:
        self.status = status
        if status is Status.RUNNING:
            self.started = at
        else:
            self.ended = at
        self._encoded = None


class Ledger:
    """All jobs, oldest first."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._jobs: list[Job] = []
        for record in journal.records():
            self._replay(record)

    def _replay(self, record: Mapping[str, Any]) -> None:
        event = record["event"]
        if event == "create":
            request = JobRequest(
                command=record["command"],
                mount_dir=record["mount_dir"],
                **{**record["request"], "tags": tuple(record["request"]["tags"])},
            )
            self._jobs.append(
                Job(
                    job_id=record["job_id"],
                    request=request,
                    created=record["time"],
                    answer=CreateAnswer(record["answer"]),
                )
            )
        elif event in ("start", "end", "cancel"):
            job = self.get(record["job_id"])
            if job is not None:
                status = {"start": Status.RUNNING, "cancel": Status.CANCELLED}.get(event) or Status(record["status"])
                job.move(status, record["time"])

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, job_id: int) -> Job | None:
        index = job_id - FIRST_JOB_ID
        return self._jobs[index] if 0 <= index < len(self._jobs) else None

    def all(self) -> list[Job]:
        return list(self._jobs)

    def page(self, number: int, size: int, *, lag_s: float = 0.0) -> tuple[list[Job], int]:
        """A page of jobs, newest first, and the total number of jobs. Pages are counted from 1.

        Jobs that are younger than ``lag_s`` seconds are not included.
        """
        total = len(self._jobs)
        if lag_s > 0.0:
            newest = time() - lag_s
            while total and self._jobs[total - 1].created > newest:
                total -= 1
        end = total - (number - 1) * size
        return self._jobs[max(0, end - size) : max(0, end)][::-1], total

    def statuses(self) -> dict[str, int]:
        counts = Counter(job.status for job in self._jobs)
        return {status.value: counts[status] for status in Status}

    def create(self, request: JobRequest, arrived: float, answer: CreateAnswer) -> Job:
        job = Job(job_id=FIRST_JOB_ID + len(self._jobs), request=request, created=arrived, answer=answer)
        rest = request.as_dict()
        self._journal.write(
            "create",
            arrived,
            job_id=job.job_id,
            mount_dir=rest.pop("mount_dir"),
            command=rest.pop("command"),
            answer=answer,
            withheld=answer.withheld,
            request=rest,
        )
        self._jobs.append(job)
        return job

    def start(self, job: Job) -> None:
        now = time()
        self._journal.write("start", now, job_id=job.job_id, mount_dir=job.path)
        job.move(Status.RUNNING, now)

    def end(self, job: Job, status: Status, exit_code: int | None) -> None:
        """Ends a job; ``exit_code`` is None if it is unknown because the emulator itself was killed."""
        now = time()
        self._journal.write("end", now, job_id=job.job_id, mount_dir=job.path, status=status, exit_code=exit_code)
        job.move(status, now)

    def cancel(self, job: Job, *, by: str) -> None:
        now = time()
        self._journal.write("cancel", now, job_id=job.job_id, mount_dir=job.path, by=by)
        job.move(Status.CANCELLED, now)

    def removed(self, path: str) -> None:
        """Records that a path of the stash was removed."""
        self._journal.write("remove", time(), path=path)
