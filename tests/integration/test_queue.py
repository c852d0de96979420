"""The queue on a real Postgres: order, leases, fences, plans. Time is ``Queue.now``."""

from __future__ import annotations

import json
import select
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.extensions
import pytest

from rythmiq_ray import JobSpec, NewJob, enqueue, enqueue_many
from rythmiq_ray.errors import DatabaseUnavailable, ErrorCode, InvalidJob, NotFound
from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.model import Artifact, ErrorInfo, Job, JobState, Phase, RemoteStatus
from rythmiq_ray.queue import Ending, Progress, Queue, inspect, listing
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.secret import Secret

LEASE_S = 30.0
Connection = psycopg2.extensions.connection


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    connection = psycopg2.connect(database_url)
    yield connection
    connection.close()


@pytest.fixture
def driver(database_url: str) -> Iterator[Queue]:
    queue = make_driver(database_url)
    yield queue
    queue.close()


def make_driver(url: str, **options: Any) -> Queue:
    queue = Queue(Secret(url), lease_s=LEASE_S, **options)
    queue.now = datetime.now(UTC)
    queue.register()
    return queue


def put(connection: Connection, *commands: str, **options: Any) -> list[UUID]:
    ids = enqueue_many(connection, [NewJob(spec=JobSpec(command=command), **options) for command in commands])
    connection.commit()
    return ids


def pass_time(queue: Queue, seconds: float) -> None:
    assert queue.now is not None
    queue.now += timedelta(seconds=seconds)


def done(job: Job, **changes: Any) -> Ending:
    return Ending(
        **{"job_id": job.job_id, "attempt": job.attempt, "state": JobState.SUCCEEDED, "exit_code": 0, **changes}
    )


def failed(job: Job, retry_delay_s: float | None) -> Ending:
    error = ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="exit code 1")
    return done(job, state=JobState.FAILED, exit_code=1, error=error, retryable=True, retry_delay_s=retry_delay_s)


# ---------------------------------------------------------------------------------------------------- enqueue


def test_a_job_exists_only_once_its_transaction_commits(connection: Connection, driver: Queue) -> None:
    enqueue(connection, JobSpec(command="true"))
    assert driver.claim(10) == []
    connection.rollback()
    assert driver.claim(10) == []
    enqueue(connection, JobSpec(command="true"))
    connection.commit()
    pass_time(driver, 20)
    assert len(driver.claim(10)) == 1


def test_every_field_of_a_job_comes_back(connection: Connection, driver: Queue) -> None:
    spec = JobSpec(command="a\tb\\n\n'\"é", outputs=("*.x",), env={"K": "v\t\\"}, secrets=("S",), timeout=1.5)
    job_id = enqueue(connection, spec, queue="q\\x", user_id="u\\1", priority=-3, max_attempts=7)
    connection.commit()
    pass_time(driver, 20)
    (job,) = driver.claim(1)
    assert (job.job_id, job.spec, job.queue, job.user_id, job.priority, job.max_attempts) == (
        job_id,
        spec,
        "q\\x",
        "u\\1",
        -3,
        7,
    )


def test_a_unique_key_is_unique_among_unfinished_jobs(connection: Connection, driver: Queue) -> None:
    first = enqueue(connection, JobSpec(command="1"), unique_key="k")
    assert enqueue(connection, JobSpec(command="2"), unique_key="k") == first
    both = enqueue_many(connection, [NewJob(spec=JobSpec(command="3"), unique_key=key) for key in ("k", "l", "l")])
    assert both[0] == first
    assert both[1] == both[2] != first
    connection.commit()
    pass_time(driver, 20)
    (job,) = [job for job in driver.claim(10) if job.job_id == first]
    assert enqueue(connection, JobSpec(command="4"), unique_key="k") == first, "it runs"
    connection.commit()
    driver.finish([done(job)])
    assert enqueue(connection, JobSpec(command="5"), unique_key="k") != first, "it ended"


def test_racing_enqueues_of_one_key_give_one_job(database_url: str) -> None:
    start = threading.Barrier(8)
    found: list[UUID] = []

    def race() -> None:
        connection = psycopg2.connect(database_url)
        connection.autocommit = True
        start.wait()
        found.append(enqueue(connection, JobSpec(command="true"), unique_key="one"))
        connection.close()

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_bad_jobs_are_refused_before_anything_is_stored(connection: Connection) -> None:
    jobs = [NewJob(spec=JobSpec(command=command)) for command in ("fine", "", "nul\x00", "x" * 2_000_000)]
    with pytest.raises(InvalidJob) as caught:
        enqueue_many(connection, jobs)
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["job 2", "job 3", "job 4"]
    with pytest.raises(InvalidJob, match="node_size"):
        enqueue(connection, JobSpec(command="true", node_size="small", gpu=True))
    connection.commit()
    assert listing.counts(connection) == []


def test_any_text_comes_back(connection: Connection) -> None:
    characters = [chr(code) for code in range(1, 0x11000) if not 0xD800 <= code < 0xE000]
    texts = ["x" + "".join(characters[at : at + 256]) for at in range(0, len(characters), 256)]
    # One with defaults alone and one with more go by different ways.
    specs = [spec for text in texts for spec in (JobSpec(command=text), JobSpec(command=text, env={"A": text}))]
    ids = enqueue_many(connection, [NewJob(spec=spec) for spec in specs])
    assert stored(connection) == {job_id: spec.as_dict() for job_id, spec in zip(ids, specs, strict=True)}


def test_ids_are_in_the_order_of_the_jobs_whatever_these_are(connection: Connection) -> None:
    kinds: list[dict[str, Any]] = [{}, {"unique_key": "k"}, {"delay_s": 60.0}, {"unique_key": "l", "delay_s": 60.0}, {}]
    ids = enqueue_many(connection, [NewJob(spec=JobSpec(command=f"{at}"), **kind) for at, kind in enumerate(kinds)])
    assert ids == sorted(ids)
    commands = stored(connection)
    assert [commands[job_id]["command"] for job_id in ids] == ["0", "1", "2", "3", "4"]


def stored(connection: Connection) -> dict[UUID, Any]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT job_id, spec FROM rythmiq.jobs")
        return dict(cursor.fetchall())


def test_a_hundred_thousand_jobs_are_enqueued_in_order(connection: Connection) -> None:
    ids = enqueue_many(connection, [NewJob(spec=JobSpec(command="true"))] * 100_000)
    connection.commit()
    assert ids == sorted(ids)
    assert listing.total(connection, listing.Filter()) == 100_000


# ------------------------------------------------------------------------------------------------------ claim


def test_claims_go_by_priority_then_time_then_order(connection: Connection, driver: Queue) -> None:
    low = put(connection, "1", "2", priority=-1)
    high = put(connection, "3", "4", priority=5)
    late = put(connection, "5", priority=5, delay_s=3600)
    pass_time(driver, 20)
    assert [job.job_id for job in driver.claim(3)] == [*high, low[0]]
    assert [job.job_id for job in driver.claim(3)] == [low[1]]
    pass_time(driver, 3600)
    driver.register()
    assert [job.job_id for job in driver.claim(3)] == late


def test_a_claim_writes_the_path_before_anything_exists_there(connection: Connection, driver: Queue) -> None:
    (job_id,) = put(connection, "true")
    pass_time(driver, 20)
    (job,) = driver.claim(1)
    assert (job.state, job.phase, job.attempt) == (JobState.RUNNING, Phase.SUBMITTING, 1)
    assert job.remote_path == f"rythmiq/{job_id}/1"
    (attempt,) = inspect.attempts(connection, job_id)
    assert (attempt.state, attempt.remote_path) == (JobState.RUNNING, job.remote_path)


def test_racing_claims_take_each_job_once(connection: Connection, database_url: str) -> None:
    put(connection, *["true"] * 300)
    taken: list[UUID] = []

    def claim() -> None:
        queue = Queue(Secret(database_url), lease_s=LEASE_S)
        queue.register()
        while jobs := queue.claim(7):
            taken.extend(job.job_id for job in jobs)
        queue.close()

    threads = [threading.Thread(target=claim) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 300


def test_a_driver_serves_only_its_queues(connection: Connection, database_url: str) -> None:
    put(connection, "1", queue="a")
    put(connection, "2", queue="b")
    queue = make_driver(database_url, queues=["b"])
    pass_time(queue, 20)
    assert [job.queue for job in queue.claim(10)] == ["b"]
    queue.close()


def test_inserts_and_cancels_wake_a_driver(connection: Connection, driver: Queue) -> None:
    def told() -> set[str]:
        descriptor = driver.fileno()
        assert descriptor is not None
        assert select.select([descriptor], [], [], 10)[0], "no notification came"
        return driver.notifications()

    driver.notifications()
    (job_id,) = put(connection, "true")
    assert "enqueued" in told()
    pass_time(driver, 20)
    driver.claim(1)
    inspect.cancel(connection, [job_id])
    connection.commit()
    assert "cancel" in told()
    assert driver.cancel_requests() == {job_id}


def test_a_notification_that_comes_in_with_an_answer_is_not_slept_over(connection: Connection, driver: Queue) -> None:
    driver.notifications()
    assert not driver.notified
    put(connection, "true")
    # The answer to any query brings it along, and the socket has nothing more to say.
    deadline = time.monotonic() + 10
    while not driver.notified and time.monotonic() < deadline:
        driver.depth()
    assert driver.notifications() == {"enqueued"}
    assert not driver.notified


def test_a_driver_whose_lease_is_over_claims_and_adopts_nothing(connection: Connection, driver: Queue) -> None:
    put(connection, "true")
    pass_time(driver, LEASE_S + 1)
    assert driver.claim(1) == []
    assert not driver.renew()


# ----------------------------------------------------------------------------------------------------- fences


def test_a_driver_that_was_taken_for_dead_changes_nothing(
    connection: Connection, database_url: str, driver: Queue
) -> None:
    (job_id,) = put(connection, "true")
    pass_time(driver, 20)
    (job,) = driver.claim(1)
    other = make_driver(database_url)
    assert other.adopt(10) == [], "the lease holds"
    other.now = driver.now
    pass_time(other, LEASE_S + 1)
    other.register()
    (adopted,) = other.adopt(10)
    assert adopted.orphaned_s >= 1.0

    step = Progress(job_id=job_id, attempt=1, phase=Phase.WAITING, remote_id=666, remote_status=RemoteStatus.PENDING)
    assert driver.advance([step]).ours == set()
    assert driver.finish([done(job)]).ours == set()
    assert driver.release() == set()
    assert inspect.artifacts(connection, job_id) == []
    found = inspect.job(connection, job_id)
    assert (found.state, found.phase, found.remote_id) == (JobState.RUNNING, Phase.SUBMITTING, None)

    assert other.advance([step]).ours == {job_id}
    assert other.finish([done(job)]).ours == {job_id}
    other.close()


def test_an_ending_whose_answer_was_lost_is_ours_when_written_again_and_changes_nothing(
    connection: Connection, driver: Queue
) -> None:
    ids = put(connection, "1", "2")
    pass_time(driver, 20)
    first, second = driver.claim(2)
    driver.finish([failed(first, None)])
    pass_time(driver, 1)
    assert driver.finish([done(first, cost_credits=5.0), done(second)]).ours == set(ids)
    found = inspect.job(connection, first.job_id)
    assert (found.state, found.cost_credits) == (JobState.FAILED, None), "an attempt ends once"
    assert found.finished_at is not None
    assert driver.now is not None
    assert found.finished_at < driver.now


def test_the_write_of_an_earlier_attempt_changes_nothing(connection: Connection, driver: Queue) -> None:
    (job_id,) = put(connection, "true")
    pass_time(driver, 20)
    (first,) = driver.claim(1)
    driver.finish([failed(first, retry_delay_s=0.0)])
    (second,) = driver.claim(1)
    assert second.attempt == 2
    assert driver.finish([done(first)]).ours == set()
    assert driver.finish([done(second)]).ours == {job_id}
    states = [(attempt.attempt, attempt.state) for attempt in inspect.attempts(connection, job_id)]
    assert states == [(1, JobState.FAILED), (2, JobState.SUCCEEDED)]


def test_released_jobs_are_taken_over_at_once_and_only_those_that_wait(
    connection: Connection, database_url: str, driver: Queue
) -> None:
    ids = put(connection, "1", "2")
    pass_time(driver, 20)
    driver.claim(2)
    driver.advance([Progress(job_id=ids[0], attempt=1, phase=Phase.WAITING, remote_id=1)])
    assert driver.release() == {ids[0]}
    other = make_driver(database_url)
    other.now = driver.now
    assert [adopted.job.job_id for adopted in other.adopt(10)] == [ids[0]]
    driver.resign()
    assert [adopted.job.job_id for adopted in other.adopt(10)] == [ids[1]]
    other.close()


def test_a_claim_whose_answer_was_lost_is_given_back(connection: Connection, database_url: str, driver: Queue) -> None:
    known, lost = put(connection, "1", "2")
    pass_time(driver, 20)
    driver.claim(2)
    assert driver.disown([known]) == {lost}
    other = make_driver(database_url)
    other.now = driver.now
    assert [adopted.job.job_id for adopted in other.adopt(10)] == [lost]
    other.close()


# ---------------------------------------------------------------------------------------------------- endings


def test_an_ending_writes_job_attempt_and_artifacts_in_one(connection: Connection, driver: Queue) -> None:
    (job_id,) = put(connection, "true")
    pass_time(driver, 20)
    (job,) = driver.claim(1)
    artifact = Artifact(name="ä b.txt", uri="s3://b/k", bytes=3, sha256="ab", content_type="text/plain")
    driver.finish(
        [done(job, artifact_uri="s3://b/manifest.json", cost_credits=0.5, remote_id=9, artifacts=(artifact,))]
    )
    found = inspect.job(connection, job_id)
    assert (found.state, found.artifact_uri, found.cost_credits, found.remote_id, found.phase) == (
        JobState.SUCCEEDED,
        "s3://b/manifest.json",
        0.5,
        9,
        None,
    )
    assert inspect.artifacts(connection, job_id) == [(1, artifact)]
    assert not driver.unfinished()


def test_a_retry_waits_for_its_time(connection: Connection, driver: Queue) -> None:
    put(connection, "true")
    pass_time(driver, 20)
    (job,) = driver.claim(1)
    driver.finish([failed(job, retry_delay_s=3600.0)])
    driver.register()
    assert driver.claim(1) == []
    assert driver.unfinished()
    pass_time(driver, 3601)
    driver.register()
    (again,) = driver.claim(1)
    assert (again.attempt, again.remote_path) == (2, f"rythmiq/{job.job_id}/2")


def test_a_cancelled_job_is_not_retried(connection: Connection, driver: Queue) -> None:
    (job_id,) = put(connection, "true")
    pass_time(driver, 20)
    (job,) = driver.claim(1)
    assert inspect.cancel(connection, [job_id]) == {job_id: JobState.RUNNING}
    connection.commit()
    driver.finish([failed(job, retry_delay_s=1.0)])
    assert inspect.job(connection, job_id).state is JobState.CANCELLED
    assert not driver.unfinished()


def test_a_queued_job_is_cancelled_at_once_and_can_be_retried(connection: Connection, driver: Queue) -> None:
    (job_id,) = put(connection, "true", queue="q")
    assert inspect.cancel(connection, queue="q") == {job_id: JobState.CANCELLED}
    connection.commit()
    pass_time(driver, 20)
    assert driver.claim(1) == []
    assert inspect.retry(connection, [job_id]) == {job_id}
    connection.commit()
    assert [job.job_id for job in driver.claim(1)] == [job_id]


def test_cancel_without_a_target_touches_nothing(connection: Connection) -> None:
    (job_id,) = put(connection, "true")
    assert inspect.cancel(connection) == {}
    assert inspect.job(connection, job_id).state is JobState.QUEUED


def test_uncleaned_paths_are_found_until_they_are_noted(connection: Connection, driver: Queue) -> None:
    put(connection, "true")
    pass_time(driver, 20)
    (job,) = driver.claim(1)
    driver.finish([failed(job, retry_delay_s=0.0)])
    driver.claim(1)
    assert driver.uncleaned(10, older_than_s=60) == []
    pass_time(driver, 61)
    (old,) = driver.uncleaned(10, older_than_s=60)
    assert (old.attempt, old.remote_path) == (1, job.remote_path)
    driver.cleaned([(old.job_id, 1)])
    assert driver.uncleaned(10, older_than_s=60) == []


def test_what_postgres_will_not_store_is_made_storable(connection: Connection, driver: Queue) -> None:
    (job_id,) = put(connection, "true")
    pass_time(driver, 20)
    (job,) = driver.claim(1)
    error = ErrorInfo(code=ErrorCode.INTERNAL, message="nul \x00 and \ud800 " + "x" * 10_000)
    assert driver.finish([done(job, state=JobState.FAILED, error=error)]).ours == {job_id}


# ------------------------------------------------------------------------------------------------ the database


def test_a_lost_connection_is_said_and_made_anew(postgres: Postgres, database_url: str, driver: Queue) -> None:
    administrator = psycopg2.connect(postgres.url)
    administrator.autocommit = True
    name = database_url.rpartition("/")[2].partition("?")[0]
    administrator.cursor().execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()", (name,)
    )
    administrator.close()
    with pytest.raises(DatabaseUnavailable):
        driver.renew()
    assert driver.renew()


@pytest.mark.parametrize("analyzed", [True, False])
def test_a_drivers_statements_find_their_rows_by_index_also_by_stale_statistics(
    connection: Connection, driver: Queue, analyzed: bool
) -> None:
    """The plans of the hot statements: no table is read through, and the claim's order is the index's."""
    connection.autocommit = True
    with connection.cursor() as cursor:
        if not analyzed:  # Statistics of an empty table, as before the first large enqueue.
            cursor.execute("ANALYZE rythmiq.jobs")
        cursor.execute(
            "INSERT INTO rythmiq.jobs (spec, state, finished_at) "
            "SELECT '{}', 'SUCCEEDED', now() FROM generate_series(1, 20000)"
        )
        cursor.execute("INSERT INTO rythmiq.jobs (spec) SELECT '{}' FROM generate_series(1, 20000)")
        driver.now = None
        for _ in range(20):
            jobs = driver.claim(250)
        if analyzed:
            cursor.execute("ANALYZE rythmiq.jobs")
        cursor.execute(queries("driver")["session"])
        rows = json.dumps(
            [{"job_id": str(job.job_id), "attempt": 1, "phase": "waiting", "state": "FAILED"} for job in jobs]
        )
        parameters = {"driver_id": driver.driver_id, "now": None, "queues": None, "limit": 100, "rows": rows}
        parameters |= {"only": None, "skipped": None, "account": 1000, "age_s": None, "after": None}
        read = {name: scans(cursor, name, parameters) for name in ("claim", "advance", "finish")}
    assert read["claim"] == {("Index Scan", "jobs_pkey")}
    assert read["advance"] == read["finish"] == {("Index Scan", "jobs_pkey")}


def scans(cursor: psycopg2.extensions.cursor, name: str, parameters: dict[str, Any]) -> set[tuple[str, str]]:
    """How a statement reads ``jobs``, and whether it sorts what it read there."""
    cursor.execute("EXPLAIN (FORMAT JSON) " + queries("driver")[name], parameters)
    (answer,) = cursor.fetchone() or ([],)
    found = set()
    for node in walk(answer[0]["Plan"]):
        below = {child.get("Relation Name") for child in walk(node, subplans=False)}
        if node.get("Relation Name") == "jobs" and "Scan" in node["Node Type"]:
            found.add((node["Node Type"], node.get("Index Name", "")))
        if node["Node Type"] == "Sort" and "jobs" in below:
            found.add(("Sort", ""))
    return found


def walk(node: dict[str, Any], *, subplans: bool = True) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        if subplans or child["Parent Relationship"] != "InitPlan":
            yield from walk(child, subplans=subplans)


def test_an_id_may_be_given_by_its_first_digits(connection: Connection) -> None:
    first, second = put(connection, "1", "2")
    shared = len([None for a, b in zip(str(first), str(second), strict=True) if a == b])
    assert inspect.job(connection, str(first)[:-2]).job_id == first or shared > 30
    for text in ("", "01", "zzzz", str(first)[:8], "ffffffff"):
        with pytest.raises(NotFound):
            inspect.job(connection, text)
