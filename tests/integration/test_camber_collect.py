"""What is collected of jobs that damage their folder, forge their result, or leave much: real processes, real stash."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from camber_jobs import KEY, eventually, finish, make_config, make_job, submit, wait_for

from rythmiq_ray.artifacts import open_store
from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.clock import now_s
from rythmiq_ray.config import ArtifactsConfig
from rythmiq_ray.executor import Executor
from rythmiq_ray.local.camber import Emulator, Settings
from rythmiq_ray.model import Collected, Job, JobState, NotYet, Step, StepRequest


@pytest.fixture
def emulator(tmp_path: Path) -> Iterator[Emulator]:
    with Emulator(tmp_path / "camber", api_key=KEY) as emulator:
        yield emulator


@pytest.fixture
def backend(emulator: Emulator) -> Iterator[CamberExecutionBackend]:
    backend = CamberExecutionBackend(make_config(emulator.endpoint))
    yield backend
    backend.close()


def collected(backend: CamberExecutionBackend, job: Job, folder: Path) -> tuple[Collected, dict[str, bytes]]:
    """What a driver would get of a job that was submitted, with short waits, and what was stored."""
    config = ArtifactsConfig(
        type="local", bucket=None, path=str(folder), prefix="p", part_size_bytes=5 * 1024**2, concurrency=4
    )
    store = open_store(config)
    executor = Executor(backend=backend, store=store, timeout_s=60, concurrency=4, settled_s=0.3)
    order = StepRequest(step=Step.COLLECT, job=job, remote=wait_for(backend, job))
    changed_at = now_s()

    def look() -> Collected | None:
        nonlocal order, changed_at
        result = executor.run(order)
        if isinstance(result, Collected):
            return result
        assert isinstance(result, NotYet), result
        if result.seen != order.seen:
            changed_at = now_s()
        quiet_s = now_s() - changed_at
        order = replace(order, seen=result.seen, quiet_s=quiet_s, final=quiet_s > 0.6, alone=result.alone)
        return None

    result = eventually(look)
    stored = {}
    for artifact in result.artifacts:
        with store.open(artifact.uri) as file:
            stored[artifact.name] = file.read()
    return result, stored


@pytest.mark.parametrize(
    ("damage", "warning"),
    [
        ("rm -rf ./*", None),
        (": >rythmiq-log.txt", "log: the command truncated"),
        ('cd / && rm -rf "$OLDPWD"', "the command removed its own working directory"),
        ('d=$PWD; cd / && rm -rf "$d" && : >"$d"', "result_missing: "),
        ("mkdir -p rythmiq-result.json/x; chmod 000 .", None),
    ],
)
@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_job_that_damages_its_folder_ends_as_its_command_did_with_its_whole_log(
    backend: CamberExecutionBackend, tmp_path: Path, damage: str, warning: str | None, exit_code: int
) -> None:
    job = submit(backend, make_job(f"echo before; sleep 0.2; {damage}\nsleep 0.1; echo after; exit {exit_code}"))
    result, stored = collected(backend, job, tmp_path / "store")
    assert result.state is (JobState.FAILED if exit_code else JobState.SUCCEEDED)
    assert stored["log.txt"].startswith(b"before\nafter\n")
    assert [line for line in result.warnings if line.startswith(warning or "-")] == list(result.warnings)
    assert bool(result.warnings) is (warning is not None)
    if warning == "result_missing: ":
        assert b"the exit code was %d\n" % exit_code in stored["log.txt"]
    else:
        assert result.exit_code == exit_code


@pytest.mark.parametrize("forged", ["[" * 100_000, '{"version": NaN}', "x" * 33_000_000])
def test_a_result_that_the_command_forged_after_the_wrapper_counts_as_none(
    backend: CamberExecutionBackend, tmp_path: Path, forged: str
) -> None:
    job = submit(backend, make_job("echo 1 >out.txt", outputs=("*.txt",)))
    finish(backend, job)
    backend.client.stash_write(f"stash://{backend.check()}/{job.remote_path}/rythmiq-result.json", forged.encode())
    result, stored = collected(backend, job, tmp_path / "store")
    assert (result.state, set(stored)) == (JobState.SUCCEEDED, {"log.txt", "out.txt"})
    assert result.warnings[0].startswith("rythmiq-result.json ")
    assert result.warnings[1].startswith("result_missing: ")


def test_many_small_outputs_that_come_back_slowly_are_all_collected(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Their sync takes several times as long as a path may be still."""
    settings = Settings(queue_wait_s=(0.0, 0.0), sync_delay_s=0.5, sync_step_s=0.01)
    with (
        Emulator(tmp_path_factory.mktemp("slow"), api_key=KEY, settings=settings) as slow,
        closing(CamberExecutionBackend(make_config(slow.endpoint))) as backend,
    ):
        command = "mkdir out; for i in {1..300}; do echo $i >out/$i; done"
        job = submit(backend, make_job(command, outputs=("out",)))
        result, stored = collected(backend, job, tmp_path / "store")
    assert (result.state, result.warnings) == (JobState.SUCCEEDED, ())
    assert {name: data for name, data in stored.items() if name != "log.txt"} == {
        f"out/{number}": b"%d\n" % number for number in range(1, 301)
    }
