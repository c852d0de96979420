"""The lines that describe one job, group or driver, and the help on keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from rythmiq_ray.console import formatting
from rythmiq_ray.console.formatting import STATE_STYLES
from rythmiq_ray.model import Job, JobState
from rythmiq_ray.outlook import outlook_of
from rythmiq_ray.queue.connection import EARLIEST, LATEST
from rythmiq_ray.queue.inspect import Attempt
from rythmiq_ray.queue.listing import DriverState
from rythmiq_ray.top.cells import Line, Part, broken, fitted, parts_of
from rythmiq_ray.top.source import GroupDetails, JobDetails
from rythmiq_ray.top.views import age, bar, state

_TITLE: Final = "bold"
_NAME: Final = 12
_LONGEST: Final = 20_000
"""The most characters of a command or a message that are shown."""


def job(seen: JobDetails, columns: int) -> list[Line]:
    """All about a job, as lines of at most ``columns`` cells."""
    found = seen.job
    lines = _pairs(
        {
            "job": str(found.job_id),
            "name": found.name,
            "state": _state(found),
            "why": _reasons(seen) if not found.state.finished else None,
            "group": None if seen.group is None else f"{seen.group.name or seen.group.group_id}",
            "queue": f"{found.queue}, priority {found.priority}",
            "user": found.user_id,
            "enqueued by": found.enqueued_by,
            "command": found.spec.command[:_LONGEST],
            "runs on": _machine(found),
            "parameters": _assigned(found.params),
            "variables": _assigned(found.spec.env),
            "labels": _assigned(found.labels),
            "secrets": " ".join(found.spec.secrets),
            "inputs": "\n".join(f"{each.uri} as {each.name}" for each in found.spec.inputs),
            "outputs": " ".join(found.spec.outputs),
            "attempts": f"{found.attempt} of {found.max_attempts}",
            "enqueued": moment(found.created_at, seen.at),
            "ended": None if found.finished_at is None else moment(found.finished_at, seen.at),
            "error": _error(found),
            "cost": None if found.cost_credits is None else f"{formatting.credits(found.cost_credits)} (estimated)",
            "warnings": "\n".join(found.warnings),
        },
        columns,
    )
    if seen.attempts:
        lines += [(), [Part("ATTEMPTS", _TITLE)]]
        for each in seen.attempts:
            lines += _wrapped(_attempt(each, seen.at), columns, indent=2)
    if seen.needs:
        lines += [(), [Part("WAITS FOR" if found.state is JobState.BLOCKED else "WAITED FOR", _TITLE)]]
        for need in seen.needs:
            what = f"{'job' if need.is_job else 'group'} {need.name or need.id}: {need.state or 'gone'}"
            lines.append([Part("  "), *parts_of(f"{what}{'' if need.satisfied else ', not yet ' + need.needs}")])
    if seen.files:
        lines += [(), [Part("FILES", _TITLE)]]
        for attempt, file in seen.files:
            size = fitted([Part(formatting.size(file.bytes))], 11, ">")
            lines.append([Part(f"  {attempt}  "), *size, Part("  "), *parts_of(file.name)])
    return lines


def _state(found: Job) -> list[Part]:
    out = [state(found.state)]
    if stage := formatting.stage(found):
        out.append(Part(f", {stage}"))
    if found.remote_status is not None:
        out.append(Part(f" (Camber: {found.remote_status}, remote job {found.remote_id})", "dim"))
    if found.cancel_requested_at is not None and not found.state.finished:
        out.append(Part(", it was asked to stop", STATE_STYLES["CANCELLED"]))
    return out


def _reasons(seen: JobDetails) -> str:
    return "\n".join(f"{reason.message}: {reason.remedy}" for reason in seen.reasons)


def _machine(found: Job) -> str:
    spec = found.spec
    nodes = f"{spec.num_nodes} nodes of " if spec.num_nodes != 1 else ""
    return f"{nodes}{spec.node_size}{', GPU' if spec.gpu else ''}, {spec.engine}"


def _assigned(values: Mapping[str, str] | None) -> str:
    return " ".join(f"{name}={value}" for name, value in (values or {}).items())


def _error(found: Job) -> list[Part] | None:
    if found.error_code is None and not found.error_message:
        return None
    style = "red" if found.state is JobState.FAILED else ""
    return [Part(f"{found.error_code}: {(found.error_message or '')[:_LONGEST]}", style)]


def _attempt(each: Attempt, now: datetime) -> list[Part]:
    end = each.finished_at or now
    took = (end - each.started_at).total_seconds()
    out = [
        Part(f"{each.attempt}  "),
        state(each.state),
        Part(f"  {moment(each.started_at, now)}, for {formatting.duration(max(0.0, took))}"),
    ]
    if each.exit_code is not None:
        out.append(Part(f", exit code {each.exit_code}"))
    if each.cost_credits is not None:
        out.append(Part(f", {formatting.credits(each.cost_credits)}"))
    if each.error_code:
        out.append(Part(f", {each.error_code}: {formatting.short(each.error_message or '')}", "red"))
    return out


def group(seen: GroupDetails, columns: int) -> list[Line]:
    """The lines above a group's members."""
    found = seen.group
    states = {each: sum(count.jobs for count in seen.counts if count.state is each) for each in JobState}
    outlook = outlook_of(found, seen.pace, seen.at)
    ended = found.members - found.unfinished
    progress = [*bar(found, states[JobState.RUNNING], max(10, min(60, columns - _NAME - 24)))]
    members: list[Part] = []
    for each, jobs in states.items():
        if jobs:
            members += [Part(", " if members else ""), Part(f"{jobs:,} ", ""), state(each)]
    left = None
    if found.unfinished and outlook.seconds_left is not None:
        left = f"about {formatting.duration(outlook.seconds_left)} at the pace so far"
    cost = None
    if outlook.so_far is not None:
        cost = f"{formatting.credits(outlook.so_far)} so far (estimated)"
        if outlook.credits is not None and found.unfinished:
            cost += f", about {formatting.credits(outlook.credits)} in total"
    limits = [f"at most {found.max_parallel:,} at once"] if found.max_parallel else []
    limits += [f"stops after {found.stop_after_failures:,} failures"] if found.stop_after_failures else []
    errors = "\n".join(
        f"{each.jobs:,} with {each.error_code}: {formatting.short(formatting.on_one_line(each.error_message), 200)}"
        for each in seen.errors
    )
    return _pairs(
        {
            "group": f"{found.name or ''} {found.group_id}".strip(),
            "user": found.user_id,
            "made": moment(found.created_at, seen.at),
            "paused": None if seen.limit is None else [Part(seen.limit.closed or "", "bold yellow")],
            "progress": [*progress, Part(f" {ended:,} of {found.members:,}")],
            "members": members,
            "limits": ", ".join(limits),
            "time left": left,
            "cost": cost,
            "errors": [Part(errors, "red")] if errors else None,
        },
        columns,
    )


def driver(found: DriverState, now: datetime, columns: int) -> list[Line]:
    """All about a driver."""
    return _pairs(
        {
            "driver": str(found.driver_id),
            "state": formatting.driver_state(found),
            "host": found.hostname,
            "process": str(found.pid),
            "version": found.version,
            "queues": "all" if found.queues is None else ", ".join(found.queues),
            "started": moment(found.started_at, now),
            "heard of": moment(found.heartbeat_at, now),
            "lease until": moment(found.lease_expires_at, now),
            "stopped": None if found.stopped_at is None else moment(found.stopped_at, now),
            "submits": f"{found.submitting:,} jobs",
            "waits for": f"{found.waiting:,} jobs",
            "collects": f"{found.collecting:,} jobs",
        },
        columns,
    )


def moment(time: datetime, now: datetime) -> str:
    """A date and time in UTC, and how long ago that is."""
    if time in (EARLIEST, LATEST):
        return "long ago" if time == EARLIEST else "never"
    seconds = (now - time).total_seconds()
    far = f"in {formatting.rough(-seconds)}" if seconds < -0.5 else f"{age(time, now)} ago"
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, {far}"


def keys(groups: Sequence[tuple[str, Sequence[tuple[str, str]]]], columns: int) -> list[Line]:
    """The help: titles, and keys with what they do."""
    lines: list[Line] = []
    for title, entries in groups:
        lines += [(), [Part(title.upper(), _TITLE)]] if lines else [[Part(title.upper(), _TITLE)]]
        for key, meaning in entries:
            first = fitted([Part(f"  {key}", "bold")], 16)
            for at, text in enumerate(broken([Part(meaning)], columns - 17)):
                lines.append([*(first if at == 0 else [Part(" " * 16)]), Part(" "), *text])
    return lines


def _pairs(data: Mapping[str, str | Sequence[Part] | None], columns: int) -> list[Line]:
    """``name  value`` lines; names without a value are left out, long values are broken."""
    lines: list[Line] = []
    for name, value in data.items():
        if not value:
            continue
        parts = [Part(value)] if isinstance(value, str) else list(value)
        for at, text in enumerate(broken(parts, columns - _NAME - 1)):
            lines.append([*fitted([Part(name if at == 0 else "", "dim")], _NAME), Part(" "), *text])
    return lines


def _wrapped(parts: Sequence[Part], columns: int, *, indent: int) -> list[Line]:
    return [[Part(" " * indent), *text] for text in broken(parts, columns - indent)]
