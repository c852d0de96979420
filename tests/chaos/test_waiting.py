"""Waiting is not failing, and one odd thing concerns itself alone: whole drivers in a scripted world."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from scripted_world import LEASE_S, Remote, World

import rythmiq_ray.executor
from rythmiq_ray import JobSpec, NewJob, enqueue_many
from rythmiq_ray.driver.attempts import Attempts
from rythmiq_ray.driver.vitals import LONG_WAIT_S, Vitals
from rythmiq_ray.model import RemoteJob, RemoteStatus
from rythmiq_ray.telemetry.health import Stage
from rythmiq_ray.telemetry.metrics import Metrics

JOBS = 120
RUN_AT_ONCE = 5
"""What an account runs of all that it has taken."""


@pytest.fixture
def world(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(database_url, tmp_path)
    monkeypatch.setattr(rythmiq_ray.executor, "now_s", lambda: world.clock)
    yield world
    assert world.faults == []
    world.close()


def put(world: World, count: int) -> list[UUID]:
    return enqueue_many(world.connection, [NewJob(spec=JobSpec(command="true"), max_attempts=1) for _ in range(count)])


def states(world: World) -> set[tuple[str, int]]:
    return {(row["state"], row["attempt"]) for row in world.rows("SELECT state, attempt FROM rythmiq.jobs")}


def run_some(world: World, *, seconds: float, running: int = RUN_AT_ONCE) -> None:
    """An account that takes everything and runs a few at once, the oldest first, each for some seconds."""
    active = [remote for remote in world.camber.remotes.values() if not remote.status.terminal]
    for remote in active:
        if remote.started_at and world.now().timestamp() - remote.started_at.timestamp() >= seconds:
            world.camber.end(remote, RemoteStatus.COMPLETED, 0)
    begun = [remote for remote in active if remote.status is RemoteStatus.RUNNING]
    waiting = [remote for remote in active if remote.status is RemoteStatus.PENDING]
    for remote in waiting[: running - len(begun)]:
        world.camber.begin(remote)


def test_an_account_that_runs_a_few_at_once_fails_no_job_however_long_the_others_wait(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(database_url, tmp_path, "camber.max_in_flight=1000")
    monkeypatch.setattr(rythmiq_ray.executor, "now_s", lambda: world.clock)
    put(world, JOBS)
    world.start_driver()
    for _ in range(JOBS // RUN_AT_ONCE + 5):
        for _ in range(3):
            world.work(1.0)
        world.advance(3600.0)
        for driver in world.drivers:
            driver.loop.lease.lost = False  # No other driver came meanwhile.
        run_some(world, seconds=1.0)
    world.work(30.0)
    assert states(world) == {("SUCCEEDED", 1)}
    world.close()


def test_an_accounts_limit_holds_for_all_drivers_and_through_a_take_over(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(database_url, tmp_path, "camber.max_in_flight=5")
    monkeypatch.setattr(rythmiq_ray.executor, "now_s", lambda: world.clock)
    put(world, 30)
    first, second = world.start_driver(), world.start_driver()
    world.work(5.0)
    assert len(world.camber.remotes) == 5, "of both together"
    first.crash()
    world.work(LEASE_S + 20)
    assert len(second.loop.attempts) == 5, "all were taken over"
    assert len(world.camber.remotes) == 5
    for remote in list(world.camber.remotes.values())[:3]:
        world.camber.begin(remote)
        world.camber.end(remote, RemoteStatus.COMPLETED, 0)
    world.work(10.0)
    assert len(second.loop.attempts) == 5
    assert len(world.camber.remotes) == 8, "three went, three came"
    world.close()


def test_a_late_create_on_a_path_that_has_its_job_is_cancelled_and_the_job_goes_on(world: World) -> None:
    put(world, 1)
    world.start_driver()
    world.work(2.0)
    (first,) = world.camber.remotes.values()
    world.camber.remotes[99] = late = Remote(remote_id=99, path=first.path, visible_at=0.0, status=RemoteStatus.PENDING)
    world.work(5.0)
    assert late.status is RemoteStatus.CANCELLED
    assert not first.status.terminal
    world.camber.begin(first)
    world.camber.end(first, RemoteStatus.COMPLETED, 0)
    world.work(5.0)
    assert states(world) == {("SUCCEEDED", 1)}


@pytest.mark.parametrize("method", ["begin", "seen", "settle", "step", "overdue"])
def test_a_fault_of_ours_about_one_job_ends_that_one_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    odd, *good = put(world, 4)
    original: Callable[..., object] = getattr(Attempts, method)

    def faulty(self: Attempts, *args: object, **kwargs: object) -> object:
        for argument in args:
            job = getattr(argument, "job", argument)
            path = getattr(argument, "path", "") if isinstance(argument, RemoteJob) else ""
            if getattr(job, "job_id", None) == odd or str(odd) in path:
                raise KeyError("odd")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Attempts, method, faulty)
    world.start_driver()
    for _ in range(20):
        world.work(1.0)
        for remote in world.camber.remotes.values():
            world.camber.begin(remote)
            world.camber.end(remote, RemoteStatus.COMPLETED, 0)
    monkeypatch.undo()
    rows = {row["job_id"]: row for row in world.rows("SELECT * FROM rythmiq.jobs")}
    assert {rows[job_id]["state"] for job_id in good} == {"SUCCEEDED"}
    if method != "overdue":
        assert "Internal fault" in caplog.text


def test_waits_are_said_once_in_a_while(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="rythmiq")
    put(world, 3)
    driver = world.start_driver()
    vitals = Vitals(world.config, driver.loop, driver.cluster, driver.queue, Metrics(), clock=lambda: world.clock)
    driver.loop.after_tick = vitals.publish
    driver.loop.stage = Stage.RUNNING
    world.work(LONG_WAIT_S - 5)
    assert "Remote jobs wait" not in caplog.text
    world.work(60.0)
    assert caplog.text.count("Remote jobs wait in the backend's queue") == 1
    assert vitals.status().checks["polls"].ok
    world.camber.down = True
    world.work(90.0)
    assert not vitals.status().checks["polls"].ok
