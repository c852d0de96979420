"""What every backend promises: Camber's over HTTP and through a program like the vendor's, and processes of the node.

Real HTTP, real processes, late files.
"""

from __future__ import annotations

import hashlib
import io
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import psutil
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
from rythmiq_ray.backends.local import LocalExecutionBackend
from rythmiq_ray.backends.local.ledger import Ledger
from rythmiq_ray.errors import (
    BackendUnavailable,
    CreateUncertain,
    InputMissing,
    InputUnreadable,
    NotFound,
    SpecRejected,
)
from rythmiq_ray.local.camber import Emulator, Faults, Outage, Settings
from rythmiq_ray.model import Input, Job, RemoteStatus
from rythmiq_ray.secret import Secret

CANARY = "canary-4f1e\n'\"$HOME"


@dataclass(frozen=True)
class Site:
    """A backend, what is behind it, and what can go wrong there."""

    name: str
    open: Callable[[], ExecutionBackend]
    stored: Path
    """Where its files are."""
    kill: Callable[[Job], None]
    """Ends a remote job without a word."""
    losing_answers: Callable[[], AbstractContextManager[None]]
    """Meanwhile creates are carried out, and their answers are lost."""
    away: Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    settings = Settings(queue_wait_s=(0.0, 0.02), sync_delay_s=0.02, sync_step_s=0.005, max_running=2)
    with Emulator(tmp_path_factory.mktemp("camber"), api_key=KEY, settings=settings) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> VendorProgram:
    return VendorProgram.install(tmp_path_factory.mktemp("program"))


def camber_site(transport: str, emulator: Emulator, program: VendorProgram) -> Site:
    config = make_config(emulator.endpoint, transport=transport, program=str(program.path))

    def kill(job: Job) -> None:
        requests.delete(
            f"{emulator.endpoint}/jobs/{job.remote_id}", headers={"Authorization": f"Bearer {KEY}"}, timeout=10
        ).raise_for_status()

    @contextmanager
    def faults(faults: Faults) -> Iterator[None]:
        emulator.faults = faults
        yield
        emulator.faults = Faults()

    return Site(
        name="CamberExecutionBackend",
        open=lambda: CamberExecutionBackend(config),
        stored=emulator.root / "stash",
        kill=kill,
        losing_answers=lambda: faults(Faults(lost_answer=1.0, operations=("create",))),
        away=lambda: faults(Faults(outage=Outage.UNAVAILABLE)),
    )


def local_site(root: Path) -> Site:
    def kill(job: Job) -> None:
        """All processes in the attempt's folder, whatever their group."""
        for process in processes_in(root / str(job.remote_path)):
            process.send_signal(signal.SIGKILL)

    @contextmanager
    def losing_answers() -> Iterator[None]:
        def fails(*_: object) -> None:
            raise OSError("lost")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ledger, "read", fails)
            yield

    @contextmanager
    def away() -> Iterator[None]:
        # A job whose folder is renamed as it ends loses its result, which no outage does.
        eventually(lambda: None if processes_in(root) else True)
        elsewhere = root.with_name("elsewhere")
        root.rename(elsewhere)
        yield
        elsewhere.rename(root)

    return Site(
        name="LocalExecutionBackend",
        open=lambda: LocalExecutionBackend(root),
        stored=root,
        kill=kill,
        losing_answers=losing_answers,
        away=away,
    )


def processes_in(folder: Path) -> list[psutil.Process]:
    def below(process: psutil.Process) -> bool:
        try:
            return Path(process.cwd()).is_relative_to(folder)
        except psutil.Error:
            return False

    return [process for process in psutil.process_iter() if below(process)]


@pytest.fixture(params=["camber-http", "camber-cli", "local"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    kind, _, transport = request.param.partition("-")
    if kind == "camber":
        yield camber_site(transport, request.getfixturevalue("emulator"), request.getfixturevalue("program"))
        return
    root = tmp_path / "jobs"
    yield local_site(root)
    for process in processes_in(root):
        process.kill()


@pytest.fixture
def backend(site: Site) -> Iterator[ExecutionBackend]:
    backend = site.open()
    backend.check()
    yield backend
    backend.close()


def test_a_backend_has_a_name_and_says_who_it_runs_jobs_as(site: Site, backend: ExecutionBackend) -> None:
    assert backend.backend_type == site.name
    assert backend.check() == backend.check() != ""


@pytest.mark.parametrize(
    "name",
    [
        *("plain.txt", "with space/and more.txt", "ü/данные 漢字.bin", "-rf", "--output", 'it\'s "quoted" $HOME `id`'),
        *("a\nb.txt", "*.txt", "[x]?.txt", "100%41.txt", "error.log", "x;y&z|a", "\\back\\slash", "n" * 250),
    ],
)
def test_a_file_of_any_name_goes_there_and_back(backend: ExecutionBackend, name: str) -> None:
    content = b"\0\xff" + name.encode()

    @contextmanager
    def open_input(uri: str) -> Iterator[BinaryIO]:
        yield io.BytesIO(content)

    job = make_job(inputs=(Input(uri="s3://b/x", name=name),))
    for _ in range(2):  # It may be repeated.
        backend.upload(job, secrets={}, timeout_s=1, open_input=open_input)
    assert backend.read_file(job, name) == content
    assert read(backend, job, name, start=1) == content[1:]
    backend.remove(job)
    with pytest.raises(NotFound):
        backend.read_file(job, name)


def test_what_breaks_while_an_input_is_read_is_the_inputs_fault(backend: ExecutionBackend) -> None:
    class Broken(io.RawIOBase):
        def readinto(self, buffer: object) -> int:
            raise OSError("the source is gone")

    @contextmanager
    def open_input(uri: str) -> Iterator[BinaryIO]:
        yield Broken()  # type: ignore[misc]

    job = make_job(inputs=(Input(uri="s3://b/x", name="x"),))
    with pytest.raises(InputUnreadable):
        backend.upload(job, secrets={}, timeout_s=1, open_input=open_input)


def test_what_goes_wrong_where_a_file_is_read_to_is_passed_on(backend: ExecutionBackend) -> None:
    job = submit(backend, make_job("echo good"))
    finish(backend, job)
    whole(backend, job, "rythmiq-log.txt", 5)
    with pytest.raises(OSError, match="of the reader"), backend.open_file(job, "rythmiq-log.txt"):
        raise OSError("of the reader")


def test_what_is_missing_is_not_found(backend: ExecutionBackend) -> None:
    assert watched(backend, {10**9}, {"rythmiq/none/1"}) == []
    assert backend.list_files(make_job()) == []
    assert backend.read_result(make_job()) is None
    backend.remove(make_job())


def test_inputs_variables_and_outputs(site: Site, backend: ExecutionBackend) -> None:
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
    stored = [path for path in site.stored.rglob("*") if path.is_file() and b"canary-4f1e" in path.read_bytes()]
    assert stored == []


@pytest.mark.parametrize(
    ("command", "timeout_s", "exit_code", "reason"),
    [("echo x; exit 3", 60, 3, "exited"), ("sleep 61.7", 0.2, 124, "timeout"), ("kill -9 $$", 60, 137, "exited")],
)
def test_failed_job_tells_why(
    backend: ExecutionBackend, command: str, timeout_s: float, exit_code: int, reason: str
) -> None:
    job = submit(backend, make_job(command), timeout_s=timeout_s)
    remote, result = finish(backend, job)
    assert (remote.status, result.exit_code, result.reason) == (RemoteStatus.FAILED, exit_code, reason)


def test_upload_passes_on_what_is_wrong_with_an_input(backend: ExecutionBackend) -> None:
    job = make_job(inputs=(Input(uri="s3://b/none", name="x"),))
    with pytest.raises(InputMissing):
        backend.upload(job, secrets={}, timeout_s=1, open_input=no_input)
    for name in ("run.sh", "rythmiq-env"):
        with pytest.raises(SpecRejected):
            backend.upload(
                make_job(inputs=(Input(uri="s3://b/x", name=name),)), secrets={}, timeout_s=1, open_input=no_input
            )


def test_a_create_whose_answer_was_lost_is_found_by_its_path(site: Site, backend: ExecutionBackend) -> None:
    job = make_job("echo once >>runs; sleep 0.5", outputs=("runs",))
    backend.upload(job, secrets={}, timeout_s=60, open_input=no_input)
    with site.losing_answers(), pytest.raises(CreateUncertain):
        backend.create(job)
    others = site.open()  # The driver's next life.
    (found,) = watched(others, (), {job.remote_path or ""})
    assert found.path == job.remote_path
    assert watched(others, (), {"rythmiq/none/1"}) == []
    job = replace(job, remote_id=found.remote_id)
    finish(others, job)
    assert whole(others, job, "runs", 5) == b"once\n"
    others.close()


def test_a_cancelled_job_ends_soon(backend: ExecutionBackend) -> None:
    job = submit(backend, make_job("echo working; sleep 61.7"))
    wait_for(backend, job, RemoteStatus.RUNNING)
    assert eventually(lambda: log_so_far(backend, job) == b"working\n" or None)
    backend.cancel(job)
    assert wait_for(backend, job).status in (RemoteStatus.CANCELLED, RemoteStatus.FAILED)
    assert eventually(lambda: (log_so_far(backend, job) or b"").startswith(b"working\n") or None)


def test_killed_job_leaves_what_it_wrote(site: Site, backend: ExecutionBackend) -> None:
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
    site.kill(job)
    assert wait_for(backend, job).status in (RemoteStatus.CANCELLED, RemoteStatus.FAILED)
    assert backend.read_result(job) is None
    found = eventually(lambda: [file for file in backend.list_files(job) if file.size_bytes == 5] or None)
    assert [file.name for file in found] == ["d/out"]
    assert [file.name for file in backend.list_files(job)] == ["d/out"]


def test_no_log_is_not_found(backend: ExecutionBackend) -> None:
    with pytest.raises(NotFound), backend.open_log(make_job()):
        pass
    with pytest.raises(NotFound), backend.open_log(replace(make_job(), remote_id=10**9)):
        pass


def test_file_from_a_byte_on_and_missing_files(backend: ExecutionBackend) -> None:
    job = submit(backend, make_job("printf 0123456789"))
    finish(backend, job)
    whole(backend, job, "rythmiq-log.txt", 10)
    assert read(backend, job, "rythmiq-log.txt", start=4) == b"456789"
    assert read(backend, job, "rythmiq-log.txt", start=10) == b""
    for name in ("none", "../1/run.sh", "/run.sh", "a//b", "..", "a\0b", "\ud800"):
        with pytest.raises(NotFound):
            read(backend, job, name)
    assert backend.read_result(make_job()) is None


def test_path_that_is_not_the_attempts_own_is_never_touched(site: Site, backend: ExecutionBackend) -> None:
    before = sorted(site.stored.rglob("*"))
    for path in (None, "", "/", "rythmiq", "../other/1", "rythmiq/../x"):
        job = replace(make_job(), remote_path=path)
        backend.remove(job)
        with pytest.raises(NotFound):
            backend.create(job)
        with pytest.raises(NotFound):
            backend.upload(job, secrets={}, timeout_s=1, open_input=no_input)
    assert sorted(site.stored.rglob("*")) == before


def test_an_outage_is_no_loss(site: Site, backend: ExecutionBackend) -> None:
    job = submit(backend, make_job("sleep 0.2; echo done"))
    with site.away():
        for call in (
            lambda: watched(backend, {job.remote_id or 0}),
            lambda: backend.read_result(job),
            lambda: backend.list_files(job),
            lambda: backend.create(make_job()),
            lambda: backend.upload(make_job(), secrets={}, timeout_s=1, open_input=no_input),
        ):
            with pytest.raises((BackendUnavailable, CreateUncertain)):
                call()
    remote, result = finish(backend, job)
    assert (remote.status, result.exit_code) == (RemoteStatus.COMPLETED, 0)


def test_one_backend_serves_many_threads(backend: ExecutionBackend) -> None:
    jobs = [make_job() for _ in range(12)]
    with ThreadPoolExecutor(6) as pool:
        submitted = list(pool.map(lambda job: submit(backend, job), jobs))
    ids = {job.remote_id for job in submitted if job.remote_id is not None}
    assert len(ids) == 12
    assert {remote.remote_id for remote in watched(backend, ids)} == ids
    for job in submitted:
        wait_for(backend, job)
