"""Health and metrics of the real driver on a real Ray, read as a probe, a scrape and Ray's dashboard read them."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg2
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from samples import API_KEY

from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.local.process import free_ports

Drive = Callable[..., subprocess.Popen[bytes]]
Environment = dict[str, str]
WAIT_S = 90.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.05)


def values(url: str) -> dict[str, float]:
    """Samples by name, summed over their labels, and by name and each label's value."""
    found: dict[str, float] = {}
    with suppress(requests.RequestException):
        answer = requests.get(url, timeout=10)
        answer.raise_for_status()
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                for key in (sample.name, *(f"{sample.name} {value}" for value in sample.labels.values())):
                    found[key] = found.get(key, 0.0) + sample.value
    return found


def rays_own_metrics(driver: int) -> dict[str, float]:
    """What the agent of the driver's own Ray exports, on a port of its choice."""
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.Error):
            if "Agent" in " ".join(process.cmdline()):
                for connection in process.net_connections("tcp"):
                    if connection.status == psutil.CONN_LISTEN:
                        host = connection.laddr.ip.replace("0.0.0.0", "127.0.0.1").replace("::", "127.0.0.1")
                        found = values(f"http://{host}:{connection.laddr.port}/metrics")
                        if "ray_rythmiq_jobs_claimed_total" in found:
                            return found
    return {}


@pytest.mark.timeout(300)
def test_a_driver_tells_of_its_health_and_counts_what_its_ray_tasks_do(
    database_url: str, environment: Environment, drive: Drive, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    environment |= {"PORT": str(port), "LOG_FORMAT": "json", "RAY_enable_metrics_collection": "1"}
    url = f"http://127.0.0.1:{port}"
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    driver = drive("health.host=127.0.0.1")

    def answer(path: str) -> int | None:
        with suppress(requests.RequestException):
            return requests.get(f"{url}{path}", timeout=10).status_code
        return None

    wait_for(lambda: answer("/livez") == 200, "it is alive")
    wait_for(lambda: answer("/readyz") == 200, "it is ready")
    for _ in range(4):
        enqueue(connection, JobSpec(command="printf 12345 > out.txt", outputs=("out.txt",)))
    waiting = JobSpec(command="sleep 600")
    wait_for(lambda: values(f"{url}/metrics").get("rythmiq_jobs_ended_total SUCCEEDED") == 4, "four jobs are counted")
    enqueue(connection, waiting)
    wait_for(lambda: values(f"{url}/metrics").get("rythmiq_jobs_in_flight waiting") == 1, "one waits")
    wait_for(lambda: values(f"{url}/metrics").get("rythmiq_remote_jobs RUNNING") == 1, "and runs")

    page = values(f"{url}/metrics")
    assert page["rythmiq_jobs_claimed_total"] == 5
    assert page["rythmiq_api_call_duration_seconds_count create"] == 5, "by Ray tasks"
    assert page["rythmiq_api_call_duration_seconds_count list"] > 0, "by the watcher"
    assert page["rythmiq_artifact_bytes_total"] >= 4 * 5
    assert page["rythmiq_check_ok"] == 6, "every check holds"

    def mirrored() -> bool:
        mirror = rays_own_metrics(driver.pid)
        return (
            mirror.get("ray_rythmiq_jobs_ended_total SUCCEEDED") == 4
            and mirror.get("ray_rythmiq_jobs_in_flight waiting") == 1
            and mirror.get("ray_rythmiq_api_call_duration_seconds_count create") == 5
        )

    wait_for(mirrored, "Ray has them too")
    text = requests.get(f"{url}/metrics", timeout=10).text + requests.get(f"{url}/readyz", timeout=10).text
    assert API_KEY not in text
    assert "canary" not in text

    driver.send_signal(signal.SIGTERM)
    assert driver.wait(WAIT_S) == 0, (tmp_path / "driver-0.log").read_text()
    assert answer("/livez") is None, "the port is closed"
