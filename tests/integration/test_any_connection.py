"""Jobs in a caller's own transaction: a connection of psycopg 3 does all that one of psycopg2 does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any
from uuid import UUID

import psycopg
import psycopg2
import psycopg2.extensions
import pytest
from psycopg.rows import dict_row

from rythmiq_ray import JobSpec, NewGroup, NewJob
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.model import Input, JobState
from rythmiq_ray.queue import any_connection, inspect, listing

Connection = psycopg2.extensions.connection
Opened = Callable[..., Any]
TRUE = JobSpec(command="true")


@pytest.fixture(params=[psycopg2, psycopg], ids=["psycopg2", "psycopg3"])
def opened(request: pytest.FixtureRequest, database_url: str) -> Iterator[Opened]:
    made = []

    def open_one(*, autocommit: bool = True) -> Any:
        made.append(request.param.connect(database_url))
        made[-1].autocommit = autocommit
        return made[-1]

    yield open_one
    for each in made:
        each.close()


def new(name: str | None = None, **fields: Any) -> NewJob:
    return NewJob(spec=TRUE, name=name, **fields)


def stored(connection: Connection) -> tuple[int, int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT (SELECT count(*) FROM rythmiq.jobs), (SELECT count(*) FROM rythmiq.groups)")
        found: Any = cursor.fetchone()
    return found  # type: ignore[no-any-return]


def test_rows_come_as_the_caller_has_them(connection: Connection, database_url: str) -> None:
    with closing(psycopg.connect(database_url, row_factory=dict_row, autocommit=True)) as caller:
        any_connection.enqueue_group(caller, NewGroup(name="a"), [new(), new()])
        any_connection.enqueue_many(caller, [new()])
    assert stored(connection) == (3, 1)


@pytest.mark.parametrize("autocommit", [True, False])
def test_all_or_nothing(connection: Connection, opened: Opened, autocommit: bool) -> None:
    caller = opened(autocommit=autocommit)
    with pytest.raises(InvalidJob, match=r"job 2: after.*there is no job or group 'nothing'"):
        any_connection.enqueue_group(caller, NewGroup(name="a"), [new(), new(after=("nothing",))])
    with pytest.raises(InvalidJob, match=r"job 2: after.*there is no job or group 'nothing'"):
        any_connection.enqueue_many(caller, [new(), new(after=("nothing",))])
    (first,) = any_connection.enqueue_many(caller, [new()])
    if not autocommit:
        assert stored(connection) == (0, 0), "the caller has not committed"
        caller.commit()
    assert stored(connection) == (1, 0)
    assert inspect.job(connection, first).state is JobState.QUEUED


def test_steps_name_later_steps(connection: Connection, opened: Opened) -> None:
    stored_input = JobSpec(command="cat x", inputs=(Input(uri="job:load/x", name="x"),))
    steps = [new("merge", after=("fit",)), NewJob(spec=stored_input, name="fit"), new("load")]

    def waits(ids: list[UUID]) -> list[int]:
        return [inspect.job(connection, each).waits_for for each in ids]

    merge, fit, load = any_connection.enqueue_many(opened(), steps)
    assert waits([merge, fit, load]) == [1, 1, 0]
    assert inspect.job(connection, fit).spec.inputs[0].uri == f"job:{load}/x"
    group_id = any_connection.enqueue_group(opened(), NewGroup(), steps)
    members = {job.name: job for job in listing.jobs(connection) if job.group_id == group_id}
    assert {name: job.waits_for for name, job in members.items()} == {"merge": 1, "fit": 1, "load": 0}
    *_, behind = any_connection.enqueue_many(opened(), [new("all", after=("tiles",)), new(group="tiles")])
    assert inspect.job(connection, behind).group_index == 0
    for circle in ([new("a", after=("b",)), new("b", after=("a",))], [new("a", after=("a",))]):
        with pytest.raises(InvalidJob, match="circle"):
            any_connection.enqueue_many(opened(), circle)


def test_faults_are_those_of_a_job(connection: Connection, opened: Opened) -> None:
    any_connection.enqueue_many(opened(), [new(unique_key="kk")])
    for group, jobs, said in (
        (NewGroup(), [], "has no jobs"),
        (NewGroup(), [new(unique_key="kk")], "has no new jobs"),
        (NewGroup(), [new(unique_key="k"), new(unique_key="k")], "several jobs of the group have the same"),
        (NewGroup(max_parallel=0), [new()], "max_parallel: must be a whole number from 1"),
        (NewGroup(stop_after_failures=2**31), [new()], "stop_after_failures: must be a whole number from 1"),
        (NewGroup(name="a\nb"), [new()], "name: holds a control character"),
        (NewGroup(name="x" * 300), [new()], "name: must have 1 to 200 characters"),
        (NewGroup(labels={"k": 1}), [new()], "labels.k: must be a string"),  # type: ignore[dict-item]
        (NewGroup(notify="ftp://x"), [new()], "notify: must be an http or https URL"),
    ):
        with pytest.raises(InvalidJob, match=said):
            any_connection.enqueue_group(opened(), group, jobs)
    with pytest.raises(InvalidJob) as caught:
        any_connection.enqueue_many(opened(), [NewJob(spec=JobSpec(command="")), new(priority=10_000)])
    assert [fault.partition(": ")[0] for fault in caught.value.faults] == ["job 1", "job 2"]
    assert stored(connection) == (1, 0)
