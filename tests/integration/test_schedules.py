"""Schedules in the queue: each due time is fired once, by whichever driver comes first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import psycopg2
import pytest

from rythmiq_ray import JobSpec, cli, enqueue
from rythmiq_ray.errors import InvalidJob, NotFound
from rythmiq_ray.model import Job, JobState, NewJob
from rythmiq_ray.queue import Ending, Queue, enqueue_many, inspect, listing, schedules
from rythmiq_ray.queue.listing import Connection
from rythmiq_ray.schedules import CatchUp, Overlap
from rythmiq_ray.secret import Secret

JOB = {"command": "true", "labels": {"team": "ml"}}


@pytest.fixture
def connection(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    opened = psycopg2.connect(database_url)
    opened.autocommit = True
    yield opened
    opened.close()


@pytest.fixture
def drivers(database_url: str) -> Iterator[list[Queue]]:
    made = [Queue(Secret(database_url), lease_s=600) for _ in range(4)]
    for each in made:
        each.register()
    yield made
    for each in made:
        each.close()


def at(drivers: list[Queue], now: datetime) -> int:
    """All drivers look at this time, at once; how many runs they fired."""
    for driver in drivers:
        driver.now = now
    with ThreadPoolExecutor(len(drivers)) as pool:
        return sum(pool.map(lambda driver: driver.fire_schedules(100), drivers))


def put_jobs(connection: Connection) -> list[Job]:
    return list(listing.jobs(connection, limit=None))


def end(driver: Queue, state: JobState = JobState.SUCCEEDED) -> None:
    driver.now = None
    for job in driver.claim(100):
        driver.finish([Ending(job_id=job.job_id, attempt=job.attempt, state=state)])


def test_each_time_is_fired_once_by_any_number_of_drivers(connection: Connection, drivers: list[Queue]) -> None:
    first = schedules.add(connection, "quarter", "*/15 * * * *", job=JOB, overlap=Overlap.QUEUE, catch_up=CatchUp.ALL)
    fired = sum(at(drivers, first + timedelta(minutes=minute)) for minute in range(0, 24 * 60, 5))
    assert fired == 96
    jobs = put_jobs(connection)
    times = [job.labels["scheduled_at"] for job in jobs]
    assert len(times) == len(set(times)) == 96
    assert {(job.name, job.labels["team"], job.labels["schedule"]) for job in jobs} == {("quarter", "ml", "quarter")}
    assert {job.enqueued_by for job in jobs} == {"postgres"}
    (shown,) = schedules.schedules(connection, "quarter")
    assert (shown.last_outcome, shown.last_state, shown.last_job_id) == ("enqueued", "QUEUED", jobs[0].job_id)


def test_a_run_that_is_unfinished_is_skipped_queued_behind_or_cancelled(
    connection: Connection, drivers: list[Queue]
) -> None:
    for overlap in Overlap:
        first = schedules.add(connection, overlap, "0 * * * *", job=JOB, overlap=overlap)
    at(drivers, first)
    at(drivers, first + timedelta(hours=1))
    states = {name: sorted(job.state for job in put_jobs(connection) if job.name == name) for name in Overlap}
    assert states == {"skip": ["QUEUED"], "queue": ["QUEUED", "QUEUED"], "cancel": ["CANCELLED", "QUEUED"]}
    (skipped,) = schedules.schedules(connection, "skip")
    assert skipped.last_outcome == "skipped: the run before is unfinished"
    assert schedules.run(connection, "skip") is None
    end(drivers[0])
    assert schedules.run(connection, "skip") is not None


def test_a_sweep_is_one_group_each_time(connection: Connection, drivers: list[Queue]) -> None:
    lines = [{**JOB, "params": {"N": str(n)}} for n in range(3)]
    first = schedules.add(connection, "many", "0 6 * * mon", sweep={"jobs": lines, "max_parallel": 2})
    assert at(drivers, first) == 1
    (group,) = listing.groups(connection)
    assert (group.name, group.members, group.max_parallel, group.labels["schedule"]) == ("many", 3, 2, "many")
    members = listing.members(connection, [group.group_id])
    assert [(job.state, job.params, job.group_index) for job in members] == [
        ("QUEUED", {"N": "0"}, 0),
        ("QUEUED", {"N": "1"}, 1),
        ("BLOCKED", {"N": "2"}, 2),
    ]
    assert at(drivers, first + timedelta(days=7)) == 0, "the week before is unfinished"
    inspect.cancel(connection, groups=[group.group_id])
    assert at(drivers, first + timedelta(days=14)) == 1


MEMBER = {
    **JOB,
    "command": "fit 0",
    "name": "fit-0",
    "params": {"N": "0", "M": "é"},
    "env": {"M": "of all", "Z": "z"},
    "user_id": "ann",
    "queue": "slow",
    "priority": 7,
    "max_attempts": 2,
    "delay": "1h",
    "timeout": "2h",
    "notify": "https://example.com/",
}


@pytest.mark.parametrize(
    "others",
    [
        [{"command": f"fit {n}", "name": f"fit-{n}", "params": {"N": str(n), "M": "b"}} for n in range(1, 4)],
        [{"name": None, "params": {"N": "1"}}, {"params": {}}, {"params": None}],
        [{"params": {"N": "1", "OTHER": "2"}}],
        [{"priority": 8}, {"env": {}}, {"labels": {}}],
        [{"after": ["fit-0"]}, {"after_ended": ["fit-0"]}],
    ],
    ids=["alike", "fewer parameters", "other parameters", "other fields", "dependencies"],
)
@pytest.mark.parametrize("max_parallel", [None, 2])
@pytest.mark.parametrize("without", [(), ("env", "delay"), ("params", "env")], ids="-".join)
def test_a_scheduled_sweep_has_the_members_that_one_enqueue_after_the_other_makes(
    connection: Connection, others: list[dict[str, object]], max_parallel: int | None, without: tuple[str, ...]
) -> None:
    head = {name: value for name, value in MEMBER.items() if name not in without}
    lines = [head, *({**head, **other} for other in others)]
    schedules.add(connection, "s", "0 * * * *", sweep={"jobs": lines, "max_parallel": max_parallel})
    cursor = connection.cursor()
    cursor.execute("INSERT INTO rythmiq.groups (max_parallel) VALUES (%s) RETURNING group_id", [max_parallel])
    (one_by_one,) = cursor.fetchone()
    cursor.execute("BEGIN")
    made = schedules.run(connection, "s")
    for line in lines:
        cursor.execute("SELECT rythmiq.enqueue(%s)", [json.dumps({**line, "group": str(one_by_one)})])
    cursor.execute("COMMIT")
    members, groups = [], []
    for group_id in (made, one_by_one):
        cursor.execute(
            "SELECT to_jsonb(j) - ARRAY['job_id', 'group_id', 'created_at', 'updated_at']"
            " || jsonb_build_object('labels', j.labels - ARRAY['schedule', 'scheduled_at'])"
            " FROM rythmiq.jobs AS j WHERE j.group_id = %s ORDER BY j.job_id",
            [group_id],
        )
        members.append([row[0] for row in cursor.fetchall()])
        cursor.execute("SELECT members, finished_at FROM rythmiq.groups WHERE group_id = %s", [group_id])
        groups.append(cursor.fetchone())
    assert members[0] == members[1]
    assert [member["group_index"] for member in members[0]] == list(range(len(lines)))
    assert groups[0] == groups[1] == (len(lines), None)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"command": " "}, "command: is empty"),
        ({"command": 1}, "command: must be a string"),
        ({"command": "x" * 262145}, "command: has more than 262144 bytes"),
        ({"name": "x" * 201}, "name: must have 1 to 200 characters"),
        ({"name": 1}, "name: must be a string"),
        ({"params": {"N": 1}}, "params.N: must be a string"),
        ({"params": {"1": "1"}}, "params.1: is no name of a variable, or one that is taken"),
        ({"params": {"N": "x" * 131071}}, "env: has more than 1000 variables, or too many bytes"),
        ({"params": []}, "params: must be an object"),
        ({"unknown": 1}, "unknown: is not a field of a job"),
    ],
)
def test_each_member_of_a_scheduled_sweep_is_checked(
    connection: Connection, drivers: list[Queue], wrong: dict[str, object], said: str
) -> None:
    lines = [{**JOB, "params": {"N": "0"}}, {**JOB, "params": {"N": "1"}}]
    first = schedules.add(connection, "s", "0 * * * *", sweep={"jobs": [*lines, {**lines[0], **wrong}]})
    assert at(drivers[:1], first) == 0
    (shown,) = schedules.schedules(connection, "s")
    assert shown.last_outcome is not None
    assert shown.last_outcome.startswith(f"not enqueued: {said}")
    assert put_jobs(connection) == []


def test_the_members_of_a_scheduled_sweep_are_enqueued_by_one_statement(connection: Connection) -> None:
    lines = [{"command": f"fit {n}", "params": {"N": str(n)}} for n in range(500)]
    schedules.add(connection, "s", "0 * * * *", sweep={"jobs": lines})
    cursor = connection.cursor()
    cursor.execute("BEGIN")
    schedules.run(connection, "s")
    cursor.execute("SELECT n_tup_upd FROM pg_stat_xact_user_tables WHERE relid = 'rythmiq.groups'::regclass")
    assert cursor.fetchone() == (2,), "each statement that adds members counts them in the group's row"
    cursor.execute("COMMIT")
    (group,) = listing.groups(connection)
    assert group.members == 500


def test_a_run_joins_and_means_the_groups_of_whoever_made_the_schedule(
    connection: Connection, drivers: list[Queue], database_url: str
) -> None:
    schedules.add(connection, "step", "0 * * * *", job={**JOB, "group": "steps", "after": ["load"]})
    cursor = connection.cursor()
    cursor.execute("CREATE ROLE a_driver LOGIN SUPERUSER")
    try:
        loads = []
        for user in ("postgres", "a_driver"):
            with closing(psycopg2.connect(database_url.replace("postgres@", f"{user}@", 1))) as other, other:
                loads.append(inspect.job(other, enqueue(other, JobSpec(command="true"), group="load")).group_id)
        worker = Queue(Secret(database_url.replace("postgres@", "a_driver@", 1)), lease_s=60)
        worker.register()
        worker.now = datetime.now(UTC) + timedelta(hours=1)
        assert worker.fire_schedules(10) == 1
        worker.close()
        cursor.execute(
            "SELECT g.enqueued_by, j.enqueued_by, d.on_group_id FROM rythmiq.jobs AS j"
            " JOIN rythmiq.dependencies AS d USING (job_id) JOIN rythmiq.groups AS g USING (group_id)"
        )
        assert cursor.fetchall() == [("postgres", "postgres", loads[0])]
    finally:
        cursor.execute("DROP ROLE a_driver")


def test_a_paused_one_waits_and_catches_up_as_asked(connection: Connection, drivers: list[Queue]) -> None:
    for catch_up in CatchUp:
        schedules.add(connection, catch_up, "* * * * *", job=JOB, overlap=Overlap.QUEUE, catch_up=catch_up)
        schedules.pause(connection, catch_up, "because")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE rythmiq.schedules SET next_at = date_trunc('minute', now()) - interval '5 minutes'")
    assert at(drivers, datetime.now(UTC)) == 0
    for catch_up in CatchUp:
        schedules.resume(connection, catch_up)
    now = schedules.now(connection)
    at(drivers, now)
    fired = {name: sum(job.name == name for job in put_jobs(connection)) for name in CatchUp}
    assert fired["one"] == 1
    assert fired["all"] >= 6
    assert fired["none"] <= 1


def test_what_cannot_be_enqueued_keeps_no_other_from_it(connection: Connection, drivers: list[Queue]) -> None:
    first = schedules.add(connection, "broken", "0 * * * *", job={"command": "true", "after": ["nobody"]})
    schedules.add(connection, "good", "0 * * * *", job=JOB)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO rythmiq.schedules (name, cron, job, next_at)"
            " VALUES ('odd', 'not a cron', '{}', now() - interval '1 h')"
        )
    assert at(drivers, first) == 1
    (broken,) = schedules.schedules(connection, "broken")
    assert broken.last_outcome is not None
    assert broken.last_outcome.startswith("not enqueued: after[0]: there is no job or group 'nobody'")
    assert broken.next_at == first + timedelta(hours=1)


def test_one_that_fails_in_any_way_keeps_no_other_from_it(connection: Connection, drivers: list[Queue]) -> None:
    first = schedules.add(
        connection, "a", "0 * * * *", sweep={"jobs": [JOB], "name": "".join(str(uuid4()) for _ in range(999))}
    )
    schedules.add(connection, "b", "0 * * * *", job=JOB)
    assert at(drivers, first) == 1
    (failed,) = schedules.schedules(connection, "a")
    assert failed.last_outcome is not None
    assert failed.last_outcome.startswith("not enqueued: index row")
    assert failed.next_at == first + timedelta(hours=1)


def test_what_another_session_holds_stays_due_and_keeps_no_other_from_it(
    connection: Connection, drivers: list[Queue], database_url: str
) -> None:
    first = schedules.add(connection, "a", "0 * * * *", job=JOB, overlap=Overlap.CANCEL)
    schedules.add(connection, "b", "0 * * * *", job=JOB, overlap=Overlap.QUEUE)
    assert at(drivers, first) == 2
    impatient = Queue(Secret(database_url), lease_s=600, statement_timeout_s=8.0)
    impatient.register()
    holder = psycopg2.connect(database_url)
    for hour, held in enumerate(("rythmiq.schedules WHERE name = 'a'", "rythmiq.jobs WHERE name = 'a'"), start=1):
        holder.cursor().execute(f"SELECT FROM {held} FOR UPDATE")
        impatient.now = first + timedelta(hours=hour)
        assert impatient.fire_schedules(100) == 1, "the other one"
        holder.rollback()
        (waiting,) = schedules.schedules(connection, "a")
        assert waiting.next_at == first + timedelta(hours=hour)
        assert impatient.fire_schedules(100) == 1, "now this one"
    holder.close()
    impatient.close()
    assert sorted(job.state for job in put_jobs(connection) if job.name == "a") == ["CANCELLED", "CANCELLED", "QUEUED"]


def test_one_of_very_many_jobs_has_more_time_than_another_statement(
    connection: Connection, drivers: list[Queue]
) -> None:
    first = schedules.add(connection, "s", "0 * * * *", job=JOB)
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE public.seen AS SELECT ''::text AS timeout; CREATE FUNCTION public.see() RETURNS trigger"
            " LANGUAGE plpgsql AS $$ BEGIN UPDATE public.seen SET timeout = current_setting('statement_timeout');"
            " RETURN NULL; END $$; CREATE TRIGGER seen AFTER UPDATE ON rythmiq.schedules EXECUTE FUNCTION public.see()"
        )
        assert at(drivers, first) == 1
        cursor.execute("SELECT timeout FROM public.seen")
        assert cursor.fetchone() == ("5min",)


def test_a_sweep_whose_keys_are_all_held_is_skipped_and_leaves_nothing(
    connection: Connection, drivers: list[Queue], capsys: pytest.CaptureFixture[str]
) -> None:
    enqueue_many(connection, [NewJob(spec=JobSpec(command="true"), unique_key="k")])
    first = schedules.add(connection, "s", "0 * * * *", sweep={"jobs": [{**JOB, "unique_key": "k"}]})
    assert at(drivers, first) == 0
    assert listing.groups(connection) == []
    (skipped,) = schedules.schedules(connection, "s")
    assert skipped.last_outcome == "skipped: other jobs hold its unique keys"
    assert cli.run(["schedule", "run", "s"]) == 1
    assert "s was skipped: other jobs hold its unique keys" in capsys.readouterr().err
    end(drivers[0])
    assert at(drivers, first + timedelta(hours=1)) == 1


def test_the_command_line(connection: Connection, drivers: list[Queue], capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str, code: int = 0) -> str:
        found = cli.run(["schedule", *arguments])
        printed = capsys.readouterr()
        assert found == code, printed.err
        return printed.out + printed.err

    assert "nightly is first due at " in run(
        "add", "nightly", "0 2 * * *", "--time-zone", "Europe/Berlin", "--command", "make"
    )
    assert "already; --replace" in run("add", "nightly", "0 3 * * *", "--command", "make", code=2)
    run("add", "nightly", "0 3 * * *", "--command", "make all", "--replace", "--priority", "5", "--timeout", "1h")
    run("add", "sweep", "@hourly", "--command", "x", code=2)
    run("add", "sweep", "0 * * * *", "--command", "fit $N", "--param", "N=1..3", "--max-parallel", "1")
    for arguments, said in (
        (("61 * * * *", "--command", "x"), "cron: "),
        (("* * * * *", "--command", "x", "--time-zone", "Nowhere"), "time_zone: "),
        (("* * * * *", "--command", "x", "--node-size", "huge"), "node_size: "),
        (("* * * * *",), "give --command"),
        (("* * * * *", "--command", "x", "--max-parallel", "3"), "give --param"),
    ):
        assert said in run("add", "bad", *arguments, code=2)
    for name in ("", "x" * 201):
        assert "name: must have 1 to 200 characters" in run("add", name, "* * * * *", "--command", "x", code=2)
    listed = json.loads(run("list", "--json"))
    assert [item["name"] for item in listed["items"]] == ["nightly", "sweep"]
    assert listed["items"][0]["job"] == {
        "command": "make all",
        "engine": "base",
        "node_size": "xsmall",
        "timeout_s": 3600.0,
        "priority": 5,
    }
    assert "nightly" in run("list")
    first = json.loads(run("list", "--json", "--limit", "1"))
    assert ([item["name"] for item in first["items"]], first["total"]) == (["nightly"], 2)
    assert "sweep" not in run("list", "--limit", "1")
    job_id = run("run", "nightly").strip()
    assert inspect.job(connection, job_id).priority == 5
    assert "was skipped" in run("run", "nightly", code=1)
    run("pause", "nightly", "--reason", "moving")
    assert "paused: moving" in run("show", "nightly")
    assert "nightly is due at" in run("resume", "nightly")
    group_id = run("run", "sweep").strip()
    assert listing.find(connection, group_id).is_job is False
    run("remove", "nightly")
    for command in ("show", "run", "pause", "resume", "remove"):
        run(command, "nightly", code=4)


def test_python_names_what_is_not_there(connection: Connection) -> None:
    with pytest.raises(NotFound):
        schedules.pause(connection, "nobody")
    with pytest.raises(InvalidJob):
        schedules.add(connection, "x", "never", job=JOB)
    with pytest.raises(InvalidJob):
        schedules.add(connection, "x", "0 0 30 2 *", job=JOB)
