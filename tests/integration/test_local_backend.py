"""Processes of the node as a backend: that nothing runs twice, nothing is taken for something else, nothing leaks."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import psutil
import pytest
from camber_jobs import eventually, finish, log_so_far, make_job, no_input, read, submit, wait_for, watched

from rythmiq_ray.backends.local import LocalExecutionBackend
from rythmiq_ray.backends.local.ledger import Ledger, id_of
from rythmiq_ray.errors import BackendUnavailable, NotFound, SpecRejected
from rythmiq_ray.model import Input, Job, RemoteStatus


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "jobs"
    yield root
    for process in processes(root):
        process.kill()


@pytest.fixture
def backend(root: Path) -> LocalExecutionBackend:
    backend = LocalExecutionBackend(root)
    backend.check()
    return backend


def processes(folder: Path) -> list[psutil.Process]:
    """Those whose working directory is in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def running(job: Job, root: Path, words: str) -> list[psutil.Process]:
    """The processes of a job whose command line has these words."""
    found = []
    for process in processes(root / str(job.remote_path)):
        try:
            if words in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_many_creates_of_one_path_start_one_process(backend: LocalExecutionBackend, root: Path) -> None:
    job = make_job("echo once >>../runs; sleep 0.5")
    backend.upload(job, secrets={}, timeout_s=60, open_input=no_input)
    together = threading.Barrier(8)

    def create(_: int) -> int:
        together.wait()
        return LocalExecutionBackend(root).create(job).remote_id

    with ThreadPoolExecutor(8) as pool:
        (remote_id,) = set(pool.map(create, range(8)))
    job = submit(backend, job)  # all of it once more
    assert job.remote_id == remote_id
    finish(backend, job)
    assert submit(backend, job).remote_id == remote_id
    assert (root / str(job.remote_path)).with_name("runs").read_text() == "once\n"


def test_a_removed_attempt_is_not_begun_again_by_a_late_create(backend: LocalExecutionBackend, root: Path) -> None:
    job = submit(backend, make_job("true"))
    finish(backend, job)
    backend.remove(job)
    with pytest.raises(BackendUnavailable, match=r"run\.sh"):
        backend.create(job)
    assert watched(backend, {job.remote_id or 0}, {str(job.remote_path)}) == []
    assert [path.name for path in root.rglob("*")] == [".ledger"]


def test_a_job_outlives_whoever_started_it(backend: LocalExecutionBackend, root: Path) -> None:
    job = make_job("sleep 1; echo done")
    backend.upload(job, secrets={}, timeout_s=60, open_input=no_input)
    program = (
        "import pickle, signal, sys; from pathlib import Path;"
        "from rythmiq_ray.backends.local import LocalExecutionBackend;"
        "LocalExecutionBackend(Path(sys.argv[1])).create(pickle.loads(bytes.fromhex(sys.argv[2])));"
        "print('created', flush=True); signal.pause()"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", program, str(root), pickle.dumps(job).hex()], stdout=subprocess.PIPE, process_group=0
    )
    assert starter.stdout is not None
    assert starter.stdout.readline() == b"created\n"
    # As Ray does at a worker's end: with all its children, and its group.
    for process in [*psutil.Process(starter.pid).children(recursive=True), psutil.Process(starter.pid)]:
        process.kill()
    starter.communicate()
    (remote,) = watched(backend, (), {str(job.remote_path)})
    assert remote.status is RemoteStatus.RUNNING
    job = submit(backend, job)
    remote, result = finish(backend, job)
    assert (remote.status, result.exit_code) == (RemoteStatus.COMPLETED, 0)
    assert remote.finished_at is not None
    assert log_so_far(backend, job) == b"done\n"


def test_an_entry_whose_process_was_never_started_counts_as_failed(backend: LocalExecutionBackend, root: Path) -> None:
    """Its creator was killed in between; nobody can know that it was not started, so it is not started again."""
    job = make_job("echo ran >../ran")
    backend.upload(job, secrets={}, timeout_s=60, open_input=no_input)
    with Ledger(root / ".ledger").enter(str(job.remote_path)):
        (remote,) = watched(backend, (), {str(job.remote_path)})
        assert remote.status is RemoteStatus.RUNNING, "it is just being created"
    assert backend.create(job).status is RemoteStatus.FAILED
    assert not (root / str(job.remote_path)).with_name("ran").exists()


def test_what_a_command_writes_into_its_entry_keeps_no_other_from_being_seen(
    backend: LocalExecutionBackend, root: Path
) -> None:
    odd, good = submit(backend, make_job("sleep 60")), submit(backend, make_job("true"))
    lines = ["5", "null", "[1]", "[" * 100_000, '{"pid": ' + "9" * 400 + "}", '{"created_at": {}, "finished_at": 5}']
    with (root / ".ledger" / str(odd.remote_id)).open("a") as entry:
        entry.write("".join(f"{line}\n" for line in lines))
    finish(backend, good)
    seen = watched(backend, {odd.remote_id or 0, good.remote_id or 0}, ())
    assert {remote.remote_id: remote.status for remote in seen}[odd.remote_id or 0] is RemoteStatus.RUNNING
    assert not backend.cancel(odd), "its process is not known any more; the marker ends it"
    finish(backend, odd)


def test_a_wrapper_that_was_killed_is_not_ended_while_its_command_runs(
    backend: LocalExecutionBackend, root: Path
) -> None:
    job = submit(backend, make_job("sleep 61.7"))
    eventually(lambda: running(job, root, "sleep 61.7") or None)
    for process in running(job, root, "start.sh") + running(job, root, "bash run.sh"):
        process.kill()
    (remote,) = watched(backend, {job.remote_id or 0})
    assert remote.status is RemoteStatus.RUNNING, "a new attempt would run beside it"
    for process in processes(root):
        process.kill()
    assert wait_for(backend, job).status is RemoteStatus.FAILED
    assert backend.read_result(job) is None


def test_what_a_command_leaves_running_does_not_keep_its_job_from_ending(
    backend: LocalExecutionBackend, root: Path
) -> None:
    job = submit(backend, make_job("setsid bash -c 'touch away; sleep 61.7' & until [ -e away ]; do sleep 0.02; done"))
    remote, _ = finish(backend, job)
    assert remote.status is RemoteStatus.COMPLETED
    assert running(job, root, "sleep 61.7"), "it goes on"


def test_a_number_that_is_another_processs_by_now_is_not_signalled(backend: LocalExecutionBackend, root: Path) -> None:
    innocent = subprocess.Popen(["sleep", "61.7"], start_new_session=True)
    path = "rythmiq/x/1"
    ledger = Ledger(root / ".ledger")
    try:
        with ledger.enter(path) as descriptor:
            assert descriptor is not None
            ledger.note_process(descriptor, innocent.pid)
            noted = json.loads((root / ".ledger" / str(id_of(path))).read_text().splitlines()[1])
            for changed in ({"started": noted["started"] - 1}, {"machine": "another"}):
                os.write(descriptor, f"{json.dumps({**noted, **changed})}\n".encode())
                entry = ledger.read(id_of(path))
                assert entry is not None
                assert entry.send(signal.SIGKILL) is False
            assert innocent.poll() is None
            os.write(descriptor, f"{json.dumps(noted)}\n".encode())
            entry = ledger.read(id_of(path))
            assert entry is not None
            assert entry.send(signal.SIGKILL) is True
        assert innocent.wait(10) == -signal.SIGKILL
    finally:
        innocent.kill()
        innocent.wait()


@pytest.mark.parametrize("way", ["signal", "marker"])
def test_a_job_is_stopped_by_a_signal_and_by_the_marker(
    backend: LocalExecutionBackend, root: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(backend, make_job("sleep 61.7"))
    eventually(lambda: running(job, root, "sleep 61.7") or None)
    if way == "marker":  # as on another machine
        monkeypatch.setattr("rythmiq_ray.backends.local.ledger._machine", lambda: "another")
    assert backend.cancel(job, mark=way == "marker") is (way == "signal")
    remote, result = finish(backend, job)
    assert (remote.status, result.reason, result.exit_code) == (RemoteStatus.FAILED, "cancelled", 143)
    assert not processes(root)
    assert backend.cancel(job) is False


def test_a_command_is_given_none_of_the_workers_variables(
    backend: LocalExecutionBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAMBER_API_KEY", "canary")
    monkeypatch.setenv("RYTHMIQ_SECRET_X", "canary")
    monkeypatch.setenv("LC_TIME", "C")
    job = submit(backend, make_job("env; ls -l /proc/self/fd", env={"MINE": "1"}))
    finish(backend, job)
    said = (log_so_far(backend, job) or b"").decode()
    assert "canary" not in said
    names = {line.partition("=")[0] for line in said.splitlines() if "=" in line and " " not in line}
    assert {"MINE", "RYTHMIQ_JOB_ID", "PATH", "LC_TIME"} <= names
    assert not names & {"PYTHONPATH", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST"}


def test_only_plain_files_of_the_attempt_are_read(backend: LocalExecutionBackend, root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside")
    command = (
        f"echo in >in; ln -s in link; ln -s {tmp_path}/outside out; ln -s loop loop; mkfifo pipe; mkdir folder;"
        " mkdir shut; echo x >shut/x; chmod 0 shut"
    )
    job = submit(backend, make_job(command))
    finish(backend, job)
    assert read(backend, job, "link") == b"in\n"
    for name in ("out", "loop", "pipe", "folder", "in/x"):
        with pytest.raises(NotFound):
            read(backend, job, name)
    assert [file.name for file in backend.list_files(job)][:1] == ["in"]
    backend.remove(job)
    assert not (root / "rythmiq").exists()
    assert (tmp_path / "outside").read_text() == "outside"


def test_an_input_that_cannot_have_its_name_is_the_jobs_fault(backend: LocalExecutionBackend) -> None:
    @contextmanager
    def open_input(uri: str) -> Iterator[BytesIO]:
        yield BytesIO(b"x")

    for names in (("a", "a/b"), ("a/b", "a"), ("n" * 300,)):
        job = make_job(inputs=tuple(Input(uri="s3://b/x", name=name) for name in names))
        with pytest.raises(SpecRejected):
            backend.upload(job, secrets={}, timeout_s=1, open_input=open_input)


def test_removing_an_attempt_leaves_the_others(backend: LocalExecutionBackend, root: Path) -> None:
    first = submit(backend, make_job("true"))
    second = submit(backend, make_job("true"))
    for job in (first, second):
        finish(backend, job)
    backend.remove(first)
    assert watched(backend, {first.remote_id or 0}) == []
    assert [remote.path for remote in watched(backend, {second.remote_id or 0})] == [second.remote_path]
    assert (root / str(second.remote_path) / "run.sh").exists()
