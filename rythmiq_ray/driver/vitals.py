"""A driver's health checks, the gauges of its metrics, and log lines about long waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rythmiq_ray.clock import now_s
from rythmiq_ray.config import Config
from rythmiq_ray.driver.attempts import Attempts, Waiting
from rythmiq_ray.driver.loop import Fanout, Loop
from rythmiq_ray.driver.outages import BACKEND, STORE
from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import ErrorInfo, Phase, RemoteStatus
from rythmiq_ray.queue import Queue
from rythmiq_ray.telemetry.health import Check, Stage, Status
from rythmiq_ray.telemetry.logs import get_logger
from rythmiq_ray.telemetry.metrics import Metrics

log = get_logger("driver")

PUBLISH_INTERVAL_S: Final = 5.0
"""How often gauges, such as the queue's depth, are measured."""
SHORTEST_STUCK_S: Final = 60.0
POLLS_MISSED: Final = 10.0
"""A driver counts as not ready after this many poll intervals without a complete poll, but not before
SHORTEST_STUCK_S."""
LONG_WAIT_S: Final = 60.0
"""A wait longer than this is logged, and again every REMINDER_S."""
REMINDER_S: Final = 600.0


class Wait(StrEnum):
    """What an attempt can wait for without a fault; no such wait counts as an attempt."""

    RAY = "ray"
    """A free place in Ray: the end of another task, or a new node."""
    REMOTE_QUEUE = "remote_queue"
    """Its turn in the backend's queue."""
    STEP = "step"
    """A late sync, or the end of faults; the row's ``wait_reason`` says which."""


_SAID: Final = {
    Wait.RAY: "Steps wait for a place in Ray",
    Wait.REMOTE_QUEUE: "Remote jobs wait in the backend's queue",
    Wait.STEP: "Attempts make no progress",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Waited:
    """The attempts that wait for one thing: how many, and the longest wait."""

    count: int
    longest_s: float
    example: str | None = None


def waits(attempts: Attempts, cluster: Fanout, now: float) -> dict[Wait, Waited]:
    """All waiting attempts, by what they wait for."""
    unplaced, unplaced_s = cluster.unplaced()
    found = {Wait.RAY: Waited(count=unplaced, longest_s=unplaced_s)}
    queued, stuck = Waited(count=0, longest_s=0.0), Waited(count=0, longest_s=0.0)
    for attempt in attempts:
        if attempt.wait_reason is not None:
            example = f"{attempt.job.job_id}: {attempt.wait_reason}"
            stuck = _longer(stuck, now - attempt.waits_since, example)
        elif isinstance(attempt.state, Waiting) and attempt.state.running_since is None:
            queued = _longer(queued, now - attempt.state.since, str(attempt.job.job_id))
    return found | {Wait.REMOTE_QUEUE: queued, Wait.STEP: stuck}


class Vitals:
    """Observes a loop. :meth:`status` may be called on any thread, :meth:`publish` only on the loop's own."""

    def __init__(
        self,
        config: Config,
        loop: Loop,
        cluster: Fanout,
        queue: Queue,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = now_s,
    ) -> None:
        self._config = config
        self._loop = loop
        self._cluster = cluster
        self._queue = queue
        self._metrics = metrics
        self._clock = clock
        self._publish_at = 0.0
        self._said_at: dict[Wait, float] = {}

    def status(self) -> Status:
        """The driver's present health, from single values that the loop's thread sets."""
        loop, now = self._loop, self._clock()
        driver, database = self._config.driver, self._config.database
        checks: dict[str, Check] = {}
        if loop.stage is not Stage.STARTING:
            patience_s = max(SHORTEST_STUCK_S, POLLS_MISSED * driver.poll_interval_s)
            checks = {
                "postgres": Check(
                    ok=loop.database_error is None,
                    reason=None if loop.database_error is None else ErrorCode.DATABASE_UNAVAILABLE,
                ),
                "ray": Check(ok=self._cluster.reachable),
                f"{self._config.execution.backend}_breaker": _breaker_check(loop.outages.error(BACKEND)),
                "store_breaker": _breaker_check(loop.outages.error(STORE)),
                "lease": Check(ok=loop.lease.held(now)),
                "polls": Check(ok=loop.schedule.age_s(now) < patience_s),
            }
        return Status(
            stage=Stage.STOPPING if loop.stop_requested else loop.stage,
            checks=checks,
            lease_age_s=loop.lease.age_s(now),
            tick_age_s=None if loop.ticked_at is None else now - loop.ticked_at,
            # A tick may wait until a connection and a statement have both timed out, and once more.
            stuck_after_s=max(
                SHORTEST_STUCK_S,
                2 * driver.lease_s,
                2 * (database.connect_timeout_s + database.statement_timeout_s),
            ),
        )

    def publish(self, now: float) -> None:
        """Sets the gauges, and logs long waits."""
        if now < self._publish_at:
            return
        self._publish_at = now + PUBLISH_INTERVAL_S
        found = waits(self._loop.attempts, self._cluster, now)
        self._say(found, now)
        if not self._metrics.on:
            return
        phases: Counter[Phase] = Counter()
        statuses: Counter[RemoteStatus] = Counter()
        for attempt in self._loop.attempts:
            if attempt.phase is not None:
                phases[attempt.phase] += 1
            if attempt.remote is not None:
                statuses[attempt.remote.status] += 1
        self._metrics.in_flight(phases, statuses, limit=self._loop.in_flight_limit)
        for wait, waited in found.items():
            self._metrics.waits(wait, waited.count, waited.longest_s)
        self._metrics.polled(self._loop.schedule.age_s(now))
        self._metrics.status(self.status())
        self._loop.with_database(self._publish_depth, now)

    def _publish_depth(self, _now: float) -> None:
        depth = self._queue.depth()
        self._metrics.queue_depth(depth.jobs, depth.oldest_claimable_s)
        for each in self._queue.bounds():
            self._metrics.bounds(
                each.scope,
                paused=each.paused,
                over=each.over,
                spent=each.spent,
                at_limit=each.at_limit,
                used=each.used,
            )
        unserved = self._queue.unserved({queue for queue, _ in depth.jobs}) if depth.jobs else set()
        left = self._queue.left_over()
        self._metrics.left_over(
            unserved=sum(count for (queue, _), count in depth.jobs.items() if queue in unserved),
            oldest_group_s=left.oldest_group_s,
            unstored=left.unstored,
            notifications=left.notifications,
        )

    def _say(self, found: dict[Wait, Waited], now: float) -> None:
        for wait, waited in found.items():
            if waited.count == 0 or waited.longest_s < LONG_WAIT_S:
                self._said_at.pop(wait, None)
            elif now >= self._said_at.get(wait, -REMINDER_S) + REMINDER_S:
                self._said_at[wait] = now
                log.info(_SAID[wait], count=waited.count, longest=f"{waited.longest_s:.0f}s", example=waited.example)


def _longer(waited: Waited, seconds: float, example: str) -> Waited:
    longest = seconds >= waited.longest_s
    return Waited(
        count=waited.count + 1,
        longest_s=seconds if longest else waited.longest_s,
        example=example if longest else waited.example,
    )


def _breaker_check(error: ErrorInfo | None) -> Check:
    return Check(ok=error is None, reason=None if error is None else error.code)
