"""``rythmiq groups``, ``wait`` and ``gather``: list groups, wait for them, gather their results."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer

from rythmiq_ray.cli import output
from rythmiq_ray.cli.failure import ENDED_BADLY, NO_SUCH, TIME_OVER, Ended, Unfinished, say
from rythmiq_ray.cli.filters import (
    JobSelection,
    References,
    filtered,
    found_of,
    require_selection,
    selected_states,
    time_of,
)
from rythmiq_ray.cli.group_view import record_of
from rythmiq_ray.cli.jobs import Before, Json, Limit
from rythmiq_ray.console.formatting import bar
from rythmiq_ray.duration import seconds_of
from rythmiq_ray.filtering import labels_of
from rythmiq_ray.model import Group, JobState

if TYPE_CHECKING:
    from rythmiq_ray.queue.listing import Progress

_BAR: Final = 12
_NAME: Final = 24
_TABLES: Final = (".csv", ".json", ".jsonl")


def groups(
    name: Annotated[str | None, typer.Option(metavar="GLOB", help="Only groups whose name matches.")] = None,
    users: Annotated[
        list[str] | None, typer.Option("--user", "--user-id", metavar="USER", help="Only this user's.")
    ] = None,
    labels: Annotated[list[str] | None, typer.Option("--label", metavar="K=V", help="Only with this label.")] = None,
    running: Annotated[bool, typer.Option("--running", help="Only those with an unfinished member.")] = False,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Made later: 2h or 30d ago, or a date.")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Made before: 2h or 30d ago, or a date.")] = None,
    limit: Limit = 20,
    before: Before = None,
    as_json: Json = False,
) -> None:
    """List groups, newest first: sweeps, batches, the steps of a pipeline.

    In the bar # is SUCCEEDED, x FAILED, - CANCELLED, ~ unfinished.

    \b
    Examples:
      rythmiq groups
      rythmiq groups --running --user ann
      rythmiq groups --json --limit 0 | jq -r '.items[] | select(.failed > 0) | .name'
    """
    from rythmiq_ray.access import database
    from rythmiq_ray.queue import listing

    wanted = listing.Filter(
        name=name,
        users=users or None,
        labels=labels_of(labels or ()),
        since=None if since is None else time_of(since, "--since"),
        until=None if until is None else time_of(until, "--until"),
    )
    unfinished = True if running else None
    with database() as connection:
        older = None if before is None else found_of(connection, [before])[0].id
        found = listing.groups(
            connection, wanted=wanted, unfinished=unfinished, limit=limit + 1 if limit else None, before=older
        )
        total = listing.groups_total(connection, wanted=wanted, unfinished=unfinished)
    more = bool(limit) and len(found) > limit
    found = found[:limit] if limit else found
    if as_json:
        output.print_items(map(record_of, found), lambda: total, lambda: found[-1].group_id if more else None)
        return
    if found:
        output.rows(*_listing(found))
    typer.echo(f"{total:,} group{'' if total == 1 else 's'}")


def _listing(found: Sequence[Group]) -> tuple[dict[str, str], list[list[object]]]:
    now = datetime.now(UTC)
    short = output.shortened(group.group_id for group in found)
    data: list[list[object]] = [
        [
            short[group.group_id],
            group.state,
            bar(group, group.unfinished, _BAR),
            f"{group.members - group.unfinished:,}/{group.members:,}",
            group.failed or " ",
            output.age(group.created_at, now),
            output.clipped(group.user_id),
            output.clipped(group.name, _NAME),
        ]
        for group in found
    ]
    columns = {"ID": "<", "STATE": "<", "": "<", "ENDED": ">", "FAILED": ">", "AGE": ">", "USER": "<", "NAME": "~"}
    if not any(group.user_id for group in found):
        del columns["USER"]
        data = [[*row[:-2], row[-1]] for row in data]
    return columns, data


@filtered
def wait(
    context: typer.Context,
    wanted: JobSelection,
    references: References = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="The longest wait: seconds, or 90s, 2h, 1d.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Wait until jobs and groups have ended.

    Shows a bar on a terminal, and at the end prints each with its state. Exits 0 if all SUCCEEDED, 3 if one FAILED
    or was CANCELLED, 124 if --timeout is over earlier.

    \b
    Examples:
      rythmiq wait lr && rythmiq gather lr --file score.json
      rythmiq wait 019a5c3e 019a5c41 --timeout 2h
      rythmiq wait --label nightly=2026-01-07
    """
    from rythmiq_ray.access import database, database_url
    from rythmiq_ray.queue.listing import Found
    from rythmiq_ray.waiting import Waiting

    require_selection(context, references, wanted)
    try:
        timeout_s = None if timeout is None else seconds_of(timeout)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--timeout") from None
    with database() as connection:
        if wanted.given:
            found = [Found(job_id, True) for job_id in selected_states(connection, references, wanted)]
        else:
            found = found_of(connection, references)
    if not found:
        raise Ended(NO_SUCH, "no job matches, so there is nothing to wait for")
    last: dict[UUID, Progress] = {}
    with Waiting(database_url()) as waiting:
        changes = waiting.changes(found, timeout_s)
        first = next(changes)
        with output.progress_bar("wait", sum(each.members for each in (first or {}).values())) as advance:
            shown, over = 0, False
            for look in chain([first], changes):
                if look is None:
                    over = True
                    break
                last = look
                ended = sum(each.ended for each in look.values())
                for _ in range(shown, ended):
                    advance()
                shown = max(shown, ended)
    items = [
        {"id": str(item.id), "kind": "job" if item.is_job else "group", "state": last[item.id].state}
        | {"members": last[item.id].members, "ended": last[item.id].ended, "failed": last[item.id].failed}
        for item in found
        if item.id in last
    ]
    if as_json:
        output.print_items(items)
    else:
        for item in items:
            count = "" if item["kind"] == "job" else f"  {item['ended']:,} of {item['members']:,} ended"
            failed = f", {item['failed']:,} FAILED" if item["kind"] == "group" and item["failed"] else ""
            typer.echo(f"{item['id']}  {item['state']}{count}{failed}")
    if over:
        raise Ended(TIME_OVER, f"--timeout {timeout} has passed, and not all have ended")
    if any(item["state"] != JobState.SUCCEEDED for item in items) or len(items) < len(found):
        raise Ended(ENDED_BADLY)


@filtered
def gather(
    context: typer.Context,
    wanted: JobSelection,
    references: References = None,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="NAME", help="An output of each: .json, .jsonl, .csv, or text."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="TABLE", help="Write the table to this file: .csv, .json or .jsonl."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put the results of many jobs into one table.

    A row for each member, with its parameters, state, seconds and credits, and the fields of one of its output
    files. A file with several records gives several rows. Without -o the table is printed, in a pipe as CSV. Exits 4 if
    no member has such a file, 1 if one could not be read.

    \b
    Examples:
      rythmiq gather lr --file score.json
      rythmiq gather lr --file score.json -o table.csv
      rythmiq gather --label nightly=2026-01-07 --state succeeded --json
    """
    from rythmiq_ray import results
    from rythmiq_ray.access import database, read
    from rythmiq_ray.queue import listing

    require_selection(context, references, wanted)
    if out is not None and out.suffix.lower() not in _TABLES:
        raise typer.BadParameter(f"{out}: a table is written as one of {', '.join(_TABLES)}", param_hint="-o")
    if out is not None and as_json:
        raise typer.BadParameter(
            "--json writes to stdout and cannot be combined with -o, which also takes FILE.json", ctx=context
        )
    with database() as connection:
        ids = list(selected_states(connection, references, wanted))
        members = sorted(
            listing.jobs(connection, listing.Filter(ids=ids), limit=None),
            key=lambda job: (str(job.group_id or ""), job.group_index or 0, job.job_id),
        )
        files = (
            {}
            if file is None
            else {job_id: found[0][1] for job_id, found in listing.stored(connection, ids, file).items()}
        )
    if not members:
        raise Ended(NO_SUCH, "no job matches, so there is nothing to gather")
    with output.progress_bar("gather", len(files)) as advance:
        table = results.gather(members, files, read, advance)
    if as_json:
        output.print_items(table.rows)
    elif out is not None:
        _write(out, table.columns, table.rows)
        say(f"{len(table.rows):,} rows of {len(table.columns)} columns in {out}")
    else:
        _show(table.columns, table.rows)
    for fault in table.faults:
        say(output.printable(fault))
    if table.faults:
        raise Unfinished
    if file is not None and not files:
        raise Ended(NO_SUCH, f"none of {len(members):,} jobs left a file {file!r}")


def _write(out: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    from rythmiq_ray.results import cell

    with out.open("w", encoding="utf-8", newline="") as file:
        match out.suffix.lower():
            case ".json":
                file.write(output.dumps(rows, indent=1))
            case ".jsonl":
                file.writelines(output.dumps(row) + "\n" for row in rows)
            case _:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows([cell(row.get(name)) for name in columns] for row in rows)


def _show(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    from rythmiq_ray.results import cell

    if output.width() is None:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([cell(row.get(name)) for name in columns] for row in rows)
        return
    shown = [[output.clipped(_brief(row.get(name)), _NAME) for name in columns] for row in rows]
    output.rows(dict.fromkeys(columns, "<"), shown)


def _brief(value: object) -> str:
    from rythmiq_ray.results import cell

    return f"{value:.6g}" if isinstance(value, float) else cell(value)
