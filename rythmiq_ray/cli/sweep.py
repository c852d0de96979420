"""``rythmiq sweep``: a group of jobs that differ in their parameters."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import typer

from rythmiq_ray import sweeps
from rythmiq_ray.cli import output
from rythmiq_ray.cli.enqueue import (
    BULK_TIMEOUT_S,
    Queued,
    Work,
    checked_all,
    job_from,
    job_options,
    prepared,
    warn_unserved,
)
from rythmiq_ray.cli.jobs import Json
from rythmiq_ray.model import NewGroup, NewJob

_SHOWN: Final = 5


@job_options
def sweep(
    context: typer.Context,
    work: Work,
    queued: Queued,
    params: Annotated[
        list[str] | None,
        typer.Option("--param", metavar="NAME=A,B|NAME=1..10", help="Values of a parameter; may be given again."),
    ] = None,
    zip_: Annotated[bool, typer.Option("--zip", help="Combine first values, then second values, and so on.")] = False,
    params_file: Annotated[
        Path | None, typer.Option("--params", metavar="FILE.csv|.jsonl", help="A member for each row of the file.")
    ] = None,
    max_parallel: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="The most members that are queued or run at once.")
    ] = None,
    stop_after_failures: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Cancel the others once this many FAILED.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show what would be enqueued, and what it may cost.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Enqueue a sweep: a group with a member for each combination of parameters.

    Each member has its parameters as environment variables (`$LR`); `{LR}` in command, input, output and name is
    replaced, in the command quoted for the shell. Prints the id of the group. `--name lr` names the group;
    `--name 'lr {LR}'` names the members, and the group by the text before the brace.

    \\b
    Examples:
      rythmiq sweep --name lr --command 'python3 fit.py --lr $LR --seed $SEED' --input ./fit.py --output score.json \\
          --param LR=0.1,0.01 --param SEED=1..10 --max-parallel 8
      rythmiq sweep --command './run {CASE}' --input s3://lab/{CASE}.in --params cases.csv --stop-after-failures 5
      rythmiq sweep --command 'true' --param N=1..1000 --dry-run
    """
    rows = _rows(context, params or [], zip_=zip_, file=params_file)
    job = job_from(work, queued)
    members = list(sweeps.expand(replace(job, notify=None), rows))
    group = NewGroup(
        name=_group_name(job.name, rows),
        user_id=job.user_id,
        labels=job.labels,
        max_parallel=max_parallel,
        stop_after_failures=stop_after_failures,
        notify=job.notify,
    )
    if not _named_apart(job.name, rows):
        members = [_nameless(member) for member in members] if job.name is not None else members
    if dry_run:
        _tell(members, group, as_json=as_json)
        return
    from rythmiq_ray.access import database
    from rythmiq_ray.queue import insert_group

    checked_all(members)
    members = prepared(members)
    with database(statement_timeout_s=BULK_TIMEOUT_S) as connection:
        group_id, ids = insert_group(connection, group, members)
        warn_unserved(connection, members)
    if as_json:
        output.print_json({"group_id": str(group_id), "name": group.name, "members": len(ids)})
    else:
        sys.stdout.write(f"{group_id}\n")


def _rows(context: typer.Context, params: list[str], *, zip_: bool, file: Path | None) -> list[sweeps.Params]:
    if not params and file is None:
        raise typer.BadParameter("give --param or --params", ctx=context)
    named = [sweeps.param_of(text) for text in params]
    values = dict(named)
    if len(values) < len(named):
        raise typer.BadParameter("a parameter is given twice; list its values in one --param", ctx=context)
    tables = [sweeps.read_params(file)] if file is not None else []
    if values:
        tables.append(sweeps.zipped(**values) if zip_ else sweeps.grid(**values))
    return sweeps.combined(*tables)


def _named_apart(name: str | None, rows: list[sweeps.Params]) -> bool:
    return name is not None and sweeps.has_place(name, rows[0])


def _group_name(name: str | None, rows: list[sweeps.Params]) -> str | None:
    if name is None or not _named_apart(name, rows):
        return name
    return name.partition("{")[0].rstrip(" -_.:/[(") or None


def _nameless(member: NewJob) -> NewJob:
    return replace(member, name=None)


def _tell(members: list[NewJob], group: NewGroup, *, as_json: bool) -> None:
    from rythmiq_ray.config_loader import load_catalog

    checked_all(members)
    catalog = load_catalog()
    spec = members[0].spec
    an_hour = catalog.credits_per_hour(spec)
    at_most = None if spec.timeout_s is None or an_hour is None else an_hour * spec.timeout_s / 3600 * len(members)
    if as_json:
        output.print_json(
            {
                "members": len(members),
                "name": group.name,
                "credits_per_hour_each": an_hour,
                "credits_at_most": at_most,
                "first": [
                    {"name": member.name, "command": member.spec.command, "params": dict(member.params or {})}
                    for member in members[:_SHOWN]
                ],
            }
        )
        return
    typer.echo(f"{len(members):,} member{'' if len(members) == 1 else 's'}; nothing was enqueued")
    for member in members[:_SHOWN]:
        typer.echo(f"  {output.printable(sweeps.shown(member.params or {}))}: {output.printable(member.spec.command)}")
    if len(members) > _SHOWN:
        typer.echo(f"  and {len(members) - _SHOWN:,} more")
    typer.echo(f"Estimated: {an_hour:g} credits an hour for each running member")
    if at_most is not None:
        timeout = output.duration(spec.timeout_s)
        typer.echo(f"           {at_most:.2f} credits at most, if each runs once for its whole timeout of {timeout}")
