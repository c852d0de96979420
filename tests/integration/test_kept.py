"""What could not be stored is kept and collected again; what ended is deleted, by hand or by age."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.extensions
import pytest

from rythmiq_ray import JobSpec, NewJob, cli, enqueue, enqueue_many
from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import Artifact, ErrorInfo, Job, JobState, Phase
from rythmiq_ray.queue import Ending, Progress, Queue, inspect
from rythmiq_ray.secret import Secret

DAY_S = 86_400.0
Connection = psycopg2.extensions.connection


@pytest.fixture
def driver(database_url: str) -> Iterator[Queue]:
    queue = Queue(Secret(database_url), lease_s=3650 * DAY_S)
    queue.now = datetime.now(UTC)
    queue.register()
    yield queue
    queue.close()


def pass_time(queue: Queue, seconds: float) -> None:
    assert queue.now is not None
    queue.now += timedelta(seconds=seconds)


def kept_job(connection: Connection, driver: Queue, *, keep_s: float = 7 * DAY_S, **options: Any) -> Job:
    """A job whose artifacts the store refused."""
    job_id = enqueue(connection, JobSpec(command="true"), **options)
    pass_time(driver, 20)
    (job,) = driver.claim(1)
    assert job.job_id == job_id
    driver.advance([Progress(job_id=job_id, attempt=job.attempt, phase=Phase.WAITING, remote_id=42)])
    assert driver.finish([kept(job, keep_s)]).ours == {job_id}
    return job


def kept(job: Job, keep_s: float = 7 * DAY_S) -> Ending:
    error = ErrorInfo(code=ErrorCode.ARTIFACTS_NOT_STORED, message="403")
    return Ending(
        job_id=job.job_id,
        attempt=job.attempt,
        state=JobState.FAILED,
        error=error,
        keep_s=keep_s,
        cost_credits=2.0,
        warnings=("nothing was stored",),
    )


def stored(job: Job) -> Ending:
    return Ending(job_id=job.job_id, attempt=job.attempt, state=JobState.SUCCEEDED, cost_credits=2.0)


@pytest.mark.parametrize("by", [inspect.collect, inspect.retry])
def test_what_is_kept_is_collected_again_as_the_same_attempt(connection: Connection, driver: Queue, by: Any) -> None:
    job = kept_job(connection, driver)
    found = inspect.job(connection, job.job_id)
    assert driver.now is not None
    assert found.collect_until == driver.now + timedelta(days=7)
    assert found.warnings == ("nothing was stored",)
    assert driver.claim(10) == [], "it has ended"
    assert by(connection, [job.job_id]) in ({}, {job.job_id})
    pass_time(driver, 20)
    (again,) = driver.claim(10)
    assert (again.attempt, again.phase, again.remote_id) == (job.attempt, Phase.COLLECTING, 42)
    assert (again.remote_path, again.started_at) == (job.remote_path, job.started_at)
    (attempt,) = inspect.attempts(connection, job.job_id)
    assert (attempt.state, attempt.finished_at) == (JobState.RUNNING, None)
    pass_time(driver, 8 * DAY_S)
    assert driver.uncleaned(10, older_than_s=60.0) == [], "it is being collected"
    assert driver.finish([stored(again)]).ours == {job.job_id}
    found = inspect.job(connection, job.job_id)
    assert (found.state, found.collect_until, found.warnings) == (JobState.SUCCEEDED, None, ())
    assert found.cost_credits == 2.0, "what was paid for once is counted once"
    (attempt,) = inspect.attempts(connection, job.job_id)
    assert (attempt.state, attempt.keep_until, attempt.cost_credits) == (JobState.SUCCEEDED, None, 2.0)


def test_a_collect_that_fails_again_is_kept_again(connection: Connection, driver: Queue) -> None:
    job = kept_job(connection, driver)
    inspect.collect(connection, [job.job_id])
    pass_time(driver, DAY_S / 2)
    (again,) = driver.claim(1)
    driver.finish([kept(again)])
    assert driver.now is not None
    assert inspect.job(connection, job.job_id).collect_until == driver.now + timedelta(days=7)


def test_the_janitor_leaves_what_is_kept_until_its_time(connection: Connection, driver: Queue) -> None:
    job = kept_job(connection, driver)
    pass_time(driver, 6 * DAY_S)
    assert driver.uncleaned(10, older_than_s=60.0) == []
    pass_time(driver, 2 * DAY_S)
    assert [old.remote_path for old in driver.uncleaned(10, older_than_s=60.0)] == [job.remote_path]
    driver.cleaned([(job.job_id, job.attempt)])
    assert inspect.job(connection, job.job_id).collect_until is None
    assert inspect.collect(connection, [job.job_id]) == {job.job_id: "its kept files were removed"}
    inspect.retry(connection, [job.job_id])
    (again,) = driver.claim(1)
    assert (again.attempt, again.phase) == (2, Phase.SUBMITTING)


def test_a_claim_after_a_path_was_removed_begins_a_new_attempt(connection: Connection, driver: Queue) -> None:
    """By a driver of 0.1.0, which knows of nothing that is kept."""
    job = kept_job(connection, driver)
    run(connection, "UPDATE rythmiq.attempts SET cleaned_at = now()")
    assert inspect.collect(connection, [job.job_id]) == {job.job_id: "its kept files were removed"}
    inspect.retry(connection, [job.job_id])
    pass_time(driver, 20)
    (again,) = driver.claim(1)
    assert (again.attempt, again.phase) == (2, Phase.SUBMITTING)


def test_a_collect_that_waits_for_a_driver_is_kept_for_a_day_at_least(connection: Connection, driver: Queue) -> None:
    job = kept_job(connection, driver, keep_s=60.0)
    inspect.collect(connection, [job.job_id])
    pass_time(driver, DAY_S / 2)
    assert driver.uncleaned(10, older_than_s=0.0) == []
    (again,) = driver.claim(1)
    assert (again.attempt, again.phase) == (1, Phase.COLLECTING)


def test_what_cannot_be_collected_says_why(connection: Connection, driver: Queue) -> None:
    held = kept_job(connection, driver, unique_key="k")
    cancelled = kept_job(connection, driver)
    inspect.retry(connection, [cancelled.job_id])
    inspect.cancel(connection, [cancelled.job_id])
    queued, plain = enqueue_many(
        connection, [NewJob(spec=JobSpec(command="true"), unique_key=key) for key in ("k", "l")]
    )
    inspect.cancel(connection, [plain])
    unknown = UUID(int=7)
    ids = [held.job_id, cancelled.job_id, queued, plain, unknown]
    assert inspect.collect(connection, ids) == {
        held.job_id: "another job has its unique key",
        queued: "it is QUEUED",
        plain: "no files of it are kept",
        unknown: "there is no such job",
    }
    assert inspect.job(connection, cancelled.job_id).state is JobState.RETRYING


def test_an_attempt_that_never_ran_does_not_count(connection: Connection, driver: Queue) -> None:
    (job_id,) = enqueue_many(connection, [NewJob(spec=JobSpec(command="true"), max_attempts=1)])
    pass_time(driver, 20)
    (job,) = driver.claim(1)
    driver.finish([Ending(job_id=job_id, attempt=1, state=JobState.FAILED, retry_delay_s=0.0, free=True)])
    (again,) = driver.claim(1)
    assert (again.attempt, again.free_attempts) == (2, 1)
    driver.finish([Ending(job_id=job_id, attempt=2, state=JobState.FAILED)])
    inspect.retry(connection, [job_id])
    assert inspect.job(connection, job_id).max_attempts == 2, "one attempt more that counts"
    assert [attempt.free for attempt in inspect.attempts(connection, job.job_id)] == [True, False]


# ------------------------------------------------------------------------------------------------------- prune


def run(connection: Connection, statement: str) -> None:
    connection.cursor().execute(statement)


@pytest.fixture
def prune(database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("DATABASE_URL", database_url)

    def prune(*arguments: str) -> tuple[Any, str]:
        assert cli.run(["prune", "--older-than", "30d", "--json", *arguments]) == 0
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    return prune


def ended_jobs(connection: Connection, driver: Queue, folder: Path, count: int) -> dict[UUID, Path]:
    files = {}
    ids = enqueue_many(connection, [NewJob(spec=JobSpec(command="true"))] * count)
    pass_time(driver, 20)
    driver.claim(count)
    endings = []
    for job_id in ids:
        files[job_id] = folder / str(job_id) / "x.txt"
        files[job_id].parent.mkdir()
        files[job_id].write_text("x")
        artifact = Artifact(name="x", uri=files[job_id].as_uri(), bytes=1, sha256="-", content_type="text/plain")
        endings.append(
            Ending(job_id=job_id, attempt=1, state=JobState.SUCCEEDED, artifacts=(artifact,), artifact_uri=artifact.uri)
        )
    driver.finish(endings)
    driver.cleaned([(job_id, 1) for job_id in ids])
    age(connection)
    return files


def age(connection: Connection) -> None:
    run(connection, "UPDATE rythmiq.jobs SET finished_at = finished_at - interval '31 days'")
    aged = "finished_at = finished_at - interval '31 days', cleaned_at = cleaned_at - interval '31 days'"
    run(connection, f"UPDATE rythmiq.attempts SET {aged}")


def test_prune_says_what_it_left_and_why(connection: Connection, driver: Queue, prune: Any, tmp_path: Path) -> None:
    files = ended_jobs(connection, driver, tmp_path, 2)
    kept_job(connection, driver, keep_s=100 * DAY_S)
    (job_id,) = enqueue_many(connection, [NewJob(spec=JobSpec(command="true"))])
    pass_time(driver, 20)
    driver.claim(1)
    driver.finish([Ending(job_id=job_id, attempt=1, state=JobState.FAILED)])
    age(connection)
    holder = psycopg2.connect(connection.dsn)
    holder.cursor().execute("SELECT FROM rythmiq.jobs WHERE job_id = %s FOR UPDATE", (str(next(iter(files))),))
    told, _ = prune()
    left = {"unfinished": 0, "uncleaned": 1, "kept": 1, "in_use": 1, "odd": 0}
    assert told == {"jobs": 1, "files": 0, "dry_run": False, "left": left}
    holder.rollback()
    holder.close()
    assert cli.run(["prune", "--older-than", "30d"]) == 0


def test_prune_says_in_words_what_it_left(
    connection: Connection, driver: Queue, prune: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kept_job(connection, driver, keep_s=100 * DAY_S)
    age(connection)
    assert cli.run(["prune", "--older-than", "30d"]) == 0
    said = capsys.readouterr()
    assert said.out == "0 jobs and 0 files deleted\n"
    assert said.err.startswith("rythmiq: 1 job was left alone: files that could not be stored are kept")


def test_prune_deletes_files_with_no_transaction_open(
    connection: Connection,
    driver: Queue,
    database_url: str,
    prune: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = ended_jobs(connection, driver, tmp_path, 3)
    name = database_url.rpartition("/")[2].partition("?")[0]
    run(connection, f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '300ms'")
    run(connection, f"ALTER DATABASE {name} SET idle_session_timeout = '300ms'")
    import time

    from rythmiq_ray.cli import prune as command

    delete = command._delete
    monkeypatch.setattr(command, "_delete", lambda uris: time.sleep(0.6) or delete(uris))
    assert prune("--artifacts")[0]["jobs"] == 3
    assert not [file for file in files.values() if file.exists()]


def test_a_job_that_was_put_back_while_its_files_were_deleted_stays(connection: Connection, driver: Queue) -> None:
    job = kept_job(connection, driver)
    driver.cleaned([(job.job_id, 1)])
    age(connection)
    (found,) = inspect.prunable(connection, older_than_s=30 * DAY_S, limit=10)
    inspect.retry(connection, [found.job_id])
    assert inspect.prune(connection, [found.job_id], older_than_s=30 * DAY_S) == set()
    pass_time(driver, 20)
    (again,) = driver.claim(1)
    driver.finish([Ending(job_id=again.job_id, attempt=again.attempt, state=JobState.FAILED)])
    driver.cleaned([(again.job_id, again.attempt)])
    assert inspect.prune(connection, [found.job_id], older_than_s=30 * DAY_S) == set(), "it ended anew"


# --------------------------------------------------------------------------------------------------- retention


def test_files_go_before_the_rows_that_name_them_and_each_after_its_time(
    connection: Connection, driver: Queue, tmp_path: Path
) -> None:
    files = ended_jobs(connection, driver, tmp_path, 3)
    driver.now = None
    assert driver.expired_artifacts(10, older_than_s=32 * DAY_S) == []
    found = driver.expired_artifacts(2, older_than_s=30 * DAY_S)
    assert len(found) == 2
    assert {uri for one in found for uri in one.uris} == {files[one.job_id].as_uri() for one in found}
    assert driver.delete_expired(10, succeeded_s=30 * DAY_S, failed_s=None, files_first=True) == set()
    driver.forget_artifacts(found)
    for one in found:
        job = inspect.job(connection, one.job_id)
        assert (job.artifact_uri, inspect.artifacts(connection, one.job_id)) == (None, [])
        assert job.warnings == ("its artifacts were deleted (retention.artifacts_s)",)
    (last,) = driver.expired_artifacts(10, older_than_s=30 * DAY_S)
    assert driver.expired_artifacts(10, older_than_s=30 * DAY_S, but=[last.job_id]) == []
    gone = {one.job_id for one in found}
    assert driver.delete_expired(10, succeeded_s=32 * DAY_S, failed_s=1.0, files_first=True) == set()
    assert driver.delete_expired(10, succeeded_s=30 * DAY_S, failed_s=None, files_first=True) == gone
    assert driver.delete_expired(10, succeeded_s=None, failed_s=None, files_first=False) == set()
    assert driver.delete_expired(10, succeeded_s=30 * DAY_S, failed_s=None, files_first=False) == {last.job_id}


def test_retention_deletes_nothing_that_runs_is_kept_or_is_still_to_be_cleaned(
    connection: Connection, driver: Queue
) -> None:
    kept_job(connection, driver, keep_s=100 * DAY_S)
    enqueue_many(connection, [NewJob(spec=JobSpec(command="true"))] * 2)
    pass_time(driver, 20)
    driver.claim(1)
    (cancelled,) = enqueue_many(connection, [NewJob(spec=JobSpec(command="true"))])
    inspect.cancel(connection, [cancelled])
    age(connection)
    driver.now = None
    assert driver.delete_expired(10, succeeded_s=1.0, failed_s=1.0, files_first=False) == {cancelled}


def test_retention_finds_its_rows_by_index(connection: Connection, driver: Queue) -> None:
    from rythmiq_ray.queue.sql import queries

    run(
        connection,
        "INSERT INTO rythmiq.jobs (spec, state, finished_at)"
        " SELECT '{}', 'SUCCEEDED', now() - interval '1 year' FROM generate_series(1, 20000)",
    )
    with connection.cursor() as cursor:
        cursor.execute(queries("driver")["session"])
        parameters = {"now": None, "limit": 10, "but": [], "older_than_s": 1.0, "succeeded_s": None, "failed_s": 1.0}
        for name, index in (("expired_artifacts", "attempts_stored"), ("delete_expired", "jobs_ended")):
            cursor.execute("EXPLAIN " + queries("driver")[name], parameters | {"files_first": True})
            plan = "\n".join(row[0] for row in cursor.fetchall())
            assert index in plan
            assert "Seq Scan on jobs" not in plan
