"""Outages of the backend and of the artifact store: dispatch pauses, one line says so, and one probe ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from rythmiq_ray.config import OutageConfig
from rythmiq_ray.driver.breaker import Breaker
from rythmiq_ray.errors import ErrorCode, Verdict
from rythmiq_ray.model import ErrorInfo, Job
from rythmiq_ray.telemetry.logs import get_logger

BACKEND, STORE = "backend", "store"
FAULT_LOG_INTERVAL_S: Final = 30.0

log = get_logger("driver")


class Outages:
    """A breaker for each part that may be away; times are monotonic seconds."""

    def __init__(self, config: OutageConfig, *, probe: Callable[[str], None], over: Callable[[], None]) -> None:
        """``probe`` sends one to the part of that name; ``over`` is told when an outage that paused work has ended."""
        self._breakers = {BACKEND: Breaker(config), STORE: Breaker(config)}
        self._probe = probe
        self._over = over
        self._told: set[str] = set()
        self._fault_logged_at = dict.fromkeys(self._breakers, -FAULT_LOG_INTERVAL_S)

    @property
    def any(self) -> bool:
        """Whether a part is away, so that nothing may be begun."""
        return any(breaker.open for breaker in self._breakers.values())

    def error(self, name: str) -> ErrorInfo | None:
        """Why a part counts as away; None while it is there."""
        return self._breakers[name].error

    def due_at(self) -> list[float]:
        """When the next probes may be sent."""
        return [breaker.due_at for breaker in self._breakers.values() if breaker.due_at is not None]

    def note_fault(self, error: ErrorInfo, now: float, job: Job | None = None) -> None:
        """Takes any error of a call; one that is a part's fault and not a job's pauses dispatch."""
        if error.verdict is not Verdict.PAUSE:
            return
        name = STORE if error.code is ErrorCode.STORE_UNAVAILABLE else BACKEND
        self._breakers[name].trip(error, now)
        if now >= self._fault_logged_at[name] + FAULT_LOG_INTERVAL_S:
            # One line now and then, also where the probe succeeds: a node may lack what the driver has.
            self._fault_logged_at[name] = now
            log.warning(
                "A call failed",
                part=name,
                error=error.message,
                jobId=job.job_id if job else None,
                attempt=job.attempt if job else None,
            )

    def send_probes(self, now: float) -> None:
        for name, breaker in self._breakers.items():
            if breaker.due_at is not None and now >= breaker.due_at:
                breaker.probe_sent()
                self._probe(name)

    def note_probe(self, name: str, error: ErrorInfo | None, now: float) -> None:
        """Takes what a probe brought."""
        breaker = self._breakers[name]
        if breaker.probe_ended(error, now):
            if name in self._told:
                self._told.discard(name)
                self._over()
                log.info("Dispatch resumed", part=name, after=f"{now - breaker.opened_at:.0f}s")
        elif error is not None and name not in self._told:
            self._told.add(name)
            log.warning("Dispatch paused", part=name, error=error.code, message=error.message)
