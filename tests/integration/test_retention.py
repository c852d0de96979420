"""Retention by a driver: rows and files go when their time has come, files first, and nothing else goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.extras
import pytest

from rythmiq_ray import JobSpec, NewJob, enqueue_many
from rythmiq_ray.config import RetentionConfig
from rythmiq_ray.driver.retention import PAUSE_S, REFUSED_S, Retention
from rythmiq_ray.errors import StoreUnavailable
from rythmiq_ray.model import Artifact, JobState
from rythmiq_ray.queue import Ending, Queue
from rythmiq_ray.secret import Secret

DAY_S = 86_400.0


@pytest.fixture
def connection(database_url: str) -> Iterator[Any]:
    connection = psycopg2.connect(database_url, cursor_factory=psycopg2.extras.RealDictCursor)
    connection.autocommit = True
    yield connection
    connection.close()


@pytest.fixture
def queue(database_url: str) -> Iterator[Queue]:
    queue = Queue(Secret(database_url), lease_s=30.0)
    queue.register()
    yield queue
    queue.close()


def ended(connection: Any, queue: Queue, *, succeeded: int, failed: int, days: float = 2.0) -> dict[UUID, JobState]:
    """Jobs that ended so long ago, each with a file."""
    enqueue_many(connection, [NewJob(spec=JobSpec(command="x")) for _ in range(succeeded + failed)])
    jobs = queue.claim(succeeded + failed)
    states = [JobState.SUCCEEDED] * succeeded + [JobState.FAILED] * failed
    queue.finish(
        Ending(
            job_id=job.job_id,
            attempt=job.attempt,
            state=state,
            artifact_uri=f"s3://b/{job.job_id}/manifest.json",
            artifacts=(Artifact(name="x", uri=f"s3://b/{job.job_id}/x", bytes=1, sha256="0", content_type="t"),),
        )
        for job, state in zip(jobs, states, strict=True)
    )
    queue.cleaned((job.job_id, job.attempt) for job in jobs)
    ids = [str(job.job_id) for job in jobs]
    with connection.cursor() as cursor:
        for table in ("jobs", "attempts"):
            which = f"UPDATE rythmiq.{table} SET finished_at = now() - interval '1 day' * %s"
            cursor.execute(f"{which} WHERE job_id = ANY(%s::uuid[])", (days, ids))
    return {job.job_id: state for job, state in zip(jobs, states, strict=True)}


def left(connection: Any) -> set[UUID]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT job_id FROM rythmiq.jobs")
        return {UUID(str(row["job_id"])) for row in cursor.fetchall()}


def test_it_is_off_unless_it_is_asked_for(connection: Any, queue: Queue) -> None:
    jobs = ended(connection, queue, succeeded=1, failed=1, days=1000.0)
    off = RetentionConfig(succeeded_s=None, failed_s=None, artifacts_s=None)
    retention = Retention(off, queue, delete=lambda _uri: pytest.fail("nothing is to be deleted"), wake=lambda: None)
    assert retention.due_at is None
    retention.tick(1e9)
    assert left(connection) == set(jobs)


def test_rows_go_by_how_they_ended_and_the_young_stay(connection: Any, queue: Queue) -> None:
    old = ended(connection, queue, succeeded=2, failed=2)
    young = ended(connection, queue, succeeded=1, failed=0, days=0.5)
    config = RetentionConfig(succeeded_s=DAY_S, failed_s=3 * DAY_S, artifacts_s=None)
    Retention(config, queue, delete=lambda _uri: None, wake=lambda: None).tick(1.0)
    failed = {job_id for job_id, state in old.items() if state is JobState.FAILED}
    assert left(connection) == failed | set(young)


def test_files_go_before_their_rows_and_one_that_cannot_be_deleted_keeps_its_own(connection: Any, queue: Queue) -> None:
    jobs = ended(connection, queue, succeeded=3, failed=0)
    stuck, *others = sorted(jobs)
    deleted: list[str] = []
    woken: list[bool] = []

    def delete(uri: str) -> None:
        assert left(connection) == set(jobs), "a row without its files can be asked for"
        if str(stuck) in uri:
            raise ValueError("an odd URI")
        deleted.append(uri)

    config = RetentionConfig(succeeded_s=DAY_S, failed_s=None, artifacts_s=DAY_S)
    retention = Retention(config, queue, delete=delete, wake=lambda: woken.append(True))
    now = 1.0
    retention.tick(now)
    while not woken:
        pass
    retention.tick(now)
    assert sorted(deleted) == sorted(f"s3://b/{job}/{name}" for job in others for name in ("manifest.json", "x"))
    assert left(connection) == {stuck}
    retention.tick(now + PAUSE_S)
    assert left(connection) == {stuck}


def test_a_store_that_deletes_nothing_is_asked_once_a_look_and_for_each_file_once_an_hour(
    connection: Any, queue: Queue
) -> None:
    jobs = ended(connection, queue, succeeded=3, failed=0)
    asked: list[str] = []
    woken: list[bool] = []

    def delete(uri: str) -> None:
        asked.append(uri)
        raise StoreUnavailable("denied")

    config = RetentionConfig(succeeded_s=DAY_S, failed_s=None, artifacts_s=DAY_S)
    now = 1000.0
    retention = Retention(config, queue, delete=delete, wake=lambda: woken.append(True), clock=lambda: now)
    retention.tick(now)
    for looks in range(1, len(jobs) + 1):
        while len(woken) < looks:
            pass
        assert len(asked) == looks
        retention.tick(now)  # Nothing is gone, so it pauses.
        now += PAUSE_S
        retention.tick(now)
    assert len(set(asked)) == len(jobs), "another one each time"
    for _ in range(10):
        now += PAUSE_S
        retention.tick(now)
    assert len(asked) == len(jobs)
    assert left(connection) == set(jobs)
    now += REFUSED_S
    retention.tick(now)
    while len(woken) < len(jobs) + 1:
        pass
    assert len(asked) == len(jobs) + 1


def test_files_that_are_not_the_jobs_own_stay(connection: Any, queue: Queue) -> None:
    (job_id,) = ended(connection, queue, succeeded=1, failed=0)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE rythmiq.artifacts SET uri = %s", (f"file:///x/{job_id}/../../etc/passwd",))
    deleted: list[str] = []
    woken: list[bool] = []
    config = RetentionConfig(succeeded_s=None, failed_s=None, artifacts_s=DAY_S)
    Retention(config, queue, delete=deleted.append, wake=lambda: woken.append(True)).tick(1.0)
    while not woken:
        pass
    assert deleted == [f"s3://b/{job_id}/manifest.json"]
