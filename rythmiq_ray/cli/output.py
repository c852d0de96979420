"""How things are shown: tables for a terminal, aligned text for a pipe, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import typer

from rythmiq_ray.model import JobSpec

_UNITS: Final = ((86400 * 2, 86400, "d"), (3600 * 2, 3600, "h"), (60 * 2, 60, "m"), (0, 1, "s"))
_NARROWEST: Final = 8
_STATE_STYLES: Final = {
    "RUNNING": "cyan",
    "RETRYING": "yellow",
    "SUCCEEDED": "green",
    "FAILED": "bold red",
    "CANCELLED": "magenta",
}


def record(row: Any) -> dict[str, Any]:
    """A dataclass as JSON data, one level deep: ISO times, whole ids, the spec in its own JSON form."""
    return {field.name: _plain(getattr(row, field.name)) for field in fields(row)}


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, JobSpec):
        return value.as_dict()
    return value


def print_json(data: object) -> None:
    """Pure ASCII, so that no terminal's encoding can spoil it."""
    typer.echo(json.dumps(data, indent=2))


def age(since: datetime | None, now: datetime | None = None) -> str:
    """``45s``, ``3m``, ``5h``, ``2d``; ``-`` where there is no time."""
    if since is None:
        return "-"
    return duration(((now or datetime.now(UTC)) - since).total_seconds())


def duration(seconds: float | None) -> str:
    """As :func:`age`; a time to come is shown as ``in 3m``."""
    if seconds is None:
        return "-"
    if seconds <= -1:
        return f"in {duration(-seconds)}"
    whole = max(0, int(seconds))
    return next(f"{whole // unit}{name}" for floor, unit, name in _UNITS if whole >= floor)


def size(count: int) -> str:
    """Bytes in binary units: ``812 B``, ``3.4 MiB``."""
    if count < 1024:
        return f"{count} B"
    amount = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        amount /= 1024
        if amount < 1024 or unit == "TiB":
            break
    return f"{amount:.1f} {unit}"


def printable(value: object) -> str:
    """Text on one line that cannot steer a terminal: rows may have been written by others."""
    text = "-" if value is None or value == "" else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else _visible(c) for c in text)


def _visible(character: str) -> str:
    return " " if character in "\n\t" else repr(character)[1:-1]


def rows(columns: Mapping[str, str], data: Sequence[Sequence[object]]) -> None:
    """Prints a table. ``columns``: each title and how it is set: ``<``, ``>``, or ``~`` for the one that may be cut."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console()
        console.print(table(columns, data, console.width))
        return
    cells = [list(columns)] + [[printable(value) for value in row] for row in data]
    widths = [max(len(row[at]) for row in cells) for at in range(len(columns))]
    for row in cells:
        line = [
            f"{cell:{'>' if how == '>' else '<'}{width}}"
            for cell, how, width in zip(row, columns.values(), widths, strict=True)
        ]
        typer.echo("  ".join(line).rstrip())


def table(columns: Mapping[str, str], data: Iterable[Sequence[object]], width: int) -> Any:
    """The same as a rich table of at most this width."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    cells = [[printable(value) for value in row] for row in data]
    widths = [max([len(title), *(cell_len(row[at]) for row in cells)]) for at, title in enumerate(columns)]
    fixed = sum(wide + 2 for wide, how in zip(widths, columns.values(), strict=True) if how != "~")
    for (title, how), wide in zip(columns.items(), widths, strict=True):
        shown.add_column(
            title,
            justify="right" if how == ">" else "left",
            no_wrap=True,
            width=min(wide, max(_NARROWEST, width - fixed - 1)) if how == "~" else wide,
        )
    for row in cells:
        shown.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, ""), overflow="ellipsis") for cell in row))
    return shown


def pairs(data: Mapping[str, object]) -> None:
    """Prints ``name  value`` lines; what has no value is left out."""
    present = {name: printable(value) for name, value in data.items() if value not in (None, "")}
    width = max(map(len, present), default=0)
    for name, value in present.items():
        typer.echo(f"{name:<{width}}  {value}")
