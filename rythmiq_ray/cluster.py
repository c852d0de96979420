"""Ray, and the only place that imports it: start, the remote task, lost tasks, drain, shutdown.

The facts it builds on are measured for Ray 2.60: a task is run once (``max_retries=0``) because Postgres decides
about retries; task names are few, since each new one costs memory for good; many requests share one task with
threads in it, since a task that waits costs a process; results are data, since an exception may not unpickle.

A task is a stream: first that it has begun, then its results as they come. So its time counts from its own start,
one slow request hides no other, and what came before a worker died counts. A message costs the driver some 0.4 ms, so
those that are ready within :data:`_LINGER_S` of each other share one.
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
from rythmiq_ray.backends import OnCall
from rythmiq_ray.clock import clock_id, now_s
from rythmiq_ray.config import RayConfig
from rythmiq_ray.errors import ConfigurationError, RayUnavailable, RythmiqError
from rythmiq_ray.executor import PROBES, Executor
from rythmiq_ray.model import ErrorInfo, Faulted, Step, StepRequest, StepResult, TaskLost
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
_LINGER_S: Final = 0.01
_CLOCK_KEPT_S: Final = 30.0
_PROBE_S: Final = 150.0
"""A probe's calls have deadlines of their own; one that runs for longer than these hangs."""


class ExecutorFactory(Protocol):
    """Makes a worker process's executor. It is sent with each task, so it pickles, and holds all that a node needs.

    Two that are equal make the same executor.
    """

    @property
    def threads(self) -> int:
        """How many requests are under way at once in a process."""
        ...

    @property
    def report_calls(self) -> bool:
        """Whether a task sends back what it knows of its calls to the backend, for metrics."""
        ...

    def build(self, *, on_call: OnCall | None = None) -> Executor:
        """An executor with clients of its own; raises errors of :mod:`rythmiq_ray.errors`."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """The first message of every task: which clock its machine has, and what that shows."""

    clock: str
    at: float


def _begun() -> bytes:
    return pickle.dumps(_Begun(clock=clock_id(), at=now_s()), _PICKLE_PROTOCOL)


ApiCall = tuple[str, str, float]
"""A call to the backend, as :data:`rythmiq_ray.backends.OnCall` is told of it."""


_executor_lock: Final = threading.Lock()
_executor: tuple[bytes, Executor, ThreadPoolExecutor] | None = None
_calls: Final[deque[ApiCall]] = deque(maxlen=10_000)
"""Of this process, since its last task ended."""


def _process_executor(pickled: bytes) -> tuple[Executor, ThreadPoolExecutor]:
    """Clients and threads are made once for a worker process: connections stay warm between tasks.

    They are made anew by another factory, as after a change of the key; no task of this process uses the former then.
    Raises BackendUnavailable where this node cannot even begin a call.
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
    """Requests and results go as bytes, because Ray's own pickler calls back into Python for every object.

    ``clocks``: by the name of each clock that the driver has heard of, how far it is ahead of the driver's at least.
    """
    yield _begun()
    todo: list[StepRequest] = pickle.loads(requests)  # noqa: S301 - the driver's, by way of Ray
    for results in _results(factory, todo, clocks.get(clock_id())):
        yield pickle.dumps((results, _take_calls()), _PICKLE_PROTOCOL)


def _results(
    factory: bytes, requests: Sequence[StepRequest], clock_offset_s: float | None
) -> Iterator[list[tuple[int, StepResult]]]:
    """Each request's place and its result, those that are ready at about the same time together."""
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
    """It takes the hundredth of a CPU that tasks leave, so that it waits for none of them and runs where work runs."""
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
    """Those without a result yet, by their place; none in a probe."""
    part: str | None
    """What a probe looks at."""
    allowed_s: float
    sent_at: float
    deadline: float | None = None
    """None while it has not begun."""


class Cluster:
    """Runs requests as Ray tasks and hands back a result for each, whatever happens to task or node."""

    def __init__(
        self,
        config: RayConfig,
        factory: Callable[[], ExecutorFactory],
        *,
        wake: Callable[[], None],
        on_call: OnCall | None = None,
        clock: Callable[[], float] = now_s,
    ) -> None:
        """``factory`` is asked for what each task is sent; it gives another one where that has changed, as a key does.

        ``on_call`` is told of the calls of each task that ended, where the factory has them reported.
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
        self._heard_at = {clock_id(): math.inf}
        """When each was heard of with that offset; one's own needs no hearing."""
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
        self._listening = asyncio.new_event_loop()
        threading.Thread(target=self._listening.run_forever, name="ray-results", daemon=True).start()

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
            check_address(address, timeout_s=min(_PROBE_TIMEOUT_S, timeout_s / 2))
        self._children = processes.children()
        ended: Queue[BaseException | None] = Queue()
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
        """Leaves Ray, or gives up to join it; tasks that still run are ended. Of a Ray of its own nothing is left."""
        self._given_up.set()
        _quieten_rays_threads()
        if self._joined:
            leave = threading.Thread(target=_leave, name="rythmiq-ray-leave", daemon=True)
            leave.start()
            leave.join(_LEAVE_TIMEOUT_S)
        if self._children is not None:
            processes.kill(processes.children() - self._children)

    def enqueue(self, request: StepRequest, *, stream_bytes: int = 0) -> None:
        """Accepts a request; it is sent with others of its step, or by itself if it asks for that."""
        if request.alone:
            self._alone.append((request, stream_bytes))
        else:
            self._pending[request.step].append(request)

    def dispatch(self) -> None:
        """Sends what fits: as many tasks as there are slots, each with its share of what is pending."""
        free = self._capacity() - len(self._running)
        while free > 0 and self._alone:
            request, stream_bytes = self._alone.popleft()
            self._send([request], extra_s=stream_bytes / _SLOWEST_BYTES_PER_S)
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
        """Requests of a step that no task has yet."""
        return len(self._pending[step])

    @property
    def room(self) -> int:
        """How many requests the cluster's tasks take at once."""
        return self._capacity() * self._config.jobs_per_task

    @property
    def busy(self) -> bool:
        return bool(self._running or self._results or self._alone or any(self._pending.values()))

    def withdraw(self) -> tuple[list[StepRequest], list[StepRequest]]:
        """Takes back what no task has yet, and what tasks have that are not known to have begun.

        One of these may have begun on a node that tells of it late, or that the call to end it does not reach.
        """
        pending = [request for request, _ in self._alone]
        self._alone.clear()
        for requests in self._pending.values():
            pending.extend(requests)
            requests.clear()
        self._read_messages()
        unbegun = [number for number, task in self._running.items() if task.deadline is None]
        return pending, [request for number in unbegun for request in self._give_up(number)]

    def completed(self) -> list[tuple[StepRequest, StepResult]]:
        """The requests that came to an end since the last call, those of hung tasks among them."""
        self._read_messages()
        now = self._clock()
        for number, task in [*self._running.items(), *self._probing.items()]:
            if task.deadline is not None and now >= task.deadline:
                self._lose(number, task, TaskLost(reason="a hang: its time was over", dead=False))
        results, self._results = self._results, []
        return results

    def unplaced(self) -> tuple[int, float]:
        """How many tasks were sent and have not begun, and for how many seconds the oldest of them has waited."""
        sent_at = [task.sent_at for task in self._running.values() if task.deadline is None]
        return len(sent_at), self._clock() - min(sent_at) if sent_at else 0.0

    def probe(self, part: str) -> None:
        """Has a part, a name of :data:`~rythmiq_ray.executor.PROBES`, looked at from a node; see :meth:`probed`."""
        factory = self._pickled_factory()
        try:
            stream = _probe.options(name="rythmiq.probe").remote(factory, part)
        except Exception as error:  # noqa: BLE001 - as in _send
            message = f"the probe could not be sent: {type(error).__name__}"
            self._probed.append((part, ErrorInfo(code=PROBES[part], message=message)))
            return
        self._follow(stream, {}, part, _PROBE_S)

    def probed(self) -> list[tuple[str, ErrorInfo | None]]:
        """What came of probes since the last call, those that were lost or hang among them; None = all is well."""
        self._read_messages()
        found, self._probed = self._probed, []
        return found

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

    def _send(self, requests: Sequence[StepRequest], *, extra_s: float = 0.0) -> None:
        if any(request.step is Step.SUBMIT and request.job.spec.inputs for request in requests):
            extra_s += _INPUT_ALLOWANCE_S
        factory, pickled = self._pickled_factory(), pickle.dumps(requests, _PICKLE_PROTOCOL)
        try:
            stream = self._remote[requests[0].step].remote(factory, pickled, self._clocks)
        except Exception as error:  # noqa: BLE001 - Ray raises many kinds: no room in its store, a head that is gone
            lost = TaskLost(reason=type(error).__name__, dead=True)
            self._results.extend((request, lost) for request in requests)
            return
        self._follow(stream, dict(enumerate(requests)), None, self._config.task_timeout_s + extra_s)

    def _pickled_factory(self) -> bytes:
        """As it is now; the same bytes while it is the same."""
        factory = self._factory()
        if self._sent is None or self._sent[0] != factory:
            self._sent = factory, pickle.dumps(factory, _PICKLE_PROTOCOL)
        return self._sent[1]

    def _follow(self, stream: Any, requests: dict[int, StepRequest], part: str | None, allowed_s: float) -> None:
        """Takes note of a task that was sent, and has what it tells handed over."""
        number = self._next_task
        self._next_task += 1
        task = _Task(stream=stream, requests=requests, part=part, allowed_s=allowed_s, sent_at=self._clock())
        (self._running if part is None else self._probing)[number] = task
        asyncio.run_coroutine_threadsafe(self._listen(number, stream), self._listening)

    async def _listen(self, number: int, stream: Any) -> None:
        """Hands over what a task says, up to how it ended: None where it came to its own end."""
        ended: TaskLost | None = None
        try:
            async for ref in stream:
                self._messages.put((number, await ref))
                del ref  # Each that is kept keeps its message in Ray's memory.
                self._wake()
        except Exception as error:  # noqa: BLE001 - Ray raises many kinds
            # Its text can quote anything, a secret too; the class says what happened.
            dead = isinstance(error, (WorkerCrashedError, OutOfMemoryError))
            ended = TaskLost(reason=type(error).__name__, dead=dead)
        self._messages.put((number, ended))
        if ended is not None:  # Nobody waits for a normal end: the last result came before it.
            self._wake()

    def _read_messages(self) -> None:
        while not self._messages.empty():
            number, message = self._messages.get()
            task = self._running.get(number) or self._probing.get(number)
            if task is None:  # given up, or all its results are here
                continue
            if isinstance(message, bytes):
                self._take(number, task, message)
            else:
                self._lose(number, task, message or TaskLost(reason="a task that ended early", dead=True))

    def _take(self, number: int, task: _Task, message: bytes) -> None:
        content = pickle.loads(message)  # noqa: S301 - a task's of ours, by way of Ray
        if isinstance(content, _Begun):
            now = self._clock()
            task.deadline = now + task.allowed_s
            self._hear(content, now)
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

    def _hear(self, begun: _Begun, now: float) -> None:
        """Its clock showed this before now, so it is ahead of ours by no less.

        The most that was heard of late is nearest to the truth. What is older may be of before the node was paused.
        """
        offset_s = begun.at - now
        old = now - self._heard_at.get(begun.clock, -math.inf) > _CLOCK_KEPT_S
        if old or offset_s >= self._clocks[begun.clock]:
            self._clocks[begun.clock], self._heard_at[begun.clock] = offset_s, now

    def _lose(self, number: int, task: _Task, lost: TaskLost) -> None:
        """What has no result yet gets none."""
        self._results.extend((request, lost) for request in self._give_up(number))
        if task.part is not None:
            message = f"the probe's Ray task was lost: {lost.reason}"
            self._probed.append((task.part, ErrorInfo(code=PROBES[task.part], message=message)))

    def _give_up(self, number: int) -> list[StepRequest]:
        """Ends a task whatever it does, so that nothing comes of it any more; returns what it had not done."""
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


def version() -> str:
    """The version of Ray that is installed here; a cluster's must be the same."""
    return str(ray.__version__)


def check_address(address: str, *, timeout_s: float) -> None:
    """Asks Ray's head for its version: what does not answer to this keeps ``ray.init`` waiting for minutes.

    Raises RayUnavailable, and ConfigurationError for what is no address.
    """
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


def _quieten_rays_threads() -> None:
    """Those named ``ray_…`` end by an exception where its head goes while they start, and nobody is to mend that."""
    otherwise = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if args.thread is None or not args.thread.name.startswith("ray_"):
            otherwise(args)

    threading.excepthook = hook


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
