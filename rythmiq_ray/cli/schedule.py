"""``rythmiq schedule``: jobs and sweeps that run at regular times."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from rythmiq_ray.access import database
from rythmiq_ray.cli import output
from rythmiq_ray.cli.enqueue import Queued, Work, checked_all, job_from, job_options, prepared
from rythmiq_ray.cli.jobs import Json, Limit
from rythmiq_ray.model import NewJob
from rythmiq_ray.schedules import CatchUp, Overlap

app = typer.Typer(
    rich_markup_mode=None,
    help="Jobs and sweeps that run at regular times.\n\n"
    "One of the live drivers fires each due time, exactly once, within driver.poll_interval_s.",
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]


@app.command()
@job_options
def add(
    context: typer.Context,
    name_: Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name, and the job's if it has none.")],
    cron: Annotated[str, typer.Argument(metavar="CRON", help="Five fields: minute, hour, day, month, weekday.")],
    work: Work,
    queued: Queued,
    time_zone: Annotated[
        str, typer.Option(metavar="ZONE", help="The time zone of the hours, such as Europe/Berlin.")
    ] = "UTC",
    overlap: Annotated[
        Overlap, typer.Option(help="If the previous run is unfinished: skip, queue another, or cancel it.")
    ] = Overlap.SKIP,
    catch_up: Annotated[
        CatchUp, typer.Option(help="Which missed times to run: none, the last one, or all.")
    ] = CatchUp.ONE,
    params: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=A,B|NAME=1..10", help="Make it a sweep; may be given again."),
    ] = None,
    max_parallel: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="For a sweep: the most members at once.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace the schedule of that name.")] = False,
    as_json: Json = False,
) -> None:
    """Add a schedule with the options of `rythmiq enqueue`; --param makes it a sweep.

    When clocks change, a job of a fixed hour runs once: if its hour is skipped it runs when that hour is over, and of
    an hour that comes twice the first counts.

    \b
    Examples:
      rythmiq schedule add nightly '0 2 * * *' --time-zone Europe/Berlin --command 'make report' --output report.pdf
      rythmiq schedule add scan '*/15 * * * *' --command ./scan --overlap cancel --catch-up none
      rythmiq schedule add weekly '0 6 * * mon' --command './fit $REGION' --param REGION=north,south --max-parallel 1
    """
    from rythmiq_ray import sweeps
    from rythmiq_ray.queue import schedules

    if work.data["command"] is None:
        raise typer.BadParameter("give --command", ctx=context)
    if max_parallel is not None and not params:
        raise typer.BadParameter("--max-parallel is for sweeps: give --param", ctx=context)
    job = job_from(work, queued)
    rows = sweeps.grid(**dict(sweeps.param_of(text) for text in params)) if params else []
    members = list(sweeps.expand(dataclasses.replace(job, notify=None), rows)) if rows else [job]
    checked_all(members)
    lines = [_line(member) for member in prepared(members)]
    sweep = {
        "jobs": lines,
        "max_parallel": max_parallel,
        "user_id": job.user_id,
        "name": job.name,
        "notify": job.notify,
    }
    with database() as connection:
        next_at = schedules.add(
            connection,
            name_,
            cron,
            time_zone=time_zone,
            job=None if rows else lines[0],
            sweep=sweep if rows else None,
            overlap=overlap,
            catch_up=catch_up,
            replace=replace,
        )
    if as_json:
        output.print_json({"name": name_, "next_at": _iso(next_at)})
    else:
        typer.echo(f"{output.printable(name_)} is first due at {_shown(next_at)}")


@app.command("list")
def list_(limit: Limit = 0, as_json: Json = False) -> None:
    """List schedules.

    \b
    Example:
      rythmiq schedule list --json | jq -r '.items[] | select(.last_state == "FAILED") | .name'
    """
    from rythmiq_ray.queue import schedules

    with database() as connection:
        found = schedules.schedules(connection)
    total, found = len(found), found[: limit or None]
    if as_json:
        output.print_items(map(output.record, found), lambda: total)
        return
    now = datetime.now(UTC)
    output.rows(
        {"NAME": "~", "CRON": "<", "ZONE": "<", "NEXT": ">", "LAST": ">", "STATE": "<"},
        [
            [
                each.name,
                output.clipped(each.cron),
                output.clipped(each.time_zone),
                "paused" if each.paused else output.age(each.next_at, now),
                output.age(each.last_at, now),
                each.last_state,
            ]
            for each in found
        ],
    )


@app.command()
def show(name: Name, as_json: Json = False) -> None:
    """Show a schedule, and the outcome of its last due time.

    \b
    Example:
      rythmiq schedule show nightly
    """
    from rythmiq_ray.queue import schedules

    with database() as connection:
        (found,) = schedules.schedules(connection, name)
    if as_json:
        output.print_json(output.record(found))
        return
    lines: list[Any] = [found.job] if found.job is not None else (found.sweep or {}).get("jobs", [])
    output.pairs(
        {
            "schedule": found.name,
            "cron": f"{found.cron} ({found.time_zone})",
            "next": f"paused: {found.reason or 'no reason given'}" if found.paused else _shown(found.next_at),
            "jobs": f"{len(lines):,}" if found.sweep is not None else None,
            "command": lines[0].get("command") if lines else None,
            "overlap": found.overlap,
            "catch up": found.catch_up,
            "last": None if found.last_at is None else _shown(found.last_at),
            "last outcome": found.last_outcome,
            "last run": found.last_job_id or found.last_group_id,
            "last state": found.last_state,
            "enqueues as": found.enqueued_by,
        }
    )


@app.command()
def run(name: Name) -> None:
    """Enqueue it now, in addition to its times. Prints the id of the job or group.

    \b
    Example:
      rythmiq wait "$(rythmiq schedule run nightly)"
    """
    from rythmiq_ray.cli.failure import FAILED, Ended
    from rythmiq_ray.queue import schedules

    with database() as connection:
        made = schedules.run(connection, name)
        (found,) = schedules.schedules(connection, name)
    if made is None:
        raise Ended(FAILED, f"{name} was {found.last_outcome}")
    typer.echo(made)


@app.command()
def pause(
    name: Name, reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for others to see.")] = None
) -> None:
    """Stop it from firing until it is resumed.

    \b
    Example:
      rythmiq schedule pause nightly --reason 'the source is being moved'
    """
    from rythmiq_ray.queue import schedules

    with database() as connection:
        schedules.pause(connection, name, reason)


@app.command()
def resume(name: Name) -> None:
    """Resume it; times that it missed are caught up as its --catch-up says.

    \b
    Example:
      rythmiq schedule resume nightly
    """
    from rythmiq_ray.queue import schedules

    with database() as connection:
        next_at = schedules.resume(connection, name)
    typer.echo(f"{output.printable(name)} is due at {_shown(next_at)}")


@app.command()
def remove(name: Name) -> None:
    """Remove a schedule; jobs that it has enqueued stay.

    \b
    Example:
      rythmiq schedule remove nightly
    """
    from rythmiq_ray.queue import schedules

    with database() as connection:
        schedules.remove(connection, name)


def _line(job: NewJob) -> dict[str, Any]:
    """A job as a JSON line (see `rythmiq schema`), without fields that have their default."""
    line: dict[str, Any] = job.spec.as_dict()
    fallback = NewJob(spec=job.spec)
    for name in ("queue", "priority", "max_attempts", "user_id", "unique_key", "name", "notify"):
        if (value := getattr(job, name)) != getattr(fallback, name):
            line[name] = value
    if job.delay_s:
        line["delay"] = job.delay_s
    if job.labels:
        line["labels"] = dict(job.labels)
    if job.params:
        line["params"] = dict(job.params)
    for name in ("after", "after_ended"):
        if references := getattr(job, name):
            line[name] = [str(reference) for reference in references]
    return line


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _shown(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
