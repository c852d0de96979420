"""Formats values for the consoles: numbers with units, durations, texts with visible control characters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rythmiq_ray.model import Group, Job, JobState, Phase

if TYPE_CHECKING:
    from rythmiq_ray.queue.listing import DriverState

NOTHING: Final = "\u2013"
_KEPT: Final = "\n\t"
STATE_STYLES: Final = {
    "BLOCKED": "dim",
    "RUNNING": "cyan",
    "RETRYING": "yellow",
    "SUCCEEDED": "green",
    "FAILED": "bold red",
    "CANCELLED": "magenta",
}
"""Styles for a terminal, by rich's names."""
BAR_SIGNS: Final = {
    JobState.SUCCEEDED: "#",
    JobState.FAILED: "x",
    JobState.CANCELLED: "-",
    JobState.RUNNING: "~",
}
"""The characters of a group's bar; a dot is a member that waits."""


def visible(value: object) -> str:
    """Text in which every character is visible: control and direction characters are written as escapes."""
    text = NOTHING if value is None or value == "" else str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _KEPT else _written(c) for c in text)


def _written(character: str) -> str:
    return "" if character == "\r" else repr(character)[1:-1]


def on_one_line(value: object) -> str:
    """Like :func:`visible`, but on one line, for a row of a table."""
    return " ".join(visible(value).split("\n")).replace("\t", " ")


def number(value: float | None, *, bounded: bool = False) -> str:
    """``12,345``; with a plus if there may be more."""
    if value is None:
        return NOTHING
    text = f"{value:,}" if isinstance(value, int) else measure(value)
    return f"{text}+" if bounded else text


def measure(value: float | None) -> str:
    """Any number in a few digits."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1_000_000:
        return f"{value:,.4g}" if abs(value) < 1_000 else f"{value:,.0f}"
    return f"{value:.3g}"


def plural(count: int, noun: str, nouns: str | None = None) -> str:
    """``1 job``, ``2 jobs``."""
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


def credits(value: float | None) -> str:
    """``0.0123 credits``."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0 credits"
    if abs(value) < 0.0001:
        return "<0.0001 credits"
    text = f"{value:,.4f}" if abs(value) < 10 else f"{value:,.2f}"
    return f"{text} credits"


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds is None:
        return NOTHING
    if seconds < 0:
        return f"in {duration(-seconds)}"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // part
            return f"{whole // unit:,} {name} {rest} {small}" if rest else f"{whole // unit:,} {name}"
    return f"{whole} s"


def size(count: int | None) -> str:
    """Bytes in binary units: ``812 B``, ``3.4 MiB``."""
    if count is None:
        return NOTHING
    amount = float(count)
    if count < 1024:
        return f"{count} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1024 or unit == "TiB":
            break
    return f"{amount:.1f} {unit}"


def rough(seconds: float | None) -> str:
    """A duration to its largest unit: ``12 s``, ``3 min``, ``5 h``, ``2 d``."""
    if seconds is None:
        return NOTHING
    whole = int(seconds)
    for unit, name in ((86400 * 2, "d"), (3600 * 2, "h"), (60 * 2, "min")):
        if whole >= unit:
            return f"{whole // (unit // 2):,} {name}"
    return f"{whole} s"


def called(job: Job) -> str:
    """A job's name and the parameters in which it differs, else the first line of its command."""
    params = " ".join(f"{name}={value}" for name, value in (job.params or {}).items())
    named = " ".join(part for part in (job.name, params) if part)
    return short(named or " ".join(job.spec.command.split()) or str(job.job_id))


def short(text: str, most: int = 400) -> str:
    """A text cut to ``most`` characters, because a page may have hundreds of them."""
    return text if len(text) <= most else f"{text[:most]}\u2026"


def stage(job: Job) -> str:
    """The step that a running job is in; empty for other jobs."""
    if job.state is not JobState.RUNNING or job.phase is None:
        return ""
    if job.phase is Phase.WAITING and job.remote_status is not None:
        return "running" if job.remote_status.started else "pending"
    return str(job.phase)


def bar(group: Group, running: int, columns: int) -> str:
    """``[####xx--~~....]``: succeeded, failed, cancelled, running, waiting; ``columns`` wide inside the brackets."""
    numbers = {
        JobState.SUCCEEDED: group.succeeded,
        JobState.FAILED: group.failed,
        JobState.CANCELLED: group.cancelled,
        JobState.RUNNING: running,
    }
    members = max(1, group.members)
    text = ""
    total = 0
    for state, sign in BAR_SIGNS.items():
        total += numbers[state]
        # A state with any member gets at least one character.
        end = max(round(columns * min(total, members) / members), len(text) + (1 if numbers[state] else 0))
        text += sign * (min(end, columns) - len(text))
    return f"[{text.ljust(columns, '.')}]"


def driver_state(driver: DriverState) -> str:
    """``alive``, ``draining``, ``stopped``, or ``lost`` if its lease ended without a stop."""
    if driver.alive:
        return "draining" if driver.draining else "alive"
    return "stopped" if driver.stopped_at else "lost"
