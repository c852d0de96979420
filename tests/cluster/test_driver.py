"""The driver from outside: a real Postgres, S3, Ray and emulator; what is read is SQL, manifests and logs alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest
from samples import API_KEY
from vendor_program import VendorProgram

from rythmiq_ray import Input, JobSpec, enqueue
from rythmiq_ray.local.camber import Emulator, Faults
from rythmiq_ray.local.s3 import S3

Drive = Callable[..., subprocess.Popen[bytes]]
Environment = dict[str, str]
WAIT_S = 150.0


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg2.extensions.connection]:
    connection = psycopg2.connect(database_url, cursor_factory=psycopg2.extras.RealDictCursor)
    connection.autocommit = True
    yield connection
    connection.close()


@pytest.fixture(params=["http", "cli"])
def transport(request: pytest.FixtureRequest, environment: Environment, tmp_path: Path) -> str:
    """How the driver reaches Camber."""
    if request.param == "cli":
        program = VendorProgram.install(tmp_path / "vendor")
        environment |= {"CAMBER_TRANSPORT": "cli", "PATH": f"{program.folder}:{environment['PATH']}"}
    return str(request.param)


def rows(connection: psycopg2.extensions.connection, sql: str, *parameters: object) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return [dict(row) for row in cursor.fetchall()]


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.05)


def read(s3: S3, uri: str) -> bytes:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    content: bytes = s3.client().get_object(Bucket=bucket, Key=key)["Body"].read()
    return content


@pytest.mark.timeout(500)
@pytest.mark.usefixtures("transport")
def test_jobs_of_every_kind_end_as_their_commands_say(
    connection: psycopg2.extensions.connection, drive: Drive, s3: S3, camber: Emulator, tmp_path: Path
) -> None:
    s3.client().put_object(Bucket="artifacts", Key="in/some data.csv", Body=b"a,b\n1,2\n")
    specs = {
        "outputs": JobSpec(
            command="mkdir -p out/deep && cp data.csv 'out/with space.csv' && : > out/empty.csv && "
            "printf x > 'out/deep/данные.csv'",
            inputs=(Input(uri="s3://artifacts/in/some data.csv", name="data.csv"),),
            outputs=("out/**/*.csv",),
        ),
        "env": JobSpec(
            command='printf %s "$A" | sha256sum; test "$X" = canary-secret-x-0123', env={"A": "1\n2"}, secrets=("X",)
        ),
        "fails": JobSpec(command="echo why >&2; exit 7"),
        "flaky": JobSpec(command="grep -q '\"attempt\": 2' job.json"),
        "not-retried": JobSpec(command="exit 3", retry_exit_codes=(4,)),
        "times-out": JobSpec(command="sleep 60", timeout=1),
        "silent": JobSpec(command="true"),
        "no-match": JobSpec(command="echo done", outputs=("*.nothing",)),
        "large": JobSpec(command="head -c 80000000 /dev/zero > big.bin; seq 200000", outputs=("big.bin",)),
        "hostile": JobSpec(command=r"printf x > $'bad\nname.txt'; printf y > good.txt", outputs=("*.txt",)),
        "no-secret": JobSpec(command="true", secrets=("ABSENT",)),
        "no-input": JobSpec(command="true", inputs=(Input(uri="s3://artifacts/in/absent", name="absent"),)),
    }
    ids = {name: str(enqueue(connection, spec, max_attempts=2)) for name, spec in specs.items()}
    foreign = rows(connection, "INSERT INTO rythmiq.jobs (spec) VALUES (%s) RETURNING job_id::text", '{"nonsense": 1}')[
        0
    ]["job_id"]

    driver = drive("--drain")
    assert driver.wait(WAIT_S) == 3, (tmp_path / "driver-0.log").read_text()

    jobs = {row["job_id"]: row for row in rows(connection, "SELECT *, job_id::text FROM rythmiq.jobs")}
    ends = {name: (jobs[i]["state"], jobs[i]["error_code"], jobs[i]["attempt"]) for name, i in ids.items()}
    assert ends == {
        "outputs": ("SUCCEEDED", None, 1),
        "env": ("SUCCEEDED", None, 1),
        "fails": ("FAILED", "command_failed", 2),
        "flaky": ("SUCCEEDED", None, 2),
        "not-retried": ("FAILED", "command_failed", 1),
        "times-out": ("FAILED", "job_timeout", 2),
        "silent": ("SUCCEEDED", None, 1),
        "no-match": ("SUCCEEDED", None, 1),
        "large": ("SUCCEEDED", None, 1),
        "hostile": ("FAILED", "output_refused", 1),
        "no-secret": ("FAILED", "secret_missing", 1),
        "no-input": ("FAILED", "input_missing", 1),
    }
    assert (jobs[foreign]["state"], jobs[foreign]["error_code"]) == ("FAILED", "invalid_job")
    assert jobs[ids["fails"]]["exit_code"] == 7

    manifests = {
        name: json.loads(read(s3, jobs[i]["artifact_uri"])) for name, i in ids.items() if jobs[i]["artifact_uri"]
    }
    assert ids.keys() - manifests.keys() == {"no-secret", "no-input"}, "a FAILED attempt has a manifest too"
    for name, manifest in manifests.items():
        assert (manifest["version"], manifest["job_id"]) == (1, ids[name])
        assert set(manifest) - {"warnings", "inputs"} == {
            *(
                "version",
                "job_id",
                "attempt",
                "state",
                "exit_code",
                "remote_id",
                "started_at",
                "finished_at",
                "artifacts",
            )
        }
        for artifact in manifest["artifacts"]:
            content = read(s3, artifact["uri"])
            assert len(content) == artifact["bytes"]
            assert hashlib.sha256(content).hexdigest() == artifact["sha256"]
    names = {name: {artifact["name"] for artifact in manifest["artifacts"]} for name, manifest in manifests.items()}
    assert names["outputs"] == {"log.txt", "out/with space.csv", "out/empty.csv", "out/deep/данные.csv"}
    assert names["silent"] == {"log.txt"}
    assert names["hostile"] == {"log.txt", "good.txt"}
    assert names["large"] == {"log.txt", "big.bin"}

    stored = rows(connection, "SELECT job_id::text, attempt, name, sha256, bytes FROM rythmiq.artifacts")
    assert {(row["job_id"], row["name"]) for row in stored} == {
        (ids[name], artifact) for name, found in names.items() for artifact in found
    }
    attempts = rows(connection, "SELECT job_id::text, attempt, state, cleaned_at FROM rythmiq.attempts")
    assert len(attempts) == sum(row["attempt"] for row in jobs.values())
    assert all(row["state"] in ("SUCCEEDED", "FAILED") for row in attempts)
    left = [path for path in stash_files(camber) if ids["hostile"] not in path.parts]
    assert left == [], "each attempt's path is removed once its artifacts are safe"
    assert any(path.name == "bad\nname.txt" for path in stash_files(camber)), "what was not stored is kept"
    assert creates_by_path(tmp_path).most_common(1)[0][1] == 1

    start = [
        line.partition("[WORKER] ")[2].split(" ")[:2]
        for line in (tmp_path / "driver-0.log").read_text().splitlines()
        if "The vendor's program is used" not in line
    ][:4]
    assert [" ".join(words) for words in start] == [
        "Configuration loaded",
        "Execution backend",
        "Job executor",
        "Worker ready",
    ]
    assert_no_canary(connection, tmp_path, s3, camber)


@pytest.mark.timeout(500)
def test_a_stopped_drivers_jobs_are_taken_over_without_a_second_create(
    connection: psycopg2.extensions.connection, drive: Drive, camber: Emulator, tmp_path: Path
) -> None:
    for _ in range(6):
        enqueue(connection, JobSpec(command="while [ ! -e go ]; do sleep 0.1; done; echo went"))
    first = drive()
    wait_for(lambda: phases(connection).get("waiting") == 6, "all six wait")

    first.send_signal(signal.SIGTERM)
    assert first.wait(WAIT_S) == 0
    held = rows(connection, "SELECT state, phase, driver_id FROM rythmiq.jobs")
    assert {(row["state"], row["phase"], row["driver_id"]) for row in held} == {("RUNNING", "waiting", None)}

    second = drive("--drain")
    wait_for(lambda: rows(connection, "SELECT FROM rythmiq.jobs WHERE driver_id IS NOT NULL"), "they are taken over")
    second.kill()
    second.wait()
    third = drive("--drain")

    def ended() -> bool:
        for path in camber.root.glob("work/*/workdir"):
            (path / "go").touch()
        return third.poll() is not None

    wait_for(ended, "the third driver is done")
    assert third.wait(WAIT_S) == 0, (tmp_path / "driver-2.log").read_text()
    assert {row["state"] for row in rows(connection, "SELECT state FROM rythmiq.jobs")} == {"SUCCEEDED"}
    assert {row["attempt"] for row in rows(connection, "SELECT attempt FROM rythmiq.jobs")} == {1}
    assert set(creates_by_path(tmp_path).values()) == {1}
    assert stash_files(camber) == []


@pytest.mark.timeout(500)
def test_a_second_signal_ends_at_once_and_that_is_safe(
    connection: psycopg2.extensions.connection, drive: Drive, camber: Emulator, tmp_path: Path
) -> None:
    first = drive()
    log = tmp_path / "driver-0.log"
    wait_for(lambda: "Worker ready" in log.read_text(), "the driver is ready")
    camber.faults = Faults(latency_s=15.0)  # Its tasks are in a call for longer than anybody waits here.
    for _ in range(3):
        enqueue(connection, JobSpec(command="echo done"))
    wait_for(lambda: phases(connection).get("submitting") == 3, "all three are being submitted")
    first.send_signal(signal.SIGINT)
    wait_for(lambda: "Worker stopping" in log.read_text(), "the first signal is taken")
    first.send_signal(signal.SIGINT)
    assert first.wait(10) == 128 + signal.SIGINT
    camber.faults = Faults()
    assert drive("--drain").wait(WAIT_S) == 0, (tmp_path / "driver-1.log").read_text()
    found = rows(connection, "SELECT DISTINCT state, attempt FROM rythmiq.jobs")
    assert found == [{"state": "SUCCEEDED", "attempt": 1}]
    assert set(creates_by_path(tmp_path).values()) == {1}


@pytest.mark.timeout(500)
def test_a_killed_drivers_programs_end_with_it_and_what_they_created_is_found(
    connection: psycopg2.extensions.connection, drive: Drive, environment: Environment, tmp_path: Path
) -> None:
    program = VendorProgram.install(tmp_path / "vendor", hangs=["job_create"])
    environment |= {"CAMBER_TRANSPORT": "cli", "PATH": f"{program.folder}:{environment['PATH']}"}
    for _ in range(3):
        enqueue(connection, JobSpec(command="echo done"))
    first = drive("camber.create_timeout_s=120", "ray.task_timeout_s=600")
    wait_for(lambda: sum(creates_by_path(tmp_path).values()) == 3 and program.processes, "all three were created")
    first.kill()
    first.wait()
    wait_for(lambda: not program.processes, "no program is left")
    program.behave()
    assert drive("--drain").wait(WAIT_S) == 0, (tmp_path / "driver-1.log").read_text()
    found = rows(connection, "SELECT DISTINCT state, attempt FROM rythmiq.jobs")
    assert found == [{"state": "SUCCEEDED", "attempt": 1}]
    assert set(creates_by_path(tmp_path).values()) == {1}


def test_a_missing_program_is_a_fault_of_the_configuration(
    drive: Drive, environment: Environment, tmp_path: Path
) -> None:
    environment["CAMBER_TRANSPORT"] = "cli"
    assert drive("--drain", "camber.program=no-such-camber").wait(WAIT_S) == 2
    (line,) = (tmp_path / "driver-0.log").read_text().splitlines()
    assert line.startswith("camber.program: there is no program 'no-such-camber'")
    assert "install it here and on every Ray node" in line


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        (
            {"DATABASE_URL": "postgresql://u:canary-database@127.0.0.1:1/d"},
            1,
            ["Postgres cannot be reached", "127.0.0.1:1"],
        ),
        ({"CAMBER_API_ENDPOINT": "http://127.0.0.1:1/api"}, 1, ["127.0.0.1:1"]),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}, 1, ["http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3"]),
    ],
)
def test_what_is_not_there_at_start_is_named_in_one_line(
    drive: Drive, environment: Environment, tmp_path: Path, changes: Environment, code: int, expected: list[str]
) -> None:
    environment.update(changes)
    assert drive("--drain").wait(WAIT_S) == code
    log = (tmp_path / "driver-0.log").read_text()
    faults = [line for line in log.splitlines() if "ERROR" in line]
    assert len(faults) == 1, log
    assert "Traceback" not in log
    assert "canary" not in log
    for words in expected:
        assert words in faults[0]


def test_a_bad_configuration_is_exit_2_with_every_fault(drive: Drive, environment: Environment, tmp_path: Path) -> None:
    del environment["CAMBER_API_KEY"]
    environment["PORT"] = "nowhere"
    assert drive("--drain", "driver.lease=1").wait(WAIT_S) == 2
    log = (tmp_path / "driver-0.log").read_text()
    assert [line.split(":")[0] for line in log.splitlines()] == ["driver.lease", "health.port", "camber.api_key"]


def phases(connection: psycopg2.extensions.connection) -> dict[str, int]:
    found = rows(connection, "SELECT phase, count(*) FROM rythmiq.jobs WHERE state = 'RUNNING' GROUP BY phase")
    return {row["phase"]: row["count"] for row in found}


def stash_files(camber: Emulator) -> list[Path]:
    return [path for path in (camber.root / "stash").rglob("*") if path.is_file()]


def creates_by_path(tmp_path: Path) -> Counter[str]:
    journal = (tmp_path / "camber" / "journal.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in journal]
    return Counter(event["mount_dir"] for event in events if event["event"] == "create")


def assert_no_canary(connection: psycopg2.extensions.connection, tmp_path: Path, s3: S3, camber: Emulator) -> None:
    """No secret in any row, object, driver log, request to Camber, or log of Ray's."""
    canaries = [API_KEY.encode(), b"canary-secret-x-0123", s3.secret_key.encode()]
    # The job that checks the secret names it in its command, which is no fault of ours.
    allowed = b'test "$X" = canary-secret-x-0123'
    texts: dict[str, bytes] = {}
    for table in ("jobs", "attempts", "artifacts", "drivers"):
        texts[table] = json.dumps(rows(connection, f"SELECT * FROM rythmiq.{table}"), default=str).encode()
    for path in [*tmp_path.glob("driver-*.log"), camber.root / "journal.jsonl"]:
        texts[str(path)] = path.read_bytes()
    client = s3.client()
    for found in client.list_objects_v2(Bucket=s3.bucket).get("Contents", []):
        if found["Size"] < 10_000_000:
            texts[found["Key"]] = client.get_object(Bucket=s3.bucket, Key=found["Key"])["Body"].read()
    session = Path("/tmp/ray/session_latest/logs")
    for path in session.rglob("*") if session.exists() else []:
        if path.is_file() and os.access(path, os.R_OK):
            texts[str(path)] = path.read_bytes()
    assert len(texts) > 20
    for place, text in texts.items():
        plain = text.replace(allowed, b"").replace(allowed.replace(b'"', b'\\"'), b"")
        for canary in canaries:
            assert canary not in plain, f"a secret is in {place}"
