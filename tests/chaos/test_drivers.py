"""Several drivers on one queue, none of them special: together, frozen past a lease, and with a service that lies."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import UUID

import crashing_driver
import psycopg2
import psycopg2.extras
import pytest
from inline_cluster import InlineCluster
from samples import API_KEY

from rythmiq_ray import JobSpec, NewJob, enqueue_many
from rythmiq_ray.artifacts import open_store
from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.config import Config
from rythmiq_ray.config_loader import load
from rythmiq_ray.driver.loop import Loop
from rythmiq_ray.driver.outages import BACKEND, STORE
from rythmiq_ray.driver.poller import Poller
from rythmiq_ray.executor import Executor
from rythmiq_ray.local.camber import Emulator, Faults, Settings
from rythmiq_ray.model import Step, StepRequest
from rythmiq_ray.queue import Heartbeat, Queue
from rythmiq_ray.wakeup import Wakeup

WAIT_S = 90.0
OVERRIDES = (
    "driver.lease_s=4",
    "driver.poll_interval_s=0.1",
    "driver.batch_size=7",
    "camber.settle_s=0.5",
    "camber.create_timeout_s=1",
    "camber.read_timeout_s=2",
    "camber.sync_timeout_s=8",
    "outage.probe_interval_s=0.1",
    "outage.probe_max_interval_s=0.3",
    "retry.base_delay_s=0.1",
)


class Site:
    """A queue, a service and a store, and what became of the jobs."""

    def __init__(self, url: str, store: Path, camber: Emulator) -> None:
        self.camber = camber
        self.overrides = list(OVERRIDES)
        self.environ = {
            "DATABASE_URL": url,
            "ARTIFACT_STORE_TYPE": "local",
            "ARTIFACT_STORE_PATH": str(store),
            "EXECUTION_BACKEND": "camber",
            "CAMBER_API_KEY": API_KEY,
            "CAMBER_API_ENDPOINT": camber.endpoint,
            "SERVICE_ENV": "prod",
        }
        self.connection = psycopg2.connect(url, cursor_factory=psycopg2.extras.RealDictCursor)
        self.connection.autocommit = True

    def config(self) -> Config:
        return load(self.overrides, environ=self.environ).config

    def put(self, *commands: str) -> list[UUID]:
        return enqueue_many(
            self.connection, [NewJob(spec=JobSpec(command=command, outputs=("*.txt",))) for command in commands]
        )

    def rows(self, sql: str) -> list[dict[str, Any]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            return [dict(row) for row in cursor.fetchall()]

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = (self.camber.root / "journal.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    def check(self) -> None:
        """What holds whatever happened: nothing twice, nothing half, nothing left."""
        creates = Counter(event["mount_dir"] for event in self.events("create"))
        assert [path for path, count in creates.items() if count > 1] == []
        attempts = self.rows("SELECT * FROM rythmiq.attempts")
        assert {row["remote_path"] for row in attempts} >= set(creates), "a remote job that no row knows of"
        assert [row["remote_path"] for row in attempts if row["finished_at"] is None] == []
        for row in self.rows("SELECT * FROM rythmiq.artifacts"):
            assert hashlib.sha256(_path(row["uri"]).read_bytes()).hexdigest() == row["sha256"]
        for row in attempts:
            if row["state"] == "SUCCEEDED":
                manifest = json.loads(_path(row["artifact_uri"]).read_bytes())
                assert manifest["attempt"] == row["attempt"]
                for entry in manifest["artifacts"]:
                    assert hashlib.sha256(_path(entry["uri"]).read_bytes()).hexdigest() == entry["sha256"]
        assert [path for path in (self.camber.root / "stash").rglob("*") if path.is_file()] == []


@contextmanager
def driver(config: Config, loses: Callable[[StepRequest], bool]) -> Iterator[Loop]:
    """A driver of this process; a caller runs it."""
    executor = Executor(
        backend=CamberExecutionBackend(config.camber),
        store=open_store(config.artifacts),
        timeout_s=60.0,
        concurrency=2,
    )
    wakeup = Wakeup()
    queue = Queue(config.database.url, lease_s=config.driver.lease_s)
    heartbeat = Heartbeat(config.database.url, lease_s=config.driver.lease_s)
    poller = Poller(executor.backend, {BACKEND: executor.backend.check, STORE: executor.store.check}, wake=wakeup.set)
    cluster = InlineCluster(executor, wake=wakeup.set, threads=4, loses=loses)
    loop = Loop(config, queue, heartbeat, cluster, poller, wakeup)
    loop.register()
    poller.start()
    try:
        yield loop
        loop.stop()
    finally:
        loop.lease.stop(resign=False)
        poller.stop()
        queue.close()
        heartbeat.close()


class Died(Exception):
    """A driver's end in the middle of its work: nothing is given back, and its tasks go on."""


def run_drivers(
    site: Site, count: int, loses: Callable[[StepRequest], bool] = lambda _order: False, *, lives: Sequence[int] = ()
) -> None:
    """Runs that many drivers until nothing is left; the first of them die after so many ticks each."""
    errors: list[BaseException] = []

    def run(ticks: int | None) -> None:
        try:
            with driver(site.config(), loses) as loop:
                if ticks is None:
                    loop.run(drain=True)
                    return
                loop.lease.start()
                for _ in range(ticks):
                    loop.tick()
                    loop.wait()
                raise Died
        except Died:
            pass
        except BaseException as error:  # noqa: BLE001 - it is raised in the test's own thread
            errors.append(error)

    ends = [*lives, *[None] * (count - len(lives))]
    threads = [threading.Thread(target=run, args=(ticks,), daemon=True) for ticks in ends]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive(), "a driver hangs"
    if errors:
        raise errors[0]


@pytest.fixture
def site_of(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**options: Any) -> Site:
        emulator = Emulator(tmp_path / "camber", api_key=API_KEY, **options)
        emulator.start()
        made.append(Site(database_url, tmp_path / "store", emulator))
        return made[-1]

    yield make
    for site in made:
        site.connection.close()
        site.camber.stop()


@pytest.mark.parametrize("count", [2, 3])
def test_drivers_share_a_queue_and_each_job_is_done_once(site_of: Callable[..., Site], count: int) -> None:
    site = site_of(settings=Settings.instant(0.05))
    site.overrides.append("camber.max_in_flight=100")
    site.put(*["true"] * 200)
    run_drivers(site, count)
    assert site.rows("SELECT state, attempt, count(*) AS n FROM rythmiq.jobs GROUP BY 1, 2") == [
        {"state": "SUCCEEDED", "attempt": 1, "n": 200}
    ]
    assert len(site.events("create")) == 200
    workers = site.rows("SELECT count(DISTINCT driver_id) AS n FROM rythmiq.attempts")
    assert workers == [{"n": count}], "one of them had nothing to do"
    site.check()


@pytest.mark.parametrize("seed", [1, 2])
def test_ten_drivers_of_which_some_die_are_one_queue(site_of: Callable[..., Site], seed: int) -> None:
    site = site_of(settings=Settings.instant(0.2), faults=Faults(list_lag_s=0.3))
    site.overrides.append("camber.max_in_flight=1000")
    site.put(*["true"] * 300)
    chance = random.Random(seed)
    run_drivers(site, 10, lives=[chance.randint(1, 12) for _ in range(4)])
    assert site.rows("SELECT state, attempt, count(*) AS n FROM rythmiq.jobs GROUP BY 1, 2") == [
        {"state": "SUCCEEDED", "attempt": 1, "n": 300}
    ]
    assert len(site.events("create")) == 300
    ended = site.rows("SELECT driver_id FROM rythmiq.attempts GROUP BY 1")
    assert len(ended) >= 6, "a driver that lived had nothing to do"
    site.check()


def test_a_job_that_the_platform_cancels_is_retried_on_a_fresh_path(site_of: Callable[..., Site]) -> None:
    site = site_of(
        settings=Settings(queue_wait_s=(0.5, 0.5), sync_delay_s=0.05, max_running=8),
        faults=Faults(self_cancel=1.0, self_cancel_after_s=0.1, at_most=2),
    )
    site.put(*["echo x > out.txt"] * 4)
    run_drivers(site, 1)
    assert site.rows("SELECT state, attempt, count(*) AS n FROM rythmiq.jobs GROUP BY 1, 2 ORDER BY 2") == [
        {"state": "SUCCEEDED", "attempt": 1, "n": 2},
        {"state": "SUCCEEDED", "attempt": 2, "n": 2},
    ]
    first = site.rows("SELECT state, error_code, retryable FROM rythmiq.attempts WHERE state <> 'SUCCEEDED'")
    assert first == [{"state": "FAILED", "error_code": "remote_cancelled", "retryable": True}] * 2
    site.check()


def test_a_job_that_waits_past_its_queue_deadline_is_cancelled_and_retried_on_a_fresh_path(
    site_of: Callable[..., Site],
) -> None:
    site = site_of(settings=Settings(queue_wait_s=(0.0, 0.0), sync_delay_s=0.05, max_running=1))
    site.overrides.append("execution.queue_timeout_s=1")
    site.put(*["sleep 1.6; echo x > out.txt"] * 2)
    run_drivers(site, 1)
    attempts = site.rows("SELECT state, error_code FROM rythmiq.attempts ORDER BY started_at, state DESC")
    assert {row["state"] for row in site.rows("SELECT state FROM rythmiq.jobs")} == {"SUCCEEDED"}
    assert {"state": "FAILED", "error_code": "queue_timeout"} in attempts
    assert len(attempts) >= 3
    assert len(site.events("cancel")) >= 1, "the one that waited in vain is not left to run and be paid for"
    site.check()


def test_tasks_that_die_after_their_work_cost_no_attempt_and_no_second_remote_job(
    site_of: Callable[..., Site],
) -> None:
    site = site_of(settings=Settings.instant(0.05), faults=Faults(list_lag_s=0.4))
    site.put(*["true"] * 20)
    lost: set[tuple[UUID, Step]] = set()

    def loses(request: StepRequest) -> bool:
        """The first task of each step of a job."""
        first = (request.job.job_id, request.step) not in lost
        lost.add((request.job.job_id, request.step))
        return first

    run_drivers(site, 2, loses)
    assert {step for _, step in lost} >= {Step.SUBMIT, Step.COLLECT, Step.CLEAN}
    assert site.rows("SELECT state, attempt, count(*) AS n FROM rythmiq.jobs GROUP BY 1, 2") == [
        {"state": "SUCCEEDED", "attempt": 1, "n": 20}
    ]
    site.check()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_lying_service_makes_no_job_wrong(site_of: Callable[..., Site], seed: int) -> None:
    faults = Faults(
        seed=seed,
        lost_answer=0.15,
        ghost_create=0.15,
        too_many=0.03,
        retry_after_s=0.1,
        server_error=0.03,
        cut_download=0.15,
        list_lag_s=0.4,
    )
    site = site_of(settings=Settings(queue_wait_s=(0.0, 0.05), sync_delay_s=0.05, max_running=8), faults=faults)
    commands = [f"echo {number} > out.txt" for number in range(30)] + ["exit 7"] * 3
    ids = dict(zip(site.put(*commands), commands, strict=True))
    run_drivers(site, 2)
    withheld = [event for event in site.events("create") if event["withheld"]]
    assert withheld, "no answer was lost: the test tests nothing"
    for row in site.rows("SELECT * FROM rythmiq.jobs"):
        fails = ids[row["job_id"]] == "exit 7"
        assert (row["state"], row["exit_code"]) == (("FAILED", 7) if fails else ("SUCCEEDED", 0)), row["error_message"]
        assert row["attempt"] == (row["max_attempts"] if fails else 1), "an attempt was burned"
    for row in site.rows("SELECT * FROM rythmiq.artifacts WHERE name = 'out.txt'"):
        assert ids[row["job_id"]] == f"echo {_path(row['uri']).read_text().strip()} > out.txt"
    assert site.rows("SELECT count(*) AS n FROM rythmiq.artifacts WHERE name = 'out.txt'") == [{"n": 30}]
    site.check()


def test_a_driver_that_is_stopped_past_its_lease_and_woken_changes_nothing(
    site_of: Callable[..., Site], tmp_path: Path
) -> None:
    site = site_of(settings=Settings(queue_wait_s=(0.0, 0.0), sync_delay_s=0.05, max_running=8))
    site.put(*["sleep 3; echo x > out.txt"] * 4)
    frozen = crashing_driver.start(tmp_path, {**os.environ, **site.environ})
    assert frozen.pid is not None
    try:
        waiting = "SELECT job_id FROM rythmiq.jobs WHERE phase = 'waiting'"
        _until(lambda: len(site.rows(waiting)) == 4, "all wait")
        os.kill(frozen.pid, signal.SIGSTOP)
        former = site.rows("SELECT DISTINCT driver_id FROM rythmiq.jobs")
        assert len(former) == 1
        run_drivers(site, 1)
        before = site.rows("SELECT * FROM rythmiq.jobs ORDER BY job_id")
        assert {(row["state"], row["attempt"]) for row in before} == {("SUCCEEDED", 1)}
        assert former[0]["driver_id"] not in {row["driver_id"] for row in before}
        attempts = site.rows("SELECT * FROM rythmiq.attempts ORDER BY job_id")
        os.kill(frozen.pid, signal.SIGCONT)
        frozen.join(WAIT_S)
        assert frozen.exitcode == 0, "it finds nothing left to do"
        assert site.rows("SELECT * FROM rythmiq.jobs ORDER BY job_id") == before
        assert site.rows("SELECT * FROM rythmiq.attempts ORDER BY job_id") == attempts
        site.check()
    finally:
        frozen.kill()


def _until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.05)


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))
