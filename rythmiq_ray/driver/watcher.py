"""One watcher for all that waits: a thread that sweeps the remote list, and sends probes while there is an outage."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from queue import SimpleQueue
from typing import Final

from rythmiq_ray.backends import ExecutionBackend
from rythmiq_ray.errors import ErrorCode, RythmiqError
from rythmiq_ray.model import ErrorInfo, RemoteJob

_CHUNK: Final = 100
"""Reports are handed over in this many, about a page, so that a long sweep is acted on while it goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What to look for in the remote list."""

    number: int
    waiting: frozenset[int]
    paths: frozenset[str]
    since: datetime | None
    started_at: float
    """Monotonic seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Remote jobs as a sweep saw them."""

    sweep: int
    remotes: tuple[RemoteJob, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """A sweep came to its end; what it looked for and did not see is not in the list. With an error it says nothing."""

    sweep: Sweep
    error: ErrorInfo | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """A probe's result; None = all is well."""

    name: str
    error: ErrorInfo | None


Report = Seen | Swept | Probed


class Watcher:
    """Runs sweeps and probes one after the other, off the driver's loop, which must not wait for the network."""

    def __init__(
        self, backend: ExecutionBackend, probes: dict[str, Callable[[], object]], *, wake: Callable[[], None]
    ) -> None:
        self._backend = backend
        self._probes = probes
        self._wake = wake
        self._asked: SimpleQueue[Sweep | str | None] = SimpleQueue()
        self._reports: SimpleQueue[Report] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="rythmiq-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Lets the thread end after the call that it is in; it is a daemon, so nobody waits for it."""
        self._asked.put(None)

    def sweep(self, sweep: Sweep) -> None:
        self._asked.put(sweep)

    def probe(self, name: str) -> None:
        self._asked.put(name)

    def reports(self) -> list[Report]:
        """What came in since the last call."""
        out: list[Report] = []
        while not self._reports.empty():
            out.append(self._reports.get())
        return out

    def run_once(self) -> bool:
        """Does the next thing asked for; False once asked to stop."""
        asked = self._asked.get()
        if asked is None:
            return False
        if isinstance(asked, Sweep):
            self._report(Swept(sweep=asked, error=self._run(lambda: self._look(asked))))
        else:
            self._report(Probed(name=asked, error=self._run(self._probes[asked])))
        return True

    def _work(self) -> None:
        while self.run_once():
            pass

    def _look(self, sweep: Sweep) -> None:
        chunk: list[RemoteJob] = []
        for remote in self._backend.watch(sweep.waiting, sweep.paths, sweep.since):
            chunk.append(remote)
            if len(chunk) >= _CHUNK:
                self._report(Seen(sweep=sweep.number, remotes=tuple(chunk)))
                chunk.clear()
        if chunk:
            self._report(Seen(sweep=sweep.number, remotes=tuple(chunk)))

    def _run(self, action: Callable[[], object]) -> ErrorInfo | None:
        try:
            action()
        except RythmiqError as error:
            return ErrorInfo.of(error)
        except Exception as error:  # noqa: BLE001 - the watcher must outlive any fault of one sweep
            return ErrorInfo(code=ErrorCode.BACKEND_UNAVAILABLE, message=f"{type(error).__name__} in the watcher")
        return None

    def _report(self, report: Report) -> None:
        self._reports.put(report)
        self._wake()
