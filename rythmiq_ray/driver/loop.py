"""The driver's loop, which takes jobs through all their phases: claim, submit, poll, collect, finish.

Every tick takes new results (of steps, of polls of the remote list, notifications), writes them to Postgres, and sends
the steps that are due. The rules for an attempt are in :mod:`rythmiq_ray.driver.attempts`. Only :meth:`Loop.run` waits
for events, and only the calls to Postgres, which have a timeout, wait for the network.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from rythmiq_ray.clock import now_s
from rythmiq_ray.config import Config
from rythmiq_ray.driver.attempts import Attempt, Attempts, Collecting, Ended, Submitting, Waiting
from rythmiq_ray.driver.completer import Completer
from rythmiq_ray.driver.concurrency_limit import FIRST, ConcurrencyLimit
from rythmiq_ray.driver.janitor import Janitor
from rythmiq_ray.driver.lease import Heartbeat, Lease
from rythmiq_ray.driver.notifier import Notifier
from rythmiq_ray.driver.outages import BACKEND, CallSite, Outages
from rythmiq_ray.driver.permissions import Permissions
from rythmiq_ray.driver.poll_schedule import PollSchedule
from rythmiq_ray.driver.poller import Polled, Poller, Probed, Report, Seen
from rythmiq_ray.driver.retention import Retention
from rythmiq_ray.errors import DatabaseUnavailable, ErrorCode, place_of
from rythmiq_ray.model import (
    Cleaned,
    Collected,
    ErrorInfo,
    Faulted,
    Job,
    JobState,
    NewJob,
    Phase,
    RemoteJob,
    Step,
    StepRequest,
    StepResult,
    TaskLost,
)
from rythmiq_ray.queue import Ending, Progress, Queue
from rythmiq_ray.secret import Secret
from rythmiq_ray.spec import check
from rythmiq_ray.telemetry.health import Stage
from rythmiq_ray.telemetry.logs import get_logger
from rythmiq_ray.telemetry.metrics import Metrics
from rythmiq_ray.telemetry.traces import ENV_NAME, MOST_LINKS, Traces
from rythmiq_ray.wakeup import Wakeup

log = get_logger("driver")

LONGEST_WAIT_S: Final = 1.0
"""The longest wait between ticks. Signals end a wait at once; a draining node, for example, gives none."""
SLACK_POLLS: Final = 3.0
"""Waits that differ by up to this many poll intervals count as equal, because a start is seen up to one poll late."""
CLEAN_GRACE_S: Final = 15.0
"""How long a drain waits for the last paths to be removed; a later driver's janitor removes the rest."""
STRAY_PAUSE_S: Final = 30.0
"""Pause before a second remote job of an attempt is cancelled again; it doubles, up to STRAY_PAUSE_MAX_S."""
STRAY_PAUSE_MAX_S: Final = 3600.0
MAX_TICK_FAULTS: Final = 10
"""Failed ticks in a row after which the driver ends. A supervisor restarts it; other drivers take over its jobs."""


class Fanout(Protocol):
    """The part of :class:`rythmiq_ray.cluster.Cluster` that the loop uses."""

    def enqueue(self, request: StepRequest, *, stream_bytes: int = 0) -> None: ...
    def dispatch(self) -> None: ...
    def completed(self) -> list[tuple[StepRequest, StepResult]]: ...
    def withdraw(self) -> tuple[list[StepRequest], list[StepRequest]]: ...
    def backlog(self, step: Step) -> int: ...
    def unplaced(self) -> tuple[int, float]: ...
    def probe(self, part: str) -> None: ...
    def probed(self) -> list[tuple[str, ErrorInfo | None]]: ...
    def draining(self) -> bool: ...
    @property
    def reachable(self) -> bool: ...
    @property
    def room(self) -> int: ...
    @property
    def busy(self) -> bool: ...


class Loop:
    """One driver's loop over its queue, cluster and poller. Single-threaded; ``clock`` gives seconds."""

    def __init__(
        self,
        config: Config,
        queue: Queue,
        heartbeat: Heartbeat,
        cluster: Fanout,
        poller: Poller,
        wakeup: Wakeup,
        *,
        retention: Retention | None = None,
        notifier: Notifier | None = None,
        traces: Traces | None = None,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = now_s,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._config = config
        self._queue = queue
        self._cluster = cluster
        self._poller = poller
        self._wakeup = wakeup
        self._clock = clock
        self._permissions = Permissions(config, queue, environ)
        self._metrics = metrics or Metrics()
        self.limit = ConcurrencyLimit(config.camber.max_in_flight, slack_s=SLACK_POLLS * config.driver.poll_interval_s)
        self.attempts = Attempts(config, on_phase_ended=self._metrics.phase_ended, on_started=self._started)
        self.lease = Lease(heartbeat, config.driver.lease_s, clock=clock, lost=wakeup.set)
        self.schedule = PollSchedule(config.driver.poll_interval_s, send=poller.poll)
        self.outages = Outages(
            config.outage,
            probes={CallSite.DRIVER: poller.probe, CallSite.NODE: cluster.probe},
            over=self.attempts.outage_over,
        )
        self._completer = Completer(config.driver.batch_size, retry_s=config.driver.poll_interval_s, clock=clock)
        self._retention = retention
        self._notifier = notifier
        self._traces = traces
        self._janitor = Janitor(config.driver, queue, clean=self.attempts.clean)
        self._strays: dict[int, tuple[float, float]] = {}
        """Second remote jobs of attempts: when each is next cancelled again, and the pause after that."""
        self._claim_at = 0.0
        self._adopt_at = 0.0
        self._disown_at = 0.0
        self._cancels_at = 0.0
        self._settle_at = 0.0
        self._control_at = 0.0
        self._running = 0
        """RUNNING jobs of all drivers together."""
        self._of_an_account = config.execution.backend == "camber"
        """Whether jobs run in an account that all drivers share; else they run on the driver's own machine."""
        self._account_limit: int | None = None
        self.draining = False
        """Whether the driver only finishes its jobs and claims no more."""
        self._database_retry_at = 0.0
        self._tick_faults = 0
        self.ticked_at: float | None = None
        self.stage = Stage.STARTING
        self.database_error: str | None = None
        self.after_tick: Callable[[float], None] = lambda _now: None
        """Called with the time at the end of each tick, in the loop's thread."""
        self.stop_requested = False
        self.any_failed = False

    # ------------------------------------------------------------------ run

    def register(self) -> None:
        """Takes the driver's lease; raises DatabaseUnavailable."""
        self._queue.driver_id = self.lease.take()

    def run(self, *, drain: bool) -> None:
        """Works until a stop is requested or, with ``drain``, until nothing is left to do.

        A driver that is drained (`rythmiq drivers drain`) returns once its own jobs have ended.
        """
        idle_since: float | None = None
        self.stage = Stage.RUNNING
        self.lease.start()
        while not self.stop_requested and not self._node_leaves():
            self._guarded_tick()
            if drain or self.draining:
                idle_since = (idle_since or self._clock()) if self._idle() else None
                done = idle_since is not None and self._all_cleaned(idle_since)
                if done and (self.draining or self._queue_is_empty()):
                    return
            self.wait()

    def _guarded_tick(self) -> None:
        """Runs a tick. A fault that concerns no single job ends the tick; many in a row end the driver."""
        try:
            self.tick()
        except Exception as error:
            self._tick_faults += 1
            self._metrics.internal_fault()
            log.exception("A tick failed", error=type(error).__name__, place=place_of(error))
            if self._tick_faults >= MAX_TICK_FAULTS:
                raise
            self._wakeup.wait(LONGEST_WAIT_S)
        else:
            self._tick_faults = 0

    def tick(self) -> None:
        """Does everything that is due now, once."""
        now = self.ticked_at = self._clock()
        self._take_results(now)
        self._take_reports(now)
        self.with_database(self._database_work, now)
        self.outages.send_probes(now)
        self._send_steps()
        self._cluster.dispatch()
        if self.outages.error(BACKEND) is None:
            self.schedule.begin(self.attempts, now)
        self._metrics.ticked(self._clock() - now)
        self.after_tick(now)

    def wait(self) -> None:
        """Sleeps until an event comes or the next action is due."""
        away = self.database_error is not None  # Its socket is not read before the next try, so it is not waited on.
        if self._queue.notified and not away:
            return
        fileno = None if away else self._queue.fileno()
        self._wakeup.wait(self._next_due() - self._clock(), [] if fileno is None else [fileno])

    def stop(self) -> None:
        """Releases waiting jobs, lets running tasks end within ``shutdown.grace_s``, writes outcomes, ends the lease.

        The release comes first, because a SIGKILL may follow within seconds. Jobs whose outcomes are not written are
        taken over by another driver.
        """
        self.stage = Stage.STOPPING
        now = self._clock()
        give_up_at = now + self._config.shutdown.grace_s
        may_create = self._withdraw()
        self.with_database(self._release, now, force=True)
        while self._cluster.busy and self._clock() < give_up_at:
            self._wakeup.wait(min(LONGEST_WAIT_S, give_up_at - self._clock()))
            now = self.ticked_at = self._clock()
            self._take_results(now)
            self.with_database(self._write_outcomes, now)
            self._send_steps(only_clean=True)
            self._cluster.dispatch()
        self.with_database(self._write_outcomes, self._clock(), force=True)
        if self._notifier is not None:
            notifier = self._notifier
            self.with_database(lambda _now: notifier.tick(due=False), self._clock(), force=True)
        # A submit that still runs may create up to the end of the lease, so the lease must not end before.
        may_create |= any(a.request is not None and isinstance(a.state, Submitting) for a in self.attempts)
        self.with_database(lambda _now: self.lease.stop(resign=not may_create), self._clock(), force=True)

    # ------------------------------------------------------------- postgres

    def with_database(self, work: Callable[[float], None], now: float, *, force: bool = False) -> None:
        """Runs ``work``, which needs Postgres; while Postgres does not answer, at most once in a poll interval."""
        if self.database_error is not None and now < self._database_retry_at and not force:
            return
        try:
            if self.database_error is not None:
                self._disown_at = 0.0  # The failed call may have been a claim or a take-over that was committed.
            work(now)
        except DatabaseUnavailable as error:
            self._database_retry_at = self._clock() + self._config.driver.poll_interval_s
            if self.database_error is None:
                log.warning("Postgres does not answer, outcomes are kept", error=error.message)
            self.database_error = error.message
            return
        if self.database_error is not None:
            self.database_error = None
            self._claim_at = self._adopt_at = self._cancels_at = 0.0
            log.info("Postgres is back")

    def _database_work(self, now: float) -> None:
        self._take_notifications()
        if self.lease.lost:
            self._begin_anew()
        self._write_outcomes(now)
        if not self.lease.held(self._clock()):
            return
        self._take_cancels(now)
        self._disown(now)
        self._follow_control(now)
        if not self.draining:
            self._adopt(now)
        self._settle_left(now)
        self._claim(now)
        if not self.outages.any:
            self._janitor.tick(now)
            if self._retention is not None:
                self._retention.tick(now)

    def _take_notifications(self) -> None:
        told = self._queue.notifications()
        if "enqueued" in told:
            self._claim_at = 0.0
        if "cancel" in told:
            self._cancels_at = 0.0
        if "unsettled" in told:
            self._settle_at = 0.0
        if "limits" in told:
            self._claim_at = self._control_at = 0.0

    def _begin_anew(self) -> None:
        """Starts again with a new lease: others may have the jobs now, and the rest is taken over like anyone's."""
        log.warning("The lease was lost; its jobs are taken over again", jobs=len(self.attempts))
        self._write_outcomes(self._clock())  # The writes are fenced: they succeed only for jobs that nobody took over.
        self._withdraw()
        self.attempts.clear()
        self._strays.clear()
        self.register()
        self._adopt_at = 0.0

    def _disown(self, now: float) -> None:
        """Releases jobs that the table says are this driver's but that it does not track; locked rows come up again."""
        if now >= self._disown_at:
            self._disown_at = now + self._config.driver.lease_s
            self._queue.disown(attempt.job.job_id for attempt in self.attempts)

    def _follow_control(self, now: float) -> None:
        """Handles matters beside this driver's own jobs: pauses, budgets, schedules, the account's limit, draining."""
        if now < self._control_at and not (self._notifier is not None and self._notifier.ready):
            return
        self._control_at = now + self._config.driver.poll_interval_s
        unsent = {a.job.job_id: a for a in self.attempts if isinstance(a.state, Submitting) and a.request is None}
        found = self._queue.control_state(unsent)
        if found.draining and not self.draining:
            log.info("This driver is being drained: it finishes its jobs and claims no more", jobs=len(self.attempts))
        self.draining = self.draining or found.draining  # A new lease has a new row, which nobody drained.
        self._account_limit = found.account_limit
        for job_id in found.closed:
            self._end(self.attempts.give_back(unsent[job_id]))
        if found.unsettled:
            self._settle_at = 0.0
        if self._notifier is not None:
            self._notifier.tick(due=found.notifications_due)
        if found.schedules_due and (fired := self._queue.fire_schedules(self._config.driver.batch_size)):
            log.info("Schedules fired", runs=fired)
        if self.attempts and not self.limit.fixed:
            grown, share, sent_at = self.limit.found()
            limit, lowered_s, self._running = self._queue.adjust_account(
                first=FIRST, grown=grown, share=share, sent_age_s=max(0.0, now - sent_at)
            )
            self.limit.share(limit, None if lowered_s is None else now - lowered_s)

    def _settle_left(self, now: float) -> None:
        if now >= self._settle_at:
            settled = self._queue.settle_left(self._config.driver.batch_size)
            # Until `_follow_control` or a notification says that there is more.
            self._settle_at = 0.0 if settled.handled >= self._config.driver.batch_size else math.inf
            if self._traces is not None and settled.groups:
                self._trace(self._traces, (), groups={*settled.groups}, at={settled.at})

    def _claim(self, now: float) -> None:
        """Claims as much as fills the cluster's tasks, so that each of them is sent full."""
        room = min(self._claim_room(), self._cluster.room)
        while now >= self._claim_at and room > 0 and self.lease.held(self._clock()):
            room -= self._claim_batch(now, min(self._config.driver.batch_size, room))

    def _claim_batch(self, now: float, limit: int) -> int:
        jobs = self._queue.claim(limit, account=int(self.limit) if self._of_an_account else None)
        self._report_refusals()
        self._metrics.claimed(len(jobs))
        # Before any of them is taken up: what Postgres did not answer is not known of, and is given back.
        out_of_reach = self._permissions.look_up(jobs)
        if self._traces is not None:
            self._traces.see(jobs)
        for job in jobs:
            with self._concerning(job):
                attempt = self.attempts.begin(job, now)
                log.debug("Job claimed", jobId=job.job_id, attempt=job.attempt)
                # Checked again, because a row may have been inserted without our own enqueue.
                attempt.out_of_reach = out_of_reach[job.job_id]
                faults = check(NewJob(spec=job.spec), self._config.camber.catalog)
                if faults and isinstance(attempt.state, Submitting):
                    error = ErrorInfo(code=ErrorCode.INVALID_JOB, message="; ".join(faults))
                    self._end(self.attempts.give_up(attempt, error))
        full = len(jobs) == limit
        self._claim_at = 0.0 if full else now + self._config.driver.poll_interval_s
        return len(jobs)

    def _report_refusals(self) -> None:
        for refusal in self._queue.refusals():
            self.any_failed = self.any_failed or refusal.ended
            done = "Job failed" if refusal.ended else "Job left alone"
            log.error(done, jobId=refusal.job_id, error=ErrorCode.INVALID_JOB, message=refusal.message)

    @property
    def in_flight_limit(self) -> int:
        """The most jobs that may run at once, of all drivers of the account together, as far as this driver knows."""
        return int(self.limit) if self._account_limit is None else self._account_limit

    def _claim_room(self) -> int:
        """How many jobs may be claimed: limited by jobs in flight, and by what the cluster can soon run."""
        if self.outages.any or self.draining:
            return 0
        more = self.in_flight_limit - len(self.attempts)
        return min(more, 2 * self._cluster.room - self._cluster.backlog(Step.SUBMIT))

    def _adopt(self, now: float) -> None:
        if now < self._adopt_at:
            return
        adopted = self._queue.adopt(self._config.driver.batch_size)
        self._report_refusals()
        out_of_reach = self._permissions.look_up(orphan.job for orphan in adopted)
        if self._traces is not None:
            self._traces.see(orphan.job for orphan in adopted)
        for orphan in adopted:
            with self._concerning(orphan.job):
                self.attempts.take_over(orphan, now).out_of_reach = out_of_reach[orphan.job.job_id]
        if adopted:
            self._metrics.adopted(len(adopted))
            log.info("Jobs taken over", jobs=len(adopted))
            self._cancels_at = 0.0
        full = len(adopted) >= self._config.driver.batch_size
        self._adopt_at = 0.0 if full else now + self._config.driver.poll_interval_s

    def _take_cancels(self, now: float) -> None:
        if now < self._cancels_at:
            return
        self._cancels_at = now + self._config.driver.poll_interval_s
        if not self.attempts:
            return
        for job_id in self._queue.cancel_requests():
            attempt = self.attempts.of_job(job_id)
            if attempt is not None and attempt.stop is None:
                log.info("Cancel requested", jobId=job_id, attempt=attempt.job.attempt, phase=attempt.phase)
                self._end(self.attempts.stop(attempt, ErrorCode.CANCELLED))

    def _write_outcomes(self, _now: float) -> None:
        written: list[Ending] = []
        for ending, ours in self._completer.flush(self._queue):
            attempt = self.attempts.get(ending.job_id, ending.attempt)
            if isinstance(ending, Progress):
                log.warning("Another driver has the job", jobId=ending.job_id, attempt=ending.attempt)
                if attempt is not None:
                    self.attempts.remove(attempt)
                continue
            if not ours:
                if attempt is not None:
                    self.attempts.remove(attempt)
                self._metrics.outcome_dropped()
                log.warning("Outcome dropped, another driver has the job", jobId=ending.job_id, attempt=ending.attempt)
                continue
            written.append(ending)
            if attempt is not None:
                self.attempts.written(attempt)
            self._claim_at = 0.0  # If a limit had stopped claims, there is room now.
            if ending.retry_delay_s is None and ending.state is JobState.FAILED:
                self.any_failed = True
            with self._concerning(None):
                self._report_ending(ending)
        if self._traces is not None and written:
            self._trace(self._traces, written, groups=set(), at=set())

    def _trace(self, traces: Traces, endings: Sequence[Ending], *, groups: set[UUID], at: set[datetime]) -> None:
        """Traces attempts, the groups that they ended, and those of ``groups`` that ended at a time of ``at``.

        A trace that cannot be written costs nobody anything but the trace.
        """
        try:
            create_s = {(ending.job_id, ending.attempt): ending.create_s for ending in endings}
            attempts = [
                replace(attempt, create_s=create_s.get((attempt.job_id, attempt.attempt)))
                for attempt in (self._queue.ended_attempts(create_s) if create_s else ())
            ]
            groups |= {attempt.group_id for attempt in attempts if attempt.group_id is not None}
            at |= {attempt.finished_at for attempt in attempts}
            traces.write(attempts, self._queue.ended_groups(groups, at=at, members=MOST_LINKS) if groups else ())
        except Exception as error:  # noqa: BLE001 - as said
            log.warning("Traces were not written", attempts=len(endings), error=type(error).__name__)

    def _release(self, now: float) -> None:
        self._write_outcomes(now)
        released = self._queue.release()
        for job_id in released:
            attempt = self.attempts.of_job(job_id)
            if attempt is not None:
                self.attempts.remove(attempt)
        if released:
            log.info("Jobs given back", jobs=len(released))

    def _queue_is_empty(self) -> bool:
        try:
            return not self._queue.unfinished(telling=self._notifier is not None)
        except DatabaseUnavailable:
            return False

    # -------------------------------------------------------------- results

    @contextmanager
    def _concerning(self, job: Job | None) -> Iterator[None]:
        """Handles an exception: one about a job ends at most that job's attempt; any other is only logged."""
        try:
            yield
        except DatabaseUnavailable:
            raise
        except Exception as error:
            where = place_of(error)
            self._metrics.internal_fault()
            about = {} if job is None else {"jobId": job.job_id, "attempt": job.attempt}
            log.exception("Internal fault", **about, place=where)
            attempt = None if job is None else self.attempts.get(job.job_id, job.attempt)
            if attempt is None or attempt.phase is None:
                return
            message = f"{type(error).__name__} in the driver at {where}"
            ending = self.attempts.internal_fault(attempt, message, self._clock())
            if ending is not None:
                self._end(ending)

    def _take_results(self, now: float) -> None:
        for request, result in self._cluster.completed():
            with self._concerning(request.job):
                self._settle(request, result, now)

    def _settle(self, request: StepRequest, result: StepResult, now: float) -> None:
        if isinstance(result, TaskLost):
            self._metrics.step_lost(request.step)
        attempt = self.attempts.get(request.job.job_id, request.job.attempt)
        if attempt is None or attempt.request is not request:
            return  # It was sent under a former lease; the attempt's present request is another one.
        if isinstance(result, Faulted):
            if request.step in (Step.SUBMIT, Step.COLLECT):  # A failed cancel or clean may have causes of its own.
                self.outages.note_fault(result.error, now, CallSite.NODE, job=attempt.job)
            if result.error.code is ErrorCode.BACKEND_BUSY and request.step is Step.SUBMIT:
                self.limit.refused(attempt.requested_at, now)
        elif isinstance(result, TaskLost):
            log.warning(
                "Task lost",
                step=request.step,
                jobId=request.job.job_id,
                attempt=request.job.attempt,
                reason=result.reason,
            )
        elif isinstance(result, Collected):
            for warning in result.warnings:
                log.warning(
                    "Collected with a warning", jobId=request.job.job_id, attempt=request.job.attempt, warning=warning
                )
        elif isinstance(result, Cleaned):
            self._completer.cleaned(attempt.job)
        before = _shown(attempt)
        ending = self.attempts.settle(attempt, result, now)
        if ending is None and before != _shown(attempt):
            self._note_progress(attempt)
        self._end(ending)

    def _take_reports(self, now: float) -> None:
        for report in self._poller.reports():
            with self._concerning(None):
                self._take_report(report, now)
        for part, error in self._cluster.probed():
            self.outages.note_probe(part, error, now)

    def _take_report(self, report: Report, now: float) -> None:
        match report:
            case Seen(poll=number, remotes=remotes):
                for remote in remotes:
                    attempt = self.attempts.find(remote)
                    with self._concerning(None if attempt is None else attempt.job):
                        self._see(number, remote, now)
            case Polled(poll=poll, error=None, unclear=unclear):
                self.schedule.succeeded(poll, now)
                odd = {item.remote_id: item.error.message for item in unclear}
                for changed in self.attempts.polled(
                    poll.number,
                    poll.searched,
                    poll.waiting,
                    poll.started_at,
                    unclear=odd,
                    concerning=self._concerning,
                ):
                    if isinstance(changed, Ending):
                        self._end(changed)
                        continue
                    self._note_progress(changed)
                    if isinstance(changed.state, Waiting):
                        log.warning(
                            "No clear answer about a remote job; it is left alone for a while",
                            jobId=changed.job.job_id,
                            attempt=changed.job.attempt,
                            remoteId=changed.job.remote_id,
                            error=odd.get(changed.job.remote_id or 0),
                        )
                self._enforce_limits(poll.number, now)
            case Polled(error=ErrorInfo() as error):
                self.schedule.failed(now)
                self.outages.note_fault(error, now, CallSite.DRIVER)
            case Probed(part=part, error=error):
                self.outages.note_probe(part, error, now)

    def _see(self, poll: int, remote: RemoteJob, now: float) -> None:
        stray = self.attempts.stray(remote)
        if stray is not None:
            again_at, pause_s = self._strays.get(remote.remote_id, (0.0, STRAY_PAUSE_S))
            if now >= again_at:
                self._strays[remote.remote_id] = (now + pause_s, min(2 * pause_s, STRAY_PAUSE_MAX_S))
                log.warning(
                    "A second remote job of one attempt is cancelled", jobId=stray.job_id, remoteId=remote.remote_id
                )
                self._cluster.enqueue(StepRequest(step=Step.CANCEL, job=stray, stray=True))
            return
        attempt = self.attempts.seen(poll, remote, now)
        if attempt is not None:
            self._note_progress(attempt)
            if isinstance(attempt.state, Collecting):
                self.schedule.found_end()

    def _started(self, submitted_at: float, now: float) -> None:
        self.limit.started(submitted_at, now, in_flight=max(self._running, len(self.attempts)))

    def _note_progress(self, attempt: Attempt) -> None:
        job, phase = attempt.job, attempt.phase
        if phase is not None:
            self._completer.progress(
                Progress(
                    job_id=job.job_id,
                    attempt=job.attempt,
                    phase=phase,
                    remote_id=job.remote_id,
                    remote_status=job.remote_status,
                    wait_reason=attempt.wait_reason,
                    credits_per_hour=self._price(job),
                )
            )

    def _price(self, job: Job) -> float | None:
        return self._config.camber.catalog.credits_per_hour(job.spec) if self._of_an_account else None

    def _end(self, ending: Ending | None) -> None:
        if ending is not None:
            self._completer.ending(ending)

    def _report_ending(self, ending: Ending) -> None:
        fields: dict[str, object] = {"jobId": ending.job_id, "attempt": ending.attempt}
        if ending.error is not None:
            fields |= {"error": ending.error.code, "message": ending.error.message}
        if ending.retry_delay_s is not None:
            log.warning("Attempt failed", **fields, retryIn=f"{ending.retry_delay_s:.1f}s")
        elif ending.state is JobState.FAILED:
            log.error("Job failed", **fields)
        else:
            log.info(f"Job {ending.state.lower()}", **fields)
        self._metrics.attempt_ended(
            ending.state,
            ending.error.code if ending.error else None,
            retried=ending.retry_delay_s is not None,
            artifact_bytes=sum(artifact.bytes for artifact in ending.artifacts),
            cost_credits=ending.cost_credits,
        )

    # ---------------------------------------------------------------- steps

    def _send_steps(self, *, only_clean: bool = False) -> None:
        # The time is read again: the process may have been frozen since the tick began.
        now = self._clock()
        lease_until = self.lease.until
        if now >= lease_until or self.outages.any or (self.stop_requested and not only_clean):
            return
        for attempt in self.attempts.due(now):
            if only_clean and attempt.phase is not None:
                continue
            with self._concerning(attempt.job):
                self._send_step(attempt, now, lease_until)

    def _send_step(self, attempt: Attempt, now: float, lease_until: float) -> None:
        if attempt.request is not None or isinstance(attempt.state, Ended):
            return
        secrets: Mapping[str, Secret] = {}
        if isinstance(attempt.state, Submitting):
            if attempt.stop is not None:
                self._end(self.attempts.stop(attempt, attempt.stop.code))
                return
            if (refusal := self._permissions.refusal(attempt.job, attempt.out_of_reach)) is not None:
                self._end(self.attempts.give_up(attempt, refusal))
                return
            secrets = self._permissions.secrets(attempt.job)
        request = self.attempts.step(attempt, now, secrets=secrets, lease_until=lease_until)
        if request is not None:
            if request.step is Step.SUBMIT:
                request = self._traced(request)
            self.attempts.sent(attempt, request, now)
            self._cluster.enqueue(request, stream_bytes=attempt.alone_bytes)

    def _traced(self, request: StepRequest) -> StepRequest:
        """With the trace that the job's own spans belong to, unless its variables name one."""
        job = request.job
        trace = job.traceparent if self._traces is None else self._traces.of_job(job)
        if trace is None or ENV_NAME in job.spec.env or ENV_NAME in job.spec.secrets:
            return request
        spec = replace(job.spec, env={**job.spec.env, ENV_NAME: trace})
        return replace(request, job=replace(job, spec=spec))

    def _enforce_limits(self, poll: int, now: float) -> None:
        """Stops attempts that wait or run for too long, by the status that a complete poll has just shown."""
        for attempt in list(self.attempts):
            with self._concerning(attempt.job):
                unstoppable = self.attempts.unstoppable(attempt, now, poll=poll)
                if unstoppable is not None:
                    self._end(unstoppable)
                    continue
                code = self.attempts.overdue(attempt, now, poll=poll)
                if code is not None:
                    log.warning(
                        "Time limit passed, the remote job is stopped",
                        jobId=attempt.job.job_id,
                        attempt=attempt.job.attempt,
                        limit=code,
                    )
                    self._end(self.attempts.stop(attempt, code))

    def _withdraw(self) -> bool:
        """Takes back steps that have not begun; returns whether one of them may have begun unnoticed and may create."""
        pending, sent = self._cluster.withdraw()
        for request in (*pending, *sent):
            attempt = self.attempts.get(request.job.job_id, request.job.attempt)
            if attempt is not None and attempt.request is request:
                self.attempts.withdrawn(attempt)
        return any(request.step is Step.SUBMIT for request in sent)

    # ------------------------------------------------------------------ ends

    def _idle(self) -> bool:
        telling = self._notifier is not None and self._notifier.busy
        return not self.attempts and not self._completer.endings and not telling

    def _all_cleaned(self, idle_since: float) -> bool:
        done = not self.attempts.cleaning and not len(self._completer)
        return done or self._clock() - idle_since > CLEAN_GRACE_S

    def _node_leaves(self) -> bool:
        leaves = self._cluster.draining()
        if leaves:
            log.warning("The driver's node is being drained")
        return leaves

    def _next_due(self) -> float:
        """When the next action is due by time alone. Actions that cannot be done now are left out: they would make the
        loop spin."""
        now = self._clock()
        held, paused = self.lease.held(now), self.outages.any
        times = [now + LONGEST_WAIT_S]
        if self.database_error is not None:
            times.append(self._database_retry_at)
        else:
            if self._completer.due_at is not None:
                times.append(self._completer.due_at)
            if self.lease.lost:
                times.append(now)
            if held:
                times += (self._settle_at, self._control_at)
                if not self.draining:
                    times.append(self._adopt_at)
                if self.attempts:
                    times.append(self._cancels_at)
                if not paused:
                    times.append(self._janitor.due_at)
                    if self._retention is not None and self._retention.due_at is not None:
                        times.append(self._retention.due_at)
                if self._claim_room() > 0:
                    times.append(self._claim_at)
        if self.attempts and self.schedule.due_at is not None and self.outages.error(BACKEND) is None:
            times.append(self.schedule.due_at)
        due = self.attempts.next_due()
        if due is not None and held and not paused:
            times.append(due)
        times.extend(self.outages.due_at())
        return min(times)


def _shown(attempt: Attempt) -> tuple[Phase | None, object, str | None]:
    """The parts of an attempt that its row shows."""
    return attempt.phase, attempt.job.remote_status, attempt.wait_reason
