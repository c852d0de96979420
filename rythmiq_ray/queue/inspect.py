"""Reading the queue, and asking for a cancel, a retry or another collect: what the CLI does."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import psycopg2
import psycopg2.errors
import psycopg2.extensions

from rythmiq_ray.errors import NotFound
from rythmiq_ray.model import Artifact, Job, JobState, RemoteStatus
from rythmiq_ray.queue.connection import Conflict, Row, fetch, repeated
from rythmiq_ray.queue.rows import finite, job_from_row, state_of, warnings_of
from rythmiq_ray.queue.sql import queries

_SQL: Final = queries("inspect")
_ID_DIGITS: Final = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """A row of ``rythmiq.attempts``."""

    attempt: int
    state: JobState
    remote_path: str
    remote_id: int | None
    remote_status: RemoteStatus | None
    exit_code: int | None
    error_code: str | None
    error_message: str | None
    retryable: bool | None
    artifact_uri: str | None
    cost_credits: float | None
    started_at: datetime
    finished_at: datetime | None
    cleaned_at: datetime | None
    warnings: tuple[str, ...] = ()
    keep_until: datetime | None = None
    """Before this its path is not removed, because what is in it was not stored."""
    free: bool = False
    """It never ran and does not count against ``max_attempts``."""
    submitted_at: datetime | None = None
    """When its remote job was first known; then when it was first seen to run, and to have ended."""
    running_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """What stands behind a connection."""

    version: str
    role: str
    now: datetime


def server(connection: psycopg2.extensions.connection) -> Server:
    """The server's version, its clock, and the role that we are."""
    (row,) = fetch(connection, _SQL["server"], {})
    return Server(**row)


def job(connection: psycopg2.extensions.connection, job_id: str | UUID) -> Job:
    """The job with this id, or whose id alone starts with these digits; raises NotFound, also for two or more."""
    digits = str(job_id).replace("-", "").lower()
    if not 4 <= len(digits) <= _ID_DIGITS or set(digits) - set("0123456789abcdef"):
        raise NotFound(f"{job_id!s} is not a job id: give it whole, or its first 4 digits or more")
    bounds = {"low": UUID(digits.ljust(_ID_DIGITS, "0")), "high": UUID(digits.ljust(_ID_DIGITS, "f"))}
    found = fetch(connection, _SQL["jobs_between"], bounds)
    if not found:
        raise NotFound(f"There is no job {job_id!s}")
    if len(found) > 1:
        raise NotFound(f"More than one job's id starts with {job_id!s}: give more digits")
    return job_from_row(found[0])


def attempts(connection: psycopg2.extensions.connection, job_id: UUID) -> list[Attempt]:
    """All attempts of a job, oldest first."""
    return [
        Attempt(
            attempt=row["attempt"],
            state=state_of(row["state"]),
            remote_path=row["remote_path"],
            remote_id=row["remote_id"],
            remote_status=RemoteStatus(row["remote_status"]) if row["remote_status"] else None,
            exit_code=row["exit_code"],
            error_code=row["error_code"],
            error_message=row["error_message"],
            retryable=row["retryable"],
            artifact_uri=row["artifact_uri"],
            cost_credits=finite(row["cost_credits"]),
            started_at=row["started_at"],
            finished_at=row["finished_at"],
            cleaned_at=row["cleaned_at"],
            warnings=warnings_of(row["warnings"]),
            keep_until=row["keep_until"],
            free=row["free"],
            submitted_at=row["submitted_at"],
            running_at=row["running_at"],
            ended_at=row["ended_at"],
        )
        for row in fetch(connection, _SQL["attempts"], {"job_id": job_id})
    ]


def artifacts(
    connection: psycopg2.extensions.connection, job_id: UUID, attempt: int | None = None
) -> list[tuple[int, Artifact]]:
    """The files of a job as (attempt, artifact), of one attempt or of all."""
    return [
        (
            row["attempt"],
            Artifact(
                name=row["name"],
                uri=row["uri"],
                bytes=row["bytes"],
                sha256=row["sha256"],
                content_type=row["content_type"],
            ),
        )
        for row in fetch(connection, _SQL["artifacts"], {"job_id": job_id, "attempt": attempt})
    ]


def cancel(
    connection: psycopg2.extensions.connection,
    ids: Collection[UUID] | None = None,
    queue: str | None = None,
    groups: Collection[UUID] | None = None,
) -> dict[UUID, JobState]:
    """Asks for the end of these jobs, or of all unfinished ones of a queue, or of these groups.

    Returns the state of each that was asked: CANCELLED where it was still queued, RUNNING where its driver will
    see to it. Jobs that ended before are not in the answer.
    """
    parameters = {
        "ids": None if ids is None else list(ids),
        "queue": queue,
        "groups": None if groups is None else list(groups),
    }
    rows = repeated(connection, lambda: fetch(connection, _SQL["cancel"], parameters))
    return {row["job_id"]: JobState(row["state"]) for row in rows}


def retry(connection: psycopg2.extensions.connection, ids: Collection[UUID], *, downstream: bool = False) -> set[UUID]:
    """Queues FAILED and CANCELLED jobs for one attempt more; returns those that were.

    ``downstream``: those too that were cancelled because they needed one of these. A job is left alone whose unique key
    another one holds, or another of ``ids`` that is queued instead, or whose dependencies can never come.
    """
    return _put_back(connection, "retry", ids, downstream=downstream)


def collect(connection: psycopg2.extensions.connection, ids: Collection[UUID]) -> dict[UUID, str]:
    """Puts FAILED and CANCELLED jobs back of which the last attempt is kept at the backend, to be collected again.

    Returns a reason for each that was left alone.
    """
    done = _put_back(connection, "collect", ids)
    left = [job_id for job_id in ids if job_id not in done]
    rows = fetch(connection, _SQL["kept"], {"ids": left}) if left else []
    reasons = {row["job_id"]: _why_not_collected(row) for row in rows}
    return {job_id: reasons.get(job_id, "there is no such job") for job_id in left}


def _why_not_collected(row: Row) -> str:
    if row["state"] not in (JobState.FAILED, JobState.CANCELLED):
        return f"it is {row['state']}"
    if row["kept"]:
        return "another job has its unique key"
    return "what was kept of it was removed" if row["gone"] else "nothing of it is kept"


def _put_back(
    connection: psycopg2.extensions.connection, name: str, ids: Collection[UUID], **parameters: object
) -> set[UUID]:
    def work() -> set[UUID]:
        try:
            return {row["job_id"] for row in fetch(connection, _SQL[name], {"ids": list(ids), **parameters})}
        except psycopg2.errors.UniqueViolation:
            # Another session took the key between the look at it and the write; the next look sees that.
            raise Conflict("Another session took a unique key of these jobs, try again") from None

    return repeated(connection, work)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prunable:
    """An ended job that may go, and the URIs of all that it stored."""

    job_id: UUID
    uris: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unprunable:
    """How many jobs are old enough to go and stay."""

    uncleaned: int
    """Of these a path at the backend is still to be removed, which drivers do."""
    kept: int
    """Of these something is kept there that could not be stored."""


def prunable(
    connection: psycopg2.extensions.connection,
    *,
    older_than_s: float,
    limit: int,
    but: Collection[UUID] = (),
    only: Collection[UUID] | None = None,
) -> list[Prunable]:
    """The oldest ended jobs of at least that age, of those in ``only``, without those in ``but``. Nothing is locked."""
    parameters = {
        "older_than_s": older_than_s,
        "limit": limit,
        "but": list(but),
        "only": None if only is None else list(only),
    }
    rows = fetch(connection, _SQL["prunable"], parameters)
    return [Prunable(job_id=row["job_id"], uris=tuple(row["uris"])) for row in rows]


def prune(connection: psycopg2.extensions.connection, ids: Collection[UUID], *, older_than_s: float) -> set[UUID]:
    """Deletes those jobs that are still ended and of that age, with their attempts and artifact rows.

    Returns their ids. What is stored is not touched.
    """
    parameters = {"ids": list(ids), "older_than_s": older_than_s}
    return {row["job_id"] for row in repeated(connection, lambda: fetch(connection, _SQL["prune"], parameters))}


def unprunable(connection: psycopg2.extensions.connection, *, older_than_s: float) -> Unprunable:
    """How many jobs of that age stay, and why."""
    (row,) = fetch(connection, _SQL["unprunable"], {"older_than_s": older_than_s})
    return Unprunable(uncleaned=row["uncleaned"], kept=row["kept"])


def prune_drivers(connection: psycopg2.extensions.connection, *, older_than_s: float) -> None:
    """Deletes the rows of drivers whose lease ended at least that long ago and that hold no job."""
    fetch(connection, _SQL["prune_drivers"], {"older_than_s": older_than_s})
