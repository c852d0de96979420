"""A world whose time, Camber and Ray are scripted, for real drivers over a real Postgres.

What is real: :class:`Loop`, :class:`Attempts`, :class:`Queue`, :class:`Executor`, the local artifact store. What is
scripted is what no server does on demand: when a call lands, whether its answer arrives, how far the list lags, which
task dies and whether it goes on acting, where in a tick a driver is frozen, and which statement loses its answer.

The promises that the scripts keep are those the design relies on: a call lands within ``create_timeout_s`` of being
sent, and the list shows a job within ``settle_s`` of its landing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg2
import psycopg2.extras
import samples

from rythmiq_ray.artifacts import open_store
from rythmiq_ray.backends import InputOpener, Unclear
from rythmiq_ray.driver.loop import Loop
from rythmiq_ray.driver.outages import BACKEND, STORE
from rythmiq_ray.driver.poller import Poll, Poller
from rythmiq_ray.errors import (
    BackendBusy,
    BackendUnavailable,
    CreateUncertain,
    DatabaseUnavailable,
    ErrorCode,
    NotFound,
)
from rythmiq_ray.executor import Executor
from rythmiq_ray.model import (
    ErrorInfo,
    Faulted,
    Job,
    RemoteFile,
    RemoteJob,
    RemoteResult,
    RemoteStatus,
    Step,
    StepRequest,
    StepResult,
    TaskLost,
)
from rythmiq_ray.queue import Queue
from rythmiq_ray.secret import Secret
from rythmiq_ray.wakeup import Wakeup

LEASE_S: Final = 10.0
CREATE_TIMEOUT_S: Final = 4.0
SETTLE_S: Final = 3.0
OVERRIDES: Final = (
    f"driver.lease_s={LEASE_S}",
    "driver.poll_interval_s=1",
    f"camber.create_timeout_s={CREATE_TIMEOUT_S}",
    f"camber.settle_s={SETTLE_S}",
    "camber.sync_timeout_s=10",
    "retry.base_delay_s=1",
    "retry.max_delay_s=4",
    "outage.probe_interval_s=1",
    "outage.probe_max_interval_s=4",
    "shutdown.grace_s=5",
)
LOG: Final = b"a line\n"
OWN_WRITES: Final = frozenset({"advance", "finish", "release", "disown"})
"""Statements about jobs that the driver must hold."""


class CreateFate(StrEnum):
    """What becomes of a create."""

    GIVEN = "given"
    LOST = "lost"
    """Created, and the answer never arrives."""
    NOT_CREATED = "not created"
    """The same to see, but nothing was created."""
    NOT_SENT = "not sent"


@dataclass(frozen=True, kw_only=True)
class Fate:
    """How a task goes that is about to run."""

    answer: CreateFate = CreateFate.GIVEN
    takes_s: float = 0.0
    """From the sending of a create to its landing, at most ``CREATE_TIMEOUT_S``."""
    lag_s: float = 0.0
    """From its landing to its place in the list, at most ``SETTLE_S``."""
    stops: bool = True
    """Whether Camber can cancel."""


@dataclass(kw_only=True)
class Remote:
    remote_id: int
    path: str
    visible_at: float
    status: RemoteStatus = RemoteStatus.PENDING
    exit_code: int = 0
    by_platform: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None

    def as_job(self) -> RemoteJob:
        return RemoteJob(
            remote_id=self.remote_id,
            status=self.status,
            path=self.path,
            started_at=self.started_at,
            finished_at=self.finished_at,
        )


class World:
    """Time, Camber, and whoever is in it."""

    def __init__(self, url: str, folder: Path, *overrides: str) -> None:
        self.url = url
        self.config = samples.config(*OVERRIDES, f"artifacts.path={folder}", *overrides)
        self.clock = 1000.0
        # Jobs are enqueued by the real clock, so the world's is ahead of it.
        self._epoch = datetime.now(UTC) + timedelta(hours=1) - timedelta(seconds=self.clock)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.camber = Camber(self)
        self.executor = Executor(
            backend=self.camber, store=open_store(self.config.artifacts), timeout_s=60.0, concurrency=1
        )
        self.drivers: list[Driver] = []
        self.zombies: list[StepRequest] = []
        """Requests of dead drivers and of tasks taken for lost: they may still be carried out."""
        self.faults: list[str] = []
        """Promises broken where no exception would be heard."""
        self._connection = psycopg2.connect(url, cursor_factory=psycopg2.extras.RealDictCursor)
        self._connection.autocommit = True

    def close(self) -> None:
        for driver in self.drivers:
            driver.queue.close()
        self._connection.close()

    @property
    def connection(self) -> Any:
        return self._connection

    def rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return [dict(row) for row in cursor.fetchall()]

    def now(self, _zone: object = None) -> datetime:
        return self._epoch + timedelta(seconds=self.clock)

    def at(self, time: float, action: Callable[[], None]) -> None:
        heappush(self._events, (time, next(self._numbers), action))

    def advance(self, seconds: float) -> None:
        """Lets time pass in which no driver does anything, but what is on its way arrives."""
        until = self.clock + seconds
        while self._events and self._events[0][0] <= until:
            time, _, action = heappop(self._events)
            self.clock = max(self.clock, time)
            action()
        self.clock = until

    def work(self, seconds: float, *, but: Driver | None = None) -> None:
        """Lets all drivers (but one) do what they do, with nothing going wrong."""
        until = self.clock + seconds
        while self.clock < until:
            for driver in self.drivers:
                if driver is not but:
                    driver.tick()
                    driver.poller.look()
                    driver.run_all()
            self.advance(min(1.0, until - self.clock))

    def start_driver(self) -> Driver:
        driver = Driver(self)
        self.drivers.append(driver)
        return driver

    def run_zombie(self, index: int, fate: Fate) -> None:
        self.carry_out(self.zombies.pop(index), fate)

    def carry_out(self, request: StepRequest, fate: Fate) -> tuple[StepResult, float]:
        """Runs a request with the real executor; returns the result and when it is there."""
        self.camber.fate = fate
        calls = self.camber.calls
        result = self.executor.run(request)
        if isinstance(result, Faulted) and result.error.code is ErrorCode.INTERNAL:
            self.faults.append(result.error.message)
        return result, self.clock + (fate.takes_s if self.camber.calls > calls else 0.0)


class Camber:
    """An ExecutionBackend in memory."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.remotes: dict[int, Remote] = {}
        self.creates: Counter[str] = Counter()
        self.calls = 0
        self.fate = Fate()
        self.down = False
        self.cap: int | None = None
        """How many jobs may be there that have not ended; more are refused."""
        self.refused = 0

    @property
    def backend_type(self) -> str:
        return type(self).__name__

    def check(self) -> str:
        if self.down:
            raise BackendUnavailable("down")
        return "nobody"

    def upload(self, job: Job, *, secrets: Mapping[str, Secret], timeout_s: float, open_input: InputOpener) -> None:
        pass

    def create(self, job: Job) -> RemoteJob:
        self.calls += 1
        path = job.remote_path or ""
        fate = self.fate
        if fate.answer is CreateFate.NOT_SENT:
            raise BackendUnavailable("no connection")
        if self.cap is not None and sum(not remote.status.terminal for remote in self.remotes.values()) >= self.cap:
            self.refused += 1
            raise BackendBusy("429")
        if fate.answer is CreateFate.NOT_CREATED:
            raise CreateUncertain("a gateway's 502")
        landed_at = self._world.clock + fate.takes_s
        remote = Remote(
            remote_id=1000 + len(self.creates) + 1000 * self.calls, path=path, visible_at=landed_at + fate.lag_s
        )

        def land() -> None:
            self.creates[path] += 1
            self.remotes[remote.remote_id] = remote

        if fate.takes_s > 0:
            self._world.at(landed_at, land)
        else:
            land()
        if fate.answer is CreateFate.LOST:
            raise CreateUncertain("the answer was lost")
        return remote.as_job()

    def watch(
        self,
        waiting: Collection[int],
        searched: Collection[str],
        search_age_s: float,
        *,
        paths: Collection[str] = frozenset(),
    ) -> Iterator[list[RemoteJob | Unclear]]:
        if self.down:
            raise BackendUnavailable("down")
        for remote in list(self.remotes.values()):
            listed = remote.visible_at <= self._world.clock and (remote.path in searched or remote.path in paths)
            if remote.remote_id in waiting or listed:
                yield [remote.as_job()]

    def read_result(self, job: Job) -> RemoteResult | None:
        for remote in self.remotes.values():
            if remote.path == job.remote_path and remote.finished_at and remote.started_at and not remote.by_platform:
                return RemoteResult(
                    exit_code=remote.exit_code,
                    reason="cancelled" if remote.status is RemoteStatus.CANCELLED else "exited",
                    started_at=remote.started_at,
                    finished_at=remote.finished_at,
                    log=RemoteFile(name="log", size_bytes=len(LOG), sha256=hashlib.sha256(LOG).hexdigest()),
                    outputs=(),
                )
        return None

    def list_files(self, job: Job) -> list[RemoteFile]:
        return []

    def read_file(self, job: Job, name: str) -> bytes:
        return LOG

    @contextmanager
    def open_file(self, job: Job, name: str, *, start: int = 0) -> Iterator[Iterator[bytes]]:
        yield iter([LOG])

    @contextmanager
    def open_log(self, job: Job) -> Iterator[Iterator[bytes]]:
        raise NotFound("no log")
        yield iter([])

    def cancel(self, job: Job, *, mark: bool = True) -> bool:
        remote = self.remotes.get(job.remote_id or 0)
        if remote is None or not self.fate.stops:
            return False
        self.end(remote, RemoteStatus.CANCELLED, 143)
        return True

    def remove(self, job: Job) -> None:
        (row,) = self._world.rows(
            "SELECT finished_at FROM rythmiq.attempts WHERE job_id = %(job_id)s AND attempt = %(attempt)s",
            job_id=str(job.job_id),
            attempt=job.attempt,
        )
        if row["finished_at"] is None:
            self._world.faults.append(f"{job.remote_path} was removed before its end was written")

    def cost_credits(self, job: Job, remote: RemoteJob) -> float | None:
        return None

    def begin(self, remote: Remote) -> None:
        if remote.status is RemoteStatus.PENDING:
            remote.status, remote.started_at = RemoteStatus.RUNNING, self._world.now()

    def end(self, remote: Remote, status: RemoteStatus, exit_code: int, *, by_platform: bool = False) -> None:
        if not remote.status.terminal:
            remote.status, remote.exit_code, remote.by_platform = status, exit_code, by_platform
            remote.finished_at = self._world.now()


class ScriptedQueue(Queue):
    """The real queue by the world's clock; a statement may freeze its driver, or lose its answer."""

    def __init__(self, world: World) -> None:
        super().__init__(Secret(world.url), lease_s=LEASE_S)
        self._world = world
        self.statement = 0
        """How many there were in this tick."""
        self.freeze: tuple[int, Callable[[], None]] | None = None
        self.lose: tuple[int, bool] | None = None
        """The number of a statement whose answer is lost, and whether Postgres carries it out."""

    def _run(self, name: str, **parameters: Any) -> list[dict[str, Any]]:
        number = self.statement
        self.statement += 1
        lost = self.lose is not None and self.lose[0] == number
        if lost and not (self.lose and self.lose[1]):
            self.close()
            raise DatabaseUnavailable("lost before")
        self.now = self._world.now()
        others = self._others_jobs() if name in OWN_WRITES else None
        rows = super()._run(name, **parameters)
        if others is not None and self._others_jobs(others) != others:
            self._world.faults.append(f"{name} changed a job of another driver")
        if self.freeze is not None and self.freeze[0] == number:
            _, meanwhile = self.freeze
            self.freeze = None
            meanwhile()
        if lost:
            self.close()
            raise DatabaseUnavailable("lost after")
        return rows

    def _others_jobs(self, known: Iterable[UUID] | None = None) -> dict[UUID, dict[str, Any]]:
        which = "driver_id IS DISTINCT FROM %(me)s" if known is None else "job_id = ANY(%(known)s::uuid[])"
        rows = self._world.rows(
            f"SELECT * FROM rythmiq.jobs WHERE {which}", me=str(self.driver_id), known=[str(i) for i in known or ()]
        )
        return {row["job_id"]: row for row in rows}


class ScriptedCluster:
    """A Fanout whose tasks run when they are told to."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: list[StepRequest] = []
        self.sent: list[StepRequest] = []
        self.slow: list[StepRequest] = []
        """Sent, and at it for long: a large input is being streamed, or the node is cut off."""
        self.ended: list[tuple[StepRequest, StepResult]] = []
        self.probes: list[str] = []
        self._under_way = 0

    def enqueue(self, request: StepRequest, *, stream_bytes: int = 0) -> None:
        self._pending.append(request)

    def dispatch(self) -> None:
        # Sets of ids, which are random, decide in which order the driver comes upon them; a replay needs the same one.
        self.sent.extend(
            sorted(self._pending, key=lambda request: (request.job.job_id, request.job.attempt, request.step))
        )
        self._pending.clear()

    def completed(self) -> list[tuple[StepRequest, StepResult]]:
        ended, self.ended = self.ended, []
        return ended

    def withdraw(self) -> tuple[list[StepRequest], list[StepRequest]]:
        pending, self._pending = self._pending, []
        return pending, []

    def backlog(self, step: Step) -> int:
        return sum(request.step is step for request in self._pending)

    def unplaced(self) -> tuple[int, float]:
        return len(self.sent), 0.0

    def probe(self, part: str) -> None:
        self.probes.append(part)

    def probed(self) -> list[tuple[str, ErrorInfo | None]]:
        down = ErrorInfo(code=ErrorCode.BACKEND_UNAVAILABLE, message="down")
        told: list[tuple[str, ErrorInfo | None]] = [
            (part, down if part == BACKEND and self._world.camber.down else None) for part in self.probes
        ]
        self.probes.clear()
        return told

    def draining(self) -> bool:
        return False

    @property
    def reachable(self) -> bool:
        return True

    @property
    def room(self) -> int:
        return 8

    @property
    def busy(self) -> bool:
        return bool(self._pending or self.sent or self.slow or self.ended or self._under_way)

    def result(self, request: StepRequest, result: StepResult, at: float, world: World) -> None:
        """The result arrives at a time, if anybody is there to take it."""
        self._under_way += 1

        def arrive() -> None:
            self._under_way -= 1
            self.ended.append((request, result))

        if at > world.clock:
            world.at(at, arrive)
        else:
            arrive()


class ScriptedPoller(Poller):
    """The real poller without its threads: it looks when it is told to."""

    def __init__(self, world: World) -> None:
        probes = {BACKEND: world.camber.check, STORE: lambda: None}
        super().__init__(world.camber, probes, wake=lambda: None)
        self._outstanding: list[Callable[[], bool]] = []

    def poll(self, poll: Poll) -> None:
        self._outstanding.append(self.poll_once)
        super().poll(poll)

    def probe(self, part: str) -> None:
        self._outstanding.append(self.probe_once)
        super().probe(part)

    def look(self) -> None:
        while self._outstanding:
            self._outstanding.pop(0)()


class _Wakeup(Wakeup):
    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def wait(self, timeout_s: float, descriptors: Iterable[int] = ()) -> None:
        self._driver.world.advance(max(0.1, timeout_s))
        self._driver.loop.lease.run_once()


@dataclass
class Driver:
    """A driver's process: its memory is gone when it crashes."""

    world: World
    queue: ScriptedQueue = field(init=False)
    cluster: ScriptedCluster = field(init=False)
    poller: ScriptedPoller = field(init=False)
    loop: Loop = field(init=False)

    def __post_init__(self) -> None:
        self.queue = ScriptedQueue(self.world)
        self.cluster = ScriptedCluster(self.world)
        self.poller = ScriptedPoller(self.world)
        self._wakeup = _Wakeup(self)
        self.loop = Loop(
            self.world.config,
            self.queue,
            self.queue,
            self.cluster,
            self.poller,
            self._wakeup,
            clock=lambda: self.world.clock,
        )
        self.loop.register()

    def tick(
        self, *, freeze: tuple[int, Callable[[], None]] | None = None, lose: tuple[int, bool] | None = None
    ) -> None:
        self.queue.statement, self.queue.freeze, self.queue.lose = 0, freeze, lose
        self.loop.lease.run_once()
        self.loop.tick()
        self.queue.freeze = self.queue.lose = None

    def run(self, index: int, fate: Fate) -> None:
        self._run(self.cluster.sent.pop(index), fate)

    def slow_down(self, index: int) -> None:
        self.cluster.slow.append(self.cluster.sent.pop(index))

    def run_slow(self, index: int, fate: Fate) -> None:
        self._run(self.cluster.slow.pop(index), fate)

    def _run(self, request: StepRequest, fate: Fate) -> None:
        result, at = self.world.carry_out(request, fate)
        self.cluster.result(request, result, at, self.world)

    def run_all(self) -> None:
        while self.cluster.sent:
            self.run(0, Fate())

    def lose(self, index: int, *, dead: bool, acted: bool) -> None:
        """A task is lost: its process is dead, having done its work or not; or it hangs, and may go on at any time."""
        request = self.cluster.sent.pop(index)
        if not dead:
            self.world.zombies.append(request)
        elif acted:
            self.world.carry_out(request, Fate(lag_s=SETTLE_S))
        self.cluster.result(request, TaskLost(reason="lost", dead=dead), self.world.clock, self.world)

    def crash(self) -> None:
        """Its tasks may go on: on a node that is cut off nobody ends them."""
        self._leave()

    def stop(self) -> None:
        self.loop.stop()
        self._leave()

    def _leave(self) -> None:
        self.world.drivers.remove(self)
        self.world.zombies.extend(self.cluster.sent + self.cluster.slow)
        self.queue.close()
        self._wakeup.close()
