"""The state machine of an attempt: a class for each state, a method for each event. No I/O and no clock.

An attempt is *submitting* until its remote job is known; *searching*, if a create had no clear answer, until the remote
list shows whether the job exists; *waiting* until the remote job has ended; *collecting* until its artifacts are
stored; *ended* until its end is written to Postgres; and *cleaning* until its path is removed. Times are seconds of
:mod:`rythmiq_ray.clock`.
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
"""Lost tasks in a row after which the attempt is ended: it is probably this job that kills them."""
MAX_INTERNAL_FAULTS: Final = 5
"""Faults of rythmiq-ray itself after which an attempt is ended that may have a remote job."""
MAX_FAULTS: Final = 14
"""Faults of the backend or the store in a row, outside of confirmed outages, after which the attempt is ended: about
two minutes. Answers that the account is full (429) do not count."""
MAX_CREATES: Final = 5
"""Creates that left no remote job in the list, after which the attempt is ended."""
MAX_CLEANS: Final = 3
"""Tries to remove a path, after which it is left to the janitor of any driver."""
RETRY_STEP_S: Final = 1.0
"""Pause before a lost or failed step runs again; it doubles up to RETRY_STEP_MAX_S."""
RETRY_STEP_MAX_S: Final = 15.0
TIMEOUT_MARGIN_S: Final = 60.0
"""How long after the job's timeout the driver gives the wrapper to stop it, before it stops the remote job itself."""
UNCLEAR_PATIENCE_S: Final = 600.0
"""A remote job counts as lost if for so long the list has not shown it and the backend's answers about it were
unclear."""


@dataclass(slots=True)
class Submitting:
    """The remote job has to be created."""

    uploaded: bool = False
    creates: int = 0
    """How many creates have left no remote job."""
    create_until: float = 0.0
    """Until then the task that was sent last may still send a create."""


@dataclass(slots=True)
class Searching:
    """A create may have happened; the remote list will show whether it did."""

    submitting: Submitting
    until: float
    """Only a poll that begins later than this can prove that there is no remote job."""


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
    """The remote job has ended; its files are copied to the store."""

    remote: RemoteJob
    ran: bool
    """Whether the remote job is known to have run."""
    since: float
    changed_at: float
    """When files in the path were last seen to change. The wait for a late sync counts from here."""
    seen: tuple[int, int] | None = None
    """Number and bytes of the files in the path at that time."""


@dataclass(slots=True)
class Ended:
    """The end of the attempt is being written to Postgres."""

    clean: bool
    """Whether its path may be removed after that."""


@dataclass(slots=True)
class Cleaning:
    """The end is written; the path has to be removed."""

    tries: int = 0


_PHASES: Final[Mapping[type, Phase]] = {
    Submitting: Phase.SUBMITTING,
    Searching: Phase.SUBMITTING,
    Waiting: Phase.WAITING,
    Collecting: Phase.COLLECTING,
}


@dataclass(slots=True)
class Stop:
    """The attempt was asked to stop."""

    code: ErrorCode
    """cancelled, queue_timeout or job_timeout; or remote_lost, if there is no remote job any more."""
    sent_at: float | None = None
    """When the backend was asked to stop the remote job."""


@dataclass(slots=True)
class Attempt:
    """An attempt that this driver tracks."""

    job: Job
    state: Submitting | Searching | Waiting | Collecting | Ended | Cleaning
    began_at: float
    """No create of this attempt was sent before this."""
    entered_at: float | None = None
    """When it entered its phase; None if another driver had it then."""
    request: StepRequest | None = None
    """The step that the cluster runs now. Results of other requests are out of date and ignored."""
    requested_at: float = 0.0
    due_at: float = 0.0
    """Its next step is not sent before this."""
    alone: bool = False
    """Its next step gets a Ray task of its own, which will stream ``alone_bytes`` bytes."""
    alone_bytes: int = 0
    begun_before: bool = False
    """A lost task or another driver may have left partial work."""
    out_of_reach: tuple[str, ...] = ()
    """Why it must not be submitted: inputs that name files which its login may not see."""
    create_s: float | None = None
    """How long the create took, for traces."""
    crashes: int = 0
    faults: int = 0
    internal_faults: int = 0
    """Faults of rythmiq-ray itself that concerned it."""
    stop: Stop | None = None
    wait_reason: str | None = None
    """Why it makes no progress, in words for the row; None while it does."""
    waits_since: float = 0.0

    @property
    def key(self) -> tuple[UUID, int]:
        return self.job.job_id, self.job.attempt

    @property
    def phase(self) -> Phase | None:
        """The phase for the row; None once the attempt has ended."""
        return _PHASES.get(type(self.state))

    @property
    def remote(self) -> RemoteJob | None:
        return self.state.remote if isinstance(self.state, Waiting | Collecting) else None


@dataclass(frozen=True, slots=True)
class _Indexes:
    by_remote_id: dict[int, Attempt] = field(default_factory=dict)
    by_path: dict[str, Attempt] = field(default_factory=dict)
    searched: dict[str, Attempt] = field(default_factory=dict)
    """Attempts with an uncertain create, by path."""


class Attempts:
    """All attempts that a driver tracks. Only this class changes their state."""

    def __init__(
        self,
        config: Config,
        *,
        on_phase_ended: Callable[[Phase, float], None] = lambda _phase, _seconds: None,
        on_started: Callable[[float, float], None] = lambda _submitted_at, _now: None,
    ) -> None:
        """``on_phase_ended(phase, seconds)`` is called when an attempt leaves a phase that it entered here.
        ``on_started(created_at, seen_at)`` is called when a remote job of this driver is first seen to run.
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
        """How many attempts have not ended, or have an end that is not written yet."""
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
        """This attempt of a job, running or being cleaned."""
        attempt = self._running.get(job_id)
        if attempt is not None and attempt.job.attempt == number:
            return attempt
        return self._cleaning.get((job_id, number))

    def find(self, remote: RemoteJob) -> Attempt | None:
        """The running attempt of a remote job, by id or path. One that matches both goes first: a row may be wrong."""
        there = self._index.by_path.get(remote.path)
        if there is not None and there.job.remote_id == remote.remote_id:
            return there
        return self._index.by_remote_id.get(remote.remote_id) or there

    def due(self, now: float) -> Iterator[Attempt]:
        """Attempts that may have a step to run, each once. Those that only wait cost nothing here."""
        while self._agenda and self._agenda[0][0] <= now:
            _, _, attempt = heappop(self._agenda)
            if self.get(*attempt.key) is attempt:
                yield attempt

    def next_due(self) -> float | None:
        """When :meth:`due` has something next."""
        return self._agenda[0][0] if self._agenda else None

    def waiting_ids(self) -> frozenset[int]:
        """The remote ids for which a poll has to report a status."""
        return frozenset(attempt.state.remote.remote_id for attempt in self if isinstance(attempt.state, Waiting))

    def searched_paths(self) -> frozenset[str]:
        """The paths for which a poll has to report whether a remote job exists."""
        return frozenset(self._index.searched)

    def paths(self) -> frozenset[str]:
        """The paths of all attempts that may have a remote job."""
        return frozenset(self._index.by_path)

    def search_age_s(self, now: float) -> float:
        """The longest time since a create that is searched for may have been sent, in seconds."""
        return max((now - attempt.began_at for attempt in self._index.searched.values()), default=0.0)

    # ------------------------------------------------------------------------------------------------ come and go

    def begin(self, job: Job, now: float) -> Attempt:
        """Adds an attempt that was just claimed; one whose files were kept goes on with collecting."""
        if job.remote_id is not None:
            return self.take_over(Adopted(job=job, orphaned_s=0.0), now)
        attempt = Attempt(job=job, state=Submitting(), began_at=now, entered_at=now)
        self._add(attempt)
        return attempt

    def take_over(self, adopted: Adopted, now: float) -> Attempt:
        """Adds an attempt of another driver, in its present phase.

        If it was submitting, that driver may have sent a create up to the end of its lease, the call may have taken
        long, and the list may lag. Until all that time has passed, the list is searched and nothing is created.
        """
        job = adopted.job
        attempt = Attempt(job=job, state=Submitting(), began_at=now - adopted.age_s, begun_before=True)
        self._add(attempt)
        if job.cancel_requested_at is not None:
            attempt.stop = Stop(ErrorCode.CANCELLED)
        if job.remote_id is None:
            self._search(attempt, max(now, self._settled_at(now - adopted.orphaned_s)))
        else:
            # One that was collecting waits first too, because only the list says how the remote job ended.
            remote = RemoteJob(remote_id=job.remote_id, status=RemoteStatus.UNKNOWN, path=job.remote_path or "")
            running_since = None if adopted.running_s is None else now - adopted.running_s
            attempt.state = Waiting(remote=remote, since=now - adopted.submitted_s, running_since=running_since)
            self._index.by_remote_id[job.remote_id] = attempt
        return attempt

    def clean(self, job: Job) -> None:
        """Adds an ended attempt, of any driver, whose path has to be removed."""
        key = (job.job_id, job.attempt)
        if job.remote_path is None or key in self._cleaning:
            return
        attempt = Attempt(job=job, state=Cleaning(), began_at=0.0)
        self._cleaning[key] = attempt
        self.wake(attempt)

    def written(self, attempt: Attempt) -> None:
        """Its end is written: now its path is removed, if it may be."""
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
        """Forgets all running attempts. Cleaning goes on, because it does no harm whoever removes a path."""
        self._running.clear()
        self._index = _Indexes()

    def wake(self, attempt: Attempt) -> None:
        """Schedules it for its ``due_at``; a second entry does no harm."""
        heappush(self._agenda, (attempt.due_at, next(self._entries), attempt))

    # -------------------------------------------------------------------------------------------- steps and results

    def step(
        self, attempt: Attempt, now: float, *, secrets: Mapping[str, Secret], lease_until: float
    ) -> StepRequest | None:
        """The request to send for it now; None if it has to wait."""
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
        """Its step was sent to the cluster."""
        attempt.request, attempt.requested_at = request, now

    def withdrawn(self, attempt: Attempt) -> None:
        """The cluster gave its step back before it had begun."""
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
            case Submitted(remote=remote, create_s=create_s):
                attempt.create_s = create_s
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
        """Takes a remote job that a poll saw; returns the attempt whose state changed, if one did."""
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
        """For a second remote job on an attempt's path, the job to cancel it by; None for any other remote job."""
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
        """Takes the end of a poll: whatever it looked for and did not see is not in the list.

        ``unclear``: ids about which the backend gave no clear answer. ``concerning``: a context that keeps a fault
        about one job from the others. Yields attempts whose state changed, and the endings of attempts.
        """
        for path in paths:
            attempt = self._index.searched.get(path)
            if attempt is not None and isinstance(attempt.state, Searching) and started_at >= attempt.state.until:
                with concerning(attempt.job):
                    yield from self._not_created(attempt, attempt.state)
        odd = frozenset(unclear)
        # Loops over attempts, not remote ids: if two rows name the same remote job, both have to be handled.
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
        """Handles a remote job that the list does not show."""
        if state.missing_since is None:
            state.missing_since = started_at
        # The list may lag behind a create, and a single poll proves little.
        patience_s = UNCLEAR_PATIENCE_S if unclear else 2 * self._config.camber.settle_s
        if started_at - max(state.missing_since, state.since) >= patience_s:
            self._vanished(attempt, state, started_at)
            yield attempt
        elif unclear and attempt.wait_reason is None:
            self._waits(attempt, "a clear answer from the backend about its remote job", started_at)
            yield attempt

    def _vanished(self, attempt: Attempt, state: Waiting, now: float) -> None:
        """The backend no longer knows the remote job; its files may still be in the path."""
        status = attempt.job.remote_status or RemoteStatus.UNKNOWN
        if not status.terminal and attempt.stop is None:
            attempt.stop = Stop(ErrorCode.REMOTE_LOST, sent_at=now)
        self._waits(attempt, None, now)
        self._collect(attempt, replace(state.remote, status=status), now, ran=state.running_since is not None)

    # --------------------------------------------------------------------------------------------------- time limits

    def stop(self, attempt: Attempt, code: ErrorCode) -> Ending | None:
        """Asks the attempt to stop; ends it at once if no remote job can exist."""
        if attempt.stop is None:
            attempt.stop = Stop(code)
            self.wake(attempt)
        if isinstance(attempt.state, Submitting) and attempt.request is None:
            return self._failed(attempt, ErrorInfo(code=code, message="cancelled before it started"))
        return None

    def overdue(self, attempt: Attempt, now: float, *, poll: int) -> ErrorCode | None:
        """The time limit that a waiting attempt has exceeded, if any.

        Only for attempts that this poll saw: the others may have ended meanwhile.
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
        """Ends an attempt whose remote job still runs, as this poll shows, long after it was asked to stop."""
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
        """Puts a job of which nothing was sent yet back into the queue; it does not count as an attempt."""
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
        """Handles a fault of rythmiq-ray about it. If there may be a remote job, which costs money, it tries again."""
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
        """Resets the counts of faults after a confirmed outage: faults in it were not the jobs'."""
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
        """Takes the present status of its remote job."""
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
        # An unknown status, of a newer service, is terminal if it comes with a time of ending.
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
        """The time after which the list shows a create that was sent at ``sent_at``, if it happened: the service may
        finish a call whose connection was cut."""
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
        """Ends it without stored files. If the remote job may have left files, its path is kept."""
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
            create_s=attempt.create_s,
            free=free,
            **stored,  # type: ignore[arg-type]  # the callers name fields of Ending
        )

    def _faulted(self, attempt: Attempt, error: ErrorInfo, now: float) -> Ending | None:
        if error.verdict is not Verdict.PAUSE:
            if isinstance(attempt.state, Collecting):
                return self._exhausted(attempt, error.message)  # Another attempt would have to be paid for.
            return self._failed(attempt, error)
        attempt.faults += 1
        self._waits(attempt, f"{error.code}: {error.message}", now)
        if attempt.faults >= MAX_FAULTS and isinstance(attempt.state, Waiting) and attempt.stop is not None:
            # The backend could not be asked. If the job goes on, `unstoppable` will say so.
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
        attempt.alone = True  # If this job kills its task, no other job is affected.
        attempt.due_at = now + RETRY_STEP_S
        if request is not None and request.step is Step.SUBMIT and isinstance(attempt.state, Submitting):
            self._search(attempt, self._settled_at(now if lost.dead else max(now, attempt.state.create_until)))
        elif attempt.crashes >= MAX_CRASHES:
            return self._crashed(attempt, lost.reason)
        return None

    def _crashed(self, attempt: Attempt, reason: str) -> Ending:
        return self._exhausted(attempt, f"its Ray task was lost {attempt.crashes} times in a row, last by {reason}")

    def _exhausted(self, attempt: Attempt, message: str) -> Ending:
        """A step failed repeatedly. The remote job's files are kept, to be collected later without a new remote job."""
        code = ErrorCode.ARTIFACTS_NOT_STORED if isinstance(attempt.state, Collecting) else ErrorCode.PHASE_FAILED
        return self._failed(attempt, ErrorInfo(code=code, message=message))


def _kind(job: Job) -> Kind:
    """The kind of nodes that a job waits for."""
    return job.spec.gpu, job.spec.node_size.upper(), job.spec.num_nodes
