"""The driver dies before and after every side effect; another one finishes, and nothing is lost or done twice."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import crashing_driver
import psycopg2
import psycopg2.extras
import pytest
from samples import API_KEY
from side_effects import all_points

from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.local.camber import Emulator, Settings
from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.queue import inspect

AT_ONCE = 4
RUN_LIMIT_S = 60
ENDS = {
    "echo 1 > out.txt": "SUCCEEDED",
    "grep -q '\"attempt\": 2' job.json": "SUCCEEDED",
    "exit 4": "FAILED",
    'test "$A" = 1': "SUCCEEDED",
}
BY_LOST_CONNECTION = frozenset({"queue.disown"})
"""Only a lost answer of Postgres leads there; tests/integration/test_queue.py does that."""

STATIC_ENVIRONMENT = {
    "ARTIFACT_STORE_TYPE": "local",
    "EXECUTION_BACKEND": "camber",
    "CAMBER_API_KEY": API_KEY,
    "SERVICE_ENV": "prod",
}
POINTS = [
    point
    for point in all_points({**STATIC_ENVIRONMENT, "DATABASE_URL": "postgresql://h/d", "ARTIFACT_STORE_PATH": "/x"})
    if point.partition(":")[2] not in BY_LOST_CONNECTION
]


class Case:
    """One point: its own database, emulator and store; a driver that dies there, and one that finishes."""

    def __init__(self, point: str, postgres: Postgres, template: str, folder: Path) -> None:
        self.point = point
        self.folder = folder
        self.record = folder / "record"
        self.faults: list[str] = []
        name = f"crash_{hashlib.sha256(point.encode()).hexdigest()[:16]}"
        administrator = psycopg2.connect(postgres.url)
        administrator.autocommit = True
        administrator.cursor().execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        administrator.close()
        self.url = postgres.url.replace("/postgres?", f"/{name}?")

    def run(self) -> None:
        settings = Settings(queue_wait_s=(0.0, 0.1), sync_delay_s=0.1, max_running=6)
        with Emulator(self.folder / "camber", api_key=API_KEY, settings=settings) as camber:
            self.environment = {
                **os.environ,
                **STATIC_ENVIRONMENT,
                "DATABASE_URL": self.url,
                "ARTIFACT_STORE_PATH": str(self.folder / "store"),
                "CAMBER_API_ENDPOINT": camber.endpoint,
            }
            connection = psycopg2.connect(self.url, cursor_factory=psycopg2.extras.RealDictCursor)
            connection.autocommit = True
            for command in ENDS:
                env = {"A": "1"} if "$A" in command else {}
                spec = JobSpec(command=command, outputs=("*.txt",), env=env)
                enqueue(connection, spec, max_attempts=2, notify="https://example.org/")
            doomed = enqueue(connection, JobSpec(command="while [ ! -e never ]; do sleep 0.1; done", timeout=30))
            self._die(connection, doomed)
            self._check_manifests("when it died")
            self._drive()
            self._drive()  # Its janitor takes what the first one left.
            self._tell(connection)
            self._check(connection, camber)
            connection.close()

    def _die(self, connection: Any, doomed: Any) -> None:
        effect = self.point.partition(":")[2]
        if effect == "queue.adopt":
            self._drive("after:queue.claim", code=-9)
        if effect in ("queue.release", "queue.resign"):
            self._drive(self.point, stop_when_waiting=True, code=-9)
            inspect.cancel(connection, [doomed])
        elif effect.startswith("camber.cancel"):
            self._drive(stop_when_waiting=True)
            inspect.cancel(connection, [doomed])
            self._drive(self.point, code=-9)
        else:
            # Where it dies late, the job that only a cancel ends would keep it alive.
            late = effect in (
                "queue.finish",
                "queue.cleaned",
                "camber.stash_remove",
                "store.write",
                "store.write_manifest",
            )
            if late:
                inspect.cancel(connection, [doomed])
            self._drive(self.point, code=-9)
            if not late:
                inspect.cancel(connection, [doomed])

    def _tell(self, connection: Any) -> None:
        """Drives until each end was told: what a dead driver had taken is due again after a while."""
        deadline = time.monotonic() + RUN_LIMIT_S
        with connection.cursor() as cursor:
            while time.monotonic() < deadline:
                cursor.execute("SELECT count(*) AS untold FROM rythmiq.notifications WHERE delivered_at IS NULL")
                if not cursor.fetchone()["untold"]:
                    break
                self._drive()
            cursor.execute("SELECT job_id::text AS job_id FROM rythmiq.jobs WHERE notify IS NOT NULL")
            jobs = sorted(row["job_id"] for row in cursor.fetchall())
        # A driver that died in between may have told twice; then by one id.
        told = {tuple(line.split()) for line in (self.folder / "told").read_text().splitlines()}
        if sorted(job_id for _, job_id in told) != jobs:
            self.faults.append(f"{len(told)} notifications were sent for {len(jobs)} ends")

    def _drive(self, point: str | None = None, *, stop_when_waiting: bool = False, code: int = 0) -> None:
        driver = crashing_driver.start(self.folder, self.environment, point, stop_when_waiting=stop_when_waiting)
        driver.join(RUN_LIMIT_S)
        if driver.exitcode != code:
            said = (self.folder / "output").read_text()[-1500:]
            self.faults.append(f"a driver to {point or 'the end'} ended {driver.exitcode}: {said}")
        driver.kill()

    def _check(self, connection: Any, camber: Emulator) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT *, spec->>'command' AS command FROM rythmiq.jobs")
            jobs = [dict(row) for row in cursor.fetchall()]
            cursor.execute("SELECT * FROM rythmiq.attempts")
            attempts = [dict(row) for row in cursor.fetchall()]
            cursor.execute("SELECT * FROM rythmiq.artifacts")
            artifacts = [dict(row) for row in cursor.fetchall()]
        for job in jobs:
            expected = ENDS.get(job["command"], "CANCELLED")
            if job["state"] != expected:
                self.faults.append(
                    f"{job['command']!r} ended {job['state']}: {job['error_code']} {job['error_message']}"
                )
        if len(attempts) != sum(job["attempt"] for job in jobs):
            self.faults.append("attempts and jobs disagree")
        self.faults.extend(
            f"attempt {row['attempt']} is {row['state']}" for row in attempts if row["state"] == "RUNNING"
        )
        events = [json.loads(line) for line in (camber.root / "journal.jsonl").read_text().splitlines()]
        paths = Counter(event["mount_dir"] for event in events if event["event"] == "create")
        self.faults.extend(f"{path} was created {count} times" for path, count in paths.items() if count > 1)
        for row in artifacts:
            content = Path(unquote(urlsplit(row["uri"]).path)).read_bytes()
            if hashlib.sha256(content).hexdigest() != row["sha256"]:
                self.faults.append(f"{row['name']} is not what its row says")
        for job in jobs:
            if job["state"] == "SUCCEEDED":
                manifest = json.loads(Path(unquote(urlsplit(job["artifact_uri"]).path)).read_bytes())
                names = {entry["name"] for entry in manifest["artifacts"]}
                stored = {row["name"] for row in artifacts if row["job_id"] == job["job_id"]} if names else set()
                if manifest["state"] != "SUCCEEDED" or not names <= stored:
                    self.faults.append(f"the manifest of {job['command']!r} is not whole")
        self._check_manifests("at the end")
        stash = [path for path in (camber.root / "stash").rglob("*") if path.is_file()]
        self.faults.extend(f"{path} is left in the stash" for path in stash)
        half = (self.folder / "store").rglob("*.part")
        self.faults.extend(f"{path} is left" for path in half)

    def _check_manifests(self, when: str) -> None:
        """A manifest that is there names files that are there, whole: it comes last."""
        for path in (self.folder / "store").rglob("manifest.json"):
            for entry in json.loads(path.read_bytes())["artifacts"]:
                file = Path(unquote(urlsplit(entry["uri"]).path))
                if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != entry["sha256"]:
                    self.faults.append(f"{when} the manifest named {entry['name']}, which was not there whole")


@pytest.fixture(scope="module")
def cases(postgres: Postgres, template: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """All points, several at once: most of each is waiting for leases to end."""
    made = {point: Case(point, postgres, template, tmp_path_factory.mktemp("crash")) for point in POINTS}

    def run(case: Case) -> None:
        try:
            case.run()
        except Exception as error:  # noqa: BLE001 - it is the point's own test that shall fail
            case.faults.append(f"{type(error).__name__}: {error}")

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(run, made.values()))
    return made


@pytest.mark.timeout(400)
@pytest.mark.parametrize("point", POINTS)
def test_a_crash_there_loses_nothing_and_does_nothing_twice(cases: dict[str, Case], point: str) -> None:
    case = cases[point]
    assert point in case.record.read_text().splitlines(), "no driver ever came there"
    assert case.faults == []
