"""Random lives of jobs and drivers, in a world whose time and misfortunes are scripted; see scripted_world.py."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from scripted_world import CREATE_TIMEOUT_S, LEASE_S, SETTLE_S, CreateFate, Driver, Fate, Remote, World

import rythmiq_ray.executor
from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.model import RemoteStatus
from rythmiq_ray.queue import inspect

MAX_JOBS: Final = 6
MAX_DRIVERS: Final = 3
FINISHED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELLED"})
CALM_S: Final = 300
"""In which everything must come to its end once nothing goes wrong any more."""

EXAMPLES: Final = int(os.environ.get("CHAOS_EXAMPLES", "30"))
"""More of them, and random ones, for a long look: ``CHAOS_EXAMPLES=500``."""

PHASES: Final = tuple(Phase) if "CHAOS_EXAMPLES" not in os.environ else (Phase.generate,)
"""A long look shows what it finds as it is: to make a history short can take longer than to find it."""

picks = st.integers(0, 20)
fates = st.builds(
    Fate,
    answer=st.sampled_from([CreateFate.GIVEN, *CreateFate]),
    takes_s=st.sampled_from([0.0, 1.0, CREATE_TIMEOUT_S]),
    lag_s=st.sampled_from([0.0, SETTLE_S]),
    stops=st.booleans(),
)
pauses = st.sampled_from([1.0, 2.0, SETTLE_S, CREATE_TIMEOUT_S, LEASE_S - 0.5, LEASE_S + 2.0, 3 * LEASE_S])


class Chaos(RuleBasedStateMachine):
    url: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="rythmiq-chaos-")
        self.world = World(self.url, Path(self._folder.name))
        cursor = self.world.connection.cursor()
        cursor.execute("ALTER TABLE rythmiq.jobs SET (autovacuum_enabled = off)")  # It changes the order of rows.
        cursor.execute("TRUNCATE rythmiq.jobs, rythmiq.drivers CASCADE")
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(rythmiq_ray.executor, "now_s", lambda: self.world.clock)
        self._ended: dict[tuple[Any, int], dict[str, Any]] = {}

    def teardown(self) -> None:
        try:
            self._come_to_an_end()
        finally:
            self._patch.undo()
            self.world.close()
            self._folder.cleanup()

    # ---------------------------------------------------------------------------------------------- what happens

    @initialize()
    def begin(self) -> None:
        for _ in range(2):
            self.world.start_driver()
            self.put(max_attempts=2)

    @precondition(lambda self: self._jobs() < MAX_JOBS)
    @rule(max_attempts=st.integers(1, 3))
    def put(self, max_attempts: int) -> None:
        enqueue(self.world.connection, JobSpec(command="true"), max_attempts=max_attempts)

    @precondition(lambda self: len(self.world.drivers) < MAX_DRIVERS)
    @rule()
    def driver_starts(self) -> None:
        self.world.start_driver()

    @precondition(lambda self: self.world.drivers)
    @rule(pick=picks)
    def driver_ticks(self, pick: int) -> None:
        self._driver(pick).tick()

    @precondition(lambda self: self.world.drivers)
    @rule(pick=picks, statement=st.integers(0, 6), seconds=pauses)
    def driver_is_frozen_in_a_tick(self, pick: int, statement: int, seconds: float) -> None:
        driver = self._driver(pick)
        driver.tick(freeze=(statement, lambda: self.world.work(seconds, but=driver)))

    @precondition(lambda self: self.world.drivers)
    @rule(pick=picks, statement=st.integers(0, 6), carried_out=st.booleans())
    def postgres_loses_an_answer(self, pick: int, statement: int, carried_out: bool) -> None:
        self._driver(pick).tick(lose=(statement, carried_out))

    @precondition(lambda self: self._drivers_with_tasks())
    @rule(pick=picks, which=picks, fate=fates)
    def task_runs(self, pick: int, which: int, fate: Fate) -> None:
        drivers = self._drivers_with_tasks()
        driver = drivers[pick % len(drivers)]
        driver.run(which % len(driver.cluster.sent), fate)

    @precondition(lambda self: self._drivers_with_tasks())
    @rule(pick=picks, which=picks, dead=st.booleans(), acted=st.booleans())
    def task_is_lost(self, pick: int, which: int, dead: bool, acted: bool) -> None:
        drivers = self._drivers_with_tasks()
        driver = drivers[pick % len(drivers)]
        driver.lose(which % len(driver.cluster.sent), dead=dead, acted=acted)

    @precondition(lambda self: self._drivers_with_tasks())
    @rule(pick=picks, which=picks)
    def task_is_slow(self, pick: int, which: int) -> None:
        drivers = self._drivers_with_tasks()
        driver = drivers[pick % len(drivers)]
        driver.slow_down(which % len(driver.cluster.sent))

    @precondition(lambda self: self._drivers_with_slow_tasks())
    @rule(pick=picks, which=picks, fate=fates)
    def slow_task_runs(self, pick: int, which: int, fate: Fate) -> None:
        drivers = self._drivers_with_slow_tasks()
        driver = drivers[pick % len(drivers)]
        driver.run_slow(which % len(driver.cluster.slow), fate)

    @precondition(lambda self: self.world.zombies)
    @rule(which=picks, fate=fates)
    def lost_task_goes_on(self, which: int, fate: Fate) -> None:
        self.world.run_zombie(which % len(self.world.zombies), fate)

    @precondition(lambda self: self.world.drivers)
    @rule(pick=picks)
    def driver_looks_at_the_list(self, pick: int) -> None:
        self._driver(pick).poller.look()

    @precondition(lambda self: self.world.camber.remotes)
    @rule(which=picks, status=st.sampled_from([RemoteStatus.COMPLETED, RemoteStatus.FAILED, RemoteStatus.CANCELLED]))
    def remote_job_ends(self, which: int, status: RemoteStatus) -> None:
        remotes = list(self.world.camber.remotes.values())
        remote = remotes[which % len(remotes)]
        by_platform = status is RemoteStatus.CANCELLED
        if not by_platform:
            self.world.camber.begin(remote)
        self.world.camber.end(remote, status, 0 if status is RemoteStatus.COMPLETED else 3, by_platform=by_platform)

    @rule(which=picks)
    def somebody_cancels(self, which: int) -> None:
        jobs = self.world.rows("SELECT job_id FROM rythmiq.jobs ORDER BY job_id")
        inspect.cancel(self.world.connection, [jobs[which % len(jobs)]["job_id"]])

    @rule(down=st.booleans())
    def camber_goes_down_or_up(self, down: bool) -> None:
        self.world.camber.down = down

    @precondition(lambda self: self.world.drivers)
    @rule(pick=picks)
    def driver_crashes(self, pick: int) -> None:
        self._driver(pick).crash()

    @precondition(lambda self: self.world.drivers)
    @rule(pick=picks)
    def driver_is_stopped(self, pick: int) -> None:
        self._driver(pick).stop()

    @rule(seconds=pauses)
    def all_are_frozen(self, seconds: float) -> None:
        self.world.advance(seconds)

    @rule(seconds=st.sampled_from([1.0, 4.0, 12.0]))
    def all_is_well_for_a_while(self, seconds: float) -> None:
        self.world.work(seconds)

    # ------------------------------------------------------------------------------------------ what always holds

    @invariant()
    def no_promise_is_broken(self) -> None:
        assert self.world.faults == []

    @invariant()
    def an_attempt_has_one_remote_job_at_most(self) -> None:
        assert [path for path, creates in self.world.camber.creates.items() if creates > 1] == []

    @invariant()
    def rows_agree(self) -> None:
        attempts: dict[Any, list[dict[str, Any]]] = {}
        for row in self.world.rows("SELECT * FROM rythmiq.attempts ORDER BY job_id, attempt"):
            attempts.setdefault(row["job_id"], []).append(row)
        for job in self.world.rows("SELECT * FROM rythmiq.jobs"):
            own = attempts.get(job["job_id"], [])
            assert [row["attempt"] for row in own] == list(range(1, job["attempt"] + 1))
            assert job["attempt"] - job["free_attempts"] <= job["max_attempts"]
            running = [row["attempt"] for row in own if row["state"] == "RUNNING"]
            assert running == ([job["attempt"]] if job["state"] == "RUNNING" else [])
            assert (job["state"] in FINISHED) == (job["finished_at"] is not None)
            if job["state"] in FINISHED and own and job["cancel_requested_at"] is None:
                assert job["state"] == own[-1]["state"]
            if job["phase"] in ("waiting", "collecting"):
                assert job["remote_id"] is not None
            for row in own:
                assert (row["state"] == "RUNNING") == (row["finished_at"] is None)

    @invariant()
    def an_attempt_ends_once(self) -> None:
        for row in self.world.rows("SELECT * FROM rythmiq.attempts WHERE finished_at IS NOT NULL"):
            del row["cleaned_at"]
            assert self._ended.setdefault((row["job_id"], row["attempt"]), row) == row

    @invariant()
    def nothing_is_lost(self) -> None:
        """A running job is in the memory of the driver that has it, or its driver's lease runs out."""
        held = {driver.queue.driver_id: driver.loop for driver in self.world.drivers}
        for job in self.world.rows("SELECT * FROM rythmiq.jobs WHERE state = 'RUNNING'"):
            loop = held.get(job["driver_id"])
            if loop is not None and loop.database_error is None:
                assert loop.attempts.get(job["job_id"], job["attempt"]) is not None

    # ------------------------------------------------------------------------------------------------ how it ends

    def _come_to_an_end(self) -> None:
        """With nothing going wrong any more all comes to its end, and what is written is what happened."""
        world = self.world
        world.camber.down = False
        world.start_driver()
        for _ in range(CALM_S):
            for driver in self._drivers_with_slow_tasks():
                driver.run_slow(0, Fate())
            world.work(1.0)
            for remote in world.camber.remotes.values():
                world.camber.begin(remote)
                world.camber.end(remote, RemoteStatus.COMPLETED, 0)
            if not world.rows(
                "SELECT FROM rythmiq.jobs WHERE state IN ('QUEUED', 'RETRYING', 'RUNNING') LIMIT 1"
            ) and not world.rows("SELECT FROM rythmiq.attempts WHERE cleaned_at IS NULL LIMIT 1"):
                break
        while world.zombies:
            world.run_zombie(0, Fate())
        left = world.rows("SELECT state, phase, error_code FROM rythmiq.jobs WHERE finished_at IS NULL")
        assert left == [], "a job never ended"
        assert world.rows("SELECT remote_path FROM rythmiq.attempts WHERE cleaned_at IS NULL") == []
        self.no_promise_is_broken()
        self.an_attempt_has_one_remote_job_at_most()
        self.rows_agree()
        self.an_attempt_ends_once()
        by_path = {remote.path: remote for remote in world.camber.remotes.values()}
        for row in world.rows("SELECT * FROM rythmiq.attempts"):
            self._tells_the_truth(row, by_path.get(row["remote_path"]))

    def _tells_the_truth(self, attempt: dict[str, Any], remote: Remote | None) -> None:
        if remote is None:
            assert attempt["remote_id"] is None
            assert attempt["state"] != "SUCCEEDED"
            return
        assert attempt["remote_id"] == remote.remote_id, "a remote job that no row knows of"
        if attempt["state"] == "SUCCEEDED":
            assert (remote.status, remote.exit_code) == (RemoteStatus.COMPLETED, 0)
            assert attempt["artifact_uri"] is not None

    # ----------------------------------------------------------------------------------------------------- choices

    def _jobs(self) -> int:
        count: int = self.world.rows("SELECT count(*) AS n FROM rythmiq.jobs")[0]["n"]
        return count

    def _driver(self, pick: int) -> Driver:
        return self.world.drivers[pick % len(self.world.drivers)]

    def _drivers_with_slow_tasks(self) -> list[Driver]:
        return [driver for driver in self.world.drivers if driver.cluster.slow]

    def _drivers_with_tasks(self) -> list[Driver]:
        return [driver for driver in self.world.drivers if driver.cluster.sent]


@pytest.fixture
def machine(database_url: str) -> type[Chaos]:
    class Here(Chaos):
        url = database_url

    return Here


def test_whatever_happens_each_job_ends_once_and_each_attempt_has_one_remote_job(
    machine: Callable[[], Chaos],
) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            derandomize="CHAOS_EXAMPLES" not in os.environ,
            database=None,
            deadline=None,
            print_blob=False,
            phases=PHASES,
            suppress_health_check=list(HealthCheck),
        ),
    )
