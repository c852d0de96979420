"""Ray, and the only place that imports it: start, the remote task, lost tasks, drain, shutdown.

The facts it builds on are measured for Ray 2.60: a task is run once (``max_retries=0``) because Postgres decides
about retries; task names are few, since each new one costs memory for good; many orders share one task with
threads in it, since a task that waits costs a process; results are data, since an exception may not unpickle.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from queue import Empty, SimpleQueue
from secrets import token_hex
from typing import Any, Final
from urllib.parse import urlsplit

# gRPC keep-alive finds a frozen node after some 20 s instead of 437 s. Ray reads this when it is imported, and head,
# nodes and driver must agree, so cluster.yaml sets the same.
os.environ.setdefault("RAY_grpc_client_keepalive_time_ms", "10000")
os.environ.setdefault("RAY_grpc_client_keepalive_timeout_ms", "5000")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import psutil
import ray
import ray.util.metrics
from ray.exceptions import AuthenticationError, OutOfMemoryError, WorkerCrashedError

from rythmiq_ray import machine, processes
from rythmiq_ray.artifacts import open_store
from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.backends.camber.client import OnCall
from rythmiq_ray.clock import now_s
from rythmiq_ray.config import ArtifactsConfig, CamberConfig, RayConfig
from rythmiq_ray.errors import ConfigurationError, RayUnavailable
from rythmiq_ray.executor import Executor
from rythmiq_ray.fibers import Fibers
from rythmiq_ray.model import Order, Step, StepResult, TaskLost
from rythmiq_ray.secret import Secret
from rythmiq_ray.telemetry.metrics import CATALOG, Kind, Labels, Metric

_CAPACITY_INTERVAL_S: Final = 5.0
_DRAIN_INTERVAL_S: Final = 1.0
"""A node has 30 s from the first sign that it drains."""
_PICKLE_PROTOCOL: Final = 5
_SLOW_ANSWER_S: Final = 3.0
_AUTH_REMEDY: Final = "set RAY_AUTH_MODE=token and the cluster's token, in RAY_AUTH_TOKEN or ~/.ray/auth_token"
_TASKS_PER_CPU: Final = 2
"""One that runs and one that is ready to follow; what waits beyond that is demand the autoscaler sees."""
_PROBE_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 0.02
_PORT_WRITTEN_MS: Final = 1000
_LEAVE_TIMEOUT_S: Final = 10.0
_SLOWEST_BYTES_PER_S: Final = 2 * 1024 * 1024
"""Below this rate a large transfer counts as hung."""
_INPUT_ALLOWANCE_S: Final = 3600.0
"""Inputs of a size that is not known may take this long."""


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """All that a task needs to know, sent with it: a node needs no configuration and no key of its own."""

    camber: CamberConfig
    artifacts: ArtifactsConfig
    timeout_s: float
    threads: int
    report_calls: bool = False
    """Whether a task sends back what it knows of its calls to the backend, for metrics."""


ApiCall = tuple[str, str, float]
"""A call to the backend, as :data:`rythmiq_ray.backends.camber.client.OnCall` is told of it."""


_executor_lock: Final = threading.Lock()
_executor: tuple[bytes, Executor, Fibers] | None = None
_calls: Final[deque[ApiCall]] = deque(maxlen=10_000)
"""Of this process, since its last task ended."""


def build_executor(
    settings: TaskSettings, api_key: Callable[[], Secret] | None = None, *, on_call: OnCall | None = None
) -> Executor:
    """An executor with clients of its own; ``api_key`` is asked for the key of each call, where it may change."""
    return Executor(
        backend=CamberExecutionBackend(settings.camber, key=api_key, on_call=on_call),
        store=open_store(settings.artifacts),
        timeout_s=settings.timeout_s,
        concurrency=settings.artifacts.concurrency,
    )


def _process_executor(pickled: bytes) -> tuple[Executor, Fibers]:
    """Clients and fibers are made once for a worker process: connections stay warm between tasks.

    They are made anew for other settings, as after a change of the key; no task of this process uses the former then.
    """
    global _executor
    with _executor_lock:
        if _executor is None or _executor[0] != pickled:
            if _executor is not None:
                _executor[1].backend.close()
                _executor[2].close()
            settings: TaskSettings = pickle.loads(pickled)  # noqa: S301 - the driver's, by way of Ray
            on_call = _note_call if settings.report_calls else None
            _executor = (pickled, build_executor(settings, on_call=on_call), Fibers(settings.threads))
        return _executor[1], _executor[2]


def _note_call(route: str, outcome: str, seconds: float) -> None:
    _calls.append((route, outcome, seconds))


def _take_calls() -> list[ApiCall]:
    return [_calls.popleft() for _ in range(len(_calls))]


@ray.remote(max_retries=0, num_cpus=1)
def _run(settings: bytes, orders: bytes) -> bytes:
    """Both ways as bytes, because Ray's own pickler calls back into Python for every object."""
    executor, fibers = _process_executor(settings)
    results = fibers.map(executor.run, pickle.loads(orders))  # noqa: S301 - the driver's, by way of Ray
    return pickle.dumps((results, _take_calls()), _PICKLE_PROTOCOL)


@dataclass(slots=True)
class _Task:
    ref: Any
    orders: list[Order]
    deadline: float


class Cluster:
    """Runs orders as Ray tasks and hands back a result for each, whatever happens to task or node."""

    def __init__(
        self,
        config: RayConfig,
        settings: TaskSettings,
        *,
        wake: Callable[[], None],
        api_key: Callable[[], Secret] | None = None,
        on_call: OnCall | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``api_key`` is asked for the key that each task is sent; without it, that is the settings' own.

        ``on_call`` is told of the calls of each task that ended, where the settings have them reported.
        """
        self._config = config
        self._settings = settings
        self._pickled_settings = pickle.dumps(settings, _PICKLE_PROTOCOL)
        self._api_key = api_key or (lambda: settings.camber.api_key)
        self._wake = wake
        self._on_call = on_call
        self._clock = clock
        self._pending: dict[Step, deque[Order]] = {step: deque() for step in Step}
        self._alone: deque[tuple[Order, int]] = deque()
        self._running: dict[int, _Task] = {}
        self._ended: SimpleQueue[tuple[int, bytes | TaskLost]] = SimpleQueue()
        self._next_task = 0
        self._slots = _TASKS_PER_CPU
        self._slots_read_at = -_CAPACITY_INTERVAL_S
        self._answered = True
        self._asked_at: float | None = None
        self._drain_read_at = -_DRAIN_INTERVAL_S
        self._joined = False
        self._given_up = threading.Event()
        self._children: set[psutil.Process] | None = None
        """What this process had started before Ray."""
        self._remote = {step: _run.options(name=f"rythmiq.{step}") for step in Step}

    def start(self, timeout_s: float = 30.0) -> None:
        """Joins the cluster that Ray's own environment names, or starts one of its own, within ``timeout_s``.

        May be called on any thread. Raises RayUnavailable, and ConfigurationError where another setting would help.
        """
        deadline = now_s() + timeout_s
        address = os.environ.get("RAY_ADDRESS", "")
        own = address in ("", "local")
        where = "a Ray of its own on this machine" if own else address
        if own:
            machine.check()
            _prepare_own()
        elif address != "auto":
            _check_address(address, timeout_s=min(_PROBE_TIMEOUT_S, timeout_s / 2))
        self._children = processes.children()
        ended: SimpleQueue[BaseException | None] = SimpleQueue()
        # Ray ties what it starts to the life of the thread that starts it, so this one stays. The main thread is left
        # free for signals: Ray's calls here wait in C++ for minutes.
        thread = threading.Thread(target=self._init, args=(own, ended), name="rythmiq-ray", daemon=True)
        thread.start()
        try:
            error = ended.get(timeout=max(0.0, deadline - now_s()))
        except Empty:
            self._given_up.set()
            raise RayUnavailable(
                f"Ray did not start within {timeout_s:.0f} s ({where}): its logs are in"
                f" {machine.temporary_folder()}/ray/session_latest/logs; on a slow machine raise driver.start_timeout_s"
                if own
                else f"Ray at {where} answers, but did not take this process in within {timeout_s:.0f} s: a driver has"
                " to run on a node of its cluster, one that `ray start` has made"
            ) from None
        if error is not None:
            reason = " ".join(str(error).split())[:300]
            raise RayUnavailable(f"Ray cannot be started or joined ({where}): {type(error).__name__}: {reason}")

    def _init(self, own: bool, ended: SimpleQueue[BaseException | None]) -> None:
        try:
            if own:
                _wait_for_port_without_lock(self._given_up)
                ray.init(
                    address="local",
                    num_cpus=self._config.num_cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            else:
                ray.init(log_to_driver=False, logging_level=logging.ERROR)
        except BaseException as error:  # noqa: BLE001 - Ray raises many kinds, RuntimeError and SystemExit among them
            ended.put(error)
            return
        self._joined = True
        ended.put(None)
        threading.Event().wait()

    def shutdown(self) -> None:
        """Leaves Ray, or gives up to join it; tasks that still run are ended. Of a Ray of its own nothing is left."""
        self._given_up.set()
        if self._joined:
            leave = threading.Thread(target=_leave, name="rythmiq-ray-leave", daemon=True)
            leave.start()
            leave.join(_LEAVE_TIMEOUT_S)
        if self._children is not None:
            processes.kill(processes.children() - self._children)

    def enqueue(self, order: Order, *, stream_bytes: int = 0) -> None:
        """Accepts an order; it is sent with others of its step, or by itself if it asks for that."""
        if order.alone:
            self._alone.append((order, stream_bytes))
        else:
            self._pending[order.step].append(order)

    def dispatch(self) -> None:
        """Sends what fits: as many tasks as there are slots, each with its share of what is pending."""
        free = self._capacity() - len(self._running)
        while free > 0 and self._alone:
            order, stream_bytes = self._alone.popleft()
            self._send([order], extra_s=stream_bytes / _SLOWEST_BYTES_PER_S)
            free -= 1
        # Ends before beginnings: what is collected makes room for what is submitted.
        for step in (Step.COLLECT, Step.CANCEL, Step.SUBMIT, Step.CLEAN):
            pending = self._pending[step]
            while free > 0 and pending:
                share = max(1, min(self._config.jobs_per_task, -(-len(pending) // free)))
                batch = list(islice(pending, share))
                for _ in batch:
                    pending.popleft()
                self._send(batch)
                free -= 1

    def backlog(self, step: Step) -> int:
        """Orders of a step that no task has yet."""
        return len(self._pending[step])

    @property
    def room(self) -> int:
        """How many orders the cluster's tasks take at once."""
        return self._capacity() * self._config.jobs_per_task

    @property
    def busy(self) -> bool:
        return bool(self._running or self._alone or any(self._pending.values()))

    def withdraw(self) -> list[Order]:
        """Takes back what no task has yet."""
        orders = [order for order, _ in self._alone]
        self._alone.clear()
        for pending in self._pending.values():
            orders.extend(pending)
            pending.clear()
        return orders

    def completed(self) -> list[tuple[Order, StepResult]]:
        """The orders that came to an end since the last call, those of hung tasks among them."""
        out: list[tuple[Order, StepResult]] = []
        while not self._ended.empty():
            number, ended = self._ended.get()
            task = self._running.pop(number, None)
            if task is None:  # given up before
                continue
            if isinstance(ended, TaskLost):
                out.extend((order, ended) for order in task.orders)
                continue
            results, calls = pickle.loads(ended)  # noqa: S301 - a task's of ours, by way of Ray
            out.extend(zip(task.orders, results, strict=True))
            if self._on_call is not None:
                for call in calls:
                    self._on_call(*call)
        now = self._clock()
        for number, task in list(self._running.items()):
            if now >= task.deadline:
                del self._running[number]
                with suppress(Exception):
                    ray.cancel(task.ref, force=True)
                lost = TaskLost(reason="a hang: its time was over", dead=False)
                out.extend((order, lost) for order in task.orders)
        return out

    def draining(self) -> bool:
        """Whether the driver's own node is about to be taken away. A SIGTERM to the node reaches no driver."""
        now = self._clock()
        if now < self._drain_read_at + _DRAIN_INTERVAL_S:
            return False
        self._drain_read_at = now
        leaving: Collection[str] = ()
        here = ""
        with self._asking():
            # A private call: Ray Serve and Train use it, and there is no public one.
            leaving = ray._private.state.state.get_draining_nodes()
            here = ray.get_runtime_context().get_node_id()
        return here in leaving

    @property
    def reachable(self) -> bool:
        """Whether Ray's head answers; may be read from any thread.

        Without its head, a question to Ray takes until Ray ends the process, so one that takes long says it too.
        """
        asked_at = self._asked_at
        return self._answered if asked_at is None else self._clock() - asked_at < _SLOW_ANSWER_S

    def _send(self, orders: Sequence[Order], *, extra_s: float = 0.0) -> None:
        number = self._next_task
        self._next_task += 1
        if any(order.step is Step.SUBMIT and order.job.spec.inputs for order in orders):
            extra_s += _INPUT_ALLOWANCE_S
        key = self._api_key()
        if key != self._settings.camber.api_key:
            self._settings = replace(self._settings, camber=replace(self._settings.camber, api_key=key))
            self._pickled_settings = pickle.dumps(self._settings, _PICKLE_PROTOCOL)
        ref = self._remote[orders[0].step].remote(self._pickled_settings, pickle.dumps(orders, _PICKLE_PROTOCOL))
        self._running[number] = _Task(
            ref=ref, orders=list(orders), deadline=self._clock() + self._config.task_timeout_s + extra_s
        )
        ref.future().add_done_callback(lambda future: self._on_done(number, future))

    def _on_done(self, number: int, future: Future[bytes]) -> None:
        error = future.exception()
        if error is None:
            self._ended.put((number, future.result()))
        else:
            # Its text can quote anything, a secret too; the class says what happened.
            dead = isinstance(error, (WorkerCrashedError, OutOfMemoryError))
            self._ended.put((number, TaskLost(reason=type(error).__name__, dead=dead)))
        self._wake()

    def _capacity(self) -> int:
        now = self._clock()
        if now - self._slots_read_at >= _CAPACITY_INTERVAL_S:
            self._slots_read_at = now
            with self._asking():
                cpus = int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
                self._slots = max(_TASKS_PER_CPU, cpus * _TASKS_PER_CPU)
        return self._slots

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Around a question to Ray's head: notes whether it answers, and does without an answer."""
        self._asked_at = self._clock()
        try:
            yield
        except Exception:  # noqa: BLE001 - Ray raises many kinds; a task that cannot run tells of itself
            self._answered = False
        else:
            self._answered = True
        finally:
            self._asked_at = None


def _prepare_own() -> None:
    """Sets what a Ray of one's own reads from the environment."""
    if not os.environ.get("RAY_AUTH_TOKEN_PATH") and not _token_at_home():
        # Else Ray writes one into the home folder, which a container's user may not have.
        os.environ.setdefault("RAY_AUTH_TOKEN", token_hex(16))


def _wait_for_port_without_lock(given_up: threading.Event) -> None:
    """Has ``ray.init`` wait for its head's port in a way that other threads go on and that can be given up.

    Its own waits in C++ with the interpreter's lock held, for 30 s where the head has ended: no signal is seen then.
    """
    raylet: Any = ray._raylet
    node: Any = ray._private.node
    original = raylet.wait_for_persisted_port

    def wait(folder: str, node_id: str, name: str, timeout_ms: int) -> int:
        path = Path(folder) / raylet.get_port_filename(node_id, name)
        deadline = now_s() + timeout_ms / 1000
        while not path.exists():
            if given_up.wait(_LOOK_S) or now_s() > deadline:
                raise RuntimeError(f"its head process did not come up; its logs are in {folder}/logs")
        return int(original(folder, node_id, name, timeout_ms=_PORT_WRITTEN_MS))

    node.wait_for_persisted_port = wait


def _token_at_home() -> bool:
    try:
        return (Path.home() / ".ray" / "auth_token").is_file()
    except (OSError, RuntimeError):  # there is no home
        return False


def _check_address(address: str, *, timeout_s: float) -> None:
    """Asks Ray's head for its version: what does not answer to this keeps ``ray.init`` waiting for minutes."""
    # A driver's alone: nodes run this module too.
    import grpc  # type: ignore[import-untyped]
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    host, port = _host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise RayUnavailable(
            f"Ray cannot be joined: nothing answers at RAY_ADDRESS {address}: {reason}:"
            " correct it, or unset it for a Ray of the driver's own"
        ) from None
    try:
        options = [("grpc.enable_http_proxy", 0)]
        with init_grpc_channel(address, options) as channel:
            stub: Any = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)  # type: ignore[no-untyped-call]
            request = gcs_service_pb2.CheckAliveRequest()  # type: ignore[attr-defined]
            reply = stub.CheckAlive(request, timeout=timeout_s)
    except AuthenticationError:
        raise RayUnavailable(f"Ray at {address} needs a token and this driver has none: {_AUTH_REMEDY}") from None
    except grpc.RpcError as error:
        code = error.code()
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise RayUnavailable(f"Ray at {address} refuses this driver's token: {_AUTH_REMEDY}") from None
        raise RayUnavailable(
            f"Ray cannot be joined: what answers at RAY_ADDRESS {address} is no Ray head ({code.name}):"
            " it takes the port of `ray start --head --port`, 6379 by default"
        ) from None
    if reply.ray_version and reply.ray_version != ray.__version__:
        raise RayUnavailable(
            f"Ray at {address} is version {reply.ray_version}, and this driver has {ray.__version__}:"
            " install the same on both"
        )


def _host_and_port(address: str) -> tuple[str, int]:
    """Of ``host:port``; raises ConfigurationError."""
    scheme, separator, _ = address.rpartition("://")
    parts = urlsplit(f"//{address}")
    try:
        if not separator and parts.hostname and parts.port and parts.netloc == address:
            return parts.hostname, parts.port
    except ValueError:
        pass
    also = f", and not {scheme}://" if separator else ""
    raise ConfigurationError(
        f"RAY_ADDRESS: must be host:port of a Ray head{also}, auto or local: unset it for a Ray of the driver's own"
    )


def _leave() -> None:
    with suppress(Exception):
        ray.shutdown()


class RayMetrics:
    """A sink that shows a driver's metrics in Ray's dashboard, as ``ray_<name>``; to be made once Ray has started.

    Each call costs some 3 microseconds, and stays harmless after Ray has gone.
    """

    def __init__(self) -> None:
        kinds = {Kind.COUNTER: ray.util.metrics.Counter, Kind.GAUGE: ray.util.metrics.Gauge}
        self._metrics: dict[Metric, Any] = {}
        for metric in CATALOG:
            if metric.kind is Kind.HISTOGRAM:
                self._metrics[metric] = ray.util.metrics.Histogram(
                    metric.name, metric.help, boundaries=list(metric.buckets), tag_keys=metric.labels
                )
            else:
                self._metrics[metric] = kinds[metric.kind](metric.name, metric.help, tag_keys=metric.labels)

    def add(self, metric: Metric, labels: Labels, amount: float) -> None:
        if amount > 0:  # Ray refuses 0.
            self._metrics[metric].inc(amount, _tags(metric, labels))

    def set(self, metric: Metric, labels: Labels, value: float) -> None:
        self._metrics[metric].set(value, _tags(metric, labels))

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        self._metrics[metric].observe(value, _tags(metric, labels))


@cache
def _tags(metric: Metric, labels: Labels) -> dict[str, str]:
    return dict(zip(metric.labels, map(str, labels), strict=True))
