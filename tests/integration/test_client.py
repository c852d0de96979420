"""The client as a program uses it: a real queue, a real store, a driver in this process."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import psycopg
import psycopg2
import pytest

from rythmiq_ray import Client, JobFailed, JobSpec, NewJob, grid, zipped
from rythmiq_ray.errors import ArtifactCorrupt, DatabaseUnavailable, InvalidJob, NotFound
from rythmiq_ray.model import JobState

pytest_plugins = ["rythmiq_ray.testing"]

FIT = """
import json, os, sys
score = {"loss": float(os.environ["LR"]) * int(os.environ["SEED"]), "by": {"step": 3}}
json.dump(score, open("score.json", "w"))
print("seed", os.environ["SEED"])
if os.environ["SEED"] == "13":
    sys.exit("seed 13 is bad")
"""
PATIENCE_S = 120.0


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fit.py").write_text(FIT)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("script")
def test_a_job_is_submitted_waited_for_and_brought(rythmiq: Client, tmp_path: Path) -> None:
    spec = JobSpec(command="LR=0.5 SEED=2 python3 fit.py", inputs=["./fit.py"], outputs=["score.json"])  # type: ignore[arg-type]
    job = rythmiq.submit(spec, name="fit")
    result = job.wait(timeout=PATIENCE_S)
    assert (result.state, result.exit_code, result.succeeded) == (JobState.SUCCEEDED, 0, True)
    assert {artifact.name for artifact in result.artifacts} == {"log.txt", "score.json"}
    assert "seed 2" in job.log()
    assert {path.name for path in job.download(tmp_path / "out")} == {"log.txt", "score.json"}
    assert rythmiq.job("fit").id == job.id
    again = rythmiq.submit(spec)
    assert again.info().spec.inputs == job.info().spec.inputs, "the same file is uploaded once"


@pytest.mark.usefixtures("script")
def test_a_sweep_ends_in_a_table(rythmiq: Client) -> None:
    spec = JobSpec(command="python3 fit.py", inputs=["./fit.py"], outputs=["score.json"])  # type: ignore[arg-type]
    sweep = rythmiq.sweep(spec, grid(LR=[0.1, 0.01], SEED=[1, 13]), name="lr", max_parallel=3, max_attempts=1)
    states = {
        (member.params["LR"], member.params["SEED"]): member.result().state for member in sweep.as_completed(PATIENCE_S)
    }
    assert states == {
        ("0.1", "1"): "SUCCEEDED",
        ("0.1", "13"): "FAILED",
        ("0.01", "1"): "SUCCEEDED",
        ("0.01", "13"): "FAILED",
    }
    table = sweep.table("score.json")
    assert [(row["LR"], row["SEED"], row["state"], row["loss"], row["by.step"]) for row in table] == [
        ("0.1", "1", "SUCCEEDED", 0.1, 3),
        ("0.1", "13", "FAILED", 1.3, 3),
        ("0.01", "1", "SUCCEEDED", 0.01, 3),
        ("0.01", "13", "FAILED", 0.13, 3),
    ]
    frame = table.to_pandas()
    assert frame["LR"].tolist() == [0.1, 0.1, 0.01, 0.01]
    assert sweep.state is JobState.FAILED
    assert len(sweep) == 4
    failed = next(member for member in sweep if member.params["SEED"] == "13")
    with pytest.raises(JobFailed, match="seed 13 is bad") as caught:
        failed.wait()
    assert caught.value.result.exit_code == 1


def test_a_chain_waits_and_hands_on_what_was_stored(rythmiq: Client) -> None:
    first = rythmiq.submit(JobSpec(command="echo one > part.txt", outputs=("part.txt",)), name="first")
    many = rythmiq.sweep(JobSpec(command="echo $N > n.txt", outputs=("n.txt",)), grid(N=[1, 2]), after=[first])
    last = rythmiq.submit(
        JobSpec(
            command="cat part.txt all/*/n.txt",
            inputs=[f"job:{first.id}/part.txt", f"group:{many.id}/n.txt=all/"],  # type: ignore[arg-type]
        ),
        after=[many],
    )
    assert last.state is JobState.BLOCKED
    last.wait(timeout=PATIENCE_S)
    assert last.log().split() == ["one", "1", "2"]


def test_what_is_awaited_ends_as_well(rythmiq: Client) -> None:
    async def run() -> list[str]:
        job = rythmiq.submit(JobSpec(command="true"))
        sweep = rythmiq.sweep(JobSpec(command="test $N != 2"), zipped(N=[1, 2]), max_attempts=1)
        assert (await job).succeeded
        seen = [member.params["N"] async for member in sweep.as_completed(PATIENCE_S)]
        group = await sweep
        return [*sorted(seen), group.state]

    assert asyncio.run(run()) == ["1", "2", "FAILED"]


def test_waiting_has_an_end(rythmiq: Client) -> None:
    job = rythmiq.submit(JobSpec(command="true"), delay=3600)
    with pytest.raises(TimeoutError):
        job.wait(timeout=0.3)
    assert job.cancel() is JobState.CANCELLED
    with pytest.raises(JobFailed, match="cancelled before it started"):
        job.wait()
    assert job.retry()
    with pytest.raises(NotFound):
        rythmiq.job("nobody")


def test_all_faults_are_told_and_nothing_is_stored(rythmiq: Client) -> None:
    with pytest.raises(InvalidJob) as caught:
        rythmiq.submit_many([NewJob(spec=JobSpec(command="")), NewJob(spec=JobSpec(command="true", node_size="huge"))])
    assert [fault.partition(": ")[0] for fault in caught.value.faults] == ["job 1", "job 2"]
    with pytest.raises(InvalidJob, match=r"there is no file '\./nothing\.py' here"):
        rythmiq.submit(JobSpec(command="true", inputs=["./nothing.py"]))  # type: ignore[arg-type]


def add(one: int, two: int) -> int:
    return one + two


def divide(one: int, by: int) -> float:
    return one / by


def test_a_function_runs_on_a_node_and_its_value_comes_back(rythmiq: Client) -> None:
    factor = 3
    good = rythmiq.submit_function(lambda number: add(number, 1) * factor, 4)
    bad = rythmiq.submit_function(divide, 1, by=0)
    odd = rythmiq.submit_function(threading.Lock)
    assert good.value(timeout=PATIENCE_S) == 15
    with pytest.raises(ZeroDivisionError):
        bad.value(timeout=PATIENCE_S)
    with pytest.raises(JobFailed, match="cannot be sent back"):
        odd.value(timeout=PATIENCE_S)
    assert bad.info().attempt == 1, "what a function raises, it would raise again"


def test_a_function_that_was_cancelled_has_no_value_of_before(rythmiq: Client) -> None:
    bad = rythmiq.submit_function(divide, 1, by=0)
    with pytest.raises(ZeroDivisionError):
        bad.value(timeout=PATIENCE_S)
    rythmiq.pause("queue:default")
    assert bad.retry()
    assert bad.cancel() is JobState.CANCELLED
    with pytest.raises(JobFailed, match="is CANCELLED"):
        bad.value(timeout=PATIENCE_S)


def test_one_odd_file_keeps_no_other_from_being_brought(rythmiq: Client, tmp_path: Path) -> None:
    sweep = rythmiq.sweep(JobSpec(command="touch a b", outputs=("a", "b")), grid(N=[1, 2]))
    sweep.wait(timeout=PATIENCE_S)
    first, second = sweep.members()
    with rythmiq._database() as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE rythmiq.artifacts SET name = '../a' WHERE job_id = %s AND name = 'a'", [first.id])
    for download, there in (
        (first.download, {"b", "log.txt"}),
        (sweep.download, {"0000/b", "0000/log.txt", "0001/a", "0001/b", "0001/log.txt"}),
    ):
        folder = tmp_path / str(len(there))
        with pytest.raises(ArtifactCorrupt):
            download(folder)
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert found == there
    assert {path.name for path in second.download(tmp_path / "out")} == {"a", "b", "log.txt"}


@pytest.mark.parametrize("module", [psycopg2, psycopg])
def test_a_job_is_in_the_callers_own_transaction(rythmiq: Client, module: object) -> None:
    connection = module.connect(os.environ["DATABASE_URL"])  # type: ignore[attr-defined]
    job = rythmiq.submit(JobSpec(command="echo ä€", env={"A": "1"}), name="mine", connection=connection)
    group = rythmiq.sweep(
        JobSpec(command="echo $N"), grid(N=[1, 2]), name="many", max_parallel=1, connection=connection
    )
    with pytest.raises(NotFound):
        job.info()
    connection.commit()
    connection.close()
    assert job.wait(timeout=PATIENCE_S).succeeded
    assert group.wait(timeout=PATIENCE_S).succeeded == 2
    assert [member.params for member in group] == [{"N": "1"}, {"N": "2"}]


def test_a_driver_that_cannot_begin_says_so(rythmiq_environment: dict[str, str]) -> None:
    from rythmiq_ray.testing import InlineDriver  # behind pytest's own import of it

    driver = InlineDriver.of(rythmiq_environment)
    with pytest.raises(DatabaseUnavailable, match="rythmiq migrate"):
        driver.__enter__()
