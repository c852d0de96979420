"""Rows that nobody expected, on a real Postgres: each concerns itself alone, in the driver and in every listing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import psycopg2
import psycopg2.extensions
import pytest

from rythmiq_ray import JobSpec, NewJob, cli, enqueue_many
from rythmiq_ray.model import JobState, Phase
from rythmiq_ray.queue import Ending, Progress, Queue, inspect
from rythmiq_ray.secret import Secret

Connection = psycopg2.extensions.connection

ODD_SPECS = {
    "a number of 5,000 digits": ('{"command": "true", "timeout_s": 1' + "0" * 5000 + "}", "too long"),
    "nested deeply": ('{"command": "true", "env": ' + "[" * 3000 + "]" * 3000 + "}", "env|nested"),
    "a list": ('["true"]', "must be an object"),
    "a number": ("7", "must be an object"),
    "null": ("null", "must be an object"),
    "no command": ("{}", "command"),
    "a command that is a number": ('{"command": 7}', "command: must be a string"),
    "inputs that are text": ('{"command": "true", "inputs": "s3://b/k"}', "inputs"),
    "an infinite number": ('{"command": "true", "timeout_s": 1e400}', "timeout_s"),
    "an unknown field": ('{"command": "true", "node_sise": "large"}', "'node_sise'.*did you mean node_size"),
    "a field of the queue's": ('{"command": "true", "priority": 5}', "'priority'"),
}
ODD_COLUMNS = (
    "next_visible_at = '-infinity'",
    "next_visible_at = '4713-01-01 BC'",
    "created_at = 'infinity'",
    "created_at = '20000-01-01'",
    "updated_at = '0001-01-01 BC'",
    "error_code = 'of_a_newer_version'",
    "cost_credits = 'NaN'",
    "cost_credits = '-Infinity'",
    "remote_status = 'HIBERNATING'",
    """warnings = '{"not": "a list"}'""",
    "warnings = '" + "[" * 3000 + "]" * 3000 + "'",
)


@pytest.fixture
def driver(database_url: str) -> Iterator[Queue]:
    queue = new_driver(database_url)
    yield queue
    queue.close()


def new_driver(url: str, **options: Any) -> Queue:
    queue = Queue(Secret(url), lease_s=30.0, **options)
    queue.register()
    return queue


def run(connection: Connection, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return [] if cursor.description is None else cursor.fetchall()


def put(connection: Connection, spec: str) -> UUID:
    """A job as a login of rythmiq_enqueue may insert it."""
    job_id = uuid4()
    run(connection, "INSERT INTO rythmiq.jobs (job_id, spec) VALUES (%s, %s)", str(job_id), spec)
    return job_id


def good(connection: Connection, count: int = 3) -> set[UUID]:
    return set(enqueue_many(connection, [NewJob(spec=JobSpec(command="true"))] * count))


@pytest.mark.parametrize("odd", ODD_SPECS)
def test_a_spec_that_cannot_be_run_ends_alone_and_names_its_field(
    connection: Connection, driver: Queue, odd: str
) -> None:
    spec, fault = ODD_SPECS[odd]
    first, fine = put(connection, spec), good(connection)
    assert {job.job_id for job in driver.claim(10)} == fine
    (refusal,) = driver.refusals()
    assert (refusal.job_id, refusal.attempt, refusal.ended) == (first, 1, True)
    assert driver.refusals() == [], "each is told once"
    found = inspect.job(connection, first)
    assert (found.state, found.error_code) == (JobState.FAILED, "invalid_job")
    assert found.error_message == refusal.message
    assert re.search(fault, refusal.message), refusal.message
    assert len(refusal.message) <= 4000


def test_a_dead_drivers_job_that_cannot_be_run_ends_where_it_is_taken_over(
    connection: Connection, database_url: str, driver: Queue
) -> None:
    """A driver of 0.1.0 claims it, and dies of it."""
    odd, fine = put(connection, ODD_SPECS["a number of 5,000 digits"][0]), good(connection)
    run(
        connection,
        "WITH dead AS (INSERT INTO rythmiq.drivers VALUES (gen_random_uuid(), 'h', 1, '0.1.0', now(), now(), now())"
        " RETURNING driver_id) UPDATE rythmiq.jobs SET state = 'RUNNING', phase = 'submitting', attempt = 1,"
        " driver_id = (SELECT driver_id FROM dead), remote_path = 'rythmiq/' || job_id || '/1'",
    )
    assert {adopted.job.job_id for adopted in driver.adopt(10)} == fine
    assert [refusal.job_id for refusal in driver.refusals()] == [odd]
    assert inspect.job(connection, odd).error_code == "invalid_job"


def test_what_runs_already_is_brought_to_its_end_whatever_became_of_its_spec(
    connection: Connection, database_url: str, driver: Queue
) -> None:
    (job_id,) = good(connection, 1)
    (job,) = driver.claim(1)
    driver.advance([Progress(job_id=job_id, attempt=1, phase=Phase.WAITING, remote_id=7)])
    run(connection, "UPDATE rythmiq.jobs SET spec = %s", ODD_SPECS["a number of 5,000 digits"][0])
    driver.resign()
    other = new_driver(database_url)
    (adopted,) = other.adopt(10)
    assert adopted.job.remote_id == 7
    assert other.refusals() == []
    assert other.finish([Ending(job_id=job.job_id, attempt=1, state=JobState.SUCCEEDED)]).ours == {job_id}
    other.close()


@pytest.mark.parametrize("odd", ODD_COLUMNS)
def test_a_column_that_python_has_no_value_for_stops_nothing(
    connection: Connection, database_url: str, driver: Queue, odd: str
) -> None:
    jobs = good(connection)
    first = sorted(jobs)[0]
    run(connection, f"UPDATE rythmiq.jobs SET {odd} WHERE job_id = %s", str(first))
    driver.depth()
    assert {job.job_id for job in driver.claim(10)} == jobs
    driver.resign()
    other = new_driver(database_url)
    adopted = {adopted.job.job_id: adopted.orphaned_s for adopted in other.adopt(10)}
    assert adopted.keys() == jobs
    assert all(0 <= seconds < 60 for seconds in adopted.values())
    assert other.release() == set()
    endings = [Ending(job_id=job_id, attempt=1, state=JobState.FAILED, cost_credits=1.0) for job_id in jobs]
    assert other.finish(endings).ours == jobs
    assert {job.job_id for job in other.uncleaned(10, older_than_s=0.0)} == jobs
    assert other.refusals() == []
    other.close()


@pytest.mark.parametrize("updated_at", ["-infinity", "infinity", "4713-01-01 BC"])
def test_a_job_given_back_at_no_known_time_is_taken_over(
    connection: Connection, driver: Queue, updated_at: str
) -> None:
    good(connection, 1)
    run(
        connection,
        "UPDATE rythmiq.jobs SET state = 'RUNNING', phase = 'waiting', attempt = 1, updated_at = %s,"
        " remote_path = 'rythmiq/' || job_id || '/1'",
        updated_at,
    )
    (adopted,) = driver.adopt(10)
    assert adopted.orphaned_s >= 0


def test_a_row_that_breaks_the_claim_ends_alone(connection: Connection, driver: Queue) -> None:
    spent, twice = put(connection, '{"command": "true"}'), put(connection, '{"command": "true"}')
    run(connection, "UPDATE rythmiq.jobs SET attempt = 2147483647 WHERE job_id = %s", str(spent))
    run(
        connection,
        "INSERT INTO rythmiq.attempts (job_id, attempt, remote_path, started_at) VALUES (%s, 1, 'x', now())",
        str(twice),
    )
    fine = good(connection)
    assert {job.job_id for job in driver.claim(10)} == fine
    refusals = {refusal.job_id: refusal for refusal in driver.refusals()}
    assert refusals.keys() == {spent, twice}
    for job_id, state in ((spent, "22003"), (twice, "23505")):
        found = inspect.job(connection, job_id)
        assert (found.state, found.error_code) == (JobState.FAILED, "invalid_job")
        assert found.error_message is not None
        assert f"SQLSTATE {state}" in found.error_message


def test_a_trigger_that_refuses_one_row_keeps_that_one_alone(
    connection: Connection, database_url: str, driver: Queue
) -> None:
    fine, cursed = good(connection), put(connection, '{"command": "true"}')
    run(
        connection,
        "CREATE FUNCTION curse() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN IF NEW.job_id = '{cursed}' THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$",
    )
    curse = "CREATE TRIGGER curse BEFORE UPDATE ON rythmiq.jobs FOR EACH ROW EXECUTE FUNCTION curse()"
    run(connection, curse)
    assert {job.job_id for job in driver.claim(10)} == fine
    (refusal,) = driver.refusals()
    assert (refusal.job_id, refusal.ended) == (cursed, False)
    assert driver.claim(10) == []
    assert driver.refusals() == [], "it is not tried again at once"
    assert inspect.job(connection, cursed).state is JobState.QUEUED

    run(connection, "DROP TRIGGER curse ON rythmiq.jobs")
    other = new_driver(database_url)
    assert [job.job_id for job in other.claim(10)] == [cursed]
    run(connection, curse)
    step = Progress(job_id=cursed, attempt=1, phase=Phase.WAITING, remote_id=1)
    steps = [Progress(job_id=job_id, attempt=1, phase=Phase.WAITING, remote_id=1) for job_id in fine]
    assert driver.advance([*steps, step]).ours == fine
    assert other.advance([step]) == other.finish([Ending(job_id=cursed, attempt=1, state=JobState.SUCCEEDED)])
    assert other.advance([step]).locked == {cursed}, "it is kept for later"
    run(connection, "UPDATE rythmiq.drivers SET lease_expires_at = now() - interval '1 s'")
    third = new_driver(database_url)
    assert {adopted.job.job_id for adopted in third.adopt(10)} == fine
    assert [refusal.job_id for refusal in third.refusals()] == [cursed]
    assert third.release() == fine
    for queue in (other, third):
        queue.close()


def test_an_ending_that_postgres_will_not_store_ends_all_the_same(connection: Connection, driver: Queue) -> None:
    jobs = good(connection, 3)
    driver.claim(10)
    huge, *others = sorted(jobs)
    endings = [
        Ending(job_id=huge, attempt=1, state=JobState.SUCCEEDED, remote_id=2**70, exit_code=2**40),
        *(Ending(job_id=job_id, attempt=1, state=JobState.SUCCEEDED, cost_credits=float("nan")) for job_id in others),
    ]
    assert driver.finish(endings).ours == jobs
    found = inspect.job(connection, huge)
    assert (found.state, found.error_code) == (JobState.FAILED, "internal")
    assert found.error_message is not None
    assert "22003" in found.error_message
    assert all(inspect.job(connection, job_id).state is JobState.SUCCEEDED for job_id in others)


def test_progress_that_postgres_will_not_store_loses_no_phase(connection: Connection, driver: Queue) -> None:
    jobs = good(connection, 2)
    driver.claim(10)
    first, second = jobs
    steps = [
        Progress(job_id=first, attempt=1, phase=Phase.WAITING, remote_id=2**70),
        Progress(job_id=second, attempt=1, phase=Phase.WAITING, remote_id=5),
    ]
    assert driver.advance(steps).ours == jobs
    assert inspect.job(connection, first).phase is Phase.WAITING
    assert inspect.job(connection, second).remote_id == 5


@pytest.mark.parametrize("odd", [*ODD_SPECS, *ODD_COLUMNS, "state", "phase"])
def test_an_odd_row_is_a_row_with_a_mark_in_every_listing(
    connection: Connection,
    database_url: str,
    odd: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good(connection)
    job_id = put(connection, ODD_SPECS[odd][0] if odd in ODD_SPECS else '{"command": "true"}')
    if odd in ODD_COLUMNS:
        run(connection, f"UPDATE rythmiq.jobs SET {odd} WHERE job_id = %s", str(job_id))
    elif odd in ("state", "phase"):
        # Of a newer version.
        checks = "SELECT conname FROM pg_constraint WHERE conrelid = 'rythmiq.jobs'::regclass AND contype = 'c'"
        for (name,) in run(connection, checks):
            run(connection, f"ALTER TABLE rythmiq.jobs DROP CONSTRAINT {name}")
        run(connection, f"UPDATE rythmiq.jobs SET {odd} = 'SUSPENDED' WHERE job_id = %s", str(job_id))
    monkeypatch.setenv("DATABASE_URL", database_url)
    for arguments in (["jobs"], ["show", str(job_id)], ["jobs", "--json"], ["show", str(job_id), "--json"]):
        assert cli.run(arguments) == 0, capsys.readouterr().err
        shown = capsys.readouterr().out
        if "--json" in arguments:
            json.loads(shown, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found = inspect.job(connection, job_id)
    if odd not in ("error_code = 'of_a_newer_version'", "remote_status = 'HIBERNATING'", ODD_COLUMNS[-2]):
        assert any(warning.startswith("this row is odd: ") for warning in found.warnings), found.warnings


def test_an_error_code_of_a_newer_version_is_kept_as_text(connection: Connection, driver: Queue) -> None:
    good(connection, 1)
    run(connection, "UPDATE rythmiq.jobs SET state = 'RETRYING', error_code = 'of_a_newer_version'")
    (job,) = driver.claim(1)
    assert job.error_code == "of_a_newer_version"


def test_a_phase_of_a_newer_version_is_left_to_the_newer_driver(connection: Connection, driver: Queue) -> None:
    fine = good(connection, 2)
    newer = put(connection, '{"command": "true"}')
    run(connection, "ALTER TABLE rythmiq.jobs DROP CONSTRAINT jobs_phase_check")
    own = "remote_path = 'rythmiq/' || job_id || '/1'"
    run(connection, f"UPDATE rythmiq.jobs SET state = 'RUNNING', phase = 'waiting', attempt = 1, {own}")
    run(connection, "UPDATE rythmiq.jobs SET phase = 'linting' WHERE job_id = %s", str(newer))
    assert {adopted.job.job_id for adopted in driver.adopt(10)} == fine


def test_why_an_attempt_does_not_get_on_is_shown_while_it_does_not(connection: Connection, driver: Queue) -> None:
    (job_id,) = good(connection, 1)
    driver.claim(1)

    def advance(wait_reason: str | None) -> str | None:
        driver.advance([Progress(job_id=job_id, attempt=1, phase=Phase.COLLECTING, wait_reason=wait_reason)])
        return inspect.job(connection, job_id).wait_reason

    assert advance("the store\x00\udcff") == "the store?"
    assert advance(None) is None
    advance("the store")
    driver.finish([Ending(job_id=job_id, attempt=1, state=JobState.SUCCEEDED)])
    assert inspect.job(connection, job_id).wait_reason is None


def test_a_row_whose_end_postgres_refuses_is_told_once_and_the_others_end(
    connection: Connection, driver: Queue
) -> None:
    jobs = good(connection)
    odd = min(jobs)
    driver.claim(10)
    run(connection, "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END'")
    run(
        connection,
        "CREATE TRIGGER refuse BEFORE UPDATE ON rythmiq.jobs FOR EACH ROW"
        f" WHEN (OLD.job_id = '{odd}') EXECUTE FUNCTION refuse()",
    )
    endings = [Ending(job_id=job_id, attempt=1, state=JobState.SUCCEEDED) for job_id in jobs]
    for _ in range(3):
        written = driver.finish(endings)
        assert written.ours == jobs - {odd}
        assert written.locked == {odd}
    (refusal,) = driver.refusals()
    assert (refusal.job_id, refusal.ended) == (odd, False)
