"""The page of a job, with its timeline, log, artifacts, inputs, dependencies, and why it does not run."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from rythmiq_ray.artifact_names import LOG_NAME
from rythmiq_ray.console import formatting, joblog
from rythmiq_ray.console.actions import Target, offered
from rythmiq_ray.errors import RULES, ErrorCode, NotFound, RythmiqError
from rythmiq_ray.model import Job, JobState
from rythmiq_ray.queue import inspect, listing
from rythmiq_ray.queue.connection import EARLIEST, LATEST
from rythmiq_ray.queue.inspect import Attempt
from rythmiq_ray.web import charts, files
from rythmiq_ray.web.charts import Part
from rythmiq_ray.web.render import page
from rythmiq_ray.web.security import FILE_POLICY
from rythmiq_ray.web.state import console_of

_MOST_ARTIFACTS: Final = 500
_MOST_NEEDS: Final = 200


@dataclass(frozen=True)
class Stretch:
    """How many seconds a job was in a stage."""

    stage: str
    seconds: float
    going_on: bool = False


@dataclass(frozen=True)
class Line:
    """A line of the timeline."""

    title: str
    state: str
    stretches: Sequence[Stretch]
    svg: Markup
    attempt: Attempt | None = None


def job(request: Request) -> Response:
    """Page ``/jobs/ID``."""
    console = console_of(request)
    job_id: UUID = request.path_params["id"]
    now = datetime.now(UTC)
    with console.database.read() as connection:
        found = inspect.job(connection, job_id)
        attempts = inspect.attempts(connection, job_id)
        stored = inspect.artifacts(connection, job_id)
        needs = listing.needs(connection, job_id)
        group = None
        if found.group_id is not None:
            group = next(iter(listing.groups_of(connection, [found.group_id])), None)
        reasons = list(console.why(connection, found))
    numbers = [attempt.attempt for attempt in attempts]
    return page(
        request,
        "job.html",
        here="jobs",
        title=formatting.visible(formatting.called(found)),
        job=found,
        group=group,
        lines=time_lines(found, attempts, now),
        attempts=attempts,
        shown_attempt=_shown_attempt(request, numbers),
        artifacts=[(number, file, files.kind_of(file.name, file.bytes)) for number, file in stored[:_MOST_ARTIFACTS]],
        artifacts_left=max(0, len(stored) - _MOST_ARTIFACTS),
        log_name=LOG_NAME,
        logged={number for number, file in stored if file.name == LOG_NAME},
        needs=needs[:_MOST_NEEDS],
        needs_left=max(0, len(needs) - _MOST_NEEDS),
        reasons=reasons,
        rule=_rule(found.error_code),
        commands=_commands(found),
        offered=offered("job", [found.state]),
        target=Target("job", id=job_id),
    )


def _shown_attempt(request: Request, numbers: Sequence[int]) -> int:
    text = request.query_params.get("attempt", "")
    if text.isascii() and text.isdigit() and int(text) in numbers:
        return int(text)
    return numbers[-1] if numbers else 0


def _rule(code: str | None) -> str:
    """What to do about an error."""
    try:
        return RULES[ErrorCode(code or "")].remedy
    except ValueError:
        return ""


def _commands(job: Job) -> list[tuple[str, str]]:
    commands = [("show", f"rythmiq show {job.job_id}"), ("log", f"rythmiq logs {job.job_id}")]
    if job.state is JobState.RUNNING:
        commands[-1] = ("log", f"rythmiq logs -f {job.job_id}")
    if job.state.finished:
        commands.append(("artifacts", f"rythmiq artifacts {job.job_id} --download results"))
    else:
        commands += [("why", f"rythmiq why {job.job_id}"), ("cancel", f"rythmiq cancel {job.job_id}")]
    if job.state in (JobState.FAILED, JobState.CANCELLED):
        commands.append(("retry", f"rythmiq retry {job.job_id}"))
    if job.collect_until is not None and job.collect_until > datetime.now(UTC) and job.state.finished:
        commands.append(("collect", f"rythmiq collect {job.job_id}"))
    return commands


# ----------------------------------------------------------------------------------------------------------- time line


def time_lines(job: Job, attempts: Sequence[Attempt], now: datetime) -> list[Line]:
    """A line for the whole job, and one for each attempt; stages whose times are not in the rows are left out."""
    lines = []
    whole: list[Stretch] = []
    at = job.created_at
    for attempt in attempts:
        waited = _between(at, attempt.started_at)
        if waited is not None:
            whole.append(Stretch("queued" if attempt.attempt == 1 else "waiting to retry", waited))
        last = attempt.attempt == job.attempt
        stretches = list(_of_attempt(job if last else None, attempt, now))
        whole += stretches
        state = str(attempt.state)
        lines.append(Line(f"attempt {attempt.attempt}", state, stretches, _strip(stretches), attempt))
        at = attempt.finished_at or now
    if not job.state.finished and job.state is not JobState.RUNNING:
        stage = "blocked" if job.state is JobState.BLOCKED else "waiting to retry" if attempts else "queued"
        if (waited := _between(at, now)) is not None:
            whole.append(Stretch(stage, waited, going_on=True))
    elif not attempts and (waited := _between(job.created_at, job.finished_at)) is not None:
        whole.append(Stretch("queued", waited))
    first = Line("all", str(job.state), _summed(whole), _strip(whole))
    return [first, *lines]


def _of_attempt(job: Job | None, attempt: Attempt, now: datetime) -> Iterator[Stretch]:
    """An attempt's stages. ``job`` is given for its last attempt: while that runs, the job's row has the times."""
    running = attempt.state is JobState.RUNNING and job is not None and job.state is JobState.RUNNING
    own = job if running and job is not None else attempt
    moments = [
        ("submitting", own.started_at),
        ("PENDING", own.submitted_at),
        ("RUNNING", own.running_at),
        ("syncing, collecting", own.ended_at),
    ]
    end = now if running else attempt.finished_at or now
    known = [(stage, at) for stage, at in moments if at is not None]
    for place, (stage, at) in enumerate(known):
        last = place + 1 == len(known)
        until = end if last else known[place + 1][1]
        if (seconds := _between(at, until)) is not None:
            yield Stretch(stage, seconds, going_on=running and last)


def _between(start: datetime | None, end: datetime | None) -> float | None:
    if start is None or end is None or {start, end} & {EARLIEST, LATEST}:
        return None
    return max(0.0, (end - start).total_seconds())


def _summed(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Adds up the stretches of each stage, in the order in which the stages first come."""
    out: dict[str, Stretch] = {}
    for each in stretches:
        before = out.get(each.stage)
        out[each.stage] = Stretch(
            each.stage,
            each.seconds + (before.seconds if before else 0.0),
            each.going_on or bool(before and before.going_on),
        )
    return list(out.values())


def kind_of(stage: str) -> str:
    """The CSS class that gives a stage its colour."""
    return f"p-{stage.split(',')[0].split()[0].lower()}"


def _strip(stretches: Sequence[Stretch]) -> Markup:
    label = ", ".join(f"{each.stage} {formatting.duration(each.seconds)}" for each in stretches) or "nothing yet"
    parts = [
        Part(kind_of(each.stage), max(each.seconds, 0.001), f"{each.stage}: {formatting.duration(each.seconds)}")
        for each in stretches
    ]
    return charts.strip(parts, label)


# ------------------------------------------------------------------------------------------------------ log and files


def log(request: Request) -> Response:
    """Page part ``/jobs/ID/ATTEMPT/log?q=``: the last lines of a log, or the lines that contain a text."""
    console = console_of(request)
    job_id, attempt = request.path_params["id"], request.path_params["attempt"]
    search = request.query_params.get("q", "")[:200]
    found, fault = None, ""
    try:
        found = joblog.look(console.database, console.backends, job_id, attempt, search)
    except RythmiqError as error:
        fault = joblog.unreadable(error)
    return page(
        request,
        "log.html",
        here="jobs",
        live=False,
        title="Log",
        job_id=job_id,
        attempt=attempt,
        search=search,
        look=found,
        fault=fault,
    )


async def follow(request: Request) -> Response:
    """Stream ``/jobs/ID/ATTEMPT/follow?at=BYTES``: the log after this many bytes, until the attempt has ended."""
    console = console_of(request)
    text = request.headers.get("last-event-id") or request.query_params.get("at", "0")
    at = int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0
    job_id, attempt = request.path_params["id"], request.path_params["attempt"]
    follower = joblog.Follower(console.database, console.backends, job_id, attempt, at)

    async def events() -> AsyncIterator[str]:
        while True:
            # Only the read needs a thread; the wait between two reads needs none.
            for news in await run_in_threadpool(follower.look):
                if news.ended:
                    yield "event: end\ndata: {}\n\n"
                    return
                yield f"id: {news.at}\nevent: text\ndata: {json.dumps({'text': news.text})}\n\n"
            yield ": still here\n\n"
            if await console.ends_within(follower.pause_s):
                return

    return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def file(request: Request) -> Response:
    """``/jobs/ID/ATTEMPT/file?name=``: a file as a download; with ``show=1`` a picture for display."""
    console = console_of(request)
    name = request.query_params.get("name", "")
    found = files.file_of(console.database, request.path_params["id"], request.path_params["attempt"], name)
    kind, headers = files.headers_of(found, show=request.query_params.get("show") == "1")
    headers["Content-Security-Policy"] = FILE_POLICY
    if request.method == "HEAD":
        return Response(headers=headers, media_type=kind)
    return StreamingResponse(files.stream(found), headers=headers, media_type=kind)


def preview(request: Request) -> Response:
    """Page part ``/jobs/ID/ATTEMPT/preview?name=``: a picture, a table or the beginning of a text."""
    console = console_of(request)
    job_id, attempt = request.path_params["id"], request.path_params["attempt"]
    name = request.query_params.get("name", "")
    found = files.file_of(console.database, job_id, attempt, name)
    kind, shown, fault = files.kind_of(name, found.bytes), None, ""
    if kind != "picture":
        try:
            shown = files.preview(found)
        except RythmiqError as error:
            fault = error.message
        except Exception as error:  # noqa: BLE001 - a library may raise anything for a file that a job wrote
            fault = f"This file cannot be shown: {type(error).__name__}"
    return page(
        request,
        "preview.html",
        here="jobs",
        live=False,
        title=formatting.visible(name),
        job_id=job_id,
        attempt=attempt,
        file=found,
        kind=kind,
        table=shown if isinstance(shown, files.Table) else None,
        text=shown if isinstance(shown, files.Text) else None,
        fault=fault,
    )


def inputs(request: Request) -> Response:
    """Page part ``/jobs/ID/ATTEMPT/inputs``: the inputs with the hashes that are in the manifest."""
    console = console_of(request)
    job_id, attempt = request.path_params["id"], request.path_params["attempt"]
    with console.database.read() as connection:
        found = inspect.job(connection, job_id)
        attempts = inspect.attempts(connection, job_id)
    uri = next((each.artifact_uri for each in attempts if each.attempt == attempt), None)
    items: list[dict[str, object]] = []
    fault = ""
    if uri is None:
        fault = "Their hashes are in the manifest, which is written when the attempt is stored."
    else:
        try:
            items = list(files.inputs_of(uri, job_id))
        except NotFound as error:
            fault = error.message
        except RythmiqError as error:
            fault = error.message
    return page(
        request, "inputs.html", here="jobs", live=False, title="Inputs", job=found, items=items[:1_000], fault=fault
    )
