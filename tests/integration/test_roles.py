"""deploy/sql/roles.sql on a real Postgres: each role does its whole work and is refused what it must not do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
from inline_driver import Run
from psycopg2.errors import InsufficientPrivilege

from rythmiq_ray import JobSpec, NewGroup, cli, enqueue, enqueue_group
from rythmiq_ray.errors import DatabaseUnavailable
from rythmiq_ray.local.camber.emulator import Emulator
from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.model import Artifact, ErrorInfo, Input, JobState, NewJob, Phase
from rythmiq_ray.queue import (
    Delivery,
    Ending,
    Progress,
    Queue,
    check_database,
    control,
    enqueue_many,
    inspect,
    listing,
    schedules,
)
from rythmiq_ray.queue.control import Scope
from rythmiq_ray.queue.migrations import migrate
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.secret import Secret

ROLES_SQL = Path(__file__).parents[2] / "deploy/sql/roles.sql"
ROLES = ("worker", "retention", "enqueue", "reader", "operator")
TABLES = ("jobs", "attempts", "artifacts", "drivers", "migrations")
Connection = psycopg2.extensions.connection
Login = Callable[[str], str]


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    yield connection
    connection.close()


def run(url: str, *statements: str) -> None:
    with connected(url) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@pytest.fixture
def login(database_url: str) -> Iterator[Login]:
    """The URL by which a member of a role logs in."""
    run(database_url, ROLES_SQL.read_text(encoding="utf-8"))
    run(database_url, *(f"CREATE ROLE a_{role} LOGIN IN ROLE rythmiq_{role}" for role in ROLES))
    yield lambda role: database_url.replace("postgres@", f"a_{role}@", 1)
    run(database_url, *(f"DROP ROLE a_{role}" for role in ROLES))


class RecordingQueue(Queue):
    """Notes which statements it ran."""

    def __init__(self, url: str) -> None:
        super().__init__(Secret(url), lease_s=30.0)
        self.ran = {"session"}

    def _run(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        self.ran.add(name)
        return super()._run(name, **parameters)


def test_the_worker_role_does_all_that_a_driver_does(database_url: str, login: Login) -> None:
    with connected(database_url) as owner:
        enqueue_many(owner, [NewJob(spec=JobSpec(command="true")) for _ in range(3)])
    first, second = RecordingQueue(login("worker")), RecordingQueue(login("worker"))
    for queue in (first, second):
        queue.register()
    assert second.renew()
    assert second.depth().jobs == {("default", "QUEUED"): 3}
    one, two, three = first.claim(10)
    assert first.unfinished()
    steps = [Progress(job_id=job.job_id, attempt=1, phase=Phase.WAITING, remote_id=7) for job in (one, two)]
    assert first.advance(steps).ours == {one.job_id, two.job_id}
    assert first.release() == {one.job_id, two.job_id}
    assert first.disown([]) == {three.job_id}
    first.resign()
    assert {adopted.job.job_id for adopted in second.adopt(10)} == {one.job_id, two.job_id, three.job_id}
    with connected(login("operator")) as operator:
        inspect.cancel(operator, [three.job_id])
        assert "cancel" in notified(second)
    assert second.cancel_requests() == {three.job_id}
    artifact = Artifact(name="log.txt", uri="s3://b/log.txt", bytes=1, sha256="0", content_type="text/plain")
    endings = [
        Ending(job_id=one.job_id, attempt=1, state=JobState.SUCCEEDED, artifacts=(artifact,), artifact_uri="s3://b/m"),
        Ending(job_id=two.job_id, attempt=1, state=JobState.FAILED, retry_delay_s=0.0, cost_credits=1.0),
        Ending(job_id=three.job_id, attempt=1, state=JobState.CANCELLED, error=ErrorInfo(code="cancelled", message="")),
    ]
    for _ in range(2):  # the second time is that of a call whose answer was lost
        assert second.finish(endings).ours == {one.job_id, two.job_id, three.job_id}
    assert second.claim(1)[0].attempt == 2
    with connected(database_url) as owner:
        spent = enqueue(owner, JobSpec(command="true"), priority=1)
        run(database_url, f"UPDATE rythmiq.jobs SET attempt = 2147483647 WHERE job_id = '{spent}'")
    second.claim(1)
    assert [refusal.ended for refusal in second.refusals() if refusal.job_id == spent] == [True]
    for query in ("adoptable", "held"):  # these are for rows that break a take-over or a release
        second._run(query, queues=None, skipped=None, limit=1)
    second.now = one.created_at + timedelta(days=1)
    assert {job.job_id for job in second.uncleaned(10, older_than_s=60.0)} == {one.job_id, two.job_id, three.job_id}
    second.cleaned([(one.job_id, 1)])
    assert second.settle_left(10).handled == 0
    assert not second.control_state([]).draining
    second.adjust_account(first=16.0, grown=1.0, share=None, sent_age_s=0.0)
    second.roles_of("a_worker")
    assert second.may_see("a_enqueue", [one.job_id]) == (False, frozenset())
    second._run("stored_inputs", asked="[]")
    run(
        database_url,
        "INSERT INTO rythmiq.notifications (job_id, url, body)"
        f" SELECT '{two.job_id}', 'https://example.org/', '{{}}' FROM generate_series(1, 2)",
    )
    told, _ = second.take_notifications(10, hold_s=1.0, keep_s=0.0)
    second.record_deliveries([Delivery.of(told, error=None, again_s=None)])
    second.take_notifications(10, hold_s=1.0, keep_s=0.0)
    assert [ended.attempt for ended in second.ended_attempts([(one.job_id, 1)])] == [1]
    assert second.ended_groups([one.job_id], at=[], members=1) == []
    assert len(second.bounds()) == 4
    assert (second.unserved(["default"]), second.left_over().unstored) == (set(), 0)
    with connected(database_url) as owner:
        schedules.add(owner, "often", "* * * * *", job={"command": "true"})
    run(database_url, "UPDATE rythmiq.schedules SET next_at = next_at - interval '1 minute'")
    assert second.fire_schedules(10) == 1
    run(database_url, "DELETE FROM rythmiq.schedules", "DELETE FROM rythmiq.jobs WHERE name = 'often'")
    with connected(login("enqueue")) as producer:
        enqueue(producer, JobSpec(command="true"))
        assert "enqueued" in notified(second)
    with connected(database_url) as owner, owner.cursor() as cursor:
        cursor.execute("GRANT rythmiq_retention TO a_worker")
    (stored,) = second.expired_artifacts(10, older_than_s=0.0)
    assert set(stored.uris) == {"s3://b/log.txt", "s3://b/m"}
    second.forget_artifacts([stored])
    assert second.delete_expired(10, succeeded_s=0.0, failed_s=None, files_first=True) == {one.job_id}
    assert first.ran | second.ran == set(queries("driver")), "a statement of a driver's that was not run here"
    first.close()
    second.close()


def notified(queue: Queue) -> set[str]:
    """What was notified; a notification arrives with the answer to the next statement at the latest."""
    queue.unfinished()
    return queue.notifications()


def test_the_enqueue_role_puts_jobs_in_and_sees_no_spec(database_url: str, login: Login) -> None:
    with connected(login("enqueue")) as connection:
        plain = enqueue(connection, JobSpec(command="plain"), user_id="u", delay=1.0)
        keyed = enqueue(connection, JobSpec(command="keyed"), unique_key="k", queue="q", priority=1, max_attempts=2)
        assert enqueue(connection, JobSpec(command="again"), unique_key="k") == keyed
    with connected(database_url) as owner:
        assert inspect.job(owner, plain).spec.command == "plain"
        assert inspect.job(owner, keyed).spec.command == "keyed"


def test_the_reader_role_shows_everything(
    database_url: str, login: Login, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with connected(database_url) as owner:
        job_id = enqueue(owner, JobSpec(command="true"))
    monkeypatch.setenv("DATABASE_URL", login("reader"))
    seen = {name: shown(capsys, name, *rest) for name, *rest in (["jobs"], ["show", str(job_id)])}
    assert [job["job_id"] for job in seen["jobs"]] == [str(job_id)]
    assert seen["show"]["job_id"] == str(job_id)
    with connected(login("reader")) as reader:
        assert inspect.job(reader, job_id).spec.command == "true"
        assert inspect.attempts(reader, job_id) == []
        assert inspect.artifacts(reader, job_id) == []
        assert [count.jobs for count in listing.counts(reader)] == [1]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What ``rythmiq <arguments> --json`` prints."""
    code = cli.run([*arguments, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    data = json.loads(printed.out)
    return data["items"] if isinstance(data, dict) and "items" in data else data


def test_the_worker_role_alone_deletes_nothing(database_url: str, login: Login) -> None:
    queue = Queue(Secret(login("worker")), lease_s=30.0)
    with pytest.raises(DatabaseUnavailable, match="role may not do this"):
        queue.delete_expired(10, succeeded_s=0.0, failed_s=0.0, files_first=False)
    queue.close()


def test_the_operator_role_cancels_retries_collects_and_prunes(database_url: str, login: Login) -> None:
    with connected(database_url) as owner:
        job_id = enqueue(owner, JobSpec(command="true"), unique_key="k")
        queue = Queue(Secret(database_url), lease_s=0.0)
        queue.register()
        queue.close()
    with connected(login("operator")) as operator:
        assert inspect.cancel(operator, [job_id]) == {job_id: JobState.CANCELLED}
        assert inspect.retry(operator, [job_id]) == {job_id}
        assert inspect.collect(operator, [job_id]) == {job_id: "it is RETRYING"}
        assert inspect.cancel(operator, queue="default") == {job_id: JobState.CANCELLED}
        assert [job.job_id for job in inspect.prunable(operator, older_than_s=0.0, limit=10)] == [job_id]
        assert inspect.prune(operator, [job_id], older_than_s=0.0) == {job_id}
        inspect.prune_drivers(operator, older_than_s=0.0)
        assert list(listing.jobs(operator)) == []


EVERYBODY = [
    "CREATE TABLE rythmiq.mine ()",
    "CREATE FUNCTION rythmiq.mine() RETURNS void LANGUAGE sql AS ''",
    "ALTER TABLE rythmiq.jobs ADD COLUMN mine text",
    "DROP TABLE rythmiq.artifacts",
    "CREATE INDEX ON rythmiq.jobs (user_id)",
    "ALTER TABLE rythmiq.jobs DISABLE TRIGGER jobs_enqueued",
    "CREATE ROLE mine",
    "CREATE SCHEMA mine",
    *(f"TRUNCATE rythmiq.{table} CASCADE" for table in TABLES),
    *(f"DELETE FROM rythmiq.{table}" for table in ("attempts", "migrations")),
    *(f"UPDATE rythmiq.jobs SET {column} = {column}" for column in ("job_id", "spec", "user_id", "queue", "priority")),
    "UPDATE rythmiq.artifacts SET name = ''",
    "UPDATE rythmiq.migrations SET version_num = ''",
]
REFUSED = {
    "worker": [
        """INSERT INTO rythmiq.jobs (spec) VALUES ('{"command": "mine"}')""",
        "UPDATE rythmiq.jobs SET cancel_requested_at = now()",
        "UPDATE rythmiq.jobs SET max_attempts = 100",
        "UPDATE rythmiq.jobs SET unique_key = NULL",
        "UPDATE rythmiq.attempts SET remote_path = 'rythmiq/another/1'",
        "UPDATE rythmiq.drivers SET hostname = 'another'",
        "DELETE FROM rythmiq.jobs",
        "DELETE FROM rythmiq.drivers",
        "SELECT FROM rythmiq.migrations",
        "DELETE FROM rythmiq.artifacts",
    ],
    "retention": [
        """INSERT INTO rythmiq.jobs (spec) VALUES ('{"command": "mine"}')""",
        "UPDATE rythmiq.jobs SET state = 'CANCELLED'",
        "UPDATE rythmiq.attempts SET cleaned_at = now()",
        "DELETE FROM rythmiq.drivers",
        "SELECT FROM rythmiq.drivers",
        "SELECT FROM rythmiq.migrations",
    ],
    "enqueue": [
        "SELECT spec FROM rythmiq.jobs",
        "SELECT user_id FROM rythmiq.jobs",
        "SELECT error_message FROM rythmiq.jobs",
        "SELECT * FROM rythmiq.jobs",
        """INSERT INTO rythmiq.jobs (spec) VALUES ('{"command": "mine"}') RETURNING spec""",
        """INSERT INTO rythmiq.jobs (spec, state) VALUES ('{"command": "mine"}', 'SUCCEEDED')""",
        """INSERT INTO rythmiq.jobs (spec, remote_path) VALUES ('{"command": "mine"}', 'rythmiq/another/1')""",
        "UPDATE rythmiq.jobs SET state = 'CANCELLED'",
        "UPDATE rythmiq.jobs SET next_visible_at = now()",
        "DELETE FROM rythmiq.jobs",
        "DELETE FROM rythmiq.artifacts",
        *(f"SELECT FROM rythmiq.{table}" for table in TABLES if table != "jobs"),
    ],
    "reader": [
        """INSERT INTO rythmiq.jobs (spec) VALUES ('{"command": "mine"}')""",
        "UPDATE rythmiq.jobs SET cancel_requested_at = now()",
        "UPDATE rythmiq.jobs SET state = 'CANCELLED'",
        "SELECT FROM rythmiq.jobs FOR UPDATE",
        "DELETE FROM rythmiq.jobs",
        "DELETE FROM rythmiq.drivers",
        "DELETE FROM rythmiq.artifacts",
        "UPDATE rythmiq.artifacts SET sha256 = ''",
    ],
    "operator": [
        """INSERT INTO rythmiq.jobs (spec) VALUES ('{"command": "mine"}')""",
        "UPDATE rythmiq.jobs SET driver_id = NULL",
        "UPDATE rythmiq.drivers SET lease_expires_at = now()",
        "UPDATE rythmiq.attempts SET remote_path = 'rythmiq/another/1'",
        "DELETE FROM rythmiq.artifacts",
        "UPDATE rythmiq.artifacts SET sha256 = ''",
    ],
}


@pytest.mark.parametrize("role", ROLES)
def test_the_role_is_refused_the_rest(login: Login, role: str) -> None:
    allowed = []
    with connected(login(role)) as connection, connection.cursor() as cursor:
        for statement in EVERYBODY + REFUSED[role]:
            try:
                cursor.execute(statement)
            except InsufficientPrivilege:
                continue
            allowed.append(statement)
    assert allowed == []


def test_again_gives_the_same_rights_and_takes_back_others(database_url: str, login: Login) -> None:
    def rights() -> list[tuple[Any, ...]]:
        with connected(database_url) as connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT grantee, table_name, column_name, privilege_type FROM information_schema.column_privileges "
                "WHERE table_schema = 'rythmiq' AND grantee LIKE 'rythmiq_%' ORDER BY 1, 2, 3, 4"
            )
            return cursor.fetchall()

    before = rights()
    run(
        database_url,
        "GRANT ALL ON rythmiq.jobs TO rythmiq_enqueue",
        "GRANT SELECT (spec) ON rythmiq.jobs TO PUBLIC",
        "GRANT CREATE ON SCHEMA rythmiq TO rythmiq_worker",
    )
    assert rights() != before
    run(database_url, ROLES_SQL.read_text(encoding="utf-8"))
    assert rights() == before
    with pytest.raises(InsufficientPrivilege):
        run(login("worker"), "CREATE TABLE rythmiq.mine ()")
    with pytest.raises(InsufficientPrivilege):
        run(login("enqueue"), "SELECT spec FROM rythmiq.jobs")


def test_no_superuser_is_needed(postgres: Postgres) -> None:
    """An owner that may create roles migrates, gives the rights and makes logins, twice."""
    owner = postgres.url.replace("postgres@", "an_owner@", 1).replace("/postgres?", "/owned?", 1)
    run(postgres.url, "CREATE ROLE an_owner LOGIN CREATEROLE", "CREATE DATABASE owned OWNER an_owner")
    run(postgres.url, *(f"DROP ROLE IF EXISTS rythmiq_{role}" for role in ROLES))
    try:
        for _ in range(2):
            migrate(Secret(owner))
            run(owner, ROLES_SQL.read_text(encoding="utf-8"))
        with connected(postgres.url) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT rolname FROM pg_roles WHERE rolname LIKE 'rythmiq\\_%' ORDER BY 1")
            assert [row[0] for row in cursor.fetchall()] == sorted(f"rythmiq_{role}" for role in ROLES)
    finally:
        run(postgres.url, "DROP DATABASE owned WITH (FORCE)", "REASSIGN OWNED BY an_owner TO postgres")
        run(postgres.url, "DROP OWNED BY an_owner", "DROP ROLE an_owner")


def test_a_driver_is_told_at_its_start_of_a_right_that_its_role_lacks(database_url: str, login: Login) -> None:
    worker = Secret(login("worker"))
    check_database(worker)
    with pytest.raises(DatabaseUnavailable, match="role may not do this: permission denied for table"):
        check_database(worker, retention=True)
    run(database_url, "GRANT rythmiq_retention TO a_worker")
    check_database(worker, retention=True)
    run(database_url, "REVOKE UPDATE (keep_until) ON rythmiq.attempts FROM rythmiq_worker")
    with pytest.raises(DatabaseUnavailable, match="role may not do this: permission denied for table attempts"):
        check_database(worker)


def test_a_login_names_the_secrets_that_it_was_granted(database_url: str, login: Login) -> None:
    """As the driver asks it: by login, by role, and for a login that is gone."""
    with connected(database_url) as owner, connected(login("enqueue")) as producer:
        job_id = enqueue(producer, JobSpec(command="true", secrets=("TOKEN",)))
        assert inspect.job(owner, job_id).enqueued_by == "a_enqueue"
    worker = Queue(Secret(login("worker")), lease_s=30)
    worker.register()
    assert worker.roles_of("a_enqueue") == (frozenset({"a_enqueue", "rythmiq_enqueue"}), False)
    assert worker.roles_of("a_operator")[1]
    assert worker.roles_of("nobody_any_more") == (frozenset(), False)
    worker.close()


def test_only_who_is_on_call_bounds_what_others_put_in(database_url: str, login: Login) -> None:
    with (
        connected(login("enqueue")) as producer,
        connected(login("operator")) as on_call,
        connected(login("reader")) as reader,
        connected(database_url) as owner,
    ):
        mine, _ = enqueue_group(producer, NewGroup(name="mine"), [NewJob(spec=JobSpec(command="true"))])
        others, _ = enqueue_group(owner, NewGroup(), [NewJob(spec=JobSpec(command="true"))])
        control.pause(producer, Scope("group", str(mine)))
        control.resume(producer, Scope("group", str(mine)))
        for refused in (Scope("account"), Scope("user", "*"), Scope("group", str(others))):
            with pytest.raises((InsufficientPrivilege, DatabaseUnavailable)):
                control.pause(producer, refused)
            with pytest.raises((InsufficientPrivilege, DatabaseUnavailable)):
                control.pause(reader, refused)
            control.pause(on_call, refused)
            control.set_budget(on_call, refused, 1.0, "all")
        assert len(control.limits(reader)) == 6
        control.cost(reader, by="user")
        for statement in (
            "UPDATE rythmiq.limits SET paused = false",
            "DELETE FROM rythmiq.costs",
            "UPDATE rythmiq.account SET found_limit = 9",
        ):
            for session in (producer, on_call, reader):
                with pytest.raises(InsufficientPrivilege):
                    session.cursor().execute(statement)


def test_a_schedules_runs_are_of_whoever_wrote_it_and_of_nobody_else(database_url: str, login: Login) -> None:
    evil = {"command": "mine", "secrets": ["TOKEN"]}
    with (
        connected(login("enqueue")) as producer,
        connected(login("operator")) as on_call,
        connected(database_url) as owner,
        producer.cursor() as cursor,
    ):
        kept = enqueue(producer, JobSpec(command="true", secrets=("TOKEN",)), unique_key="k")
        for name, line in (("held", {"job": {"command": "true", "unique_key": "k"}}), ("own", {"job": evil})):
            schedules.add(on_call, name, "* * * * *", **line)
        schedules.add(on_call, "sweep", "* * * * *", sweep={"jobs": [evil, {**evil, "unique_key": "k"}]})
        schedules.run(on_call, "held")
        assert inspect.job(owner, kept).enqueued_by == "a_enqueue", "it holds the key, and stays its login's"

        worker = Queue(Secret(login("worker")), lease_s=30)
        worker.register()
        run(database_url, "UPDATE rythmiq.schedules SET next_at = next_at - interval '1 minute'")
        assert worker.fire_schedules(10) == 2
        worker.close()
        jobs = list(listing.jobs(owner))
        assert {job.job_id for job in jobs if job.enqueued_by == "a_enqueue"} == {kept}
        assert {job.enqueued_by for job in jobs if job.spec.command == "mine"} == {"a_operator"}
        assert inspect.job(owner, enqueue(owner, JobSpec(command="after"))).enqueued_by == "postgres"

        cursor.execute("SELECT set_config('rythmiq.enqueuer', 'a_operator', false)")
        cursor.execute("""SELECT rythmiq.enqueue('{"command": "true"}')""")
        (forged,) = cursor.fetchone() or ()
        assert inspect.job(owner, forged).enqueued_by == "a_enqueue"

        schedules.add(owner, "nightly", "* * * * *", job={"command": "true"})
        schedules.add(on_call, "nightly", "* * * * *", job=evil, replace=True)
        assert schedules.schedules(owner, "nightly")[0].enqueued_by == "a_operator"


def test_a_login_lifts_no_brake_that_somebody_else_has_set(database_url: str, login: Login) -> None:
    with connected(login("enqueue")) as producer, connected(login("operator")) as on_call:
        group_id, _ = enqueue_group(producer, NewGroup(name="mine"), [NewJob(spec=JobSpec(command="true"))])
        mine = Scope("group", str(group_id))
        control.set_limit(producer, mine, max_running=1)
        control.unset_limit(producer, mine)
        control.pause(on_call, mine, reason="runaway")
        control.set_budget(on_call, mine, 1.0, "all")
        for lift in (
            lambda: control.resume(producer, mine),
            lambda: control.pause(producer, mine),
            lambda: control.set_limit(producer, mine, max_running=1),
            lambda: control.unset_budget(producer, mine),
            lambda: control.set_budget(producer, mine, 100.0, "all"),
        ):
            with pytest.raises((InsufficientPrivilege, DatabaseUnavailable)):
                lift()
        assert {(limit.paused, limit.credits) for limit in control.limits(on_call)} == {(True, None), (False, 1.0)}
        control.unset_budget(on_call, mine)
        control.resume(on_call, mine)
        control.pause(producer, mine)


def test_no_function_that_runs_as_the_owner_believes_what_a_login_made_up(database_url: str) -> None:
    with connected(database_url) as connection, connection.cursor() as cursor:
        # A temporary table or type of a login comes before pg_catalog unless pg_temp is named, behind it.
        cursor.execute(
            "SELECT p.proname FROM pg_proc AS p WHERE p.pronamespace = 'rythmiq'::regnamespace AND p.prosecdef"
            " AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY(p.proconfig), false)"
        )
        assert cursor.fetchall() == []
        # Whoever may execute a trigger's function may attach it to a table of his own.
        cursor.execute(
            "SELECT p.proname FROM pg_proc AS p WHERE p.pronamespace = 'rythmiq'::regnamespace AND p.prosecdef"
            " AND p.prorettype = 'trigger'::regtype AND has_function_privilege('public', p.oid, 'EXECUTE')"
        )
        assert cursor.fetchall() == []


def test_a_uri_of_what_another_login_stored_is_no_way_around(
    database_url: str, login: Login, camber: Emulator, tmp_path: Path
) -> None:
    run_ = Run(database_url, tmp_path / "store", camber.endpoint)
    theirs = enqueue(run_.connection, JobSpec(command="echo secret >out.txt", outputs=("out.txt",)))
    run_.until(lambda: inspect.job(run_.connection, str(theirs)).state.finished, "theirs ends")
    (stored,) = (tmp_path / "store").rglob("out.txt")
    with connected(login("enqueue")) as gateway:
        own = enqueue(gateway, JobSpec(command="echo own >out.txt", outputs=("out.txt",)))
        run_.until(lambda: inspect.job(run_.connection, str(own)).state.finished, "its own ends")
        (mine,) = (path for path in (tmp_path / "store").rglob("out.txt") if str(own) in str(path))
        taking = enqueue(gateway, JobSpec(command="true", inputs=(Input(uri=f"file://{stored}", name="x"),)))
        using = enqueue(gateway, JobSpec(command="true", inputs=(Input(uri=f"file://{mine}", name="x"),)))
        spec = JobSpec(command="true", inputs=(Input(uri=f"file:///{stored}", name="x"),))
        left = enqueue(gateway, spec, queue="left")
    died = Queue(Secret(database_url), queues=("left",), lease_s=1.0)
    died.register()
    assert [job.job_id for job in died.claim(1)] == [left]
    died.close()
    by_owner = enqueue(run_.connection, JobSpec(command="true", inputs=(Input(uri=f"file://{mine}", name="x"),)))
    ids = (taking, using, by_owner, left)
    run_.until(lambda: all(inspect.job(run_.connection, str(each)).state.finished for each in ids), "all end")
    taken, used, owners, taken_over = (inspect.job(run_.connection, str(each)) for each in ids)
    assert (taken.state, taken.error_code, taken.remote_id) == (JobState.FAILED, "invalid_job", None)
    assert "did not enqueue" in str(taken.error_message)
    assert (taken_over.state, taken_over.error_code, taken_over.remote_id) == (JobState.FAILED, "invalid_job", None)
    assert (used.state, owners.state) == (JobState.SUCCEEDED, JobState.SUCCEEDED)
