"""What the backend promises, whichever way its calls travel: over HTTP, or through a program like the vendor's.

Real HTTP, real processes, late files, and the emulator's misbehaviour.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import BinaryIO

import pytest
import requests
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
    InputMissing,
    InputUnreadable,
    NotFound,
    SpecRejected,
)
from rythmiq_ray.local.camber import Cancelling, Emulator, Faults, ListShape, Outage, Settings
from rythmiq_ray.model import Input, RemoteStatus
from rythmiq_ray.secret import Secret

CANARY = "canary-4f1e\n'\"$HOME"


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    settings = Settings(queue_wait_s=(0.0, 0.02), sync_delay_s=0.02, sync_step_s=0.005, max_running=2)
    with Emulator(tmp_path_factory.mktemp("camber"), api_key=KEY, settings=settings) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> VendorProgram:
    return VendorProgram.install(tmp_path_factory.mktemp("program"))


@pytest.fixture(params=["http", "cli"])
def backend(
    request: pytest.FixtureRequest, emulator: Emulator, program: VendorProgram
) -> Iterator[CamberExecutionBackend]:
    config = make_config(emulator.endpoint, transport=request.param, program=str(program.path))
    backend = CamberExecutionBackend(config)
    backend.check()
    backend.client.calls.clear()
    yield backend
    backend.close()
    emulator.faults = Faults()


def test_either_transport_is_all_calls_and_the_protocol(backend: CamberExecutionBackend, emulator: Emulator) -> None:
    calls: CamberCalls = backend.client
    checked: ExecutionBackend = backend
    assert checked.backend_type == "CamberExecutionBackend"
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
def test_a_file_of_any_name_goes_there_and_back(backend: CamberExecutionBackend, emulator: Emulator, name: str) -> None:
    client, place, content = backend.client, uri(emulator, name), b"\0\xff" + name.encode()
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
    backend: CamberExecutionBackend, emulator: Emulator, size: int
) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    client, place = backend.client, uri(emulator, "sized")
    client.stash_stream(place, lambda: io.BytesIO(content))
    assert client.stash_read(place) == content
    with client.stash_open(place) as chunks:
        assert hashlib.sha256(b"".join(chunks)).digest() == hashlib.sha256(content).digest()
    client.stash_write(place, content[:1])
    assert client.stash_read(place) == content[:1]
    client.stash_remove(uri(emulator, ""))


def test_what_breaks_while_an_input_is_read_is_the_inputs_fault(
    backend: CamberExecutionBackend, emulator: Emulator
) -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError("the source is gone")

    with pytest.raises(InputUnreadable):
        backend.client.stash_stream(uri(emulator, "broken"), lambda: Broken())  # type: ignore[arg-type,return-value]


def test_what_goes_wrong_where_a_file_is_read_to_is_passed_on(
    backend: CamberExecutionBackend, emulator: Emulator
) -> None:
    backend.client.stash_write(uri(emulator, "good"), b"good")
    with pytest.raises(OSError, match="of the reader"), backend.client.stash_open(uri(emulator, "good")):
        raise OSError("of the reader")


def test_what_is_missing_is_not_found(backend: CamberExecutionBackend, emulator: Emulator) -> None:
    client = backend.client
    for call in (
        lambda: client.get(10**9),
        lambda: client.stash_read(uri(emulator, "none")),
        lambda: client.stash_open(uri(emulator, "none")).__enter__(),
        lambda: client.open_log(10**9).__enter__(),
    ):
        with pytest.raises(NotFound):
            call()
    assert backend.list_files(make_job()) == []
    assert client.list_page(10**6).jobs == []


def test_a_list_is_read_by_pages(backend: CamberExecutionBackend) -> None:
    submitted = [submit(backend, make_job()).remote_id for _ in range(3)]
    page = backend.client.list_page(1)
    assert [item["job_id"] for item in page.jobs][:3] == submitted[::-1]
    assert page.total is not None
    assert page.total >= 3


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
    with pytest.raises(CreateUncertain):
        backend.create(job)
    assert backend.client.calls["create"] == 1
    found = watched(backend, (), {job.remote_path or ""})
    assert [remote.path for remote in found] == [job.remote_path]
    assert watched(backend, (), {"rythmiq/none/1"}) == []


def test_job_that_the_list_shows_late_is_reported_all_the_same(
    backend: CamberExecutionBackend, emulator: Emulator
) -> None:
    emulator.faults = Faults(list_lag_s=60)
    job = submit(backend, make_job())
    assert [remote.remote_id for remote in watched(backend, {job.remote_id or 0})] == [job.remote_id]
    assert watched(backend, {10**9}) == []


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


def test_killed_job_leaves_what_it_wrote(backend: CamberExecutionBackend, emulator: Emulator) -> None:
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
    killed = requests.delete(
        f"{emulator.endpoint}/jobs/{job.remote_id}", headers={"Authorization": f"Bearer {KEY}"}, timeout=10
    )
    assert killed.ok
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
        watched(backend, {1})
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


def test_one_backend_serves_many_threads(backend: CamberExecutionBackend) -> None:
    jobs = [make_job() for _ in range(12)]
    with ThreadPoolExecutor(6) as pool:
        submitted = list(pool.map(lambda job: submit(backend, job), jobs))
    ids = {job.remote_id for job in submitted if job.remote_id is not None}
    assert len(ids) == 12
    assert {remote.remote_id for remote in watched(backend, ids)} == ids
    for job in submitted:
        wait_for(backend, job)
