"""An account that is full: no attempt is burned, each job ends, and ``camber.max_in_flight=auto`` stops knocking."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted_world import World

import rythmiq_ray.executor
from rythmiq_ray import JobSpec, NewJob, enqueue_many

JOBS = 120
CAP = 5


@pytest.mark.parametrize("setting", ["auto", "100"])
def test_a_full_account_costs_no_attempt(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    world = World(database_url, tmp_path, f"camber.max_in_flight={setting}", "retry.max_delay_s=60")
    monkeypatch.setattr(rythmiq_ray.executor, "now_s", lambda: world.clock)
    enqueue_many(world.connection, [NewJob(spec=JobSpec(command="true"), max_attempts=1) for _ in range(JOBS)])
    world.camber.cap = CAP
    world.start_driver()
    most_running = most_refused = 0
    unfinished = JOBS
    for _ in range(2000):
        refused = world.camber.refused
        world.work(1.0)
        most_refused = max(most_refused, world.camber.refused - refused)
        active = [remote for remote in world.camber.remotes.values() if not remote.status.terminal]
        most_running = max(most_running, len(active))
        for remote in active:
            if remote.started_at is None:
                world.camber.begin(remote)
            elif world.now().timestamp() - remote.started_at.timestamp() >= 3:
                world.camber.end(remote, remote.status.COMPLETED, 0)
        (row,) = world.rows("SELECT count(*) AS n FROM rythmiq.jobs WHERE finished_at IS NULL")
        unfinished = row["n"]
        if not unfinished:
            break
    rows = world.rows("SELECT state, attempt, error_message FROM rythmiq.jobs")
    assert unfinished == 0
    assert {(row["state"], row["attempt"]) for row in rows} == {("SUCCEEDED", 1)}
    assert set(world.camber.creates.values()) == {1}
    assert len(world.camber.creates) == JOBS
    assert world.faults == []
    assert most_running == CAP, "what the account has room for is used"
    assert world.camber.refused <= JOBS if setting == "auto" else world.camber.refused > 0
    world.close()
