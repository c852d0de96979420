"""Outages of the backend and of the artifact store: dispatch pauses, one line says so, and one probe ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Final

from rythmiq_ray.config import OutageConfig
from rythmiq_ray.driver.breaker import Breaker
from rythmiq_ray.errors import ErrorCode, Verdict
from rythmiq_ray.model import ErrorInfo, Job
from rythmiq_ray.telemetry.logs import get_logger

BACKEND, STORE = "backend", "store"
FAULT_LOG_INTERVAL_S: Final = 30.0
SLOW_PROBE_S: Final = 5.0
"""A probe that takes this long pauses dispatch and is logged, as a failed one is."""

log = get_logger("driver")


class CallSite(StrEnum):
    """Where a call was made. A service may be reachable from a node and not from the driver, or the other way round."""

    DRIVER = "driver"
    NODE = "node"


class Outages:
    """A circuit breaker for the backend and one for the store. Times are seconds of :mod:`rythmiq_ray.clock`."""

    def __init__(
        self, config: OutageConfig, *, probes: Mapping[CallSite, Callable[[str], None]], over: Callable[[], None]
    ) -> None:
        """``probes``: sends a probe of the part with that name. ``over`` is called when an outage has ended."""
        self._breakers = {BACKEND: Breaker(config), STORE: Breaker(config)}
        self._call_sites = dict.fromkeys(self._breakers, CallSite.DRIVER)
        self._probes = probes
        self._over = over
        self._told: set[str] = set()
        self._fault_logged_at = dict.fromkeys(self._breakers, -FAULT_LOG_INTERVAL_S)

    @property
    def any(self) -> bool:
        """Whether a part is unavailable, so that no step may be sent."""
        return any(breaker.open for breaker in self._breakers.values())

    def error(self, part: str) -> ErrorInfo | None:
        """Why a part counts as unavailable; None while it is available."""
        return self._breakers[part].error

    def due_at(self) -> list[float]:
        """When the next probe of each part may be sent."""
        return [breaker.due_at for breaker in self._breakers.values() if breaker.due_at is not None]

    def note_fault(self, error: ErrorInfo, now: float, place: CallSite, job: Job | None = None) -> None:
        """Takes any error of a call. If a part is at fault and not a job, dispatch pauses.

        The part is then probed from ``place``, where the fault was seen.
        """
        if error.verdict is not Verdict.PAUSE:
            return
        part = STORE if error.code is ErrorCode.STORE_UNAVAILABLE else BACKEND
        self._call_sites[part] = place
        self._breakers[part].trip(error, now)
        if now >= self._fault_logged_at[part] + FAULT_LOG_INTERVAL_S:
            # Logged at intervals, also if the probe then succeeds: the fault may concern this job alone.
            self._fault_logged_at[part] = now
            log.warning(
                "A call failed",
                part=part,
                place=place,
                error=error.message,
                jobId=job.job_id if job else None,
                attempt=job.attempt if job else None,
            )

    def send_probes(self, now: float) -> None:
        for part, breaker in self._breakers.items():
            if breaker.error is not None and now - breaker.opened_at >= SLOW_PROBE_S:
                self._say_paused(part, breaker.error)
            if breaker.due_at is not None and now >= breaker.due_at:
                breaker.probe_sent()
                self._probes[self._call_sites[part]](part)

    def note_probe(self, part: str, error: ErrorInfo | None, now: float) -> None:
        """Takes the result of a probe."""
        breaker = self._breakers[part]
        if breaker.probe_ended(error, now):
            if part in self._told:
                self._told.discard(part)
                self._over()
                log.info("Dispatch resumed", part=part, after=f"{now - breaker.opened_at:.0f}s")
        elif error is not None:
            self._say_paused(part, error)

    def _say_paused(self, part: str, error: ErrorInfo) -> None:
        if part not in self._told:
            self._told.add(part)
            log.warning(
                "Dispatch paused", part=part, place=self._call_sites[part], error=error.code, message=error.message
            )
