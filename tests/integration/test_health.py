"""Health and metrics as a probe and a scrape see them, of a driver with real parts; and what they cost Postgres."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
import requests
from inline_cluster import InlineCluster
from prometheus_client.parser import text_string_to_metric_families
from samples import API_KEY

from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.artifacts import open_store
from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.clock import now_s
from rythmiq_ray.config_loader import load
from rythmiq_ray.driver.loop import Loop
from rythmiq_ray.driver.outages import BACKEND, STORE
from rythmiq_ray.driver.poller import Poller
from rythmiq_ray.driver.vitals import Vitals
from rythmiq_ray.executor import Executor
from rythmiq_ray.local.camber import Emulator, Faults
from rythmiq_ray.model import JobState, StepRequest
from rythmiq_ray.queue import Heartbeat, Queue, listing
from rythmiq_ray.queue import queue as queue_module
from rythmiq_ray.secret import Secret
from rythmiq_ray.telemetry.health import HealthServer
from rythmiq_ray.telemetry.metrics import Metrics, PrometheusSink
from rythmiq_ray.wakeup import Wakeup

WAIT_S = 60.0
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def environ(url: str, store: Path, endpoint: str) -> dict[str, str]:
    return {
        "DATABASE_URL": url,
        "ARTIFACT_STORE_TYPE": "local",
        "ARTIFACT_STORE_PATH": str(store),
        "EXECUTION_BACKEND": "camber",
        "CAMBER_API_KEY": API_KEY,
        "CAMBER_API_ENDPOINT": endpoint,
    }


class Driver:
    """A driver whose ticks the test makes, with its health server; ``ahead_s`` moves its clock."""

    def __init__(self, url: str, store: Path, camber: Emulator) -> None:
        overrides = ["driver.poll_interval_s=0.1", "camber.settle_s=0.3", "retry.base_delay_s=0"]
        overrides += ["camber.call_attempts=1", "outage.probe_interval_s=0.1", "outage.probe_max_interval_s=0.2"]
        self.config = load(overrides, environ=environ(url, store, camber.endpoint)).config
        self.ahead_s = 0.0
        scraped = PrometheusSink()
        metrics = Metrics([scraped])
        backend = CamberExecutionBackend(self.config.camber, on_call=metrics.api_call)
        artifacts = open_store(self.config.artifacts)
        executor = Executor(backend=backend, store=artifacts, timeout_s=60.0, concurrency=2)
        wakeup = Wakeup()
        self.queue = Queue(self.config.database.url, lease_s=self.config.driver.lease_s)
        self.heartbeat = Heartbeat(self.config.database.url, lease_s=self.config.driver.lease_s)

        def clock() -> float:
            return now_s() + self.ahead_s

        self.poller = Poller(backend, {BACKEND: backend.check, STORE: artifacts.check}, wake=wakeup.set)
        cluster = InlineCluster(executor, wake=wakeup.set, loses=Once())
        self.loop = Loop(
            self.config,
            self.queue,
            self.heartbeat,
            cluster,
            self.poller,
            wakeup,
            metrics=metrics,
            clock=clock,
        )
        self.vitals = Vitals(self.config, self.loop, cluster, self.queue, metrics, clock=clock)
        self.loop.after_tick = self.vitals.publish

        def scrape(accept: str) -> tuple[bytes, str]:
            metrics.status(self.vitals.status())
            return scraped.page(accept)

        self.server = HealthServer(self.vitals.status, scrape)
        self.url = f"http://127.0.0.1:{self.server.start('127.0.0.1', 0)}"

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}"
            self.loop.tick()
            self.loop.wait()

    def get(self, path: str) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=10)

    def ready(self) -> tuple[int, dict[str, Any]]:
        response = self.get("/readyz")
        return response.status_code, response.json()

    def samples(self) -> Samples:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
        }


@dataclass
class Once:
    """Loses the task of the first order there is, once it is carried out."""

    lost: list[StepRequest] = field(default_factory=list)

    def __call__(self, order: StepRequest) -> bool:
        if not self.lost:
            self.lost.append(order)
            return True
        return False


@pytest.fixture
def driver(database_url: str, tmp_path: Path, camber: Emulator) -> Iterator[Driver]:
    driver = Driver(database_url, tmp_path / "store", camber)
    yield driver
    driver.server.stop()
    driver.poller.stop()
    driver.loop.lease.stop(resign=False)
    driver.queue.close()
    driver.heartbeat.close()


def test_readiness_follows_the_drivers_life_and_its_outages(
    driver: Driver, connection: psycopg2.extensions.connection, camber: Emulator
) -> None:
    code, body = driver.ready()
    assert (code, body["stage"], body["checks"]) == (503, "starting", {})
    assert driver.get("/livez").status_code == 200, "a start has time-outs of its own"

    driver.loop.register()
    driver.poller.start()
    driver.loop.run(drain=True)
    code, body = driver.ready()
    assert code == 200
    assert body["checks"] == {
        name: {"ok": True} for name in ("postgres", "ray", "camber_breaker", "store_breaker", "lease", "polls")
    }
    assert 0 <= body["lease_age_s"] < driver.config.driver.lease_s

    camber.faults = Faults(refuse_key=True)
    enqueue(connection, JobSpec(command="true"))
    driver.until(lambda: driver.ready()[0] == 503, "the breaker opens")
    driver.until(lambda: driver.ready()[1]["checks"]["camber_breaker"].get("reason"), "the fault is told")
    assert driver.ready()[1]["checks"]["camber_breaker"] == {"ok": False, "reason": "backend_refused_key"}
    assert driver.get("/livez").status_code == 200, "a restart would not help"
    assert driver.samples()["rythmiq_check_ok", (("check", "camber_breaker"),)] == 0
    camber.faults = Faults()
    driver.until(lambda: driver.ready()[0] == 200, "the breaker closes")

    driver.ahead_s = driver.config.driver.lease_s
    code, body = driver.ready()
    assert (code, body["checks"]["lease"]) == (503, {"ok": False})
    assert driver.get("/livez").status_code == 200, "the loop may still come back"
    driver.ahead_s = 100.0
    assert driver.get("/livez").status_code == 503
    assert driver.get("/livez").text.startswith("stuck: the last tick began 1")
    assert driver.samples()["rythmiq_tick_age_seconds", ()] >= 100, "a scrape needs no tick"
    driver.ahead_s = 0.0

    driver.loop.stop_requested = True
    code, body = driver.ready()
    assert (code, body["stage"]) == (503, "stopping")
    driver.loop.stop()
    assert driver.get("/livez").status_code == 200
    assert driver.get("/nothing").status_code == 404
    assert requests.head(f"{driver.url}/livez", timeout=10).status_code == 200


def test_metrics_tell_what_happened(driver: Driver, connection: psycopg2.extensions.connection) -> None:
    driver.loop.register()
    driver.poller.start()
    for _ in range(3):
        enqueue(connection, JobSpec(command="echo done; printf 12345 > out.txt", outputs=("out.txt",)))
    enqueue(connection, JobSpec(command="exit 3"), max_attempts=2)
    enqueue(connection, JobSpec(command="true"), queue="later", delay=3600)

    def ended() -> bool:
        states = [job.state for job in listing.jobs(connection)]
        return sum(state.finished for state in states) == 4 and JobState.QUEUED in states

    driver.until(ended, "four jobs end")
    driver.vitals._publish_at = 0.0
    driver.loop.tick()
    samples = driver.samples()

    def value(name: str, **labels: str) -> float:
        return samples[name, tuple(sorted(labels.items()))]

    assert value("rythmiq_jobs_claimed_total") == 5
    assert value("rythmiq_jobs_ended_total", state="SUCCEEDED") == 3
    assert value("rythmiq_jobs_ended_total", state="FAILED") == 1
    assert value("rythmiq_jobs_ended_total", state="CANCELLED") == 0, "a series is there before its first event"
    assert value("rythmiq_attempts_ended_total", state="FAILED", error_code="command_failed") == 2
    assert value("rythmiq_attempts_ended_total", state="SUCCEEDED", error_code="none") == 3
    assert value("rythmiq_job_retries_total", error_code="command_failed") == 1
    assert value("rythmiq_steps_lost_total", step="submit") == 1
    for phase in ("submitting", "waiting", "collecting"):
        assert value("rythmiq_phase_duration_seconds_count", phase=phase) == 5
        assert value("rythmiq_jobs_in_flight", phase=phase) == 0
    assert value("rythmiq_api_call_duration_seconds_count", route="create", outcome="2xx") == 5
    assert value("rythmiq_api_call_duration_seconds_count", route="list", outcome="2xx") >= 1
    log_bytes = sum(row[0] for row in _rows(connection, "SELECT bytes FROM rythmiq.artifacts WHERE name = 'log.txt'"))
    assert value("rythmiq_artifact_bytes_total") == 3 * 5 + log_bytes
    stored = _rows(connection, "SELECT sum(cost_credits) FROM rythmiq.attempts")[0][0]
    assert value("rythmiq_cost_credits_total") == pytest.approx(stored or 0.0)
    assert value("rythmiq_queue_jobs", queue="later", state="QUEUED") == 1
    assert value("rythmiq_queue_oldest_claimable_age_seconds") == 0, "it is not claimable yet"
    assert value("rythmiq_tick_duration_seconds_count") > 0
    assert value("process_resident_memory_bytes") > 0
    assert len(samples) < 600, "labels are few"

    accept = "application/openmetrics-text; version=1.0.0"
    openmetrics = requests.get(f"{driver.url}/metrics", headers={"Accept": accept}, timeout=10)
    assert openmetrics.headers["Content-Type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


def test_the_queues_depth_is_exact_while_short_and_bounded_when_long(
    database_url: str, connection: psycopg2.extensions.connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = Queue(Secret(database_url), lease_s=10.0)
    assert queue.depth().jobs == {}
    assert queue.depth().oldest_claimable_s == 0

    insert = """
        INSERT INTO rythmiq.jobs (queue, state, priority, spec, next_visible_at)
        SELECT %s, %s, i %% 7, '{}', now() + make_interval(secs => %s) FROM generate_series(1, %s) AS i
    """
    with connection.cursor() as cursor:
        cursor.execute(insert, ("a", "QUEUED", 3600, 300))
    assert queue.depth().oldest_claimable_s == 0, "scheduled is not claimable"
    with connection.cursor() as cursor:
        cursor.execute(insert, ("a", "QUEUED", -50, 600))
        cursor.execute(insert, ("b", "RETRYING", -10, 300))
        cursor.execute(
            "INSERT INTO rythmiq.jobs (priority, spec, next_visible_at) VALUES (-9, '{}', now() - interval '500 s')"
        )
    depth = queue.depth()
    assert depth.jobs == {("a", "QUEUED"): 900, ("b", "RETRYING"): 300, ("default", "QUEUED"): 1}
    assert 500 <= depth.oldest_claimable_s < 500 + WAIT_S, "whatever its priority"

    monkeypatch.setattr(queue_module, "_COUNTED", 100)
    for before in ("SELECT", "ANALYZE rythmiq.jobs", "VACUUM rythmiq.jobs"):
        with connection.cursor() as cursor:
            cursor.execute(before)
        assert 600 <= sum(queue.depth().jobs.values()) <= 2400, f"an estimate of 1,201 after {before}"
    queue.close()


def test_a_port_that_is_taken_ends_the_start_in_one_line(tmp_path: Path, database_url: str, camber: Emulator) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-m", "rythmiq_ray.driver", "health.host=127.0.0.1"],
            env={
                **environ(database_url, tmp_path / "store", camber.endpoint),
                "SERVICE_ENV": "dev",
                "PORT": str(port),
                "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    lines = ended.stdout.splitlines()
    assert ended.returncode == 2, ended.stderr
    assert [line.partition("[WORKER] ")[2].split(" ")[0] for line in lines] == ["Configuration", "ERROR"]
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use: choose another PORT" in lines[1]


def test_log_lines_about_a_job_name_it_and_its_attempt(
    driver: Driver, connection: psycopg2.extensions.connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="rythmiq")
    driver.loop.register()
    driver.poller.start()
    job_id = enqueue(connection, JobSpec(command="exit 3", outputs=("none*",)), max_attempts=2)
    driver.until(lambda: all(job.state.finished for job in listing.jobs(connection)), "the job ends")
    said = [(record.getMessage(), getattr(record, "fields", {})) for record in caplog.records]
    about = {message: fields for message, fields in said if "jobId" in fields}
    assert {"Job claimed", "Task lost", "Collected with a warning", "Attempt failed", "Job failed"} <= about.keys()
    for message, fields in about.items():
        assert str(fields["jobId"]) == str(job_id), message
        assert fields["attempt"] in (1, 2), message


def _rows(connection: psycopg2.extensions.connection, sql: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()
