"""Traces: each attempt is written as spans with its true times when it has ended.

All span and trace ids are computed from the ids of the job and the group, so none is stored. An attempt's span has the
same id whichever driver writes it, the job gets its own span in ``TRACEPARENT``, and log lines name the trace. Names
and attributes are those of OpenTelemetry's conventions for messaging. OpenTelemetry's environment variables, such as
``OTEL_EXPORTER_OTLP_ENDPOINT``, say where traces are sent.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from rythmiq_ray import __version__
from rythmiq_ray.model import EndedAttempt, EndedGroup, Job

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Link, SpanContext

ENV_NAME: Final = "TRACEPARENT"
"""The variable that passes a trace to another program: from a caller to the CLI, and from the driver to the job."""
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
EXTRA: Final = "rythmiq-ray[otel]"
MOST_LINKS: Final = 128
"""The most links from a group's span to its members; tracing backends drop more."""
_SYSTEM: Final = "rythmiq"
_KNOWN: Final = 100_000
_TRACEPARENT: Final = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
_CLOSE_S: Final = 5.0


def of_caller(environ: Mapping[str, str] = os.environ) -> str | None:
    """The ``traceparent`` of the span that is open now, else of ``TRACEPARENT``; None if there is none."""
    try:
        from opentelemetry import trace
    except ImportError:
        pass
    else:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    given = environ.get(ENV_NAME, "")
    return given if _TRACEPARENT.fullmatch(given) else None


def wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment says where to send traces, and does not turn them off."""
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and any(environ.get(name) for name in ENDPOINTS)


def open_traces() -> Traces:
    """Traces that are sent where the environment says. Raises ImportError if the extra ``otel`` is not installed."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create(
        {"service.name": os.environ.get("OTEL_SERVICE_NAME", "rythmiq-driver"), "service.version": __version__}
    )
    provider = TracerProvider(resource=resource, id_generator=_ids(), shutdown_on_exit=False)
    # Very many attempts may end at once after an outage; spans that do not fit into the queue are lost.
    most = None if "OTEL_BSP_MAX_QUEUE_SIZE" in os.environ else 65_536
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), max_queue_size=most))
    return Traces(provider)


class Traces:
    """Writes spans. ``provider`` must have been made with this module's ids."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("rythmiq_ray", __version__)
        self._traces: OrderedDict[str, str] = OrderedDict()
        """Trace ids by job id, of the last jobs seen that are in a caller's trace."""

    def see(self, jobs: Iterable[Job]) -> None:
        """Remembers which trace these jobs belong to, for :meth:`trace_id`."""
        for job in jobs:
            if job.traceparent is not None and (found := _TRACEPARENT.fullmatch(job.traceparent)):
                self._traces[str(job.job_id)] = found[1]
                if len(self._traces) > _KNOWN:
                    self._traces.popitem(last=False)

    def trace_id(self, job_id: object) -> str:
        """A job's trace id as 32 hexadecimal digits, for log lines."""
        text = str(job_id)
        return self._traces.get(text) or text.replace("-", "")

    def of_job(self, job: Job) -> str:
        """The job's ``TRACEPARENT``, which names the span of its attempt."""
        trace_id, _, flags = _parent(job.job_id, job.traceparent)
        return f"00-{trace_id:032x}-{_span_id(job.job_id, job.attempt):016x}-{flags:02x}"

    def write(self, attempts: Iterable[EndedAttempt], groups: Iterable[EndedGroup] = ()) -> None:
        """Writes their spans. These are sent in the background."""
        for attempt in attempts:
            self._attempt(attempt)
        for group in groups:
            self._group(group)

    def close(self) -> None:
        """Sends the remaining spans, for at most five seconds."""
        # In a thread, because the SDK waits for each batch in turn, whatever timeout it is given.
        closing = threading.Thread(target=self._provider.shutdown, name="rythmiq-traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def _attempt(self, attempt: EndedAttempt) -> None:
        from opentelemetry.trace import SpanKind

        trace_id, parent_id, flags = _parent(attempt.job_id, attempt.traceparent)
        links = []
        if attempt.group_id is not None:
            links.append(_link(_group_context(attempt.group_id, flags), {"rythmiq.group_id": str(attempt.group_id)}))
        attributes: dict[str, Any] = {
            "messaging.system": _SYSTEM,
            "messaging.operation.type": "process",
            "messaging.operation.name": "run",
            "messaging.destination.name": attempt.queue,
            "messaging.message.id": str(attempt.job_id),
            "rythmiq.attempt": attempt.attempt,
            "rythmiq.name": attempt.name,
            "rythmiq.group_id": None if attempt.group_id is None else str(attempt.group_id),
            "rythmiq.remote_id": attempt.remote_id,
            "rythmiq.exit_code": attempt.exit_code,
            "rythmiq.cost_credits": attempt.cost_credits,
            "enduser.id": attempt.user_id,
            "error.type": attempt.error_code,
        }
        span_id = _span_id(attempt.job_id, attempt.attempt)
        self._span(
            f"process {attempt.queue}",
            SpanKind.CONSUMER,
            attempt.enqueued_at,
            attempt.finished_at,
            ids=(trace_id, span_id),
            parent=_context(trace_id, parent_id, flags, of_us=parent_id is None),
            links=links,
            attributes=attributes,
            error=None if attempt.state == "SUCCEEDED" else attempt.error_message or attempt.state.lower(),
        )
        inside = _context(trace_id, span_id, flags)
        for name, began, ended in _steps(attempt):
            self._span(name, SpanKind.INTERNAL, began, ended, parent=inside, attributes={"messaging.system": _SYSTEM})

    def _group(self, group: EndedGroup) -> None:
        from opentelemetry.trace import SpanKind

        links = []
        for job_id, attempt, traceparent in group.first[:MOST_LINKS]:
            trace_id, _, flags = _parent(job_id, traceparent)
            context = _span_context(trace_id, _span_id(job_id, attempt), flags)
            links.append(_link(context, {"messaging.message.id": str(job_id)}))
        own = _group_context(group.group_id, 1)
        self._span(
            f"process {group.name or 'group'}",
            SpanKind.CONSUMER,
            group.created_at,
            group.finished_at,
            ids=(own.trace_id, own.span_id),
            parent=None,
            links=links,
            attributes={
                "messaging.system": _SYSTEM,
                "messaging.operation.type": "process",
                "messaging.operation.name": "run",
                "messaging.batch.message_count": group.members,
                "rythmiq.group_id": str(group.group_id),
            },
            error=None if group.state == "SUCCEEDED" else group.state.lower(),
        )

    def _span(
        self,
        name: str,
        kind: Any,
        began: datetime,
        ended: datetime,
        *,
        parent: Context | None,
        ids: tuple[int, int] | None = None,
        links: Sequence[Link] = (),
        attributes: Mapping[str, Any],
        error: str | None = None,
    ) -> None:
        from opentelemetry.context import Context as Empty
        from opentelemetry.trace import Status, StatusCode

        _next.ids = ids
        span = self._tracer.start_span(
            name,
            context=Empty() if parent is None else parent,
            kind=kind,
            attributes={key: value for key, value in attributes.items() if value is not None},
            links=links,
            start_time=_ns(began),
        )
        _next.ids = None
        if error is not None:
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(_ns(max(began, ended)))


def _steps(attempt: EndedAttempt) -> Iterable[tuple[str, datetime, datetime]]:
    """The steps of an attempt that it reached, in order; each lasts until the next one begins."""
    created_at = None
    if attempt.submitted_at is not None and attempt.create_s is not None:
        created_at = max(attempt.started_at, attempt.submitted_at - timedelta(seconds=attempt.create_s))
    moments = [
        ("queue", attempt.enqueued_at),
        ("upload" if created_at is not None else "submit", attempt.started_at),
        ("create", created_at),
        ("wait", attempt.submitted_at),
        ("run", attempt.running_at),
        ("collect", attempt.ended_at),
    ]
    reached = [(name, at) for name, at in moments if at is not None]
    ends = [at for _, at in reached[1:]] + [attempt.finished_at]
    for (name, began), ended in zip(reached, ends, strict=True):
        yield name, began, max(began, ended)


def _parent(job_id: UUID, traceparent: str | None) -> tuple[int, int | None, int]:
    """A job's trace id, the parent span of its attempts (None if they have none), and the trace flags."""
    found = _TRACEPARENT.fullmatch(traceparent) if traceparent is not None else None
    if found is None:
        return job_id.int, None, 1
    return int(found[1], 16), int(found[2], 16), int(found[3], 16)


def _span_id(of: UUID, number: int = 0) -> int:
    return int.from_bytes(hashlib.blake2b(of.bytes + number.to_bytes(8), digest_size=8).digest()) or 1


def _span_context(trace_id: int, span_id: int, flags: int) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))


def _context(trace_id: int, span_id: int | None, flags: int, *, of_us: bool = False) -> Context | None:
    from opentelemetry.context import Context as Empty
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    if of_us or span_id is None:
        return None
    return set_span_in_context(NonRecordingSpan(_span_context(trace_id, span_id, flags)), Empty())


def _group_context(group_id: UUID, flags: int) -> SpanContext:
    return _span_context(group_id.int, _span_id(group_id), flags)


def _link(context: SpanContext, attributes: Mapping[str, str]) -> Link:
    from opentelemetry.trace import Link

    return Link(context, dict(attributes))


def _ns(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000


class _Next(threading.local):
    ids: tuple[int, int] | None = None


_next: Final = _Next()
"""The trace and span ids for the next span that this thread begins; None = random ones."""


def _ids() -> Any:
    """The id generator for a provider, which uses :data:`_next`."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class Ids(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            return super().generate_trace_id() if _next.ids is None else _next.ids[0]

        def generate_span_id(self) -> int:
            return super().generate_span_id() if _next.ids is None else _next.ids[1]

    return Ids()
