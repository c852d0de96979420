"""What Camber's backend does beyond what every one promises: over HTTP alone, and by either transport."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from camber_jobs import (
    KEY,
    eventually,
    finish,
    log_so_far,
    make_config,
    make_job,
    no_input,
    read,
    submit,
    wait_for,
    watched,
    whole,
)
from vendor_program import VendorProgram

from rythmiq_ray.backends import ExecutionBackend
from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.backends.camber.calls import CamberCalls
from rythmiq_ray.errors import (
    BackendRefusedKey,
    BackendUnavailable,
    CreateUncertain,
    InputUnreadable,
    NotFound,
    SpecRejected,
)
from rythmiq_ray.local.camber import Cancelling, Emulator, Faults, ListShape, Outage, Settings
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


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> VendorProgram:
    return VendorProgram.install(tmp_path_factory.mktemp("program"))


@pytest.fixture(params=["http", "cli"])
def either(
    request: pytest.FixtureRequest, emulator: Emulator, program: VendorProgram
) -> Iterator[CamberExecutionBackend]:
    config = make_config(emulator.endpoint, transport=request.param, program=str(program.path))
    backend = CamberExecutionBackend(config)
    backend.check()
    backend.client.calls.clear()
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


def test_either_transport_is_all_calls_and_the_protocol(either: CamberExecutionBackend, emulator: Emulator) -> None:
    calls: CamberCalls = either.client
    checked: ExecutionBackend = either
    assert calls.me() == checked.check() == emulator.owner


def uri(emulator: Emulator, name: str) -> str:
    return f"stash://{emulator.owner}/rythmiq/names/1/{name}"


@pytest.mark.parametrize(
    "name",
    [
        *("plain.txt", "with space/and more.txt", "ü/данные 漢字.bin", "-rf", "--output", 'it\'s "quoted" $HOME `id`'),
        *(
            "a\nb.txt",
            "*.txt",
            "[x]?.txt",
            "100%41.txt",
            "not found",
            "error.log",
            "x;y&z|a",
            "\\back\\slash",
            "n" * 250,
        ),
    ],
)
def test_a_file_of_any_name_goes_there_and_back(either: CamberExecutionBackend, emulator: Emulator, name: str) -> None:
    client, place, content = either.client, uri(emulator, name), b"\0\xff" + name.encode()
    client.stash_write(place, content)
    listed = [item["path"] for item in client.stash_list(uri(emulator, "")) if item["type"] == "file"]
    assert listed == [f"rythmiq/names/1/{name}"]
    assert client.stash_read(place) == content
    with client.stash_open(place, 1) as chunks:
        assert b"".join(chunks) == content[1:]
    client.stash_remove(uri(emulator, ""))
    with pytest.raises(NotFound):
        client.stash_read(place)


@pytest.mark.parametrize("size", [0, 1, 2, 5 * 1024 * 1024])
def test_a_file_of_any_size_is_streamed_there_and_back(
    either: CamberExecutionBackend, emulator: Emulator, size: int
) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    client, place = either.client, uri(emulator, "sized")
    client.stash_stream(place, lambda: io.BytesIO(content))
    assert client.stash_read(place) == content
    with client.stash_open(place) as chunks:
        assert hashlib.sha256(b"".join(chunks)).digest() == hashlib.sha256(content).digest()
    client.stash_write(place, content[:1])
    assert client.stash_read(place) == content[:1]
    client.stash_remove(uri(emulator, ""))


def test_what_breaks_while_an_input_is_read_is_the_inputs_fault(
    either: CamberExecutionBackend, emulator: Emulator
) -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError("the source is gone")

    with pytest.raises(InputUnreadable):
        either.client.stash_stream(uri(emulator, "broken"), lambda: Broken())  # type: ignore[arg-type,return-value]


def test_what_goes_wrong_where_a_file_is_read_to_is_passed_on(
    either: CamberExecutionBackend, emulator: Emulator
) -> None:
    either.client.stash_write(uri(emulator, "good"), b"good")
    with pytest.raises(OSError, match="of the reader"), either.client.stash_open(uri(emulator, "good")):
        raise OSError("of the reader")


def test_what_is_missing_is_not_found(either: CamberExecutionBackend, emulator: Emulator) -> None:
    client = either.client
    for call in (
        lambda: client.get(10**9),
        lambda: client.stash_read(uri(emulator, "none")),
        lambda: client.stash_open(uri(emulator, "none")).__enter__(),
        lambda: client.open_log(10**9).__enter__(),
    ):
        with pytest.raises(NotFound):
            call()
    assert either.list_files(make_job()) == []
    assert client.list_page(10**6).jobs == []


def test_a_list_is_read_by_pages(either: CamberExecutionBackend) -> None:
    submitted = [submit(either, make_job()).remote_id for _ in range(3)]
    page = either.client.list_page(1)
    assert [item["job_id"] for item in page.jobs][:3] == submitted[::-1]
    assert page.total is not None
    assert page.total >= 3


def test_refused_job(either: CamberExecutionBackend) -> None:
    job = make_job()
    either.upload(job, secrets={}, timeout_s=1, open_input=no_input)
    with pytest.raises(SpecRejected, match=r"(?i)size"):
        either.create(replace(job, spec=replace(job.spec, node_size="giant")))


@pytest.mark.parametrize("fault", ["lost_answer", "ghost_create"])
@pytest.mark.parametrize("shape", list(ListShape))
def test_uncertain_create_is_found_by_its_path(
    either: CamberExecutionBackend, emulator: Emulator, fault: str, shape: ListShape
) -> None:
    job = make_job("true")
    either.upload(job, secrets={}, timeout_s=60, open_input=no_input)
    emulator.faults = Faults(**{fault: 1.0}, list_shape=shape)  # type: ignore[arg-type]
    with pytest.raises(CreateUncertain):
        either.create(job)
    assert either.client.calls["create"] == 1
    found = watched(either, (), {job.remote_path or ""})
    assert [remote.path for remote in found] == [job.remote_path]
    assert watched(either, (), {"rythmiq/none/1"}) == []


def test_job_that_the_list_shows_late_is_reported_all_the_same(
    either: CamberExecutionBackend, emulator: Emulator
) -> None:
    emulator.faults = Faults(list_lag_s=60)
    job = submit(either, make_job())
    assert [remote.remote_id for remote in watched(either, {job.remote_id or 0})] == [job.remote_id]
    assert watched(either, {10**9}) == []


@pytest.mark.parametrize("answer", [Cancelling.NOT_FOUND, Cancelling.METHOD_NOT_ALLOWED])
def test_cancel_by_the_marker_where_the_api_cannot(
    either: CamberExecutionBackend, emulator: Emulator, answer: Cancelling
) -> None:
    emulator.faults = Faults(cancel=answer)
    job = submit(either, make_job("sleep 61.7"))
    wait_for(either, job, RemoteStatus.RUNNING)
    assert either.cancel(job) is False
    remote, result = finish(either, job)
    assert (remote.status, result.reason, result.exit_code) == (RemoteStatus.FAILED, "cancelled", 143)


def test_cut_downloads_are_whole(either: CamberExecutionBackend, emulator: Emulator) -> None:
    job = submit(either, make_job("seq 1 200000 >out.txt; cat out.txt", outputs=("out.txt",)))
    _, result = finish(either, job)
    expected = "".join(f"{number}\n" for number in range(1, 200001)).encode()
    assert whole(either, job, "out.txt", len(expected)) == expected
    emulator.faults = Faults(cut_download=1.0, at_most=3)
    assert read(either, job, "out.txt") == expected
    emulator.faults = Faults(cut_download=1.0, at_most=3)
    assert read(either, job, "out.txt", start=12345) == expected[12345:]
    emulator.faults = Faults(cut_download=1.0, at_most=3)
    with either.open_log(job) as chunks:
        assert b"".join(chunks) == expected
    assert result.log.size_bytes == len(expected)


def test_calls_that_change_nothing_are_repeated(either: CamberExecutionBackend, emulator: Emulator) -> None:
    emulator.faults = Faults(too_many=1.0, server_error=1.0, retry_after_s=0.01, at_most=1, operations=("stash_write",))
    job = submit(either, make_job())
    assert either.client.calls["stash_write"] == 3
    wait_for(either, job)


def test_outages_and_refused_keys_are_told_apart(either: CamberExecutionBackend, emulator: Emulator) -> None:
    job = make_job()
    either.upload(job, secrets={}, timeout_s=1, open_input=no_input)
    emulator.faults = Faults(outage=Outage.REFUSED)
    with pytest.raises(BackendUnavailable):
        watched(either, {1})
    emulator.faults = Faults(outage=Outage.UNAVAILABLE)
    with pytest.raises(BackendUnavailable):
        either.check()
    emulator.faults = Faults(refuse_key=True)
    for call in (either.check, lambda: either.create(job), lambda: either.read_result(job)):
        with pytest.raises(BackendRefusedKey) as refused:
            call()
        assert KEY not in str(refused.value)
    emulator.faults = Faults()
    assert either.check() == emulator.owner


def test_a_path_that_is_not_the_attempts_own_costs_no_call(either: CamberExecutionBackend) -> None:
    for path in (None, "", "/", "rythmiq", "../other/1", "rythmiq/../x"):
        job = replace(make_job(), remote_path=path)
        either.remove(job)
        with pytest.raises(NotFound):
            either.create(job)
    assert not either.client.calls
