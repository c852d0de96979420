"""A circuit breaker: an outage pauses work and is probed, one call at a time, until it is over."""

from __future__ import annotations

from rythmiq_ray.config import OutageConfig
from rythmiq_ray.errors import Verdict
from rythmiq_ray.model import ErrorInfo


class Breaker:
    """Open after a fault that is not a job's; closed again by a probe that succeeds. Times are monotonic seconds."""

    def __init__(self, config: OutageConfig) -> None:
        self._config = config
        self._interval_s = config.probe_interval_s
        self._probing = False
        self._probe_at = 0.0
        self.error: ErrorInfo | None = None
        self.opened_at = 0.0

    @property
    def open(self) -> bool:
        return self.error is not None

    def trip(self, error: ErrorInfo, now: float) -> None:
        """Opens, and asks for a probe at once: if that succeeds, the fault was one call's and nothing pauses."""
        if self.error is None:
            self.opened_at = now
            self._interval_s = self._config.probe_interval_s
            self._probe_at = now + self._asked_s(error)
        self.error = error

    @property
    def due_at(self) -> float | None:
        """When the next probe may be sent; None while none is needed or one is under way."""
        return self._probe_at if self.open and not self._probing else None

    def probe_sent(self) -> None:
        self._probing = True

    def probe_ended(self, error: ErrorInfo | None, now: float) -> bool:
        """Takes a probe's result; True if that closed the breaker. A failed one doubles the time to the next."""
        self._probing = False
        if error is not None and error.verdict is not Verdict.PAUSE:
            error = None  # It answered, and a probe asks no more.
        if error is None:
            closed = self.open
            self.error = None
            return closed
        self.error = error
        self._interval_s = min(self._interval_s * 2, self._config.probe_max_interval_s)
        self._probe_at = now + max(self._interval_s, self._asked_s(error))
        return False

    def _asked_s(self, error: ErrorInfo) -> float:
        """Seconds that the service asked to wait, bounded: an answer about one job must not delay all for an hour."""
        return min(error.retry_after_s or 0.0, self._config.probe_max_interval_s)
