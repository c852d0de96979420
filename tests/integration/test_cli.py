"""The command as people and scripts run it: a process of its own, a real Postgres, real files in a store."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from rythmiq_ray.artifacts import LocalArtifactStore
from rythmiq_ray.config import ArtifactsConfig
from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import Artifact, ErrorInfo, Job, JobState, Phase, RemoteStatus
from rythmiq_ray.queue import Ending, Progress, Queue, connect
from rythmiq_ray.queue.connection import fetch
from rythmiq_ray.secret import Secret

_RUN = [sys.executable, "-c", "from rythmiq_ray.cli import main; main()"]
_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 60


class Cli:
    """Runs commands against one database."""

    def __init__(self, **environ: str) -> None:
        keep = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in os.environ}
        self.environ = keep | {"PYTHONPATH": str(_ROOT)} | environ

    def run(self, *arguments: str, stdin: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [*_RUN, *arguments], input=stdin, capture_output=True, timeout=_TIMEOUT_S, env=self.environ, check=False
        )
        assert done.returncode == code, done.stderr.decode()
        assert b"Traceback" not in done.stderr
        return done

    def out(self, *arguments: str, stdin: bytes = b"") -> str:
        return self.run(*arguments, stdin=stdin).stdout.decode()

    def json(self, *arguments: str) -> Any:
        """What ``--json`` prints; of a listing the items."""
        data = json.loads(self.out(*arguments, "--json"))
        if isinstance(data, dict) and data.keys() == {"items", "total", "next"}:
            assert data["total"] is None or data["total"] >= len(data["items"])
            return data["items"]
        return data

    def refused(self, *arguments: str, stdin: bytes = b"", code: int = 2) -> str:
        done = self.run(*arguments, stdin=stdin, code=code)
        assert done.stdout == b""
        return done.stderr.decode()

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*_RUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environ)


@pytest.fixture
def cli(database_url: str) -> Cli:
    return Cli(DATABASE_URL=database_url)


@pytest.fixture
def driver(cli: Cli) -> Iterator[Queue]:
    """A driver's side of the queue, so that jobs get on without one."""
    queue = Queue(Secret(cli.environ["DATABASE_URL"]), lease_s=600)
    queue.register()
    yield queue
    queue.close()


@pytest.fixture
def store(tmp_path: Path) -> Callable[[Job, dict[str, bytes]], tuple[Artifact, ...]]:
    config = ArtifactsConfig(
        type="local", bucket=None, path=str(tmp_path / "store"), prefix="p", part_size_bytes=5 * 1024**2, concurrency=1
    )
    local = LocalArtifactStore(config, tmp_path / "store")

    def write(job: Job, files: dict[str, bytes]) -> tuple[Artifact, ...]:
        return tuple(local.write(job.job_id, job.attempt, name, [data]) for name, data in files.items())

    return write


def claim(driver: Queue, job_id: str) -> Job:
    (job,) = [job for job in driver.claim(100) if str(job.job_id) == job_id]
    return job


def end(driver: Queue, job: Job, state: JobState, artifacts: Sequence[Artifact] = (), **fields: Any) -> None:
    ending = Ending(job_id=job.job_id, attempt=job.attempt, state=state, artifacts=tuple(artifacts), **fields)
    assert driver.finish([ending]).ours == {job.job_id}


def wait_at(driver: Queue, job: Job, remote_id: int) -> None:
    step = Progress(
        job_id=job.job_id,
        attempt=job.attempt,
        phase=Phase.WAITING,
        remote_id=remote_id,
        remote_status=RemoteStatus.RUNNING,
    )
    assert driver.advance([step]).ours == {job.job_id}


def test_migrate_may_run_twice_and_at_once(empty_database_url: str) -> None:
    cli = Cli(DATABASE_URL=empty_database_url)
    racing = [cli.start("migrate", "--json") for _ in range(3)]
    applied = []
    for process in racing:
        out, err = process.communicate(timeout=_TIMEOUT_S)
        assert process.returncode == 0, err
        applied.append(json.loads(out))
    assert sorted(map(len, applied))[:2] == [0, 0]
    assert cli.out("migrate") == "The schema rythmiq is up to date\n"
    assert cli.json("jobs") == []


def test_enqueue_takes_every_option(cli: Cli) -> None:
    job_id = cli.out(
        *("enqueue", "--command", "echo 'a b'", "--engine", "MPI", "--node-size", "medium", "--num-nodes", "2"),
        *("--gpu", "--input", "s3://bucket/dt=1/x.csv=y.csv", "--input", "https://host/z?a=1", "--output", "*.png"),
        *("--output", "log/**", "--env", "A=1=2", "--env", "B=", "--secret", "TOKEN", "--timeout", "1.5"),
        *("--max-attempts", "7", "--priority", "-2", "--queue", "night", "--user-id", "u", "--unique-key", "k"),
        *("--delay", "3600", "--retry-exit-code", "3", "--retry-exit-code", "4"),
    ).strip()
    assert str(UUID(job_id)) == job_id
    row = cli.json("show", job_id)
    assert row["spec"] == {
        "command": "echo 'a b'",
        "engine": "MPI",
        "node_size": "medium",
        "num_nodes": 2,
        "gpu": True,
        "inputs": [
            {"uri": "s3://bucket/dt=1/x.csv", "name": "y.csv"},
            {"uri": "https://host/z?a=1", "name": "z"},
        ],
        "outputs": ["*.png", "log/**"],
        "env": {"A": "1=2", "B": ""},
        "secrets": ["TOKEN"],
        "timeout_s": 1.5,
        "retry_exit_codes": [3, 4],
    }
    assert (row["max_attempts"], row["priority"], row["queue"], row["user_id"]) == (7, -2, "night", "u")
    assert (row["state"], row["attempt"], row["attempts"], row["artifacts"]) == ("QUEUED", 0, [], [])
    assert row["created_at"].endswith("Z")
    assert row["next_visible_at"] > row["created_at"]
    again = cli.json("enqueue", "--command", "other", "--unique-key", "k")
    assert again == [{"job_id": job_id}]


def test_a_time_has_one_name_and_any_unit(cli: Cli) -> None:
    """The former names of a line are read for one version; rows keep what older drivers read."""
    lines = [{"command": "x", "timeout": "2h", "delay": "1d"}, {"command": "x", "timeout_s": 7200, "delay_s": 86400}]
    ids = cli.out("enqueue", "--file", "-", stdin="\n".join(map(json.dumps, lines)).encode()).split()
    ids.append(cli.out("enqueue", "--command", "x", "--timeout", "2h", "--delay", "1d").strip())
    ids.append(cli.out("enqueue", "--command", "x", "--timeout", "7200", "--delay", "86400.0").strip())
    for row in (cli.json("show", job_id) for job_id in ids):
        assert row["spec"]["timeout_s"] == 7200
        wait = datetime.fromisoformat(row["next_visible_at"]) - datetime.fromisoformat(row["created_at"])
        assert wait.total_seconds() == pytest.approx(86_400, abs=60)
    said = cli.refused("enqueue", "--command", "x", "--timeout", "2 hours", "--delay", "-1")
    assert "rythmiq: timeout: must be a number of seconds, or text such as 90s, 2h or 1d\n" in said
    assert "rythmiq: delay: must be" in said


def test_the_schema_of_a_line_is_printed(cli: Cli) -> None:
    schema = json.loads(cli.out("schema"))
    assert schema["$schema"].endswith("2020-12/schema")
    assert {"command", "timeout", "delay", "timeout_s"} <= schema["properties"].keys()
    assert re.search(schema["properties"]["engine"]["pattern"], "openfoam"), "what Camber offers is in it"


def test_a_bad_job_is_refused_before_anything_is_stored(cli: Cli) -> None:
    said = cli.refused(
        *("enqueue", "--command", " ", "--engine", "bsae", "--node-size", "micro", "--gpu", "--output", "../x"),
        *("--input", "ftp://x/y", "--timeout", "-1"),
    )
    for field in ("command", "outputs[0]", "inputs[0].uri", "timeout"):
        assert f"rythmiq: {field}: " in said
    assert "did you mean BASE?" in cli.refused("enqueue", "--command", "x", "--engine", "bsae")
    assert "has no GPU" in cli.refused("enqueue", "--command", "x", "--node-size", "micro", "--gpu")
    assert "--command or --file" in cli.refused("enqueue")
    assert "--num-nodes" in cli.refused("enqueue", "--command", "x", "--num-nodes", "many")
    assert "hush" not in cli.refused("enqueue", "--command", "x", "--env", "hush", "--secret", "TOKEN=hush")
    assert cli.json("jobs") == []


def test_a_file_is_all_or_nothing(cli: Cli, tmp_path: Path) -> None:
    good = [{"command": f"echo {n}", "priority": n} for n in range(3)]
    text = "\ufeff" + "\n\n".join(map(json.dumps, good)) + "\n"
    ids = cli.out("enqueue", "--file", "-", stdin=text.encode()).split()
    assert [cli.json("show", job_id)["priority"] for job_id in ids] == [0, 1, 2]

    file = tmp_path / "jobs.jsonl"
    file.write_text(text + '{"command": ""}\n{"command": "x", "nodes": 1}\nnonsense\n')
    said = cli.refused("enqueue", "--file", str(file))
    assert "rythmiq: line 6: command: is missing or blank\n" in said
    assert "rythmiq: line 7: 'nodes': is not a field of a job" in said
    assert "rythmiq: line 8: is not JSON" in said
    assert len(cli.json("jobs")) == 3
    assert "leave out --command, --queue" in cli.refused("enqueue", "--file", "-", "--queue", "q", "--command", "x")
    assert "No such file" in cli.refused("enqueue", "--file", str(tmp_path / "none"))
    assert "holds no jobs" in cli.run("enqueue", "--file", "-").stderr.decode()


def test_jobs_filters_and_counts(cli: Cli, driver: Queue) -> None:
    lines = [{"command": f"echo {n}", "queue": "ab"[n % 2], "user_id": "u" if n < 2 else None} for n in range(5)]
    ids = cli.out("enqueue", "--file", "-", stdin="\n".join(map(json.dumps, lines)).encode()).split()
    running = claim(driver, ids[0])
    error = ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="exit code 3\x1b[31m")
    end(driver, running, JobState.FAILED, exit_code=3, error=error)

    def listed(*arguments: str) -> list[int]:
        return [ids.index(row["job_id"]) for row in cli.json("jobs", *arguments)]

    assert sorted(listed()) == [0, 1, 2, 3, 4]
    assert listed() == [ids.index(job_id) for job_id in sorted(ids, reverse=True)]
    assert listed("--state", "failed") == [0]
    assert sorted(listed("--state", "FAILED", "--state", "running")) == [0, 1, 2, 3, 4]
    assert sorted(listed("--queue", "b")) == [1, 3]
    assert sorted(listed("--user-id", "u")) == [0, 1]
    first = listed("--limit", "2")
    assert listed("--before", ids[first[1]]) == listed()[2:]

    text = cli.out("jobs", "--queue", "a")
    assert text.splitlines()[-1] == "3 jobs: 2 RUNNING (2 submitting), 1 FAILED"
    assert "command_failed: exit code 3\\x1b[31m" in text
    assert "\x1b" not in text
    assert cli.out("jobs", "--queue", "none") == "0 jobs\n"
    assert "--state" in cli.refused("jobs", "--state", "done")
    assert "--watch needs a terminal" in cli.refused("jobs", "--watch")


def test_show_tells_attempts_artifacts_and_cost(
    cli: Cli, driver: Queue, store: Callable[[Job, dict[str, bytes]], tuple[Artifact, ...]]
) -> None:
    job_id = cli.out("enqueue", "--command", "echo данные").strip()
    job = claim(driver, job_id)
    error = ErrorInfo(code=ErrorCode.JOB_TIMEOUT, message="too long")
    end(driver, job, JobState.FAILED, retry_delay_s=0, exit_code=124, error=error, retryable=True)
    job = claim(driver, job_id)
    files = store(job, {"log.txt": b"x", "данные 1.csv": b"1,2\n"})
    end(driver, job, JobState.SUCCEEDED, files, exit_code=0, cost_credits=0.25, remote_id=9)
    row = cli.json("show", job_id.upper().replace("-", "")[:30])
    assert [(a["attempt"], a["state"], a["error_code"]) for a in row["attempts"]] == [
        (1, "FAILED", "job_timeout"),
        (2, "SUCCEEDED", None),
    ]
    assert {(a["attempt"], a["name"], a["bytes"]) for a in row["artifacts"]} == {
        (2, "log.txt", 1),
        (2, "данные 1.csv", 4),
    }
    text = cli.out("show", job_id)
    for part in (job_id, "echo данные", "0.2500 credits", "attempt 1: too long", "данные 1.csv"):
        assert part in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_ids_that_name_no_one_job(cli: Cli) -> None:
    ids = cli.out("enqueue", "--file", "-", stdin=b'{"command": "a"}\n{"command": "b"}\n').split()
    assert "More than one job" in cli.refused("show", ids[0][:8], code=4)
    assert "There is no job" in cli.refused("show", "ffffffff", code=4)
    assert "first 4 digits" in cli.refused("logs", "xyz", code=4)


def test_cancel_and_retry(cli: Cli, driver: Queue) -> None:
    first = cli.out("enqueue", "--command", "a").strip()
    job = claim(driver, first)
    queued = cli.out("enqueue", "--command", "b", "--queue", "q").strip()
    assert cli.json("cancel", queued) == [{"job_id": queued, "state": "CANCELLED"}]
    assert cli.out("cancel", first) == f"{first}  will be stopped by its driver\n"
    assert driver.cancel_requests() == {job.job_id}
    assert cli.out("retry", queued) == f"{queued}\n"
    assert cli.run("cancel", "--queue", "q", code=1).stderr.startswith(b"rythmiq: Cancel 1 job?")
    assert cli.json("cancel", "--queue", "q", "--yes") == [{"job_id": queued, "state": "CANCELLED"}]
    end(driver, job, JobState.SUCCEEDED, exit_code=0)
    assert f"{first} had already ended: SUCCEEDED" in cli.refused("cancel", first, code=1)
    assert f"{first} was left alone: it is SUCCEEDED" in cli.refused("retry", first, code=1)
    assert "give ids, names or groups, or filters" in cli.refused("cancel")
    assert cli.run("cancel", "--queue", "q", "--yes").stderr == b"rythmiq: nothing was left to cancel\n"


def test_download_proves_every_file(
    cli: Cli, driver: Queue, tmp_path: Path, store: Callable[[Job, dict[str, bytes]], tuple[Artifact, ...]]
) -> None:
    job_id = cli.out("enqueue", "--command", "a").strip()
    job = claim(driver, job_id)
    contents = {"log.txt": b"", "a/данные 1.bin": os.urandom(300_000), "b.bin": b"b" * 10}
    files = store(job, contents)
    outside = Artifact(name="../up", uri=files[0].uri, bytes=0, sha256=files[0].sha256, content_type="x")
    end(driver, job, JobState.SUCCEEDED, [*files, outside], exit_code=0)
    listed = {file["name"]: file for file in cli.json("artifacts", job_id)}
    assert listed["b.bin"]["sha256"] == hashlib.sha256(contents["b.bin"]).hexdigest()

    spoilt = Path(listed["b.bin"]["uri"].removeprefix("file://"))
    spoilt.write_bytes(b"B" * 10)
    folder = tmp_path / "new" / "results"
    done = cli.run("artifacts", job_id, "--download", str(folder), code=1)
    assert b"'b.bin'" in done.stderr
    assert b"'../up'" in done.stderr
    assert b"2 files" in done.stdout
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "log.txt",
        "a/данные 1.bin",
    }
    assert (folder / "a/данные 1.bin").read_bytes() == contents["a/данные 1.bin"]
    assert not (folder.parent / "up").exists()
    assert "no attempt 2" in cli.refused("artifacts", job_id, "--attempt", "2", code=4)


def test_logs_of_ended_attempts(
    cli: Cli, driver: Queue, store: Callable[[Job, dict[str, bytes]], tuple[Artifact, ...]]
) -> None:
    job_id = cli.out("enqueue", "--command", "a").strip()
    assert "has not started yet" in cli.refused("logs", job_id, code=5)
    job = claim(driver, job_id)
    error = ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="exit code 1")
    end(driver, job, JobState.FAILED, store(job, {"log.txt": b"one\xff\n"}), retry_delay_s=0, error=error, exit_code=1)
    job = claim(driver, job_id)
    end(driver, job, JobState.CANCELLED, error=ErrorInfo(code=ErrorCode.CANCELLED, message="cancelled on request"))
    assert cli.run("logs", job_id, "--attempt", "1").stdout == b"one\xff\n"
    assert cli.run("logs", "-f", job_id, "--attempt", "1", code=3).stdout == b"one\xff\n"
    assert "left no log: cancelled on request" in cli.refused("logs", job_id, code=4)
    assert "has no attempt 3" in cli.refused("logs", job_id, "--attempt", "3", code=4)


@contextmanager
def live_log() -> Iterator[tuple[str, bytearray]]:
    """Camber's route for logs on the loopback; what it answers grows as the test says."""
    log = bytearray()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"username": "owner"}' if self.path == "/me" else bytes(log)
            self.send_response(200 if self.path in ("/me", "/jobs/77/logs") else 404)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_following_loses_and_repeats_nothing(
    cli: Cli, driver: Queue, tmp_path: Path, store: Callable[[Job, dict[str, bytes]], tuple[Artifact, ...]]
) -> None:
    job_id = cli.out("enqueue", "--command", "a").strip()
    with live_log() as (endpoint, log):
        cli.environ |= {
            "CAMBER_API_ENDPOINT": endpoint,
            "CAMBER_API_KEY": "k" * 40,
            "EXECUTION_BACKEND": "camber",
            "ARTIFACT_STORE_TYPE": "local",
            "ARTIFACT_STORE_PATH": str(tmp_path / "store"),
        }
        with cli.start("logs", "-f", job_id) as process:
            try:
                assert process.stdout is not None
                job = claim(driver, job_id)
                assert "is being submitted and has no log yet" in cli.refused("logs", job_id, code=5)
                wait_at(driver, job, 404)
                assert "at Camber and has no log yet; -f waits" in cli.refused("logs", job_id, code=5)
                log += b"one\ntw"
                wait_at(driver, job, 77)
                assert process.stdout.read(6) == b"one\ntw"
                assert cli.run("logs", job_id).stdout == b"one\ntw"
                without_a_key = Cli(DATABASE_URL=cli.environ["DATABASE_URL"], SERVICE_ENV="prod")
                assert "cannot be read from here" in without_a_key.refused("logs", job_id, code=5)
                log += b"o\n"
                assert process.stdout.read(2) == b"o\n"
                error = ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="exit code 1")
                whole = store(job, {"log.txt": b"one\ntwo\nthree\n"})
                end(driver, job, JobState.FAILED, whole, retry_delay_s=0, error=error, exit_code=1)
                assert process.stdout.read(6) == b"three\n"

                log[:] = b"live noise\n"
                job = claim(driver, job_id)
                wait_at(driver, job, 77)
                assert process.stdout.read(11) == b"live noise\n"
                end(driver, job, JobState.SUCCEEDED, store(job, {"log.txt": b"second\n"}), exit_code=0)
                rest, said = process.communicate(timeout=_TIMEOUT_S)
            finally:
                process.kill()
    assert rest == b"second\n"
    assert process.returncode == 0, said
    assert b"attempt 1 ended with command_failed; waiting for attempt 2" in said
    assert b"the stored log differs from the live one" in said


def test_ctrl_c_ends_following_quietly(cli: Cli) -> None:
    job_id = cli.out("enqueue", "--command", "a", "--delay", "3600").strip()
    connection = connect(Secret(cli.environ["DATABASE_URL"]))
    connection.autocommit = True
    looks = (
        "SELECT count(*) AS n FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE %(query)s"
    )
    try:
        with cli.start("logs", "-f", job_id) as process:
            while not fetch(connection, looks, {"query": "%FROM rythmiq.attempts WHERE%"})[0]["n"]:
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=_TIMEOUT_S)
    finally:
        connection.close()
    assert (process.returncode, out, said) == (130, b"", b"")


def test_a_reader_that_has_seen_enough_is_no_error(cli: Cli) -> None:
    lines = b'{"command": "true", "delay_s": 3600}\n' * 3000
    cli.run("enqueue", "--file", "-", stdin=lines)
    with cli.start("jobs", "--json", "--limit", "3000") as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"{"
        process.stdout.close()
        assert process.wait(_TIMEOUT_S) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_what_cannot_be_reached_is_said_in_one_line_without_the_password(tmp_path: Path) -> None:
    away = Cli(DATABASE_URL="postgresql://u:hush@127.0.0.1:1/db")
    for arguments in (["migrate"], ["jobs"], ["enqueue", "--command", "x"]):
        said = away.refused(*arguments, code=1)
        assert "127.0.0.1" in said
        assert len(said.splitlines()) == 1
        assert "hush" not in said
    assert "DATABASE_URL" in Cli(DATABASE_URL="mysql://u:hush@h/db").refused("jobs")
    assert "DATABASE_URL" in Cli(SERVICE_ENV="prod").refused("jobs")


def test_a_database_without_the_schema_names_the_remedy(empty_database_url: str) -> None:
    assert "rythmiq migrate" in Cli(DATABASE_URL=empty_database_url).refused("jobs", code=1)


def test_help_has_examples_and_needs_neither_ray_nor_a_database() -> None:
    cli = Cli()
    for command in ("migrate", "enqueue", "jobs", "show", "logs", "artifacts", "cancel", "retry"):
        assert f"rythmiq {command}" in cli.out(command, "--help").partition("Example")[2]
    assert cli.out() == cli.out("--help")
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "from rythmiq_ray.cli import run; run(['--help'])"],
        capture_output=True,
        timeout=_TIMEOUT_S,
        env=cli.environ,
        check=True,
    )
    imported = {line.rpartition(b"|")[2].strip().decode() for line in done.stderr.splitlines()}
    assert not imported & {"ray", "psycopg2", "boto3", "smart_open", "requests", "omegaconf", "rich.table"}


def test_the_local_stack_serves_all_commands_until_it_is_down(tmp_path: Path) -> None:
    cli = Cli(RYTHMIQ_LOCAL_DIR=str(tmp_path / "local"))
    assert "rythmiq local up" in cli.refused("local", "env")
    try:
        assert all(cli.json("local", "up").values())
        job_id = cli.out("enqueue", "--command", "a").strip()
        assert "DATABASE_URL" in Cli(**cli.environ | {"SERVICE_ENV": "prod"}).refused("show", job_id)
        exported = subprocess.run(
            ["bash", "-c", f'eval "$1"; exec {shlex.join(_RUN)} show "$2"', "-", cli.out("local", "env"), job_id],
            capture_output=True,
            timeout=_TIMEOUT_S,
            env={name: value for name, value in cli.environ.items() if name != "RYTHMIQ_LOCAL_DIR"},
            check=True,
        )
        assert job_id.encode() in exported.stdout
    finally:
        stopped = cli.out("local", "down")
    assert stopped == "stopped: camber, postgres, s3\n"
    assert set(cli.json("local", "status").values()) == {None}
    assert "DATABASE_URL" in cli.refused("jobs")


def test_the_emulator_has_its_own_help() -> None:
    assert "--instant" in Cli().out("local", "camber", "--help")


def test_ctrl_c_while_the_command_is_imported_shows_no_traceback() -> None:
    program = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "rythmiq_ray.cli.app":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from rythmiq_ray.cli import main
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "")
