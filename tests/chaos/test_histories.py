"""Random histories of drivers, a lying remote service and time itself, over the real queue and the real flights.

Requests that were sent may arrive late, up to the limits that the design assumes: a create within
``create_timeout_s`` of its sending, the list within ``settle_s`` of a create. After every step no path has two remote
jobs and no attempt ended twice; at the end, whatever happened, every job can still be brought to its end.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import psycopg2
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from samples import config

from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.driver.flights import Flight, Flights
from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import (
    Cancelling,
    Collected,
    ErrorInfo,
    JobState,
    Order,
    Phase,
    RemoteJob,
    RemoteStatus,
    Step,
    StepResult,
    Submitted,
    SubmitUncertain,
    TaskLost,
)
from rythmiq_ray.queue import Progress, Queue, inspect
from rythmiq_ray.secret import Secret

LEASE_S, CREATE_S, SETTLE_S = 30.0, 5.0, 5.0
CONFIG = config(
    f"driver.lease_s={LEASE_S:g}",
    f"camber.create_timeout_s={CREATE_S:g}",
    f"camber.settle_s={SETTLE_S:g}",
    "retry.base_delay_s=1",
    "retry.max_delay_s=1",
)
DRIVERS = st.integers(0, 1)
CHOICE = st.integers(0, 7)


class Driver:
    """One driver's memory, over its own connection."""

    def __init__(self, url: str, now: datetime) -> None:
        self.queue = Queue(Secret(url), lease_s=LEASE_S)
        self.flights = Flights(CONFIG)
        self.lease_until = now
        self.register(now)

    def register(self, now: datetime) -> None:
        self.queue.now = now
        self.queue.register()
        self.flights.clear()
        self.lease_until = now + timedelta(seconds=LEASE_S)


class History(RuleBasedStateMachine):
    """The rules are what can happen."""

    url: ClassVar[str]

    @initialize()
    def begin(self) -> None:
        self.connection = psycopg2.connect(self.url)
        self.connection.autocommit = True
        self.connection.cursor().execute("TRUNCATE rythmiq.jobs, rythmiq.drivers CASCADE")
        self.start = self.now = datetime.now(UTC) + timedelta(days=1)
        self.remotes: dict[str, list[RemoteJob]] = {}
        self.visible_at: dict[int, datetime] = {}
        self.late: list[tuple[str, datetime]] = []
        """Creates that were sent and may still arrive, each with the last moment at which it can."""
        self.ended: Counter[tuple[UUID, int]] = Counter()
        self.drivers = [Driver(self.url, self.now) for _ in range(2)]
        self.sweeps = 0

    def teardown(self) -> None:
        if not hasattr(self, "drivers"):
            return
        try:
            self.bring_to_an_end()
        finally:
            for driver in self.drivers:
                driver.queue.close()
            self.connection.close()

    # ---------------------------------------------------------------------------------------------- what happens

    @rule()
    def somebody_enqueues(self) -> None:
        enqueue(self.connection, JobSpec(command="true"), max_attempts=3)

    @rule(seconds=st.sampled_from([0.5, 4.9, 5.2, 10.3, 31.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(at=DRIVERS)
    def a_driver_claims(self, at: int) -> None:
        driver = self.awake(at)
        if self.leased(driver):
            for job in driver.queue.claim(2):
                driver.flights.begin(job)

    @rule(at=DRIVERS)
    def a_driver_takes_over(self, at: int) -> None:
        driver = self.awake(at)
        if self.leased(driver):
            for adopted in driver.queue.adopt(5):
                driver.flights.take_over(adopted.job, adopted.orphaned_s, self.clock())

    @rule(at=DRIVERS)
    def a_driver_renews(self, at: int) -> None:
        driver = self.awake(at)
        if driver.queue.renew():
            driver.lease_until = self.now + timedelta(seconds=LEASE_S)
        else:
            driver.register(self.now)

    @rule(at=DRIVERS)
    def a_driver_crashes(self, at: int) -> None:
        """Its tasks end with it, but a request on its way may still arrive."""
        driver = self.awake(at)
        for flight in driver.flights:
            order = self.order(driver, flight)
            if order is not None and order.step is Step.SUBMIT:
                self.late.append((order.job.remote_path or "", self.now + timedelta(seconds=CREATE_S)))
        self.drivers[at].queue.close()
        self.drivers[at] = Driver(self.url, self.now)

    @rule(at=DRIVERS, which=CHOICE, how=st.sampled_from(["ok", "lost answer", "nothing", "ghost node", "dead worker"]))
    def a_driver_submits(self, at: int, which: int, how: str) -> None:
        driver = self.awake(at)
        found = self.pick(driver, Step.SUBMIT, which)
        if found is None:
            return
        flight, order = found
        path = order.job.remote_path or ""
        uncertain = SubmitUncertain(error=ErrorInfo(code=ErrorCode.BACKEND_UNAVAILABLE, message=how))
        result: StepResult = uncertain
        if how == "ok":
            result = Submitted(remote=self.create(path))
        elif how == "lost answer":
            self.create(path)
        elif how == "ghost node":
            self.late.append((path, driver.lease_until + timedelta(seconds=CREATE_S)))
            result = TaskLost(reason="NodeDiedError", dead=False)
        elif how == "dead worker":
            self.create(path)
            result = TaskLost(reason="WorkerCrashedError", dead=True)
        self.settle(driver, flight, order, result)

    @rule(which=CHOICE)
    def a_late_create_arrives(self, which: int) -> None:
        self.late = [entry for entry in self.late if entry[1] >= self.now]
        if self.late:
            self.create(self.late.pop(which % len(self.late))[0])

    @rule(which=CHOICE, status=st.sampled_from([RemoteStatus.RUNNING, RemoteStatus.COMPLETED, RemoteStatus.FAILED]))
    def a_remote_job_goes_on(self, which: int, status: RemoteStatus) -> None:
        going = [(path, jobs) for path, jobs in sorted(self.remotes.items()) if not jobs[0].status.terminal]
        if going:
            path, jobs = going[which % len(going)]
            jobs[0] = self.remote(jobs[0].remote_id, path, status)

    @rule(at=DRIVERS)
    def a_driver_sweeps(self, at: int) -> None:
        self.sweep(self.awake(at))

    @rule(at=DRIVERS, which=CHOICE, succeeds=st.booleans())
    def a_driver_collects(self, at: int, which: int, succeeds: bool) -> None:
        driver = self.awake(at)
        found = self.pick(driver, Step.COLLECT, which)
        if found is not None:
            self.settle(driver, *found, collected(succeeds))

    @rule(which=CHOICE)
    def somebody_cancels(self, which: int) -> None:
        jobs = inspect.jobs(self.connection)
        if jobs:
            inspect.cancel(self.connection, [jobs[which % len(jobs)].job_id])

    @rule(at=DRIVERS, which=CHOICE)
    def a_driver_writes_without_looking_at_its_lease(self, at: int, which: int) -> None:
        """As one does that was stopped in the middle of a call and woken long after."""
        driver = self.awake(at)
        flights = list(driver.flights)
        if flights:
            flight = flights[which % len(flights)]
            ending = driver.flights.give_up(flight, ErrorInfo(code=ErrorCode.REMOTE_KILLED, message="stale"))
            self.write(driver, flight, ending)

    # -------------------------------------------------------------------------------------------- what never does

    @invariant()
    def no_path_has_two_remote_jobs(self) -> None:
        if hasattr(self, "remotes"):
            assert all(len(jobs) == 1 for jobs in self.remotes.values())

    @invariant()
    def no_attempt_ended_twice(self) -> None:
        if hasattr(self, "ended"):
            assert all(count == 1 for count in self.ended.values())

    def bring_to_an_end(self) -> None:
        """Every driver dies; one new driver and an honest service finish everything."""
        self.now += timedelta(seconds=LEASE_S + 1)
        driver = Driver(self.url, self.now)
        self.drivers.append(driver)
        for _ in range(60):
            if not driver.queue.unfinished():
                break
            self.now += timedelta(seconds=3)
            driver.queue.now = self.now
            assert driver.queue.renew()
            driver.lease_until = self.now + timedelta(seconds=LEASE_S)
            for adopted in driver.queue.adopt(50):
                driver.flights.take_over(adopted.job, adopted.orphaned_s, self.clock())
            for job in driver.queue.claim(50):
                driver.flights.begin(job)
            for path, jobs in self.remotes.items():
                jobs[0] = self.remote(jobs[0].remote_id, path, RemoteStatus.COMPLETED)
            self.sweep(driver)
            for flight in list(driver.flights):
                order = self.order(driver, flight)
                if order is None:
                    continue
                result: StepResult = collected(True)
                if order.step is Step.SUBMIT:
                    result = Submitted(remote=self.create(order.job.remote_path or ""))
                elif order.step is Step.CANCEL:
                    result = Cancelling(accepted=False)
                self.settle(driver, flight, order, result)
            self.no_path_has_two_remote_jobs()
        left = [
            (job.state, job.phase, job.driver_id) for job in inspect.jobs(self.connection) if not job.state.finished
        ]
        assert left == [], "a job was lost"
        self.no_attempt_ended_twice()

    # ------------------------------------------------------------------------------------------------------ means

    def clock(self) -> float:
        return (self.now - self.start).total_seconds()

    def awake(self, at: int) -> Driver:
        driver = self.drivers[at]
        driver.queue.now = self.now
        return driver

    def leased(self, driver: Driver) -> bool:
        return self.now < driver.lease_until

    def order(self, driver: Driver, flight: Flight) -> Order | None:
        if not self.leased(driver):
            return None
        left_s = (driver.lease_until - self.now).total_seconds()
        return driver.flights.order(
            flight, self.clock(), secrets={}, lease_left_s=left_s, create_before=driver.lease_until
        )

    def pick(self, driver: Driver, step: Step, which: int) -> tuple[Flight, Order] | None:
        orders = [(flight, self.order(driver, flight)) for flight in driver.flights]
        fitting = [(flight, order) for flight, order in orders if order is not None and order.step is step]
        return fitting[which % len(fitting)] if fitting else None

    def create(self, path: str) -> RemoteJob:
        remote = self.remote(1 + len(self.visible_at), path, RemoteStatus.PENDING)
        self.remotes.setdefault(path, []).append(remote)
        self.visible_at[remote.remote_id] = self.now + timedelta(seconds=SETTLE_S - 0.1)
        return remote

    def remote(self, remote_id: int, path: str, status: RemoteStatus) -> RemoteJob:
        return RemoteJob(remote_id=remote_id, path=path, status=status, created_at=self.now, started_at=self.now)

    def sweep(self, driver: Driver) -> None:
        self.sweeps += 1
        flights = driver.flights
        waiting, paths = frozenset(flights.waiting_ids()), frozenset(flights.uncertain_paths())
        for jobs in self.remotes.values():
            for remote in jobs:
                if self.visible_at[remote.remote_id] <= self.now:
                    flight = flights.seen(self.sweeps, remote, self.clock())
                    if flight is not None:
                        self.advance(driver, flight)
        for ending in flights.swept(self.sweeps, paths, waiting, self.clock()):
            flight = flights.get(ending.job_id, ending.attempt)
            assert flight is not None
            self.write(driver, flight, ending)

    def settle(self, driver: Driver, flight: Flight, order: Order, result: StepResult) -> None:
        ending = driver.flights.settle(flight, order, result, self.clock())
        if ending is not None:
            self.write(driver, flight, ending)
        elif flight.phase is not Phase.SUBMITTING:
            self.advance(driver, flight)

    def advance(self, driver: Driver, flight: Flight) -> None:
        job = flight.job
        driver.queue.advance(
            [Progress(job_id=job.job_id, attempt=job.attempt, phase=flight.phase, remote_id=job.remote_id)]
        )

    def write(self, driver: Driver, flight: Flight, ending: Any) -> None:
        if driver.queue.finish([ending]):
            self.ended[ending.job_id, ending.attempt] += 1
        driver.flights.remove(flight)


def collected(succeeds: bool) -> Collected:
    error = None if succeeds else ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="exit code 1")
    return Collected(
        state=JobState.SUCCEEDED if succeeds else JobState.FAILED,
        exit_code=0 if succeeds else 1,
        error=error,
        manifest_uri=None,
        artifacts=(),
        cost_credits=None,
    )


@pytest.fixture
def history(database_url: str) -> type[History]:
    History.url = database_url
    return History


@pytest.mark.timeout(300)
def test_no_history_breaks_an_invariant(history: type[History]) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        history,
        settings=settings(
            max_examples=40,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
