"""Limits, pauses and drains as a whole driver keeps them, in a scripted world."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from scripted_world import World

import rythmiq_ray.executor
from rythmiq_ray import JobSpec, NewJob, enqueue_many
from rythmiq_ray.model import RemoteStatus
from rythmiq_ray.queue import control
from rythmiq_ray.queue.control import Scope

ACCOUNT = Scope("account")


@pytest.fixture
def world_of(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    made: list[World] = []

    def make(*overrides: str) -> World:
        world = World(database_url, tmp_path, *overrides)
        monkeypatch.setattr(rythmiq_ray.executor, "now_s", lambda: world.clock)
        made.append(world)
        return world

    yield make
    for world in made:
        assert world.faults == []
        world.close()


def put(world: World, count: int, **spec: object) -> list[UUID]:
    job = NewJob(spec=JobSpec(command="true", **spec), max_attempts=1)  # type: ignore[arg-type]
    return enqueue_many(world.connection, [job] * count)


def end_all(world: World) -> None:
    for remote in world.camber.remotes.values():
        if not remote.status.terminal:
            world.camber.begin(remote)
            world.camber.end(remote, RemoteStatus.COMPLETED, 0)


def states(world: World) -> dict[tuple[str, int], int]:
    rows = world.rows("SELECT state, attempt, count(*) AS n FROM rythmiq.jobs GROUP BY 1, 2")
    return {(row["state"], row["attempt"]): row["n"] for row in rows}


def test_a_limit_of_the_account_takes_the_place_of_the_configurations(world_of: Callable[..., World]) -> None:
    world = world_of("camber.max_in_flight=5")
    put(world, 30)
    world.start_driver()
    world.work(5.0)
    assert len(world.camber.remotes) == 5
    control.set_limit(world.connection, ACCOUNT, max_running=8)
    world.work(5.0)
    assert len(world.camber.remotes) == 8, "higher than the driver's own"
    control.set_limit(world.connection, ACCOUNT, max_running=2)
    end_all(world)
    world.work(10.0)
    assert len(world.camber.remotes) == 10, "lower"
    control.unset_limit(world.connection, ACCOUNT)
    world.work(5.0)
    assert len(world.camber.remotes) == 13


def test_a_burst_is_claimed_at_once_as_far_as_tasks_have_room(world_of: Callable[..., World]) -> None:
    world = world_of("driver.batch_size=3")
    put(world, 30)
    driver = world.start_driver()
    driver.loop.tick()
    assert world.rows("SELECT count(*) AS n FROM rythmiq.jobs WHERE state = 'RUNNING'")[0]["n"] == driver.cluster.room


def test_without_an_account_each_drivers_limit_is_its_machines(world_of: Callable[..., World], tmp_path: Path) -> None:
    world = world_of("camber.max_in_flight=5", "execution.backend=local", f"execution.local_path={tmp_path}")
    put(world, 30)
    world.start_driver()
    world.start_driver()
    world.work(5.0)
    assert len(world.camber.remotes) == 10


def test_what_was_claimed_and_not_sent_goes_back_in_a_pause_and_burns_no_attempt(
    world_of: Callable[..., World],
) -> None:
    world = world_of("camber.max_in_flight=5")
    put(world, 3)
    world.start_driver()
    world.camber.cap = 0
    world.work(3.0)
    assert states(world) == {("RUNNING", 1): 3}, "Camber refuses them for now"
    control.pause(world.connection, ACCOUNT, reason="a move")
    world.work(5.0)
    world.camber.cap = None
    world.work(60.0)
    assert world.camber.remotes == {}
    assert states(world) == {("RETRYING", 1): 3}
    control.resume(world.connection, ACCOUNT)
    world.work(10.0)
    end_all(world)
    world.work(10.0)
    assert states(world) == {("SUCCEEDED", 2): 3}, "although each may have one attempt"


def test_a_driver_that_is_drained_ends_what_it_has_and_goes(world_of: Callable[..., World]) -> None:
    world = world_of("camber.max_in_flight=5")
    put(world, 8)
    driver = world.start_driver()
    world.work(5.0)
    control.drain(world.connection, driver.queue.driver_id)
    end_all(world)
    world.work(10.0)
    assert driver.loop.draining
    assert len(world.camber.remotes) == 5, "nothing new"
    assert states(world) == {("SUCCEEDED", 1): 5, ("QUEUED", 0): 3}
    driver.loop.run(drain=False)  # returns, as nothing is left
    other = world.start_driver()
    world.work(5.0)
    assert len(other.loop.attempts) == 3


def test_a_drain_outlives_a_lost_lease(world_of: Callable[..., World]) -> None:
    world = world_of("camber.max_in_flight=5")
    put(world, 8)
    driver = world.start_driver()
    world.work(5.0)
    drained = driver.queue.driver_id
    control.drain(world.connection, drained)
    world.work(3.0)
    world.rows("UPDATE rythmiq.drivers SET stopped_at = now(), lease_expires_at = heartbeat_at RETURNING driver_id")
    world.work(30.0)
    assert driver.queue.driver_id != drained, "it has another lease"
    end_all(world)
    world.work(10.0)
    assert driver.loop.draining
    assert len(world.camber.remotes) == 5, "nothing new"


def test_a_budget_that_runs_out_cancels_what_runs_if_it_is_to(world_of: Callable[..., World]) -> None:
    world = world_of("camber.max_in_flight=5")
    put(world, 8)
    world.start_driver()
    world.work(5.0)
    for remote in world.camber.remotes.values():
        world.camber.begin(remote)
    world.work(5.0)
    control.set_budget(world.connection, ACCOUNT, 0.0, "all", cancel_running=True)
    world.work(60.0)
    assert {remote.status for remote in world.camber.remotes.values()} == {RemoteStatus.CANCELLED}
    assert states(world) == {("CANCELLED", 1): 5, ("QUEUED", 0): 3}


@pytest.mark.parametrize(
    ("grants", "code"),
    [
        ("{}", None),
        ("{TOKEN: [postgres]}", None),
        ('{"*": [postgres]}', None),
        ("{TOKEN: [gateway]}", "secret_refused"),
    ],
)
def test_a_secret_is_for_whom_it_was_granted_to(
    world_of: Callable[..., World], monkeypatch: pytest.MonkeyPatch, grants: str, code: str | None
) -> None:
    monkeypatch.setenv("RYTHMIQ_SECRET_TOKEN", "x")
    world = world_of(f"secrets.grants={grants}")
    put(world, 1, secrets=("TOKEN",))
    world.start_driver()
    world.work(5.0)
    end_all(world)
    world.work(10.0)
    (job,) = world.rows("SELECT error_code, error_message FROM rythmiq.jobs")
    assert job["error_code"] == code
    assert len(world.camber.remotes) == (code is None), "refused before anything is sent"
