"""Tasks on a real Ray with one CPU, against a service that answers when it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import psutil
import pytest
import ray
from samples import config, job

from rythmiq_ray.assembly import ExecutorFactory
from rythmiq_ray.cluster import Cluster
from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import Cleaned, ErrorInfo, Faulted, Step, StepRequest, StepResult, TaskLost

TIMEOUT_S = 2.0
"""A task's, from its start."""
WAIT_S = 60.0


class Service:
    """Takes note of the paths that it is asked to remove, and answers for those that are held once they are not."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.held: dict[str, threading.Event] = {}
        self.status = 200
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if "me" in service.held:
                    service.held["me"].wait(WAIT_S)
                self._answer(service.status, {"username": "ada"})

            def do_DELETE(self) -> None:
                path = parse_qs(urlsplit(self.path).query)["path"][0].removeprefix("stash://ada/").strip("/")
                service.asked.append(path)
                if path in service.held:
                    service.held[path].wait(WAIT_S)
                self._answer(200, {})

            def _answer(self, status: int, data: object) -> None:
                body = json.dumps({"code": 0, "data": data}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """A worker that was killed is part of the test."""

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def hold(self, request: StepRequest) -> threading.Event:
        return self.held.setdefault(str(request.job.remote_path), threading.Event())

    def close(self) -> None:
        for event in self.held.values():
            event.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.close()


@pytest.fixture(scope="module", autouse=True)
def one_cpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/bundle.pem")  # It counts where the endpoint is https.
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield
        ray.shutdown()


class Tasks:
    """A cluster, and what came of its requests."""

    def __init__(self, tmp_path: Path, endpoint: str, *, jobs_per_task: int, timeout_s: float) -> None:
        settings = config(f"ray.jobs_per_task={jobs_per_task}", f"ray.task_timeout_s={timeout_s}")
        camber = replace(settings.camber, endpoint=endpoint, call_attempts=1)
        artifacts = replace(settings.artifacts, path=str(tmp_path))
        factory = replace(ExecutorFactory.of(settings), camber=camber, artifacts=artifacts)
        self.cluster = Cluster(settings.ray, lambda: factory, wake=lambda: None)
        self.results: dict[UUID, StepResult] = {}
        self.lost: list[TaskLost] = []

    def send(self, *requests: StepRequest, stream_bytes: int = 0) -> None:
        for request in requests:
            self.cluster.enqueue(request, stream_bytes=stream_bytes)
        self.cluster.dispatch()

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, what
            self.read()
            time.sleep(0.02)

    def read(self) -> None:
        for request, result in self.cluster.completed():
            self.results[request.job.job_id] = result

    def of(self, request: StepRequest) -> StepResult | None:
        return self.results.get(request.job.job_id)


@pytest.fixture
def tasks(tmp_path: Path, service: Service) -> Iterator[Callable[..., Tasks]]:
    made: list[Tasks] = []

    def make(*, jobs_per_task: int = 1, timeout_s: float = TIMEOUT_S, endpoint: str = service.endpoint) -> Tasks:
        made.append(Tasks(tmp_path, endpoint, jobs_per_task=jobs_per_task, timeout_s=timeout_s))
        return made[-1]

    yield make
    for event in service.held.values():
        event.set()
    for one in made:
        one.cluster.withdraw()
        one.wait_for(lambda one=one: not one.cluster.busy, "its tasks end")  # type: ignore[misc]


def clean(**changes: Any) -> StepRequest:
    return StepRequest(step=Step.CLEAN, job=job(), **changes)


def worker() -> psutil.Process:
    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if " ".join(process.cmdline()).startswith("ray::rythmiq.")
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.timeout(180)
def test_waiting_for_a_place_is_no_hang(tasks: Callable[..., Tasks], service: Service) -> None:
    one, long, later = tasks(), clean(alone=True), clean()
    gate = service.hold(long)
    one.send(long, stream_bytes=1 << 30)  # Minutes are allowed for it.
    one.wait_for(lambda: one.cluster.unplaced() == (0, 0.0), "the long one has begun")
    one.send(later)
    one.wait_for(lambda: one.cluster.unplaced()[1] > 2 * TIMEOUT_S, "the later one waits longer than its deadline")
    assert one.cluster.unplaced()[0] == 1
    assert one.results == {}
    gate.set()
    one.wait_for(lambda: not one.cluster.busy, "both end")
    assert [one.of(request) for request in (long, later)] == [Cleaned()] * 2
    assert one.cluster.unplaced() == (0, 0.0)


@pytest.mark.timeout(180)
def test_orders_are_shared_among_idle_cpus_alone(tasks: Callable[..., Tasks], service: Service) -> None:
    one, requests = tasks(jobs_per_task=50, timeout_s=60), [clean() for _ in range(4)]
    gate = service.hold(requests[0])
    one.send(*requests)  # A second task would wait for the only CPU.
    one.wait_for(lambda: len(one.results) == 3, "all but the held one are done")
    gate.set()
    one.wait_for(lambda: not one.cluster.busy, "all are done")


@pytest.mark.timeout(180)
def test_a_slow_order_hides_no_other(tasks: Callable[..., Tasks], service: Service) -> None:
    one, requests = tasks(jobs_per_task=2, timeout_s=60), [clean() for _ in range(4)]
    gate = service.hold(requests[0])
    one.send(*requests)  # Two in a task, of which one runs.
    one.wait_for(lambda: one.results, "the one that is done is known")
    assert one.results == {requests[1].job.job_id: Cleaned()}
    gate.set()
    one.wait_for(lambda: not one.cluster.busy, "all are done")
    assert [one.of(request) for request in requests] == [Cleaned()] * 4


@pytest.mark.timeout(180)
def test_an_order_that_hangs_costs_no_other_its_result(tasks: Callable[..., Tasks], service: Service) -> None:
    one, requests = tasks(jobs_per_task=50), [clean() for _ in range(3)]
    service.hold(requests[0])
    one.send(*requests)
    one.wait_for(lambda: len(one.results) == 3, "all are known")
    assert [one.of(request) for request in requests[1:]] == [Cleaned()] * 2
    assert one.of(requests[0]) == TaskLost(reason="a hang: it ran past its deadline", dead=False)


@pytest.mark.timeout(180)
def test_results_that_came_before_a_worker_died_count(tasks: Callable[..., Tasks], service: Service) -> None:
    one, requests = tasks(jobs_per_task=50, timeout_s=60), [clean() for _ in range(3)]
    service.hold(requests[0])
    one.send(*requests)
    deadline = time.monotonic() + WAIT_S
    while one.cluster._messages.qsize() < 2:  # that it has begun, and what came of the other request in it
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker().kill()
    one.wait_for(lambda: len(one.results) == 3, "all are known")
    assert [one.of(request) for request in requests[1:]] == [Cleaned()] * 2
    assert one.of(requests[0]) == TaskLost(reason="WorkerCrashedError", dead=True)


@pytest.mark.timeout(180)
def test_what_has_not_begun_is_withdrawn_and_never_begins(tasks: Callable[..., Tasks], service: Service) -> None:
    one, first, second, third = tasks(), clean(alone=True), clean(), clean()
    gate = service.hold(first)
    one.send(first, stream_bytes=1 << 30)
    one.wait_for(lambda: one.cluster.unplaced() == (0, 0.0), "the first has begun")
    one.send(second, third)  # One is sent, and one is not.
    assert one.cluster.unplaced()[0] == 1
    pending, sent = one.cluster.withdraw()
    assert [request.job.job_id for request in pending] == [third.job.job_id]
    assert [request.job.job_id for request in sent] == [second.job.job_id]
    assert one.cluster.unplaced() == (0, 0.0)
    gate.set()
    one.wait_for(lambda: not one.cluster.busy, "the first goes on to its end")
    assert one.results == {first.job.job_id: Cleaned()}
    again = clean()
    one.send(again)
    one.wait_for(lambda: one.of(again), "the CPU is free")
    assert service.asked == [first.job.remote_path, again.job.remote_path]


@pytest.mark.timeout(180)
def test_a_probe_asks_from_a_node(tasks: Callable[..., Tasks], service: Service) -> None:
    one = tasks()

    def probed(part: str) -> ErrorInfo | None:
        one.cluster.probe(part)
        found: list[tuple[str, ErrorInfo | None]] = []
        one.wait_for(lambda: found or found.extend(one.cluster.probed()) or found, "the probe's answer")
        assert [name for name, _ in found] == [part]
        return found[0][1]

    assert probed("backend") is None
    assert probed("store") is None
    service.status = 503
    error = probed("backend")
    assert error is not None
    assert error.code is ErrorCode.BACKEND_UNAVAILABLE
    service.status = 200

    service.held["me"] = threading.Event()
    one.cluster.probe("backend")
    one.wait_for(lambda: any(task.deadline for task in one.cluster._probing.values()), "the probe has begun")
    worker().kill()
    found: list[tuple[str, ErrorInfo | None]] = []
    one.wait_for(lambda: found.extend(one.cluster.probed()) or found, "the loss is told")
    assert found == [
        (
            "backend",
            ErrorInfo(code=ErrorCode.BACKEND_UNAVAILABLE, message="the probe's Ray task was lost: WorkerCrashedError"),
        )
    ]


@pytest.mark.timeout(180)
def test_a_node_whose_certificates_cannot_be_read_is_an_outage(tasks: Callable[..., Tasks]) -> None:
    one, request = tasks(endpoint="https://127.0.0.1:1"), clean()
    one.send(request)
    one.wait_for(lambda: one.of(request), "it has ended")
    result = one.of(request)
    assert isinstance(result, Faulted)
    assert result.error.code is ErrorCode.BACKEND_UNAVAILABLE
    assert "REQUESTS_CA_BUNDLE" in result.error.message
    one.cluster.probe("backend")
    found: list[tuple[str, ErrorInfo | None]] = []
    one.wait_for(lambda: found.extend(one.cluster.probed()) or found, "the probe says so too")
    assert found[0][1] == result.error


@pytest.mark.timeout(180)
def test_a_result_that_came_before_a_withdrawal_is_still_handed_over(tasks: Callable[..., Tasks]) -> None:
    one, request = tasks(), clean()
    one.send(request)
    deadline = time.monotonic() + WAIT_S
    while one.cluster._messages.qsize() < 2:  # that it has begun, and its result
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert one.cluster.withdraw() == ([], [])
    assert one.cluster.busy, "a driver that stops waits for what is busy"
    assert [result for _, result in one.cluster.completed()] == [Cleaned()]
    assert not one.cluster.busy
