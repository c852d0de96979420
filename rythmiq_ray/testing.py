"""For tests of programs that submit jobs: the embedded services, and a driver in the test's own process.

In a ``conftest.py``::

    pytest_plugins = ["rythmiq_ray.testing"]

and in a test::

    def test_the_sweep(rythmiq):
        sweep = rythmiq.sweep(JobSpec(command="echo $LR > score.txt", outputs=["score.txt"]), grid(LR=[1, 2]))
        sweep.wait(timeout=60)
        assert [row["score"] for row in sweep.table("score.txt")] == [1, 2]

Jobs run as processes of this machine, through the Camber emulator; a job takes about a second. Needs the extra
``local`` and pytest.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Final
from uuid import uuid4

import psycopg2
import pytest

from rythmiq_ray.client import Client
from rythmiq_ray.config import Config
from rythmiq_ray.config_loader import VARIABLES, load
from rythmiq_ray.driver.loop import Loop
from rythmiq_ray.driver.outages import BACKEND, STORE
from rythmiq_ray.driver.poller import Poller
from rythmiq_ray.executor import Executor
from rythmiq_ray.local.camber import Emulator
from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.model import ErrorInfo, Step, StepRequest, StepResult, TaskLost
from rythmiq_ray.queue import Heartbeat, Queue
from rythmiq_ray.queue.migrations import migrate
from rythmiq_ray.secret import Secret
from rythmiq_ray.wakeup import Wakeup

_API_KEY: Final = "0123456789abcdef" * 2 + "01234567"
_QUICK: Final = (
    "driver.poll_interval_s=0.2",
    "camber.settle_s=1",
    "camber.max_in_flight=16",
    "retry.base_delay_s=0.1",
    "retry.max_delay_s=1",
    "outage.probe_interval_s=0.5",
)


@pytest.fixture(scope="session")
def rythmiq_environment() -> Iterator[dict[str, str]]:
    """Starts Postgres, an artifact store in a folder, and a Camber emulator; yields the variables that name them."""
    # Not in pytest's own folder: if tests run as root only root may enter it, and Postgres runs as another user.
    root = Path(tempfile.mkdtemp(prefix="rythmiq-testing-"))
    root.chmod(0o711)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        server = Postgres(root / "postgres", fsync=False)
        server.start(tethered=True)
        stack.callback(server.stop)
        server.wait()
        emulator = stack.enter_context(Emulator(root / "camber", api_key=_API_KEY))
        (root / "artifacts").mkdir()
        yield {
            "SERVICE_ENV": "local",
            "DATABASE_URL": server.url,
            "ARTIFACT_STORE_TYPE": "local",
            "ARTIFACT_STORE_PATH": str(root / "artifacts"),
            "EXECUTION_BACKEND": "camber",
            "CAMBER_API_KEY": _API_KEY,
            "CAMBER_API_ENDPOINT": emulator.endpoint,
        }


@pytest.fixture
def rythmiq(rythmiq_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A client with a new database, which a driver in this process serves until the test ends.

    The environment variables are set too, so that the CLI uses the same database.
    """
    for name in [*VARIABLES, "RYTHMIQ_CONFIG"]:
        monkeypatch.delenv(name, raising=False)
    with _fresh_database(rythmiq_environment["DATABASE_URL"]) as url:
        environment = {**rythmiq_environment, "DATABASE_URL": url}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        migrate(Secret(url))
        with InlineDriver.of(environment), Client(url) as client:
            yield client


@contextmanager
def _fresh_database(url: str) -> Iterator[str]:
    name = f"rythmiq_{uuid4().hex}"
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
            yield url.replace("/postgres?", f"/{name}?")
            cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        connection.close()


class InlineDriver:
    """A driver in a thread of this process, with threads instead of Ray tasks."""

    def __init__(self, config: Config, executor: Executor) -> None:
        self._wakeup = Wakeup()
        self._queue = Queue(
            config.database.url,
            lease_s=config.driver.lease_s,
            queues=config.driver.queues,
            age_s=config.driver.priority_age_s,
        )
        self._heartbeat = Heartbeat(config.database.url, lease_s=config.driver.lease_s)
        probes = {BACKEND: executor.backend.check, STORE: executor.store.check}
        self._poller = Poller(executor.backend, probes, wake=self._wakeup.set)
        cluster = InlineCluster(executor, wake=self._wakeup.set)
        self._loop = Loop(config, self._queue, self._heartbeat, cluster, self._poller, self._wakeup)
        self._registered: Future[None] = Future()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rythmiq-inline-driver", daemon=True)

    @classmethod
    def of(cls, environment: Mapping[str, str], *overrides: str) -> InlineDriver:
        """A driver for a configuration; ``overrides`` as for ``python -m rythmiq_ray.driver``."""
        from rythmiq_ray.assembly import ExecutorFactory

        kept = {name: os.environ[name] for name in os.environ if name.startswith(("AWS_", "RYTHMIQ_SECRET_"))}
        config = load([*_QUICK, *overrides], environ={**kept, **environment}).config
        return cls(config, ExecutorFactory.of(config).build())

    def __enter__(self) -> InlineDriver:
        self._thread.start()
        self._registered.result()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping.set()
        self._wakeup.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.register()
        except BaseException as error:  # noqa: BLE001 - raised by __enter__
            self._queue.close()
            self._heartbeat.close()
            self._registered.set_exception(error)
            return
        self._registered.set_result(None)
        self._loop.lease.start()
        self._poller.start()
        try:
            while not self._stopping.is_set():
                self._loop.tick()
                self._loop.wait()
        finally:
            self._loop.stop()
            self._loop.lease.stop(resign=True)
            self._poller.stop()
            self._queue.close()
            self._heartbeat.close()


class InlineCluster:
    """A cluster without Ray: steps run in threads of this process. Executor, backend and store are real."""

    def __init__(
        self,
        executor: Executor,
        *,
        wake: Callable[[], None],
        threads: int = 8,
        loses: Callable[[StepRequest], bool] = lambda _request: False,
    ) -> None:
        """``loses``: whether to simulate that the task of a finished request died before it could report."""
        self._loses = loses
        self._executor = executor
        self._wake = wake
        self._threads = ThreadPoolExecutor(threads)
        self._ended: SimpleQueue[tuple[StepRequest, StepResult]] = SimpleQueue()
        self._probed: SimpleQueue[tuple[str, ErrorInfo | None]] = SimpleQueue()
        self._pending: list[StepRequest] = []
        self._running = 0
        self._size = threads

    def enqueue(self, request: StepRequest, *, stream_bytes: int = 0) -> None:  # noqa: ARG002 - as the protocol has it
        self._pending.append(request)

    def dispatch(self) -> None:
        while self._pending:
            request = self._pending.pop(0)
            self._running += 1
            future = self._threads.submit(self._executor.run, request)
            future.add_done_callback(lambda done, request=request: self._done(request, done))  # type: ignore[misc]

    def completed(self) -> list[tuple[StepRequest, StepResult]]:
        out = []
        while not self._ended.empty():
            out.append(self._ended.get())
        self._running -= len(out)
        return out

    def withdraw(self) -> tuple[list[StepRequest], list[StepRequest]]:
        requests, self._pending = self._pending, []
        return requests, []

    def unplaced(self) -> tuple[int, float]:
        return 0, 0.0

    def probe(self, part: str) -> None:
        def look() -> None:
            self._probed.put((part, self._executor.probe(part)))
            self._wake()

        self._threads.submit(look)

    def probed(self) -> list[tuple[str, ErrorInfo | None]]:
        found = []
        while not self._probed.empty():
            found.append(self._probed.get())
        return found

    def backlog(self, step: Step) -> int:
        return sum(request.step is step for request in self._pending)

    def draining(self) -> bool:
        return False

    @property
    def reachable(self) -> bool:
        return True

    @property
    def room(self) -> int:
        return self._size

    @property
    def busy(self) -> bool:
        return bool(self._pending or self._running)

    def _done(self, request: StepRequest, future: Future[StepResult]) -> None:
        lost = self._loses(request)
        self._ended.put((request, TaskLost(reason="WorkerCrashedError", dead=True) if lost else future.result()))
        self._wake()
