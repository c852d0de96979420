"""The only module that uses Ray: start, remote tasks, lost tasks, drain, shutdown.

It builds on facts measured with Ray 2.60. A task runs once (``max_retries=0``), because Postgres decides about retries.
There are few task names, because Ray never frees the memory that each takes. Many requests share one task with a pool
of threads, because a waiting task costs a process. Results are data, because an exception may not unpickle.

A task returns a stream of messages: first that it has begun, then its results as they come. So its timeout counts from
its own start, a slow request does not delay the results of others, and results that came before a worker died are
kept. A message costs the driver about 0.4 ms, so results that are ready within :data:`_LINGER_S` share one.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import pickle
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from queue import Empty, Queue, SimpleQueue
from secrets import token_hex
from typing import Any, Final, Protocol
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
from rythmiq_ray.backends import CallObserver
from rythmiq_ray.clock import clock_id, now_s
from rythmiq_ray.config import RayConfig
from rythmiq_ray.errors import ConfigurationError, RayUnavailable, RythmiqError
from rythmiq_ray.executor import PROBES, Executor
from rythmiq_ray.model import ErrorInfo, Faulted, Step, StepRequest, StepResult, TaskLost
from rythmiq_ray.telemetry.metrics import CATALOG, Kind, Labels, Metric

_CAPACITY_INTERVAL_S: Final = 5.0
_DRAIN_INTERVAL_S: Final = 1.0
"""A draining node has 30 s left from the first sign of it."""
_PICKLE_PROTOCOL: Final = 5
_SLOW_ANSWER_S: Final = 3.0
_AUTH_REMEDY: Final = "set RAY_AUTH_MODE=token and the cluster's token, in RAY_AUTH_TOKEN or ~/.ray/auth_token"
_TASKS_PER_CPU: Final = 2
"""One runs and one waits to follow it at once. Waiting tasks are also the demand that the autoscaler sees."""
_PROBE_TIMEOUT_S: Final = 10.0
_LOOK_S: Final = 0.02
_PORT_WRITTEN_MS: Final = 1000
_LEAVE_TIMEOUT_S: Final = 10.0
_SLOWEST_BYTES_PER_S: Final = 2 * 1024 * 1024
"""A large transfer that is slower than this counts as hung."""
_INPUT_ALLOWANCE_S: Final = 3600.0
"""Added to a task's timeout for inputs, whose size is not known."""
_LINGER_S: Final = 0.01
_CLOCK_KEPT_S: Final = 30.0
_PROBE_S: Final = 150.0
"""Longer than the deadlines of all calls of a probe, so a probe that takes longer hangs."""


class ExecutorFactory(Protocol):
    """Makes the executor of a Ray worker process. It is pickled and sent with each task.

    Equal factories make equal executors, so a worker keeps its executor while the factory stays the same.
    """

    @property
    def threads(self) -> int:
        """How many requests run at once in a process."""
        ...

    @property
    def report_calls(self) -> bool:
        """Whether a task reports its calls to the backend, for metrics."""
        ...

    def build(self, *, on_call: CallObserver | None = None) -> Executor:
        """A new executor with its own clients; raises RythmiqError."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """The first message of every task: the name of its machine's clock, and that clock's time in seconds."""

    clock: str
    at: float


def _begun() -> bytes:
    return pickle.dumps(_Begun(clock=clock_id(), at=now_s()), _PICKLE_PROTOCOL)


ApiCall = tuple[str, str, float]
"""A call to the backend: the arguments of :data:`rythmiq_ray.backends.CallObserver`."""


_executor_lock: Final = threading.Lock()
_executor: tuple[bytes, Executor, ThreadPoolExecutor] | None = None
_calls: Final[deque[ApiCall]] = deque(maxlen=10_000)
"""Calls of this process that no message has reported yet."""


def _process_executor(pickled: bytes) -> tuple[Executor, ThreadPoolExecutor]:
    """The executor and thread pool of this worker process, kept between tasks so that connections stay open.

    They are made again when the factory changes, for example with the key; no task of this process uses the former
    ones then. Raises BackendUnavailable if this node cannot make calls at all.
    """
    global _executor
    with _executor_lock:
        if _executor is None or _executor[0] != pickled:
            if _executor is not None:
                _executor[1].backend.close()
                _executor[2].shutdown(wait=False)
                _executor = None
            factory: ExecutorFactory = pickle.loads(pickled)  # noqa: S301 - the driver's, by way of Ray
            on_call = _note_call if factory.report_calls else None
            threads = ThreadPoolExecutor(factory.threads, thread_name_prefix="request")
            _executor = (pickled, factory.build(on_call=on_call), threads)
        return _executor[1], _executor[2]


def _note_call(route: str, outcome: str, seconds: float) -> None:
    _calls.append((route, outcome, seconds))


def _take_calls() -> list[ApiCall]:
    return [_calls.popleft() for _ in range(len(_calls))]


@ray.remote(max_retries=0, num_cpus=0.99, num_returns="streaming")
def _run(factory: bytes, requests: bytes, clocks: dict[str, float]) -> Iterator[bytes]:
    """Runs requests. They and the results are sent as bytes: Ray's pickler would call back into Python for each object.

    ``clocks``: for each clock that the driver knows, how many seconds it is ahead of the driver's, at least.
    """
    yield _begun()
    todo: list[StepRequest] = pickle.loads(requests)  # noqa: S301 - the driver's, by way of Ray
    for results in _results(factory, todo, clocks.get(clock_id())):
        yield pickle.dumps((results, _take_calls()), _PICKLE_PROTOCOL)


def _results(
    factory: bytes, requests: Sequence[StepRequest], clock_offset_s: float | None
) -> Iterator[list[tuple[int, StepResult]]]:
    """Batches of (index of the request, its result): results that are ready at about the same time share a batch."""
    try:
        executor, threads = _process_executor(factory)
    except RythmiqError as error:
        fault = Faulted(error=ErrorInfo.of(error))
        yield [(place, fault) for place in range(len(requests))]
        return
    ended: SimpleQueue[tuple[int, StepResult]] = SimpleQueue()

    def run(place: int, request: StepRequest) -> None:
        ended.put((place, executor.run(request, clock_offset_s=clock_offset_s)))

    for place, request in enumerate(requests):
        threads.submit(run, place, request)
    left = len(requests)
    while left:
        results = [ended.get()]
        if left > 1:
            time.sleep(_LINGER_S)
        while not ended.empty():
            results.append(ended.get())
        left -= len(results)
        yield results


@ray.remote(max_retries=0, num_cpus=0.01, num_returns="streaming")
def _probe(factory: bytes, part: str) -> Iterator[bytes]:
    """Runs a probe. It needs only the 0.01 CPU that tasks leave free, so it waits for none of them and runs on a node
    where tasks run."""
    yield _begun()
    try:
        error = _process_executor(factory)[0].probe(part)
    except RythmiqError as fault:
        error = ErrorInfo.of(fault)
    yield pickle.dumps((error, _take_calls()), _PICKLE_PROTOCOL)


@dataclass(slots=True)
class _Task:
    stream: Any
    requests: dict[int, StepRequest]
    """The requests without a result, by index; empty for a probe."""
    part: str | None
    """What a probe tests; None for a task with requests."""
    allowed_s: float
    sent_at: float
    deadline: float | None = None
    """None until the task has begun."""


class Cluster:
    """Runs requests as Ray tasks and returns a result for each, whatever happens to the task or its node."""

    def __init__(
        self,
        config: RayConfig,
        factory: Callable[[], ExecutorFactory],
        *,
        wake: Callable[[], None],
        on_call: CallObserver | None = None,
        clock: Callable[[], float] = now_s,
    ) -> None:
        """``factory`` is called for each task; it returns a new value when, for example, the key has changed.

        ``wake`` is called when a result has arrived, on another thread. ``on_call`` gets each call to the backend that
        tasks report. ``clock``: seconds.
        """
        self._config = config
        self._factory = factory
        self._sent: tuple[ExecutorFactory, bytes] | None = None
        self._wake = wake
        self._on_call = on_call
        self._clock = clock
        self._pending: dict[Step, deque[StepRequest]] = {step: deque() for step in Step}
        self._alone: deque[tuple[StepRequest, int]] = deque()
        self._running: dict[int, _Task] = {}
        self._probing: dict[int, _Task] = {}
        self._messages: SimpleQueue[tuple[int, bytes | TaskLost | None]] = SimpleQueue()
        self._results: list[tuple[StepRequest, StepResult]] = []
        self._probed: list[tuple[str, ErrorInfo | None]] = []
        self._clocks = {clock_id(): 0.0}
        self._offset_at = {clock_id(): math.inf}
        """When each offset was measured; the driver's own clock has no need to be."""
        self._next_task = 0
        self._slots = _TASKS_PER_CPU
        self._slots_read_at = -_CAPACITY_INTERVAL_S
        self._answered = True
        self._asked_at: float | None = None
        self._drain_read_at = -_DRAIN_INTERVAL_S
        self._joined = False
        self._given_up = threading.Event()
        self._children: set[psutil.Process] | None = None
        """The child processes from before Ray was started, which are not Ray's."""
        self._remote = {step: _run.options(name=f"rythmiq.{step}") for step in Step}
        self._listening = asyncio.new_event_loop()
        threading.Thread(target=self._listening.run_forever, name="ray-results", daemon=True).start()

    def start(self, timeout_s: float = 30.0) -> None:
        """Joins the cluster that ``RAY_ADDRESS`` names, or starts a local Ray if it is unset, within ``timeout_s``.

        May be called on any thread. Raises RayUnavailable, or ConfigurationError if a setting has to be changed.
        """
        deadline = now_s() + timeout_s
        address = os.environ.get("RAY_ADDRESS", "")
        own = address in ("", "local")
        where = "a local Ray on this machine" if own else address
        if own:
            machine.check()
            _prepare_own()
        elif address != "auto":
            check_address(address, timeout_s=min(_PROBE_TIMEOUT_S, timeout_s / 2))
        self._children = processes.children()
        ended: Queue[BaseException | None] = Queue()
        # Processes that Ray starts end with the thread that started them, so this thread never ends. It is not the main
        # thread, which has to handle signals: Ray's calls here can wait in C++ for minutes.
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
                else f"Ray at {where} answers, but did not accept this process within {timeout_s:.0f} s: a driver has"
                " to run on a node of its cluster, started by `ray start`"
            ) from None
        if error is not None:
            reason = " ".join(str(error).split())[:300]
            raise RayUnavailable(f"Ray cannot be started or joined ({where}): {type(error).__name__}: {reason}")

    def _init(self, own: bool, ended: Queue[BaseException | None]) -> None:
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
        """Leaves Ray, or stops joining it. Tasks that still run are killed, and so are all processes of a local Ray."""
        self._given_up.set()
        _quieten_rays_threads()
        if self._joined:
            leave = threading.Thread(target=_leave, name="rythmiq-ray-leave", daemon=True)
            leave.start()
            leave.join(_LEAVE_TIMEOUT_S)
        if self._children is not None:
            processes.kill(processes.children() - self._children)

    def enqueue(self, request: StepRequest, *, stream_bytes: int = 0) -> None:
        """Accepts a request, to be sent with others of its step, or in a task of its own if ``request.alone``.

        ``stream_bytes``: how much such a task will stream; its timeout is longer accordingly.
        """
        if request.alone:
            self._alone.append((request, stream_bytes))
        else:
            self._pending[request.step].append(request)

    def dispatch(self) -> None:
        """Sends as many tasks as there are free slots, each with its share of the pending requests."""
        slots = self._capacity()
        free = slots - len(self._running)
        while free > 0 and self._alone:
            request, stream_bytes = self._alone.popleft()
            self._send([request], extra_s=stream_bytes / _SLOWEST_BYTES_PER_S)
            free -= 1
        # Collects go first: each makes room for a submit.
        for step in (Step.COLLECT, Step.CANCEL, Step.SUBMIT, Step.CLEAN):
            pending = self._pending[step]
            while free > 0 and pending:
                # Shared among the CPUs that are idle; a task that has to wait for one takes all that it may.
                idle = max(1, free - slots + slots // _TASKS_PER_CPU)
                share = min(self._config.jobs_per_task, -(-len(pending) // idle))
                batch = list(islice(pending, share))
                for _ in batch:
                    pending.popleft()
                self._send(batch)
                free -= 1

    def backlog(self, step: Step) -> int:
        """How many requests of a step are not in a task yet."""
        return len(self._pending[step])

    @property
    def room(self) -> int:
        """How many requests the cluster's tasks can hold at once."""
        return self._capacity() * self._config.jobs_per_task

    @property
    def busy(self) -> bool:
        return bool(self._running or self._results or self._alone or any(self._pending.values()))

    def withdraw(self) -> tuple[list[StepRequest], list[StepRequest]]:
        """Takes back requests, and returns two lists: those that were in no task, and those of tasks not known to have
        begun.

        A task of the second kind may have begun all the same: its message may be late, or its node out of reach.
        """
        pending = [request for request, _ in self._alone]
        self._alone.clear()
        for requests in self._pending.values():
            pending.extend(requests)
            requests.clear()
        self._read_messages()
        unbegun = [number for number, task in self._running.items() if task.deadline is None]
        return pending, [request for number in unbegun for request in self._drop_task(number)]

    def completed(self) -> list[tuple[StepRequest, StepResult]]:
        """Requests with a result since the last call; requests of tasks past their timeout have ``TaskLost``."""
        self._read_messages()
        now = self._clock()
        for number, task in [*self._running.items(), *self._probing.items()]:
            if task.deadline is not None and now >= task.deadline:
                self._fail_task(number, task, TaskLost(reason="a hang: it ran past its deadline", dead=False))
        results, self._results = self._results, []
        return results

    def unplaced(self) -> tuple[int, float]:
        """How many tasks have been sent and not begun, and how many seconds the oldest of them has waited."""
        sent_at = [task.sent_at for task in self._running.values() if task.deadline is None]
        return len(sent_at), self._clock() - min(sent_at) if sent_at else 0.0

    def probe(self, part: str) -> None:
        """Tests a part, a name in :data:`~rythmiq_ray.executor.PROBES`, from a node; :meth:`probed` has the result."""
        factory = self._pickled_factory()
        try:
            stream = _probe.options(name="rythmiq.probe").remote(factory, part)
        except Exception as error:  # noqa: BLE001 - as in _send
            message = f"the probe could not be sent: {type(error).__name__}"
            self._probed.append((part, ErrorInfo(code=PROBES[part], message=message)))
            return
        self._follow(stream, {}, part, _PROBE_S)

    def probed(self) -> list[tuple[str, ErrorInfo | None]]:
        """Results of probes since the last call, None = it works; lost and hung probes have an error."""
        self._read_messages()
        found, self._probed = self._probed, []
        return found

    def draining(self) -> bool:
        """Whether the driver's own node is being drained. A SIGTERM to the node does not reach its drivers."""
        now = self._clock()
        if now < self._drain_read_at + _DRAIN_INTERVAL_S:
            return False
        self._drain_read_at = now
        leaving: Collection[str] = ()
        here = ""
        with self._asking():
            # A private call, but Ray Serve and Train use it too, and there is no public one.
            leaving = ray._private.state.state.get_draining_nodes()
            here = ray.get_runtime_context().get_node_id()
        return here in leaving

    @property
    def reachable(self) -> bool:
        """Whether Ray's head answers. Thread-safe.

        If the head is gone, a call to Ray blocks until Ray ends the process, so a slow call counts as no answer.
        """
        asked_at = self._asked_at
        return self._answered if asked_at is None else self._clock() - asked_at < _SLOW_ANSWER_S

    def _send(self, requests: Sequence[StepRequest], *, extra_s: float = 0.0) -> None:
        if any(request.step is Step.SUBMIT and request.job.spec.inputs for request in requests):
            extra_s += _INPUT_ALLOWANCE_S
        factory, pickled = self._pickled_factory(), pickle.dumps(requests, _PICKLE_PROTOCOL)
        try:
            stream = self._remote[requests[0].step].remote(factory, pickled, self._clocks)
        except Exception as error:  # noqa: BLE001 - Ray raises many kinds: object store full, head gone
            lost = TaskLost(reason=type(error).__name__, dead=True)
            self._results.extend((request, lost) for request in requests)
            return
        self._follow(stream, dict(enumerate(requests)), None, self._config.task_timeout_s + extra_s)

    def _pickled_factory(self) -> bytes:
        """The present factory, pickled; the same bytes object while it does not change."""
        factory = self._factory()
        if self._sent is None or self._sent[0] != factory:
            self._sent = factory, pickle.dumps(factory, _PICKLE_PROTOCOL)
        return self._sent[1]

    def _follow(self, stream: Any, requests: dict[int, StepRequest], part: str | None, allowed_s: float) -> None:
        """Registers a task that was sent, and starts to listen to its messages."""
        number = self._next_task
        self._next_task += 1
        task = _Task(stream=stream, requests=requests, part=part, allowed_s=allowed_s, sent_at=self._clock())
        (self._running if part is None else self._probing)[number] = task
        asyncio.run_coroutine_threadsafe(self._listen(number, stream), self._listening)

    async def _listen(self, number: int, stream: Any) -> None:
        """Queues a task's messages, and last how it ended: None = normally."""
        ended: TaskLost | None = None
        try:
            async for ref in stream:
                self._messages.put((number, await ref))
                del ref  # A reference keeps its message in Ray's memory.
                self._wake()
        except Exception as error:  # noqa: BLE001 - Ray raises many kinds
            # Its text may contain a secret; the class is enough to say what happened.
            dead = isinstance(error, (WorkerCrashedError, OutOfMemoryError))
            ended = TaskLost(reason=type(error).__name__, dead=dead)
        self._messages.put((number, ended))
        if ended is not None:  # A normal end needs no wake-up: the last result came before it.
            self._wake()

    def _read_messages(self) -> None:
        while not self._messages.empty():
            number, message = self._messages.get()
            task = self._running.get(number) or self._probing.get(number)
            if task is None:  # given up, or all its results have arrived
                continue
            if isinstance(message, bytes):
                self._take(number, task, message)
            else:
                self._fail_task(number, task, message or TaskLost(reason="a task that ended early", dead=True))

    def _take(self, number: int, task: _Task, message: bytes) -> None:
        content = pickle.loads(message)  # noqa: S301 - a task's of ours, by way of Ray
        if isinstance(content, _Begun):
            now = self._clock()
            task.deadline = now + task.allowed_s
            self._update_clock_offset(content, now)
            return
        found, calls = content
        if self._on_call is not None:
            for call in calls:
                self._on_call(*call)
        if task.part is not None:
            del self._probing[number]
            self._probed.append((task.part, found))
            return
        self._results.extend((task.requests.pop(place), result) for place, result in found)
        if not task.requests:
            del self._running[number]

    def _update_clock_offset(self, begun: _Begun, now: float) -> None:
        """Updates the offset of the node's clock from a task's first message.

        The message was sent before now, so the node's clock is ahead of ours by at least this difference. The largest
        recent value is the most exact. Older ones are dropped, since the node may have been suspended after them.
        """
        offset_s = begun.at - now
        old = now - self._offset_at.get(begun.clock, -math.inf) > _CLOCK_KEPT_S
        if old or offset_s >= self._clocks[begun.clock]:
            self._clocks[begun.clock], self._offset_at[begun.clock] = offset_s, now

    def _fail_task(self, number: int, task: _Task, lost: TaskLost) -> None:
        """Gives ``lost`` as the result of all requests of the task that have none."""
        self._results.extend((request, lost) for request in self._drop_task(number))
        if task.part is not None:
            message = f"the probe's Ray task was lost: {lost.reason}"
            self._probed.append((task.part, ErrorInfo(code=PROBES[task.part], message=message)))

    def _drop_task(self, number: int) -> list[StepRequest]:
        """Kills a task and ignores its further messages; returns its requests without a result."""
        task = self._running.pop(number, None) or self._probing.pop(number)
        with suppress(Exception):
            ray.cancel(task.stream, force=True)
        return list(task.requests.values())

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
        """Wraps a call to Ray's head: notes whether it answers, and ignores a failure."""
        self._asked_at = self._clock()
        try:
            yield
        except Exception:  # noqa: BLE001 - Ray raises many kinds; tasks that cannot run have errors of their own
            self._answered = False
        else:
            self._answered = True
        finally:
            self._asked_at = None


def _prepare_own() -> None:
    """Sets the environment variables that a local Ray needs."""
    if not os.environ.get("RAY_AUTH_TOKEN_PATH") and not _token_at_home():
        # Otherwise Ray writes a token into the home folder, which a container's user may not have.
        os.environ.setdefault("RAY_AUTH_TOKEN", token_hex(16))


def _wait_for_port_without_lock(given_up: threading.Event) -> None:
    """Replaces the way ``ray.init`` waits for its head's port, so that other threads go on and the wait can be stopped.

    Ray itself waits in C++ with the GIL held, for 30 s if the head has died, and no signal is handled meanwhile.
    """
    raylet: Any = ray._raylet
    node: Any = ray._private.node
    original = raylet.wait_for_persisted_port

    def wait(folder: str, node_id: str, name: str, timeout_ms: int) -> int:
        path = Path(folder) / raylet.get_port_filename(node_id, name)
        deadline = now_s() + timeout_ms / 1000
        while not path.exists():
            if given_up.wait(_LOOK_S) or now_s() > deadline:
                raise RuntimeError(f"its head process did not start; its logs are in {folder}/logs")
        return int(original(folder, node_id, name, timeout_ms=_PORT_WRITTEN_MS))

    node.wait_for_persisted_port = wait


def _token_at_home() -> bool:
    try:
        return (Path.home() / ".ray" / "auth_token").is_file()
    except (OSError, RuntimeError):  # there is no home
        return False


def version() -> str:
    """The version of Ray that is installed here; a cluster must have the same one."""
    return str(ray.__version__)


def check_address(address: str, *, timeout_s: float) -> None:
    """Asks Ray's head for its version, because without an answer ``ray.init`` would wait for minutes.

    Raises RayUnavailable, and ConfigurationError if ``address`` is not one.
    """
    # Imported here, because nodes load this module too and never need these.
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
            " correct it, or unset it to start a local Ray"
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
            f"Ray cannot be joined: what answers at RAY_ADDRESS {address} is not a Ray head ({code.name}):"
            " give the port of `ray start --head --port`, 6379 by default"
        ) from None
    if reply.ray_version and reply.ray_version != ray.__version__:
        raise RayUnavailable(
            f"Ray at {address} is version {reply.ray_version}, and this driver has {ray.__version__}:"
            " install the same on both"
        )


def _host_and_port(address: str) -> tuple[str, int]:
    """The parts of ``host:port``; raises ConfigurationError."""
    scheme, separator, _ = address.rpartition("://")
    parts = urlsplit(f"//{address}")
    try:
        if not separator and parts.hostname and parts.port and parts.netloc == address:
            return parts.hostname, parts.port
    except ValueError:
        pass
    also = f", and not {scheme}://" if separator else ""
    raise ConfigurationError(
        f"RAY_ADDRESS: must be host:port of a Ray head{also}, auto or local: unset it to start a local Ray"
    )


def _quieten_rays_threads() -> None:
    """Hides exceptions of threads named ``ray_…``: they fail if the head goes while they start, which is no fault."""
    otherwise = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.thread is None or not args.thread.name.startswith("ray_"):
            otherwise(args)

    threading.excepthook = hook


def _leave() -> None:
    with suppress(Exception):
        ray.shutdown()


class RayMetrics:
    """A metrics sink that shows a driver's metrics in Ray's dashboard as ``ray_<name>``. Make it after Ray has started.

    Each call costs about 3 microseconds, and does nothing after Ray has gone.
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
