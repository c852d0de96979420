"""``rythmiq jobs``, ``show``, ``cancel`` and ``retry``: list, show, cancel and retry jobs."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer

from rythmiq_ray.access import database
from rythmiq_ray.cli import output
from rythmiq_ray.cli.failure import Unfinished, say
from rythmiq_ray.cli.filters import (
    JobSelection,
    References,
    Yes,
    confirm,
    filtered,
    found_of,
    require_selection,
    selected_states,
)
from rythmiq_ray.cli.group_view import show_group
from rythmiq_ray.errors import NotFound
from rythmiq_ray.model import Artifact, Job, JobState, Phase

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from rythmiq_ray.queue.inspect import Attempt
    from rythmiq_ray.queue.listing import Count, Filter, Need

_WATCH_S: Final = 1.0
_WHAT: Final = 200
"""The most characters of a command or an error in the listing; a terminal shows fewer."""
_WIDE: Final = 110
"""The width of a terminal, in columns, from which queue and user are shown too."""

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, its first digits (4 or more), or its name.")]
JobIds = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Ids, or their first digits (4 or more).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON: ISO times, whole ids.")]
Limit = Annotated[int, typer.Option(min=0, metavar="N", help="The most items; 0 = all.")]
Before = Annotated[str | None, typer.Option(metavar="ID", help="Only those older than this one.")]


@filtered
def jobs(
    context: typer.Context,
    wanted: JobSelection,
    limit: Limit = 20,
    before: Before = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing changes until Ctrl-C.")] = False,
) -> None:
    """List jobs, newest first, and count them.

    The column `!` has the number of a job's warnings, such as outputs that were not found; `rythmiq show` prints them.
    --json prints an object with items, total and next, which --before takes.

    \b
    Examples:
      rythmiq jobs
      rythmiq jobs --state failed --state cancelled --limit 0
      rythmiq jobs --group lr --label team=ml --since 2d
      rythmiq jobs --queue night --watch
      rythmiq jobs --json --limit 0 | jq -r '.items[] | select(.cost_credits > 1) | .job_id'
    """
    from rythmiq_ray.queue import control, listing

    if watch and (as_json or not sys.stdout.isatty()):
        raise typer.BadParameter("--watch needs a terminal and cannot be combined with --json", ctx=context)
    with database() as connection:
        if watch:
            connection.autocommit = True
        asked = wanted.resolved(connection)
        oldest = None if before is None else job_of(connection, before)

        def look() -> Iterator[Job]:
            return listing.jobs(connection, asked, limit=limit or None, before=oldest)

        if watch:
            _watch(lambda: (list(look()), listing.counts(connection, asked)))
        if as_json:
            _print_json(connection, asked, look(), limit)
            return
        found = list(look())
        counts = listing.counts(connection, asked)
        closed = control.closed(connection, found)
    if found:
        columns = output.width()
        output.rows(*_listing(found, wide=columns is None or columns >= _WIDE))
    typer.echo(_summary(counts))
    for said in closed:
        typer.echo(output.printable(f"Note: {said}"))


def _print_json(connection: Connection, asked: Filter, found: Iterator[Job], limit: int) -> None:
    from rythmiq_ray.queue import listing

    last: list[UUID] = []
    count = 0

    def items() -> Iterator[dict[str, Any]]:
        nonlocal count
        for job in found:
            count += 1
            last[:] = [job.job_id]
            yield output.record(job)

    def after() -> UUID | None:
        if not limit or count < limit:
            return None
        return last[0] if any(True for _ in listing.jobs(connection, asked, limit=1, before=last[0])) else None

    output.print_items(items(), lambda: listing.total(connection, asked), after)


def job_of(connection: Connection, reference: str) -> UUID:
    """The id of the job that ``reference`` names; raises NotFound, also for a group."""
    from rythmiq_ray.queue import listing

    found = listing.find(connection, reference)
    if not found.is_job:
        raise NotFound(f"{reference!r} is a group, not a job")
    return found.id


def show(reference: Annotated[str, typer.Argument(metavar="ID|GROUP")], as_json: Json = False) -> None:
    """Show a job with its attempts and artifacts, or a group.

    For a group: how many members are in which state, the estimated time left, credits so far and the
    estimated total, and its errors, similar ones together.

    \b
    Examples:
      rythmiq show 019a5c3e
      rythmiq show lr
      rythmiq show 019a5c3e --json | jq .attempts
    """
    from rythmiq_ray.queue import control, inspect, listing

    with database() as connection:
        found = listing.find(connection, reference)
        if not found.is_job:
            show_group(connection, found.id, as_json=as_json)
            return
        job = inspect.job(connection, found.id)
        attempts = inspect.attempts(connection, job.job_id)
        artifacts = inspect.artifacts(connection, job.job_id)
        needs = listing.needs(connection, job.job_id)
        closed = control.closed(connection, [job])
    if as_json:
        output.print_json(
            output.record(job)
            | {
                "attempts": [output.record(attempt) for attempt in attempts],
                "artifacts": [{"attempt": attempt} | output.record(artifact) for attempt, artifact in artifacts],
                "after": [output.record(need) for need in needs],
            }
        )
        return
    output.pairs(_facts(job) | {"after": ", ".join(_need(need) for need in needs)})
    for said in closed:
        typer.echo(f"held: {output.printable(said)}")
    for warning in job.warnings:
        typer.echo(f"warning: {output.printable(warning)}")
    if attempts:
        typer.echo()
        output.rows(*_attempt_rows(attempts))
        for attempt in attempts:
            if attempt.error_message:
                typer.echo(f"attempt {attempt.attempt}: {output.printable(attempt.error_message)}")
            if (kept := _kept(job, attempt)) is not None:
                typer.echo(kept)
    if artifacts:
        typer.echo()
        output.rows(*artifact_rows(artifacts))


def _need(need: Need) -> str:
    what = f"{'job' if need.is_job else 'group'} {need.name or need.id}"
    state = "gone" if need.state is None else need.state
    return f"{what} ({state}{'' if need.needs == 'succeeded' else ', however it ends'})"


@filtered
def cancel(
    context: typer.Context, wanted: JobSelection, references: References = None, yes: Yes = False, as_json: Json = False
) -> None:
    """Cancel jobs: by id, whole groups, or by filters.

    Waiting jobs end at once, running ones as soon as their driver has stopped them. Prints each id with
    its new state. Exits 1 if a job given by id had ended in another state before.

    \b
    Examples:
      rythmiq cancel 019a5c3e
      rythmiq cancel lr
      rythmiq cancel --group lr --state queued --yes
      rythmiq cancel --queue night
    """
    from rythmiq_ray.queue import inspect, listing

    require_selection(context, references, wanted)
    with database() as connection:
        found = found_of(connection, references)
        named = [item.id for item in found if item.is_job] if not wanted.given else []
        states = selected_states(connection, references, wanted)
        targets = [job_id for job_id, state in states.items() if not state.finished]
        connection.rollback()  # The next statement can be repeated after a deadlock only if it begins a transaction.
        if wanted.given:
            confirm(len(targets), "Cancel", yes=yes)
        whole = [item.id for item in found if not item.is_job] if not wanted.given else []
        asked = inspect.cancel(connection, groups=whole) if whole else {}
        rest = [job_id for job_id in targets if job_id not in asked]
        asked |= inspect.cancel(connection, ids=rest) if rest else {}
        left = listing.ids(connection, listing.Filter(ids=[job_id for job_id in named if job_id not in asked]))
    if as_json:
        now = asked | left
        output.print_items({"job_id": str(job_id), "state": state} for job_id, state in now.items())
    else:
        for job_id, state in asked.items():
            typer.echo(f"{job_id}  {'will be stopped by its driver' if state is JobState.RUNNING else state}")
        for job_id, state in left.items():
            say(f"{job_id} had already ended: {state}")
    if any(state is not JobState.CANCELLED for state in left.values()):
        raise Unfinished
    if not asked and not left:
        say("nothing was left to cancel")


@filtered
def retry(
    context: typer.Context,
    wanted: JobSelection,
    references: References = None,
    downstream: Annotated[
        bool, typer.Option("--downstream", help="Also jobs that were cancelled because they needed one of these.")
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Queue FAILED and CANCELLED jobs again: by id, those of groups, or by filters.

    Each gets at least one more attempt; its id is printed. In groups and filters, jobs that are unfinished or SUCCEEDED
    are skipped. Exits 1 if a job given by id was not queued: it is unfinished or SUCCEEDED, another unfinished job has
    its unique key, or its dependencies can never be met.

    \b
    Examples:
      rythmiq retry 019a5c3e --downstream
      rythmiq retry lr
      rythmiq retry --state failed --error remote_killed --since 1d --yes
    """
    from rythmiq_ray.queue import inspect

    require_selection(context, references, wanted)
    with database() as connection:
        found = found_of(connection, references)
        named = [item.id for item in found if item.is_job] if not wanted.given else []
        states = selected_states(connection, references, wanted)
        ended = (JobState.FAILED, JobState.CANCELLED)
        targets = [job_id for job_id, state in states.items() if state in ended]
        connection.rollback()
        if wanted.given:
            confirm(len(targets), "Retry", yes=yes)
        queued = inspect.retry(connection, targets, downstream=downstream) if targets else set()
    done = [job_id for job_id in targets if job_id in queued]
    done += sorted(queued.difference(done))
    if as_json:
        output.print_items({"job_id": str(job_id)} for job_id in done)
    else:
        for job_id in done:
            typer.echo(job_id)
    left = [job_id for job_id in named if job_id not in queued]
    for job_id in left:
        state = states[job_id]
        lost = "another job has its unique key, or what it needs can no longer succeed"
        why = lost if state in ended else f"it is {state}"
        say(f"{job_id} was left alone: {why}")
    if left:
        raise Unfinished
    if not done:
        say("nothing was left to retry")


def artifact_rows(artifacts: Sequence[tuple[int, Artifact]]) -> tuple[dict[str, str], list[list[object]]]:
    """The table of artifacts."""
    return (
        {"TRY": ">", "SIZE": ">", "SHA-256": "<", "NAME": "~"},
        [[attempt, output.size(file.bytes), file.sha256[:12], file.name] for attempt, file in artifacts],
    )


def _listing(found: Sequence[Job], *, wide: bool) -> tuple[dict[str, str], list[list[object]]]:
    now = datetime.now(UTC)
    short = output.shortened(job.job_id for job in found)
    warned = any(job.warnings for job in found)
    columns = {"ID": "<", "STATE": "<"} | ({"!": ">"} if warned else {}) | {"TRY": ">", "AGE": ">"}
    if wide:
        columns |= {"QUEUE": "<", "USER": "<"}
    columns["WHAT"] = "~"
    data: list[list[object]] = []
    for job in found:
        row: list[object] = [
            short[job.job_id],
            job.state,
            *([len(job.warnings) or " "] if warned else []),
            f"{job.attempt}/{job.max_attempts}",
            output.age(job.created_at, now),
        ]
        if wide:
            row += [output.clipped(job.queue), output.clipped(job.user_id)]
        data.append([*row, _what(job)])
    return columns, data


def _what(job: Job) -> str:
    """The error of a job that failed, the stage of a running one, else its name, parameters or command."""
    named = called(job)
    if job.error_code is not None and job.state in (JobState.FAILED, JobState.RETRYING):
        words = " ".join((job.error_message or "").split())[-_WHAT:]
        return output.Tail(f"{f'{output.clipped(named)}: ' if named else ''}{job.error_code}: ", words)
    if job.error_code is not None and job.error_code != "cancelled" and job.state is JobState.CANCELLED:
        return f"{named or _command(job)}: {job.error_code}"
    text = named or _command(job)
    if job.state is JobState.BLOCKED:
        needs = f"waits for {job.waits_for}" if job.waits_for else "waits for a place in its group"
        return f"{needs}: {text}"
    return f"{_stage(job)}: {text}" if job.phase else text


def called(job: Job) -> str:
    """Its name or its parameters; empty if it has neither."""
    params = " ".join(f"{name}={value}" for name, value in (job.params or {}).items())
    return " ".join(part for part in (job.name, params) if part)


def _command(job: Job) -> str:
    return " ".join(job.spec.command.split())[:_WHAT]


def _stage(job: Job) -> str:
    """The phase; for a waiting job, whether Camber has started it."""
    if job.phase is not Phase.WAITING or job.remote_status is None:
        return str(job.phase)
    return "running at Camber" if job.remote_status.started else "pending at Camber"


def _since(job: Job, now: datetime) -> str:
    """How long a running job has been at its stage; empty if that is not known."""
    times = {Phase.SUBMITTING: job.started_at, Phase.COLLECTING: job.ended_at}
    waiting = job.running_at if job.remote_status is not None and job.remote_status.started else job.submitted_at
    since = waiting if job.phase is Phase.WAITING else times.get(job.phase) if job.phase else None
    return "" if since is None else f" for {output.age(since, now)}"


def _kept(job: Job, attempt: Attempt) -> str | None:
    """Where the files of an attempt are that could not be stored, until when, and how to store them."""
    until = attempt.keep_until or (job.collect_until if attempt.attempt == job.attempt else None)
    gone = attempt.cleaned_at is not None and attempt.cleaned_at <= datetime.now(UTC)
    if until is None or until <= datetime.now(UTC) or gone:
        return None
    left = output.duration((until - datetime.now(UTC)).total_seconds())
    collectable = attempt.attempt == job.attempt and job.collect_until is not None
    cure = f"; `rythmiq collect {job.job_id}` stores it" if collectable else ""
    return (
        f"attempt {attempt.attempt}: not stored; it is in Camber's stash at {output.printable(attempt.remote_path)}"
        f" until {until.astimezone(UTC):%Y-%m-%d %H:%M} UTC ({left}){cure}"
    )


def _summary(counts: Sequence[Count]) -> str:
    states: Counter[str] = Counter()
    stages: Counter[str] = Counter()
    bounded = {count.state for count in counts if count.bounded}
    for count in counts:
        states[count.state] += count.jobs
        if count.phase is Phase.WAITING:
            stages["running at Camber" if count.started else "pending at Camber"] += count.jobs
        elif count.phase:
            stages[count.phase] += count.jobs
    parts = [f"{states[state]:,}{'+' if state in bounded else ''} {state}" for state in JobState if states[state]]
    running = ", ".join(f"{number:,} {stage}" for stage, number in sorted(stages.items()))
    text = ", ".join(part + (f" ({running})" if part.endswith("RUNNING") else "") for part in parts)
    total = states.total()
    return f"{total:,}{'+' if bounded else ''} job{'' if total == 1 else 's'}{': ' if text else ''}{text}"


def _watch(look: Any) -> None:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console()

    def picture() -> Group:
        found, counts = look()
        columns, data = _listing(found[: max(1, console.height - 4)], wide=console.width >= _WIDE)
        return Group(output.table(columns, data, console.width), Text(_summary(counts)))

    try:
        with Live(picture(), console=console, auto_refresh=False, screen=True) as live:
            while True:
                time.sleep(_WATCH_S)
                live.update(picture(), refresh=True)
    except KeyboardInterrupt:
        pass  # the last state is printed below, and stays on the screen


def _facts(job: Job) -> dict[str, object]:
    now = datetime.now(UTC)
    spec = job.spec
    return {
        "job": job.job_id,
        "state": f"{job.state}{f' ({_stage(job)}{_since(job, now)})' if job.phase else ''}",
        "waits for": job.wait_reason,
        "name": job.name,
        "group": None if job.group_id is None else f"{job.group_id}, member {job.group_index}",
        "parameters": " ".join(f"{name}={value}" for name, value in (job.params or {}).items()),
        "labels": " ".join(f"{name}={value}" for name, value in job.labels.items()),
        "queue": f"{job.queue}, priority {job.priority}",
        "user": job.user_id,
        "enqueued by": job.enqueued_by,
        "unique key": job.unique_key,
        "command": spec.command,
        "runs on": f"{spec.engine} {spec.node_size} x {spec.num_nodes}{' with GPU' if spec.gpu else ''}",
        "inputs": ", ".join(item.name for item in spec.inputs),
        "outputs": ", ".join(spec.outputs),
        "env": ", ".join(spec.env),
        "secrets": ", ".join(spec.secrets),
        "timeout": None if spec.timeout_s is None else output.duration(spec.timeout_s),
        "attempt": f"{job.attempt} of {job.max_attempts}{f', {job.free_attempts} free' if job.free_attempts else ''}",
        "next attempt": output.age(job.next_visible_at, now)
        if job.state in (JobState.QUEUED, JobState.RETRYING) and job.next_visible_at > now
        else None,
        "remote job": None if job.remote_id is None else f"{job.remote_id} {job.remote_status or ''}".strip(),
        "exit code": job.exit_code,
        "error": None if job.error_code is None else f"{job.error_code}: {job.error_message}",
        "cancel requested": None
        if job.cancel_requested_at is None
        else f"{output.age(job.cancel_requested_at, now)} ago",
        "created": f"{output.age(job.created_at, now)} ago",
        "started": None if job.started_at is None else f"{output.age(job.started_at, now)} ago",
        "finished": None if job.finished_at is None else f"{output.age(job.finished_at, now)} ago",
        "cost": None if job.cost_credits is None else f"{job.cost_credits:.4f} credits, estimated",
        "manifest": job.artifact_uri,
    }


def _attempt_rows(attempts: Sequence[Attempt]) -> tuple[dict[str, str], list[list[object]]]:
    now = datetime.now(UTC)
    data: list[list[object]] = []
    for attempt in attempts:
        end = attempt.finished_at or now
        data.append(
            [
                attempt.attempt,
                attempt.state,
                f"{output.age(attempt.started_at, now)} ago",
                output.age(attempt.started_at, end),
                attempt.exit_code,
                None if attempt.cost_credits is None else f"{attempt.cost_credits:.4f}",
                attempt.remote_id,
                attempt.error_code,
            ]
        )
    columns = {
        "TRY": ">",
        "STATE": "<",
        "STARTED": ">",
        "TOOK": ">",
        "EXIT": ">",
        "CREDITS": ">",
        "REMOTE": ">",
        "ERROR": "~",
    }
    return columns, data
