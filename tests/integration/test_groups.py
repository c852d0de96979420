"""Groups, dependencies and places: what follows from the end of a job, whoever ends it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest

from rythmiq_ray import JobSpec, NewGroup, NewJob, enqueue, enqueue_group, enqueue_many
from rythmiq_ray.errors import DatabaseUnavailable, ErrorCode, InvalidJob
from rythmiq_ray.model import ErrorInfo, Input, Job, JobState
from rythmiq_ray.queue import Ending, Queue, inspect, listing
from rythmiq_ray.secret import Secret

Connection = psycopg2.extensions.connection
TRUE = JobSpec(command="true")


@pytest.fixture
def driver(database_url: str) -> Iterator[Queue]:
    driver = Queue(Secret(database_url), lease_s=60)
    driver.register()
    yield driver
    driver.close()


def new(name: str | None = None, **fields: object) -> NewJob:
    return NewJob(spec=TRUE, name=name, **fields)  # type: ignore[arg-type]


def put(connection: Connection, path: str, **fields: Any) -> None:
    """By the producer or by the schema's function."""
    if path == "python":
        enqueue(connection, TRUE, **fields)
    else:
        line = json.dumps({"command": "true", **fields})
        connection.cursor().execute("SELECT rythmiq.enqueue(%s::jsonb)", [line])


def states(connection: Connection, ids: list[UUID]) -> list[JobState]:
    return [inspect.job(connection, job_id).state for job_id in ids]


def waiting(connection: Connection, job_id: UUID) -> tuple[JobState, int]:
    job = inspect.job(connection, job_id)
    return job.state, job.waits_for


def end(driver: Queue, job: Job, state: JobState = JobState.SUCCEEDED) -> None:
    error = None if state is JobState.SUCCEEDED else ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="exit 1")
    assert driver.finish([Ending(job_id=job.job_id, attempt=job.attempt, state=state, error=error)]).ours == {
        job.job_id
    }


def claim(driver: Queue, job_id: UUID) -> Job:
    (found,) = [job for job in driver.claim(1000) if job.job_id == job_id]
    return found


def row(connection: Connection, group_id: UUID) -> tuple[int, int, int, int, bool, bool]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT members, succeeded, failed, cancelled, finished_at IS NOT NULL, stopped_at IS NOT NULL"
            " FROM rythmiq.groups WHERE group_id = %s",
            (str(group_id),),
        )
        found = cursor.fetchone()
    assert found is not None
    return found  # type: ignore[return-value]


def test_the_end_of_a_job_releases_what_waits_for_it_alone(connection: Connection, driver: Queue) -> None:
    first, other = enqueue_many(connection, [new(), new()])
    both, one = enqueue_many(connection, [new(after=(first, other)), new(after=(first,), after_ended=(other,))])
    assert waiting(connection, both) == (JobState.BLOCKED, 2)
    jobs = {job.job_id: job for job in driver.claim(10)}
    assert set(jobs) == {first, other}, "what waits is not claimed"
    end(driver, jobs[first])
    assert waiting(connection, both) == (JobState.BLOCKED, 1)
    end(driver, jobs[other], JobState.FAILED)
    assert waiting(connection, one) == (JobState.QUEUED, 0)
    failed = inspect.job(connection, both)
    assert (failed.state, failed.error_code) == (JobState.CANCELLED, "dependency_failed")
    assert str(other) in (failed.error_message or "")


def test_what_ended_before_counts_at_once(connection: Connection, driver: Queue) -> None:
    good, bad = enqueue_many(connection, [new(), new()])
    jobs = {job.job_id: job for job in driver.claim(10)}
    end(driver, jobs[good])
    end(driver, jobs[bad], JobState.FAILED)
    assert states(
        connection, enqueue_many(connection, [new(after=(good,)), new(after=(bad,)), new(after_ended=(bad,))])
    ) == [
        JobState.QUEUED,
        JobState.CANCELLED,
        JobState.QUEUED,
    ]


def test_a_failure_goes_down_the_whole_chain_and_a_retry_brings_it_back(connection: Connection, driver: Queue) -> None:
    chain = [enqueue(connection, TRUE)]
    for _ in range(300):
        chain.append(enqueue(connection, TRUE, after=[chain[-1]]))
    end(driver, claim(driver, chain[0]), JobState.FAILED)
    assert set(states(connection, chain[1:])) == {JobState.CANCELLED}
    assert inspect.retry(connection, [chain[5]]) == set(), "what it needs can never come"
    assert inspect.retry(connection, [chain[0]], downstream=True) == set(chain)
    assert states(connection, chain[:3]) == [JobState.RETRYING, JobState.BLOCKED, JobState.BLOCKED]
    for job_id in chain:
        end(driver, claim(driver, job_id))
    assert set(states(connection, chain)) == {JobState.SUCCEEDED}


def test_two_that_end_the_last_members_at_once_release_what_waits(
    connection: Connection, driver: Queue, database_url: str
) -> None:
    group_id, members = enqueue_group(connection, NewGroup(name="two"), [new(), new()])
    last = enqueue(connection, TRUE, after=[group_id])
    with closing(psycopg2.connect(database_url)) as first, closing(psycopg2.connect(database_url)) as second:
        sql = "UPDATE rythmiq.jobs SET state = 'SUCCEEDED', phase = NULL, finished_at = now() WHERE job_id = %s"
        driver.claim(10)
        first.cursor().execute(sql, (str(members[0]),))
        ended = threading.Thread(target=lambda: (second.cursor().execute(sql, (str(members[1]),)), second.commit()))
        ended.start()
        ended.join(0.3)
        first.commit()
        ended.join(10)
    assert row(connection, group_id) == (2, 2, 0, 0, True, False)
    assert waiting(connection, last) == (JobState.QUEUED, 0)


def test_a_session_that_holds_a_group_or_a_dependent_keeps_no_job_from_ending(
    connection: Connection, driver: Queue, database_url: str
) -> None:
    group_id, members = enqueue_group(connection, NewGroup(), [new()])
    first = enqueue(connection, TRUE)
    behind_group, behind_job = enqueue_many(connection, [new(after=(group_id,)), new(after=(first,))])
    jobs = {job.job_id: job for job in driver.claim(10)}
    with closing(psycopg2.connect(database_url)) as holder:
        holder.cursor().execute("SELECT FROM rythmiq.groups FOR UPDATE")
        holder.cursor().execute("SELECT FROM rythmiq.jobs WHERE job_id = %s FOR UPDATE", (str(behind_job),))
        end(driver, jobs[members[0]])
        end(driver, jobs[first])
        driver.settle_left(10)
        assert states(connection, [behind_group, behind_job]) == [JobState.BLOCKED] * 2
        holder.rollback()
    while driver.settle_left(10).handled:
        pass
    assert states(connection, [behind_group, behind_job]) == [JobState.QUEUED] * 2
    assert row(connection, group_id) == (1, 1, 0, 0, True, False)


def test_a_job_that_ends_while_its_dependent_is_enqueued_is_not_missed(
    connection: Connection, driver: Queue, database_url: str
) -> None:
    first = enqueue(connection, TRUE)
    job = claim(driver, first)
    with closing(psycopg2.connect(database_url)) as caller:
        behind = enqueue(caller, TRUE, after=[first])
        end(driver, job)
        caller.commit()
    assert waiting(connection, behind) == (JobState.BLOCKED, 1)
    driver.settle_left(10)
    assert waiting(connection, behind) == (JobState.QUEUED, 0)


def test_only_so_many_members_may_run_at_once(connection: Connection, driver: Queue) -> None:
    group_id, members = enqueue_group(connection, NewGroup(max_parallel=2), [new() for _ in range(5)])
    first = driver.claim(10)
    assert [job.job_id for job in first] == members[:2]
    end(driver, first[0])
    (third,) = driver.claim(10)
    assert third.job_id == members[2]
    assert inspect.cancel(connection, ids=[members[3]]) == {members[3]: JobState.CANCELLED}
    end(driver, first[1], JobState.FAILED)
    (fifth,) = driver.claim(10)
    assert fifth.job_id == members[4]
    assert inspect.retry(connection, [members[1], members[3]]) == {members[1], members[3]}
    assert driver.claim(10) == [], "a retried member waits for a place like any other"
    end(driver, third)
    (again,) = driver.claim(10)
    assert (again.job_id, again.attempt) == (members[1], 2)
    for job in (fifth, again):
        end(driver, job)
    end(driver, claim(driver, members[3]))
    assert row(connection, group_id) == (5, 5, 0, 0, True, False)


def test_a_group_stops_after_failures(connection: Connection, driver: Queue) -> None:
    group_id, members = enqueue_group(connection, NewGroup(stop_after_failures=2), [new() for _ in range(6)])
    behind = enqueue(connection, TRUE, after=[group_id])
    jobs = driver.claim(4)
    end(driver, jobs[0], JobState.FAILED)
    assert not row(connection, group_id)[5]
    end(driver, jobs[1], JobState.FAILED)
    assert states(connection, members) == [JobState.FAILED] * 2 + [JobState.RUNNING] * 2 + [JobState.CANCELLED] * 2
    assert driver.cancel_requests() == set(members[2:4])
    for job in jobs[2:]:
        end(driver, job, JobState.CANCELLED)
    assert row(connection, group_id) == (6, 0, 2, 4, True, True)
    assert inspect.job(connection, behind).error_code == "dependency_failed"
    assert len(inspect.retry(connection, members, downstream=True)) == 7
    assert waiting(connection, behind) == (JobState.BLOCKED, 1)
    assert row(connection, group_id) == (6, 0, 0, 0, False, False)


def test_what_is_being_claimed_while_its_group_stops_is_cancelled_after(
    connection: Connection, driver: Queue, database_url: str
) -> None:
    _, members = enqueue_group(connection, NewGroup(stop_after_failures=1), [new() for _ in range(3)])
    (first,) = driver.claim(1)
    with closing(psycopg2.connect(database_url)) as other:
        other.cursor().execute("SELECT FROM rythmiq.jobs WHERE job_id = %s FOR UPDATE", (str(members[1]),))
        end(driver, first, JobState.FAILED)
        assert states(connection, members[1:]) == [JobState.QUEUED, JobState.CANCELLED]
        other.rollback()
    assert driver.settle_left(10).handled == 1
    assert states(connection, members[1:]) == [JobState.CANCELLED] * 2
    assert inspect.retry(connection, [members[1]]) == {members[1]}
    assert [job.job_id for job in driver.claim(10)] == [members[1]], "who asks for it by name gets it"


def test_circles_are_refused(connection: Connection, driver: Queue) -> None:
    with pytest.raises(InvalidJob, match=r"b waits for a|a waits for b"):
        enqueue_many(connection, [new("a", after=("b",)), new("b", after=("a",))])
    with pytest.raises(InvalidJob, match="circle"):
        enqueue_many(connection, [new("a", after=("a",))])
    with pytest.raises(InvalidJob, match="group tiles"):
        enqueue_many(connection, [new(group="tiles"), new(group="tiles", after=("tiles",))])
    one, _ = enqueue_group(connection, NewGroup(name="one"), [new()])
    two, _ = enqueue_group(connection, NewGroup(name="two"), [new(after=(one,))])
    with pytest.raises(InvalidJob, match="circle"):
        enqueue(connection, TRUE, group=one, after=[two])
    assert row(connection, one)[0] == 1
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM rythmiq.groups")
        assert cursor.fetchone() == (2,), "what is refused leaves no group without members"


def test_names_join_groups_and_find_their_members(connection: Connection, driver: Queue) -> None:
    tiles = [new(f"tile-{at}", group="tiles", labels={"kind": "tile"}, params={"AT": str(at)}) for at in range(3)]
    *members, whole = enqueue_many(connection, [*tiles, new("whole", after=("tiles",))])
    group_id = inspect.job(connection, members[0]).group_id
    assert group_id is not None
    late = enqueue(connection, TRUE, group="tiles", name="late", after=["tile-1"])
    job = inspect.job(connection, late)
    assert (job.group_id, job.group_index, job.waits_for) == (group_id, 3, 1)
    first = inspect.job(connection, members[1])
    assert (first.name, first.labels, first.params, first.group_index) == ("tile-1", {"kind": "tile"}, {"AT": "1"}, 1)
    assert first.spec.env == {"AT": "1"}
    assert first.enqueued_by
    with pytest.raises(InvalidJob, match="there is no job or group 'tile-9'"):
        enqueue(connection, TRUE, group="tiles", after=["tile-9"])
    with pytest.raises(InvalidJob, match="there is no group"):
        enqueue(connection, TRUE, group=uuid4())
    for member in driver.claim(10):
        end(driver, member)
    end(driver, claim(driver, late))
    assert waiting(connection, whole) == (JobState.QUEUED, 0)
    assert inspect.job(connection, enqueue(connection, TRUE, group="tiles")).group_id != group_id, "that one has ended"


def test_a_row_deleted_by_hand_counts_as_cancelled(connection: Connection, driver: Queue) -> None:
    group_id, members = enqueue_group(connection, NewGroup(), [new(), new()])
    behind, whatever = enqueue_many(connection, [new(after=(members[0],)), new(after_ended=(members[0],))])
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM rythmiq.jobs WHERE job_id = %s", (str(members[0]),))
    assert states(connection, [behind, whatever]) == [JobState.CANCELLED, JobState.QUEUED]
    assert row(connection, group_id) == (1, 0, 0, 0, False, False)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM rythmiq.jobs WHERE group_id = %s", (str(group_id),))
        cursor.execute("SELECT count(*) FROM rythmiq.groups")
        assert cursor.fetchone() == (0,), "a group goes with its last member"


def test_a_unique_key_is_held_by_what_waits_too(connection: Connection, driver: Queue) -> None:
    first = enqueue(connection, TRUE)
    behind = enqueue(connection, TRUE, after=[first], unique_key="nightly")
    assert enqueue(connection, TRUE, unique_key="nightly", after=[first]) == behind
    assert waiting(connection, behind) == (JobState.BLOCKED, 1)
    first_of_two, second = enqueue_many(connection, [new(unique_key="k"), new(unique_key="k", after=(first,))])
    assert first_of_two == second


def test_each_end_is_told(connection: Connection, driver: Queue, database_url: str) -> None:
    first = enqueue(connection, TRUE)
    behind = enqueue(connection, TRUE, after=[first])
    with closing(psycopg2.connect(database_url)) as listener:
        listener.autocommit = True
        listener.cursor().execute("LISTEN rythmiq_events")
        end(driver, claim(driver, first), JobState.FAILED)
        listener.cursor().execute("SELECT 1")
        listener.poll()
        told = {notify.payload for notify in listener.notifies}
    assert told == {
        f'{{"job_id" : "{first}", "state" : "FAILED"}}',
        f'{{"job_id" : "{behind}", "state" : "CANCELLED"}}',
    }


def test_a_group_stops_also_where_another_session_held_it_when_the_last_failure_came(
    connection: Connection, driver: Queue, database_url: str
) -> None:
    group_id, members = enqueue_group(connection, NewGroup(stop_after_failures=1), [new() for _ in range(3)])
    (first,) = driver.claim(1)
    with closing(psycopg2.connect(database_url)) as holder:
        holder.cursor().execute("SELECT FROM rythmiq.groups FOR UPDATE")
        end(driver, first, JobState.FAILED)
        holder.rollback()
    while driver.settle_left(10).handled:
        pass
    assert states(connection, members[1:]) == [JobState.CANCELLED] * 2
    assert row(connection, group_id) == (3, 0, 1, 2, True, True)


@pytest.mark.parametrize("path", ["python", "sql"])
def test_two_who_add_to_a_group_at_once_give_their_members_places_of_their_own(
    connection: Connection, database_url: str, path: str
) -> None:
    group_id, _ = enqueue_group(connection, NewGroup(), [new()])

    def add(session: Connection) -> None:
        put(session, path, group=str(group_id))

    with closing(psycopg2.connect(database_url)) as one, closing(psycopg2.connect(database_url)) as two:
        add(one)
        other = threading.Thread(target=lambda: (add(two), two.commit()))
        other.start()
        with connection.cursor() as cursor:
            while True:
                cursor.execute("SELECT FROM pg_locks WHERE NOT granted AND pid = %s", [two.info.backend_pid])
                if cursor.rowcount:
                    break
        one.commit()
        other.join(30)
    assert sorted(job.group_index for job in listing.jobs(connection)) == [0, 1, 2]


def test_a_group_without_new_members_is_refused(connection: Connection, database_url: str) -> None:
    enqueue(connection, TRUE, unique_key="kk")
    keyed = [new(unique_key="kk")]
    with pytest.raises(InvalidJob, match="unfinished jobs hold their unique keys"):
        enqueue_group(connection, NewGroup(name="none"), keyed)
    with pytest.raises(InvalidJob, match="they name other groups"):
        enqueue_group(connection, NewGroup(name="none"), [new(group="another")])
    with pytest.raises(InvalidJob, match="several jobs of the group have the same"):
        enqueue_group(connection, NewGroup(name="none"), [new(unique_key="one"), new(unique_key="one")])
    enqueue(connection, TRUE, group="named", unique_key="kk")
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM rythmiq.groups")
        assert cursor.fetchone() == (0,)


@pytest.mark.parametrize("path", ["python", "sql"])
def test_a_key_that_is_taken_meanwhile_leaves_no_group_without_members(
    connection: Connection, database_url: str, path: str
) -> None:
    caught: list[Exception] = []

    def add(session: Connection) -> None:
        try:
            put(session, path, group="fresh", unique_key="kk")
        except psycopg2.errors.SerializationFailure as error:
            caught.append(error)
        session.commit()

    with closing(psycopg2.connect(database_url)) as one, closing(psycopg2.connect(database_url)) as two:
        enqueue(one, TRUE, unique_key="kk")
        other = threading.Thread(target=add, args=[two])
        other.start()
        with connection.cursor() as cursor:
            while True:
                cursor.execute("SELECT FROM pg_locks WHERE NOT granted AND pid = %s", [two.info.backend_pid])
                if cursor.rowcount:
                    break
        one.commit()
        other.join(30)
    assert len(caught) == (path == "sql"), "which cannot begin again by itself"
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM rythmiq.groups WHERE members = 0")
        assert cursor.fetchone() == (0,)


def test_where_a_key_is_held_nothing_else_of_the_job_is_looked_at(connection: Connection, driver: Queue) -> None:
    source = enqueue(connection, TRUE)
    first = enqueue(connection, TRUE, unique_key="kk", name="held", group="g", after=[source])
    end(driver, claim(driver, source))
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM rythmiq.jobs WHERE job_id = %s", (str(source),))
    stored = JobSpec(command="true", inputs=(Input(uri=f"job:{source}/*", name="./"),))
    assert enqueue(connection, stored, unique_key="kk", group=uuid4(), after=[source]) == first
    again, behind = enqueue_many(
        connection, [new("held", unique_key="kk", group="g", after=(source,)), new(group="g", after=("held",))]
    )
    assert again == first
    assert inspect.job(connection, behind).waits_for == 1, "what holds the key is still found by the name"
    with pytest.raises(InvalidJob, match="there is no job or group 'held'"):
        enqueue_many(connection, [new("held", unique_key="kk", group="another"), new(after=("held",))])


@pytest.mark.parametrize("path", ["python", "sql"])
def test_a_circle_that_a_retry_would_close_is_refused(connection: Connection, driver: Queue, path: str) -> None:
    one, (first,) = enqueue_group(connection, NewGroup(name="one"), [new()])
    two, _ = enqueue_group(connection, NewGroup(name="two"), [new(after=(one,))])
    end(driver, claim(driver, first), JobState.FAILED)
    with pytest.raises((InvalidJob, psycopg2.errors.InvalidParameterValue), match="circle"):
        put(connection, path, group=str(one), after=[str(two)])


def test_who_adds_what_waits_for_no_group_waits_for_nobody(connection: Connection, database_url: str) -> None:
    group_id, (first,) = enqueue_group(connection, NewGroup(), [new()])
    other, _ = enqueue_group(connection, NewGroup(), [new()])
    with closing(psycopg2.connect(database_url)) as holder, connection.cursor() as cursor:
        holder.cursor().execute("SELECT pg_advisory_xact_lock(hashtextextended('rythmiq.graph', 0))")
        cursor.execute("SET lock_timeout = '500ms'")
        for path in ("python", "sql"):
            put(connection, path, group=str(group_id), after=[str(first)])
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            enqueue(connection, TRUE, group=group_id, after=[other])
