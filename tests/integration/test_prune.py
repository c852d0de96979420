"""``rythmiq prune`` on a real database and a folder of artifacts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import psycopg2

from rythmiq_ray import JobSpec, NewGroup, NewJob, enqueue, enqueue_group
from rythmiq_ray.model import Artifact, JobState
from rythmiq_ray.queue import Ending, Queue, inspect
from rythmiq_ray.secret import Secret


def ended_job(url: str, folder: Path, *, days_ago: int, cleaned: bool = True) -> tuple[UUID, Path]:
    connection = psycopg2.connect(url)
    job_id = enqueue(connection, JobSpec(command="true"))
    connection.commit()
    queue = Queue(Secret(url), lease_s=30)
    queue.register()
    (job,) = queue.claim(1)
    file = folder / str(job_id) / "1/x.txt"
    file.parent.mkdir(parents=True)
    file.write_text("x")
    artifact = Artifact(name="x.txt", uri=file.as_uri(), bytes=1, sha256="-", content_type="text/plain")
    queue.finish(
        [Ending(job_id=job_id, attempt=job.attempt, state=JobState.SUCCEEDED, artifacts=(artifact,), exit_code=0)]
    )
    if cleaned:
        queue.cleaned([(job_id, 1)])
    queue.close()
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE rythmiq.jobs SET finished_at = finished_at - make_interval(days => %s) WHERE job_id = %s",
            (days_ago, str(job_id)),
        )
    connection.close()
    return job_id, file


def prune(url: str, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "from rythmiq_ray.cli import main; main()", "prune", *arguments],
        env={**os.environ, "DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


def jobs(url: str) -> set[UUID]:
    connection = psycopg2.connect(url)
    with connection.cursor() as cursor:
        cursor.execute("SELECT job_id::text FROM rythmiq.jobs")
        found = {UUID(row[0]) for row in cursor.fetchall()}
    connection.close()
    return found


def test_only_what_is_old_ended_and_cleaned_goes(database_url: str, tmp_path: Path) -> None:
    old, old_file = ended_job(database_url, tmp_path, days_ago=31)
    young, young_file = ended_job(database_url, tmp_path, days_ago=29)
    uncleaned, _ = ended_job(database_url, tmp_path, days_ago=31, cleaned=False)
    assert json.loads(prune(database_url, "--older-than", "30d", "--dry-run", "--json")) == {
        "jobs": 1,
        "files": 0,
        "dry_run": True,
        "left": {"unfinished": 0, "uncleaned": 1, "kept": 0, "in_use": 0, "odd": 0},
    }
    assert jobs(database_url) == {old, young, uncleaned}
    assert prune(database_url, "--older-than", "30d", "--artifacts") == "1 jobs and 1 files deleted\n"
    assert jobs(database_url) == {young, uncleaned}
    assert not old_file.exists()
    assert young_file.exists()


def test_artifacts_stay_unless_asked_for(database_url: str, tmp_path: Path) -> None:
    _, file = ended_job(database_url, tmp_path, days_ago=31)
    prune(database_url, "--older-than", "4w")
    assert jobs(database_url) == set()
    assert file.exists()


def test_what_an_unfinished_job_needs_stays(database_url: str, tmp_path: Path) -> None:
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    group_id, members = enqueue_group(connection, NewGroup(), [NewJob(spec=JobSpec(command="true")) for _ in range(2)])
    queue = Queue(Secret(database_url), lease_s=30)
    queue.register()
    queue.finish(
        [
            Ending(job_id=job.job_id, attempt=1, state=JobState.SUCCEEDED, artifact_uri="s3://b/m")
            for job in queue.claim(2)
        ]
    )
    queue.cleaned([(member, 1) for member in members])
    behind = enqueue(connection, JobSpec(command="true"), after_ended=[group_id])

    def due() -> list[set[UUID]]:
        with_files = {stored.job_id for stored in queue.expired_artifacts(10, older_than_s=0.0)}
        gone = queue.delete_expired(10, succeeded_s=0.0, failed_s=None, files_first=True)
        assert not gone, "they still have files"
        return [with_files, {job.job_id for job in inspect.prunable(connection, older_than_s=0.0, limit=10)}]

    assert due() == [set(), set()]
    assert queue.delete_expired(10, succeeded_s=0.0, failed_s=None, files_first=False) == set()
    inspect.cancel(connection, [behind])
    assert due() == [set(members), {*members, behind}]
    assert queue.delete_expired(10, succeeded_s=0.0, failed_s=None, files_first=False) == set(members)
    queue.close()
    connection.close()


def test_what_is_asked_for_and_unfinished_is_told(database_url: str, tmp_path: Path) -> None:
    connection = psycopg2.connect(database_url)
    later = enqueue(connection, JobSpec(command="true"), name="later")
    connection.commit()
    connection.close()
    left = json.loads(prune(database_url, "later", "--yes", "--json"))["left"]
    assert left == {"unfinished": 1, "uncleaned": 0, "kept": 0, "in_use": 0, "odd": 0}
    assert jobs(database_url) == {later}


def test_an_age_that_is_none_is_refused(database_url: str) -> None:
    for age in ("30", "d", "-1d", "1y", ""):
        prune(database_url, f"--older-than={age}", code=2)
