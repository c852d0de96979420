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
