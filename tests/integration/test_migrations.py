"""The schema's upgrades on a real Postgres: from 0.1.0 with drivers of it at work, and with others in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.extensions
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from rythmiq_ray import JobSpec, NewJob, cli, enqueue_many
from rythmiq_ray.errors import ConfigurationError, DatabaseUnavailable
from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import Ending, Queue, check_database, check_schema, listing, migrations, schema
from rythmiq_ray.queue.connection import connect
from rythmiq_ray.queue.migrations import migrate
from rythmiq_ray.secret import Secret

ROOT = Path(__file__).parents[2]
COMMIT_OF_0_1_0 = "d5b3067"
FIRST_SQL = ROOT / "rythmiq_ray/queue/migrations/versions/0001_jobs.sql"
STATES = ("QUEUED", "RETRYING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED")
REVISIONS = sorted(file.name[:4] for file in FIRST_SQL.parent.glob("0*.sql"))


@contextmanager
def connected(url: str) -> Iterator[psycopg2.extensions.connection]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    yield connection
    connection.close()


def run(url: str, *statements: str) -> list[tuple[Any, ...]]:
    with connected(url) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
def first_url(empty_database_url: str) -> str:
    """A database of 0.1.0 with a job in every state, of each a few."""
    run(
        empty_database_url,
        "CREATE SCHEMA rythmiq",
        FIRST_SQL.read_text(encoding="utf-8"),
        "CREATE TABLE rythmiq.migrations (version_num varchar(32) PRIMARY KEY)",
        "INSERT INTO rythmiq.migrations VALUES ('0001')",
        *(
            "INSERT INTO rythmiq.jobs (job_id, remote_path, spec, state, phase, attempt, finished_at)"
            """ SELECT job_id, 'rythmiq/' || job_id || '/1',"""
            """ '{"command": "true", "engine": "base", "node_size": "xsmall"}',"""
            f" state, CASE state WHEN 'RUNNING' THEN 'waiting' END, CASE state WHEN 'QUEUED' THEN 0 ELSE 1 END,"
            f" {'now()' if state in STATES[3:] else 'NULL'} FROM (SELECT '{state}' AS state) AS s,"
            " (SELECT gen_random_uuid() AS job_id FROM generate_series(1, 5)) AS ids"
            for state in STATES
        ),
        "INSERT INTO rythmiq.attempts (job_id, attempt, remote_path, state, started_at, finished_at)"
        " SELECT job_id, 1, 'rythmiq/' || job_id || '/1', CASE state WHEN 'RETRYING' THEN 'FAILED' ELSE state END,"
        " now(), finished_at FROM rythmiq.jobs WHERE attempt = 1",
    )
    return empty_database_url


def test_a_schema_of_0_1_0_with_rows_in_every_state_is_upgraded(first_url: str) -> None:
    assert migrate(Secret(first_url)) == REVISIONS[1:]
    assert migrate(Secret(first_url)) == []
    with connected(first_url) as connection:
        check_schema(connection)
        assert {(job.warnings, job.free_attempts, job.collect_until) for job in listing.jobs(connection)} == {
            ((), 0, None)
        }
        assert {count.state: count.jobs for count in listing.counts(connection)} == dict.fromkeys(STATES, 5)
    queue = Queue(Secret(first_url), lease_s=30)
    queue.register()
    claimed = queue.claim(100)
    assert len(claimed) == 10
    assert len(queue.adopt(100)) == 5
    endings = [Ending(job_id=job.job_id, attempt=job.attempt, state=JobState.SUCCEEDED) for job in claimed]
    assert queue.finish(endings).ours == {job.job_id for job in claimed}
    queue.close()


def test_what_reads_a_whole_table_comes_after_the_transaction(first_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run(
        first_url,
        "UPDATE rythmiq.jobs SET user_id = '*' WHERE state IN ('QUEUED', 'FAILED')",
        "UPDATE rythmiq.jobs SET cost_credits = 0.5 WHERE state IN ('RETRYING', 'SUCCEEDED')",
    )
    costs = "SELECT user_id, queue, sum(credits), sum(jobs) FROM rythmiq.costs GROUP BY 1, 2"
    complete = migrations._complete
    seen: list[list[tuple[Any, ...]]] = []

    def killed(dsn: Secret) -> None:
        seen.append(run(first_url, costs))
        run(first_url, "UPDATE rythmiq.jobs SET cost_credits = 1.5 WHERE state = 'RETRYING'")
        seen.append(run(first_url, costs))
        raise DatabaseUnavailable("killed")

    monkeypatch.setattr(migrations, "_complete", killed)
    with pytest.raises(DatabaseUnavailable, match="killed"):
        migrate(Secret(first_url))
    assert seen == [[], [("", "default", 5.0, 0)]], "what ends meanwhile is counted"
    monkeypatch.setattr(migrations, "_complete", complete)
    for _ in range(2):
        assert migrate(Secret(first_url)) == []
        assert run(first_url, costs) == [("", "default", 10.0, 10)]
    assert run(first_url, "SELECT DISTINCT user_id FROM rythmiq.jobs") == [(None,)]


def test_no_table_is_written_anew(first_url: str) -> None:
    files = "SELECT relname, pg_relation_filenode(oid) FROM pg_class WHERE relname IN ('jobs', 'attempts') ORDER BY 1"
    before = run(first_url, files)
    migrate(Secret(first_url))
    assert run(first_url, files) == before


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of 0.1.0, from the history."""
    folder = tmp_path_factory.mktemp("former")
    archive = subprocess.run(
        ["git", "archive", COMMIT_OF_0_1_0, "rythmiq_ray", "conf"], cwd=ROOT, capture_output=True, check=False
    )
    if archive.returncode != 0:
        pytest.skip(f"no git history with {COMMIT_OF_0_1_0}, in which 0.1.0 is")
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


FORMER_DRIVER = """
import json, sys
from uuid import UUID
from rythmiq_ray import __file__ as where
from rythmiq_ray.model import Artifact, ErrorInfo, JobState, Phase
from rythmiq_ray.queue import Ending, Progress, Queue
from rythmiq_ray.secret import Secret

queue = Queue(Secret(sys.argv[1]), lease_s=30)
queue.register()
held = {}
for line in sys.stdin:
    name, *arguments = json.loads(line)
    if name == "where":
        answer = where
    elif name == "claim":
        jobs = queue.claim(*arguments)
        held.update({str(job.job_id): job for job in jobs})
        answer = sorted(str(job.job_id) for job in jobs)
    elif name == "adopt":
        adopted = queue.adopt(*arguments)
        held.update({str(one.job.job_id): one.job for one in adopted})
        answer = [[str(one.job.job_id), one.orphaned_s] for one in adopted]
    elif name == "advance":
        steps = [Progress(job_id=job.job_id, attempt=job.attempt, phase=Phase.WAITING) for job in held.values()]
        answer = sorted(map(str, queue.advance(steps)))
    elif name == "finish":
        artifact = Artifact(name="log.txt", uri="s3://b/log.txt", bytes=1, sha256="0", content_type="text/plain")
        answer = sorted(map(str, queue.finish([
            Ending(job_id=UUID(job_id), attempt=held[job_id].attempt, state=JobState.SUCCEEDED, artifacts=(artifact,))
            for job_id in arguments[0]])))
    elif name == "uncleaned":
        answer = len(queue.uncleaned(100, older_than_s=0.0))
    else:
        found = getattr(queue, name)()
        answer = sorted(map(str, found)) if isinstance(found, set) else found
    print(json.dumps(answer), flush=True)
"""


class FormerDriver:
    """A driver's queue of 0.1.0 in a process of its own."""

    def __init__(self, package: Path, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", FORMER_DRIVER, url],
            env={**os.environ, "PYTHONPATH": str(package)},
            cwd=package,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, name: str, *arguments: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=30)


def test_a_driver_of_0_1_0_works_on_beside_a_new_one_through_the_upgrade(first_url: str, former: Path) -> None:
    old = FormerDriver(former, first_url)
    assert str(former) in old.ask("where")
    before = old.ask("claim", 4)
    assert len(before) == 4
    migrate(Secret(first_url))
    assert old.ask("advance") == before
    assert old.ask("renew") is True
    assert old.ask("finish", before[:2]) == before[:2]

    new = Queue(Secret(first_url), lease_s=30)
    new.register()
    mine = {str(job.job_id) for job in new.claim(3)}
    theirs = set(old.ask("claim", 100))
    assert len(mine) == 3
    assert len(theirs) == 3
    assert not mine & theirs
    released = old.ask("release")
    assert released == before[2:], "those that wait"
    adopted = {str(one.job.job_id) for one in new.adopt(100)}
    assert set(released) <= adopted

    # The old one is taken for dead: whatever it had begun by then, it neither renews nor writes.
    its_lease = (
        f"UPDATE rythmiq.drivers SET lease_expires_at = now() - interval '1 s' WHERE driver_id <> '{new.driver_id}'"
    )
    run(first_url, its_lease)
    taken = {str(one.job.job_id): one.orphaned_s for one in new.adopt(100)}
    assert taken.keys() == theirs
    assert all(1 <= seconds < 20 for seconds in taken.values())
    assert old.ask("renew") is False
    assert old.ask("advance") == []
    assert old.ask("finish", sorted(theirs)) == []
    assert old.ask("claim", 10) == []

    # And a new one is taken over by an old one.
    old.ask("register")
    new.resign()
    seen = {job_id for job_id, _ in old.ask("adopt", 100)}
    assert seen == mine | theirs | adopted
    assert not new.renew()
    assert new.finish([Ending(job_id=UUID(next(iter(mine))), attempt=1, state=JobState.SUCCEEDED)]).ours == frozenset()
    assert old.ask("finish", sorted(seen)) == sorted(seen)
    assert old.ask("uncleaned") >= len(seen)
    with connected(first_url) as connection:
        assert all(count.state not in ("QUEUED", "RUNNING") for count in listing.counts(connection))
    old.close()
    new.close()


def test_a_program_looks_at_the_schema_before_it_does_anything(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)

    def said() -> str:
        with pytest.raises(DatabaseUnavailable) as caught:
            check_database(Secret(database_url))
        assert cli.run(["jobs"]) == 1
        assert capsys.readouterr().err == f"rythmiq: {caught.value.message}\n"
        assert "\n" not in caught.value.message
        return caught.value.message

    def recorded(revision: str, usable_from: str) -> None:
        run(database_url, schema.record(revision, usable_from))

    check_database(Secret(database_url))
    recorded("9999", "0001")
    check_database(Secret(database_url))
    recorded("9999", schema.REVISION)
    check_database(Secret(database_url))
    recorded("9999", "9999")
    assert "upgrade it" in said()
    run(database_url, "COMMENT ON TABLE rythmiq.migrations IS NULL")
    assert "run `rythmiq migrate`" in said()
    migrate(Secret(database_url))
    check_database(Secret(database_url))
    run(database_url, "UPDATE rythmiq.migrations SET version_num = '9999'")
    with pytest.raises(DatabaseUnavailable, match="upgrade the program"):
        migrate(Secret(database_url))
    run(database_url, "DROP SCHEMA rythmiq CASCADE")
    assert "is missing: run `rythmiq migrate`" in said()


def test_every_login_may_ask_whether_the_schema_fits(database_url: str) -> None:
    run(database_url, "CREATE ROLE nobody_else LOGIN")
    try:
        with pytest.raises(DatabaseUnavailable, match="role may not do this: permission denied for schema rythmiq"):
            check_database(Secret(database_url.replace("postgres@", "nobody_else@", 1)))
    finally:
        run(database_url, "DROP ROLE nobody_else")


def test_the_revision_is_the_newest_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.REVISION


def test_two_places_at_once_migrate_once(empty_database_url: str) -> None:
    applied: list[list[str]] = []
    threads = [threading.Thread(target=lambda: applied.append(migrate(Secret(empty_database_url)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied) == [[], [], [], REVISIONS]
    assert invalid(empty_database_url) == set()


def invalid(url: str) -> set[str]:
    """The indexes that should be there and are not, or not valid."""
    found = run(url, "SELECT indexrelid::regclass::text FROM pg_index WHERE indisvalid")
    return {f"rythmiq.{name}" for name in migrations._indexes()} - {row[0] for row in found}


def test_whoever_builds_an_index_is_not_waited_for_in_a_transaction(database_url: str) -> None:
    """The build would wait for that transaction, and Postgres would end one of the two."""
    with connect(Secret(database_url), statement_timeout_s=0) as builder, builder.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", (migrations._BUILD_LOCK,))
        assert migrations._upgrade(Secret(database_url)) == []
    builder.close()


def test_an_index_that_a_killed_run_left_half_built_is_built_anew(database_url: str) -> None:
    assert invalid(database_url) == set()
    run(
        database_url,
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'rythmiq.jobs_lanes'::regclass",
        "DROP INDEX rythmiq.attempts_stored",
    )
    assert invalid(database_url) == {"rythmiq.jobs_lanes", "rythmiq.attempts_stored"}
    migrate(Secret(database_url))
    assert invalid(database_url) == set()


def test_a_migration_gives_way_to_a_session_that_holds_a_table_and_says_so(
    first_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "_LOCK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(migrations, "_PAUSE_S", 0.1)
    monkeypatch.setattr(migrations, "_TRIES", 2)
    holder = psycopg2.connect(first_url)
    holder.cursor().execute("SELECT count(*) FROM rythmiq.jobs")
    with pytest.raises(DatabaseUnavailable, match="pg_stat_activity"):
        migrate(Secret(first_url))
    assert run(first_url, "SELECT version_num FROM rythmiq.migrations") == [("0001",)]
    monkeypatch.setattr(migrations, "_TRIES", 100)
    told: list[str] = []

    def tell(words: str) -> None:
        told.append(words)
        holder.rollback()

    assert migrate(Secret(first_url), tell=tell) == REVISIONS[1:], "it tries again"
    assert len(told) == 1
    assert told[0].startswith("Waiting for another session: ")
    holder.close()


def test_an_index_waits_for_no_more_than_its_time_and_the_schema_is_there(
    first_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "_INDEX_TIMEOUT_S", 0.3)
    other = psycopg2.connect(first_url)
    # It has a snapshot and no table of ours, as a report that runs for hours.
    other.cursor().execute("SET default_transaction_isolation = 'repeatable read'")
    other.commit()
    other.cursor().execute("CREATE TEMPORARY TABLE mine (id integer); INSERT INTO mine VALUES (1)")
    try:
        with pytest.raises(DatabaseUnavailable, match=r"its index \w+ was not built"):
            migrate(Secret(first_url))
        with connected(first_url) as connection:
            check_schema(connection)
    finally:
        other.rollback()
        other.close()
    assert migrate(Secret(first_url)) == []
    assert invalid(first_url) == set()


def test_the_schemas_owner_needs_no_right_on_the_database(postgres: Postgres) -> None:
    owner = postgres.url.replace("postgres@", "mere_owner@", 1).replace("/postgres?", "/mere?", 1)
    run(postgres.url, "CREATE ROLE mere_owner LOGIN", "CREATE DATABASE mere")
    mere = postgres.url.replace("/postgres?", "/mere?", 1)
    try:
        run(mere, "REVOKE CREATE ON DATABASE mere FROM PUBLIC", "CREATE SCHEMA rythmiq AUTHORIZATION mere_owner")
        assert migrate(Secret(owner)) == REVISIONS
        assert migrate(Secret(owner)) == []
    finally:
        run(postgres.url, "DROP DATABASE mere WITH (FORCE)", "DROP ROLE mere_owner")


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_of_another_encoding_is_refused_in_one_line(
    postgres: Postgres, encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(postgres.url, f"CREATE DATABASE odd_one ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    url = postgres.url.replace("/postgres?", "/odd_one?", 1)
    try:
        with pytest.raises(ConfigurationError, match=f"encoding is {encoding}"):
            migrate(Secret(url))
        with pytest.raises(ConfigurationError, match=f"encoding is {encoding}"):
            check_database(Secret(url))
        monkeypatch.setenv("DATABASE_URL", url)
        assert cli.run(["migrate"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert run(url, "SELECT 1 FROM pg_namespace WHERE nspname = 'rythmiq'") == []
    finally:
        run(postgres.url, "DROP DATABASE odd_one WITH (FORCE)")


def test_a_claim_by_queues_reads_no_more_than_it_takes(database_url: str) -> None:
    with connected(database_url) as connection, connection.cursor() as cursor:
        enqueue_many(connection, [NewJob(spec=JobSpec(command="true"), queue=name) for name in ("gpu", "big") * 50])
        cursor.execute(
            "INSERT INTO rythmiq.jobs (spec, queue, priority) SELECT '{}', 'other', 9 FROM generate_series(1, 50000)"
        )
        cursor.execute("ANALYZE rythmiq.jobs")
        queue = Queue(Secret(database_url), lease_s=30, queues=["gpu", "big"])
        queue.register()
        for queues in (["gpu"], ["gpu", "big", "gpu"]):
            claimer = Queue(Secret(database_url), lease_s=30, queues=queues)
            claimer.register()
            before = rows_read(cursor)
            assert len(claimer.claim(20)) == 20
            claimer.close()  # what it read is counted once its session has ended
            deadline = time.monotonic() + 10
            while rows_read(cursor) == before and time.monotonic() < deadline:
                time.sleep(0.05)
            read = rows_read(cursor) - before
            assert read < 400, f"{read} rows read for {queues}"
            run(database_url, "UPDATE rythmiq.jobs SET state = 'QUEUED', phase = NULL WHERE state = 'RUNNING'")
        jobs = queue.claim(100)
        assert [job.queue for job in jobs] == ["gpu", "big"] * 50, "one order over all the queues"
        queue.close()


def rows_read(cursor: psycopg2.extensions.cursor) -> int:
    cursor.execute("SELECT pg_stat_clear_snapshot()")
    cursor.execute("SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'jobs'")
    return int((cursor.fetchone() or (0,))[0])


def queries(name: str) -> str:
    from rythmiq_ray.queue.sql import queries as of

    return of("driver")[name]


def walk(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", []):
        yield from walk(child)


def test_our_connections_read_committed_whatever_the_role_says(database_url: str) -> None:
    name = database_url.rpartition("/")[2].partition("?")[0]
    run(database_url, f"ALTER DATABASE {name} SET default_transaction_isolation = 'serializable'")
    connection = connect(Secret(database_url))
    with connection.cursor() as cursor:
        cursor.execute("SHOW transaction_isolation")
        assert cursor.fetchone() == ("read committed",)
    connection.close()
