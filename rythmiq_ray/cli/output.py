"""Output formats: tables for a terminal, aligned text for a pipe, JSON for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime
from shutil import get_terminal_size
from typing import Any, Final, Self
from uuid import UUID

import typer

from rythmiq_ray.console.formatting import STATE_STYLES
from rythmiq_ray.model import JobSpec

_UNITS: Final = ((86400 * 2, 86400, "d"), (3600 * 2, 3600, "h"), (60 * 2, 60, "m"), (0, 1, "s"))
_NARROWEST: Final = 8


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


def print_items(
    items: Iterable[object],
    total: Callable[[], int | None] | None = None,
    after: Callable[[], object | None] = lambda: None,
) -> None:
    """Prints a listing as one JSON object, each item on a line as it comes.

    ``total`` is called after the items and returns the number of all, by default that of the printed ones; ``after``
    returns the id for ``--before`` of the next page.
    """
    count = 0
    typer.echo('{"items": [', nl=False)
    for item in items:
        typer.echo(("," if count else "") + "\n" + dumps(item), nl=False)
        count += 1
    found = after()
    rest = {"total": count if total is None else total(), "next": None if found is None else str(found)}
    typer.echo(("\n" if count else "") + "], " + json.dumps(rest)[1:])


def print_json(data: object) -> None:
    """Prints JSON in ASCII, so that it does not depend on the terminal's encoding."""
    typer.echo(dumps(data, indent=2))


def dumps(data: object, *, indent: int | None = None) -> str:
    """Strict JSON: NaN and Infinity, which results of jobs may contain, become null."""
    try:
        return json.dumps(data, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(data), indent=indent)


def _finite(data: object) -> object:
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def age(since: datetime | None, now: datetime | None = None) -> str:
    """The time since then: ``45s``, ``3m``, ``5h``, ``2d``; ``-`` for None."""
    if since is None:
        return "-"
    return duration(((now or datetime.now(UTC)) - since).total_seconds())


def duration(seconds: float | None) -> str:
    """As :func:`age`, from seconds; a negative duration is shown as ``in 3m``."""
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
    """Text on one line without control characters: rows may contain text of other users."""
    text = "-" if value is None or value == "" else str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else _visible(c) for c in text)


def _visible(character: str) -> str:
    return " " if character in "\n\t" else repr(character)[1:-1]


class Tail(str):
    """A cell whose end matters most, such as an error message: it is shortened after ``head``, not at its end."""

    head: str

    def __new__(cls, head: str, rest: object) -> Self:
        made = super().__new__(cls, f"{head}{printable(rest)}")
        made.head = head
        return made

    def cut(self, width: int) -> str:
        if len(self) <= width:
            return self
        end = self[len(self) - max(0, width - len(self.head) - 1) :] if width > len(self.head) + 1 else ""
        return f"{self.head}…{end}"[:width]


def width() -> int | None:
    """The width of the terminal in columns; None for a pipe, where nothing is shortened."""
    return get_terminal_size().columns if sys.stdout.isatty() else None


def shortened(ids: Iterable[UUID]) -> dict[UUID, str]:
    """Ids shortened to the first digits that are unique among them, at least eight. In a pipe the whole ids."""
    texts = {job_id: str(job_id) for job_id in ids}
    if width() is None:
        return texts
    length = next(n for n in range(8, 37) if len({text[:n] for text in texts.values()}) == len(texts))
    return {job_id: text[:length].rstrip("-") for job_id, text in texts.items()}


def clipped(value: object, most: int = 16) -> str:
    """A name shortened to ``most`` characters; in a pipe the whole name."""
    text = printable(value)
    return text if width() is None or len(text) <= most else f"{text[: most - 1]}…"


def rows(columns: Mapping[str, str], data: Sequence[Sequence[object]]) -> None:
    """Prints a table. ``columns``: titles and alignment: ``<``, ``>``, or ``~`` for one that may be shortened."""
    if (columns_there := width()) is not None:
        from rich.console import Console

        Console(width=columns_there, soft_wrap=False).print(table(columns, data, columns_there))
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
    """A rich table of at most this width."""
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    cells = [[value if isinstance(value, Tail) else printable(value) for value in row] for row in data]
    widths = [max([len(title), *(cell_len(row[at]) for row in cells)]) for at, title in enumerate(columns)]
    fixed = sum(wide + 2 for wide, how in zip(widths, columns.values(), strict=True) if how != "~")
    for (title, how), wide in zip(columns.items(), widths, strict=True):
        shown.add_column(
            title,
            justify="right" if how == ">" else "left",
            no_wrap=True,
            width=min(wide, max(_NARROWEST, width - fixed - 1)) if how == "~" else wide,
        )
    room = [column.width or 0 for column in shown.columns]
    for row in cells:
        row = [cell.cut(room[at]) if isinstance(cell, Tail) else cell for at, cell in enumerate(row)]
        shown.add_row(*(Text(cell, style=STATE_STYLES.get(cell, ""), overflow="ellipsis") for cell in row))
    return shown


def pairs(data: Mapping[str, object]) -> None:
    """Prints ``name  value`` lines; names without a value are left out."""
    present = {name: printable(value) for name, value in data.items() if value not in (None, "")}
    width = max(map(len, present), default=0)
    for name, value in present.items():
        typer.echo(f"{name:<{width}}  {value}")


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr if that is a terminal; yields a function to call for each step."""
    if not sys.stderr.isatty() or not total:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda: shown.advance(task)
