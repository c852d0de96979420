"""What metrics tell of all drivers together: brakes, and what is left over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg2
import psycopg2.extras
import pytest

from rythmiq_ray import JobSpec, NewJob, enqueue
from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import ErrorInfo, JobState, NewGroup
from rythmiq_ray.queue import Bounds, Ending, Queue, control, enqueue_group
from rythmiq_ray.queue.control import Scope
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.secret import Secret


@pytest.fixture
def connection(database_url: str) -> Iterator[Any]:
    connection = psycopg2.connect(database_url, cursor_factory=psycopg2.extras.RealDictCursor)
    connection.autocommit = True
    yield connection
    connection.close()


@pytest.fixture
def queue(database_url: str) -> Iterator[Queue]:
    queue = Queue(Secret(database_url), queues=["default"], lease_s=30.0)
    queue.register()
    yield queue
    queue.close()


def test_pauses_and_budgets_by_scope(connection: Any, queue: Queue) -> None:
    nothing = Bounds(scope="queue", paused=0, over=0, spent=0.0, at_limit=0, used=0.0)
    assert {each.scope for each in queue.bounds()} == {"account", "queue", "user", "group"}
    assert nothing in queue.bounds()
    control.pause(connection, Scope("queue", "gpu"), reason="moved")
    control.pause(connection, Scope("queue", "cpu"))
    control.set_budget(connection, Scope("user", "ann"), 10.0, "day")
    control.set_budget(connection, Scope("user", "bob"), 4.0, "day")
    control.set_budget(connection, Scope("user", "bob"), 100.0, "all")
    for user in ("ann", "bob"):
        enqueue(connection, JobSpec(command="x"), user_id=user)
    ended = [Ending(job_id=job.job_id, attempt=1, state=JobState.SUCCEEDED, cost_credits=4.0) for job in queue.claim(2)]
    queue.finish(ended)
    queue.control_state([])
    found = {each.scope: each for each in queue.bounds()}
    assert found["queue"] == replace(nothing, paused=2)
    assert found["user"] == replace(nothing, scope="user", over=1, spent=1.0)
    control.unset_budget(connection, Scope("user", "bob"), period="day")
    assert {each.scope: each.spent for each in queue.bounds()}["user"] == 0.4


def test_how_full_limits_are(connection: Any, queue: Queue) -> None:
    control.set_limit(connection, Scope("user", "*"), max_running=4)
    control.set_limit(connection, Scope("user", "ann"), max_running=2)
    control.set_limit(connection, Scope("queue", "default"), per_minute=10)
    for user in ("ann", "ann", "ann", "bob", "bob", "bob"):
        enqueue(connection, JobSpec(command="x"), user_id=user)
    assert len(queue.claim(10)) == 5

    def found() -> dict[str, tuple[int, float]]:
        return {each.scope: (each.at_limit, each.used) for each in queue.bounds()}

    assert found() == {"account": (0, 0), "queue": (0, 0.5), "user": (1, 1.0), "group": (0, 0)}
    control.set_limit(connection, Scope("user", "*"), max_running=3)
    assert found()["user"] == (2, 1.0)
    control.set_limit(connection, Scope("user", "ann"), max_running=0)
    assert found()["user"] == (2, 1.0), "a limit that was lowered below what runs"
    control.unset_limit(connection, Scope("user", "*"))
    control.unset_limit(connection, Scope("user", "ann"))
    assert found()["user"] == (0, 0)


def test_how_full_limits_are_costs_little_beside_very_many_jobs_and_limits(connection: Any, queue: Queue) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO rythmiq.jobs (user_id, queue, spec, attempt, state, phase, finished_at)"
            " SELECT 'user-' || n % 1000, 'queue-' || n % 200, '{}', 1,"
            " CASE WHEN n <= 2000 THEN 'RUNNING' ELSE 'SUCCEEDED' END,"
            " CASE WHEN n <= 2000 THEN 'waiting' END, CASE WHEN n > 2000 THEN now() END"
            " FROM generate_series(1, 20000) AS n"
        )
        cursor.execute(
            "INSERT INTO rythmiq.attempts (job_id, attempt, remote_path, state, started_at)"
            " SELECT job_id, 1, '', state, now() - interval '1 day' FROM rythmiq.jobs"
        )
        cursor.execute("SELECT rythmiq.set_limit('user', 'user-' || n, 5, 100) FROM generate_series(0, 999) AS n")
        cursor.execute("SELECT rythmiq.set_limit('queue', 'queue-' || n, 100, NULL) FROM generate_series(0, 199) AS n")
        cursor.execute("VACUUM ANALYZE rythmiq.jobs, rythmiq.attempts")
        cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + queries("driver")["bounds"], {"now": None})
        plan = list(nodes(cursor.fetchone()["QUERY PLAN"][0]["Plan"]))
    read = {(node["Relation Name"], node["Node Type"]) for node in plan if "Relation Name" in node}
    assert {relation for relation, _ in read} == {"jobs", "attempts", "limits"}
    assert {relation for relation, how in read if how == "Seq Scan"} == {"limits"}
    # However many limits there are, metrics get one row for each kind of scope.
    assert {each.scope: each.used for each in queue.bounds()} == {"account": 0, "queue": 0.1, "user": 0.4, "group": 0}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from nodes(below)


def test_what_is_left_over(connection: Any, queue: Queue) -> None:
    assert (queue.left_over().oldest_group_s, queue.left_over().unstored) == (0.0, 0)
    enqueue_group(connection, NewGroup(name="old"), [NewJob(spec=JobSpec(command="x"))])
    with connection.cursor() as cursor:
        cursor.execute("UPDATE rythmiq.groups SET created_at = now() - interval '1 hour'")
    (job,) = queue.claim(1)
    error = ErrorInfo(code=ErrorCode.ARTIFACTS_NOT_STORED, message="refused")
    queue.finish([Ending(job_id=job.job_id, attempt=1, state=JobState.FAILED, error=error, keep_s=3600.0)])
    assert queue.left_over().unstored == 1
    assert queue.left_over().oldest_group_s == 0.0, "its group has ended"
    enqueue_group(connection, NewGroup(), [NewJob(spec=JobSpec(command="x"), notify="https://example.org/")])
    with connection.cursor() as cursor:
        cursor.execute("UPDATE rythmiq.groups SET created_at = now() - interval '1 hour'")
    assert 3600.0 <= queue.left_over().oldest_group_s < 7200.0
    assert queue.left_over().notifications == 0
    queue.finish(Ending(job_id=job.job_id, attempt=1, state=JobState.SUCCEEDED) for job in queue.claim(1))
    assert queue.left_over().notifications == 1


def test_queues_that_nobody_serves(queue: Queue) -> None:
    assert queue.unserved(["default", "misspelt"]) == {"misspelt"}
