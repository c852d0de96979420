"""The state of each running attempt in the driver's memory, and what each result means for it. No I/O, no clock.

A flight is *submitting* until its remote job is known, *waiting* until that ends, *collecting* until its artifacts
are safe. Times are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from heapq import heappop, heappush
from itertools import count
from typing import Final
from uuid import UUID

from rythmiq_ray.config import Config
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
    Order,
    Phase,
    RemoteFile,
    RemoteJob,
    RemoteStatus,
    Step,
    StepResult,
    Submitted,
    SubmitUncertain,
    TaskLost,
)
from rythmiq_ray.queue import Ending
from rythmiq_ray.retry import retry_delay_s, retryable
from rythmiq_ray.secret import Secret

MAX_CRASHES: Final = 5
"""Lost tasks in a row before the attempt is ended: by then it is this job that kills them."""
MAX_FAULTS: Final = 20
"""Faults of Camber or the store in a row, none of them a confirmed outage, before the attempt is ended.

A Camber that has no room for more (429) is waited for however long it takes.
"""
MAX_CREATES: Final = 5
"""Creates of which the list shows nothing before the attempt is ended."""
RETRY_STEP_S: Final = 1.0
"""Before a step is run again that was lost or met a fault; it doubles up to RETRY_STEP_MAX_S."""
RETRY_STEP_MAX_S: Final = 60.0
TIMEOUT_MARGIN_S: Final = 60.0
"""How long after its time-out a job's wrapper may still be at it before the driver ends it from outside."""


@dataclass(slots=True)
class Flight:
    """One running attempt."""

    job: Job
    phase: Phase
    remote: RemoteJob | None = None
    busy: bool = False
    """An order for it is with the cluster."""
    sent: Order | None = None
    """The order sent last; the result of any other says nothing about what is under way."""
    sent_at: float = 0.0
    due_at: float = 0.0
    """Not before this its next order is sent."""
    uncertain_until: float | None = None
    """A create may have happened; only a sweep begun after this proves that it has not."""
    creates: int = 0
    uploaded: bool = False
    alone: bool = False
    alone_bytes: int = 0
    crashes: int = 0
    begun_before: bool = False
    """A lost task or another driver may have left something half done."""
    faults: int = 0
    create_until: float = 0.0
    """Up to this a task that was sent may still create."""
    listing: tuple[RemoteFile, ...] | None = None
    entered_at: float | None = None
    """When it came into its phase; None where another driver had it then."""
    submitted_at: float = 0.0
    running_at: float | None = None
    """When it was first seen to run."""
    ended_at: float | None = None
    """When its remote job was first seen to have ended."""
    seen_in_sweep: int = -1
    missing_since: float | None = None
    stop_code: ErrorCode | None = None
    """Why its end was asked for: cancelled, queue_timeout or job_timeout."""
    stop_sent_at: float | None = None

    @property
    def uncertain(self) -> bool:
        return self.uncertain_until is not None


class Flights:
    """All running attempts of a driver, by job, by remote id, and by path where a create is uncertain."""

    def __init__(self, config: Config, *, on_phase_ended: Callable[[Phase, float], None] | None = None) -> None:
        """``on_phase_ended`` is told of each phase that a flight completed here, and of its seconds."""
        self._config = config
        self._on_phase_ended = on_phase_ended
        self._flights: dict[UUID, Flight] = {}
        self._by_remote_id: dict[int, UUID] = {}
        self._by_path: dict[str, UUID] = {}
        self._agenda: list[tuple[float, int, Flight]] = []
        self._entries = count()

    def __len__(self) -> int:
        return len(self._flights)

    def __iter__(self) -> Iterator[Flight]:
        return iter(self._flights.values())

    def get(self, job_id: UUID, attempt: int | None = None) -> Flight | None:
        """The flight of a job, if its attempt is the running one."""
        flight = self._flights.get(job_id)
        return flight if flight is not None and attempt in (None, flight.job.attempt) else None

    def count(self, phase: Phase) -> int:
        return sum(flight.phase is phase for flight in self)

    def clear(self) -> None:
        self._flights.clear()
        self._by_remote_id.clear()
        self._by_path.clear()
        self._agenda.clear()

    def remove(self, flight: Flight) -> None:
        self._flights.pop(flight.job.job_id, None)
        self._by_path.pop(flight.job.remote_path or "", None)
        if flight.remote is not None:
            self._by_remote_id.pop(flight.remote.remote_id, None)

    def due(self, now: float) -> Iterator[Flight]:
        """The flights for which something may be to do, each once; a flight that only waits costs nothing here."""
        while self._agenda and self._agenda[0][0] <= now:
            _, _, flight = heappop(self._agenda)
            if self._flights.get(flight.job.job_id) is flight:
                yield flight

    def next_due(self) -> float | None:
        """When :meth:`due` has something next."""
        return self._agenda[0][0] if self._agenda else None

    def wake(self, flight: Flight) -> None:
        """Puts a flight on the agenda for its ``due_at``; one entry too many does no harm."""
        heappush(self._agenda, (flight.due_at, next(self._entries), flight))

    def begin(self, job: Job, now: float) -> Flight:
        """An attempt that was claimed just now."""
        flight = Flight(job=job, phase=Phase.SUBMITTING, entered_at=now)
        self._flights[job.job_id] = flight
        self.wake(flight)
        return flight

    def take_over(self, job: Job, orphaned_s: float, now: float) -> Flight:
        """An attempt of another driver, in the phase it is in.

        One that was submitting may have been created up to the end of that driver's lease, by a call that took its
        time, in a list that lags: until all that has passed the list is searched, and nothing is created.
        """
        phase = job.phase or Phase.SUBMITTING
        flight = Flight(job=job, phase=phase, submitted_at=now, begun_before=True)
        self._flights[job.job_id] = flight
        if job.cancel_requested_at is not None:
            flight.stop_code = ErrorCode.CANCELLED
        if job.remote_id is None:
            flight.phase = Phase.SUBMITTING
            camber = self._config.camber
            reach_s = camber.create_timeout_s + camber.settle_s - orphaned_s
            self._doubt(flight, now + max(0.0, reach_s))
        else:
            # What it was collecting is watched first: the list tells how it ended, which no row does.
            flight.phase = Phase.WAITING
            status = RemoteStatus.UNKNOWN
            self._know(flight, RemoteJob(remote_id=job.remote_id, status=status, path=job.remote_path or ""), now)
        return flight

    def waiting_ids(self) -> list[int]:
        """Remote ids whose status is wanted."""
        return [
            flight.remote.remote_id for flight in self if flight.phase is Phase.WAITING and flight.remote is not None
        ]

    def uncertain_paths(self) -> list[str]:
        return list(self._by_path)

    def uncertain_since(self) -> datetime | None:
        """No uncertain create is older than this."""
        times = [self._flights[job_id].job.started_at for job_id in self._by_path.values()]
        return min((time for time in times if time is not None), default=None)

    def order(self, flight: Flight, now: float, *, secrets: Mapping[str, Secret], lease_left_s: float) -> Order | None:
        """What is to be done for a flight now; None while there is nothing but to wait."""
        if flight.busy or now < flight.due_at:
            return None
        job = flight.job
        if flight.phase is Phase.SUBMITTING and not flight.uncertain:
            flight.create_until = now + lease_left_s
            return Order(
                step=Step.SUBMIT,
                job=job,
                secrets=secrets,
                create_within_s=lease_left_s,
                uploaded=flight.uploaded,
                alone=flight.alone,
            )
        if flight.phase is Phase.WAITING and flight.stop_code is not None and flight.stop_sent_at is None:
            return Order(step=Step.CANCEL, job=job)
        if flight.phase is Phase.COLLECTING and flight.ended_at is not None:
            patience_s = self._config.camber.sync_timeout_s
            if flight.stop_code is not None:
                patience_s = min(patience_s, self._config.camber.settle_s)
            return Order(
                step=Step.COLLECT,
                job=job,
                remote=flight.remote,
                stop_code=flight.stop_code,
                final=now - flight.ended_at >= patience_s,
                alone=flight.alone,
                again=flight.begun_before,
                listing=flight.listing,
            )
        return None

    def settle(self, flight: Flight, order: Order, result: StepResult, now: float) -> Ending | None:
        """Takes the result of an order; returns how the attempt ended, if it did."""
        flight.busy = False
        ending = self._settled(flight, order, result, now)
        self.wake(flight)
        return ending

    def _settled(self, flight: Flight, order: Order, result: StepResult, now: float) -> Ending | None:
        match result:
            case Submitted(remote=remote):
                self._know(flight, remote, now)
            case SubmitUncertain():
                flight.creates += 1
                self._doubt(flight, now + self._config.camber.settle_s)
            case Collected():
                self._leave_phase(flight, now)
                return self._collected(flight, result)
            case NotYet():
                flight.due_at = now + result.delay_s
                flight.uploaded = flight.uploaded or result.uploaded
                flight.alone = flight.alone or result.alone
                flight.alone_bytes = result.alone_bytes
                flight.listing = result.listing
            case Cancelling():
                flight.stop_sent_at = now
            case Faulted(error=error):
                return self._faulted(flight, error, now)
            case TaskLost(reason=reason, dead=dead):
                return self._lost(flight, order, reason, dead, now)
            case Cleaned():
                pass
        if not isinstance(result, TaskLost | Faulted):
            flight.crashes = flight.faults = 0
        return None

    def seen(self, sweep: int, remote: RemoteJob, now: float) -> Flight | None:
        """Takes what a sweep saw; returns the flight whose state that changed."""
        job_id = self._by_remote_id.get(remote.remote_id) or self._by_path.get(remote.path)
        flight = None if job_id is None else self._flights.get(job_id)
        if flight is None or flight.phase is Phase.COLLECTING:
            return None
        flight.seen_in_sweep = sweep
        flight.missing_since = None
        if flight.busy and flight.phase is Phase.SUBMITTING:
            return None
        if flight.remote is not None and flight.remote.status is remote.status:
            return None
        self._know(flight, remote, now)
        return flight

    def swept(self, sweep: int, paths: frozenset[str], waiting: frozenset[int], started_at: float) -> list[Ending]:
        """Takes the end of a sweep: what it looked for and did not see is not in the list."""
        endings: list[Ending] = []
        for path in paths:
            job_id = self._by_path.get(path)
            flight = None if job_id is None else self._flights.get(job_id)
            if flight is None or flight.uncertain_until is None or started_at < flight.uncertain_until:
                continue
            flight.uncertain_until = None
            del self._by_path[path]
            self.wake(flight)
            if flight.creates >= MAX_CREATES:
                message = f"{flight.creates} creates left no remote job in Camber's list"
                endings.append(self._failed(flight, ErrorInfo(code=ErrorCode.CREATE_FAILED, message=message)))
            elif flight.crashes >= MAX_CRASHES:
                endings.append(self._crashed(flight, "a submit"))
        for remote_id in waiting:
            job_id = self._by_remote_id.get(remote_id)
            flight = None if job_id is None else self._flights.get(job_id)
            if flight is None or flight.phase is not Phase.WAITING or flight.seen_in_sweep == sweep:
                continue
            if flight.missing_since is None:
                flight.missing_since = started_at
            # The list may lag behind a create, and one look alone proves little.
            elif started_at - max(flight.missing_since, flight.submitted_at) >= 2 * self._config.camber.settle_s:
                message = f"Camber's list no longer has job {remote_id}"
                endings.append(self._failed(flight, ErrorInfo(code=ErrorCode.REMOTE_LOST, message=message)))
        return endings

    def stop(self, flight: Flight, code: ErrorCode) -> Ending | None:
        """Asks for the end of an attempt; ends it here and now where nothing remote can exist."""
        if flight.stop_code is None:
            flight.stop_code = code
            self.wake(flight)
        nothing_sent = flight.phase is Phase.SUBMITTING and not flight.busy and not flight.uncertain
        return (
            self._failed(flight, ErrorInfo(code=code, message="cancelled before it started")) if nothing_sent else None
        )

    def overdue(self, flight: Flight, now: float) -> ErrorCode | None:
        """Which time limit a waiting flight is past, if any."""
        if flight.phase is not Phase.WAITING or flight.stop_code is not None or flight.remote is None:
            return None
        execution = self._config.execution
        if flight.running_at is None:
            limit_s = execution.queue_timeout_s
            late = limit_s is not None and now - flight.submitted_at > limit_s
            return ErrorCode.QUEUE_TIMEOUT if late and flight.remote.status is not RemoteStatus.UNKNOWN else None
        timeout_s = flight.job.spec.timeout_s or execution.timeout_ms / 1000
        return ErrorCode.JOB_TIMEOUT if now - flight.running_at > timeout_s + TIMEOUT_MARGIN_S else None

    def unstoppable(self, flight: Flight, now: float) -> Ending | None:
        """The end of an attempt whose remote job goes on although its end was asked for in every way there is."""
        if flight.phase is not Phase.WAITING or flight.stop_code is None or flight.stop_sent_at is None or flight.busy:
            return None
        if now - flight.stop_sent_at < self._config.camber.sync_timeout_s + TIMEOUT_MARGIN_S:
            return None
        status = flight.remote.status if flight.remote else RemoteStatus.UNKNOWN
        message = (
            f"{flight.stop_code}: Camber did not confirm the end of job {flight.job.remote_id}, which was {status}"
            " when last seen and may still run"
        )
        return self._failed(flight, ErrorInfo(code=flight.stop_code, message=message))

    def give_up(self, flight: Flight, error: ErrorInfo) -> Ending:
        """Ends an attempt for a reason found by the driver itself."""
        return self._failed(flight, error)

    def outage_over(self) -> None:
        """After a confirmed outage nothing that happened in it counts against a job."""
        for flight in self:
            flight.faults = 0
            flight.due_at = 0.0
            self.wake(flight)

    def _know(self, flight: Flight, remote: RemoteJob, now: float) -> None:
        """Its remote job is known, in this state."""
        job = flight.job
        if flight.remote is None:
            flight.submitted_at = now
            flight.uncertain_until = None
            self._by_path.pop(job.remote_path or "", None)
            self._by_remote_id[remote.remote_id] = job.job_id
        flight.remote = remote
        flight.job = replace(job, remote_id=remote.remote_id, remote_status=remote.status)
        self._enter(flight, Phase.WAITING, now)
        flight.due_at = 0.0
        if remote.status.started and flight.running_at is None:
            flight.running_at = now
        if remote.status.terminal:
            self._enter(flight, Phase.COLLECTING, now)
            flight.ended_at = now
            flight.alone = False
        self.wake(flight)

    def _enter(self, flight: Flight, phase: Phase, now: float) -> None:
        if flight.phase is not phase:
            self._leave_phase(flight, now)
            flight.phase = phase
            flight.entered_at = now

    def _leave_phase(self, flight: Flight, now: float) -> None:
        if self._on_phase_ended is not None and flight.entered_at is not None:
            self._on_phase_ended(flight.phase, now - flight.entered_at)

    def _doubt(self, flight: Flight, until: float) -> None:
        flight.uncertain_until = until
        self._by_path[flight.job.remote_path or ""] = flight.job.job_id

    def _collected(self, flight: Flight, result: Collected) -> Ending:
        job, error = flight.job, result.error
        delay_s = None
        if error is not None and result.state is JobState.FAILED:
            delay_s = retry_delay_s(job, error, result.exit_code, self._config.retry)
        return Ending(
            job_id=job.job_id,
            attempt=job.attempt,
            state=result.state,
            retry_delay_s=delay_s,
            exit_code=result.exit_code,
            error=error,
            retryable=None if error is None else retryable(job, error, result.exit_code),
            artifact_uri=result.manifest_uri,
            cost_credits=result.cost_credits,
            remote_id=job.remote_id,
            remote_status=job.remote_status,
            artifacts=result.artifacts,
        )

    def _failed(self, flight: Flight, error: ErrorInfo) -> Ending:
        job = flight.job
        cancelled = error.code is ErrorCode.CANCELLED
        return Ending(
            job_id=job.job_id,
            attempt=job.attempt,
            state=JobState.CANCELLED if cancelled else JobState.FAILED,
            retry_delay_s=retry_delay_s(job, error, None, self._config.retry),
            error=error,
            retryable=retryable(job, error, None),
            remote_id=job.remote_id,
            remote_status=job.remote_status,
        )

    def _faulted(self, flight: Flight, error: ErrorInfo, now: float) -> Ending | None:
        if error.verdict is not Verdict.PAUSE:
            return self._failed(flight, error)
        flight.faults += 1
        if flight.faults >= MAX_FAULTS and error.code is not ErrorCode.BACKEND_BUSY:
            message = f"{flight.faults} faults in a row, last: {error.message}"
            return self._failed(flight, ErrorInfo(code=ErrorCode.PHASE_FAILED, message=message))
        backoff_s = min(RETRY_STEP_MAX_S, RETRY_STEP_S * 2.0 ** (flight.faults - 1))
        flight.due_at = now + max(backoff_s, error.retry_after_s or 0.0)
        return None

    def _lost(self, flight: Flight, order: Order, reason: str, dead: bool, now: float) -> Ending | None:
        flight.crashes += 1
        flight.begun_before = True
        flight.alone = True  # If it is this job that kills its task, it takes no others along.
        flight.due_at = now + RETRY_STEP_S
        if order.step is Step.SUBMIT:
            camber = self._config.camber
            acts_until = now if dead else max(now, flight.create_until) + camber.create_timeout_s
            self._doubt(flight, acts_until + camber.settle_s)
        elif flight.crashes >= MAX_CRASHES:
            return self._crashed(flight, reason)
        return None

    def _crashed(self, flight: Flight, reason: str) -> Ending:
        message = f"its Ray task was lost {flight.crashes} times in a row, last by {reason}"
        return self._failed(flight, ErrorInfo(code=ErrorCode.PHASE_FAILED, message=message))
