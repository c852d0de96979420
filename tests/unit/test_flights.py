"""The rules of one running attempt, with time as a number."""

from __future__ import annotations

import pytest
from samples import NOW, config, job, remote

from rythmiq_ray.driver.flights import MAX_CRASHES, MAX_CREATES, MAX_FAULTS, Flight, Flights
from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import (
    Cancelling,
    Collected,
    ErrorInfo,
    Faulted,
    Job,
    JobState,
    NotYet,
    Order,
    Phase,
    RemoteStatus,
    Step,
    StepResult,
    Submitted,
    SubmitUncertain,
    TaskLost,
)
from rythmiq_ray.queue import Ending

CONFIG = config(
    "camber.settle_s=5", "camber.create_timeout_s=30", "retry.base_delay_s=10", "execution.queue_timeout_s=100"
)


class Pilot:
    """Drives a flight by hand: every order goes out, the given result comes back, and the clock is an attribute."""

    def __init__(self, flight_job: Job | None = None) -> None:
        self.now = 1000.0
        self.flights = Flights(CONFIG)
        self.flight: Flight = self.flights.begin(flight_job or job(), 0.0)

    def order(self, *, lease_left_s: float = 20.0) -> Order | None:
        order = self.flights.order(self.flight, self.now, secrets={}, lease_left_s=lease_left_s)
        if order is not None:
            self.flight.busy = True
        return order

    def give(self, result: StepResult) -> Ending | None:
        order = self.order()
        assert order is not None
        return self.flights.settle(self.flight, order, result, self.now)

    def sweep(self, *, sees: RemoteStatus | None, remote_id: int = 1, number: int = 1) -> list[Ending]:
        """A whole sweep that sees the attempt's remote job in this state, or does not see it."""
        paths, waiting = frozenset(self.flights.uncertain_paths()), frozenset(self.flights.waiting_ids())
        if sees is not None:
            self.flights.seen(number, remote(self.flight.job, remote_id, sees), self.now)
        return self.flights.swept(number, paths, waiting, self.now)


def submitted(pilot: Pilot, status: RemoteStatus = RemoteStatus.PENDING) -> None:
    assert pilot.give(Submitted(remote=remote(pilot.flight.job, status=status))) is None


def uncertain() -> SubmitUncertain:
    return SubmitUncertain(error=ErrorInfo(code=ErrorCode.BACKEND_UNAVAILABLE, message="the answer was lost"))


def test_a_job_is_submitted_watched_collected_and_succeeds() -> None:
    pilot = Pilot()
    submitted(pilot)
    assert pilot.flight.phase is Phase.WAITING
    assert pilot.order() is None, "while it waits, nothing is to be done for it"
    pilot.sweep(sees=RemoteStatus.COMPLETED)
    assert pilot.flight.phase is Phase.COLLECTING
    ending = pilot.give(
        Collected(
            state=JobState.SUCCEEDED, exit_code=0, error=None, manifest_uri="s3://b/m", artifacts=(), cost_credits=0.1
        )
    )
    assert ending is not None
    assert (ending.state, ending.retry_delay_s, ending.artifact_uri, ending.remote_id) == (
        JobState.SUCCEEDED,
        None,
        "s3://b/m",
        1,
    )


def test_after_an_uncertain_create_nothing_is_created_until_a_sweep_proves_that_it_is_not_there() -> None:
    pilot = Pilot()
    pilot.give(uncertain())
    assert pilot.order() is None
    pilot.now += 4.9
    pilot.sweep(sees=None)
    assert pilot.order() is None, "the list may lag for settle_s"
    pilot.now += 0.2
    assert pilot.order() is None, "only a sweep proves anything"
    pilot.sweep(sees=None)
    order = pilot.order()
    assert order is not None
    assert order.step is Step.SUBMIT


def test_an_uncertain_create_that_the_list_shows_is_taken_over() -> None:
    pilot = Pilot()
    pilot.give(uncertain())
    pilot.sweep(sees=RemoteStatus.RUNNING, remote_id=77)
    assert pilot.flight.phase is Phase.WAITING
    assert pilot.flight.job.remote_id == 77
    assert pilot.flights.waiting_ids() == [77]
    assert pilot.flights.uncertain_paths() == []


def test_a_sweep_begun_before_the_doubt_ended_proves_nothing() -> None:
    pilot = Pilot()
    pilot.give(uncertain())
    paths = frozenset(pilot.flights.uncertain_paths())
    begun = pilot.now + 1
    pilot.now += 60
    pilot.flights.swept(1, paths, frozenset(), begun)
    assert pilot.order() is None


def test_a_create_that_never_leaves_a_job_ends_the_attempt_after_some_tries() -> None:
    pilot = Pilot()
    for number in range(MAX_CREATES):
        assert pilot.give(uncertain()) is None
        pilot.now += 6
        endings = pilot.sweep(sees=None, number=number)
    assert [ending.error.code for ending in endings if ending.error] == [ErrorCode.CREATE_FAILED]
    assert endings[0].retry_delay_s is not None


def test_a_lost_submit_may_still_create_until_its_lease_ended_and_its_call_timed_out() -> None:
    pilot = Pilot()
    order = pilot.order(lease_left_s=20.0)
    assert order is not None
    pilot.flights.settle(pilot.flight, order, TaskLost(reason="NodeDiedError", dead=False), pilot.now)
    for elapsed_s in (10, 24, 20.9):  # 54.9 s in all, of 20 + 30 + 5
        pilot.now += elapsed_s
        pilot.sweep(sees=None)
        assert pilot.order() is None
    pilot.now += 0.2
    pilot.sweep(sees=None)
    assert pilot.order() is not None


def test_a_submit_whose_process_is_dead_needs_only_the_list_to_settle() -> None:
    pilot = Pilot()
    pilot.give(TaskLost(reason="WorkerCrashedError", dead=True))
    pilot.now += 5.1
    pilot.sweep(sees=None)
    order = pilot.order()
    assert order is not None
    assert order.alone, "if it is this job that kills its task, it takes no others along"


def test_a_taken_over_submit_waits_for_what_its_former_driver_may_have_sent() -> None:
    pilot = Pilot()
    flight = pilot.flights.take_over(job(), orphaned_s=3.0, now=pilot.now)
    pilot.flight = flight
    assert pilot.order() is None
    pilot.now += 31.9  # 30 s for the call and 5 s for the list, of which 3 s are over
    pilot.sweep(sees=None)
    assert pilot.order() is None
    pilot.now += 0.2
    pilot.sweep(sees=None)
    assert pilot.order() is not None


def test_a_taken_over_job_with_a_remote_id_is_watched_not_submitted() -> None:
    pilot = Pilot()
    row = job(phase=Phase.COLLECTING, remote_id=9, remote_status=RemoteStatus.COMPLETED)
    pilot.flight = pilot.flights.take_over(row, orphaned_s=0.0, now=pilot.now)
    assert pilot.order() is None
    pilot.sweep(sees=RemoteStatus.COMPLETED, remote_id=9)
    order = pilot.order()
    assert order is not None
    assert order.step is Step.COLLECT


def test_a_lease_window_that_passed_is_tried_again_without_a_second_upload() -> None:
    pilot = Pilot()
    pilot.give(NotYet(reason="the lease is over", uploaded=True))
    order = pilot.order()
    assert order is not None
    assert order.uploaded


def test_a_late_sync_is_waited_for_and_then_taken_as_it_is() -> None:
    pilot = Pilot()
    submitted(pilot, RemoteStatus.COMPLETED)
    first = pilot.order()
    assert first is not None
    assert not first.final
    pilot.flights.settle(pilot.flight, first, NotYet(reason="not there", delay_s=1.0), pilot.now)
    assert pilot.order() is None
    pilot.now += CONFIG.camber.sync_timeout_s
    last = pilot.order()
    assert last is not None
    assert last.final


@pytest.mark.parametrize(("attempt", "again"), [(1, True), (2, True), (3, False)])
def test_a_failed_command_is_retried_while_attempts_are_left(attempt: int, again: bool) -> None:
    pilot = Pilot(job(attempt=attempt))
    submitted(pilot, RemoteStatus.FAILED)
    error = ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="exit code 1")
    ending = pilot.give(
        Collected(state=JobState.FAILED, exit_code=1, error=error, manifest_uri=None, artifacts=(), cost_credits=None)
    )
    assert ending is not None
    assert (ending.retry_delay_s is not None) is again
    assert ending.retryable


def test_a_fault_that_is_nobodys_is_tried_again_and_ends_the_attempt_only_after_many() -> None:
    pilot = Pilot()
    fault = Faulted(error=ErrorInfo(code=ErrorCode.STORE_UNAVAILABLE, message="503"))
    for _ in range(MAX_FAULTS - 1):
        assert pilot.give(fault) is None
        assert pilot.order() is None, "there is a back-off"
        pilot.now += 61
    ending = pilot.give(fault)
    assert ending is not None
    assert ending.error is not None
    assert ending.error.code is ErrorCode.PHASE_FAILED


def test_an_account_that_is_full_is_waited_for_however_long_it_takes() -> None:
    pilot = Pilot()
    for _ in range(3 * MAX_FAULTS):
        assert pilot.give(Faulted(error=ErrorInfo(code=ErrorCode.BACKEND_BUSY, message="429"))) is None
        pilot.now += 61


def test_a_confirmed_outage_counts_against_no_job() -> None:
    pilot = Pilot()
    fault = Faulted(error=ErrorInfo(code=ErrorCode.BACKEND_UNAVAILABLE, message="503"))
    for _ in range(3 * MAX_FAULTS):
        assert pilot.give(fault) is None
        pilot.flights.outage_over()


def test_a_job_whose_task_dies_again_and_again_is_ended() -> None:
    pilot = Pilot()
    submitted(pilot, RemoteStatus.COMPLETED)
    for _ in range(MAX_CRASHES - 1):
        assert pilot.give(TaskLost(reason="OutOfMemoryError", dead=True)) is None
        pilot.now += 2
    ending = pilot.give(TaskLost(reason="OutOfMemoryError", dead=True))
    assert ending is not None
    assert ending.error is not None
    assert ending.error.code is ErrorCode.PHASE_FAILED


def test_cancel_ends_at_once_what_was_not_sent() -> None:
    pilot = Pilot()
    ending = pilot.flights.stop(pilot.flight, ErrorCode.CANCELLED)
    assert ending is not None
    assert ending.state is JobState.CANCELLED


def test_cancel_of_a_waiting_job_is_sent_once_and_the_end_is_waited_for() -> None:
    pilot = Pilot()
    submitted(pilot)
    assert pilot.flights.stop(pilot.flight, ErrorCode.CANCELLED) is None
    order = pilot.order()
    assert order is not None
    assert order.step is Step.CANCEL
    assert pilot.flights.settle(pilot.flight, order, Cancelling(accepted=True), pilot.now) is None
    assert pilot.order() is None
    pilot.sweep(sees=RemoteStatus.CANCELLED)
    collect = pilot.order()
    assert collect is not None
    assert (collect.step, collect.stop_code) == (Step.COLLECT, ErrorCode.CANCELLED)


def test_a_cancelled_job_that_is_taken_over_is_on_the_agenda() -> None:
    flights = Flights(CONFIG)
    row = job(phase=Phase.WAITING, remote_id=9, remote_status=RemoteStatus.RUNNING, cancel_requested_at=NOW)
    flight = flights.take_over(row, orphaned_s=0.0, now=10.0)
    assert list(flights.due(10.0)) == [flight]


def test_cancel_during_an_uncertain_create_waits_for_the_proof() -> None:
    pilot = Pilot()
    pilot.give(uncertain())
    assert pilot.flights.stop(pilot.flight, ErrorCode.CANCELLED) is None, "a remote job may exist"
    pilot.now += 6
    pilot.sweep(sees=None)
    assert pilot.flights.stop(pilot.flight, ErrorCode.CANCELLED) is not None


def test_a_job_that_queues_for_too_long_is_stopped() -> None:
    pilot = Pilot()
    submitted(pilot)
    pilot.now += 99
    assert pilot.flights.overdue(pilot.flight, pilot.now) is None
    pilot.now += 2
    assert pilot.flights.overdue(pilot.flight, pilot.now) is ErrorCode.QUEUE_TIMEOUT


def test_a_job_whose_wrapper_does_not_end_it_is_stopped_from_outside() -> None:
    pilot = Pilot()
    submitted(pilot, RemoteStatus.RUNNING)
    timeout_s = CONFIG.execution.timeout_ms / 1000
    assert pilot.flights.overdue(pilot.flight, pilot.now + timeout_s) is None
    assert pilot.flights.overdue(pilot.flight, pilot.now + timeout_s + 61) is ErrorCode.JOB_TIMEOUT


def test_a_remote_job_that_leaves_the_list_is_lost_only_after_a_second_look() -> None:
    pilot = Pilot()
    submitted(pilot)
    assert pilot.sweep(sees=None, number=1) == []
    pilot.now += 5
    assert pilot.sweep(sees=None, number=2) == [], "the list may lag"
    pilot.now += 6
    endings = pilot.sweep(sees=None, number=3)
    assert [ending.error.code for ending in endings if ending.error] == [ErrorCode.REMOTE_LOST]


def test_a_remote_job_that_comes_back_into_the_list_is_not_lost() -> None:
    pilot = Pilot()
    submitted(pilot)
    pilot.sweep(sees=None, number=1)
    pilot.now += 20
    pilot.sweep(sees=RemoteStatus.PENDING, number=2)
    pilot.now += 20
    assert pilot.sweep(sees=None, number=3) == []


def test_an_unknown_status_is_not_an_end() -> None:
    pilot = Pilot()
    submitted(pilot)
    pilot.sweep(sees=RemoteStatus("HIBERNATING"))
    assert pilot.flight.phase is Phase.WAITING


def test_a_remote_job_that_cannot_be_stopped_is_said_to_run_on() -> None:
    pilot = Pilot()
    submitted(pilot, RemoteStatus.RUNNING)
    pilot.flights.stop(pilot.flight, ErrorCode.CANCELLED)
    pilot.give(Cancelling(accepted=False))
    pilot.now += CONFIG.camber.sync_timeout_s
    assert pilot.flights.unstoppable(pilot.flight, pilot.now) is None
    ending = pilot.flights.unstoppable(pilot.flight, pilot.now + 61)
    assert ending is not None
    assert ending.error is not None
    assert ending.state is JobState.CANCELLED
    assert "may still run" in ending.error.message
