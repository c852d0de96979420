"""Terminal cells: styled texts that are cut or padded to a width, and rows of them. Nothing is read as markup."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Final, Literal, NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from rythmiq_ray.console import formatting

_PLAIN: Final = Console(file=StringIO(), width=80, color_system=None)
"""Rich needs a console to break lines; nothing is ever written to this one."""
_ELLIPSIS: Final = "\u2026"
_FROM_RIGHT: Final = frozenset({"R", "AL", "AN"})
_BACK_TO_LEFT: Final = "\u200e"
"""A left-to-right mark: text after a right-to-left text keeps its order. It takes no cell."""
_BLOCKS: Final = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"


class Part(NamedTuple):
    """A text in one style, as rich names it: ``bold red``."""

    text: str
    style: str = ""


Cell = str | Part | Sequence[Part] | Callable[[int], "Cell"]
"""The content of a cell, or a function that makes it for a width. Control characters in it are escaped."""
Line = Sequence[Part]


@dataclass(frozen=True)
class Column:
    """A column of a table. Most widths are fixed, so that a longer number does not move other columns."""

    title: str
    width: int
    """In cells; for a column that grows, its share of the space that fixed columns leave."""
    align: Literal["<", ">"] = "<"
    most: int | None = None
    """The width in cells that it can grow to; None for a fixed width."""
    wide: int = 0
    """It is shown if the table has at least this width."""


def parts_of(cell: Cell, width: int = 0) -> list[Part]:
    """A cell as parts, all of them printable. ``width`` is passed to a cell that is a function."""
    if callable(cell):
        return parts_of(cell(width))
    if isinstance(cell, str):
        return [Part(formatting.on_one_line(cell))]
    if isinstance(cell, Part):
        cell = [cell]
    return [Part(formatting.on_one_line(part.text), part.style) for part in cell if part.text]


def fitted(parts: Iterable[Part], width: int, align: str = "<") -> list[Part]:
    """Parts that fill exactly ``width`` cells; what does not fit is cut and ends in an ellipsis."""
    out: list[Part] = []
    left = width
    whole = list(parts)
    needed = sum(cell_len(part.text) for part in whole)
    if needed > width:
        for text, style in whole:
            wide = cell_len(text)
            if wide < left:
                out.append(Part(text, style))
                left -= wide
                continue
            cut = set_cell_size(text, max(0, left - 1)) + _ELLIPSIS if left else ""
            out.append(Part(cut, style))
            break
    else:
        fill = Part(" " * (width - needed))
        out = [fill, *whole] if align == ">" else [*whole, fill]
    return [part for part in out if part.text]


def broken(parts: Sequence[Part], columns: int) -> Iterator[list[Part]]:
    """Lines of at most ``columns`` cells, broken at spaces if possible. All characters are visible ones."""
    whole = Text()
    for part in (each for each in parts if each.text):
        whole.append(formatting.visible(part.text).expandtabs(4), part.style or None)
    for line in whole.wrap(_PLAIN, max(10, columns), overflow="fold"):
        yield [Part(text, str(style or "")) for text, style, _ in line.render(_PLAIN)]


def _turns(text: str) -> bool:
    return not text.isascii() and any(unicodedata.bidirectional(character) in _FROM_RIGHT for character in text)


def widths_of(columns: Sequence[Column], width: int) -> list[tuple[int, int]]:
    """Index and width of each column that a table of this width shows; growing columns share what the others leave."""
    shown = [(at, column) for at, column in enumerate(columns) if width >= column.wide]
    left = width - (len(shown) - 1) - sum(column.width for _, column in shown if column.most is None)
    wide: dict[int, int] = {}
    # Columns with the smallest limit come first, so that the others can use what these cannot take.
    growing = sorted(((column.most, at, column.width) for at, column in shown if column.most is not None))
    for place, (most, at, _) in enumerate(growing):
        shares = sum(share for _, _, share in growing[place:])
        wide[at] = max(0, min(most, left * growing[place][2] // shares))
        left -= wide[at]
    return [(at, wide.get(at, column.width)) for at, column in shown]


def row(columns: Sequence[Column], cells: Sequence[Cell], width: int) -> list[Part]:
    """A row of a table, padded to the table's width."""
    out: list[Part] = []
    for at, wide in widths_of(columns, width):
        if out:
            out.append(Part(" "))
        out += fitted(parts_of(cells[at], wide), wide, columns[at].align)
    return fitted(out, width)


def head(columns: Sequence[Column], width: int) -> list[Part]:
    """The row of column titles."""
    return row(columns, [Part(column.title, "bold") for column in columns], width)


def segments(parts: Iterable[Part], over: str = "") -> list[Segment]:
    """Parts as segments for Textual; ``over`` is a style added to all of them."""
    return [
        Segment(
            part.text + _BACK_TO_LEFT if _turns(part.text) else part.text,
            Style.parse(f"{part.style} {over}".strip() or "none"),
        )
        for part in parts
    ]


def count(value: int, *, bounded: bool = False) -> str:
    """A number in at most seven cells: ``12,345``, ``10,000+``, ``123k``, ``1.2M``."""
    for least, unit, name in ((10_000_000, 1_000_000, "M"), (1_000_000, 1_000_000, "M"), (100_000, 1_000, "k")):
        if value >= least:
            amount = value / unit
            text = f"{amount:.1f}{name}" if least == 1_000_000 else f"{int(amount):,}{name}"
            return f"{text}+" if bounded else text
    return formatting.number(value, bounded=bounded)


def sparkline(values: Sequence[int], width: int) -> str:
    """The last ``width`` numbers as blocks; 0 is a space, and any other number is visible."""
    shown = [0] * max(0, width - len(values)) + list(values)[max(0, len(values) - width) :]
    most = max(shown, default=0)
    return "".join(_BLOCKS[-(-value * len(_BLOCKS) // most) - 1] if value > 0 else " " for value in shown)
