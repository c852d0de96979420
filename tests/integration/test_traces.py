"""Traces of real attempts: what is written, in whose trace, with which times."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import psycopg2
import psycopg2.extras
import pytest
from inline_driver import Run
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from rythmiq_ray import Client, JobSpec, NewJob, enqueue
from rythmiq_ray.local.camber.emulator import Emulator
from rythmiq_ray.model import JobState, NewGroup
from rythmiq_ray.queue import Ending, Queue, enqueue_group
from rythmiq_ray.secret import Secret
from rythmiq_ray.telemetry import logs, traces
from rythmiq_ray.telemetry.traces import Traces

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STEPS = ["queue", "upload", "create", "wait", "run", "collect"]


@pytest.fixture
def connection(database_url: str) -> Iterator[Any]:
    connection = psycopg2.connect(database_url, cursor_factory=psycopg2.extras.RealDictCursor)
    connection.autocommit = True
    yield connection
    connection.close()


class Kept:
    """Traces that are kept in memory."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(id_generator=traces._ids())
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.traces = Traces(provider)

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if name is None or span.name == name]


def test_an_attempt_is_a_trace_of_its_steps_with_their_true_times(
    database_url: str, camber: Emulator, tmp_path: Path, connection: Any
) -> None:
    kept = Kept()
    run = Run(database_url, tmp_path / "store", camber.endpoint)
    run.loop._traces = kept.traces
    ours = enqueue(connection, JobSpec(command='echo "trace=$TRACEPARENT"; sleep 0.3'), name="fit")
    theirs = enqueue(connection, JobSpec(command="exit 3"), traceparent=CALLER, max_attempts=1)
    run.until(lambda: len(kept.spans("process default")) == 2, "both are traced")
    own, failed = sorted(kept.spans("process default"), key=lambda span: span.parent is not None)
    assert (own.parent, own.context.trace_id, own.kind) == (None, ours.int, SpanKind.CONSUMER)
    assert own.attributes is not None
    assert own.attributes["messaging.message.id"] == str(ours)
    steps = [span for span in kept.spans() if span.parent is not None and span.parent.span_id == own.context.span_id]
    assert [span.name for span in steps] == STEPS
    for before, after in pairwise(steps):
        assert before.end_time == after.start_time
    assert (steps[0].start_time, steps[-1].end_time) == (own.start_time, own.end_time)
    ran = next(span for span in steps if span.name == "run")
    assert ran.start_time is not None
    assert ran.end_time is not None
    # The one is a trace of its own; the other is in its caller's.
    assert failed.parent is not None
    assert f"00-{failed.context.trace_id:032x}-{failed.parent.span_id:016x}-01" == CALLER
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "command_failed"
    assert failed.attributes["messaging.message.id"] == str(theirs)


def test_the_job_gets_the_span_of_its_attempt(database_url: str, camber: Emulator, tmp_path: Path) -> None:
    kept = Kept()
    run = Run(database_url, tmp_path / "store", camber.endpoint)
    run.loop._traces = kept.traces
    job_id = enqueue(
        run.connection, JobSpec(command='printf %s "$TRACEPARENT" >out', outputs=("out",)), traceparent=CALLER
    )
    own_id = enqueue(
        run.connection, JobSpec(command='printf %s "$TRACEPARENT" >out', outputs=("out",), env={"TRACEPARENT": "mine"})
    )
    run.until(lambda: len(kept.spans("process default")) == 2, "both are traced")
    spans = {span.attributes["messaging.message.id"]: span for span in kept.spans("process default") if span.attributes}
    said = {path.parent.parent.name: path.read_text() for path in (tmp_path / "store").rglob("out")}
    context = spans[str(job_id)].context
    assert said[str(job_id)] == f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
    assert said[str(own_id)] == "mine", "a variable that the job has is left alone"


def test_without_traces_the_caller_s_own_goes_on_to_the_job(
    database_url: str, camber: Emulator, tmp_path: Path
) -> None:
    run = Run(database_url, tmp_path / "store", camber.endpoint)
    spec = JobSpec(command='printf %s "${TRACEPARENT-none}" >out', outputs=("out",))
    enqueue(run.connection, spec, traceparent=CALLER)
    enqueue(run.connection, spec)
    run.jobs = 2
    run.until(run.all_succeeded_at_once, "both succeed")
    assert sorted(path.read_text() for path in (tmp_path / "store").rglob("out")) == [CALLER, "none"]


@pytest.fixture
def queue(database_url: str) -> Iterator[Queue]:
    queue = Queue(Secret(database_url), lease_s=30.0)
    queue.register()
    yield queue
    queue.close()


def end_all(queue: Queue, **how: Any) -> list[tuple[UUID, int]]:
    jobs = queue.claim(1000)
    queue.finish(Ending(job_id=job.job_id, attempt=job.attempt, state=JobState.SUCCEEDED, **how) for job in jobs)
    return [(job.job_id, job.attempt) for job in jobs]


def test_a_sweep_has_a_span_with_links_to_its_members_and_they_to_it(connection: Any, queue: Queue) -> None:
    jobs = [NewJob(spec=JobSpec(command="x")) for _ in range(200)]
    group_id, ids = enqueue_group(connection, NewGroup(name="lr"), jobs)
    attempts = queue.ended_attempts(end_all(queue))
    times = {attempt.finished_at for attempt in attempts}
    kept = Kept()
    kept.traces.write(attempts, queue.ended_groups([group_id], at=times, members=traces.MOST_LINKS))
    (sweep,) = kept.spans("process lr")
    assert len(sweep.links) == traces.MOST_LINKS
    members = {span.context.span_id: span for span in kept.spans("process default")}
    assert len(members) == 200
    assert {link.context.span_id for link in sweep.links} <= members.keys()
    for span in members.values():
        (link,) = span.links
        assert (link.context.trace_id, link.context.span_id) == (sweep.context.trace_id, sweep.context.span_id)
    assert {span.context.trace_id for span in members.values()} == {job_id.int for job_id in ids}


def test_a_group_that_is_not_done_has_no_span(connection: Any, queue: Queue) -> None:
    group_id, _ = enqueue_group(connection, NewGroup(), [NewJob(spec=JobSpec(command="x")) for _ in range(2)])
    first, second = queue.claim(2)
    assert groups_ended_with(queue, first.job_id) == []
    assert groups_ended_with(queue, second.job_id) == [group_id]


def test_a_group_that_drivers_end_together_has_one_span(connection: Any, queue: Queue, database_url: str) -> None:
    group_id, _ = enqueue_group(connection, NewGroup(), [NewJob(spec=JobSpec(command="x")) for _ in range(2)])
    with closing(Queue(Secret(database_url), lease_s=30.0)) as other:
        other.register()
        (first,), (second,) = queue.claim(1), other.claim(1)
        queue.finish([Ending(job_id=first.job_id, attempt=1, state=JobState.SUCCEEDED)])
        assert groups_ended_with(other, second.job_id) == [group_id]
        # The one that was first asks only now.
        assert groups_ended_with(queue, first.job_id) == []


def groups_ended_with(queue: Queue, job_id: UUID) -> list[UUID]:
    """The groups whose span a driver writes as it ends this job, if it has not ended it already."""
    queue.finish([Ending(job_id=job_id, attempt=1, state=JobState.SUCCEEDED)])
    (attempt,) = queue.ended_attempts([(job_id, 1)])
    assert attempt.group_id is not None
    return [group.group_id for group in queue.ended_groups([attempt.group_id], at=[attempt.finished_at], members=10)]


def test_a_group_whose_end_another_session_delayed_has_one_span(
    database_url: str, camber: Emulator, tmp_path: Path, connection: Any
) -> None:
    kept = Kept()
    run = Run(database_url, tmp_path / "store", camber.endpoint)
    run.loop._traces = kept.traces
    enqueue_group(connection, NewGroup(name="lr"), [NewJob(spec=JobSpec(command="sleep 1")) for _ in range(2)])
    run.until(lambda: len(run.loop.attempts) == 2, "both are claimed")
    with closing(psycopg2.connect(database_url)) as holder:
        holder.cursor().execute("SELECT FROM rythmiq.groups FOR UPDATE")
        run.until(lambda: len(kept.spans("process default")) == 2, "both ended")
        assert kept.spans("process lr") == []
    run.until(lambda: kept.spans("process lr"), "the group is traced")
    enqueue(connection, JobSpec(command="true"))
    run.until(lambda: len(kept.spans("process default")) == 3, "a later job ended")
    assert len(kept.spans("process lr")) == 1


def test_a_further_attempt_begins_where_the_one_before_ended(connection: Any, queue: Queue) -> None:
    enqueue(connection, JobSpec(command="x"))
    first = end_all(queue, retry_delay_s=0.0)
    second = end_all(queue)
    one, two = queue.ended_attempts([*first, *second])
    assert (one.attempt, two.attempt) == (1, 2)
    assert two.enqueued_at == one.finished_at
    kept = Kept()
    kept.traces.write([one, two])
    spans = kept.spans("process default")
    assert len({span.context.span_id for span in spans}) == 2
    assert len({span.context.trace_id for span in spans}) == 1


class Collector(BaseHTTPRequestHandler):
    got: ClassVar[list[ExportTraceServiceRequest]] = []

    def do_POST(self) -> None:
        message = ExportTraceServiceRequest()
        message.ParseFromString(self.rfile.read(int(self.headers["Content-Length"])))
        self.got.append(message)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_they_go_where_opentelemetry_s_variables_say(
    connection: Any, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        assert not traces.wanted({})
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "of-a-test")
        assert traces.wanted()
        opened = traces.open_traces()
        enqueue(connection, JobSpec(command="x"))
        opened.write(queue.ended_attempts(end_all(queue)))
        opened.close()
        server.shutdown()
    (resource,) = Collector.got[0].resource_spans
    assert {a.key: a.value.string_value for a in resource.resource.attributes}["service.name"] == "of-a-test"
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert "process default" in names


def test_lines_of_the_log_name_the_trace(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rythmiq_ray.config import LoggingConfig

    kept = Kept()
    monkeypatch.setattr(logs, "_more", {})
    logs.add_field("traceId", lambda fields: kept.traces.trace_id(fields["jobId"]) if "jobId" in fields else None)
    logs.setup(LoggingConfig(level="INFO", format="text"))
    job_id = UUID("018f5a3c-0000-7000-8000-000000000001")
    logs.get_logger("driver").info("Job succeeded", jobId=job_id)
    logs.get_logger("driver").info("Worker ready")
    one, other = capsys.readouterr().out.splitlines()
    assert one.endswith("traceId=018f5a3c000070008000000000000001")
    assert "traceId" not in other


def test_who_submits_within_a_span_passes_it_on(database_url: str, connection: Any) -> None:
    provider = TracerProvider()
    with provider.get_tracer("t").start_as_current_span("notebook") as span, Client(database_url) as client:
        client.submit(JobSpec(command="x"))
        client.sweep(JobSpec(command="x"), [{"N": 1}])
    with Client(database_url) as client:
        client.submit(JobSpec(command="x"))
    with connection.cursor() as cursor:
        cursor.execute("SELECT traceparent FROM rythmiq.jobs ORDER BY created_at, job_id")
        found = [row["traceparent"] for row in cursor.fetchall()]
    context = span.get_span_context()
    expected = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert found == [expected, expected, None]


def test_the_command_line_is_in_the_trace_that_its_environment_names() -> None:
    assert traces.of_caller({"TRACEPARENT": CALLER}) == CALLER
    assert traces.of_caller({"TRACEPARENT": "00-00000000000000000000000000000000-00f067aa0ba902b7-01"}) is None
    assert traces.of_caller({}) is None
