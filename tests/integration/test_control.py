"""Limits, turns, pauses, budgets and costs: what holds for all drivers together."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.extensions
import pytest

from rythmiq_ray import cli
from rythmiq_ray.errors import ErrorCode, InvalidJob, NotFound
from rythmiq_ray.model import ErrorInfo, JobSpec, JobState, NewGroup, NewJob, Phase
from rythmiq_ray.queue import Ending, Progress, Queue, control, enqueue_group, enqueue_many, inspect, listing
from rythmiq_ray.queue.control import Scope
from rythmiq_ray.secret import Secret

Connection = psycopg2.extensions.connection
TRUE = JobSpec(command="true")
ACCOUNT = Scope("account")


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    opened = psycopg2.connect(database_url)
    opened.autocommit = True
    yield opened
    opened.close()


@pytest.fixture
def driver(database_url: str) -> Iterator[Queue]:
    queue = new_driver(database_url)
    yield queue
    queue.close()


def new_driver(database_url: str, **options: Any) -> Queue:
    queue = Queue(Secret(database_url), lease_s=30, **options)
    queue.register()
    return queue


def put(connection: Connection, count: int, **fields: Any) -> list[UUID]:
    return enqueue_many(connection, [NewJob(spec=TRUE, **fields) for _ in range(count)])


def end(driver: Queue, jobs: list[Any], *, state: JobState = JobState.SUCCEEDED, credits_: float | None = None) -> None:
    driver.finish([Ending(job_id=job.job_id, attempt=job.attempt, state=state, cost_credits=credits_) for job in jobs])


def users(jobs: list[Any]) -> Counter[str | None]:
    return Counter(job.user_id for job in jobs)


# ------------------------------------------------------------------------------------------------------------- limits


def test_each_scope_has_no_more_running_than_its_limit(connection: Connection, driver: Queue) -> None:
    put(connection, 10, user_id="ann", queue="gpu")
    put(connection, 10, user_id="bob")
    group_id, _ = enqueue_group(connection, NewGroup(name="sweep"), [NewJob(spec=TRUE) for _ in range(10)])
    control.set_limit(connection, Scope("queue", "gpu"), max_running=3)
    control.set_limit(connection, Scope("user", "bob"), max_running=4)
    control.set_limit(connection, Scope("group", str(group_id)), max_running=2)
    jobs = driver.claim(100)
    assert users(jobs) == {"ann": 3, "bob": 4, None: 2}
    assert driver.claim(100) == []
    end(driver, [job for job in jobs if job.user_id == "ann"][:1])
    end(driver, [job for job in jobs if job.group_id == group_id][:1])
    assert users(driver.claim(100)) == {"ann": 1, None: 1}
    control.set_limit(connection, ACCOUNT, max_running=11)
    control.unset_limit(connection, Scope("user", "bob"))
    control.unset_limit(connection, Scope("group", str(group_id)))
    assert len(driver.claim(100)) == 2
    control.unset_limit(connection, ACCOUNT)
    driver.claim(100)
    assert {job.state for job in listing.jobs(connection, limit=100) if job.user_id != "ann"} <= {
        JobState.RUNNING,
        JobState.SUCCEEDED,
    }
    with pytest.raises(NotFound):
        control.unset_limit(connection, ACCOUNT)


def test_a_limit_is_of_all_lanes_together(connection: Connection, driver: Queue) -> None:
    for queue in ("gpu", "cpu"):
        for user in ("ann", "bob"):
            put(connection, 10, user_id=user, queue=queue)
    put(connection, 10, user_id="eve", queue="cpu", priority=5)
    control.set_limit(connection, Scope("queue", "gpu"), max_running=3)
    control.set_limit(connection, Scope("user", "ann"), max_running=4)
    jobs = driver.claim(100)
    assert Counter(job.queue for job in jobs)["gpu"] == 3, "of both users"
    assert users(jobs)["ann"] <= 4, "in both queues"
    assert users(jobs)["eve"] == 10
    assert sum(users(jobs + driver.claim(100)).values()) == 10 + 3 + 10 + 4 - sum(
        job.queue == "gpu" and job.user_id == "ann" for job in jobs
    )


def test_each_user_has_a_limit_and_one_may_have_another(connection: Connection, driver: Queue) -> None:
    for user in ("ann", "bob", "eve"):
        put(connection, 10, user_id=user)
    control.set_limit(connection, Scope("user", "*"), max_running=2)
    control.set_limit(connection, Scope("user", "eve"), max_running=5)
    assert users(driver.claim(100)) == {"ann": 2, "bob": 2, "eve": 5}
    assert driver.claim(100) == []


def test_drivers_that_claim_at_once_and_die_never_pass_the_limits_together(
    connection: Connection, database_url: str
) -> None:
    put(connection, 200, user_id="ann")
    put(connection, 200, user_id="bob", queue="gpu")
    control.set_limit(connection, Scope("queue", "gpu"), max_running=5)
    control.set_limit(connection, Scope("user", "*"), max_running=7)
    most: Counter[str] = Counter()
    done = threading.Event()

    def work(number: int) -> None:
        for _ in range(15):
            queue = new_driver(database_url)
            jobs = queue.claim(10, account=11)
            if number:  # the other one dies with what it has
                end(queue, jobs)
            else:
                queue.resign()
                other = new_driver(database_url)
                end(other, [adopted.job for adopted in other.adopt(100)])
                other.close()
            queue.close()

    def watch() -> None:
        with psycopg2.connect(database_url) as session:
            session.autocommit = True
            cursor = session.cursor()
            while not done.is_set():
                cursor.execute(
                    "SELECT coalesce(user_id, ''), count(*) FROM rythmiq.jobs WHERE state = 'RUNNING' GROUP BY 1"
                )
                found = dict(cursor.fetchall())
                for name, count in (found | {"all": sum(found.values())}).items():
                    most[name] = max(most[name], count)

    watcher = threading.Thread(target=watch)
    watcher.start()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    assert most["bob"] <= 5
    assert most["ann"] <= 7
    assert most["all"] <= 11
    assert most["all"] >= 5, "the test has seen something"


def test_no_more_attempts_begin_in_a_minute_than_the_limit(connection: Connection, driver: Queue) -> None:
    put(connection, 20, user_id="ann")
    control.set_limit(connection, Scope("user", "ann"), per_minute=4)
    driver.now = datetime.now(UTC) + timedelta(seconds=1)
    jobs = driver.claim(100)
    end(driver, jobs)
    assert len(jobs) == 4
    driver.now += timedelta(seconds=25)
    assert driver.claim(100) == []
    connection.cursor().execute("UPDATE rythmiq.drivers SET lease_expires_at = now() + interval '1 hour'")
    driver.now += timedelta(seconds=36)
    assert len(driver.claim(100)) == 4


def test_the_account_of_the_configuration_holds_for_all_drivers(connection: Connection, database_url: str) -> None:
    put(connection, 20)
    drivers = [new_driver(database_url) for _ in range(3)]
    assert [len(driver.claim(5, account=12)) for driver in drivers] == [5, 5, 2]
    control.set_limit(connection, ACCOUNT, max_running=15)
    assert sum(len(driver.claim(5, account=12)) for driver in drivers) == 3
    for each in drivers:
        each.close()


def test_what_one_driver_finds_of_the_account_the_others_have(database_url: str) -> None:
    first, second = new_driver(database_url), new_driver(database_url)
    assert first.adjust_account(first=16, grown=0, share=None, sent_age_s=0)[0] == 16
    assert second.adjust_account(first=16, grown=4, share=None, sent_age_s=0)[0] == 20
    assert first.adjust_account(first=16, grown=0, share=0.5, sent_age_s=1)[0] == 10
    found, lowered_s, _ = second.adjust_account(first=16, grown=0, share=0.5, sent_age_s=60)
    assert found == 10, "one burst of refusals is one sign, whoever of them met it"
    assert lowered_s < 60
    first.close()
    second.close()


def test_a_group_begins_no_more_in_a_minute_than_its_limit_however_many_run(
    connection: Connection, driver: Queue
) -> None:
    group_id, _ = enqueue_group(connection, NewGroup(name="sweep"), [NewJob(spec=TRUE) for _ in range(9)])
    control.set_limit(connection, Scope("group", str(group_id)), per_minute=2)
    driver.now = datetime.now(UTC) + timedelta(seconds=1)
    assert [len(driver.claim(100)), len(driver.claim(100))] == [2, 0]
    connection.cursor().execute("UPDATE rythmiq.drivers SET lease_expires_at = now() + interval '1 hour'")
    driver.now += timedelta(seconds=61)
    assert len(driver.claim(100)) == 2, "while the first two still run"


def test_no_job_is_of_the_user_who_stands_for_each(connection: Connection) -> None:
    with pytest.raises(InvalidJob):
        put(connection, 1, user_id="*")
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match="user_id: must not be"):
        connection.cursor().execute("""SELECT rythmiq.enqueue('{"command": "true", "user_id": "*"}')""")
    with pytest.raises(psycopg2.errors.CheckViolation):
        connection.cursor().execute("INSERT INTO rythmiq.jobs (spec, user_id) VALUES ('{}', '*')")


def test_a_groups_id_may_be_written_in_capitals(connection: Connection, driver: Queue) -> None:
    group_id, _ = enqueue_group(connection, NewGroup(), [NewJob(spec=TRUE)])
    scope = Scope("group", str(group_id).upper())
    control.pause(connection, scope)
    control.set_limit(connection, scope, max_running=1)
    control.set_budget(connection, scope, 1.0, "day")
    assert {limit.name for limit in control.limits(connection)} == {str(group_id)}
    assert driver.claim(1) == []
    control.unset_budget(connection, scope)
    control.resume(connection, scope)
    control.unset_limit(connection, scope)
    assert control.limits(connection) == []
    assert len(driver.claim(1)) == 1


def test_one_burst_is_one_sign_also_for_whoever_waited_for_the_other(connection: Connection, database_url: str) -> None:
    first, second = new_driver(database_url), new_driver(database_url)
    first.adjust_account(first=16, grown=0, share=None, sent_age_s=0)
    holder = psycopg2.connect(database_url)
    holder.cursor().execute("SELECT FROM rythmiq.adjust_account(16, 0, 0.5, 5)")
    found: list[float] = []
    thread = threading.Thread(
        target=lambda: found.append(second.adjust_account(first=16, grown=0, share=0.5, sent_age_s=5)[0])
    )
    thread.start()
    cursor = connection.cursor()
    waits = None
    while not waits and thread.is_alive():
        cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%adjust%'")
        (waits,) = cursor.fetchone() or (0,)
    holder.commit()
    thread.join()
    assert found == [8.0]
    holder.close()
    first.close()
    second.close()


def test_a_row_that_somebody_holds_stops_no_driver(connection: Connection, database_url: str) -> None:
    group_id, _ = enqueue_group(connection, NewGroup(), [NewJob(spec=TRUE) for _ in range(3)])
    driver = new_driver(database_url, statement_timeout_s=8.0)
    driver.adjust_account(first=16, grown=0, share=None, sent_age_s=0)
    control.set_budget(connection, Scope("group", str(group_id)), 1.0, "all")
    end(driver, driver.claim(1), credits_=2.0)
    holder = psycopg2.connect(database_url)
    holder.cursor().execute("SELECT FROM rythmiq.groups FOR UPDATE")
    driver.control_state([])
    assert driver.control_state([]).unsettled, "the group's places are for later"
    assert driver.claim(1) == [], "the budget holds all the same"
    holder.cursor().execute("SELECT FROM rythmiq.account FOR UPDATE")
    assert driver.adjust_account(first=16, grown=1, share=None, sent_age_s=0)[0] == 16
    holder.rollback()
    holder.close()
    assert driver.settle_left(10).handled > 0
    assert {job.state for job in listing.jobs(connection)} == {JobState.SUCCEEDED, JobState.BLOCKED}
    control.unset_budget(connection, Scope("group", str(group_id)))
    assert len(driver.claim(5)) == 2
    driver.close()


# -------------------------------------------------------------------------------------------------------------- turns


def test_what_is_delayed_keeps_nothing_else_from_being_claimed(connection: Connection, driver: Queue) -> None:
    enqueue_many(connection, [NewJob(spec=TRUE, user_id=f"u{n:03}", delay=86400.0) for n in range(300)])
    enqueue_many(connection, [NewJob(spec=TRUE, priority=n + 1, delay=86400.0) for n in range(150)])
    put(connection, 5, user_id="zed")
    assert users(driver.claim(20)) == {"zed": 5}


def test_a_group_without_room_keeps_nothing_else_of_its_user_from_being_claimed(
    connection: Connection, driver: Queue
) -> None:
    group_id, _ = enqueue_group(connection, NewGroup(), [NewJob(spec=TRUE, user_id="ann") for _ in range(30)])
    jobs = driver.claim(20)
    control.pause(connection, Scope("group", str(group_id)))
    driver.finish(
        Ending(job_id=job.job_id, attempt=1, state=JobState.FAILED, retry_delay_s=0.0) for job in jobs
    )  # They are RETRYING, and before all others of their user.
    put(connection, 5, user_id="ann")
    assert Counter(job.group_id for job in driver.claim(10)) == {None: 5}
    control.resume(connection, Scope("group", str(group_id)))
    control.set_limit(connection, Scope("group", str(group_id)), per_minute=22)
    put(connection, 5, user_id="ann")
    found = Counter(job.group_id for _ in range(2) for job in driver.claim(10))
    assert found == {group_id: 2, None: 5}, "20 of its members were begun within the minute"


def test_users_take_turns_whatever_their_backlogs(connection: Connection, driver: Queue) -> None:
    put(connection, 3000, user_id="many")
    driver.claim(20)
    put(connection, 5, user_id="few")
    put(connection, 5)
    assert users(driver.claim(10)) == {"few": 5, None: 5}, "who has fewest running goes first"
    assert users(driver.claim(10)) == {"many": 10}


def test_very_many_users_all_have_their_turn(connection: Connection, driver: Queue) -> None:
    connection.cursor().execute(
        """INSERT INTO rythmiq.jobs (spec, user_id, queue) SELECT '{"command": "true"}', 'u' || n, 'q' || n %% 7
           FROM generate_series(1, 3000) AS n, generate_series(1, 2)""",
        (),
    )
    seen: set[str | None] = set()
    for _ in range(15):
        seen |= {job.user_id for job in driver.claim(200)}
    assert len(seen) > 2000, "by lot it would be 1,900"


def test_a_short_lane_beside_a_long_one_leaves_no_place_free(connection: Connection, driver: Queue) -> None:
    for number in range(30):
        put(connection, 1, user_id=f"u{number}")
    put(connection, 200, user_id="many")
    assert len(driver.claim(100)) == 100


def test_priority_goes_first_until_others_have_waited_for_long(connection: Connection, database_url: str) -> None:
    old, older, fresh = put(connection, 1)[0], put(connection, 1, priority=-5)[0], put(connection, 1, priority=9)[0]
    cursor = connection.cursor()

    def order(age_s: float | None) -> list[UUID]:
        driver = new_driver(database_url, age_s=age_s)
        jobs = [job.job_id for _ in range(3) for job in driver.claim(1)]
        cursor.execute("UPDATE rythmiq.jobs SET state = 'QUEUED', phase = NULL")
        driver.close()
        return jobs

    wait = "UPDATE rythmiq.jobs SET next_visible_at = now() - make_interval(mins => %s) WHERE job_id = %s"
    cursor.execute(wait, (70, str(old)))
    cursor.execute(wait, (130, str(older)))
    assert order(None) == [fresh, old, older]
    assert order(3600.0) == [older, old, fresh], "of one step the oldest goes first"
    cursor.execute(wait, (70, str(older)))
    assert order(3600.0)[0] == old, "one step is one priority that others wait with"


# -------------------------------------------------------------------------------------------------------------- pauses


@pytest.mark.parametrize("kind", ["account", "queue", "user", "group"])
def test_a_paused_scope_begins_nothing_and_goes_on_after(connection: Connection, driver: Queue, kind: str) -> None:
    group_id, members = enqueue_group(
        connection, NewGroup(), [NewJob(spec=TRUE, user_id="ann", queue="gpu") for _ in range(6)]
    )
    put(connection, 2, user_id="bob")
    scope = Scope(kind, {"account": "", "queue": "gpu", "user": "ann", "group": str(group_id)}[kind])
    running = [job for job in driver.claim(1) if job.job_id in members] or driver.claim(2)
    assert control.pause(connection, scope, reason="a move", cancel_running=True) >= 1
    assert driver.cancel_requests()
    (found,) = [limit for limit in control.limits(connection) if limit.paused]
    assert (found.scope, found.reason, found.set_by) == (kind, "a move", "postgres")
    assert not {job.job_id for job in driver.claim(100)} & set(members)
    assert members[-1] in driver.control_state([running[0].job_id, members[-1]]).closed
    enqueue_many(connection, [NewJob(spec=TRUE, user_id="ann", queue="gpu", group=group_id)])
    assert not [job for job in driver.claim(100) if job.user_id == "ann"]
    control.resume(connection, scope)
    assert len([job for job in driver.claim(100) if job.user_id == "ann"]) >= 6
    assert control.limits(connection) == []
    with pytest.raises(NotFound):
        control.resume(connection, scope)


def test_members_that_become_ready_while_their_group_is_paused_wait_for_it(
    connection: Connection, driver: Queue
) -> None:
    (first,) = put(connection, 1)
    group_id, (member,) = enqueue_group(connection, NewGroup(), [NewJob(spec=TRUE, after=(first,))])
    control.pause(connection, Scope("group", str(group_id)))
    end(driver, driver.claim(1))
    assert driver.claim(10) == []
    assert inspect.job(connection, member).state is JobState.BLOCKED
    control.resume(connection, Scope("group", str(group_id)))
    assert [job.job_id for job in driver.claim(10)] == [member]


def test_what_somebody_held_when_its_scope_was_paused_is_cancelled_after(
    connection: Connection, driver: Queue, database_url: str
) -> None:
    put(connection, 2)
    jobs = driver.claim(2)
    holder = psycopg2.connect(database_url)
    holder.cursor().execute("SELECT FROM rythmiq.jobs WHERE job_id = %s FOR UPDATE", (str(jobs[0].job_id),))
    assert control.pause(connection, ACCOUNT, cancel_running=True) == 1
    holder.rollback()
    holder.close()
    driver.control_state([])
    assert driver.cancel_requests() == {job.job_id for job in jobs}
    control.resume(connection, ACCOUNT)
    control.pause(connection, ACCOUNT)
    assert not control.limits(connection)[0].cancel_running


# ------------------------------------------------------------------------------------------------------ budgets, costs


def test_a_budget_that_is_reached_stops_new_work_and_says_so(
    connection: Connection, driver: Queue, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    put(connection, 4, user_id="ann")
    control.set_budget(connection, Scope("user", "*"), 1.0, "day", cancel_running=True)
    jobs = driver.claim(2)
    end(driver, jobs[:1], credits_=0.6)
    assert not driver.control_state([]).draining
    assert len(driver.claim(1)) == 1
    end(driver, jobs[1:], credits_=0.4)
    driver.control_state([])
    assert driver.claim(10) == []
    assert len(driver.cancel_requests()) == 1
    monkeypatch.setenv("DATABASE_URL", database_url)
    waiting = next(str(job.job_id) for job in listing.jobs(connection) if job.state is JobState.QUEUED)
    assert cli.run(["why", waiting, "--json"]) == 0
    reasons = {item["reason"]: item["message"] for item in json.loads(capsys.readouterr().out)["items"]}
    assert "1.00 of 1.00 credits" in reasons["budget"]
    control.set_budget(connection, Scope("user", "*"), 5.0, "day")
    assert len(driver.claim(10)) == 1
    with pytest.raises(InvalidJob):
        control.set_budget(connection, ACCOUNT, -1.0, "day")


def test_what_runs_counts_by_its_time(connection: Connection, driver: Queue) -> None:
    put(connection, 2, queue="gpu")
    control.set_budget(connection, Scope("queue", "gpu"), 3.0, "day")
    (job,) = driver.claim(1)
    driver.advance([Progress(job_id=job.job_id, attempt=1, phase=Phase.WAITING, remote_id=7, credits_per_hour=2.0)])
    connection.cursor().execute("UPDATE rythmiq.jobs SET running_at = now() - interval '1 hour' WHERE remote_id = 7")
    driver.control_state([])
    (budget,) = control.limits(connection)
    assert budget.spent == pytest.approx(2.0, abs=0.01)
    connection.cursor().execute("UPDATE rythmiq.jobs SET running_at = now() - interval '2 hours' WHERE remote_id = 7")
    driver.control_state([])
    assert driver.claim(1) == []
    (spent,) = control.cost(connection, by="queue")
    assert (spent.key, spent.jobs, spent.running_credits) == ("gpu", 1, pytest.approx(4.0, abs=0.01))


def test_costs_are_exact_by_everything_and_outlive_the_jobs(connection: Connection, driver: Queue) -> None:
    put(connection, 3, user_id="ann", labels={"project": "a"})
    put(connection, 2, user_id="bob", queue="gpu", labels={"project": "b"})
    enqueue_group(connection, NewGroup(name="sweep"), [NewJob(spec=TRUE, user_id="bob")])
    end(driver, driver.claim(100), credits_=0.25)
    connection.cursor().execute("DELETE FROM rythmiq.jobs")

    def sums(**asked: Any) -> dict[str | None, float]:
        return {each.key: each.credits for each in control.cost(connection, **asked)}

    today = datetime.now(UTC).date()
    assert sums(by="user") == {"ann": 0.75, "bob": 0.75}
    assert sums(by="queue") == {"default": 1.0, "gpu": 0.5}
    assert sums(by="group") == {None: 1.25, "sweep": 0.25}
    assert sums(by="label", label="project") == {"a": 0.75, "b": 0.5, None: 0.25}
    assert sums(by="day") == {str(today): 1.5}
    assert sums(by="all", since=today + timedelta(days=1)) == {}


def test_an_attempt_collected_again_is_counted_once(connection: Connection, driver: Queue) -> None:
    put(connection, 1)
    (job,) = driver.claim(1)
    driver.finish([Ending(job_id=job.job_id, attempt=1, state=JobState.FAILED, retry_delay_s=0.0, cost_credits=1.0)])
    end(driver, driver.claim(1), credits_=2.0)
    (spent,) = control.cost(connection, by="all")
    assert (spent.credits, spent.jobs) == (3.0, 1)


def running(connection: Connection, driver: Queue, hours: float) -> Any:
    """A job that has run for so long, at 10 credits an hour."""
    put(connection, 1)
    (job,) = driver.claim(1)
    step = Progress(job_id=job.job_id, attempt=1, phase=Phase.WAITING, remote_id=7, credits_per_hour=10.0)
    driver.advance([step])
    connection.cursor().execute(
        "UPDATE rythmiq.jobs SET running_at = now() - make_interval(secs => %s)", (hours * 3600,)
    )
    driver.advance([replace(step, phase=Phase.COLLECTING)])
    return job


def test_an_attempt_of_unknown_cost_counts_by_its_time(connection: Connection, driver: Queue) -> None:
    job = running(connection, driver, hours=2.0)
    driver.finish([Ending(job_id=job.job_id, attempt=1, state=JobState.FAILED, retry_delay_s=0.0)])
    (spent,) = control.cost(connection, by="all")
    assert spent.credits == pytest.approx(20.0, abs=0.1)
    (attempt,) = inspect.attempts(connection, job.job_id)
    assert attempt.cost_credits == pytest.approx(20.0, abs=0.1)
    end(driver, driver.claim(1))
    assert inspect.job(connection, job.job_id).cost_credits == attempt.cost_credits, "the second one never ran"


def test_what_is_collected_again_does_not_count_by_its_time_too(connection: Connection, driver: Queue) -> None:
    job = running(connection, driver, hours=2.0)
    kept = Ending(
        job_id=job.job_id,
        attempt=1,
        state=JobState.FAILED,
        error=ErrorInfo(code=ErrorCode.ARTIFACTS_NOT_STORED, message=""),
        retry_delay_s=0.0,
        cost_credits=20.0,
        keep_s=86400.0,
    )
    driver.finish([kept])
    (again,) = driver.claim(1)
    assert again.phase is Phase.COLLECTING
    step = Progress(job_id=job.job_id, attempt=1, phase=Phase.COLLECTING, wait_reason="slow", credits_per_hour=10.0)
    driver.advance([step])
    assert [each.credits for each in control.cost(connection, by="all")] == [20.0]
    driver.finish([replace(kept, error=None, keep_s=None, retry_delay_s=None, cost_credits=None)])
    assert [each.credits for each in control.cost(connection, by="all")] == [20.0]


@pytest.mark.parametrize("price", ["1e308", "NaN", "-5", "infinity"])
def test_a_price_that_is_none_concerns_its_job_alone(connection: Connection, driver: Queue, price: str) -> None:
    control.set_budget(connection, ACCOUNT, 15.0, "all")
    running(connection, driver, hours=1.0)
    job_id = running(connection, driver, hours=1.0).job_id
    connection.cursor().execute("UPDATE rythmiq.jobs SET credits_per_hour = %s WHERE job_id = %s", (price, str(job_id)))
    driver.control_state([])
    (budget,) = control.limits(connection)
    assert (budget.spent, budget.over) == (pytest.approx(10.0, abs=0.1), [])


def test_all_budgets_are_checked_by_one_pass_over_the_costs(connection: Connection, driver: Queue) -> None:
    for user, queue in (("ann", "default"), ("ann", "gpu"), ("bob", "gpu")):
        put(connection, 1, user_id=user, queue=queue)
    group_id, _ = enqueue_group(connection, NewGroup(), [NewJob(spec=TRUE, user_id="eve")])
    end(driver, driver.claim(9), credits_=1.0)
    cursor = connection.cursor()
    cursor.execute("UPDATE rythmiq.costs SET day = day - 400 WHERE user_id = 'bob'")
    for scope in (
        ACCOUNT,
        Scope("queue", "gpu"),
        Scope("user", "ann"),
        Scope("user", "*"),
        Scope("group", str(group_id)),
    ):
        for period in ("day", "month", "all"):
            control.set_budget(connection, scope, 2.0, period)
    scans = "SELECT seq_scan + idx_scan FROM pg_stat_xact_user_tables WHERE relname = 'costs'"
    cursor.execute("BEGIN")
    cursor.execute(scans)
    (before,) = cursor.fetchone() or (0,)
    cursor.execute("SELECT rythmiq.check_budgets()")
    cursor.execute(scans)
    assert cursor.fetchone() == (before + 1,)
    cursor.execute("COMMIT")
    found = {(limit.scope, limit.name, limit.period): (limit.spent, limit.over) for limit in control.limits(connection)}
    for period, account, gpu in (("day", 3.0, 1.0), ("month", 3.0, 1.0), ("all", 4.0, 2.0)):
        assert found["account", "", period] == (account, [""])
        assert found["queue", "gpu", period] == (gpu, ["gpu"] if gpu >= 2.0 else [])
        assert found["user", "ann", period] == (2.0, ["ann"])
        assert found["user", "*", period] == (2.0, ["ann"])
        assert found["group", str(group_id), period] == (1.0, [])


def test_each_run_of_a_schedule_makes_no_row_of_costs(connection: Connection, driver: Queue) -> None:
    for hour in range(3):
        put(connection, 1, labels={"schedule": "s", "scheduled_at": f"2026-01-01T{hour:02}:00:00Z"})
    end(driver, driver.claim(9), credits_=1.0)
    cursor = connection.cursor()
    cursor.execute("SELECT labels, credits FROM rythmiq.costs")
    assert cursor.fetchall() == [({"schedule": "s"}, 3.0)]


def test_users_over_their_budget_are_closed_each_alone(connection: Connection, driver: Queue) -> None:
    for user in ("ann", "bob"):
        put(connection, 2, user_id=user)
    control.set_budget(connection, Scope("user", "*"), 1.0, "day")
    end(driver, [job for job in driver.claim(2) if job.user_id == "ann"], credits_=2.0)
    driver.control_state([])
    assert users(driver.claim(9)) == {"bob": 1}
    control.set_budget(connection, Scope("user", "*"), 0.0, "day")
    put(connection, 1, user_id="eve")
    assert driver.claim(9) == []


def test_a_session_that_holds_a_sum_keeps_no_job_from_ending(
    connection: Connection, driver: Queue, database_url: str
) -> None:
    put(connection, 2)
    end(driver, driver.claim(1), credits_=1.0)
    holder = psycopg2.connect(database_url)
    holder.cursor().execute("SELECT FROM rythmiq.costs FOR UPDATE")
    end(driver, driver.claim(1), credits_=1.0)
    assert [each.credits for each in control.cost(connection, by="all")] == [2.0]
    holder.rollback()
    holder.close()


# --------------------------------------------------------------------------------------------------------- by command


def test_limits_by_the_command_line(
    connection: Connection, driver: Queue, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)

    def run(*arguments: str) -> str:
        assert cli.run(list(arguments)) == 0, capsys.readouterr().err
        return str(capsys.readouterr().out)

    (job_id,) = put(connection, 1, user_id="ann")
    run("limit", "set", "user:ann", "--max-running", "0")
    run("pause", "account", "--reason", "maintenance")
    run("budget", "set", "account", "--credits", "10", "--period", "month")
    assert "maintenance" in run("limit", "show")
    assert "0.00 of 10.00 month" in run("budget", "show")
    reasons = {item["reason"] for item in json.loads(run("why", str(job_id), "--json"))["items"]}
    assert {"paused", "limit"} <= reasons
    assert "account was paused by postgres (maintenance)" in run("jobs")
    assert "held: account was paused" in run("show", str(job_id))
    run("resume", "account")
    run("limit", "unset", "user:ann")
    run("budget", "unset", "account")
    assert json.loads(run("limit", "show", "--json"))["items"] == []
    assert run("cost", "--csv").startswith("day,credits,jobs")
    assert cli.run(["limit", "set", "galaxy", "--max-running", "1"]) == 2
    assert cli.run(["limit", "set", "account", "--max-running", "99999999999"]) == 2
    assert cli.run(["pause", f"queue:{'x' * 6000}"]) == 2
    run("limit", "set", "queue:a", "--per-minute", "1")
    run("limit", "set", "queue:b", "--per-minute", "1")
    shown = json.loads(run("limit", "show", "--limit", "1", "--json"))
    assert ([item["name"] for item in shown["items"]], shown["total"]) == (["a"], 2)
    assert "queue:b" not in run("limit", "show", "--limit", "1")
    end(driver, driver.claim(9), credits_=1.0)
    assert len(json.loads(run("cost", "--by", "user", "--limit", "1", "--json"))["items"]) == 1
    run("limit", "unset", "queue:a")
    run("limit", "unset", "queue:b")
    assert cli.run(["resume", "account"]) == 4
    run("drivers", "drain", str(driver.driver_id)[:8])
    assert driver.control_state([]).draining
    assert driver.claim(1) == []
    assert "draining" in run("drivers")


def test_the_claim_takes_its_rooms_one_driver_after_the_other(
    connection: Connection, driver: Queue, database_url: str
) -> None:
    put(connection, 2)
    holder = psycopg2.connect(database_url)
    holder.cursor().execute("SELECT FROM rythmiq.account FOR UPDATE")
    assert driver.claim(1, account=5) == [], "it gives up after a while, and asks again"
    holder.rollback()
    holder.close()
    assert len(driver.claim(1, account=5)) == 1
