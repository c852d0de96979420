"""The state machine of an attempt: each phase a type, and what each event means. No I/O and no clock.

An attempt is *submitting* until its remote job is known (*searching*, while a create may have happened whose answer was
lost), *waiting* until that has ended, *collecting* until its artifacts are stored, *ended* until that is written, and
*cleaning* until its path is gone. Times are seconds of :mod:`rythmiq_ray.clock`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from typing import Final
from uuid import UUID

from rythmiq_ray.config import Config
from rythmiq_ray.driver.overtaking import Kind, Overtaking
from rythmiq_ray.errors import ErrorCode, Verdict
from rythmiq_ray.model import (
    Cancelling,
    Cleaned,
    Collected,
    ErrorInfo,
    Faulted,
    Job,
    JobState,
    NotYet,
    Phase,
    RemoteJob,
    RemoteStatus,
    Step,
    StepRequest,
    StepResult,
    Submitted,
    SubmitUncertain,
    TaskLost,
)
from rythmiq_ray.queue import Adopted, Ending
from rythmiq_ray.retry import retry_delay_s, retryable
from rythmiq_ray.secret import Secret

MAX_CRASHES: Final = 5
"""Lost tasks in a row before the attempt is ended: by then it is this job that kills them."""
MAX_INTERNAL_FAULTS: Final = 5
"""Faults of our own about one attempt that may have a remote job, before it is ended."""
MAX_FAULTS: Final = 14
"""Faults of the backend or the store in a row, none of them a confirmed outage, before the attempt is ended: about two
minutes. A backend that has no room for more (429) is waited for however long it takes."""
MAX_CREATES: Final = 5
"""Creates of which the list shows nothing before the attempt is ended."""
MAX_CLEANS: Final = 3
"""Tries to remove a path before it is left to a later round, anybody's."""
RETRY_STEP_S: Final = 1.0
"""Before a step is run again that was lost or met a fault; it doubles up to RETRY_STEP_MAX_S."""
RETRY_STEP_MAX_S: Final = 15.0
TIMEOUT_MARGIN_S: Final = 60.0
"""How long after its time-out a job's wrapper may still be at it before the driver ends it from outside."""
UNCLEAR_PATIENCE_S: Final = 600.0
"""A remote job that the list does not show and that answers oddly when asked for counts as lost after this."""


@dataclass(slots=True)
class Submitting:
    """Its remote job is to be created."""

    uploaded: bool = False
    creates: int = 0
    """Creates so far that left no remote job."""
    create_until: float = 0.0
    """Up to this the task that was sent last may still send a create."""


@dataclass(slots=True)
class Searching:
    """A create may have happened: the remote list tells."""

    submitting: Submitting
    until: float
    """Only a poll begun after this proves that there is no remote job."""


@dataclass(slots=True)
class Waiting:
    """The remote job exists and has not ended."""

    remote: RemoteJob
    since: float
    running_since: float | None = None
    """When it was first seen to run."""
    seen_in_poll: int = -1
    missing_since: float | None = None


@dataclass(slots=True)
class Collecting:
    """The remote job has ended; what it left goes to the store."""

    remote: RemoteJob
    ran: bool
    """Whether it ever ran, as far as is known."""
    since: float
    changed_at: float
    """When its path was last seen to change: the patience with a late sync counts from here."""
    seen: tuple[int, int] | None = None
    """Files and bytes that it held then."""


@dataclass(slots=True)
class Ended:
    """How it ended is being written."""

    clean: bool
    """Whether its path may go after that."""


@dataclass(slots=True)
class Cleaning:
    """Its end is written, and its path is to be removed."""

    tries: int = 0


_PHASES: Final[Mapping[type, Phase]] = {
    Submitting: Phase.SUBMITTING,
    Searching: Phase.SUBMITTING,
    Waiting: Phase.WAITING,
    Collecting: Phase.COLLECTING,
}


@dataclass(slots=True)
class Stop:
    """Its end was asked for."""

    code: ErrorCode
    """cancelled, queue_timeout, job_timeout; or remote_lost, where there is nothing left to stop."""
    sent_at: float | None = None
    """When the remote job was told."""


@dataclass(slots=True)
class Attempt:
    """One attempt of a job, in this driver's hands."""

    job: Job
    state: Submitting | Searching | Waiting | Collecting | Ended | Cleaning
    began_at: float
    """No create of this attempt was sent before this."""
    entered_at: float | None = None
    """When it came into its phase; None where another driver had it then."""
    request: StepRequest | None = None
    """The step that the cluster has; the result of any other says nothing about what is under way."""
    requested_at: float = 0.0
    due_at: float = 0.0
    """Not before this its next step is sent."""
    alone: bool = False
    """Its next step goes in a Ray task of its own, which will stream ``alone_bytes``."""
    alone_bytes: int = 0
    begun_before: bool = False
    """A lost task or another driver may have left something half done."""
    crashes: int = 0
    faults: int = 0
    internal_faults: int = 0
    """Faults of our own about it."""
    stop: Stop | None = None
    wait_reason: str | None = None
    """Why it does not get on, in words for the row; None while it does."""
    waits_since: float = 0.0

    @property
    def key(self) -> tuple[UUID, int]:
        return self.job.job_id, self.job.attempt

    @property
    def phase(self) -> Phase | None:
        """The phase as the row has it; None once it has ended."""
        return _PHASES.get(type(self.state))

    @property
    def remote(self) -> RemoteJob | None:
        return self.state.remote if isinstance(self.state, Waiting | Collecting) else None


@dataclass(frozen=True, slots=True)
class _Indexes:
    by_remote_id: dict[int, Attempt] = field(default_factory=dict)
    by_path: dict[str, Attempt] = field(default_factory=dict)
    searched: dict[str, Attempt] = field(default_factory=dict)
    """By path, those whose create is uncertain."""


class Attempts:
    """All attempts in a driver's hands, and the only place that changes their state."""

    def __init__(
        self,
        config: Config,
        *,
        on_phase_ended: Callable[[Phase, float], None] = lambda _phase, _seconds: None,
        on_started: Callable[[float, float], None] = lambda _submitted_at, _now: None,
    ) -> None:
        """``on_phase_ended`` is told of each phase that an attempt completed here, and of its seconds; ``on_started``
        of each remote job of this driver's that was seen to run: when it was created, and when it was seen.
        """
        self._config = config
        self._on_phase_ended = on_phase_ended
        self._on_started = on_started
        self._overtaking = Overtaking(config.execution.overtaken_after_s)
        self._running: dict[UUID, Attempt] = {}
        self._cleaning: dict[tuple[UUID, int], Attempt] = {}
        self._index = _Indexes()
        self._agenda: list[tuple[float, int, Attempt]] = []
        self._entries = count()

    # ----------------------------------------------------------------------------------------------------- look up

    def __len__(self) -> int:
        """How many have not ended, or whose end is not written yet."""
        return len(self._running)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(self._running.values())

    @property
    def cleaning(self) -> int:
        """How many paths are being removed."""
        return len(self._cleaning)

    def of_job(self, job_id: UUID) -> Attempt | None:
        """The running attempt of a job."""
        return self._running.get(job_id)

    def get(self, job_id: UUID, number: int) -> Attempt | None:
        """This attempt of a job, whether it runs or is being cleaned."""
        attempt = self._running.get(job_id)
        if attempt is not None and attempt.job.attempt == number:
            return attempt
        return self._cleaning.get((job_id, number))

    def find(self, remote: RemoteJob) -> Attempt | None:
        """The running attempt that a remote job is of, by its id or by its path; first by both, as a row may lie."""
        there = self._index.by_path.get(remote.path)
        if there is not None and there.job.remote_id == remote.remote_id:
            return there
        return self._index.by_remote_id.get(remote.remote_id) or there

    def due(self, now: float) -> Iterator[Attempt]:
        """Those for which something may be to do, each once; one that only waits costs nothing here."""
        while self._agenda and self._agenda[0][0] <= now:
            _, _, attempt = heappop(self._agenda)
            if self.get(*attempt.key) is attempt:
                yield attempt

    def next_due(self) -> float | None:
        """When :meth:`due` has something next."""
        return self._agenda[0][0] if self._agenda else None

    def waiting_ids(self) -> frozenset[int]:
        """Remote ids whose status is wanted."""
        return frozenset(attempt.state.remote.remote_id for attempt in self if isinstance(attempt.state, Waiting))

    def searched_paths(self) -> frozenset[str]:
        """Paths of which the list has to tell whether a remote job exists."""
        return frozenset(self._index.searched)

    def paths(self) -> frozenset[str]:
        """Of all that may have a remote job."""
        return frozenset(self._index.by_path)

    def search_age_s(self, now: float) -> float:
        """No create that is searched for was sent longer ago than this."""
        return max((now - attempt.began_at for attempt in self._index.searched.values()), default=0.0)

    # ------------------------------------------------------------------------------------------------ come and go

    def begin(self, job: Job, now: float) -> Attempt:
        """An attempt that was claimed just now; one that was re-opened goes on with collecting."""
        if job.remote_id is not None:
            return self.take_over(Adopted(job=job, orphaned_s=0.0), now)
        attempt = Attempt(job=job, state=Submitting(), began_at=now, entered_at=now)
        self._add(attempt)
        return attempt

    def take_over(self, adopted: Adopted, now: float) -> Attempt:
        """An attempt of another driver, in the phase it is in.

        One that was submitting may have been created up to the end of that driver's lease, by a call that took its
        time, in a list that lags: until all that has passed the list is searched, and nothing is created.
        """
        job = adopted.job
        attempt = Attempt(job=job, state=Submitting(), began_at=now - adopted.age_s, begun_before=True)
        self._add(attempt)
        if job.cancel_requested_at is not None:
            attempt.stop = Stop(ErrorCode.CANCELLED)
        if job.remote_id is None:
            self._search(attempt, max(now, self._settled_at(now - adopted.orphaned_s)))
        else:
            # What was being collected is watched first too: the list tells how it ended, which no row does.
            remote = RemoteJob(remote_id=job.remote_id, status=RemoteStatus.UNKNOWN, path=job.remote_path or "")
            running_since = None if adopted.running_s is None else now - adopted.running_s
            attempt.state = Waiting(remote=remote, since=now - adopted.submitted_s, running_since=running_since)
            self._index.by_remote_id[job.remote_id] = attempt
        return attempt

    def clean(self, job: Job) -> None:
        """Has the path of an attempt removed whose end is written, this driver's or any other's."""
        key = (job.job_id, job.attempt)
        if job.remote_path is None or key in self._cleaning:
            return
        attempt = Attempt(job=job, state=Cleaning(), began_at=0.0)
        self._cleaning[key] = attempt
        self.wake(attempt)

    def written(self, attempt: Attempt) -> None:
        """Its end is in the table: what is left to do is to remove its path, where that may go."""
        self.remove(attempt)
        if isinstance(attempt.state, Ended) and attempt.state.clean:
            self.clean(attempt.job)

    def remove(self, attempt: Attempt) -> None:
        """Forgets it."""
        if isinstance(attempt.state, Cleaning):
            self._cleaning.pop(attempt.key, None)
            return
        if self._running.get(attempt.job.job_id) is attempt:
            del self._running[attempt.job.job_id]
        path = attempt.job.remote_path or ""
        for index in (self._index.by_path, self._index.searched):
            if index.get(path) is attempt:
                del index[path]
        remote_id = attempt.job.remote_id
        if remote_id is not None and self._index.by_remote_id.get(remote_id) is attempt:
            del self._index.by_remote_id[remote_id]

    def clear(self) -> None:
        """Forgets all that runs; what is being cleaned goes on, for whoever removes a path does no harm."""
        self._running.clear()
        self._index = _Indexes()

    def wake(self, attempt: Attempt) -> None:
        """Puts it on the agenda for its ``due_at``; one entry too many does no harm."""
        heappush(self._agenda, (attempt.due_at, next(self._entries), attempt))

    # -------------------------------------------------------------------------------------------- steps and results

    def step(
        self, attempt: Attempt, now: float, *, secrets: Mapping[str, Secret], lease_until: float
    ) -> StepRequest | None:
        """What is to be done for it now; None while there is nothing but to wait."""
        if attempt.request is not None or now < attempt.due_at:
            return None
        job, state = attempt.job, attempt.state
        match state:
            case Submitting():
                state.create_until = lease_until
                return StepRequest(
                    step=Step.SUBMIT,
                    job=job,
                    secrets=secrets,
                    create_by=lease_until,
                    uploaded=state.uploaded,
                    alone=attempt.alone,
                )
            case Waiting() if attempt.stop is not None and attempt.stop.sent_at is None:
                return StepRequest(step=Step.CANCEL, job=job)
            case Collecting():
                camber = self._config.camber
                cancelled = attempt.stop is not None and attempt.stop.code is ErrorCode.CANCELLED
                patience_s = camber.settle_s if cancelled else camber.sync_timeout_s
                return StepRequest(
                    step=Step.COLLECT,
                    job=job,
                    remote=state.remote,
                    stop_code=None if attempt.stop is None else attempt.stop.code,
                    final=now - state.changed_at >= patience_s,
                    alone=attempt.alone,
                    again=attempt.begun_before,
                    seen=state.seen,
                    growing_s=state.changed_at - state.since,
                    quiet_s=now - state.changed_at,
                )
            case Cleaning():
                return StepRequest(step=Step.CLEAN, job=job)
        return None

    def sent(self, attempt: Attempt, request: StepRequest, now: float) -> None:
        """The cluster has its step."""
        attempt.request, attempt.requested_at = request, now

    def withdrawn(self, attempt: Attempt) -> None:
        """The cluster gave its step back, not begun."""
        attempt.request = None
        self.wake(attempt)

    def settle(self, attempt: Attempt, result: StepResult, now: float) -> Ending | None:
        """Takes the result of the step that was sent; returns how the attempt ended, if it did."""
        request, attempt.request = attempt.request, None
        if isinstance(attempt.state, Cleaning):
            self._cleaned(attempt, attempt.state, result)
            return None
        if isinstance(attempt.state, Ended):
            return None
        if not isinstance(result, TaskLost | Faulted):
            attempt.crashes = attempt.faults = 0
            self._waits(attempt, None, now)
        ending = self._settled(attempt, request, result, now)
        self.wake(attempt)
        return ending

    def _settled(self, attempt: Attempt, request: StepRequest | None, result: StepResult, now: float) -> Ending | None:
        match result:
            case Submitted(remote=remote):
                self._know(attempt, remote, now)
            case SubmitUncertain() if isinstance(attempt.state, Submitting):
                attempt.state.creates += 1
                self._search(attempt, self._settled_at(now))
            case Collected() if isinstance(attempt.state, Collecting):
                return self._collected(attempt, attempt.state, result, now)
            case NotYet():
                self._not_yet(attempt, result, now)
            case Cancelling() if attempt.stop is not None:
                attempt.stop.sent_at = now
            case Faulted(error=error):
                return self._faulted(attempt, error, now)
            case TaskLost():
                return self._lost(attempt, request, result, now)
        return None

    def _not_yet(self, attempt: Attempt, result: NotYet, now: float) -> None:
        attempt.due_at = now + result.delay_s
        attempt.alone = attempt.alone or result.alone
        attempt.alone_bytes = result.alone_bytes
        match attempt.state:
            case Submitting() as state:
                state.uploaded = state.uploaded or result.uploaded
                self._waits(attempt, f"its create: {result.reason}", now)
            case Collecting() as state:
                if not result.alone:
                    self._waits(attempt, f"the late sync of its path: {result.reason}", now)
                if result.seen != state.seen:
                    state.seen, state.changed_at = result.seen, now

    def _cleaned(self, attempt: Attempt, state: Cleaning, result: StepResult) -> None:
        state.tries += 1
        if isinstance(result, Cleaned) or state.tries >= MAX_CLEANS:
            self.remove(attempt)
        else:
            self.wake(attempt)

    # -------------------------------------------------------------------------------------------------------- polls

    def seen(self, poll: int, remote: RemoteJob, now: float) -> Attempt | None:
        """Takes what a poll saw; returns the attempt whose state that changed."""
        attempt = self.find(remote)
        if attempt is None or attempt.job.remote_id not in (None, remote.remote_id):
            return None
        state = attempt.state
        if isinstance(state, Waiting):
            state.seen_in_poll, state.missing_since = poll, None
            if state.remote.status is remote.status:
                return None
        elif not isinstance(state, Submitting | Searching) or attempt.request is not None:
            return None
        self._waits(attempt, None, now)
        self._know(attempt, remote, now)
        return attempt

    def stray(self, remote: RemoteJob) -> Job | None:
        """The job as which this remote one is to be cancelled: a second one on the path of an attempt that has one."""
        attempt = self.find(remote)
        if attempt is None or remote.status.terminal or attempt.job.remote_id in (None, remote.remote_id):
            return None
        return replace(attempt.job, remote_id=remote.remote_id)

    def polled(
        self,
        poll: int,
        paths: frozenset[str],
        waiting: frozenset[int],
        started_at: float,
        *,
        unclear: Iterable[int] = (),
        concerning: Callable[[Job], AbstractContextManager[None]] = lambda _job: nullcontext(),
    ) -> Iterator[Attempt | Ending]:
        """Takes the end of a poll: what it looked for and did not see is not in the list.

        ``unclear`` are ids of which the backend gave no clear answer; ``concerning`` keeps a fault about one job from
        the others. Gives the attempts whose state that changed, and how attempts ended.
        """
        for path in paths:
            attempt = self._index.searched.get(path)
            if attempt is not None and isinstance(attempt.state, Searching) and started_at >= attempt.state.until:
                with concerning(attempt.job):
                    yield from self._not_created(attempt, attempt.state)
        odd = frozenset(unclear)
        # Not by their ids: of two rows that name one remote job, one would never be looked at.
        for attempt in list(self):
            state = attempt.state
            if isinstance(state, Waiting) and state.seen_in_poll != poll and state.remote.remote_id in waiting:
                with concerning(attempt.job):
                    yield from self._not_seen(attempt, state, started_at, unclear=state.remote.remote_id in odd)

    def _not_created(self, attempt: Attempt, state: Searching) -> Iterator[Ending]:
        """The list proves that no create left a remote job."""
        self._index.searched.pop(attempt.job.remote_path or "", None)
        attempt.state = state.submitting
        self.wake(attempt)
        if attempt.state.creates >= MAX_CREATES:
            message = f"{attempt.state.creates} creates left no remote job in the backend's list"
            yield self._failed(attempt, ErrorInfo(code=ErrorCode.CREATE_FAILED, message=message))
        elif attempt.crashes >= MAX_CRASHES:
            yield self._crashed(attempt, "a submit")

    def _not_seen(self, attempt: Attempt, state: Waiting, started_at: float, *, unclear: bool) -> Iterator[Attempt]:
        """The list does not show its remote job."""
        if state.missing_since is None:
            state.missing_since = started_at
        # The list may lag behind a create, and one look alone proves little.
        patience_s = UNCLEAR_PATIENCE_S if unclear else 2 * self._config.camber.settle_s
        if started_at - max(state.missing_since, state.since) >= patience_s:
            self._vanished(attempt, state, started_at)
            yield attempt
        elif unclear and attempt.wait_reason is None:
            self._waits(attempt, "a clear answer of the backend about its remote job", started_at)
            yield attempt

    def _vanished(self, attempt: Attempt, state: Waiting, now: float) -> None:
        """The backend no longer knows the remote job: what it left may still be in its path."""
        status = attempt.job.remote_status or RemoteStatus.UNKNOWN
        if not status.terminal and attempt.stop is None:
            attempt.stop = Stop(ErrorCode.REMOTE_LOST, sent_at=now)
        self._waits(attempt, None, now)
        self._collect(attempt, replace(state.remote, status=status), now, ran=state.running_since is not None)

    # --------------------------------------------------------------------------------------------------- time limits

    def stop(self, attempt: Attempt, code: ErrorCode) -> Ending | None:
        """Asks for its end; ends it here and now where nothing remote can exist."""
        if attempt.stop is None:
            attempt.stop = Stop(code)
            self.wake(attempt)
        if isinstance(attempt.state, Submitting) and attempt.request is None:
            return self._failed(attempt, ErrorInfo(code=code, message="cancelled before it started"))
        return None

    def overdue(self, attempt: Attempt, now: float, *, poll: int) -> ErrorCode | None:
        """Which time limit a waiting attempt is past, if any.

        Only one that this poll showed is judged: of the others nobody knows what became of them meanwhile.
        """
        state = attempt.state
        if not isinstance(state, Waiting) or attempt.stop is not None or state.seen_in_poll != poll:
            return None
        execution = self._config.execution
        if state.running_since is not None:
            timeout_s = attempt.job.spec.timeout_s or execution.timeout_ms / 1000
            late = now - state.running_since > timeout_s + TIMEOUT_MARGIN_S
            return ErrorCode.JOB_TIMEOUT if late else None
        patience_s = execution.queue_timeout_s
        late = patience_s is not None and now - state.since > patience_s
        if late or self._overtaking.overtaken(_kind(attempt.job), state.since, now):
            return ErrorCode.QUEUE_TIMEOUT
        return None

    def unstoppable(self, attempt: Attempt, now: float, *, poll: int) -> Ending | None:
        """The end of an attempt whose remote job goes on, as this poll shows, although its end was asked for in every
        way there is."""
        state, stop = attempt.state, attempt.stop
        if not isinstance(state, Waiting) or stop is None or stop.sent_at is None or attempt.request is not None:
            return None
        if state.seen_in_poll != poll:
            return None
        if now - stop.sent_at < self._config.camber.sync_timeout_s + TIMEOUT_MARGIN_S:
            return None
        message = (
            f"{stop.code}: Camber did not confirm the end of job {state.remote.remote_id}, which was"
            f" {state.remote.status} when last seen and may still run"
        )
        return self._failed(attempt, ErrorInfo(code=stop.code, message=message))

    def give_up(self, attempt: Attempt, error: ErrorInfo) -> Ending:
        """Ends an attempt for a reason found by the driver itself."""
        return self._failed(attempt, error)

    def give_back(self, attempt: Attempt) -> Ending | None:
        """Puts a job back into the queue of which nothing was sent yet; it burns no attempt."""
        if not isinstance(attempt.state, Submitting) or attempt.request is not None or attempt.begun_before:
            return None
        attempt.state = Ended(clean=True)
        job = attempt.job
        return Ending(
            job_id=job.job_id,
            attempt=job.attempt,
            state=JobState.CANCELLED,
            retry_delay_s=0.0,
            retryable=True,
            free=True,
        )

    def internal_fault(self, attempt: Attempt, message: str, now: float) -> Ending | None:
        """After a fault of ours about it: what may have been paid for is not given up while there is a way on."""
        attempt.internal_faults += 1
        state = attempt.state
        if isinstance(state, Collecting):
            return self._exhausted(attempt, message)
        if attempt.internal_faults < MAX_INTERNAL_FAULTS:
            if isinstance(state, Waiting | Searching) or attempt.request is not None:
                return None
            if isinstance(state, Submitting) and state.create_until:
                self._search(attempt, self._settled_at(max(now, state.create_until)))
                return None
        return self._failed(attempt, ErrorInfo(code=ErrorCode.INTERNAL, message=message))

    def outage_over(self) -> None:
        """After a confirmed outage nothing that happened in it counts against a job."""
        for attempt in (*self._running.values(), *self._cleaning.values()):
            attempt.faults, attempt.due_at = 0, 0.0
            self.wake(attempt)

    # -------------------------------------------------------------------------------------------------- transitions

    def _add(self, attempt: Attempt) -> None:
        self._running[attempt.job.job_id] = attempt
        if attempt.job.remote_path:
            self._index.by_path[attempt.job.remote_path] = attempt
        self.wake(attempt)

    def _know(self, attempt: Attempt, remote: RemoteJob, now: float) -> None:
        """Its remote job is known, in this state."""
        state = attempt.state
        if not isinstance(state, Waiting):
            self._index.searched.pop(attempt.job.remote_path or "", None)
            self._index.by_remote_id[remote.remote_id] = attempt
            self._enter(attempt, Waiting(remote=remote, since=now), now)
            state = attempt.state
        attempt.job = replace(attempt.job, remote_id=remote.remote_id, remote_status=remote.status)
        assert isinstance(state, Waiting)  # noqa: S101 - narrows the type
        state.remote = remote
        attempt.due_at = 0.0
        if remote.status.started and state.running_since is None:
            state.running_since = now
            if not attempt.begun_before:
                self._overtaking.started(_kind(attempt.job), state.since)
                self._on_started(state.since, now)
        # A word of a newer service that has an end is one.
        if remote.status.terminal or (remote.status is RemoteStatus.UNKNOWN and remote.finished_at is not None):
            ran = remote.started_at is not None or remote.status is not RemoteStatus.CANCELLED
            self._collect(attempt, remote, now, ran=ran)
        self.wake(attempt)

    def _collect(self, attempt: Attempt, remote: RemoteJob, now: float, *, ran: bool) -> None:
        self._enter(attempt, Collecting(remote=remote, ran=ran, since=now, changed_at=now), now)
        attempt.alone = False
        attempt.due_at = 0.0
        self.wake(attempt)

    def _waits(self, attempt: Attempt, words: str | None, now: float) -> None:
        if attempt.wait_reason is None:
            attempt.waits_since = now
        attempt.wait_reason = words

    def _settled_at(self, sent_at: float) -> float:
        """When the list shows a create that was sent at that time, or never will: the service may go on with a call
        whose connection was cut."""
        return sent_at + self._config.camber.create_timeout_s + self._config.camber.settle_s

    def _search(self, attempt: Attempt, until: float) -> None:
        if isinstance(attempt.state, Submitting):
            attempt.state = Searching(submitting=attempt.state, until=until)
            self._index.searched[attempt.job.remote_path or ""] = attempt

    def _enter(self, attempt: Attempt, state: Waiting | Collecting | Ended, now: float) -> None:
        if attempt.entered_at is not None and attempt.phase is not None:
            self._on_phase_ended(attempt.phase, now - attempt.entered_at)
        attempt.state = state
        attempt.entered_at = now

    # --------------------------------------------------------------------------------------------------------- ends

    def _collected(self, attempt: Attempt, state: Collecting, result: Collected, now: float) -> Ending:
        error = result.error
        keep = result.unstored
        code = None if error is None else error.code
        never_ran = code is ErrorCode.QUEUE_TIMEOUT or (code is ErrorCode.REMOTE_CANCELLED and not state.ran)
        ending = self._ending(
            attempt,
            result.state,
            error,
            exit_code=result.exit_code,
            free=never_ran,
            artifact_uri=result.manifest_uri,
            cost_credits=result.cost_credits,
            artifacts=result.artifacts,
            warnings=result.warnings,
            keep_s=self._config.camber.keep_unstored_s if keep else None,
        )
        self._enter(attempt, Ended(clean=not keep), now)
        return ending

    def _failed(self, attempt: Attempt, error: ErrorInfo) -> Ending:
        """Ends it without anything stored. Where the remote job may have left something, that is kept."""
        state = attempt.state
        keep = isinstance(state, Waiting | Collecting) or error.code is ErrorCode.INTERNAL
        free = isinstance(state, Waiting) and error.code is ErrorCode.QUEUE_TIMEOUT
        attempt.state = Ended(clean=not keep)
        return self._ending(
            attempt,
            JobState.CANCELLED if error.code is ErrorCode.CANCELLED else JobState.FAILED,
            error,
            free=free,
            keep_s=self._config.camber.keep_unstored_s if keep else None,
        )

    def _ending(
        self,
        attempt: Attempt,
        state: JobState,
        error: ErrorInfo | None,
        *,
        exit_code: int | None = None,
        free: bool = False,
        **stored: object,
    ) -> Ending:
        job = attempt.job
        delay_s = None
        if error is not None and state is JobState.FAILED:
            delay_s = retry_delay_s(job, error, exit_code, self._config.retry, free=free)
        return Ending(
            job_id=job.job_id,
            attempt=job.attempt,
            state=state,
            retry_delay_s=delay_s,
            exit_code=exit_code,
            error=error,
            retryable=None if error is None else retryable(job, error, exit_code),
            remote_id=job.remote_id,
            remote_status=job.remote_status,
            free=free,
            **stored,  # type: ignore[arg-type]  # the callers name fields of Ending
        )

    def _faulted(self, attempt: Attempt, error: ErrorInfo, now: float) -> Ending | None:
        if error.verdict is not Verdict.PAUSE:
            if isinstance(attempt.state, Collecting):
                return self._exhausted(attempt, error.message)  # Another attempt would be paid for again.
            return self._failed(attempt, error)
        attempt.faults += 1
        self._waits(attempt, f"{error.code}: {error.message}", now)
        if attempt.faults >= MAX_FAULTS and isinstance(attempt.state, Waiting) and attempt.stop is not None:
            # The backend cannot be told. Where its job goes on all the same, that is seen and said.
            attempt.stop.sent_at = now
            return None
        if attempt.faults >= MAX_FAULTS and error.code is not ErrorCode.BACKEND_BUSY:
            return self._exhausted(attempt, f"{attempt.faults} faults in a row, last: {error.message}")
        backoff_s = min(RETRY_STEP_MAX_S, RETRY_STEP_S * 2.0 ** (attempt.faults - 1))
        attempt.due_at = now + max(backoff_s, error.retry_after_s or 0.0)
        return None

    def _lost(self, attempt: Attempt, request: StepRequest | None, lost: TaskLost, now: float) -> Ending | None:
        attempt.crashes += 1
        attempt.begun_before = True
        attempt.alone = True  # If it is this job that kills its task, it takes no others along.
        attempt.due_at = now + RETRY_STEP_S
        if request is not None and request.step is Step.SUBMIT and isinstance(attempt.state, Submitting):
            self._search(attempt, self._settled_at(now if lost.dead else max(now, attempt.state.create_until)))
        elif attempt.crashes >= MAX_CRASHES:
            return self._crashed(attempt, lost.reason)
        return None

    def _crashed(self, attempt: Attempt, reason: str) -> Ending:
        return self._exhausted(attempt, f"its Ray task was lost {attempt.crashes} times in a row, last by {reason}")

    def _exhausted(self, attempt: Attempt, message: str) -> Ending:
        """A step failed again and again. What was paid for is kept, and collected later without a new remote job."""
        code = ErrorCode.ARTIFACTS_NOT_STORED if isinstance(attempt.state, Collecting) else ErrorCode.PHASE_FAILED
        return self._failed(attempt, ErrorInfo(code=code, message=message))


def _kind(job: Job) -> Kind:
    """Jobs that wait for the same machines."""
    return job.spec.gpu, job.spec.node_size.upper(), job.spec.num_nodes
