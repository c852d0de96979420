"""The way of a job, as one loop: claim, submit, watch, collect, finish.

Every tick takes what came in (ended tasks, sweeps of the remote list, notifications), writes it to Postgres, and
sends what is due. A flight's own rules are in :mod:`rythmiq_ray.driver.flights`; nothing here waits but
:meth:`Loop.run`, and nothing waits for the network but the calls to Postgres, which have a time-out.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from rythmiq_ray.config import Config
from rythmiq_ray.driver.flights import Flight, Flights
from rythmiq_ray.driver.janitor import Janitor
from rythmiq_ray.driver.lease import Lease
from rythmiq_ray.driver.limit import InFlightLimit
from rythmiq_ray.driver.outages import BACKEND, STORE, Outages
from rythmiq_ray.driver.outbox import Outbox
from rythmiq_ray.driver.sweeps import Sweeps
from rythmiq_ray.driver.wakeup import Wakeup
from rythmiq_ray.driver.watcher import Probed, Seen, Swept, Watcher
from rythmiq_ray.errors import DatabaseUnavailable, ErrorCode
from rythmiq_ray.model import (
    Collected,
    ErrorInfo,
    Faulted,
    JobState,
    NewJob,
    Order,
    Phase,
    RemoteStatus,
    Step,
    StepResult,
    TaskLost,
)
from rythmiq_ray.queue import Ending, Progress, Queue
from rythmiq_ray.secret import Secret
from rythmiq_ray.spec import check
from rythmiq_ray.telemetry.health import Check, Stage, Status
from rythmiq_ray.telemetry.logs import get_logger
from rythmiq_ray.telemetry.metrics import Metrics

log = get_logger("driver")

SECRET_PREFIX: Final = "RYTHMIQ_SECRET_"  # noqa: S105 - where secrets are found, not one
LONGEST_WAIT_S: Final = 1.0
"""Signals come by the wakeup pipe; this is for what gives no sign, such as a node that drains."""
SLACK_SWEEPS: Final = 3.0
"""A start is seen up to a sweep late, so waits that differ by a few of them are taken for the same."""
CLEAN_GRACE_S: Final = 15.0
"""How long a drain waits for the last paths to be removed; the janitor of another run takes the rest."""
PUBLISH_INTERVAL_S: Final = 5.0
"""How often states, the queue's depth among them, are measured for metrics."""
SHORTEST_STUCK_S: Final = 60.0


class Fanout(Protocol):
    """What the loop needs of :class:`rythmiq_ray.cluster.Cluster`."""

    def enqueue(self, order: Order, *, stream_bytes: int = 0) -> None: ...
    def dispatch(self) -> None: ...
    def completed(self) -> list[tuple[Order, StepResult]]: ...
    def withdraw(self) -> list[Order]: ...
    def backlog(self, step: Step) -> int: ...
    def draining(self) -> bool: ...
    @property
    def reachable(self) -> bool: ...
    @property
    def room(self) -> int: ...
    @property
    def busy(self) -> bool: ...


class Loop:
    """One driver's loop over its queue, cluster and watcher. Single-threaded; ``clock`` is monotonic seconds."""

    def __init__(
        self,
        config: Config,
        queue: Queue,
        cluster: Fanout,
        watcher: Watcher,
        wakeup: Wakeup,
        *,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._config = config
        self._queue = queue
        self._cluster = cluster
        self._watcher = watcher
        self._wakeup = wakeup
        self._clock = clock
        self._environ = environ
        self._metrics = metrics or Metrics()
        self.flights = Flights(config, on_phase_ended=self._metrics.phase_ended)
        self._limit = InFlightLimit(config.camber.max_in_flight, slack_s=SLACK_SWEEPS * config.driver.poll_interval_s)
        self._lease = Lease(queue, config.driver.lease_s, clock=clock)
        self._sweeps = Sweeps(config.driver.poll_interval_s, send=watcher.sweep)
        self._outbox = Outbox(config.driver.batch_size, retry_s=config.driver.poll_interval_s, clock=clock)
        self._outages = Outages(config.outage, probe=watcher.probe, over=self.flights.outage_over)
        self._janitor = Janitor(config.driver, queue, send=cluster.enqueue, cleaned=self._outbox.cleaned)
        self._claim_at = 0.0
        self._adopt_at = 0.0
        self._cancels_at = 0.0
        self._limits_at = 0.0
        self._publish_at = 0.0
        self._ticked_at: float | None = None
        self._stage = Stage.STARTING
        self._database_error: str | None = None
        self._database_retry_at = 0.0
        self.stop_requested = False
        self.any_failed = False

    # ------------------------------------------------------------------ run

    def register(self) -> None:
        """Takes the lease under which everything is done; raises DatabaseUnavailable."""
        self._lease.take()

    def run(self, *, drain: bool) -> None:
        """Works until a stop is requested or, with ``drain``, until nothing is left to do."""
        idle_since: float | None = None
        self._stage = Stage.RUNNING
        while not self.stop_requested and not self._node_leaves():
            self.tick()
            if drain:
                idle_since = (idle_since or self._clock()) if self._idle() else None
                if idle_since is not None and self._all_cleaned(idle_since) and self._queue_is_empty():
                    return
            self.wait()

    def tick(self) -> None:
        """Everything that is due now, once."""
        now = self._ticked_at = self._clock()
        for order, result in self._cluster.completed():
            self._settle(order, result, now)
        self._take_reports(now)
        self._with_database(self._database_work, now)
        self._outages.send_probes(now)
        self._enforce_limits(now)
        self._send_orders()
        self._cluster.dispatch()
        if self._outages.error(BACKEND) is None:
            self._sweeps.begin(self.flights, now)
        if self._metrics.on:
            self._metrics.ticked(self._clock() - now)
            self._publish(now)

    def wait(self) -> None:
        """Sleeps until something happens or the next thing is due."""
        if self._queue.notified:
            return
        fileno = self._queue.fileno()
        self._wakeup.wait(self._next_due() - self._clock(), [] if fileno is None else [fileno])

    def stop(self) -> None:
        """Gives back all that waits, lets running tasks end within the grace, writes their outcomes, resigns.

        The release comes first, because a SIGKILL may follow within seconds; whatever is not written is taken over
        by another driver.
        """
        self._stage = Stage.STOPPING
        now = self._clock()
        give_up_at = now + self._config.shutdown.grace_s
        self._withdraw()
        self._with_database(self._release, now, force=True)
        while self._cluster.busy and self._clock() < give_up_at:
            self._wakeup.wait(min(LONGEST_WAIT_S, give_up_at - self._clock()))
            now = self._ticked_at = self._clock()
            for order, result in self._cluster.completed():
                self._settle(order, result, now)
            self._with_database(self._write_outcomes, now)
            self._cluster.dispatch()  # What was written can be cleaned up.
        self._with_database(self._write_outcomes, self._clock(), force=True)
        if not any(flight.busy and flight.phase is Phase.SUBMITTING for flight in self.flights):
            # A submit that goes on may create up to the end of the lease, so nobody may take over before that.
            self._with_database(lambda _now: self._queue.resign(), self._clock(), force=True)

    # --------------------------------------------------------------- health

    def status(self) -> Status:
        """How the driver is. May be asked from any thread: it reads single values that the loop's own thread sets."""
        now, driver, database = self._clock(), self._config.driver, self._config.database
        checks: dict[str, Check] = {}
        if self._stage is not Stage.STARTING:
            checks = {
                "postgres": Check(
                    ok=self._database_error is None,
                    reason=None if self._database_error is None else ErrorCode.DATABASE_UNAVAILABLE,
                ),
                "ray": Check(ok=self._cluster.reachable),
                f"{self._config.execution.backend}_breaker": _breaker_check(self._outages.error(BACKEND)),
                "store_breaker": _breaker_check(self._outages.error(STORE)),
                "lease": Check(ok=self._lease.held(now)),
            }
        return Status(
            stage=Stage.STOPPING if self.stop_requested else self._stage,
            checks=checks,
            lease_age_s=self._lease.age_s(now),
            tick_age_s=None if self._ticked_at is None else now - self._ticked_at,
            # A tick may wait for a connection and a statement that both run into their time-outs, and begin again.
            stuck_after_s=max(
                SHORTEST_STUCK_S,
                2 * driver.lease_s,
                2 * (database.connect_timeout_s + database.statement_timeout_s),
            ),
        )

    def _publish(self, now: float) -> None:
        """Measures what is a state rather than an event."""
        if now < self._publish_at:
            return
        self._publish_at = now + PUBLISH_INTERVAL_S
        phases: Counter[Phase] = Counter()
        statuses: Counter[RemoteStatus] = Counter()
        for flight in self.flights:
            phases[flight.phase] += 1
            if flight.remote is not None:
                statuses[flight.remote.status] += 1
        self._metrics.in_flight(phases, statuses, limit=int(self._limit))
        self._metrics.status(self.status())
        self._with_database(self._publish_depth, now)

    def _publish_depth(self, _now: float) -> None:
        depth = self._queue.depth()
        self._metrics.queue_depth(depth.jobs, depth.oldest_claimable_s)

    # ------------------------------------------------------------- postgres

    def _with_database(self, work: Callable[[float], None], now: float, *, force: bool = False) -> None:
        """Runs work that needs Postgres; while it is away, at most once a poll interval."""
        if self._database_error is not None and now < self._database_retry_at and not force:
            return
        try:
            if self._database_error is not None:
                # The lost call may have been a claim or a take-over that Postgres carried out.
                self._queue.disown(flight.job.job_id for flight in self.flights)
            work(now)
        except DatabaseUnavailable as error:
            self._database_retry_at = self._clock() + self._config.driver.poll_interval_s
            if self._database_error is None:
                log.warning("Postgres is away, outcomes are kept", error=error.message)
            self._database_error = error.message
            return
        if self._database_error is not None:
            self._database_error = None
            self._claim_at = self._adopt_at = self._cancels_at = 0.0
            log.info("Postgres is back")

    def _database_work(self, now: float) -> None:
        self._take_notifications()
        self._write_outcomes(now)
        self._heartbeat(now)
        if not self._lease.held(now):
            return
        self._take_cancels(now)
        self._adopt(now)
        self._claim(now)
        if not self._outages.any:
            self._janitor.look_round(now)

    def _take_notifications(self) -> None:
        told = self._queue.notifications()
        if "enqueued" in told:
            self._claim_at = 0.0
        if "cancel" in told:
            self._cancels_at = 0.0

    def _heartbeat(self, now: float) -> None:
        if now < self._lease.renew_at or self._lease.renew():
            return
        # Others may hold these jobs by now. Under a new lease they are taken over like anybody's.
        log.warning("The lease was lost; its jobs are taken over anew", jobs=len(self.flights))
        self._withdraw()
        self.flights.clear()
        self._lease.take()
        self._adopt_at = 0.0

    def _claim(self, now: float) -> None:
        room = self._claim_room()
        if now < self._claim_at or room <= 0:
            return
        limit = min(self._config.driver.batch_size, room)
        jobs = self._queue.claim(limit)
        self._report_refusals()
        self._metrics.claimed(len(jobs))
        for job in jobs:
            if (
                job.phase is Phase.COLLECTING
            ):  # Its remote job ended before; what it left is kept and only to be stored.
                self.flights.take_over(job, 0.0, now)
                continue
            flight = self.flights.begin(job, now)
            log.debug("Job claimed", jobId=job.job_id, attempt=job.attempt)
            # Not every row was put in by our own enqueue.
            faults = check(NewJob(spec=job.spec), self._config.camber.catalog)
            if faults:
                error = ErrorInfo(code=ErrorCode.INVALID_JOB, message="; ".join(faults))
                self._end(self.flights.give_up(flight, error))
        full = len(jobs) == limit
        self._claim_at = 0.0 if full else now + self._config.driver.poll_interval_s

    def _report_refusals(self) -> None:
        for refusal in self._queue.refusals():
            self.any_failed = self.any_failed or refusal.ended
            done = "Job failed" if refusal.ended else "Job left alone"
            log.error(done, jobId=refusal.job_id, error=ErrorCode.INVALID_JOB, message=refusal.message)

    def _claim_room(self) -> int:
        """How many jobs may be claimed: no more than may be in flight, nor than is soon sent."""
        if self._outages.any:
            return 0
        more = int(self._limit) - len(self.flights)
        return min(more, 2 * self._cluster.room - self._cluster.backlog(Step.SUBMIT))

    def _adopt(self, now: float) -> None:
        if now < self._adopt_at:
            return
        adopted = self._queue.adopt(self._config.driver.batch_size)
        self._report_refusals()
        for orphan in adopted:
            self.flights.take_over(orphan.job, orphan.orphaned_s, now)
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
        if not self.flights:
            return
        for job_id in self._queue.cancel_requests():
            flight = self.flights.get(job_id)
            if flight is not None and flight.stop_code is None:
                log.info("Cancel requested", jobId=job_id, attempt=flight.job.attempt, phase=flight.phase)
                self._end(self.flights.stop(flight, ErrorCode.CANCELLED))

    def _write_outcomes(self, _now: float) -> None:
        for ending, ours in self._outbox.flush(self._queue):
            flight = self.flights.get(ending.job_id, ending.attempt)
            if flight is not None:
                self.flights.remove(flight)
            if isinstance(ending, Progress):
                log.warning("Another driver has the job", jobId=ending.job_id, attempt=ending.attempt)
                continue
            if not ours:
                self._metrics.outcome_dropped()
                log.warning("Outcome dropped, another driver has the job", jobId=ending.job_id, attempt=ending.attempt)
                continue
            self._report_ending(ending)
            self._metrics.attempt_ended(
                ending.state,
                ending.error.code if ending.error else None,
                retried=ending.retry_delay_s is not None,
                artifact_bytes=sum(artifact.bytes for artifact in ending.artifacts),
                cost_credits=ending.cost_credits,
            )
            if flight is not None:
                self._janitor.clean(flight.job)
            if ending.retry_delay_s is None and ending.state is JobState.FAILED:
                self.any_failed = True

    def _release(self, now: float) -> None:
        self._write_outcomes(now)
        released = self._queue.release()
        for job_id in released:
            flight = self.flights.get(job_id)
            if flight is not None:
                self.flights.remove(flight)
        if released:
            log.info("Jobs given back", jobs=len(released))

    def _queue_is_empty(self) -> bool:
        try:
            return not self._queue.unfinished()
        except DatabaseUnavailable:
            return False

    # -------------------------------------------------------------- results

    def _settle(self, order: Order, result: StepResult, now: float) -> None:
        if isinstance(result, TaskLost):
            self._metrics.step_lost(order.step)
        if order.step is Step.CLEAN:
            self._janitor.settle(order, result)
            return
        flight = self.flights.get(order.job.job_id, order.job.attempt)
        if flight is None or flight.sent is not order:
            return  # It was sent under a lease that was lost; what is sent now must not be taken for ended by it.
        if isinstance(result, Faulted):
            self._outages.note_fault(result.error, now, job=flight.job)
            if result.error.code is ErrorCode.BACKEND_BUSY and order.step is Step.SUBMIT:
                self._limit.refused(flight.sent_at, now)
        elif isinstance(result, TaskLost):
            log.warning(
                "Task lost", step=order.step, jobId=order.job.job_id, attempt=order.job.attempt, reason=result.reason
            )
        elif isinstance(result, Collected):
            for warning in result.warnings:
                log.warning(
                    "Collected with a warning", jobId=order.job.job_id, attempt=order.job.attempt, warning=warning
                )
        before = (flight.phase, flight.job.remote_status)
        ending = self.flights.settle(flight, order, result, now)
        if ending is None and before != (flight.phase, flight.job.remote_status):
            self._note_progress(flight)
        self._end(ending)

    def _take_reports(self, now: float) -> None:
        for report in self._watcher.reports():
            match report:
                case Seen(sweep=number, remotes=remotes):
                    for remote in remotes:
                        flight = self.flights.seen(number, remote, now)
                        if flight is not None:
                            self._note_progress(flight)
                            if flight.phase is Phase.COLLECTING:
                                self._sweeps.found_end()
                            if flight.running_at == now and not flight.begun_before:
                                self._limit.started(flight.submitted_at, now, in_flight=len(self.flights))
                case Swept(sweep=sweep, error=None):
                    self._sweeps.succeeded(sweep, now)
                    for ending in self.flights.swept(sweep.number, sweep.paths, sweep.waiting, sweep.started_at):
                        self._end(ending)
                case Swept(error=ErrorInfo() as error):
                    self._sweeps.failed(now)
                    self._outages.note_fault(error, now)
                case Probed(name=name, error=error):
                    self._outages.note_probe(name, error, now)

    def _note_progress(self, flight: Flight) -> None:
        job = flight.job
        self._outbox.progress(
            Progress(
                job_id=job.job_id,
                attempt=job.attempt,
                phase=flight.phase,
                remote_id=job.remote_id,
                remote_status=job.remote_status,
            )
        )

    def _end(self, ending: Ending | None) -> None:
        if ending is None:
            return
        flight = self.flights.get(ending.job_id, ending.attempt)
        if flight is not None:
            flight.busy = True  # Nothing more is sent for it; it goes once its end is written.
        self._outbox.ending(ending)

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

    # ---------------------------------------------------------------- orders

    def _send_orders(self) -> None:
        # Not the tick's own time: a driver may be frozen at any line, and then that is long past.
        now = self._clock()
        if not self._lease.held(now) or self.stop_requested or self._outages.any:
            return
        lease_left_s = self._lease.left_s(now)
        for flight in self.flights.due(now):
            if flight.busy:
                continue
            if flight.stop_code is not None and flight.phase is Phase.SUBMITTING:
                self._end(self.flights.stop(flight, flight.stop_code))
                continue
            if flight.phase is Phase.SUBMITTING and not self._may_submit(flight):
                continue
            secrets = self._secrets(flight) if flight.phase is Phase.SUBMITTING else {}
            order = self.flights.order(flight, now, secrets=secrets, lease_left_s=lease_left_s)
            if order is not None:
                flight.busy, flight.sent, flight.sent_at = True, order, now
                self._cluster.enqueue(order, stream_bytes=flight.alone_bytes)

    def _enforce_limits(self, now: float) -> None:
        """Stops what waits or runs for too long."""
        if now < self._limits_at:
            return
        self._limits_at = now + self._config.driver.poll_interval_s
        for flight in list(self.flights):
            unstoppable = self.flights.unstoppable(flight, now)
            if unstoppable is not None:
                self._end(unstoppable)
                continue
            code = self.flights.overdue(flight, now)
            if code is not None:
                log.warning(
                    "Time limit passed, the remote job is stopped",
                    jobId=flight.job.job_id,
                    attempt=flight.job.attempt,
                    limit=code,
                )
                self._end(self.flights.stop(flight, code))

    def _may_submit(self, flight: Flight) -> bool:
        """Whether the driver has the secrets that the job names; ends the attempt where it has not."""
        job = flight.job
        missing = [name for name in job.spec.secrets if not self._environ.get(SECRET_PREFIX + name)]
        if missing:
            names = ", ".join(SECRET_PREFIX + name for name in missing)
            error = ErrorInfo(code=ErrorCode.SECRET_MISSING, message=f"the driver's environment lacks {names}")
            self._end(self.flights.give_up(flight, error))
            return False
        return True

    def _secrets(self, flight: Flight) -> dict[str, Secret]:
        return {name: Secret(self._environ[SECRET_PREFIX + name]) for name in flight.job.spec.secrets}

    def _withdraw(self) -> None:
        """Takes back the orders that no task has."""
        for order in self._cluster.withdraw():
            flight = self.flights.get(order.job.job_id, order.job.attempt)
            if flight is not None and order.step is not Step.CLEAN:
                flight.busy = False
                self.flights.wake(flight)

    # ------------------------------------------------------------------ ends

    def _idle(self) -> bool:
        return not self.flights and not self._outbox.endings

    def _all_cleaned(self, idle_since: float) -> bool:
        done = not self._janitor.busy and not len(self._outbox)
        return done or self._clock() - idle_since > CLEAN_GRACE_S

    def _node_leaves(self) -> bool:
        leaves = self._cluster.draining()
        if leaves:
            log.warning("The driver's node is being drained")
        return leaves

    def _next_due(self) -> float:
        """When the next thing is due by the clock alone. What cannot be done now must not be in it."""
        now = self._clock()
        leased, paused = self._lease.held(now), self._outages.any
        times = [now + LONGEST_WAIT_S]
        if self._database_error is not None:
            times.append(self._database_retry_at)
        else:
            times.append(self._lease.renew_at)
            if self._outbox.due_at is not None:
                times.append(self._outbox.due_at)
            if leased:
                times.append(self._adopt_at)
                if self.flights:
                    times.append(self._cancels_at)
                if not paused:
                    times.append(self._janitor.due_at)
                if self._claim_room() > 0:
                    times.append(self._claim_at)
        if self.flights:
            times.append(self._limits_at)
            if self._sweeps.due_at is not None and self._outages.error(BACKEND) is None:
                times.append(self._sweeps.due_at)
            due = self.flights.next_due()
            if due is not None and leased and not paused:
                times.append(due)
        times.extend(self._outages.due_at())
        return min(times)


def _breaker_check(error: ErrorInfo | None) -> Check:
    return Check(ok=error is None, reason=None if error is None else error.code)
