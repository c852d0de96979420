"""What a driver does late, or its tasks do after it: each found by looking, and each once made two remote jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_world import CREATE_TIMEOUT_S, LEASE_S, SETTLE_S, Fate, World

import rythmiq_ray.executor
from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.model import NotYet, RemoteStatus, Step


@pytest.fixture
def world(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(database_url, tmp_path)
    monkeypatch.setattr(rythmiq_ray.executor, "now_s", lambda: world.clock)
    enqueue(world.connection, JobSpec(command="true"))
    yield world
    world.close()


def one_remote_job(world: World) -> None:
    assert list(world.camber.creates.values()) == [1]
    assert world.faults == []


@pytest.mark.parametrize("statement", range(4))
def test_a_driver_frozen_in_a_tick_past_its_lease_sends_no_create_when_it_wakes(world: World, statement: int) -> None:
    frozen, _ = world.start_driver(), world.start_driver()
    frozen.tick(freeze=(statement, lambda: world.work(3 * LEASE_S, but=frozen)))
    frozen.run_all()
    world.work(2 * LEASE_S)
    one_remote_job(world)


def test_a_submit_sent_under_a_lost_lease_does_not_let_a_third_one_go_beside_the_second(world: World) -> None:
    driver = world.start_driver()
    driver.tick()
    driver.slow_down(0)
    world.advance(LEASE_S + 2)
    for _ in range(int(CREATE_TIMEOUT_S + SETTLE_S) + 3):
        driver.tick()
        driver.poller.look()
        world.advance(1)
    driver.tick()
    assert [request.step for request in driver.cluster.sent] == [Step.SUBMIT]
    result, at = world.carry_out(driver.cluster.slow[0], Fate())
    assert isinstance(result, NotYet), "its lease is over"
    driver.cluster.result(driver.cluster.slow.pop(), result, at, world)
    for _ in range(3):
        driver.tick()
        world.advance(1)
    driver.run_all()
    one_remote_job(world)


def test_nobody_takes_over_from_a_stopped_driver_while_its_submit_may_go_on(world: World) -> None:
    driver = world.start_driver()
    driver.tick()
    driver.slow_down(0)
    driver.stop()
    world.start_driver()
    world.work(4.4)
    world.run_zombie(0, Fate(takes_s=CREATE_TIMEOUT_S, lag_s=SETTLE_S))
    assert world.camber.calls == 1, "its lease is not over, so it may"
    world.work(3 * LEASE_S)
    one_remote_job(world)


def test_the_outcome_of_a_driver_that_wakes_too_late_changes_nothing(world: World) -> None:
    late = world.start_driver()
    world.work(2)
    (remote,) = world.camber.remotes.values()
    world.camber.begin(remote)
    world.camber.end(remote, RemoteStatus.COMPLETED, 0)
    while not any(request.step is Step.COLLECT for request in late.cluster.sent):
        late.tick()
        late.poller.look()
        world.advance(0.5)
    late.slow_down(0)
    world.advance(LEASE_S + 2)
    other = world.start_driver()
    other.tick()
    held = world.rows("SELECT * FROM rythmiq.jobs")
    assert held[0]["driver_id"] == other.queue.driver_id
    late.run_slow(0, Fate())
    late.tick()
    assert world.rows("SELECT * FROM rythmiq.jobs") == held
    world.work(2 * LEASE_S)
    assert [row["state"] for row in world.rows("SELECT state FROM rythmiq.jobs")] == ["SUCCEEDED"]
    one_remote_job(world)
