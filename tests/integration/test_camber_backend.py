"""What the backend does over HTTP alone; what it does either way is in test_camber_conformance.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from camber_jobs import KEY, eventually, finish, log_so_far, make_config, make_job, read, submit, wait_for

from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.local.camber import Emulator, Faults, Settings
from rythmiq_ray.model import RemoteJob, RemoteStatus


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    settings = Settings(queue_wait_s=(0.0, 0.02), sync_delay_s=0.02, sync_step_s=0.005, max_running=2)
    with Emulator(tmp_path_factory.mktemp("camber"), api_key=KEY, settings=settings) as emulator:
        yield emulator


@pytest.fixture
def backend(emulator: Emulator) -> Iterator[CamberExecutionBackend]:
    backend = CamberExecutionBackend(make_config(emulator.endpoint))
    yield backend
    backend.close()
    emulator.faults = Faults()


def test_a_normal_job_costs_five_calls(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> None:
    instant = Emulator(tmp_path_factory.mktemp("instant"), api_key=KEY, settings=Settings.instant())
    with instant:
        backend = CamberExecutionBackend(make_config(instant.endpoint))
        backend.check()
        job = submit(backend, make_job("echo hi"))
        remote, result = finish(backend, job)
        assert remote.status is RemoteStatus.COMPLETED
        read(backend, job, result.log.name)
        backend.remove(job)
        calls = dict(backend.client.calls)
        del calls["list"], calls["me"]
        assert calls == {"stash_write": 1, "create": 1, "stash_read": 2, "stash_remove": 1}
        backend.close()


def test_what_the_job_is_sent_as(backend: CamberExecutionBackend, emulator: Emulator) -> None:
    job = submit(backend, make_job("echo canary-command", engine="mpi"))
    assert job.remote_id is not None
    raw = backend.client.list_page(1).jobs[0]
    assert raw["command"] == "bash run.sh"
    assert (raw["engine_type"], raw["node_size"], raw["num_nodes"], raw["with_gpu"]) == ("MPI", "XSMALL", 1, False)
    assert raw["tags"] == ["rythmiq", f"rythmiq-job:{job.job_id}", "rythmiq-attempt:1", "rythmiq-region:eu-1"]
    assert raw["mount_dir"].strip("/") == job.remote_path


def test_cancel_through_the_api(backend: CamberExecutionBackend) -> None:
    job = submit(backend, make_job("echo working; sleep 61.7"))
    wait_for(backend, job, RemoteStatus.RUNNING)
    assert eventually(lambda: log_so_far(backend, job) == b"working\n" or None)
    assert backend.cancel(job) is True
    assert wait_for(backend, job).status is RemoteStatus.CANCELLED
    # The service refuses the log of a cancelled job; the wrapper's copy came back with the files.
    assert eventually(lambda: (log_so_far(backend, job) or b"").startswith(b"working\n") or None)


def test_cost_is_run_time_by_price_and_nodes(backend: CamberExecutionBackend) -> None:
    started = datetime(2026, 1, 7, 10, tzinfo=UTC)
    remote = RemoteJob(
        remote_id=1,
        status=RemoteStatus.COMPLETED,
        path="x",
        started_at=started,
        finished_at=started + timedelta(minutes=30),
    )
    assert backend.cost_credits(make_job(), remote) == pytest.approx(0.16)
    assert backend.cost_credits(make_job(gpu=True, num_nodes=2), remote) == pytest.approx(1.5)
    assert backend.cost_credits(make_job(node_size="giant"), remote) is None
    assert backend.cost_credits(make_job(), replace(remote, started_at=None)) is None
    assert backend.cost_credits(make_job(), replace(remote, finished_at=started - timedelta(hours=1))) == 0
