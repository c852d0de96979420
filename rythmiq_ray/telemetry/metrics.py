"""The metrics of a driver: their catalog, and a method for each event that changes them.

Names and units follow Prometheus' conventions. Labels are few, with fixed values and never an id, so jobs add no
series. Everything is counted in the driver, so a driver is one scrape target, however many Ray workers there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Final, Protocol

import prometheus_client
from prometheus_client.exposition import choose_encoder

from rythmiq_ray import __version__
from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import JobState, Phase, RemoteStatus, Step
from rythmiq_ray.telemetry.health import Status

Labels = tuple[str, ...]
"""Values of a metric's labels, in the order in which the metric names them."""

NO_ERROR: Final = "none"
OTHER_QUEUES: Final = "other"
OUTCOMES: Final = ("delivered", "retried", "given_up")
MAX_QUEUES: Final = 50
"""Users name queues, so their number is limited: the first get a series each, others share :data:`OTHER_QUEUES`."""


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Metric:
    """A metric; docs/metrics.md has a table of them."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_CALL_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TICK_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
_PHASE_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600)

BUILD_INFO: Final = Metric(
    name="rythmiq_build_info", kind=Kind.GAUGE, labels=("version",), help="Always 1; the label has the version."
)
CHECK_OK: Final = Metric(
    name="rythmiq_check_ok",
    kind=Kind.GAUGE,
    labels=("check",),
    help="1 while a check of /readyz succeeds, else 0. It fails while its circuit breaker is open.",
)
LEASE_AGE: Final = Metric(
    name="rythmiq_lease_age_seconds",
    kind=Kind.GAUGE,
    help="Seconds since this driver's last heartbeat; at driver.lease_s other drivers take over its jobs.",
)
TICK_AGE: Final = Metric(
    name="rythmiq_tick_age_seconds", kind=Kind.GAUGE, help="Seconds since the loop's last tick began; normally up to 1."
)
TICK_DURATION: Final = Metric(
    name="rythmiq_tick_duration_seconds",
    kind=Kind.HISTOGRAM,
    buckets=_TICK_BUCKETS,
    help="How long a tick of the driver's loop took.",
)
QUEUE_JOBS: Final = Metric(
    name="rythmiq_queue_jobs",
    kind=Kind.GAUGE,
    labels=("queue", "state"),
    help="Jobs that wait for a driver, by queue; the same from every driver. Exact up to 10,000, then an estimate.",
)
QUEUE_OLDEST: Final = Metric(
    name="rythmiq_queue_oldest_claimable_age_seconds",
    kind=Kind.GAUGE,
    help="How long the oldest claimable job of all queues has been claimable; 0 if there is none.",
)
JOBS_IN_FLIGHT: Final = Metric(
    name="rythmiq_jobs_in_flight", kind=Kind.GAUGE, labels=("phase",), help="Running attempts of this driver."
)
IN_FLIGHT_LIMIT: Final = Metric(
    name="rythmiq_jobs_in_flight_limit",
    kind=Kind.GAUGE,
    help="Most attempts of all drivers that may run: the account's limit, camber.max_in_flight, or the limit that auto"
    " found.",
)
WAITS: Final = Metric(
    name="rythmiq_waits",
    kind=Kind.GAUGE,
    labels=("wait",),
    help="Number of waits: ray = Ray tasks without a place yet, remote_queue = remote jobs that have not started,"
    " step = attempts delayed by a late sync or by faults.",
)
LONGEST_WAIT: Final = Metric(
    name="rythmiq_longest_wait_seconds",
    kind=Kind.GAUGE,
    labels=("wait",),
    help="Duration of the longest of these waits.",
)
POLL_AGE: Final = Metric(
    name="rythmiq_poll_age_seconds",
    kind=Kind.GAUGE,
    help="Seconds since the last complete poll of the remote list while attempts wait; normally up to"
    " driver.poll_interval_s.",
)
INTERNAL_FAULTS: Final = Metric(
    name="rythmiq_internal_faults_total",
    kind=Kind.COUNTER,
    help="Internal faults of rythmiq-ray; each ended at most one attempt or one tick.",
)
REMOTE_JOBS: Final = Metric(
    name="rythmiq_remote_jobs",
    kind=Kind.GAUGE,
    labels=("status",),
    help="Remote jobs of this driver's running attempts, by their last known status at Camber.",
)
JOBS_CLAIMED: Final = Metric(
    name="rythmiq_jobs_claimed_total", kind=Kind.COUNTER, help="Jobs claimed; each claim begins an attempt."
)
JOBS_ADOPTED: Final = Metric(
    name="rythmiq_jobs_adopted_total", kind=Kind.COUNTER, help="Running jobs taken over from other drivers."
)
JOBS_ENDED: Final = Metric(
    name="rythmiq_jobs_ended_total", kind=Kind.COUNTER, labels=("state",), help="Jobs that ended."
)
JOB_RETRIES: Final = Metric(
    name="rythmiq_job_retries_total",
    kind=Kind.COUNTER,
    labels=("error_code",),
    help="Attempts that are followed by another attempt of the job.",
)
ATTEMPTS_ENDED: Final = Metric(
    name="rythmiq_attempts_ended_total",
    kind=Kind.COUNTER,
    labels=("state", "error_code"),
    help="Attempts that ended.",
)
OUTCOMES_DROPPED: Final = Metric(
    name="rythmiq_outcomes_dropped_total",
    kind=Kind.COUNTER,
    help="Outcomes that were dropped because another driver had taken over the job.",
)
PHASE_DURATION: Final = Metric(
    name="rythmiq_phase_duration_seconds",
    kind=Kind.HISTOGRAM,
    labels=("phase",),
    buckets=_PHASE_BUCKETS,
    help="Time that attempts spent in a phase that they have left. Without phases that began in another driver.",
)
STEPS_LOST: Final = Metric(
    name="rythmiq_steps_lost_total",
    kind=Kind.COUNTER,
    labels=("step",),
    help="Steps that were lost with a Ray task that died or hung.",
)
API_CALL_DURATION: Final = Metric(
    name="rythmiq_api_call_duration_seconds",
    kind=Kind.HISTOGRAM,
    labels=("route", "outcome"),
    buckets=_CALL_BUCKETS,
    help="Camber's time to answer, up to the answer's headers; outcome is 2xx to 5xx, or error for no answer. Each try"
    " counts. Ray tasks report calls with their results, so calls of lost tasks are missing.",
)
ARTIFACT_BYTES: Final = Metric(
    name="rythmiq_artifact_bytes_total",
    kind=Kind.COUNTER,
    help="Bytes streamed to the artifact store by attempts whose outcome was written.",
)
PAUSED_SCOPES: Final = Metric(
    name="rythmiq_paused_scopes",
    kind=Kind.GAUGE,
    labels=("scope",),
    help="How many accounts (0 or 1), queues, users and groups are paused, as every driver sees them.",
)
BUDGETS_REACHED: Final = Metric(
    name="rythmiq_budgets_reached",
    kind=Kind.GAUGE,
    labels=("scope",),
    help="How many budgets are reached; nothing new is submitted for them.",
)
BUDGET_SPENT: Final = Metric(
    name="rythmiq_budget_spent_ratio",
    kind=Kind.GAUGE,
    labels=("scope",),
    help="The largest spent share of a budget of this scope; at 1 the budget is reached.",
)
LIMITS_REACHED: Final = Metric(
    name="rythmiq_limits_reached",
    kind=Kind.GAUGE,
    labels=("scope",),
    help="How many queues, users or groups use up a limit, of running jobs or of attempts begun in a minute.",
)
LIMIT_USED: Final = Metric(
    name="rythmiq_limit_used_ratio",
    kind=Kind.GAUGE,
    labels=("scope",),
    help="The largest share of a limit of this scope that is used; at 1 jobs behind it wait.",
)
UNSERVED_JOBS: Final = Metric(
    name="rythmiq_unserved_jobs",
    kind=Kind.GAUGE,
    help="Jobs that wait in queues that no live driver serves; exact up to 10,000 waiting ones.",
)
OLDEST_GROUP: Final = Metric(
    name="rythmiq_oldest_unfinished_group_age_seconds",
    kind=Kind.GAUGE,
    help="Age of the oldest unfinished group; 0 if there is none.",
)
UNSTORED: Final = Metric(
    name="rythmiq_unstored_attempts",
    kind=Kind.GAUGE,
    help="Attempts whose files could not be stored and are kept at Camber; `rythmiq collect` stores them.",
)
NOTIFICATIONS_WAITING: Final = Metric(
    name="rythmiq_notifications_waiting",
    kind=Kind.GAUGE,
    help="Notifications that are still to be delivered, as every driver sees them.",
)
NOTIFICATIONS: Final = Metric(
    name="rythmiq_notifications_total",
    kind=Kind.COUNTER,
    labels=("outcome",),
    help="Tries to deliver a notification; outcome is delivered, retried or given_up.",
)
COST_CREDITS: Final = Metric(
    name="rythmiq_cost_credits_total", kind=Kind.COUNTER, help="Estimated cost of ended attempts, in Camber's credits."
)

CATALOG: Final = (
    BUILD_INFO,
    CHECK_OK,
    LEASE_AGE,
    TICK_AGE,
    TICK_DURATION,
    QUEUE_JOBS,
    QUEUE_OLDEST,
    JOBS_IN_FLIGHT,
    IN_FLIGHT_LIMIT,
    WAITS,
    LONGEST_WAIT,
    POLL_AGE,
    INTERNAL_FAULTS,
    REMOTE_JOBS,
    JOBS_CLAIMED,
    JOBS_ADOPTED,
    JOBS_ENDED,
    JOB_RETRIES,
    ATTEMPTS_ENDED,
    OUTCOMES_DROPPED,
    PHASE_DURATION,
    STEPS_LOST,
    API_CALL_DURATION,
    ARTIFACT_BYTES,
    COST_CREDITS,
    PAUSED_SCOPES,
    BUDGETS_REACHED,
    BUDGET_SPENT,
    LIMITS_REACHED,
    LIMIT_USED,
    UNSERVED_JOBS,
    OLDEST_GROUP,
    UNSTORED,
    NOTIFICATIONS_WAITING,
    NOTIFICATIONS,
)

_ENDS: Final = tuple(state for state in JobState if state.finished)


class Sink(Protocol):
    """Receives metrics. Called from several threads; must not raise or block."""

    def add(self, metric: Metric, labels: Labels, amount: float) -> None:
        """Increases a counter by ``amount``; 0 creates its series."""
        ...

    def set(self, metric: Metric, labels: Labels, value: float) -> None:
        """Sets a gauge."""
        ...

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        """Adds one value to a histogram."""
        ...


class Metrics:
    """The driver's events and states, a method for each. Without a sink the methods do nothing."""

    def __init__(self, sinks: Iterable[Sink] = ()) -> None:
        self._sinks: list[Sink] = []
        self._queues: set[str] = set()
        self._depths: set[tuple[str, str]] = set()
        for sink in sinks:
            self.attach(sink)

    @property
    def on(self) -> bool:
        """Whether there is a sink; without one, expensive measurements can be left out."""
        return bool(self._sinks)

    def attach(self, sink: Sink) -> None:
        """Adds a sink for all further events."""
        sink.set(BUILD_INFO, (__version__,), 1)
        # The series are created now: Prometheus can count an event in a rate only if the series existed before it.
        for metric in (JOBS_CLAIMED, JOBS_ADOPTED, OUTCOMES_DROPPED, INTERNAL_FAULTS, ARTIFACT_BYTES, COST_CREDITS):
            sink.add(metric, (), 0)
        for state in _ENDS:
            sink.add(JOBS_ENDED, (state,), 0)
        for step in Step:
            sink.add(STEPS_LOST, (step,), 0)
        for outcome in OUTCOMES:
            sink.add(NOTIFICATIONS, (outcome,), 0)
        self._sinks.append(sink)

    def claimed(self, jobs: int) -> None:
        self._add(JOBS_CLAIMED, (), jobs)

    def adopted(self, jobs: int) -> None:
        self._add(JOBS_ADOPTED, (), jobs)

    def phase_ended(self, phase: Phase, seconds: float) -> None:
        self._observe(PHASE_DURATION, (phase,), seconds)

    def attempt_ended(
        self,
        state: JobState,
        error_code: ErrorCode | None,
        *,
        retried: bool,
        artifact_bytes: int,
        cost_credits: float | None,
    ) -> None:
        """An attempt's outcome was written; ``retried``: its job gets another attempt."""
        if not self._sinks:
            return
        code = error_code or NO_ERROR
        self._add(ATTEMPTS_ENDED, (state, code), 1)
        if retried:
            self._add(JOB_RETRIES, (code,), 1)
        else:
            self._add(JOBS_ENDED, (state,), 1)
        if artifact_bytes:
            self._add(ARTIFACT_BYTES, (), artifact_bytes)
        if cost_credits:
            self._add(COST_CREDITS, (), cost_credits)

    def outcome_dropped(self) -> None:
        self._add(OUTCOMES_DROPPED, (), 1)

    def step_lost(self, step: Step) -> None:
        self._add(STEPS_LOST, (step,), 1)

    def api_call(self, route: str, outcome: str, seconds: float) -> None:
        """One call of Camber's API; thread-safe."""
        self._observe(API_CALL_DURATION, (route, outcome), seconds)

    def ticked(self, seconds: float) -> None:
        self._observe(TICK_DURATION, (), seconds)

    def in_flight(self, phases: Mapping[Phase, int], statuses: Mapping[RemoteStatus, int], *, limit: int) -> None:
        """Numbers of running attempts by phase, of remote jobs by status, and the limit of running attempts."""
        self._set(IN_FLIGHT_LIMIT, (), limit)
        for phase in Phase:
            self._set(JOBS_IN_FLIGHT, (phase,), phases.get(phase, 0))
        for status in RemoteStatus:
            self._set(REMOTE_JOBS, (status,), statuses.get(status, 0))

    def waits(self, wait: str, count: int, longest_s: float) -> None:
        """The number of waits of one kind, and the longest in seconds."""
        self._set(WAITS, (wait,), count)
        self._set(LONGEST_WAIT, (wait,), longest_s)

    def polled(self, age_s: float) -> None:
        """Seconds since the last complete poll of the remote list."""
        self._set(POLL_AGE, (), age_s)

    def internal_fault(self) -> None:
        """A fault of rythmiq-ray itself was caught."""
        self._add(INTERNAL_FAULTS, (), 1)

    def queue_depth(self, jobs: Mapping[tuple[str, str], int], oldest_claimable_s: float) -> None:
        """Waiting jobs by queue and state."""
        depths: dict[tuple[str, str], int] = dict.fromkeys(self._depths, 0)
        for (queue, state), count in jobs.items():
            if queue not in self._queues and len(self._queues) < MAX_QUEUES:
                self._queues.add(queue)
            labels = (queue if queue in self._queues else OTHER_QUEUES, state)
            depths[labels] = depths.get(labels, 0) + count
        self._depths.update(depths)
        for labels, count in depths.items():
            self._set(QUEUE_JOBS, labels, count)
        self._set(QUEUE_OLDEST, (), oldest_claimable_s)

    def bounds(self, scope: str, *, paused: int, over: int, spent: float, at_limit: int, used: float) -> None:
        """Pauses, budgets and limits of one scope, as in :class:`rythmiq_ray.queue.Bounds`."""
        self._set(PAUSED_SCOPES, (scope,), paused)
        self._set(BUDGETS_REACHED, (scope,), over)
        self._set(BUDGET_SPENT, (scope,), spent)
        self._set(LIMITS_REACHED, (scope,), at_limit)
        self._set(LIMIT_USED, (scope,), used)

    def left_over(self, *, unserved: int, oldest_group_s: float, unstored: int, notifications: int) -> None:
        """What has to be looked at if it grows."""
        self._set(UNSERVED_JOBS, (), unserved)
        self._set(OLDEST_GROUP, (), oldest_group_s)
        self._set(UNSTORED, (), unstored)
        self._set(NOTIFICATIONS_WAITING, (), notifications)

    def told(self, outcome: str) -> None:
        """One try to deliver a notification; ``outcome`` is one of :data:`OUTCOMES`."""
        self._add(NOTIFICATIONS, (outcome,), 1)

    def status(self, status: Status) -> None:
        """The driver's health, as for /readyz and /livez."""
        for name, check in status.checks.items():
            self._set(CHECK_OK, (name,), check.ok)
        if status.lease_age_s is not None:
            self._set(LEASE_AGE, (), status.lease_age_s)
        if status.tick_age_s is not None:
            self._set(TICK_AGE, (), status.tick_age_s)

    def _add(self, metric: Metric, labels: Labels, amount: float) -> None:
        for sink in self._sinks:
            sink.add(metric, labels, amount)

    def _set(self, metric: Metric, labels: Labels, value: float) -> None:
        for sink in self._sinks:
            sink.set(metric, labels, value)

    def _observe(self, metric: Metric, labels: Labels, value: float) -> None:
        for sink in self._sinks:
            sink.observe(metric, labels, value)


class PrometheusSink:
    """Keeps metrics, and those of the process itself, for :meth:`page` to show."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._registry)
        self._metrics = {metric: self._open(metric) for metric in CATALOG}
        # Cached, because the lookup of a series by its labels would take half of a call's time. There are few series.
        self._series = cache(self._find)

    def add(self, metric: Metric, labels: Labels, amount: float) -> None:
        self._series(metric, labels).inc(amount)

    def set(self, metric: Metric, labels: Labels, value: float) -> None:
        self._series(metric, labels).set(value)

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        self._series(metric, labels).observe(value)

    def page(self, accept: str) -> tuple[bytes, str]:
        """All metrics in the format that a scrape's ``Accept`` header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _open(self, metric: Metric) -> Any:
        about = (metric.name, metric.help, metric.labels)
        match metric.kind:
            case Kind.COUNTER:
                return prometheus_client.Counter(*about, registry=self._registry)
            case Kind.GAUGE:
                return prometheus_client.Gauge(*about, registry=self._registry)
            case Kind.HISTOGRAM:
                return prometheus_client.Histogram(*about, buckets=metric.buckets, registry=self._registry)

    def _find(self, metric: Metric, labels: Labels) -> Any:
        found = self._metrics[metric]
        return found.labels(*labels) if labels else found
