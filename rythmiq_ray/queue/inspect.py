"""Reads the queue, and requests cancels, retries and collects, for the CLI and the client."""

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
    """Its path is kept until then, because its files were not stored."""
    free: bool = False
    """It never ran and does not count against ``max_attempts``."""
    submitted_at: datetime | None = None
    """When its remote job was first known; the next two: when it was first seen to run, and to have ended."""
    running_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """The server behind a connection."""

    version: str
    role: str
    now: datetime


def server(connection: psycopg2.extensions.connection) -> Server:
    """The server's version, its clock, and our role."""
    (row,) = fetch(connection, _SQL["server"], {})
    return Server(**row)


def job(connection: psycopg2.extensions.connection, job_id: str | UUID) -> Job:
    """The job with this id, or the only one whose id starts with these digits; raises NotFound."""
    digits = str(job_id).replace("-", "").lower()
    if not 4 <= len(digits) <= _ID_DIGITS or set(digits) - set("0123456789abcdef"):
        raise NotFound(f"{job_id!s} is not a job id: give the whole id, or at least its first 4 digits")
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
    """Cancels these jobs, or all unfinished jobs of a queue, or of these groups.

    Returns the new state of each: CANCELLED if it was still queued, RUNNING if its driver has to stop it. Jobs that had
    ended before are left out.
    """
    parameters = {
        "ids": None if ids is None else list(ids),
        "queue": queue,
        "groups": None if groups is None else list(groups),
    }
    rows = repeated(connection, lambda: fetch(connection, _SQL["cancel"], parameters))
    return {row["job_id"]: JobState(row["state"]) for row in rows}


def retry(connection: psycopg2.extensions.connection, ids: Collection[UUID], *, downstream: bool = False) -> set[UUID]:
    """Queues FAILED and CANCELLED jobs for one more attempt; returns the ids of those that were queued.

    ``downstream``: also jobs that were cancelled because they needed one of these. A job is left as it is if another
    job has its unique key (also another of ``ids``, queued instead), or if its dependencies can never be met.
    """
    return _put_back(connection, "retry", ids, downstream=downstream)


def collect(connection: psycopg2.extensions.connection, ids: Collection[UUID]) -> dict[UUID, str]:
    """Queues FAILED and CANCELLED jobs whose last attempt's files are kept at the backend, to collect them again.

    Returns a reason for each job that was left as it is.
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
    return "its kept files were removed" if row["gone"] else "no files of it are kept"


def _put_back(
    connection: psycopg2.extensions.connection, name: str, ids: Collection[UUID], **parameters: object
) -> set[UUID]:
    def work() -> set[UUID]:
        try:
            return {row["job_id"] for row in fetch(connection, _SQL[name], {"ids": list(ids), **parameters})}
        except psycopg2.errors.UniqueViolation:
            # Another session took the key between our check and our write; a repeated statement sees that.
            raise Conflict("Another session took a unique key of these jobs, try again") from None

    return repeated(connection, work)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prunable:
    """An ended job that may be deleted, and the URIs of its stored files."""

    job_id: UUID
    uris: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unprunable:
    """How many jobs are old enough to be deleted but cannot be yet."""

    uncleaned: int
    """Jobs with a path at the backend that a driver still has to remove."""
    kept: int
    """Jobs with files kept there because they could not be stored."""


def prunable(
    connection: psycopg2.extensions.connection,
    *,
    older_than_s: float,
    limit: int,
    but: Collection[UUID] = (),
    only: Collection[UUID] | None = None,
) -> list[Prunable]:
    """The oldest ended jobs of at least that age, only those in ``only``, without those in ``but``. Locks nothing."""
    parameters = {
        "older_than_s": older_than_s,
        "limit": limit,
        "but": list(but),
        "only": None if only is None else list(only),
    }
    rows = fetch(connection, _SQL["prunable"], parameters)
    return [Prunable(job_id=row["job_id"], uris=tuple(row["uris"])) for row in rows]


def prune(connection: psycopg2.extensions.connection, ids: Collection[UUID], *, older_than_s: float) -> set[UUID]:
    """Deletes those of the jobs that are still ended and of that age, with their attempts and artifact rows.

    Returns their ids. Stored files are not deleted.
    """
    parameters = {"ids": list(ids), "older_than_s": older_than_s}
    return {row["job_id"] for row in repeated(connection, lambda: fetch(connection, _SQL["prune"], parameters))}


def unprunable(connection: psycopg2.extensions.connection, *, older_than_s: float) -> Unprunable:
    """How many jobs of that age cannot be deleted yet, and why."""
    (row,) = fetch(connection, _SQL["unprunable"], {"older_than_s": older_than_s})
    return Unprunable(uncleaned=row["uncleaned"], kept=row["kept"])


def prune_drivers(connection: psycopg2.extensions.connection, *, older_than_s: float) -> None:
    """Deletes the rows of drivers whose lease ended at least that long ago and that hold no job."""
    fetch(connection, _SQL["prune_drivers"], {"older_than_s": older_than_s})
