"""The poller: polls the remote list for all waiting attempts at once, and sends probes during outages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue

from rythmiq_ray.backends import ExecutionBackend, Unclear
from rythmiq_ray.errors import ErrorCode, RythmiqError
from rythmiq_ray.model import ErrorInfo, RemoteJob


@dataclass(frozen=True, kw_only=True, slots=True)
class Poll:
    """A request for a poll: what to look for in the remote list."""

    number: int
    waiting: frozenset[int]
    searched: frozenset[str]
    """Paths for which the poll has to report whether a remote job exists; their creates were sent at most
    ``search_age_s`` seconds ago."""
    search_age_s: float
    paths: frozenset[str]
    """The paths of all attempts: remote jobs on them are reported too."""
    started_at: float
    """Seconds of :mod:`rythmiq_ray.clock`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """Remote jobs of one page of the list."""

    poll: int
    remotes: tuple[RemoteJob, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Polled:
    """A poll has ended. Whatever it looked for and did not report is not in the list, unless there is an ``error``."""

    poll: Poll
    error: ErrorInfo | None
    unclear: tuple[Unclear, ...] = ()
    """Remote jobs about which the backend gave no clear answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probed:
    """A probe's result; error None = the part works."""

    part: str
    error: ErrorInfo | None


Report = Seen | Polled | Probed


class Poller:
    """Polls in one thread and probes in another, because the driver's loop must not wait for the network."""

    def __init__(
        self, backend: ExecutionBackend, probes: Mapping[str, Callable[[], object]], *, wake: Callable[[], None]
    ) -> None:
        self._backend = backend
        self._probes = probes
        self._wake = wake
        self._polls: SimpleQueue[Poll | None] = SimpleQueue()
        self._probes_asked: SimpleQueue[str | None] = SimpleQueue()
        self._reports: SimpleQueue[Report] = SimpleQueue()
        self._threads = [
            threading.Thread(target=_repeat, args=(once,), name=f"rythmiq-{name}", daemon=True)
            for name, once in (("poller", self.poll_once), ("prober", self.probe_once))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Lets the threads end after their present calls. They are daemons, so the process need not wait for them."""
        self._polls.put(None)
        self._probes_asked.put(None)

    def poll(self, poll: Poll) -> None:
        self._polls.put(poll)

    def probe(self, part: str) -> None:
        self._probes_asked.put(part)

    def reports(self) -> list[Report]:
        """The reports since the last call."""
        out: list[Report] = []
        while not self._reports.empty():
            out.append(self._reports.get())
        return out

    def poll_once(self) -> bool:
        """Makes the next requested poll; returns False after :meth:`stop`."""
        poll = self._polls.get()
        if poll is None:
            return False
        unclear: list[Unclear] = []
        error = _run(lambda: self._look(poll, unclear))
        self._report(Polled(poll=poll, error=error, unclear=tuple(unclear)))
        return True

    def probe_once(self) -> bool:
        """Sends the next requested probe; returns False after :meth:`stop`."""
        part = self._probes_asked.get()
        if part is None:
            return False
        self._report(Probed(part=part, error=_run(self._probes[part])))
        return True

    def _look(self, poll: Poll, unclear: list[Unclear]) -> None:
        for page in self._backend.watch(poll.waiting, poll.searched, poll.search_age_s, paths=poll.paths):
            unclear.extend(item for item in page if isinstance(item, Unclear))
            if remotes := tuple(item for item in page if isinstance(item, RemoteJob)):
                self._report(Seen(poll=poll.number, remotes=remotes))

    def _report(self, report: Report) -> None:
        self._reports.put(report)
        self._wake()


def _repeat(once: Callable[[], bool]) -> None:
    while once():
        pass


def _run(action: Callable[[], object]) -> ErrorInfo | None:
    try:
        action()
    except RythmiqError as error:
        return ErrorInfo.of(error)
    except Exception as error:  # noqa: BLE001 - the thread must outlive any fault of one poll or probe
        return ErrorInfo(code=ErrorCode.BACKEND_UNAVAILABLE, message=f"{type(error).__name__} in the poller")
    return None
