"""``rythmiq why``, ``queues`` and ``drivers``: why a job does not run, and lists of queues and drivers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rythmiq_ray.access import database
from rythmiq_ray.cli import output
from rythmiq_ray.cli.jobs import JobId, Json, job_of
from rythmiq_ray.console.formatting import driver_state
from rythmiq_ray.model import Job, JobState, Phase

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


_MOST_AHEAD: Final = 10_000


@dataclass(frozen=True)
class Reason:
    """A reason why a job does not run or makes no progress, and what would change that."""

    reason: str
    message: str
    remedy: str


def why(job_id: JobId, as_json: Json = False) -> None:
    """Tell why a job does not run now, and what would change it.

    One line for each reason: dependencies, pauses, limits, budgets, a start time in the future, a queue that no live
    driver serves, jobs that go before it, Camber's own queue, an outage.

    \b
    Examples:
      rythmiq why 019a5c3e
      rythmiq why merge --json | jq -r '.items[].reason'
    """
    from rythmiq_ray.queue import inspect

    with database() as connection:
        job = inspect.job(connection, job_of(connection, job_id))
        reasons = list(reasons_of(connection, job))
    if as_json:
        output.print_items(output.record(reason) for reason in reasons)
        return
    for reason in reasons:
        typer.echo(output.printable(f"{reason.message}: {reason.remedy}"))


def reasons_of(connection: Connection, job: Job) -> Iterator[Reason]:
    """The reasons why a job does not run or makes no progress."""
    if job.state.finished:
        error = f" with {job.error_code}" if job.error_code else ""
        again = "nothing is left to do" if job.state is JobState.SUCCEEDED else "rythmiq retry runs it again"
        yield Reason("ended", f"it has ended {job.state}{error}", again)
        return
    if job.cancel_requested_at is not None:
        yield Reason("cancelled", "it was asked to stop", "its driver will stop it")
    if job.state is JobState.RUNNING:
        yield from _of_a_running(connection, job)
        return
    if job.state is JobState.BLOCKED:
        yield from _of_a_blocked(connection, job)
    yield from _of_a_waiting(connection, job)


def _of_a_blocked(connection: Connection, job: Job) -> Iterator[Reason]:
    from rythmiq_ray.queue import listing

    for need in listing.needs(connection, job.job_id):
        if need.satisfied:
            continue
        what = f"{'job' if need.is_job else 'group'} {need.name or need.id}"
        until = "has SUCCEEDED" if need.needs == "succeeded" else "has ended"
        yield Reason(
            "dependency", f"it waits for {what}, which is {need.state or 'gone'}", f"it goes on once that {until}"
        )
    if job.waits_for == 0 and job.group_id is not None:
        (group,) = listing.groups_of(connection, [job.group_id])
        if group.max_parallel is None:
            return
        yield Reason(
            "max_parallel",
            f"its group {group.name or group.group_id} allows {group.max_parallel} queued or running members at once",
            "it goes on once a member has ended",
        )


def _of_a_waiting(connection: Connection, job: Job) -> Iterator[Reason]:
    from rythmiq_ray.queue import listing

    living = [driver for driver in listing.drivers(connection, gone_s=0.0) if driver.alive]
    if not living:
        yield Reason("no_driver", "no driver is running", "start one: python -m rythmiq_ray.driver")
    elif listing.unserved(connection, [job.queue]):
        yield Reason(
            "queue_not_served",
            f"none of {len(living)} live drivers serves the queue {job.queue!r}",
            "start one with driver.queues that name it, or put the job into another queue",
        )
    yield from _of_limits(connection, job)
    if job.state is JobState.BLOCKED:
        return
    left_s = (job.next_visible_at - datetime.now(UTC)).total_seconds()
    if left_s > 0:
        cause = (
            f"it is tried again after {job.error_code}"
            if job.state is JobState.RETRYING
            else "its start time has not come"
        )
        yield Reason("not_yet", f"{cause}, in {output.duration(left_s)}", "it goes on by itself")
        return
    before = listing.ahead(connection, job, most=_MOST_AHEAD)
    count = f"{before:,}{' or more' if before == _MOST_AHEAD else ''}"
    yield Reason(
        "queued",
        f"{count} jobs of its queue are ahead of it" if before else "it is next in its queue",
        "it is claimed once a driver has room: rythmiq limit show, camber.max_in_flight, or what the account allows",
    )


def _of_limits(connection: Connection, job: Job) -> Iterator[Reason]:
    from rythmiq_ray.queue import control

    for limit, closed in control.limits_of(connection, job):
        if limit.paused and limit.closed:
            yield Reason(
                "paused",
                f"{limit.closed}, {output.age(limit.set_at)} ago",
                f"it goes on after: rythmiq resume {limit.shown}",
            )
        elif closed and limit.closed:
            remedy = "it goes on in the next period, or once the budget is raised: rythmiq budget set"
            yield Reason("budget", limit.closed, remedy)
        elif closed and limit.credits is None:
            bounds = [
                *([f"{limit.running} of {limit.max_running} jobs run"] if limit.max_running is not None else []),
                *([f"{limit.per_minute} may begin in a minute"] if limit.per_minute is not None else []),
            ]
            yield Reason(
                "limit",
                f"the limit of {limit.shown} is reached: {', '.join(bounds)}",
                f"it goes on once one has ended, or the limit is raised: rythmiq limit set {limit.shown}",
            )


def _of_a_running(connection: Connection, job: Job) -> Iterator[Reason]:
    from rythmiq_ray.queue import listing

    holders = {driver.driver_id: driver for driver in listing.drivers(connection, gone_s=0.0)}
    holder = holders.get(job.driver_id) if job.driver_id else None
    if holder is None or not holder.alive:
        yield Reason(
            "no_driver", "the driver that had it is gone", "a live driver takes it over once the lease has ended"
        )
    if job.wait_reason:
        yield Reason("waits", f"it waits: {job.wait_reason}", "it goes on once that has passed")
    if job.phase is Phase.WAITING and job.remote_status is not None and not job.remote_status.started:
        since = "" if job.submitted_at is None else f" for {output.age(job.submitted_at)}"
        yield Reason(
            "pending_at_camber",
            f"Camber has it as {job.remote_status}{since}, remote job {job.remote_id}",
            "Camber starts it once it has a free node of that size",
        )
        return
    yield Reason("running", f"it runs: {job.phase}", "nothing holds it up")


def queues(as_json: Json = False) -> None:
    """List queues with unfinished jobs: how many, how old, and how many live drivers serve them.

    \b
    Examples:
      rythmiq queues
      rythmiq queues --json | jq -r '.items[] | select(.drivers == 0) | .queue'
    """
    from rythmiq_ray.queue import listing

    with database() as connection:
        found = listing.queues(connection)
    if as_json:
        output.print_items(map(output.record, found))
        return
    columns = dict.fromkeys(("BLOCKED", "QUEUED", "RETRYING", "RUNNING", "OLDEST", "DRIVERS"), ">")
    output.rows(
        {"QUEUE": "~"} | columns,
        [
            [
                each.queue,
                f"{each.blocked:,}",
                f"{each.queued:,}",
                f"{each.retrying:,}",
                f"{each.running:,}",
                output.duration(each.oldest_s),
                each.drivers or "none",
            ]
            for each in found
        ],
    )


drivers = typer.Typer(rich_markup_mode=None)


@drivers.command()
def drain(driver: Annotated[str, typer.Argument(metavar="ID", help="Its id, or the first digits of it.")]) -> None:
    """Let a driver finish its jobs, claim no more, and exit: for maintenance of its machine.

    The driver keeps its jobs until they end; `kill -TERM` hands them over to other drivers at once instead.

    \b
    Example:
      rythmiq drivers drain 5b1f
    """
    from rythmiq_ray.errors import NotFound
    from rythmiq_ray.queue import control, listing

    digits = driver.replace("-", "").lower()
    with database() as connection:
        living = [each.driver_id for each in listing.drivers(connection) if each.alive]
        found = [driver_id for driver_id in living if digits and driver_id.hex.startswith(digits)]
        if len(found) != 1:
            raise NotFound(f"{len(found)} live drivers have an id that begins with {driver}: see `rythmiq drivers`")
        control.drain(connection, found[0])
    typer.echo(f"Driver {found[0]} is being drained")


@drivers.callback(invoke_without_command=True)
def list_drivers(context: typer.Context, as_json: Json = False) -> None:
    """List drivers: live ones, those of the last hour, and those that still have jobs.

    \b
    Examples:
      rythmiq drivers
      rythmiq drivers --json | jq -r '.items[] | select(.alive) | .hostname'
    """
    if context.invoked_subcommand is not None:
        return
    from rythmiq_ray.queue import listing

    with database() as connection:
        found = listing.drivers(connection)
    if as_json:
        output.print_items(map(output.record, found))
        return
    now = datetime.now(UTC)
    short = output.shortened(each.driver_id for each in found)
    output.rows(
        {
            "ID": "<",
            "STATE": "<",
            "HOST": "~",
            "PID": ">",
            "UP": ">",
            "SUBMIT": ">",
            "WAIT": ">",
            "COLLECT": ">",
            "QUEUES": "<",
        },
        [
            [
                short[each.driver_id],
                driver_state(each),
                each.hostname,
                each.pid,
                output.age(each.started_at, now),
                each.submitting,
                each.waiting,
                each.collecting,
                "all" if each.queues is None else output.clipped(",".join(each.queues)),
            ]
            for each in found
        ],
    )
