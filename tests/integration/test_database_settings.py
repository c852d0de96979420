"""Databases as operators set them up: encodings, addresses with odd passwords, poolers."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest

from rythmiq_ray import JobSpec, NewGroup, NewJob, cli, enqueue_group, enqueue_many
from rythmiq_ray.errors import ConfigurationError, DatabaseUnavailable
from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.local.process import free_ports
from rythmiq_ray.queue import Queue, check_database, listing
from rythmiq_ray.queue.connection import connect
from rythmiq_ray.secret import Secret

TEXT = "ä€漢𝄞"


def run(url: str, statement: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    connection.cursor().execute(statement)
    connection.close()


# --------------------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize("by", ["role", "environment", "address"])
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_no_setting_of_an_encoding_changes_what_is_stored(
    database_url: str, by: str, encoding: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = database_url.rpartition("/")[2].partition("?")[0]
    if by == "role":
        run(database_url, f"ALTER DATABASE {name} SET client_encoding = '{encoding}'")
    elif by == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", encoding)
    monkeypatch.setenv("DATABASE_URL", database_url + (f"&client_encoding={encoding}" if by == "address" else ""))
    given = ["--user-id", TEXT, "--queue", TEXT, "--unique-key", TEXT, "--env", f"A={TEXT}"]
    assert cli.run(["enqueue", "--command", TEXT, *given]) == 0, capsys.readouterr().err
    assert cli.run(["enqueue", "--command", TEXT, "--user-id", TEXT]) == 0, capsys.readouterr().err
    queue = Queue(Secret(os.environ["DATABASE_URL"]), lease_s=30, queues=[TEXT, "default"])
    queue.register()
    jobs = queue.claim(10)
    assert {(job.spec.command, job.user_id) for job in jobs} == {(TEXT, TEXT)}
    assert {(job.queue, job.unique_key) for job in jobs} == {(TEXT, TEXT), ("default", None)}
    queue.close()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP", "UTF8"])
@pytest.mark.parametrize("autocommit", [True, False])
def test_enqueue_in_a_callers_session_stores_every_text_and_leaves_its_settings(
    database_url: str, encoding: str, autocommit: bool
) -> None:
    connection = psycopg2.connect(database_url, client_encoding=encoding)
    connection.autocommit = autocommit
    keys = [None, TEXT, "plain", TEXT + "2"]
    jobs = [NewJob(spec=JobSpec(command=TEXT), user_id=TEXT, queue=TEXT, unique_key=key) for key in keys]
    ids = enqueue_many(connection, jobs)
    assert enqueue_many(connection, jobs)[1:] == ids[1:]
    group_id, members = enqueue_group(
        connection,
        NewGroup(name=TEXT, user_id=TEXT, labels={"k": TEXT}),
        [NewJob(spec=JobSpec(command="true"), name=TEXT), NewJob(spec=JobSpec(command="true"), after=(TEXT,))],
    )
    (joined,) = enqueue_many(connection, [NewJob(spec=JobSpec(command="true"), group=TEXT, after_ended=[TEXT])])
    if not autocommit:
        connection.commit()
    with connection.cursor() as cursor:
        cursor.execute("SHOW client_encoding")
        assert cursor.fetchone() == (encoding,)
    connection.close()
    reader = connect(Secret(database_url))
    found = {job.job_id: job for job in listing.jobs(reader)}
    for job_id, key in zip(ids, keys, strict=True):
        job = found[job_id]
        assert (job.spec.command, job.user_id, job.queue, job.unique_key) == (TEXT, TEXT, TEXT, key)
    assert [found[job_id].name for job_id in members] == [TEXT, None]
    assert [found[job_id].waits_for for job_id in (*members, joined)] == [0, 1, 1]
    assert found[joined].group_id == group_id
    reader.close()


# --------------------------------------------------------------------------------------------------- addresses

PIECES = ("pa%ss", "ss-w0rd", "w0rd", "s3cr3t", "h0st-part")
UNREADABLE = {
    "a lone percent": "postgresql://u:pa%ss-w0rd@127.0.0.1/db",
    "a percent at the end": "postgresql://u:s3cr3t%@127.0.0.1/db",
    "an encoded NUL": "postgresql://u:s3cr3t%00@127.0.0.1/db",
    "a slash": "postgresql://u:s3cr3t/ss-w0rd@127.0.0.1/db",
    "a slash first": "postgresql://u:/s3cr3t@127.0.0.1/db",
    "an at": "postgresql://u:s3cr3t@ss-w0rd@127.0.0.1/db",
    "an at and a slash": "postgresql://u:s3cr3t@ss/w0rd@127.0.0.1/db",
    "an at and a question mark": "postgresql://u:s3cr3t@ss?w0rd@127.0.0.1/db",
    "a slash and no at": "postgresql://u:s3cr3t/w0rd",
    "white space": "postgresql://u:s3cr3t w0rd@127.0.0.1/db",
    "a line's end": "postgresql://u:s3cr3t@127.0.0.1/db\n",
    "a port that is none": "postgresql://u@h0st-part:s3cr3t/db",
    "two ports": "postgresql://u@127.0.0.1:s3cr3t:5432/db",
    "an open bracket": "postgresql://u:w0rd@[s3cr3t/db",
    "an option without a value": "postgresql://u@127.0.0.1/db?s3cr3t",
    "an unknown option": "postgresql://u@127.0.0.1/db?s3cr3t=w0rd",
    "an unknown option first": "postgresql://u@127.0.0.1?s3cr3t=w0rd",
    "a hash": "postgresql://u:s3cr3t#w0rd/x@127.0.0.1/db",
    "keywords with a space": "host=127.0.0.1 password=s3cr3t w0rd",
    "keywords with a quote": "host=127.0.0.1 password='s3cr3t w0rd",
    "an unknown keyword": "host=127.0.0.1 s3cr3t=w0rd",
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_no_part_of_an_address_that_cannot_be_read_is_shown(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = UNREADABLE[fault]
    for use in (connect, check_database):
        with pytest.raises(ConfigurationError) as caught:
            use(Secret(url))
        assert not [piece for piece in PIECES if piece in caught.value.message]
        assert "\n" not in caught.value.message
        assert caught.value.__context__ is None, "a traceback would show libpq's own words"
    monkeypatch.setenv("DATABASE_URL", url)
    for command in (["jobs"], ["migrate"], ["prune", "--older-than", "1d"]):
        assert cli.run(command) == 2
        said = capsys.readouterr()
        assert not [piece for piece in PIECES if piece in said.out + said.err]
        assert said.err.count("\n") == 1


def test_the_remedy_names_percent_encoding() -> None:
    with pytest.raises(ConfigurationError, match="percent-encode"):
        connect(Secret(UNREADABLE["a slash"]))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%40%2F%3A%25@127.0.0.1:1/db",
        "postgresql://u:a:b#c?d&e@127.0.0.1:1/db?sslmode=disable&application_name=a%40b",
        "postgresql://127.0.0.1:1,localhost:1/db?target_session_attrs=read-write",
        "postgresql://u@[::1]:1/db",
        "postgresql://%2Fnowhere/db",
        "postgresql:///db?host=%2Fnowhere",
        "postgres://u@127.0.0.1:1",
        "host=127.0.0.1 port=1 password='a b@/%' dbname=db",
        "host=127.0.0.1 port=1",
    ],
)
def test_an_address_that_can_be_read_is_tried(url: str) -> None:
    with pytest.raises(DatabaseUnavailable, match="cannot be reached"):
        connect(Secret(url))


# ---------------------------------------------------------------------------------------------------- poolers


class Pooler:
    """PgBouncer before a database, in one of its modes."""

    def __init__(self, program: str, folder: Path, url: str, mode: str) -> None:
        parts = psycopg2.extensions.parse_dsn(url)
        (port,) = free_ports(1)
        folder.chmod(0o755)
        (folder / "users.txt").write_text('"postgres" ""\n')
        (folder / "pgbouncer.ini").write_text(
            f"[databases]\ndb = host={parts['host']} dbname={parts['dbname']} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {folder}/users.txt\npool_mode = {mode}\ndefault_pool_size = 10\n"
        )
        self.url = f"postgresql://postgres@127.0.0.1:{port}/db"
        self._process = subprocess.Popen(
            [program, "-q", folder / "pgbouncer.ini"],
            stderr=subprocess.DEVNULL,
            user="nobody" if os.geteuid() == 0 else None,
        )

    def wait(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            try:
                psycopg2.connect(self.url).close()
                return
            except psycopg2.OperationalError:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture(params=["transaction", "session"])
def pooler(request: pytest.FixtureRequest, postgres: Postgres, database_url: str) -> Iterator[tuple[str, str]]:
    """A pooler's mode and address."""
    program = shutil.which("pgbouncer", path=os.environ["PATH"] + os.pathsep + "/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    folder = Path("/tmp") / f"rythmiq-pooler-{os.getpid()}"  # Another user must read it.
    folder.mkdir()
    server = Pooler(program, folder, database_url, request.param)
    try:
        server.wait()
        yield request.param, server.url
    finally:
        server.stop()
        shutil.rmtree(folder)


@pytest.mark.parametrize("busy", [0, 3])
def test_a_pooler_in_transaction_mode_is_noticed_before_anything_is_set_and_one_in_session_mode_will_do(
    pooler: tuple[str, str], busy: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mode, url = pooler
    # Other clients have made it open so many more connections to the server, which wait there.
    others = [psycopg2.connect(url) for _ in range(busy)]
    for other in others:
        other.cursor().execute("SELECT 1")
    for other in others:
        other.rollback() if mode == "transaction" else other.close()
    monkeypatch.setenv("DATABASE_URL", url)
    if mode == "session":
        check_database(Secret(url))
        assert cli.run(["jobs"]) == 0
        queue = Queue(Secret(url), lease_s=30)
        queue.register()
        assert queue.renew()
        queue.close()
        return
    for _ in range(5):
        with pytest.raises(ConfigurationError, match="transaction mode"):
            check_database(Secret(url))
    assert cli.run(["jobs"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    client = psycopg2.connect(url)
    for setting, value in (("enable_seqscan", "on"), ("statement_timeout", "0")):
        with client.cursor() as cursor:
            cursor.execute(f"SHOW {setting}")
            assert cursor.fetchone() == (value,)
        client.rollback()
    client.close()


def test_no_pooler_is_seen_where_there_is_none(database_url: str) -> None:
    for _ in range(3):
        check_database(Secret(database_url))
