"""The rules of one running attempt, with time as a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

import pytest
from samples import NOW, config, job, remote

from rythmiq_ray.driver.attempts import (
    MAX_CLEANS,
    MAX_CRASHES,
    MAX_CREATES,
    MAX_FAULTS,
    MAX_INTERNAL_FAULTS,
    UNCLEAR_PATIENCE_S,
    Attempt,
    Attempts,
    Cleaning,
    Collecting,
    Searching,
    Submitting,
    Waiting,
)
from rythmiq_ray.driver.overtaking import ENOUGH
from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import (
    Cancelling,
    Cleaned,
    Collected,
    ErrorInfo,
    Faulted,
    Job,
    JobSpec,
    JobState,
    NotYet,
    Phase,
    RemoteStatus,
    Step,
    StepRequest,
    StepResult,
    Submitted,
    SubmitUncertain,
    TaskLost,
)
from rythmiq_ray.queue import Adopted, Ending

OVERRIDES = (
    "camber.settle_s=5",
    "camber.create_timeout_s=30",
    "retry.base_delay_s=10",
    "execution.queue_timeout_s=100",
)
CONFIG = config(*OVERRIDES)


class Hand:
    """Leads an attempt by hand: every step goes out, the given result comes back, and the clock is an attribute."""

    def __init__(self, its_job: Job | None = None, *overrides: str) -> None:
        self.now = 1000.0
        self.config = config(*OVERRIDES, *overrides)
        self.attempts = Attempts(self.config)
        self.attempt: Attempt = self.attempts.begin(its_job or job(), 0.0)

    def request(self, *, lease_left_s: float = 20.0) -> StepRequest | None:
        request = self.attempts.step(self.attempt, self.now, secrets={}, lease_until=self.now + lease_left_s)
        if request is not None:
            self.attempts.sent(self.attempt, request, self.now)
        return request

    def give(self, result: StepResult) -> Ending | None:
        assert self.request() is not None
        return self.attempts.settle(self.attempt, result, self.now)

    def overdue(self, now: float, *, poll: int | None = None) -> ErrorCode | None:
        """As after a poll that showed it, or another one."""
        return self.attempts.overdue(self.attempt, now, poll=self._last_seen() if poll is None else poll)

    def unstoppable(self, now: float, *, poll: int | None = None) -> Ending | None:
        return self.attempts.unstoppable(self.attempt, now, poll=self._last_seen() if poll is None else poll)

    def _last_seen(self) -> int:
        assert isinstance(self.attempt.state, Waiting)
        return self.attempt.state.seen_in_poll

    def poll(
        self, *, sees: RemoteStatus | None, remote_id: int = 1, number: int = 1, unclear: tuple[int, ...] = ()
    ) -> list[Ending]:
        """A whole poll that sees the attempt's remote job in this state, or does not see it."""
        paths, waiting = self.attempts.searched_paths(), self.attempts.waiting_ids()
        if sees is not None:
            self.attempts.seen(number, remote(self.attempt.job, remote_id, sees), self.now)
        changed = list(self.attempts.polled(number, paths, waiting, self.now, unclear=unclear))
        return [item for item in changed if isinstance(item, Ending)]


def submitted(hand: Hand, status: RemoteStatus = RemoteStatus.PENDING) -> None:
    assert hand.give(Submitted(remote=remote(hand.attempt.job, status=status))) is None


def uncertain() -> SubmitUncertain:
    return SubmitUncertain(error=ErrorInfo(code=ErrorCode.BACKEND_UNAVAILABLE, message="the answer was lost"))


def test_a_job_is_submitted_watched_collected_and_succeeds() -> None:
    hand = Hand()
    submitted(hand)
    assert hand.attempt.phase is Phase.WAITING
    assert hand.request() is None, "while it waits, nothing is to be done for it"
    hand.poll(sees=RemoteStatus.COMPLETED)
    assert hand.attempt.phase is Phase.COLLECTING
    ending = hand.give(
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


def test_after_an_uncertain_create_nothing_is_created_until_a_poll_proves_that_it_is_not_there() -> None:
    hand = Hand()
    hand.give(uncertain())
    assert hand.request() is None
    hand.now += 34.9
    hand.poll(sees=None)
    assert hand.request() is None, "the service may go on for create_timeout_s, and the list lag for settle_s"
    hand.now += 0.2
    assert hand.request() is None, "only a poll proves anything"
    hand.poll(sees=None)
    request = hand.request()
    assert request is not None
    assert request.step is Step.SUBMIT


def test_an_uncertain_create_that_the_list_shows_is_taken_over() -> None:
    hand = Hand()
    hand.give(uncertain())
    hand.poll(sees=RemoteStatus.RUNNING, remote_id=77)
    assert hand.attempt.phase is Phase.WAITING
    assert hand.attempt.job.remote_id == 77
    assert hand.attempts.waiting_ids() == {77}
    assert hand.attempts.searched_paths() == frozenset()


def test_a_poll_begun_before_the_doubt_ended_proves_nothing() -> None:
    hand = Hand()
    hand.give(uncertain())
    paths = hand.attempts.searched_paths()
    begun = hand.now + 1
    hand.now += 60
    list(hand.attempts.polled(1, paths, frozenset(), begun))
    assert hand.request() is None


def test_a_create_that_never_leaves_a_job_ends_the_attempt_after_some_tries() -> None:
    hand = Hand()
    for number in range(MAX_CREATES):
        assert hand.give(uncertain()) is None
        hand.now += 36
        endings = hand.poll(sees=None, number=number)
    assert [ending.error.code for ending in endings if ending.error] == [ErrorCode.CREATE_FAILED]
    assert endings[0].retry_delay_s is not None


def test_a_lost_submit_may_still_create_until_its_lease_ended_and_its_call_timed_out() -> None:
    hand = Hand()
    request = hand.request(lease_left_s=20.0)
    assert request is not None
    hand.attempts.settle(hand.attempt, TaskLost(reason="NodeDiedError", dead=False), hand.now)
    for elapsed_s in (10, 24, 20.9):  # 54.9 s in all, of 20 + 30 + 5
        hand.now += elapsed_s
        hand.poll(sees=None)
        assert hand.request() is None
    hand.now += 0.2
    hand.poll(sees=None)
    assert hand.request() is not None


def test_a_submit_whose_process_is_dead_may_have_sent_its_create_just_before() -> None:
    hand = Hand()
    hand.give(TaskLost(reason="WorkerCrashedError", dead=True))
    hand.now += 34.9
    hand.poll(sees=None)
    assert hand.request() is None
    hand.now += 0.2
    hand.poll(sees=None)
    request = hand.request()
    assert request is not None
    assert request.alone, "if it is this job that kills its task, it takes no others along"


def test_a_taken_over_submit_waits_for_what_its_former_driver_may_have_sent() -> None:
    hand = Hand()
    hand.attempt = hand.attempts.take_over(Adopted(job=job(), orphaned_s=3.0), hand.now)
    assert hand.request() is None
    hand.now += 31.9  # 30 s for the call and 5 s for the list, of which 3 s are over
    hand.poll(sees=None)
    assert hand.request() is None
    hand.now += 0.2
    hand.poll(sees=None)
    assert hand.request() is not None


def test_a_taken_over_job_with_a_remote_id_is_watched_not_submitted() -> None:
    hand = Hand()
    row = job(phase=Phase.COLLECTING, remote_id=9, remote_status=RemoteStatus.COMPLETED)
    hand.attempt = hand.attempts.take_over(Adopted(job=row, orphaned_s=0.0), hand.now)
    assert hand.request() is None
    hand.poll(sees=RemoteStatus.COMPLETED, remote_id=9)
    request = hand.request()
    assert request is not None
    assert request.step is Step.COLLECT


def test_a_lease_window_that_passed_is_tried_again_without_a_second_upload() -> None:
    hand = Hand()
    hand.give(NotYet(reason="the lease is over", uploaded=True))
    request = hand.request()
    assert request is not None
    assert request.uploaded


def test_a_late_sync_is_waited_for_and_then_taken_as_it_is() -> None:
    hand = Hand()
    submitted(hand, RemoteStatus.COMPLETED)
    first = hand.request()
    assert first is not None
    assert not first.final
    hand.attempts.settle(hand.attempt, NotYet(reason="not there", delay_s=1.0), hand.now)
    assert hand.request() is None
    hand.now += CONFIG.camber.sync_timeout_s
    last = hand.request()
    assert last is not None
    assert last.final


@pytest.mark.parametrize(("attempt", "again"), [(1, True), (2, True), (3, False)])
def test_a_failed_command_is_retried_while_attempts_are_left(attempt: int, again: bool) -> None:
    hand = Hand(job(attempt=attempt))
    submitted(hand, RemoteStatus.FAILED)
    error = ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="exit code 1")
    ending = hand.give(
        Collected(state=JobState.FAILED, exit_code=1, error=error, manifest_uri=None, artifacts=(), cost_credits=None)
    )
    assert ending is not None
    assert (ending.retry_delay_s is not None) is again
    assert ending.retryable


def test_a_fault_that_is_nobodys_is_tried_again_and_ends_the_attempt_only_after_many() -> None:
    hand = Hand()
    fault = Faulted(error=ErrorInfo(code=ErrorCode.STORE_UNAVAILABLE, message="503"))
    for _ in range(MAX_FAULTS - 1):
        assert hand.give(fault) is None
        assert hand.request() is None, "there is a back-off"
        hand.now += 61
    ending = hand.give(fault)
    assert ending is not None
    assert ending.error is not None
    assert ending.error.code is ErrorCode.PHASE_FAILED
    assert ending.keep_s is None, "nothing ran that could have left something"


def test_an_account_that_is_full_is_waited_for_however_long_it_takes() -> None:
    hand = Hand()
    for _ in range(3 * MAX_FAULTS):
        assert hand.give(Faulted(error=ErrorInfo(code=ErrorCode.BACKEND_BUSY, message="429"))) is None
        hand.now += 61


def test_a_confirmed_outage_counts_against_no_job() -> None:
    hand = Hand()
    fault = Faulted(error=ErrorInfo(code=ErrorCode.BACKEND_UNAVAILABLE, message="503"))
    for _ in range(3 * MAX_FAULTS):
        assert hand.give(fault) is None
        hand.attempts.outage_over()


def test_a_job_whose_task_dies_again_and_again_is_ended() -> None:
    hand = Hand()
    submitted(hand, RemoteStatus.COMPLETED)
    for _ in range(MAX_CRASHES - 1):
        assert hand.give(TaskLost(reason="OutOfMemoryError", dead=True)) is None
        hand.now += 2
    ending = hand.give(TaskLost(reason="OutOfMemoryError", dead=True))
    assert ending is not None
    assert ending.error is not None
    assert (ending.error.code, ending.keep_s) == (ErrorCode.ARTIFACTS_NOT_STORED, CONFIG.camber.keep_unstored_s)


def test_cancel_ends_at_once_what_was_not_sent() -> None:
    hand = Hand()
    ending = hand.attempts.stop(hand.attempt, ErrorCode.CANCELLED)
    assert ending is not None
    assert ending.state is JobState.CANCELLED


def test_cancel_of_a_waiting_job_is_sent_once_and_the_end_is_waited_for() -> None:
    hand = Hand()
    submitted(hand)
    assert hand.attempts.stop(hand.attempt, ErrorCode.CANCELLED) is None
    request = hand.request()
    assert request is not None
    assert request.step is Step.CANCEL
    assert hand.attempts.settle(hand.attempt, Cancelling(accepted=True), hand.now) is None
    assert hand.request() is None
    hand.poll(sees=RemoteStatus.CANCELLED)
    collect = hand.request()
    assert collect is not None
    assert (collect.step, collect.stop_code) == (Step.COLLECT, ErrorCode.CANCELLED)


def test_a_cancelled_job_that_is_taken_over_is_on_the_agenda() -> None:
    attempts = Attempts(CONFIG)
    row = job(phase=Phase.WAITING, remote_id=9, remote_status=RemoteStatus.RUNNING, cancel_requested_at=NOW)
    attempt = attempts.take_over(Adopted(job=row, orphaned_s=0.0), 10.0)
    assert list(attempts.due(10.0)) == [attempt]


def test_cancel_during_an_uncertain_create_waits_for_the_proof() -> None:
    hand = Hand()
    hand.give(uncertain())
    assert hand.attempts.stop(hand.attempt, ErrorCode.CANCELLED) is None, "a remote job may exist"
    hand.now += 36
    hand.poll(sees=None)
    assert hand.attempts.stop(hand.attempt, ErrorCode.CANCELLED) is not None


def test_a_job_that_queues_for_too_long_is_stopped() -> None:
    hand = Hand()
    submitted(hand)
    hand.now += 99
    assert hand.overdue(hand.now) is None
    hand.now += 2
    assert hand.overdue(hand.now) is ErrorCode.QUEUE_TIMEOUT


def test_a_job_whose_wrapper_does_not_end_it_is_stopped_from_outside() -> None:
    hand = Hand()
    submitted(hand, RemoteStatus.RUNNING)
    timeout_s = CONFIG.execution.timeout_ms / 1000
    assert hand.overdue(hand.now + timeout_s) is None
    assert hand.overdue(hand.now + timeout_s + 61) is ErrorCode.JOB_TIMEOUT


def test_a_remote_job_that_leaves_the_list_is_lost_only_after_a_second_look() -> None:
    hand = Hand()
    submitted(hand)
    assert hand.poll(sees=None, number=1) == []
    hand.now += 5
    assert hand.poll(sees=None, number=2) == [], "the list may lag"
    hand.now += 6
    assert hand.poll(sees=None, number=3) == []
    request = hand.request()
    assert request is not None, "what it left may still be in its path"
    assert (request.step, request.stop_code) == (Step.COLLECT, ErrorCode.REMOTE_LOST)


def test_a_remote_job_that_comes_back_into_the_list_is_not_lost() -> None:
    hand = Hand()
    submitted(hand)
    hand.poll(sees=None, number=1)
    hand.now += 20
    hand.poll(sees=RemoteStatus.PENDING, number=2)
    hand.now += 20
    assert hand.poll(sees=None, number=3) == []


def test_an_unknown_status_is_not_an_end() -> None:
    hand = Hand()
    submitted(hand)
    hand.poll(sees=RemoteStatus("HIBERNATING"))
    assert hand.attempt.phase is Phase.WAITING


def test_a_remote_job_that_cannot_be_stopped_is_said_to_run_on() -> None:
    hand = Hand()
    submitted(hand, RemoteStatus.RUNNING)
    hand.attempts.stop(hand.attempt, ErrorCode.CANCELLED)
    hand.give(Cancelling(accepted=False))
    hand.now += CONFIG.camber.sync_timeout_s
    assert hand.unstoppable(hand.now) is None
    ending = hand.unstoppable(hand.now + 61)
    assert ending is not None
    assert ending.error is not None
    assert ending.state is JobState.CANCELLED
    assert "may still run" in ending.error.message


# ---- Nothing that was paid for is thrown away ------------------------------------------------------------------------


def collected(state: JobState = JobState.SUCCEEDED, error: ErrorInfo | None = None) -> Collected:
    exit_code = 0 if error is None else None
    return Collected(
        state=state, exit_code=exit_code, error=error, manifest_uri="s3://b/m", artifacts=(), cost_credits=None
    )


def test_what_the_store_refuses_for_one_job_alone_is_kept_and_not_paid_for_again() -> None:
    hand = Hand()
    submitted(hand, RemoteStatus.COMPLETED)
    fault = Faulted(error=ErrorInfo(code=ErrorCode.STORE_UNAVAILABLE, message="AccessDenied"))
    ending = None
    while ending is None:
        ending = hand.give(fault)
        assert hand.attempt.wait_reason == "store_unavailable: AccessDenied"
        hand.now += 61
    assert ending.error is not None
    assert ending.error.code is ErrorCode.ARTIFACTS_NOT_STORED
    assert "AccessDenied" in ending.error.message
    assert (ending.retry_delay_s, ending.keep_s) == (None, CONFIG.camber.keep_unstored_s)
    hand.attempts.written(hand.attempt)
    assert hand.attempts.cleaning == 0, "its path stays"


def test_a_path_goes_once_its_artifacts_are_stored_and_the_row_says_so() -> None:
    hand = Hand()
    submitted(hand, RemoteStatus.COMPLETED)
    assert hand.give(collected()) is not None
    assert hand.attempts.cleaning == 0, "the end is not written yet"
    hand.attempts.written(hand.attempt)
    assert len(hand.attempts) == 0
    (cleaning,) = hand.attempts.due(hand.now)
    assert isinstance(cleaning.state, Cleaning)
    hand.attempt = cleaning
    request = hand.request()
    assert request is not None
    assert request.step is Step.CLEAN
    hand.attempts.settle(cleaning, Cleaned(), hand.now)
    assert hand.attempts.cleaning == 0


def test_a_path_that_cannot_be_removed_is_left_to_a_later_round() -> None:
    hand = Hand()
    hand.attempts.remove(hand.attempt)
    hand.attempts.clean(hand.attempt.job)
    for _ in range(MAX_CLEANS):
        (cleaning,) = (attempt for attempt in hand.attempts.due(hand.now) if isinstance(attempt.state, Cleaning))
        hand.attempt = cleaning
        hand.give(Faulted(error=ErrorInfo(code=ErrorCode.BACKEND_UNAVAILABLE, message="503")))
    assert hand.attempts.cleaning == 0


@pytest.mark.parametrize("status", [RemoteStatus.RUNNING, RemoteStatus.PENDING])
def test_the_path_of_a_remote_job_that_may_still_run_is_kept(status: RemoteStatus) -> None:
    hand = Hand()
    submitted(hand, status)
    hand.attempts.stop(hand.attempt, ErrorCode.CANCELLED)
    hand.give(Cancelling(accepted=False))
    ending = hand.unstoppable(hand.now + 1e6)
    assert ending is not None
    assert ending.keep_s is not None


def test_what_was_collected_by_nobody_is_collected_again_without_a_remote_job() -> None:
    row = job(phase=Phase.COLLECTING, remote_id=9, remote_status=RemoteStatus.COMPLETED)
    hand = Hand(row)
    assert isinstance(hand.attempt.state, Waiting), "the list tells when it ran"
    hand.poll(sees=None, number=1)
    hand.now += 11
    hand.poll(sees=None, number=2)
    request = hand.request()
    assert request is not None, "the list has forgotten it, and its path has not"
    assert (request.step, request.stop_code) == (Step.COLLECT, None)
    assert request.remote is not None
    assert request.remote.status is RemoteStatus.COMPLETED


def test_a_late_sync_is_waited_for_as_long_as_it_gets_on() -> None:
    hand = Hand()
    submitted(hand, RemoteStatus.COMPLETED)
    patience_s = CONFIG.camber.sync_timeout_s
    for files in range(1, 6):
        request = hand.request()
        assert request is not None
        assert not request.final, "more has arrived since"
        hand.attempts.settle(hand.attempt, NotYet(reason="not there", seen=(files, 0)), hand.now)
        hand.now += patience_s - 1
    hand.give(NotYet(reason="not there", seen=(5, 0)))
    hand.now += 2
    request = hand.request()
    assert request is not None
    assert request.final


# ---- Waiting is not failing ------------------------------------------------------------------------------------------


def test_a_job_that_waits_at_the_backend_is_left_alone_unless_the_user_gave_a_time() -> None:
    hand = Hand(None, "execution.queue_timeout_s=null")
    submitted(hand)
    assert hand.overdue(hand.now + 30 * 86400) is None


def begun_later(hand: Hand, count: int, *, size: str = "xsmall") -> None:
    """Other jobs are submitted now, and start."""
    for number in range(count):
        other = hand.attempts.begin(job(spec=JobSpec(command="x", node_size=size)), hand.now)
        request = hand.attempts.step(other, hand.now, secrets={}, lease_until=hand.now + 20)
        assert request is not None
        hand.attempts.sent(other, request, hand.now)
        running = remote(other.job, 100 + number, RemoteStatus.RUNNING)
        hand.attempts.settle(other, Submitted(remote=running), hand.now)


@pytest.mark.parametrize(
    ("count", "size", "waited_s", "overtaken"),
    [
        (ENOUGH, "xsmall", 301, True),
        (ENOUGH - 1, "xsmall", 301, False),
        (ENOUGH, "small", 301, False),
        (9, "xsmall", 299, False),
    ],
)
def test_a_job_that_enough_later_ones_of_its_kind_overtake_is_begun_anew(
    count: int, size: str, waited_s: float, overtaken: bool
) -> None:
    hand = Hand(None, "execution.queue_timeout_s=null", "execution.overtaken_after_s=300")
    submitted(hand)
    since = hand.now
    hand.now += 10
    begun_later(hand, count, size=size)
    expected = ErrorCode.QUEUE_TIMEOUT if overtaken else None
    assert hand.overdue(since + waited_s) is expected


@pytest.mark.parametrize("code", [ErrorCode.QUEUE_TIMEOUT, ErrorCode.REMOTE_CANCELLED])
def test_an_attempt_that_never_ran_burns_none(code: ErrorCode) -> None:
    hand = Hand(job(attempt=3, max_attempts=3))
    submitted(hand)
    hand.poll(sees=RemoteStatus.CANCELLED)
    ending = hand.give(collected(JobState.FAILED, ErrorInfo(code=code, message="")))
    assert ending is not None
    assert ending.free
    assert ending.retry_delay_s is not None, "it was the last attempt, and does not count"


def test_an_attempt_that_ran_and_was_cancelled_by_the_platform_counts() -> None:
    hand = Hand(job(attempt=3, max_attempts=3))
    submitted(hand, RemoteStatus.RUNNING)
    seen = replace(remote(hand.attempt.job, 1, RemoteStatus.CANCELLED), started_at=NOW)
    hand.attempts.seen(1, seen, hand.now)
    ending = hand.give(collected(JobState.FAILED, ErrorInfo(code=ErrorCode.REMOTE_CANCELLED, message="")))
    assert ending is not None
    assert (ending.free, ending.retry_delay_s) == (False, None)


def test_free_attempts_do_not_count() -> None:
    row = job(attempt=5, max_attempts=3, free_attempts=3)
    hand = Hand(row)
    submitted(hand, RemoteStatus.FAILED)
    ending = hand.give(collected(JobState.FAILED, ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="")))
    assert ending is not None
    assert ending.retry_delay_s is not None


# ---- Take-over ------------------------------------------------------------------------------------------------------


def test_a_time_out_goes_on_at_a_take_over() -> None:
    attempts = Attempts(CONFIG)
    row = job(phase=Phase.WAITING, remote_id=9, remote_status=RemoteStatus.RUNNING)
    timeout_s = CONFIG.execution.timeout_ms / 1000
    attempt = attempts.take_over(Adopted(job=row, orphaned_s=0.0, running_s=timeout_s, submitted_s=timeout_s), 1e6)
    attempts.seen(1, remote(row, 9, RemoteStatus.RUNNING), 1e6)
    assert attempts.overdue(attempt, 1e6 + 59, poll=1) is None
    assert attempts.overdue(attempt, 1e6 + 61, poll=1) is ErrorCode.JOB_TIMEOUT


def test_what_is_searched_for_is_as_old_as_its_claim() -> None:
    attempts = Attempts(CONFIG)
    attempts.take_over(Adopted(job=job(), orphaned_s=1.0, age_s=500.0), 1e6)
    assert attempts.search_age_s(1e6 + 5) == 505.0


# ---- One odd thing --------------------------------------------------------------------------------------------------


def test_a_job_about_which_there_is_no_clear_answer_is_waited_for_long_and_said_to_be_so() -> None:
    hand = Hand()
    submitted(hand)
    hand.poll(sees=None, number=1, unclear=(1,))
    assert hand.attempt.wait_reason is not None
    hand.now += UNCLEAR_PATIENCE_S - 1
    hand.poll(sees=None, number=2, unclear=(1,))
    assert isinstance(hand.attempt.state, Waiting)
    hand.now += 2
    hand.poll(sees=None, number=3, unclear=(1,))
    assert isinstance(hand.attempt.state, Collecting)


def test_a_second_remote_job_on_one_path_is_a_stray_and_the_first_stays() -> None:
    hand = Hand()
    submitted(hand)
    late = remote(hand.attempt.job, 2, RemoteStatus.RUNNING)
    stray = hand.attempts.stray(late)
    assert stray is not None
    assert stray.remote_id == 2
    assert hand.attempts.seen(1, late, hand.now) is None
    assert hand.attempts.waiting_ids() == {1}
    assert hand.attempts.stray(remote(hand.attempt.job, 1)) is None
    assert hand.attempts.stray(replace(late, status=RemoteStatus.COMPLETED)) is None


def test_a_result_that_comes_after_the_end_changes_nothing() -> None:
    hand = Hand()
    assert hand.request() is not None
    hand.attempts.give_up(hand.attempt, ErrorInfo(code=ErrorCode.INTERNAL, message="a fault"))
    assert hand.attempts.settle(hand.attempt, Submitted(remote=remote(hand.attempt.job)), hand.now) is None
    assert hand.attempt.phase is None


def test_a_fault_of_ours_gives_up_nothing_that_may_be_paid_for() -> None:
    hand = Hand()
    assert hand.request() is not None
    assert hand.attempts.internal_fault(hand.attempt, "KeyError", hand.now) is None, "its result is still to come"
    hand.attempt.request = None
    assert hand.attempts.internal_fault(hand.attempt, "KeyError", hand.now) is None
    assert hand.attempts.searched_paths() == {hand.attempt.job.remote_path}, "a create may have been sent"
    hand.poll(sees=RemoteStatus.RUNNING, remote_id=77)
    assert hand.attempts.internal_fault(hand.attempt, "KeyError", hand.now) is None
    hand.poll(sees=RemoteStatus.COMPLETED, remote_id=77)
    assert hand.attempt.phase is Phase.COLLECTING
    ending = hand.attempts.internal_fault(hand.attempt, "KeyError", hand.now)
    assert ending is not None
    assert ending.error is not None
    assert ending.error.code is ErrorCode.ARTIFACTS_NOT_STORED
    assert ending.collect_again


def test_a_fault_of_ours_ends_what_was_not_begun_and_what_has_many() -> None:
    hand = Hand()
    ending = hand.attempts.internal_fault(hand.attempt, "KeyError", hand.now)
    assert ending is not None
    assert ending.error is not None
    assert ending.error.code is ErrorCode.INTERNAL
    hand = Hand()
    submitted(hand)
    endings = [hand.attempts.internal_fault(hand.attempt, "KeyError", hand.now) for _ in range(MAX_INTERNAL_FAULTS)]
    assert [ending is None for ending in endings] == [True] * (MAX_INTERNAL_FAULTS - 1) + [False]


def test_each_phase_is_of_its_type() -> None:
    hand = Hand()
    assert isinstance(hand.attempt.state, Submitting)
    hand.give(uncertain())
    assert isinstance(hand.attempt.state, Searching)
    assert hand.attempt.phase is Phase.SUBMITTING


def test_of_two_rows_that_name_one_remote_job_the_list_shows_whose_it_is_and_the_other_is_lost() -> None:
    hand = Hand()
    other = job(remote_id=1)
    hand.attempts.begin(other, hand.now)
    submitted(hand)
    hand.attempts.take_over(Adopted(job=other, orphaned_s=0.0), hand.now)
    assert hand.attempts.find(remote(hand.attempt.job)) is hand.attempt
    for number in range(1, 4):
        hand.poll(sees=RemoteStatus.RUNNING, number=number)
        hand.now += 6
    assert hand.attempt.phase is Phase.WAITING
    lost = hand.attempts.of_job(other.job_id)
    assert lost is not None
    assert lost.stop is not None
    assert lost.stop.code is ErrorCode.REMOTE_LOST


@pytest.mark.parametrize("step", ["_not_created", "_not_seen"])
def test_a_fault_about_one_job_at_the_end_of_a_poll_keeps_it_from_no_other(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    attempts = Attempts(CONFIG)
    jobs = [job() for _ in range(3)]
    for each in jobs:
        attempt = attempts.begin(each, 0.0)
        request = attempts.step(attempt, 1.0, secrets={}, lease_until=20.0)
        assert request is not None
        attempts.sent(attempt, request, 1.0)
        is_known = step == "_not_seen"
        result = Submitted(remote=remote(each, jobs.index(each) + 1)) if is_known else uncertain()
        attempts.settle(attempt, result, 1.0)
    original: Callable[..., Iterator[object]] = getattr(Attempts, step)
    met: list[UUID] = []
    failed: list[UUID] = []

    def faulty(self: Attempts, attempt: Attempt, *args: object, **kwargs: object) -> Iterator[object]:
        met.append(attempt.job.job_id)
        if attempt.job.job_id == jobs[0].job_id:
            raise KeyError
        yield from original(self, attempt, *args, **kwargs)

    @contextmanager
    def concerning(about: Job) -> Iterator[None]:
        try:
            yield
        except KeyError:
            failed.append(about.job_id)

    monkeypatch.setattr(Attempts, step, faulty)
    list(attempts.polled(1, attempts.searched_paths(), attempts.waiting_ids(), 100.0, concerning=concerning))
    assert failed == [jobs[0].job_id]
    assert sorted(met) == sorted(each.job_id for each in jobs)


# ---- What nobody has looked at is not judged -----------------------------------------------------------------------


@pytest.mark.parametrize("status", [RemoteStatus.PENDING, RemoteStatus.RUNNING])
def test_a_job_that_a_poll_did_not_show_is_not_judged_by_it(status: RemoteStatus) -> None:
    hand = Hand()
    submitted(hand, status)
    hand.poll(sees=status, number=7)
    later = hand.now + 1e6
    assert hand.overdue(later, poll=8) is None, "it may have ended in an outage that nobody could see through"
    assert hand.overdue(later, poll=7) is not None
    hand.attempts.stop(hand.attempt, ErrorCode.CANCELLED)
    hand.give(Cancelling(accepted=True))
    assert hand.unstoppable(later, poll=8) is None
    assert hand.unstoppable(later, poll=7) is not None


def test_what_was_left_out_keeps_the_path_however_the_job_ended() -> None:
    hand = Hand()
    submitted(hand, RemoteStatus.FAILED)
    error = ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="exit code 1")
    ending = hand.give(replace(collected(JobState.FAILED, error), unstored=True))
    assert ending is not None
    assert ending.keep_s == CONFIG.camber.keep_unstored_s
    assert not ending.collect_again, "another attempt is made"
    hand.attempts.written(hand.attempt)
    assert hand.attempts.cleaning == 0


def test_a_backend_that_cannot_be_told_to_cancel_burns_no_attempt_of_a_job_that_waits() -> None:
    hand = Hand(job(attempt=3, max_attempts=3))
    submitted(hand)
    hand.attempts.stop(hand.attempt, ErrorCode.QUEUE_TIMEOUT)
    fault = Faulted(error=ErrorInfo(code=ErrorCode.BACKEND_UNAVAILABLE, message="500"))
    for _ in range(MAX_FAULTS):
        assert hand.give(fault) is None
        hand.now += 61
    assert hand.request() is None, "it was asked often enough"
    ending = hand.unstoppable(hand.now + 1e6)
    assert ending is not None
    assert ending.free
    assert ending.retry_delay_s is not None


def test_outputs_of_a_job_that_the_driver_stopped_have_the_time_that_others_have() -> None:
    hand = Hand()
    submitted(hand, RemoteStatus.RUNNING)
    hand.attempts.stop(hand.attempt, ErrorCode.JOB_TIMEOUT)
    hand.give(Cancelling(accepted=True))
    hand.poll(sees=RemoteStatus.CANCELLED)
    hand.now += CONFIG.camber.sync_timeout_s - 1
    request = hand.request()
    assert request is not None
    assert not request.final


def test_an_end_under_a_name_that_is_not_known_is_an_end() -> None:
    hand = Hand()
    submitted(hand, RemoteStatus.RUNNING)
    odd = replace(remote(hand.attempt.job, 1, RemoteStatus("EVICTED")), started_at=NOW, finished_at=NOW)
    hand.attempts.seen(1, odd, hand.now)
    assert isinstance(hand.attempt.state, Collecting)


def test_a_create_that_is_put_off_is_said_to_be_so() -> None:
    hand = Hand()
    hand.give(NotYet(reason="the lease under which it was sent has ended", delay_s=1.0))
    assert hand.attempt.wait_reason == "its create: the lease under which it was sent has ended"
