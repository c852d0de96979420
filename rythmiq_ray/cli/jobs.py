"""``rythmiq jobs``, ``show``, ``cancel`` and ``retry``: what is in the queue, and what is to become of it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from rythmiq_ray.cli import output
from rythmiq_ray.cli.failure import Unfinished, say
from rythmiq_ray.cli.session import database
from rythmiq_ray.model import Artifact, Job, JobState, Phase

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from rythmiq_ray.queue.inspect import Attempt, Count

_MAX_LIMIT: Final = 100_000
_WATCH_S: Final = 1.0
_WHAT: Final = 60
"""Characters of a command or an error in the listing."""
_WIDE: Final = 110
"""Columns of a terminal from which on queue and user are shown too."""

JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or its first digits (4 or more).")]
JobIds = Annotated[list[str] | None, typer.Argument(metavar="ID...", help="Ids, or their first digits (4 or more).")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON: ISO times, whole ids.")]


def jobs(
    context: typer.Context,
    states: Annotated[
        list[JobState] | None,
        typer.Option("--state", case_sensitive=False, help="Only jobs in this state; may be given again."),
    ] = None,
    queues: Annotated[list[str] | None, typer.Option("--queue", help="Only this queue; may be given again.")] = None,
    user_id: Annotated[str | None, typer.Option(help="Only this user's jobs.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=_MAX_LIMIT, metavar="N", help="How many at most.")] = 20,
    before: Annotated[str | None, typer.Option(metavar="ID", help="Only jobs older than this one.")] = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show changes; Ctrl-C ends it.")] = False,
) -> None:
    """List jobs, newest first, and count them.

    A number under `!` is how many warnings a job has, such as outputs that were not found; `rythmiq show` tells them.

    \b
    Examples:
      rythmiq jobs
      rythmiq jobs --state failed --state cancelled --limit 100
      rythmiq jobs --queue night --watch
      rythmiq jobs --json | jq -r '.[] | select(.cost_credits > 1) | .job_id'
    """
    from rythmiq_ray.queue import inspect

    if watch and (as_json or not sys.stdout.isatty()):
        raise typer.BadParameter("--watch needs a terminal, and goes without --json", ctx=context)

    def look(connection: Connection) -> tuple[list[Job], list[Count]]:
        found = inspect.jobs(
            connection,
            states=states or (),
            queues=queues or (),
            user_id=user_id,
            limit=limit,
            before=None if before is None else inspect.job(connection, before).job_id,
        )
        return found, [] if as_json else _counts_of(inspect.counts(connection), queues)

    with database() as connection:
        if watch:
            connection.autocommit = True
            _watch(lambda: look(connection))
        found, counts = look(connection)
    if as_json:
        output.print_json([output.record(job) for job in found])
        return
    if found:
        columns, data = _listing(found, wide=not sys.stdout.isatty() or _terminal_columns() >= _WIDE)
        output.rows(columns, data)
    typer.echo(_summary(counts))


def show(job_id: JobId, as_json: Json = False) -> None:
    """Show a job, its attempts and artifacts.

    \b
    Examples:
      rythmiq show 019a5c3e
      rythmiq show 019a5c3e --json | jq .attempts
    """
    from rythmiq_ray.queue import inspect

    with database() as connection:
        job = inspect.job(connection, job_id)
        attempts = inspect.attempts(connection, job.job_id)
        artifacts = inspect.artifacts(connection, job.job_id)
    if as_json:
        output.print_json(
            output.record(job)
            | {
                "attempts": [output.record(attempt) for attempt in attempts],
                "artifacts": [{"attempt": attempt} | output.record(artifact) for attempt, artifact in artifacts],
            }
        )
        return
    output.pairs(_facts(job))
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


def cancel(
    context: typer.Context,
    job_ids: JobIds = None,
    queue: Annotated[str | None, typer.Option(help="All unfinished jobs of this queue.")] = None,
    as_json: Json = False,
) -> None:
    """Cancel jobs, by id or a whole queue.

    A queued one ends at once, a running one as soon as its driver has stopped it. Prints each
    id with the state it has now. Exits 1 if one of the given jobs had ended before.

    \b
    Examples:
      rythmiq cancel 019a5c3e
      rythmiq cancel --queue night
    """
    from rythmiq_ray.queue import inspect

    if bool(job_ids) == (queue is not None):
        raise typer.BadParameter("give either job ids or --queue", ctx=context)
    with database() as connection:
        named = [inspect.job(connection, job_id) for job_id in job_ids or ()]
        connection.rollback()  # What follows is repeated after a deadlock where it is its transaction's first.
        asked = inspect.cancel(connection, ids=[job.job_id for job in named] if named else None, queue=queue)
    if as_json:
        output.print_json([{"job_id": str(job_id), "state": state} for job_id, state in asked.items()])
    else:
        for job_id, state in asked.items():
            typer.echo(f"{job_id}  {'will be stopped by its driver' if state is JobState.RUNNING else state}")
    late = [job for job in named if job.job_id not in asked and job.state is not JobState.CANCELLED]
    for job in late:
        say(f"{job.job_id} had ended before: {job.state}")
    if late:
        raise Unfinished
    if not asked:
        say("nothing was left to cancel")


def retry(
    context: typer.Context,
    job_ids: JobIds = None,
    as_json: Json = False,
) -> None:
    """Queue FAILED and CANCELLED jobs again.

    Each gets one attempt more at least; its id is printed. Exits 1 if one of the given jobs was
    left alone, because it is unfinished, succeeded, or another unfinished job has its unique key.

    \b
    Example:
      rythmiq jobs --state failed --json | jq -r '.[].job_id' | xargs rythmiq retry
    """
    from rythmiq_ray.queue import inspect

    if not job_ids:
        raise typer.BadParameter("give the ids of the jobs", ctx=context)
    with database() as connection:
        named = [inspect.job(connection, job_id) for job_id in job_ids]
        connection.rollback()
        queued = inspect.retry(connection, [job.job_id for job in named])
    done = list(dict.fromkeys(job.job_id for job in named if job.job_id in queued))
    if as_json:
        output.print_json([{"job_id": str(job_id)} for job_id in done])
    else:
        for job_id in done:
            typer.echo(job_id)
    left = [job for job in named if job.job_id not in queued]
    for job in left:
        ended = job.state in (JobState.FAILED, JobState.CANCELLED)
        say(f"{job.job_id} was left alone: {'another job has its unique key' if ended else f'it is {job.state}'}")
    if left:
        raise Unfinished


def artifact_rows(artifacts: Sequence[tuple[int, Artifact]]) -> tuple[dict[str, str], list[list[object]]]:
    """The table of artifacts."""
    return (
        {"TRY": ">", "SIZE": ">", "SHA-256": "<", "NAME": "~"},
        [[attempt, output.size(file.bytes), file.sha256[:12], file.name] for attempt, file in artifacts],
    )


def _terminal_columns() -> int:
    from shutil import get_terminal_size

    return get_terminal_size().columns


def _listing(found: Sequence[Job], *, wide: bool) -> tuple[dict[str, str], list[list[object]]]:
    now = datetime.now(UTC)
    warned = any(job.warnings for job in found)
    columns = {"ID": "<", "STATE": "<"} | ({"!": ">"} if warned else {}) | {"TRY": ">", "AGE": ">"}
    if wide:
        columns |= {"QUEUE": "<", "USER": "<"}
    columns["WHAT"] = "~"
    data: list[list[object]] = []
    for job in found:
        row: list[object] = [
            job.job_id,
            job.state,
            *([len(job.warnings) or " "] if warned else []),
            f"{job.attempt}/{job.max_attempts}",
            output.age(job.created_at, now),
        ]
        if wide:
            row += [job.queue, job.user_id]
        data.append([*row, _what(job)])
    return columns, data


def _what(job: Job) -> str:
    """The error of what failed, what is being done about a running job, else the command."""
    if job.error_code is not None and job.state in (JobState.FAILED, JobState.RETRYING):
        return f"{job.error_code}: {job.error_message}"[:_WHAT]
    command = " ".join(job.spec.command.split())[:_WHAT]
    return f"{_stage(job)}: {command}" if job.phase else command


def _stage(job: Job) -> str:
    """The phase; of a job that waits, whether Camber has started it."""
    if job.phase is not Phase.WAITING or job.remote_status is None:
        return str(job.phase)
    return "running at Camber" if job.remote_status.started else "pending at Camber"


def _since(job: Job, now: datetime) -> str:
    """For how long a running job has been at its stage, as far as that is known."""
    times = {Phase.SUBMITTING: job.started_at, Phase.COLLECTING: job.ended_at}
    waiting = job.running_at if job.remote_status is not None and job.remote_status.started else job.submitted_at
    since = waiting if job.phase is Phase.WAITING else times.get(job.phase) if job.phase else None
    return "" if since is None else f" for {output.age(since, now)}"


def _kept(job: Job, attempt: Attempt) -> str | None:
    """Where an attempt lies whose files could not be stored, until when, and how they are brought in."""
    until = attempt.keep_until or (job.collect_until if attempt.attempt == job.attempt else None)
    gone = attempt.cleaned_at is not None and attempt.cleaned_at <= datetime.now(UTC)
    if until is None or until <= datetime.now(UTC) or gone:
        return None
    left = output.duration((until - datetime.now(UTC)).total_seconds())
    collectable = attempt.attempt == job.attempt and job.collect_until is not None
    cure = f"; `rythmiq collect {job.job_id}` brings it in" if collectable else ""
    return (
        f"attempt {attempt.attempt}: not stored; it lies in Camber's stash at {output.printable(attempt.remote_path)}"
        f" until {until.astimezone(UTC):%Y-%m-%d %H:%M} UTC ({left}){cure}"
    )


def _counts_of(counts: Sequence[Count], queues: Sequence[str] | None) -> list[Count]:
    return [count for count in counts if not queues or count.queue in queues]


def _summary(counts: Sequence[Count]) -> str:
    states: Counter[str] = Counter()
    phases: Counter[str] = Counter()
    for count in counts:
        states[count.state] += count.jobs
        if count.phase:
            phases[count.phase] += count.jobs
    parts = [f"{states[state]:,} {state}" for state in JobState if states[state]]
    running = ", ".join(f"{number:,} {phase}" for phase, number in sorted(phases.items()))
    text = ", ".join(part + (f" ({running})" if part.endswith("RUNNING") else "") for part in parts)
    total = states.total()
    return f"{total:,} job{'' if total == 1 else 's'}{': ' if text else ''}{text}"


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
        "waits for": job.waits_for,
        "queue": f"{job.queue}, priority {job.priority}",
        "user": job.user_id,
        "unique key": job.unique_key,
        "command": spec.command,
        "runs on": f"{spec.engine} {spec.node_size} x {spec.num_nodes}{' with GPU' if spec.gpu else ''}",
        "inputs": ", ".join(item.name for item in spec.inputs),
        "outputs": ", ".join(spec.outputs),
        "env": ", ".join(spec.env),
        "secrets": ", ".join(spec.secrets),
        "time-out": None if spec.timeout_s is None else output.duration(spec.timeout_s),
        "attempt": f"{job.attempt} of {job.max_attempts}{f', {job.free_attempts} free' if job.free_attempts else ''}",
        "next attempt": output.age(job.next_visible_at, now)
        if job.state in (JobState.QUEUED, JobState.RETRYING) and job.next_visible_at > now
        else None,
        "remote job": None if job.remote_id is None else f"{job.remote_id} {job.remote_status or ''}".strip(),
        "exit code": job.exit_code,
        "error": None if job.error_code is None else f"{job.error_code}: {job.error_message}",
        "cancel asked": None if job.cancel_requested_at is None else f"{output.age(job.cancel_requested_at, now)} ago",
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
