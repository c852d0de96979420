"""What any language has: the functions, the view and the notifications, as whoever may enqueue and no more."""

from __future__ import annotations

import json
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import psycopg2.errors
import pytest

from rythmiq_ray import enqueue_many
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import Ending, Queue, inspect, listing
from rythmiq_ray.secret import Secret

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
    from rythmiq_ray.spec import parse

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
