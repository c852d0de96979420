"""A driver's side of the queue: lease, claim, take-over, and fenced writes in batches."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg2
import psycopg2.extensions

from rythmiq_ray import __version__
from rythmiq_ray.errors import DatabaseUnavailable
from rythmiq_ray.model import Artifact, ErrorInfo, Job, JobState, Phase, RemoteStatus
from rythmiq_ray.queue.connection import connect, fetch, translated
from rythmiq_ray.queue.rows import job_from_row
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.secret import Secret

_SQL: Final = queries("driver")
_COUNTED: Final = 10_000
"""Up to this many waiting jobs are counted one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adopted:
    """A job taken over, and how many seconds ago its former driver may last have acted for it."""

    job: Job
    orphaned_s: float
    age_s: float = 0.0
    """Since its attempt was claimed, by the database's clock, as the next two."""
    submitted_s: float = 0.0
    """Since its remote job was known."""
    running_s: float | None = None
    """Since that was first seen to run; None where it was not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A step of a running attempt; None leaves what the row has."""

    job_id: UUID
    attempt: int
    phase: Phase
    remote_id: int | None = None
    remote_status: RemoteStatus | None = None
    waits_for: str | None = None
    """Why it does not get on, in words; None: it does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What became of a batch of fenced writes, by job id."""

    ours: frozenset[UUID]
    """Written."""
    locked: frozenset[UUID] = frozenset()
    """Another session holds the row; to be written again later. All that is in neither was no longer ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an attempt ended, and what becomes of its job."""

    job_id: UUID
    attempt: int
    state: JobState
    """The attempt's: SUCCEEDED, FAILED or CANCELLED."""
    retry_delay_s: float | None = None
    """Seconds until the job's next attempt; None ends the job in ``state``."""
    exit_code: int | None = None
    error: ErrorInfo | None = None
    retryable: bool | None = None
    artifact_uri: str | None = None
    cost_credits: float | None = None
    remote_id: int | None = None
    remote_status: RemoteStatus | None = None
    artifacts: tuple[Artifact, ...] = ()
    warnings: tuple[str, ...] = ()
    keep_s: float | None = None
    """For so long the attempt's path is kept, because what is in it could not be stored."""
    free: bool = False
    """The attempt never ran and does not count against ``max_attempts``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Depth:
    """What waits in the queue, of all queues, whichever a driver serves."""

    jobs: Mapping[tuple[str, str], int]
    """By queue and state; exact up to 10,000 jobs in all, then estimated."""
    oldest_claimable_s: float
    """For how long the oldest claimable job has been so; 0 where there is none."""


class Queue:
    """The queue as one driver sees it. Not thread-safe: it belongs to the driver's loop.

    Every method raises DatabaseUnavailable when Postgres does not answer, and the next call connects anew.
    ``now`` stands for the database's clock in tests of time.
    """

    def __init__(
        self,
        dsn: Secret,
        *,
        queues: Sequence[str] = (),
        lease_s: float,
        connect_timeout_s: float = 10.0,
        statement_timeout_s: float = 30.0,
    ) -> None:
        self._dsn = dsn
        self._queues = list(queues) or None
        self._lease_s = lease_s
        self._connect_timeout_s = connect_timeout_s
        self._statement_timeout_s = statement_timeout_s
        self._connection: psycopg2.extensions.connection | None = None
        self.driver_id: UUID = uuid4()
        self.now: datetime | None = None

    def register(self) -> UUID:
        """Takes a lease under a new driver id: after a lost lease the former id stays fenced off for good."""
        self.driver_id = uuid4()
        self._run(
            "register",
            hostname=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            lease_s=self._lease_s,
        )
        return self.driver_id

    def renew(self) -> bool:
        """The heartbeat; False when the lease was over already."""
        return bool(self._run("renew", lease_s=self._lease_s))

    def resign(self) -> None:
        """Ends the lease, so that others need not wait for it to run out."""
        self._run("resign")

    def claim(self, limit: int) -> list[Job]:
        """Takes up to ``limit`` jobs, highest priority first, then oldest, and opens an attempt for each."""
        return [job_from_row(row) for row in self._run("claim", queues=self._queues, limit=limit)]

    def adopt(self, limit: int) -> list[Adopted]:
        """Takes over up to twice ``limit`` running jobs that were given back or whose driver's lease is over."""
        rows = self._run("adopt", queues=self._queues, limit=limit)
        return [Adopted(job=job_from_row(row), orphaned_s=row["orphaned_s"]) for row in rows]

    def release(self) -> set[UUID]:
        """Gives back all jobs that wait, and returns their ids."""
        return {row["job_id"] for row in self._run("release")}

    def advance(self, steps: Iterable[Progress]) -> set[UUID]:
        """Notes progress and returns the ids of those jobs that were still ours."""
        rows = [
            {
                "job_id": str(step.job_id),
                "attempt": step.attempt,
                "phase": step.phase,
                "remote_id": step.remote_id,
                "remote_status": step.remote_status,
            }
            for step in steps
        ]
        return {row["job_id"] for row in self._run("advance", rows=json.dumps(rows))}

    def finish(self, endings: Iterable[Ending]) -> set[UUID]:
        """Ends attempts and returns the ids of those jobs that were still ours."""
        rows = [_ending_record(ending) for ending in endings]
        return {row["job_id"] for row in self._run("finish", rows=json.dumps(rows))}

    def cancel_requests(self) -> set[UUID]:
        """Which of this driver's jobs somebody wants ended."""
        return {row["job_id"] for row in self._run("cancel_requests")}

    def disown(self, known: Iterable[UUID]) -> set[UUID]:
        """Gives back the running jobs that are this driver's by the table but not among ``known``.

        For after a lost connection: a claim whose answer was lost has taken jobs that nobody would run.
        """
        return {row["job_id"] for row in self._run("disown", known=list(known))}

    def unfinished(self) -> bool:
        """Whether anything of the served queues is claimable, scheduled or running, with whichever driver."""
        return bool(self._run("unfinished", queues=self._queues)[0]["unfinished"])

    def depth(self) -> Depth:
        """How much waits. It costs some 10 ms at most, however long the queue is."""
        rows = self._run("depth", limit=_COUNTED)
        oldest_s: float = self._run("oldest_claimable")[0]["seconds"]
        return Depth(jobs={(row["queue"], row["state"]): row["jobs"] for row in rows}, oldest_claimable_s=oldest_s)

    def cleaned(self, attempts: Iterable[tuple[UUID, int]]) -> None:
        """Notes that the paths of these attempts are gone from the stash."""
        rows = [{"job_id": str(job_id), "attempt": attempt} for job_id, attempt in attempts]
        self._run("cleaned", rows=json.dumps(rows))

    def uncleaned(self, limit: int, *, older_than_s: float) -> list[Job]:
        """Ended attempts whose path is still to be removed, each as the job it was of, oldest first."""
        rows = self._run("uncleaned", limit=limit, older_than_s=older_than_s)
        return [
            replace(
                job_from_row(row),
                attempt=row["ended_attempt"],
                remote_path=row["ended_path"],
                remote_id=row["ended_remote_id"],
            )
            for row in rows
        ]

    def fileno(self) -> int | None:
        """The socket on which notifications arrive, for ``select``; None while there is no connection."""
        return None if self._connection is None or self._connection.closed else self._connection.fileno()

    @property
    def notified(self) -> bool:
        """Whether a notification came in with the answer to a query: it is read then, and the socket says no more."""
        return self._connection is not None and bool(self._connection.notifies)

    def notifications(self) -> set[str]:
        """What was notified since the last look; never waits."""
        if self._connection is None:
            return set()
        try:
            with translated():
                self._connection.poll()
        except DatabaseUnavailable:
            self.close()
            raise
        payloads = {notify.payload for notify in self._connection.notifies}
        self._connection.notifies.clear()
        return payloads

    def close(self) -> None:
        if self._connection is not None:
            with suppress(psycopg2.Error):
                self._connection.close()
            self._connection = None

    def _run(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        if self._connection is None or self._connection.closed:
            self._connection = self._open()
        try:
            return fetch(self._connection, _SQL[name], {"driver_id": self.driver_id, "now": self.now, **parameters})
        except DatabaseUnavailable:
            self.close()
            raise

    def _open(self) -> psycopg2.extensions.connection:
        connection = connect(
            self._dsn,
            connect_timeout_s=self._connect_timeout_s,
            statement_timeout_s=self._statement_timeout_s,
        )
        # Each statement is its own transaction: one round trip instead of three, and no lock is held between.
        connection.autocommit = True
        fetch(connection, _SQL["session"], {})
        return connection


def _ending_record(ending: Ending) -> dict[str, Any]:
    return {
        "job_id": str(ending.job_id),
        "attempt": ending.attempt,
        "state": ending.state,
        "retry_delay_s": ending.retry_delay_s,
        "exit_code": ending.exit_code,
        "error_code": ending.error.code if ending.error else None,
        "error_message": _storable(ending.error.message) if ending.error else None,
        "retryable": ending.retryable,
        "artifact_uri": ending.artifact_uri,
        "cost_credits": ending.cost_credits,
        "remote_id": ending.remote_id,
        "remote_status": ending.remote_status,
        "artifacts": [
            {
                "name": artifact.name,
                "uri": artifact.uri,
                "bytes": artifact.bytes,
                "sha256": artifact.sha256,
                "content_type": artifact.content_type,
            }
            for artifact in ending.artifacts
        ],
    }


def _storable(text: str) -> str:
    """What Postgres takes as text: no NUL, no lone surrogate; and no more than a person reads."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[:4000]
