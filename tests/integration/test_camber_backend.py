"""The backend against the emulator: real HTTP, real processes, late files, and the emulator's misbehaviour."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, BinaryIO, TypeVar
from uuid import uuid4

import pytest

from rythmiq_ray.backends import ExecutionBackend
from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.config import CamberCatalog, CamberConfig, CamberRoute, NodeSize
from rythmiq_ray.errors import (
    BackendRefusedKey,
    BackendUnavailable,
    CreateUncertain,
    InputMissing,
    NotFound,
    SpecRejected,
)
from rythmiq_ray.local.camber import Cancelling, Emulator, Faults, ListShape, Outage, Settings
from rythmiq_ray.model import Input, Job, JobSpec, JobState, Phase, RemoteJob, RemoteResult, RemoteStatus
from rythmiq_ray.secret import Secret

T = TypeVar("T")
KEY = "0123456789abcdef0123456789abcdef01234567"
CANARY = "canary-4f1e\n'\"$HOME"
ROUTES = {
    "me": CamberRoute(method="GET", path="/me"),
    "create": CamberRoute(method="POST", path="/jobs"),
    "get": CamberRoute(method="GET", path="/jobs/{job_id}"),
    "list": CamberRoute(method="GET", path="/jobs"),
    "logs": CamberRoute(method="GET", path="/jobs/{job_id}/logs"),
    "cancel": CamberRoute(method="DELETE", path="/jobs/{job_id}"),
    "stash_list": CamberRoute(method="POST", path="/stash"),
    "stash_read": CamberRoute(method="GET", path="/stash/file"),
    "stash_write": CamberRoute(method="PUT", path="/stash/file"),
    "stash_remove": CamberRoute(method="DELETE", path="/stash/file"),
}
CPU = NodeSize(cpus=8, memory_gb=32, gpus=0, credits_per_hour=0.32)
GPU = NodeSize(cpus=8, memory_gb=32, gpus=1, credits_per_hour=1.5)


def make_config(endpoint: str, **changes: Any) -> CamberConfig:
    config = CamberConfig(
        api_key=Secret(KEY),
        api_key_file=None,
        endpoint=endpoint,
        region="eu-1",
        max_in_flight=10,
        keep_unstored_s=60,
        connect_timeout_s=5,
        read_timeout_s=10,
        create_timeout_s=10,
        settle_s=1,
        sync_timeout_s=5,
        page_size=100,
        call_attempts=4,
        routes=ROUTES,
        catalog=CamberCatalog(engines=("BASE", "MPI"), cpu_sizes={"XSMALL": CPU}, gpu_sizes={"XSMALL": GPU}),
    )
    return replace(config, **changes)


def make_job(command: str = "true", **spec: Any) -> Job:
    now, job_id = datetime.now(UTC), uuid4()
    return Job(
        job_id=job_id,
        user_id=None,
        queue="default",
        state=JobState.RUNNING,
        phase=Phase.SUBMITTING,
        priority=0,
        spec=JobSpec(command=command, **spec),
        attempt=1,
        max_attempts=3,
        next_visible_at=now,
        unique_key=None,
        driver_id=None,
        remote_id=None,
        remote_status=None,
        remote_path=f"rythmiq/{job_id}/1",
        cancel_requested_at=None,
        exit_code=None,
        error_code=None,
        error_message=None,
        retryable=None,
        artifact_uri=None,
        cost_credits=None,
        created_at=now,
        updated_at=now,
        started_at=now,
        finished_at=None,
    )


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    settings = Settings(queue_wait_s=(0.0, 0.02), sync_delay_s=0.02, sync_step_s=0.005, max_running=2)
    with Emulator(tmp_path_factory.mktemp("camber"), api_key=KEY, settings=settings) as emulator:
        yield emulator


@contextmanager
def connected(emulator: Emulator) -> Iterator[CamberExecutionBackend]:
    backend = CamberExecutionBackend(make_config(emulator.endpoint))
    backend.check()
    backend.client.calls.clear()
    yield backend
    backend.close()


@pytest.fixture
def backend(emulator: Emulator) -> Iterator[CamberExecutionBackend]:
    with connected(emulator) as backend:
        yield backend
    emulator.faults = Faults()


def no_input(uri: str) -> AbstractContextManager[BinaryIO]:
    raise InputMissing(f"there is no {uri}")


def submit(backend: ExecutionBackend, job: Job, **more: Any) -> Job:
    arguments = {"secrets": {}, "timeout_s": 60, "open_input": no_input, **more}
    backend.upload(job, **arguments)
    return replace(job, remote_id=backend.create(job).remote_id)


def eventually(look: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + 30
    while (found := look()) is None:
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
    return found


def wait_for(backend: ExecutionBackend, job: Job, *statuses: RemoteStatus) -> RemoteJob:
    """The remote job once it has one of the statuses; none: once it has ended."""
    assert job.remote_id is not None

    def look() -> RemoteJob | None:
        (remote,) = backend.watch({job.remote_id or 0}, (), None)
        return remote if (remote.status in statuses if statuses else remote.status.terminal) else None

    return eventually(look)


def finish(backend: ExecutionBackend, job: Job) -> tuple[RemoteJob, RemoteResult]:
    return wait_for(backend, job), eventually(lambda: backend.read_result(job))


def read(backend: ExecutionBackend, job: Job, name: str, start: int = 0) -> bytes:
    with backend.open_file(job, name, start=start) as chunks:
        return b"".join(chunks)


def whole(backend: ExecutionBackend, job: Job, name: str, size: int) -> bytes:
    """A file once it has that size: files come back late and by halves."""

    def look() -> bytes | None:
        try:
            data = read(backend, job, name)
        except NotFound:
            return None
        return data if len(data) == size else None

    return eventually(look)


def test_a_normal_job_costs_five_calls(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> None:
    instant = Emulator(tmp_path_factory.mktemp("instant"), api_key=KEY, settings=Settings.instant())
    with instant, connected(instant) as backend:
        job = submit(backend, make_job("echo hi"))
        remote, result = finish(backend, job)
        assert remote.status is RemoteStatus.COMPLETED
        read(backend, job, result.log.name)
        backend.remove(job)
        calls = dict(backend.client.calls)
        del calls["list"]
        assert calls == {"stash_write": 1, "create": 1, "stash_read": 2, "stash_remove": 1}


def test_inputs_variables_and_outputs(backend: CamberExecutionBackend, emulator: Emulator) -> None:
    data = bytes(range(256)) * 3000
    opened: list[str] = []

    @contextmanager
    def open_input(uri: str) -> Iterator[BinaryIO]:
        opened.append(uri)
        yield io.BytesIO(data if uri == "s3://b/large" else b"")

    job = make_job(
        'mkdir out; cp "in put/large" out/ü.bin; cp empty out/\n'
        'printf %s "$TOKEN" | sha256sum; printf %s "$PLAIN"; [ ! -e rythmiq-env ]',
        inputs=(Input(uri="s3://b/large", name="in put/large"), Input(uri="s3://b/empty", name="empty")),
        outputs=("out/*", "none*"),
        env={"PLAIN": "ä\nb"},
        secrets=("TOKEN",),
    )
    job = submit(backend, job, secrets={"TOKEN": Secret(CANARY)}, open_input=open_input)
    remote, result = finish(backend, job)
    assert opened == ["s3://b/large", "s3://b/empty"]
    assert (remote.status, result.exit_code) == (RemoteStatus.COMPLETED, 0)
    assert {file.name: file.size_bytes for file in result.outputs} == {"out/ü.bin": len(data), "out/empty": 0}
    assert result.unmatched == ("none*",)
    assert whole(backend, job, "out/ü.bin", len(data)) == data
    token = hashlib.sha256(CANARY.encode()).hexdigest()
    said = f"{token}  -\nä\nbrythmiq: output 'none*' matched no file\n".encode()
    assert whole(backend, job, result.log.name, result.log.size_bytes) == said
    names = ["out/empty", "out/ü.bin"]
    eventually(lambda: True if [file.name for file in backend.list_files(job)] == names else None)
    backend.remove(job)
    assert backend.list_files(job) == []
    backend.remove(job)
    stored = [
        path for path in (emulator.root / "stash").rglob("*") if path.is_file() and b"canary-4f1e" in path.read_bytes()
    ]
    assert stored == []


def test_what_the_job_is_sent_as(backend: CamberExecutionBackend, emulator: Emulator) -> None:
    job = submit(backend, make_job("echo canary-command", engine="mpi"))
    assert job.remote_id is not None
    raw = backend.client.list_page(1).jobs[0]
    assert raw["command"] == "bash run.sh"
    assert (raw["engine_type"], raw["node_size"], raw["num_nodes"], raw["with_gpu"]) == ("MPI", "XSMALL", 1, False)
    assert raw["tags"] == ["rythmiq", f"rythmiq-job:{job.job_id}", "rythmiq-attempt:1", "rythmiq-region:eu-1"]
    assert raw["mount_dir"].strip("/") == job.remote_path


@pytest.mark.parametrize(
    ("command", "timeout_s", "exit_code", "reason"),
    [("echo x; exit 3", 60, 3, "exited"), ("sleep 61.7", 0.2, 124, "timeout"), ("kill -9 $$", 60, 137, "exited")],
)
def test_failed_job_tells_why(
    backend: CamberExecutionBackend, command: str, timeout_s: float, exit_code: int, reason: str
) -> None:
    job = submit(backend, make_job(command), timeout_s=timeout_s)
    remote, result = finish(backend, job)
    assert (remote.status, result.exit_code, result.reason) == (RemoteStatus.FAILED, exit_code, reason)


def test_refused_job(backend: CamberExecutionBackend) -> None:
    job = make_job()
    backend.upload(job, secrets={}, timeout_s=1, open_input=no_input)
    with pytest.raises(SpecRejected, match=r"(?i)size"):
        backend.create(replace(job, spec=replace(job.spec, node_size="giant")))


def test_upload_passes_on_what_is_wrong_with_an_input(backend: CamberExecutionBackend) -> None:
    job = make_job(inputs=(Input(uri="s3://b/none", name="x"),))
    with pytest.raises(InputMissing):
        backend.upload(job, secrets={}, timeout_s=1, open_input=no_input)
    for name in ("run.sh", "rythmiq-env"):
        with pytest.raises(SpecRejected):
            backend.upload(
                make_job(inputs=(Input(uri="s3://b/x", name=name),)), secrets={}, timeout_s=1, open_input=no_input
            )


@pytest.mark.parametrize("fault", ["lost_answer", "ghost_create"])
@pytest.mark.parametrize("shape", list(ListShape))
def test_uncertain_create_is_found_by_its_path(
    backend: CamberExecutionBackend, emulator: Emulator, fault: str, shape: ListShape
) -> None:
    job = make_job("true")
    backend.upload(job, secrets={}, timeout_s=60, open_input=no_input)
    emulator.faults = Faults(**{fault: 1.0}, list_shape=shape)  # type: ignore[arg-type]
    sent_at = datetime.now(UTC)
    with pytest.raises(CreateUncertain):
        backend.create(job)
    assert backend.client.calls["create"] == 1
    found = list(backend.watch((), {job.remote_path or ""}, sent_at))
    assert [remote.path for remote in found] == [job.remote_path]
    assert list(backend.watch((), {"rythmiq/none/1"}, sent_at)) == []


def test_job_that_the_list_shows_late_is_reported_all_the_same(
    backend: CamberExecutionBackend, emulator: Emulator
) -> None:
    emulator.faults = Faults(list_lag_s=60)
    job = submit(backend, make_job())
    assert [remote.remote_id for remote in backend.watch({job.remote_id or 0}, (), None)] == [job.remote_id]
    assert list(backend.watch({10**9}, (), None)) == []


def log_so_far(backend: ExecutionBackend, job: Job) -> bytes | None:
    try:
        with backend.open_log(job) as chunks:
            return b"".join(chunks) or None
    except NotFound:
        return None


def test_cancel_through_the_api(backend: CamberExecutionBackend) -> None:
    job = submit(backend, make_job("echo working; sleep 61.7"))
    wait_for(backend, job, RemoteStatus.RUNNING)
    assert eventually(lambda: log_so_far(backend, job) == b"working\n" or None)
    assert backend.cancel(job) is True
    assert wait_for(backend, job).status is RemoteStatus.CANCELLED
    # The service refuses the log of a cancelled job; the wrapper's copy came back with the files.
    assert eventually(lambda: (log_so_far(backend, job) or b"").startswith(b"working\n") or None)


@pytest.mark.parametrize("answer", [Cancelling.NOT_FOUND, Cancelling.METHOD_NOT_ALLOWED])
def test_cancel_by_the_marker_where_the_api_cannot(
    backend: CamberExecutionBackend, emulator: Emulator, answer: Cancelling
) -> None:
    emulator.faults = Faults(cancel=answer)
    job = submit(backend, make_job("sleep 61.7"))
    wait_for(backend, job, RemoteStatus.RUNNING)
    assert backend.cancel(job) is False
    remote, result = finish(backend, job)
    assert (remote.status, result.reason, result.exit_code) == (RemoteStatus.FAILED, "cancelled", 143)


def test_killed_job_leaves_what_it_wrote(backend: CamberExecutionBackend) -> None:
    @contextmanager
    def open_input(uri: str) -> Iterator[BinaryIO]:
        yield io.BytesIO(b"in")

    job = make_job(
        "mkdir d; printf 12345 >d/out; echo started; sleep 61.7",
        inputs=(Input(uri="s3://b/x", name="d0/in"),),
        env={"A": "1"},
    )
    job = submit(backend, job, open_input=open_input)
    wait_for(backend, job, RemoteStatus.RUNNING)
    eventually(lambda: log_so_far(backend, job))
    assert backend.client.cancel(job.remote_id or 0)
    wait_for(backend, job)
    found = eventually(lambda: [file for file in backend.list_files(job) if file.size_bytes == 5] or None)
    assert [file.name for file in found] == ["d/out"]
    assert [file.name for file in backend.list_files(job)] == ["d/out"]


def test_no_log_is_not_found(backend: CamberExecutionBackend) -> None:
    with pytest.raises(NotFound), backend.open_log(make_job()):
        pass
    with pytest.raises(NotFound), backend.open_log(replace(make_job(), remote_id=10**9)):
        pass


def test_cut_downloads_are_whole(backend: CamberExecutionBackend, emulator: Emulator) -> None:
    job = submit(backend, make_job("seq 1 200000 >out.txt; cat out.txt", outputs=("out.txt",)))
    _, result = finish(backend, job)
    expected = "".join(f"{number}\n" for number in range(1, 200001)).encode()
    assert whole(backend, job, "out.txt", len(expected)) == expected
    emulator.faults = Faults(cut_download=1.0, at_most=3)
    assert read(backend, job, "out.txt") == expected
    emulator.faults = Faults(cut_download=1.0, at_most=3)
    assert read(backend, job, "out.txt", start=12345) == expected[12345:]
    emulator.faults = Faults(cut_download=1.0, at_most=3)
    with backend.open_log(job) as chunks:
        assert b"".join(chunks) == expected
    assert result.log.size_bytes == len(expected)


def test_file_from_a_byte_on_and_missing_files(backend: CamberExecutionBackend) -> None:
    job = submit(backend, make_job("printf 0123456789"))
    finish(backend, job)
    whole(backend, job, "rythmiq-log.txt", 10)
    assert read(backend, job, "rythmiq-log.txt", start=4) == b"456789"
    assert read(backend, job, "rythmiq-log.txt", start=10) == b""
    for name in ("none", "../1/run.sh", "/run.sh", "a//b", "..", "a\0b", "\ud800"):
        with pytest.raises(NotFound):
            read(backend, job, name)
    assert backend.read_result(make_job()) is None


def test_path_that_is_not_the_attempts_own_is_never_touched(backend: CamberExecutionBackend) -> None:
    for path in (None, "", "/", "rythmiq", "../other/1", "rythmiq/../x"):
        job = replace(make_job(), remote_path=path)
        backend.remove(job)
        with pytest.raises(NotFound):
            backend.create(job)
    assert not backend.client.calls


def test_calls_that_change_nothing_are_repeated(backend: CamberExecutionBackend, emulator: Emulator) -> None:
    emulator.faults = Faults(too_many=1.0, server_error=1.0, retry_after_s=0.01, at_most=1, operations=("stash_write",))
    job = submit(backend, make_job())
    assert backend.client.calls["stash_write"] == 3
    wait_for(backend, job)


def test_outages_and_refused_keys_are_told_apart(backend: CamberExecutionBackend, emulator: Emulator) -> None:
    job = make_job()
    backend.upload(job, secrets={}, timeout_s=1, open_input=no_input)
    emulator.faults = Faults(outage=Outage.REFUSED)
    with pytest.raises(BackendUnavailable):
        list(backend.watch({1}, (), None))
    emulator.faults = Faults(outage=Outage.UNAVAILABLE)
    with pytest.raises(BackendUnavailable):
        backend.check()
    emulator.faults = Faults(refuse_key=True)
    for call in (backend.check, lambda: backend.create(job), lambda: backend.read_result(job)):
        with pytest.raises(BackendRefusedKey) as refused:
            call()
        assert KEY not in str(refused.value)
    emulator.faults = Faults()
    assert backend.check() == emulator.owner


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


def test_one_backend_serves_many_threads(backend: CamberExecutionBackend) -> None:
    jobs = [make_job() for _ in range(12)]
    with ThreadPoolExecutor(6) as pool:
        submitted = list(pool.map(lambda job: submit(backend, job), jobs))
    ids = {job.remote_id for job in submitted if job.remote_id is not None}
    assert len(ids) == 12
    assert {remote.remote_id for remote in backend.watch(ids, (), None)} == ids
    for job in submitted:
        wait_for(backend, job)


def test_it_is_the_protocol(backend: CamberExecutionBackend) -> None:
    checked: ExecutionBackend = backend
    assert checked.backend_type == "CamberExecutionBackend"
