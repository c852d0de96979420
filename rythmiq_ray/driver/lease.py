"""The driver's lease: while it holds, no other driver can take over this driver's jobs.

A thread with its own connection renews it, so that a statement that waits for a lock does not cost the driver its jobs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Protocol
from uuid import UUID

from rythmiq_ray.errors import DatabaseUnavailable
from rythmiq_ray.telemetry.logs import get_logger

log = get_logger("driver")

RENEWALS_PER_LEASE: Final = 3
TRIES_PER_LEASE: Final = 15
"""Renewals are tried this often per lease while Postgres does not answer."""


class Heartbeat(Protocol):
    """The interface of :class:`rythmiq_ray.queue.Heartbeat`; each method may raise DatabaseUnavailable."""

    def register(self) -> UUID: ...
    def renew(self) -> bool: ...
    def resign(self) -> None: ...


class Lease:
    """A lease of ``lease_s`` seconds. It counts from when it was requested, so it ends here no later than in Postgres.

    Thread-safe. Times are seconds of :mod:`rythmiq_ray.clock`.
    """

    def __init__(
        self, heartbeat: Heartbeat, lease_s: float, *, clock: Callable[[], float], lost: Callable[[], None]
    ) -> None:
        """``lost`` is called in the lease's own thread each time the lease is lost: others may take over the jobs."""
        self._heartbeat = heartbeat
        self._lease_s = lease_s
        self._clock = clock
        self._tell_lost = lost
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._until: float | None = None
        self._due_at = 0.0
        self.lost = False
        """Whether a new lease has to be taken, under another driver id."""

    def take(self) -> UUID:
        """Registers a new driver with a new lease, and returns its id; raises DatabaseUnavailable."""
        with self._lock:
            asked_at = self._clock()
            driver_id = self._heartbeat.register()
            self._begin(asked_at)
            self.lost = False
            return driver_id

    def start(self) -> None:
        """Starts the thread that renews the lease until :meth:`stop`."""
        threading.Thread(target=self._work, name="rythmiq-lease", daemon=True).start()

    def stop(self, *, resign: bool) -> None:
        """Stops renewing. ``resign`` ends the lease at once, so that other drivers need not wait until it expires."""
        self._ended.set()
        if resign:
            with self._lock:
                self._heartbeat.resign()

    def run_once(self) -> float:
        """Renews the lease if that is due; returns the seconds until the next call."""
        with self._lock:
            now = self._clock()
            if self.lost:
                return self._lease_s / RENEWALS_PER_LEASE
            if now < self._due_at:
                return self._due_at - now
            try:
                held = self._heartbeat.renew()
            except Exception as error:
                if not isinstance(error, DatabaseUnavailable):
                    log.exception("A heartbeat failed", error=type(error).__name__)
                self._due_at = now + self._lease_s / TRIES_PER_LEASE
                return self._due_at - now
            # If the answer came after the lease's end, another driver may have taken the jobs over meanwhile.
            if held and self.held(self._clock()):
                self._begin(now)
                return self._due_at - now
            self.lost = True
        self._tell_lost()
        return self._lease_s / RENEWALS_PER_LEASE

    def held(self, now: float) -> bool:
        """Whether the lease holds; if not, nothing may be begun."""
        return now < self.until

    @property
    def until(self) -> float:
        """When the lease ends; 0 if there is none."""
        return 0.0 if self._until is None or self.lost else self._until

    def age_s(self, now: float) -> float | None:
        """Seconds since the lease was last taken or renewed; None if it was never taken."""
        return None if self._until is None else now - (self._until - self._lease_s)

    def _begin(self, asked_at: float) -> None:
        self._until = asked_at + self._lease_s
        self._due_at = asked_at + self._lease_s / RENEWALS_PER_LEASE

    def _work(self) -> None:
        pause_s = 0.0
        while not self._ended.wait(pause_s):
            pause_s = self.run_once()
