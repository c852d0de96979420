"""The tables: their columns, and how database rows become rows of cells."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from rythmiq_ray.console import formatting
from rythmiq_ray.console.formatting import BAR_SIGNS, STATE_STYLES
from rythmiq_ray.model import Group, Job, JobState
from rythmiq_ray.queue.console import QueueSummary
from rythmiq_ray.queue.control import Limit
from rythmiq_ray.queue.listing import DriverState
from rythmiq_ray.top.cells import Cell, Column, Line, Part, count, sparkline
from rythmiq_ray.top.rates import MINUTES
from rythmiq_ray.top.source import Drivers, Groups, Head, Jobs, Queues, paused_of

Rows = Sequence[tuple[Hashable, Sequence[Cell]]]
LONG_WAIT_S: Final = 600.0
_ALL: Final = 1_000
_NEVER: Final = 1_000_000
_SIGN_STYLES: Final = {sign: STATE_STYLES[state] for state, sign in BAR_SIGNS.items()}
_WARNING: Final = "bold yellow"
_FAULT: Final = "bold red"


@dataclass(frozen=True)
class Shown:
    """A table to be shown."""

    columns: Sequence[Column]
    rows: Rows
    empty: str
    """The text of a table without rows."""
    note: str = ""
    """What the table leaves out."""


# -------------------------------------------------------------------------------------------------------------- header


def summary(head: Head, columns: int) -> list[Line]:
    """Two lines: how many jobs are in each state, and how many have ended recently."""
    states: dict[JobState, int] = dict.fromkeys(JobState, 0)
    bounded: set[JobState] = set()
    pending = 0
    for each in head.counts:
        states[each.state] += each.jobs
        bounded |= {each.state} if each.bounded else set()
        if each.state is JobState.RUNNING and each.phase == "waiting" and not each.started:
            pending += each.jobs
    first: list[Part] = []
    for state in (JobState.QUEUED, JobState.RETRYING, JobState.BLOCKED, JobState.RUNNING):
        style = STATE_STYLES.get(state, "") if states[state] else "dim"
        first += [
            Part(count(states[state], bounded=state in bounded), f"bold {style}".replace("bold dim", "dim")),
            Part(f" {state.lower()}   ", "dim" if not states[state] else ""),
        ]
    if pending:
        first[-1] = Part(f" running ({count(pending)} pending)")
    rate = head.throughput.whole
    ended = head.throughput.ended
    second = [
        Part("ended "),
        Part(sparkline(rate.minutes, 30 if columns >= 100 else 15), "green"),
        Part(f" {count(rate.last)} a minute; in {len(rate.minutes)} min: "),
        Part(f"{count(ended.get(JobState.SUCCEEDED, 0))} succeeded, "),
        Part(f"{count(ended.get(JobState.FAILED, 0))} failed", _FAULT if ended.get(JobState.FAILED) else ""),
        Part(f", {count(ended.get(JobState.CANCELLED, 0))} cancelled" if columns >= 100 else ""),
    ]
    return [first, second]


def notes(head: Head) -> list[str]:
    """What keeps jobs from running: pauses, and budgets that are spent."""
    return [f"{each.closed}." for each in head.limits if each.closed]


# -------------------------------------------------------------------------------------------------------------- queues

_QUEUES: Final = (
    Column("QUEUE", 23, most=40),
    Column("STATE", 8),
    Column("WAITING", 7, ">"),
    Column("RETRYING", 8, ">", wide=100),
    Column("BLOCKED", 7, ">", wide=100),
    Column("RUNNING", 13, ">"),
    Column("PENDING", 7, ">", wide=100),
    Column("OLDEST", 7, ">"),
    Column("DRIVERS", 7, ">", wide=100),
    Column("A MINUTE", 8, ">"),
    Column("ENDED", 8, most=MINUTES),
)


def queues(seen: Queues, _now: datetime) -> Shown:
    """Queues with depth, age of the oldest job, running jobs and limit, and throughput."""
    limits = {each.name: each for each in seen.head.limits if each.scope == "queue" and each.credits is None}
    rows = [(each.queue, _queue(each, limits.get(each.queue), seen.head)) for each in seen.queues]
    empty = (
        "No queue of that name has jobs."
        if seen.asked.given
        else "Nothing is queued or running, and nothing has ended recently."
    )
    return Shown(_QUEUES, rows, empty)


def _queue(each: QueueSummary, limit: Limit | None, head: Head) -> list[Cell]:
    waiting = each.queued + each.retrying
    most = None if limit is None else limit.max_running
    full = most is not None and each.running >= most
    running = count(each.running) if most is None else f"{count(each.running)}/{count(most)}"
    rate = head.throughput.of(each.queue)
    return [
        each.queue,
        _queue_state(each, limit, head, full=full and waiting > 0),
        Part(count(waiting, bounded=each.bounded)),
        _number(each.retrying, STATE_STYLES["RETRYING"]),
        _number(each.blocked),
        Part(running, _WARNING if full else STATE_STYLES["RUNNING"] if each.running else "dim"),
        _number(each.pending),
        _oldest(each),
        Part(str(each.drivers), _FAULT if waiting and not each.drivers else ""),
        Part(count(rate.last), "" if rate.last else "dim"),
        lambda width: Part(sparkline(rate.minutes, min(width, MINUTES)), "green"),
    ]


def _queue_state(each: QueueSummary, limit: Limit | None, head: Head, *, full: bool) -> Cell:
    if limit is not None and limit.paused:
        return Part("paused", _WARNING)
    closed = any(known.scope == "queue" and known.name == each.queue and known.closed for known in head.limits)
    if closed or any(known.scope == "account" and known.closed for known in head.limits):
        return Part("closed", _WARNING)
    if each.queued + each.retrying and not each.drivers:
        return Part("unserved", _FAULT)
    return Part("full", _WARNING) if full else Part("open")


def _oldest(each: QueueSummary) -> Cell:
    if each.oldest_s is None:
        return Part(formatting.NOTHING, "dim")
    return Part(formatting.rough(each.oldest_s), _WARNING if each.oldest_s > LONG_WAIT_S else "")


def _number(value: int, style: str = "") -> Part:
    return Part(count(value), style if value else "dim")


# -------------------------------------------------------------------------------------------------------------- groups

_GROUPS: Final = (
    Column("STATE", 9),
    Column("GROUP", 20, most=48),
    Column("PROGRESS", 18, most=62),
    Column("ENDED", 15, ">"),
    Column("FAILED", 7, ">"),
    Column("RUNNING", 7, ">", wide=100),
    Column("USER", 14, wide=100),
    Column("AGE", 7, ">"),
)


def groups(seen: Groups, now: datetime) -> Shown:
    """Groups, each with its bar."""
    rows = [(each.group_id, _group(each, seen.running.get(each.group_id, 0), seen.head, now)) for each in seen.groups]
    empty = "No group matches." if seen.asked.given else "No groups yet: `rythmiq sweep` makes one."
    return Shown(_GROUPS, rows, empty, f"the newest {len(rows):,}" if seen.more else "")


def _group(group: Group, running: int, head: Head, now: datetime) -> list[Cell]:
    paused = group.unfinished > 0 and paused_of(head.limits, "group", str(group.group_id)) is not None
    return [
        Part("paused", _WARNING) if paused else state(group.state),
        group.name or str(group.group_id),
        lambda width: bar(group, running, width),
        Part(f"{count(group.members - group.unfinished)}/{count(group.members)}"),
        _number(group.failed, _FAULT),
        _number(running, STATE_STYLES["RUNNING"]),
        group.user_id or "",
        Part(age(group.created_at, now)),
    ]


def bar(group: Group, running: int, columns: int) -> list[Part]:
    """A group's bar, each state in its colour."""
    return [Part(sign, _SIGN_STYLES.get(sign, "dim")) for sign in formatting.bar(group, running, columns - 2)]


# ---------------------------------------------------------------------------------------------------------------- jobs

_JOBS: Final = (
    Column("ID", 13),
    Column("STATE", 9),
    Column("STAGE", 10, wide=100),
    Column("AGE", 7, ">"),
    Column("TRY", 5, ">"),
    Column("QUEUE", 14, wide=110),
    Column("USER", 12, wide=110),
    Column("GROUP", 16, wide=130),
    Column("CREDITS", 9, ">", wide=130),
    Column("WHAT", 20, most=_ALL),
)


def jobs(seen: Jobs, now: datetime) -> Shown:
    """Jobs, the newest first; members of one group, the last one first."""
    rows = [
        (each.job_id, job_row(each, seen.groups.get(each.group_id) if each.group_id else None, now))
        for each in seen.page.jobs
    ]
    note = ""
    if seen.page.searched is not None:
        note = f"{seen.page.searched:,} jobs were searched: > continues"
    elif seen.page.next is not None:
        note = f"{len(rows):,} are shown: > continues"
    if seen.before is not None:
        note = ", ".join(part for part in ("< shows the newest", note) if part)
    if seen.page.searched is not None:
        empty = "None among these."
    elif seen.before is not None:
        empty = "There are no older jobs."
    elif seen.asked.given:
        empty = "No job matches."
    else:
        empty = "No jobs yet: `rythmiq enqueue --command 'echo hello'` adds one."
    return Shown(_JOBS, rows, empty, note)


def members(found: Sequence[Job], now: datetime) -> Shown:
    """The jobs of one group, without a column for the group."""
    columns = [replace(column, wide=_NEVER) if column.title == "GROUP" else column for column in _JOBS]
    return Shown(columns, [(each.job_id, job_row(each, None, now)) for each in found], "It has no members.")


def job_row(job: Job, group: str | None, now: datetime) -> list[Cell]:
    """A job as a row."""
    failed = job.error_code is not None and job.state in (JobState.FAILED, JobState.RETRYING)
    what = [Part(formatting.called(job))]
    if failed:
        what += [Part("  "), Part(f"{job.error_code}: {formatting.short(job.error_message or '', 200)}", "red")]
    elif job.wait_reason and job.state is JobState.RUNNING:
        what += [Part("  "), Part(formatting.short(job.wait_reason, 200), "yellow")]
    elif job.cancel_requested_at is not None and not job.state.finished:
        what += [Part("  "), Part("being cancelled", "magenta")]
    return [
        Part(str(job.job_id)[:13]),
        state(job.state),
        Part(formatting.stage(job)),
        Part(age(job.created_at, now)),
        Part(f"{job.attempt}/{job.max_attempts}" if job.attempt else formatting.NOTHING, "" if job.attempt else "dim"),
        job.queue,
        job.user_id or "",
        group or (str(job.group_id)[:13] if job.group_id else ""),
        Part(formatting.NOTHING if job.cost_credits is None else formatting.measure(job.cost_credits)),
        what,
    ]


# ------------------------------------------------------------------------------------------------------------- drivers

_DRIVERS: Final = (
    Column("STATE", 8),
    Column("HOST", 14, most=40),
    Column("PID", 7, ">"),
    Column("UP", 7, ">"),
    Column("HEARD", 7, ">", wide=100),
    Column("SUBMIT", 7, ">"),
    Column("WAIT", 7, ">"),
    Column("COLLECT", 7, ">"),
    Column("VERSION", 10, wide=100),
    Column("QUEUES", 10, most=_ALL),
)


def drivers(seen: Drivers, now: datetime) -> Shown:
    """Drivers, live ones first."""
    rows = [(each.driver_id, _driver(each, now)) for each in seen.drivers]
    empty = "No driver serves that queue." if seen.asked.given else "No driver yet: python -m rythmiq_ray.driver"
    return Shown(_DRIVERS, rows, empty)


def _driver(each: DriverState, now: datetime) -> list[Cell]:
    return [
        Part(formatting.driver_state(each), _driver_style(each)),
        each.hostname,
        Part(str(each.pid)),
        Part(age(each.started_at, now)),
        Part(age(each.heartbeat_at, now)),
        _number(each.submitting),
        _number(each.waiting),
        _number(each.collecting),
        each.version,
        "all" if each.queues is None else ",".join(each.queues),
    ]


def _driver_style(each: DriverState) -> str:
    if each.alive:
        return "yellow" if each.draining else "green"
    return _FAULT if each.submitting + each.waiting + each.collecting else "dim"


# --------------------------------------------------------------------------------------------------------------- words


def state(value: JobState) -> Part:
    """A state in its colour."""
    return Part(str(value), STATE_STYLES.get(value, ""))


def age(since: datetime | None, now: datetime) -> str:
    """How long ago a time is, in its largest unit."""
    return formatting.NOTHING if since is None else formatting.rough(max(0.0, (now - since).total_seconds()))
