"""``rythmiq limit``, ``budget``, ``pause``, ``resume`` and ``cost``: limits, and credits spent."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from rythmiq_ray.access import database
from rythmiq_ray.cli import output
from rythmiq_ray.cli.filters import JobSelection, filtered
from rythmiq_ray.cli.jobs import Json
from rythmiq_ray.cli.jobs import Limit as Most

if TYPE_CHECKING:
    from rythmiq_ray.queue.control import Limit

limit = typer.Typer(
    rich_markup_mode=None,
    help="Limit the jobs that run at once and that begin in a minute, of all drivers together.",
)
budget = typer.Typer(rich_markup_mode=None, help="Limit the credits spent in a day, a month, or in total.")
Scope = Annotated[
    str, typer.Argument(metavar="SCOPE", help="account, queue:NAME, user:NAME, user:* (each user) or group:ID.")
]
CancelRunning = Annotated[bool, typer.Option("--cancel-running", help="Cancel running jobs, too.")]


class Period(StrEnum):
    """The period of a budget; days and months are in UTC."""

    DAY = "day"
    MONTH = "month"
    ALL = "all"


@limit.command("set")
def set_limit(
    scope: Scope,
    max_running: Annotated[int | None, typer.Option(min=0, metavar="N", help="Most jobs that run at once.")] = None,
    per_minute: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Most attempts that begin in a minute.")
    ] = None,
) -> None:
    """Set a limit; options that are not given stay unchanged. Running jobs go on.

    \b
    Examples:
      rythmiq limit set account --max-running 200
      rythmiq limit set 'user:*' --max-running 20
      rythmiq limit set queue:gpu --per-minute 30
    """
    from rythmiq_ray.queue import control

    if max_running is None and per_minute is None:
        raise typer.BadParameter("give --max-running or --per-minute")
    with database() as connection:
        found = control.scope_of(connection, scope)
        control.set_limit(connection, found, max_running=max_running, per_minute=per_minute)


@limit.command("show")
def show_limits(limit: Most = 0, as_json: Json = False) -> None:
    """List limits, pauses and budgets, and how much of each is used.

    \b
    Example:
      rythmiq limit show --json | jq -r '.items[] | select(.paused) | .scope'
    """
    _show(limit, as_json=as_json, budgets=False)


@limit.command("unset")
def unset_limit(scope: Scope) -> None:
    """Remove a limit.

    \b
    Example:
      rythmiq limit unset queue:gpu
    """
    from rythmiq_ray.queue import control

    with database() as connection:
        control.unset_limit(connection, control.scope_of(connection, scope))


@budget.command("set")
def set_budget(
    scope: Scope,
    credits_: Annotated[float, typer.Option("--credits", min=0, metavar="N", help="Camber's credits.")],
    period: Annotated[Period, typer.Option(help="The period of the budget.")] = Period.MONTH,
    cancel_running: CancelRunning = False,
) -> None:
    """Set a budget: when it is reached nothing new is submitted until the period is over.

    Ended jobs count, and running jobs by their time so far. Jobs that run when the budget is reached go on, and can
    exceed it by at most their cost up to their timeouts; --cancel-running stops them within a poll interval or two.

    \b
    Examples:
      rythmiq budget set account --credits 500 --period month
      rythmiq budget set 'user:*' --credits 20 --period day --cancel-running
    """
    from rythmiq_ray.queue import control

    with database() as connection:
        found = control.scope_of(connection, scope)
        control.set_budget(connection, found, credits_, period, cancel_running=cancel_running)


@budget.command("show")
def show_budgets(limit: Most = 0, as_json: Json = False) -> None:
    """List budgets, and how much of each is spent.

    \b
    Example:
      rythmiq budget show
    """
    _show(limit, as_json=as_json, budgets=True)


@budget.command("unset")
def unset_budget(
    scope: Scope, period: Annotated[Period | None, typer.Option(help="Only the budget of this period.")] = None
) -> None:
    """Remove a scope's budgets.

    \b
    Example:
      rythmiq budget unset account --period day
    """
    from rythmiq_ray.queue import control

    with database() as connection:
        control.unset_budget(connection, control.scope_of(connection, scope), period)


def pause(
    scope: Scope,
    reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, for others to see.")] = None,
    cancel_running: CancelRunning = False,
) -> None:
    """Stop new submits of the account, a queue, a user or a group, until it is resumed.

    \b
    Examples:
      rythmiq pause account --reason 'the store is being moved'
      rythmiq pause queue:gpu --cancel-running
    """
    from rythmiq_ray.queue import control

    with database() as connection:
        found = control.scope_of(connection, scope)
        jobs = control.pause(connection, found, reason=reason, cancel_running=cancel_running)
    typer.echo(f"{output.printable(scope)} is paused" + (f", {jobs:,} running jobs are being stopped" if jobs else ""))


def resume(scope: Scope) -> None:
    """End a pause.

    \b
    Example:
      rythmiq resume queue:gpu
    """
    from rythmiq_ray.queue import control

    with database() as connection:
        control.resume(connection, control.scope_of(connection, scope))
    typer.echo(f"{output.printable(scope)} is resumed")


@filtered
def cost(
    wanted: JobSelection,
    by: Annotated[str, typer.Option(metavar="WHAT", help="day, user, queue, group, label:KEY, or all.")] = "day",
    limit: Most = 0,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Json = False,
) -> None:
    """Show the credits spent, estimated from run time and price. Days are in UTC.

    Running jobs count by their time so far. `rythmiq prune` does not change the sums. Only the filters --user, --queue,
    --group, --label, --since and --until (whole days) are used.

    \b
    Examples:
      rythmiq cost --by user --since 30d
      rythmiq cost --by label:project --csv > projects.csv
    """
    from rythmiq_ray.queue import control

    kind, _, label = by.partition(":")
    if kind not in ("day", "user", "queue", "group", "label", "all") or (kind == "label") != bool(label):
        raise typer.BadParameter(f"{by!r} is not day, user, queue, group, label:KEY or all", param_hint="--by")
    if wanted.filter.states or wanted.filter.name or wanted.filter.errors:
        raise typer.BadParameter("costs can be filtered only by user, queue, group, label and time")
    since, until = wanted.filter.since, wanted.filter.until
    with database() as connection:
        found = control.cost(
            connection,
            by=kind,
            label=label or None,
            since=None if since is None else since.date(),
            until=None if until is None else until.date(),
            wanted=wanted.resolved(connection),
        )
    total, found = len(found), found[: limit or None]
    if as_json:
        output.print_items(map(output.record, found), lambda: total)
    elif as_csv:
        writer = csv.writer(sys.stdout)
        writer.writerow([label or kind, "credits", "jobs", "running_credits"])
        writer.writerows([each.key, each.credits, each.jobs, each.running_credits] for each in found)
    else:
        output.rows(
            {(label or kind).upper(): "~", "CREDITS": ">", "JOBS": ">", "RUNNING": ">"},
            [
                [each.key or "none", f"{each.credits:,.4f}", f"{each.jobs:,}", f"{each.running_credits:,.4f}"]
                for each in found
            ],
        )


def _show(limit: int, *, as_json: bool, budgets: bool) -> None:
    from rythmiq_ray.queue import control

    with database() as connection:
        found = [each for each in control.limits(connection) if each.credits is not None or not budgets]
    total, found = len(found), found[: limit or None]
    if as_json:
        output.print_items(map(output.record, found), lambda: total)
        return
    output.rows(
        {"SCOPE": "~", "RUNNING": ">", "A MINUTE": ">", "CREDITS": ">", "STATE": "<", "SET BY": "<", "WHY": "<"},
        list(_rows(found)),
    )


def _rows(found: Iterable[Limit]) -> Iterable[list[object]]:
    for each in found:
        spent = None if each.credits is None else f"{each.spent or 0:,.2f} of {each.credits:,.2f} {each.period}"
        yield [
            each.shown,
            None if each.max_running is None else f"{each.running:,} of {each.max_running:,}",
            each.per_minute,
            spent,
            "paused" if each.paused else "reached" if each.over else "open",
            output.clipped(each.set_by),
            output.clipped(each.reason or "", 30),
        ]
