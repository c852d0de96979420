"""What any language has: the functions, the view and the notifications, as whoever may enqueue and no more."""

from __future__ import annotations

import json
import re
import select
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import psycopg2.errors
import pytest

from rythmiq_ray import JobSpec, enqueue, enqueue_many
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.model import Artifact, JobState
from rythmiq_ray.queue import Ending, Queue, inspect, listing
from rythmiq_ray.secret import Secret
from rythmiq_ray.spec import parse, read_spec

ROLES_SQL = Path(__file__).parents[2] / "deploy/sql/roles.sql"
Cursor = Any


@pytest.fixture
def owner(database_url: str) -> Iterator[Cursor]:
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    yield connection.cursor()
    connection.close()


@pytest.fixture
def gateway(owner: Cursor, database_url: str) -> Iterator[Cursor]:
    """A login of rythmiq_enqueue; beside it there is another one."""
    owner.execute(ROLES_SQL.read_text(encoding="utf-8"))
    owner.execute(
        "CREATE ROLE a_gateway LOGIN IN ROLE rythmiq_enqueue; CREATE ROLE another LOGIN IN ROLE rythmiq_enqueue"
    )
    connection = psycopg2.connect(database_url.replace("postgres@", "a_gateway@", 1))
    connection.autocommit = True
    yield connection.cursor()
    connection.close()
    owner.execute("DROP ROLE a_gateway; DROP ROLE another")


def put(cursor: Cursor, **job: Any) -> UUID:
    cursor.execute("SELECT rythmiq.enqueue(%s::jsonb)", [json.dumps(job)])
    found: UUID = cursor.fetchone()[0]
    return found


WHOLE = {
    "command": "python3 fit.py --name 'ä€'",
    "engine": "mpi",
    "node_size": "small",
    "num_nodes": 2,
    "inputs": [{"uri": "s3://b/fit.py"}, {"uri": "https://h/x.csv?sig=1", "name": "in/x.csv"}, {"uri": "s3://b/data/"}],
    "outputs": ["results/*.csv"],
    "env": {"A": "1"},
    "secrets": ["HF_TOKEN"],
    "timeout": "2h",
    "retry_exit_codes": [75],
    "max_attempts": 2,
    "priority": 5,
    "queue": "night",
    "user_id": "ann",
    "name": "fit",
    "labels": {"team": "ml"},
    "params": {"LR": "0.1"},
}


def test_a_job_is_what_the_producer_would_have_made_of_it(gateway: Cursor, database_url: str) -> None:
    job_id = put(gateway, **WHOLE)
    reader = psycopg2.connect(database_url)
    (twin,) = enqueue_many(reader, [parse(WHOLE)])
    found, expected = inspect.job(reader, job_id), inspect.job(reader, twin)
    assert found.warnings == ()
    for field in (
        "spec",
        "queue",
        "priority",
        "max_attempts",
        "user_id",
        "name",
        "labels",
        "params",
        "state",
        "waits_for",
    ):
        assert getattr(found, field) == getattr(expected, field), field
    assert job_id.version == 7
    assert found.enqueued_by == "a_gateway"
    reader.close()


FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("command", {}),
    ("command", {"command": 5}),
    ("command", {"command": "  "}),
    ("comand", {"comand": "true", "command": "true"}),
    ("num_nodes", {"num_nodes": 0}),
    ("num_nodes", {"num_nodes": 1.5}),
    ("num_nodes", {"num_nodes": "2"}),
    ("gpu", {"gpu": "yes"}),
    ("env.1A", {"env": {"1A": "x"}}),
    ("env.A", {"env": {"A": 1}}),
    ("env.RYTHMIQ_X", {"env": {"RYTHMIQ_X": "1"}}),
    ("secrets[0]", {"secrets": ["lower"]}),
    ("inputs[0].uri", {"inputs": [{"uri": "./local"}]}),
    ("inputs[0].uri", {"inputs": [{}]}),
    ("inputs[0].uri", {"inputs": [{"uri": "s3://b/x/../y"}]}),
    ("inputs[0].name", {"inputs": [{"uri": "s3://b/x", "name": "../x"}]}),
    ("outputs[1]", {"outputs": ["a", "/etc/passwd"]}),
    ("timeout", {"timeout": "soon"}),
    ("timeout", {"timeout": -1}),
    ("delay", {"delay": {"s": 1}}),
    ("priority", {"priority": 10_000}),
    ("queue", {"queue": ""}),
    ("unique_key", {"unique_key": ""}),
    ("labels", {"labels": ["x"]}),
    ("retry_exit_codes", {"retry_exit_codes": [0]}),
    ("after[0]", {"after": ["nothing of that name"]}),
    ("after_ended[0]", {"after_ended": [str(uuid4())]}),
    ("group", {"group": str(uuid4())}),
    ("inputs[0].uri", {"inputs": [{"uri": f"job:{uuid4()}/x"}]}),
    ("env.PWD", {"env": {"PWD": "/"}}),
    ("secrets", {"env": {"TOKEN": "x"}, "secrets": ["TOKEN"]}),
    ("inputs[1].name", {"inputs": [{"uri": "s3://b/x"}, {"uri": "s3://c/x"}]}),
    ("inputs[0].nmae", {"inputs": [{"uri": "s3://b/x", "nmae": "y"}]}),
    ("labels.k", {"labels": {"k": "x" * 1000}}),
    ("outputs[1]", {"outputs": ["a", "./A"]}),
]


@pytest.mark.parametrize(("field", "job"), FAULTS)
def test_a_fault_names_its_field_and_stores_nothing(
    gateway: Cursor, owner: Cursor, field: str, job: dict[str, Any]
) -> None:
    with pytest.raises(psycopg2.Error) as caught:
        put(gateway, **({"command": "true", **job} if job and field != "command" else job))
    assert caught.value.pgcode == "22023"
    assert str(caught.value.diag.message_primary).startswith(f"{field}: ")
    assert caught.value.diag.column_name == field
    owner.execute("SELECT count(*) FROM rythmiq.jobs")
    assert owner.fetchone() == (0,)


def test_it_is_in_the_callers_transaction(gateway: Cursor, owner: Cursor) -> None:
    gateway.connection.autocommit = False
    put(gateway, command="true")
    gateway.connection.rollback()
    owner.execute("SELECT count(*) FROM rythmiq.jobs")
    assert owner.fetchone() == (0,)


def test_a_unique_key_gives_its_holder(gateway: Cursor) -> None:
    first = put(gateway, command="true", unique_key="k")
    assert put(gateway, command="false", unique_key="k") == first
    gateway.execute("SELECT rythmiq.cancel(%s)", [first])
    assert put(gateway, command="true", unique_key="k") != first


def test_groups_and_dependencies_hold_and_release(gateway: Cursor, owner: Cursor, database_url: str) -> None:
    first = put(gateway, command="true", group="night", name="load")
    second = put(gateway, command="true", group="night", name="fit", after=["load"])
    third = put(gateway, command="cat model", after_ended=["night"], inputs=[{"uri": f"job:{second}/model"}])
    states = {job.job_id: (job.state, job.waits_for, job.group_index) for job in listing.jobs(owner.connection)}
    assert states == {
        first: (JobState.QUEUED, 0, 0),
        second: (JobState.BLOCKED, 1, 1),
        third: (JobState.BLOCKED, 2, None),
    }
    queue = Queue(Secret(database_url), lease_s=30)
    queue.register()
    for expected in (first, second, third):
        (job,) = queue.claim(5)
        assert job.job_id == expected
        queue.finish([Ending(job_id=job.job_id, attempt=1, state=JobState.SUCCEEDED)])
    queue.close()
    group = put(gateway, command="true", group="ring")
    gateway.execute("SELECT group_id FROM rythmiq.job_status WHERE job_id = %s", [group])
    (group_id,) = gateway.fetchone()
    outside = put(gateway, command="true", after=["ring"])
    with pytest.raises(psycopg2.Error, match="circle"):
        put(gateway, command="true", group=str(group_id), after=[str(outside)])


def test_a_member_costs_the_same_however_many_there_are(gateway: Cursor, owner: Cursor) -> None:
    put(gateway, command="x", group="sweep")
    gateway.execute('SELECT rythmiq.enqueue(\'{"command": "x", "group": "sweep"}\') FROM generate_series(1, 500)')
    owner.execute("BEGIN; SELECT group_id FROM rythmiq.groups WHERE name = 'sweep'")
    (group_id,) = owner.fetchone()
    owner.execute("SELECT rythmiq.next_group_index(%s)", [group_id])
    assert owner.fetchone() == (501,)
    owner.execute(
        "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relid = 'rythmiq.jobs'::regclass"
    )
    assert owner.fetchone()[0] < 10, "rows read"
    owner.execute("COMMIT")


def test_a_login_sees_and_cancels_its_own_alone(gateway: Cursor, owner: Cursor, database_url: str) -> None:
    mine = put(gateway, command="true", user_id="ann")
    other = psycopg2.connect(database_url.replace("postgres@", "another@", 1))
    other.autocommit = True
    cursor = other.cursor()
    cursor.execute("SELECT count(*) FROM rythmiq.job_status")
    assert cursor.fetchone() == (0,)
    with pytest.raises(psycopg2.errors.NoDataFound):
        cursor.execute("SELECT rythmiq.cancel(%s)", [mine])
    other.close()
    gateway.execute("SELECT job_id, user_id, state, enqueued_by, artifacts FROM rythmiq.job_status")
    assert gateway.fetchall() == [(mine, "ann", "QUEUED", "a_gateway", [])]
    gateway.execute("SELECT rythmiq.cancel(%s)", [mine])
    assert gateway.fetchone() == ("CANCELLED",)
    gateway.execute("SELECT rythmiq.cancel(%s)", [mine])
    assert gateway.fetchone() == ("CANCELLED",), "again is fine"
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        gateway.execute("SELECT spec FROM rythmiq.jobs")
    owner.execute("SELECT count(*) FROM rythmiq.job_status")
    assert owner.fetchone() == (1,), "the owner sees all"


def test_an_end_is_told(gateway: Cursor) -> None:
    gateway.execute("LISTEN rythmiq_events")
    job_id = put(gateway, command="true")
    gateway.execute("SELECT rythmiq.cancel(%s)", [job_id])
    while not gateway.connection.notifies:
        assert select.select([gateway.connection], [], [], 10)[0]
        gateway.connection.poll()
    told = [json.loads(note.payload) for note in gateway.connection.notifies]
    assert {"job_id": str(job_id), "state": "CANCELLED"} in told


def test_a_group_is_cancelled_by_its_id(gateway: Cursor) -> None:
    ids = [put(gateway, command="true", group="many") for _ in range(3)]
    gateway.execute("SELECT group_id FROM rythmiq.job_status WHERE job_id = %s", [ids[0]])
    (group_id,) = gateway.fetchone()
    gateway.execute("SELECT rythmiq.cancel(%s)", [group_id])
    assert gateway.fetchone() == ("CANCELLED",)
    gateway.execute("SELECT DISTINCT state FROM rythmiq.job_status")
    assert gateway.fetchall() == [("CANCELLED",)]


@contextmanager
def another(database_url: str) -> Iterator[Cursor]:
    """The other login, beside that of the gateway."""
    with closing(psycopg2.connect(database_url.replace("postgres@", "another@", 1))) as connection:
        connection.autocommit = True
        yield connection.cursor()


def ended_with_a_file(queue: Queue, job_id: UUID) -> None:
    (job,) = [job for job in queue.claim(100) if job.job_id == job_id]
    file = Artifact(name="model", uri="s3://b/model", bytes=1, sha256="-", content_type="text/plain")
    queue.finish([Ending(job_id=job_id, attempt=job.attempt, state=JobState.SUCCEEDED, artifacts=(file,))])


@pytest.fixture
def driver(database_url: str) -> Iterator[Queue]:
    queue = Queue(Secret(database_url), lease_s=60)
    queue.register()
    yield queue
    queue.close()


def test_what_another_login_stored_is_no_input(
    gateway: Cursor, owner: Cursor, driver: Queue, database_url: str
) -> None:
    with another(database_url) as victim:
        theirs = put(victim, command="true", group="theirs")
    victims_group = inspect.job(owner.connection, theirs).group_id
    ended_with_a_file(driver, theirs)
    for field, job in (
        ("inputs[0].uri", {"inputs": [{"uri": f"job:{theirs}/*"}]}),
        ("inputs[0].uri", {"inputs": [{"uri": f"group:{victims_group}/*"}]}),
        ("inputs[0].uri", {"inputs": [{"uri": "group:theirs/*"}]}),
        ("after[0]", {"after": [str(theirs)]}),
        ("after_ended[0]", {"after_ended": [str(victims_group)]}),
        ("after[0]", {"after": ["theirs"]}),
    ):
        with pytest.raises(psycopg2.errors.InvalidParameterValue, match=re.escape(field)):
            put(gateway, command="cat *", **job)
        with pytest.raises(InvalidJob, match=field.partition("[")[0]):
            enqueue_many(gateway.connection, [parse({"command": "cat *", **job})])
    # Whoever writes the row itself gets past that, and no further than the driver.
    for uri in (f"job:{theirs}/*", f"group:{victims_group}/*"):
        spec = {"command": "cat *", "inputs": [{"uri": uri, "name": "./"}]}
        gateway.execute("INSERT INTO rythmiq.jobs (spec) VALUES (%s::jsonb)", [json.dumps(spec)])
    assert {job.spec.inputs[0].uri.partition(":")[0] for job in driver.claim(10)} == {"job", "group"}, "nothing found"
    own = put(gateway, command="true", group="own")
    ended_with_a_file(driver, own)
    put(gateway, command="cat *", inputs=[{"uri": f"job:{own}/*"}, {"uri": "group:own/*", "name": "g/"}])
    owners = put(owner, command="cat *", inputs=[{"uri": f"job:{own}/*"}])
    assert {item.uri for job in driver.claim(10) for item in job.spec.inputs} == {"s3://b/model"}
    assert inspect.job(owner.connection, owners).state is JobState.RUNNING


def test_rows_from_before_logins_were_noted_are_the_owners(gateway: Cursor, owner: Cursor, driver: Queue) -> None:
    old = put(owner, command="true")
    ended_with_a_file(driver, old)
    reading = put(owner, command="cat *", inputs=[{"uri": f"job:{old}/*"}])
    owner.execute("UPDATE rythmiq.jobs SET enqueued_by = NULL")
    (job,) = driver.claim(1)
    assert (job.job_id, job.spec.inputs[0].uri) == (reading, "s3://b/model")
    with pytest.raises(psycopg2.errors.InvalidParameterValue):
        put(gateway, command="cat *", inputs=[{"uri": f"job:{old}/*"}])


def test_nobody_adds_to_another_logins_group_or_takes_its_name(
    gateway: Cursor, owner: Cursor, database_url: str
) -> None:
    with another(database_url) as victim:
        theirs = put(victim, command="true", group="nightly")
        group_id = inspect.job(owner.connection, theirs).group_id
        with pytest.raises(psycopg2.errors.InvalidParameterValue, match="group: there is no group"):
            put(gateway, command="false", group=str(group_id))
        with pytest.raises(InvalidJob, match="group: there is no group"):
            enqueue(gateway.connection, JobSpec(command="false"), group=group_id)
        with pytest.raises(psycopg2.errors.ForeignKeyViolation):
            gateway.execute(
                'INSERT INTO rythmiq.jobs (spec, group_id) VALUES (\'{"command": "false"}\', %s)', [str(group_id)]
            )
        mine = put(gateway, command="false", group="nightly")
        assert inspect.job(owner.connection, mine).group_id != group_id
        for behind in (
            put(victim, command="true", after=["nightly"]),
            enqueue(victim.connection, JobSpec(command="true"), after=["nightly"]),
        ):
            owner.execute("SELECT on_group_id FROM rythmiq.dependencies WHERE job_id = %s", [str(behind)])
            assert owner.fetchone() == (group_id,), "though that of the gateway is newer"
        # Nor does it hold back, or end, what another login has put in.
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            gateway.execute(
                "INSERT INTO rythmiq.dependencies (job_id, on_job_id) VALUES (%s, %s)", [str(behind), str(mine)]
            )
    assert inspect.job(owner.connection, enqueue(owner.connection, JobSpec(command="true"), group=group_id)).group_id
    owner.execute("SELECT members FROM rythmiq.groups WHERE group_id = %s", [str(group_id)])
    assert owner.fetchone() == (2,), "who sees all may"


ODD: list[dict[str, Any]] = [
    {"env": {"PWD": "/"}},
    {"env": {"BASH_ENV": "x"}},
    {"params": {"IFS": "x"}},
    {"env": {"rythmiq_x": "1"}},
    {"env": {"A": "x" * 140_000}},
    {"env": {f"A{at}": "x" * 100_000 for at in range(3)}},
    {"env": {f"A{at}": "x" for at in range(1001)}},
    {"env": {"TOKEN": "x"}, "secrets": ["TOKEN"]},
    {"params": {"TOKEN": "x"}, "secrets": ["TOKEN"]},
    {"secrets": ["TOKEN", "TOKEN"]},
    {"secrets": ["PWD"]},
    {"secrets": ["RYTHMIQ_X"]},
    *({"inputs": inputs} for inputs in (
        [{"uri": "s3://b/x"}, {"uri": "s3://c/x"}],
        [{"uri": "s3://b/x"}, {"uri": "s3://c/y", "name": "X"}],
        [{"uri": "s3://b/x"}, {"uri": "s3://c/y", "name": "x/y"}],
        [{"uri": "s3://b/x", "name": "d/"}, {"uri": "s3://c/x", "name": "d/x"}],
        [{"uri": "s3://b/x", "name": "ä"}, {"uri": "s3://c/x", "name": "a\u0308"}],
        [{"uri": "s3://b/x", "nmae": "y"}],
        [{"uri": "s3://b/x", "name": 5}],
        [{"uri": "https://user:secret@host/x"}],
        [{"uri": "https://host/a b"}],
        [{"uri": "https://host:99999/x"}],
        [{"uri": "https://host/"}],
        [{"uri": "s3://b//"}],
        [{"uri": "s3://b/" + "x" * 9_000, "name": "x"}],
        [{"uri": "file:///x/"}],
        [{"uri": "file://host/x"}],
        [{"uri": "ftp://h/x"}],
        [{"uri": "job:/x"}],
        [{"uri": "s3://b/x", "name": "./"}, {"uri": "s3://b/data/", "name": "x"}],
        [{"uri": "s3://b/*.csv"}, {"uri": "s3://b/y/*.csv"}],
        *([{"uri": "s3://b/x", "name": name}] for name in (
            "Run.sh", "job.json/x", "Rythmiq-x", "a\u0085b", "a\u2028b", "\u202ea", " a", "a /b", "a/./b", "a//b", "/a",
            "a\\b", "ä" * 128, "x/" * 440 + "x" * 200, "", "..",
        )),
    )),
    *({"outputs": outputs} for outputs in (
        ["a", "a"], ["A", "a"], ["./a", "a/"], ["log.txt"], ["run.sh"], ["rythmiq-x"], ["a\u0085b"], [" a"],
        ["x" * 300], ["a/../b"], ["a//b"], ["[A-Z]*", "[a-z]*"], ["**"], ["."], ["./"], [""], ["x*" * 500], [5], "a",
    )),
    {"labels": {"k": "x" * 1000}},
    {"labels": {"k": "a\nb"}},
    {"labels": {"k\u0085": "x"}},
    {"labels": {f"k{at}": "x" for at in range(65)}},
    {"timeout": 1e400},
    {"timeout": -1e400},
    {"timeout": 1e-400},
    {"delay": 1e400},
    {"num_nodes": 1e400},
    {"priority": 1e400},
    {"max_attempts": 1e400},
    {"retry_exit_codes": [1] * 1001},
    {"name": "a\u0085b"},
    {"command": "x" * 300_000},
    *({name: None} for name in (
        "priority", "outputs", "after", "after_ended", "gpu", "queue", "inputs", "env", "secrets", "timeout", "delay",
        "labels", "num_nodes", "max_attempts", "engine", "node_size", "params", "notify", "name", "group",
        "retry_exit_codes",
    )),
]  # fmt: skip


def test_what_is_let_through_a_driver_takes(gateway: Cursor, owner: Cursor) -> None:
    taken = []
    for job in ODD:
        # Python writes no number as large as JSON has.
        line = json.dumps({"command": "true", **job}).replace("Infinity", "1e400")
        try:
            gateway.execute("SELECT rythmiq.enqueue(%s::jsonb)", [line])
        except psycopg2.errors.InvalidParameterValue:
            continue
        (job_id,) = gateway.fetchone()
        owner.execute("SELECT spec, labels FROM rythmiq.jobs WHERE job_id = %s", [str(job_id)])
        spec, labels = owner.fetchone()
        assert read_spec(spec)[1] == [], job
        assert labels == {}
        taken.append(job)
    assert [job for job in taken if None not in job.values()] == [
        {"inputs": [{"uri": "s3://b/x", "name": "./"}, {"uri": "s3://b/data/", "name": "x"}]},
        {"inputs": [{"uri": "s3://b/*.csv"}, {"uri": "s3://b/y/*.csv"}]},
        {"outputs": ["[A-Z]*", "[a-z]*"]},
        {"outputs": ["**"]},
    ]
    assert sum(None in job.values() for job in taken) == 21, "null is as if it were left out"
