"""Chaos test: runs jobs on real Postgres, S3 and Ray and a faulty Camber emulator, and breaks everything at random.

Drivers are killed, paused past their lease, restarted, and given other clocks. Postgres is restarted, crashed and made
read-only for a while; rows are invalid, or locked by another session. Camber is down, loses answers, creates jobs but
reports errors, and cuts downloads; a gateway in front of it closes each connection after its answer. Nodes lose their
right to write to S3. At the end the test reads only Postgres, the store and the emulator's journal, and checks: every
job ended as its command says, every invalid row as invalid, no attempt has two remote jobs, artifacts match their
hashes, no secret is anywhere, nothing is left in the stash, and no process is left.

example: scripts/chaos --minutes 2 --seed 7
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import psutil
import psycopg2
import psycopg2.extras
from chaos_limits import QUEUES, USERS, Limits
from rich.console import Console
from rich.table import Table

from rythmiq_ray import Input, JobSpec, NewGroup, NewJob, enqueue_group, enqueue_many, grid
from rythmiq_ray.errors import RythmiqError
from rythmiq_ray.local.camber import Emulator, Faults, Outage, program
from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.local.process import free_ports
from rythmiq_ray.local.s3 import REGION, S3
from rythmiq_ray.queue import inspect
from rythmiq_ray.queue.migrations import migrate
from rythmiq_ray.secret import Secret
from rythmiq_ray.sweeps import expand

LEASE_S: Final = 4.0
DRIVERS: Final = 3
API_KEY: Final = "cafe0123" * 5
SECRET_VALUE: Final = "canary-secret-value-5a5a"
S3_SECRET: Final = "canary-s3-secret-5a5a"
SETTLE_LIMIT_S: Final = 240.0
OVERRIDES: Final = (
    f"driver.lease_s={LEASE_S}",
    "driver.poll_interval_s=0.3",
    "camber.settle_s=1",
    "camber.create_timeout_s=3",
    "camber.sync_timeout_s=15",
    "camber.read_timeout_s=5",
    "retry.base_delay_s=0.2",
    "retry.max_delay_s=2",
    "outage.probe_interval_s=0.5",
    "outage.probe_max_interval_s=2",
    "shutdown.grace_s=4",
    "ray.task_timeout_s=30",
)
OTHER_CLOCKS: Final = 0.3
"""The share of drivers whose clock differs from the nodes' clock."""
LATEST_CLOCK_S: Final = 3600
ODD_SPECS: Final = (
    '{"command": "true", "timeout_s": 1' + "0" * 5000 + "}",
    '{"command": "true", "node_sise": "small"}',
    '{"command": ' + "[" * 3000 + "]" * 3000 + "}",
    "null",
)
console = Console()


class Violation(Exception):
    """Something that must never happen has happened."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=2.0, help="how long things are broken (2)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of what is done and when")
    parser.add_argument("--jobs", type=int, default=0, help="how many jobs (60 a minute)")
    parser.add_argument("--transport", choices=("http", "cli"), default="http", help="how drivers reach Camber (http)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs")
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="rythmiq-chaos-"))
    console.print(f"seed {arguments.seed}, {arguments.minutes:g} min, logs in {root}")
    keep = True
    try:
        with Arena(root, arguments.seed, arguments.transport) as arena:
            arena.enqueue(arguments.jobs or round(60 * arguments.minutes))
            arena.torment(arguments.minutes * 60)
            arena.settle()
            problems = arena.check()
        problems += leftovers(root)
        arena.report(problems)
        keep = bool(problems) or arguments.keep
    finally:
        if not keep:
            shutil.rmtree(root, ignore_errors=True)
    if problems:
        console.print(f"[red]{len(problems)} violations[/red]; reproduce with --seed {arguments.seed}; logs in {root}")
        return 1
    console.print("No violation.")
    return 0


class Arena:
    """All parts and drivers of a run, and what is done to them."""

    def __init__(self, root: Path, seed: int, transport: str) -> None:
        self.root = root
        self.overrides = OVERRIDES if transport == "http" else (*OVERRIDES, *vendor_program(root))
        self.random = random.Random(seed)
        self.seed = seed
        self.done: Counter[str] = Counter()
        self.expected: dict[UUID, tuple[str, int | None]] = {}
        self.cancelled: set[UUID] = set()
        self.odd: set[UUID] = set()
        self.drivers: list[subprocess.Popen[bytes] | None] = [None] * DRIVERS
        self.paused: dict[int, float] = {}
        self.limits = Limits(random.Random(seed))
        self.starts = 0
        self.stack = ExitStack()

    def __enter__(self) -> Arena:
        self.other_clocks = may_have_other_clocks()
        if not self.other_clocks:
            console.print("no other clocks: time namespaces are not permitted here")
        with ExitStack() as stack:
            self.postgres = Postgres(self.root / "postgres")
            self.postgres.start(tethered=True)
            stack.callback(self.postgres.stop)
            self.s3 = S3.tethered(self.root / "s3", access_key="chaos", secret_key=S3_SECRET, bucket="artifacts")
            stack.callback(self.s3.stop)
            self.camber = Emulator(self.root / "camber", api_key=API_KEY)
            stack.enter_context(self.camber)
            self.before_camber = stack.enter_context(Gate(self.camber.endpoint))
            self.before_s3 = stack.enter_context(Gate(self.s3.endpoint))
            on_nodes = self.aws() | {"AWS_ENDPOINT_URL_S3": self.before_s3.endpoint}
            self.ray_address = stack.enter_context(ray_head(self.root, on_nodes))
            self.postgres.wait()
            migrate(Secret(self.postgres.url))
            stack.callback(self.stop_drivers)
            self.stack = stack.pop_all()
        for number in range(DRIVERS):
            self.start_driver(number)
        return self

    def __exit__(self, *_error: object) -> None:
        self.stack.close()

    # ------------------------------------------------------------------------------------------------- drivers

    def environment(self) -> dict[str, str]:
        return {
            **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
            "HOME": os.environ.get("HOME", "/"),
            "DATABASE_URL": self.postgres.url,
            "ARTIFACT_STORE_TYPE": "s3",
            "ARTIFACT_STORE_BUCKET": "artifacts",
            "EXECUTION_BACKEND": "camber",
            "CAMBER_API_KEY": API_KEY,
            "CAMBER_API_ENDPOINT": self.before_camber.endpoint,
            **self.aws(),
            "RYTHMIQ_SECRET_TOKEN": SECRET_VALUE,
            "RAY_ADDRESS": self.ray_address,
            "RAY_AUTH_MODE": "disabled",
            "RAY_grpc_client_keepalive_time_ms": "10000",
            "RAY_grpc_client_keepalive_timeout_ms": "5000",
            "SERVICE_ENV": "staging",
        }

    def aws(self) -> dict[str, str]:
        """The credentials for S3 in a Ray node's environment; in production a node has an instance profile."""
        return {
            "AWS_ACCESS_KEY_ID": "chaos",
            "AWS_SECRET_ACCESS_KEY": S3_SECRET,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.s3.endpoint,
        }

    def start_driver(self, number: int) -> None:
        self.starts += 1
        clock: tuple[str, ...] = ()
        if self.other_clocks and self.random.random() < OTHER_CLOCKS:
            clock = ("unshare", "--time", "--boottime", str(self.random.randint(-LATEST_CLOCK_S, LATEST_CLOCK_S)))
            self.done["drivers with another clock"] += 1
        with (self.root / f"driver-{number}-{self.starts}.log").open("wb") as sink:
            self.drivers[number] = subprocess.Popen(
                [*clock, sys.executable, "-m", "rythmiq_ray.driver", *self.overrides],
                env=self.environment(),
                cwd=self.root,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop_drivers(self) -> None:
        for number, driver in enumerate(self.drivers):
            if driver is None:
                continue
            self.wake(number)
            driver.terminate()
            try:
                driver.wait(30)
            except subprocess.TimeoutExpired:
                driver.kill()
                driver.wait()

    def wake(self, number: int) -> None:
        if self.paused.pop(number, None) is not None:
            driver = self.drivers[number]
            assert driver is not None
            driver.send_signal(signal.SIGCONT)

    # -------------------------------------------------------------------------------------------------- torment

    def enqueue(self, count: int) -> None:
        kinds: list[tuple[Callable[[int], JobSpec], tuple[str, int | None]]] = [
            (lambda n: JobSpec(command=f"seq {n} > out.txt; sleep 0.{n % 10}", outputs=("*.txt",)), ("SUCCEEDED", 0)),
            (lambda n: JobSpec(command=f"sleep 1.{n % 10}; echo {n}"), ("SUCCEEDED", 0)),
            (lambda _: JobSpec(command="! grep -q '\"attempt\": 1,' job.json"), ("SUCCEEDED", 0)),
            (lambda n: JobSpec(command=f"exit {1 + n % 9}", retry_exit_codes=()), ("FAILED", None)),
            (
                lambda _: JobSpec(command='test "${#TOKEN}" = 24', secrets=("TOKEN",), env={"A": "b c"}),
                ("SUCCEEDED", 0),
            ),
            (lambda _: JobSpec(command="head -c 3000000 /dev/zero > a.bin", outputs=("*.bin",)), ("SUCCEEDED", 0)),
        ]
        jobs: list[NewJob] = []
        ends: list[tuple[str, int | None]] = []
        for number in range(count):
            make, end = kinds[number % len(kinds)]
            queue, user = QUEUES[number % len(QUEUES)], USERS[number % len(USERS)]
            jobs.append(
                NewJob(spec=make(number), max_attempts=100, delay=float(number) * 0.3, queue=queue, user_id=user)
            )
            ends.append((end[0], 1 + number % 9 if end[0] == "FAILED" else end[1]))
        connection = psycopg2.connect(self.postgres.url)
        ids = enqueue_many(connection, jobs)
        self.expected = dict(zip(ids, ends, strict=True))
        self.may_cancel = list(ids)
        self._enqueue_group(connection, max(4, count // 10))
        connection.commit()
        connection.close()
        console.print(f"{len(self.expected)} jobs are queued over {count * 0.3:.0f} s")

    def _enqueue_group(self, connection: psycopg2.extensions.connection, members: int) -> None:
        """A sweep with max_parallel, a job with all its files as inputs, and a chain whose first job fails."""
        job = NewJob(spec=JobSpec(command="echo $N > part.txt", outputs=("part.txt",)), max_attempts=100)
        group_id, ids = enqueue_group(
            connection, NewGroup(name="parts", max_parallel=2), expand(job, grid(N=range(members)))
        )
        all_parts = Input(uri=f"group:{group_id}/part.txt", name="parts/")
        merge = JobSpec(command=f"test $(cat parts/*/part.txt | wc -l) = {members}", inputs=(all_parts,))
        chain = [
            NewJob(spec=merge, max_attempts=100),
            NewJob(spec=JobSpec(command="exit 3", retry_exit_codes=()), name="fails", group="chain", max_attempts=100),
            NewJob(spec=JobSpec(command="true"), name="never", group="chain", after=("fails",), max_attempts=100),
            NewJob(spec=JobSpec(command="true"), after_ended=("chain",), max_attempts=100),
        ]
        ends = [("SUCCEEDED", 0), ("FAILED", 3), ("CANCELLED", None), ("SUCCEEDED", 0)]
        self.expected |= dict.fromkeys(ids, ("SUCCEEDED", 0))
        self.expected |= dict(zip(enqueue_many(connection, chain), ends, strict=True))

    def torment(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self.camber.faults = Faults(
            seed=self.seed,
            lost_answer=0.08,
            ghost_create=0.05,
            too_many=0.02,
            retry_after_s=1,
            server_error=0.02,
            cut_download=0.05,
            list_lag_s=0.5,
        )
        actions: list[tuple[int, Callable[[], None]]] = [
            (8, self.kill_driver),
            (3, self.terminate_driver),
            (3, self.pause_driver),
            (2, self.restart_postgres),
            (1, self.crash_postgres),
            (2, self.camber_outage),
            (3, self.cancel_one),
            (2, self.read_only_postgres),
            (2, self.lock_a_row),
            (2, self.odd_rows),
            (2, self.closing_gateway),
            (2, self.nodes_without_s3),
            (5, self.change_a_limit),
        ]
        weights = [weight for weight, _ in actions]
        while time.monotonic() < deadline:
            time.sleep(self.random.uniform(0.5, 4.0))
            for number, since in list(self.paused.items()):
                if time.monotonic() - since > LEASE_S * 1.5:
                    self.wake(number)
            for number, driver in enumerate(self.drivers):
                if driver is not None and driver.poll() is not None:
                    self.start_driver(number)
            (action,) = self.random.choices([action for _, action in actions], weights)
            action()

    def awake(self) -> list[int]:
        return [
            number
            for number, driver in enumerate(self.drivers)
            if number not in self.paused and driver is not None and driver.poll() is None
        ]

    def signal_one(self, number: signal.Signals, name: str) -> None:
        awake = self.awake()
        if awake:
            chosen = self.random.choice(awake)
            driver = self.drivers[chosen]
            assert driver is not None
            driver.send_signal(number)
            self.done[name] += 1
            if number is signal.SIGSTOP:
                self.paused[chosen] = time.monotonic()

    def kill_driver(self) -> None:
        self.signal_one(signal.SIGKILL, "drivers killed")

    def terminate_driver(self) -> None:
        self.signal_one(signal.SIGTERM, "drivers stopped")

    def pause_driver(self) -> None:
        if not self.paused:
            self.signal_one(signal.SIGSTOP, "drivers paused past their lease")

    def restart_postgres(self) -> None:
        self.postgres.restart()
        self.done["Postgres restarts"] += 1

    def crash_postgres(self) -> None:
        self.postgres.restart(crash=True)
        self.done["Postgres crashes"] += 1

    def camber_outage(self) -> None:
        faults = self.camber.faults
        self.camber.faults = replace(faults, outage=Outage.UNAVAILABLE)
        time.sleep(self.random.uniform(1.0, 6.0))
        self.camber.faults = faults
        self.done["Camber outages"] += 1

    def cancel_one(self) -> None:
        open_ids = [job_id for job_id in self.may_cancel if job_id not in self.cancelled]
        job_id = self.random.choice(open_ids)
        with suppress(psycopg2.Error):
            connection = psycopg2.connect(self.postgres.url)
            connection.autocommit = True
            if inspect.cancel(connection, [job_id]):
                self.cancelled.add(job_id)
                self.done["jobs cancelled"] += 1
            connection.close()

    def change_a_limit(self) -> None:
        with suppress(psycopg2.Error, RythmiqError), closing(psycopg2.connect(self.postgres.url)) as connection:
            connection.autocommit = True
            self.limits.change(connection)
            self.done["limits changed"] += 1

    def read_only_postgres(self) -> None:
        """As during a failover: old connections are closed, and new ones are read-only."""
        self.set_read_only("on")
        time.sleep(self.random.uniform(1.0, 6.0))
        self.set_read_only("off")
        self.done["times that Postgres was read-only"] += 1

    def set_read_only(self, value: str) -> None:
        with self.connected() as cursor:
            cursor.execute("SET default_transaction_read_only = off")
            cursor.execute(f"ALTER DATABASE postgres SET default_transaction_read_only = {value}")
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rythmiq-ray'"
            )

    def lock_a_row(self) -> None:
        """Another session locks a job in a transaction that stays open for a while."""
        with suppress(psycopg2.Error), self.connected() as cursor:
            cursor.execute("BEGIN")
            cursor.execute("SELECT FROM rythmiq.jobs WHERE state = 'RUNNING' ORDER BY random() LIMIT 1 FOR UPDATE")
            self.done["rows locked by another session"] += cursor.rowcount
            time.sleep(self.random.uniform(1.0, LEASE_S * 2))
            cursor.execute("ROLLBACK")

    def odd_rows(self) -> None:
        """Inserts rows as a person or another program may write them; each must end, and affect nothing else."""
        ids = [UUID(int=self.random.getrandbits(128)) for _ in range(len(ODD_SPECS) + 1)]
        with self.connected() as cursor:
            for job_id, spec in zip(ids[1:], ODD_SPECS, strict=True):
                cursor.execute("INSERT INTO rythmiq.jobs (job_id, spec) VALUES (%s, %s)", (str(job_id), spec))
            cursor.execute(
                "INSERT INTO rythmiq.jobs (job_id, spec, state, phase, attempt, driver_id, remote_id, remote_path)"
                " SELECT %s, '{\"command\": \"true\"}', 'RUNNING', 'waiting', 1, gen_random_uuid(), 1, max(remote_path)"
                " FROM rythmiq.jobs",
                (str(ids[0]),),
            )
        self.odd.update(ids)
        self.done["odd rows"] += len(ids)

    def closing_gateway(self) -> None:
        self.before_camber.behave("closing")
        time.sleep(self.random.uniform(1.0, 8.0))
        self.before_camber.behave("passing")
        self.done["times that a gateway closed every connection"] += 1

    def nodes_without_s3(self) -> None:
        self.before_s3.behave("refusing")
        time.sleep(self.random.uniform(1.0, 6.0))
        self.before_s3.behave("passing")
        self.done["times that nodes might not write to S3"] += 1

    @contextmanager
    def connected(self) -> Iterator[psycopg2.extensions.cursor]:
        connection = psycopg2.connect(self.postgres.url)
        connection.autocommit = True
        try:
            yield connection.cursor()
        finally:
            connection.close()

    def settle(self) -> None:
        """Removes all faults, and waits until all jobs have ended and their paths are gone."""
        self.camber.faults = Faults()
        for number in list(self.paused):
            self.wake(number)
        lifted = False
        deadline = time.monotonic() + SETTLE_LIMIT_S
        sql = (
            "SELECT (SELECT count(*) FROM rythmiq.jobs"
            "        WHERE state IN ('BLOCKED', 'QUEUED', 'RETRYING', 'RUNNING')) AS open,"
            " (SELECT count(*) FROM rythmiq.attempts WHERE finished_at IS NOT NULL AND cleaned_at IS NULL) AS unclean"
        )
        while True:
            for number, driver in enumerate(self.drivers):
                if driver is None or driver.poll() is not None:
                    self.start_driver(number)
            with suppress(psycopg2.Error, RythmiqError):
                if not lifted:
                    with closing(psycopg2.connect(self.postgres.url)) as connection:
                        connection.autocommit = True
                        self.limits.lift(connection)
                    lifted = True
                ((unfinished, uncleaned),) = [tuple(row.values()) for row in self.rows(sql)]
                if unfinished == uncleaned == 0:
                    return
                if time.monotonic() > deadline:
                    console.print(f"[red]still {unfinished} unfinished jobs and {uncleaned} uncleaned attempts[/red]")
                    return
            time.sleep(0.5)

    # ---------------------------------------------------------------------------------------------------- check

    def rows(self, sql: str) -> list[dict[str, Any]]:
        connection = psycopg2.connect(self.postgres.url, cursor_factory=psycopg2.extras.RealDictCursor)
        # As text, because Python cannot parse all of the specs.
        psycopg2.extras.register_default_jsonb(connection, loads=str)
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql.replace("%", "%%"))
                return [dict(row) for row in cursor.fetchall()]
        finally:
            connection.close()

    def check(self) -> list[str]:
        """Every violation, as a sentence."""
        self.stop_drivers()
        self.drivers = [None] * DRIVERS
        return [
            *self._check_jobs(),
            *self._check_creates(),
            *self._check_limits(),
            *self._check_artifacts(),
            *self._check_secrets(),
        ]

    def _check_jobs(self) -> Iterator[str]:
        jobs = {UUID(row["job_id"]): row for row in self.rows("SELECT *, job_id::text FROM rythmiq.jobs")}
        for job_id, (state, exit_code) in self.expected.items():
            row = jobs[job_id]
            if job_id in self.cancelled and row["state"] == "CANCELLED":
                continue
            if (row["state"], row["exit_code"]) != (state, exit_code):
                why = f"{row['error_code']}: {row['error_message']}"
                yield f"job {job_id} ended {row['state']} {row['exit_code']} ({why}) instead of {state} {exit_code}"
        for job_id in self.odd:
            row = jobs[job_id]
            if (row["state"], row["error_code"]) != ("FAILED", "invalid_job"):
                yield f"the odd row {job_id} ended {row['state']}, {row['error_code']}: {row['error_message']}"
        for row in self.rows(
            "SELECT g.name, g.members, g.succeeded, g.failed, g.cancelled, count(j.*) AS there,"
            " count(*) FILTER (WHERE j.state = 'SUCCEEDED') AS s, count(*) FILTER (WHERE j.state = 'FAILED') AS f,"
            " count(*) FILTER (WHERE j.state = 'CANCELLED') AS c, g.finished_at IS NULL AS open"
            " FROM rythmiq.groups AS g JOIN rythmiq.jobs AS j USING (group_id) GROUP BY g.group_id"
        ):
            counted = (row["there"], row["s"], row["f"], row["c"], False)
            if (row["members"], row["succeeded"], row["failed"], row["cancelled"], row["open"]) != counted:
                yield f"the group {row['name']} has other counters than members: {dict(row)}"
        self.done["attempts"] = self.rows("SELECT count(*) FROM rythmiq.attempts")[0]["count"]
        self.done["jobs"] = len(self.expected)
        for row in self.rows(
            "SELECT job_id::text, attempt, state FROM rythmiq.attempts WHERE state = 'RUNNING' OR cleaned_at IS NULL"
        ):
            yield f"attempt {row['job_id']}/{row['attempt']} is {row['state']} or was not cleaned"

    def _check_creates(self) -> Iterator[str]:
        events = [json.loads(line) for line in (self.camber.root / "journal.jsonl").read_text().splitlines()]
        creates = [event for event in events if event["event"] == "create"]
        for path, count in Counter(event["mount_dir"] for event in creates).items():
            if count > 1:
                yield f"{path} was created {count} times"
        self.done["creates"] = len(creates)
        self.done["creates whose answer was lost"] = sum(bool(event.get("withheld")) for event in creates)
        left = [path for path in (self.camber.root / "stash").rglob("*") if path.is_file()]
        if left:
            yield f"{len(left)} files are left in the stash, such as {left[0]}"

    def _check_limits(self) -> Iterator[str]:
        attempts = self.rows(
            "SELECT a.job_id || '/' || a.attempt AS path, j.queue, j.user_id,"
            " extract(epoch FROM a.started_at)::double precision AS claimed"
            " FROM rythmiq.attempts AS a JOIN rythmiq.jobs AS j USING (job_id) WHERE isfinite(a.started_at)"
        )
        yield from self.limits.violations(self.camber.root / "journal.jsonl", attempts)

    def _check_artifacts(self) -> Iterator[str]:
        client = self.s3.client()
        checked = 0
        for row in self.rows("SELECT * FROM rythmiq.artifacts"):
            bucket, _, key = row["uri"].removeprefix("s3://").partition("/")
            content = client.get_object(Bucket=bucket, Key=key)["Body"].read()
            if (len(content), hashlib.sha256(content).hexdigest()) != (row["bytes"], row["sha256"]):
                yield f"{row['uri']} is not what its row says"
            checked += 1
        for row in self.rows("SELECT artifact_uri, state FROM rythmiq.jobs WHERE state = 'SUCCEEDED'"):
            bucket, _, key = row["artifact_uri"].removeprefix("s3://").partition("/")
            manifest = json.loads(client.get_object(Bucket=bucket, Key=key)["Body"].read())
            if manifest["state"] != "SUCCEEDED":
                yield f"{row['artifact_uri']} says {manifest['state']}"
        if client.list_multipart_uploads(Bucket="artifacts").get("Uploads"):
            yield "multipart uploads are left dangling"
        self.done["artifacts checked"] = checked

    def _check_secrets(self) -> Iterator[str]:
        canaries = [value.encode() for value in (API_KEY, SECRET_VALUE, S3_SECRET)]
        dump = json.dumps([self.rows(f"SELECT * FROM rythmiq.{table}") for table in ("jobs", "attempts")], default=str)
        texts: dict[str, bytes] = {"the tables": dump.encode()}
        for path in [
            *self.root.glob("driver-*.log"),
            self.camber.root / "journal.jsonl",
            *self.root.glob("ray/**/logs/*"),
        ]:
            if path.is_file():
                texts[str(path)] = path.read_bytes()
        for place, text in texts.items():
            if any(canary in text for canary in canaries):
                yield f"a secret is in {place}"
        self.done["texts searched for secrets"] = len(texts)

    def report(self, problems: list[str]) -> None:
        table = Table("what was done", "how often", box=None)
        for name, count in sorted(self.done.items()):
            table.add_row(name, str(count))
        console.print(table)
        for problem in problems[:40]:
            console.print(f"[red]{problem}[/red]")


class Gate:
    """A proxy in front of a server: passes everything on, or behaves as gateways and servers sometimes do."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self.server = (parts.hostname or "", parts.port or 80)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}{parts.path}"
        self.how = "passing"
        self.live: set[socket.socket] = set()

    def __enter__(self) -> Gate:
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.listener.close()
        self.behave("passing")

    def behave(self, how: str) -> None:
        """Sets the behaviour, and cuts all open connections.

        ``passing``: everything is passed on. ``closing``: each connection is closed after its first answer, although no
        header says so. ``refusing``: every answer is 403.
        """
        self.how = how
        for connection in list(self.live):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def accept(self) -> None:
        with suppress(OSError):  # of the listener, once it is closed
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        self.live.add(client)
        with suppress(OSError), client:
            if self.how == "refusing":
                head(client)
                client.sendall(FORBIDDEN)
                return
            with socket.create_connection(self.server) as server:
                closing = self.how == "closing"
                if closing:
                    server.sendall(CONNECTION.sub(b"", head(client)).replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                threading.Thread(target=pump, args=(client, server), daemon=True).start()
                if closing:
                    client.sendall(CONNECTION.sub(b"", head(server)))
                pump(server, client)
        self.live.discard(client)


CONNECTION: Final = re.compile(rb"(?im)^connection:[^\r\n]*\r\n")
FORBIDDEN: Final = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: 88\r\nConnection: close\r\n\r\n"
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code><Message>refused</Message></Error>\n'
)


def head(source: socket.socket) -> bytes:
    """The head of a request or an answer, and the bytes that came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = source.recv(65_536)
        if not part:
            raise ConnectionError
        data += part
    return data


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    for side in (source, sink):
        with suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)


def may_have_other_clocks() -> bool:
    """Whether this machine allows a process to have a clock of its own."""
    try:
        return subprocess.run(["unshare", "--time", "--boottime", "1", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def vendor_program(root: Path) -> tuple[str, ...]:
    """Makes a program that replaces the vendor's; returns the overrides with which a driver uses it."""
    place = root / "vendor-camber"
    # Python ignores the unknown -X option; its path lets :func:`leftovers` find the process.
    place.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S -X utf8 -X chaos={root} {program.__file__} "$@"\n')
    place.chmod(0o755)
    return (
        "camber.transport=cli",
        f"camber.program={place}",
        # Longer, because each call starts a process, which is slow on a busy machine.
        "camber.create_timeout_s=10",
        "camber.read_timeout_s=20",
        "ray.task_timeout_s=120",
    )


@contextmanager
def ray_head(root: Path, environment: dict[str, str]) -> Iterator[str]:
    """A Ray cluster that the drivers join, so that a restarted driver works again within a second or two."""
    (port,) = free_ports(1)
    folder = Path(tempfile.mkdtemp(prefix="rq-"))  # Ray's socket paths must stay below 107 bytes
    environ = {
        **os.environ,
        **environment,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_grpc_client_keepalive_time_ms": "10000",
        "RAY_grpc_client_keepalive_timeout_ms": "5000",
    }
    with (root / "ray.log").open("wb") as sink:
        head = subprocess.Popen(
            [
                *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=4"),
                *(f"--port={port}", f"--temp-dir={folder}", "--include-dashboard=false", "--disable-usage-stats"),
                "--node-ip-address=127.0.0.1",
            ],
            env=environ,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    (root / "ray").symlink_to(folder)
    deadline = time.monotonic() + 60
    while "Ray runtime started" not in (root / "ray.log").read_text():
        if head.poll() is not None or time.monotonic() > deadline:
            raise Violation(f"Ray did not start; see {root / 'ray.log'}")
        time.sleep(0.1)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        family = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(20)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        logs = root / "ray-logs"
        with suppress(OSError):
            shutil.copytree(folder / "session_latest" / "logs", logs)
        (root / "ray").unlink()
        shutil.rmtree(folder, ignore_errors=True)


def leftovers(root: Path) -> list[str]:
    """A sentence for each process of this run that is still alive."""
    out = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(root) in line and process.pid != os.getpid():
            out.append(f"process {process.pid} is left: {line[:100]}")
    return out


if __name__ == "__main__":
    sys.exit(main())
