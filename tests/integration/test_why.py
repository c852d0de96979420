"""Each reason that keeps a job from running is produced, and its line read."""

from __future__ import annotations

import json
from typing import Any

import psycopg2
import pytest

from rythmiq_ray import JobSpec, NewGroup, NewJob, cli, enqueue, enqueue_group, enqueue_many
from rythmiq_ray.model import ErrorCode, ErrorInfo, JobState, Phase, RemoteStatus
from rythmiq_ray.queue import Ending, Progress, Queue, inspect
from rythmiq_ray.secret import Secret

SPEC = JobSpec(command="true")


@pytest.fixture
def connection(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DATABASE_URL", database_url)
    opened = psycopg2.connect(database_url)
    opened.autocommit = True
    yield opened
    opened.close()


@pytest.fixture
def driver(database_url: str) -> Any:
    queue = Queue(Secret(database_url), lease_s=600, queues=["default"])
    queue.register()
    yield queue
    queue.close()


def test_every_reason_has_its_line(connection: Any, driver: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    def why(job_id: object) -> dict[str, str]:
        assert cli.run(["why", str(job_id), "--json"]) == 0
        items = json.loads(capsys.readouterr().out)["items"]
        assert cli.run(["why", str(job_id)]) == 0
        assert len(capsys.readouterr().out.splitlines()) == len(items)
        return {item["reason"]: item["message"] for item in items}

    first, second = enqueue_many(
        connection, [NewJob(spec=SPEC, name="first", priority=2), NewJob(spec=SPEC, priority=1)]
    )
    assert why("first") == {"queued": "it is next in its queue"}
    assert why(second) == {"queued": "1 jobs of its queue are ahead of it"}
    later = enqueue(connection, SPEC, delay=7200)
    assert why(later) == {"not_yet": "its start time has not come, in 119m"}
    astray = enqueue(connection, SPEC, queue="defualt")
    assert why(astray)["queue_not_served"] == "none of 1 live drivers serves the queue 'defualt'"
    blocked = enqueue(connection, SPEC, after=[first])
    assert why(blocked) == {"dependency": "it waits for job first, which is QUEUED"}
    _group, members = enqueue_group(
        connection, NewGroup(name="g", max_parallel=1), [NewJob(spec=SPEC, priority=-5)] * 2
    )
    assert why(members[1]) == {"max_parallel": "its group g allows 1 queued or running members at once"}
    (job,) = driver.claim(1)
    assert job.job_id == first
    assert why(first) == {"running": "it runs: submitting"}
    pending = Progress(job_id=first, attempt=1, phase=Phase.WAITING, remote_id=9, remote_status=RemoteStatus.PENDING)
    driver.advance([pending])
    assert why("9") == {"pending_at_camber": why(first)["pending_at_camber"]}, "Camber's number finds it"
    assert why(first)["pending_at_camber"].startswith("Camber has it as PENDING")
    inspect.cancel(connection, [first])
    assert why(first)["cancelled"] == "it was asked to stop"
    error = ErrorInfo(code=ErrorCode.REMOTE_KILLED, message="killed")
    (other,) = driver.claim(1)
    driver.finish([Ending(job_id=other.job_id, attempt=1, state=JobState.FAILED, error=error, retry_delay_s=600.0)])
    assert why(other.job_id) == {"not_yet": "it is tried again after remote_killed, in 9m"}
    driver.finish([Ending(job_id=first, attempt=1, state=JobState.CANCELLED)])
    assert why(first)["ended"].startswith("it has ended CANCELLED")
    driver.resign()
    assert why(astray).keys() == {"no_driver", "queued"}


def test_queues_and_drivers_are_listed(connection: Any, driver: Queue, capsys: pytest.CaptureFixture[str]) -> None:
    enqueue_many(connection, [NewJob(spec=SPEC), NewJob(spec=SPEC, delay=60), NewJob(spec=SPEC, queue="night")])
    driver.claim(1)

    def items(command: str) -> list[dict[str, Any]]:
        assert cli.run([command, "--json"]) == 0
        found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["items"]
        assert cli.run([command]) == 0
        assert len(capsys.readouterr().out.splitlines()) == len(found) + 1
        return found

    by_queue = {item["queue"]: item for item in items("queues")}
    assert (by_queue["default"]["queued"], by_queue["default"]["running"], by_queue["default"]["drivers"]) == (1, 1, 1)
    assert (by_queue["night"]["queued"], by_queue["night"]["drivers"]) == (1, 0)
    assert by_queue["default"]["oldest_s"] is None
    assert by_queue["night"]["oldest_s"] >= 0
    (one,) = items("drivers")
    assert (one["alive"], one["submitting"], one["queues"]) == (True, 1, ["default"])
    driver.resign()
    assert items("drivers")[0]["alive"] is False
