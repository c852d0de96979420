"""Charts as SVG, rendered on the server: no script is needed to see them, and the report has none.

Each fills the width that it is given; words stand beside it in HTML, so that they keep their size on a narrow screen.
Colours are classes of the style sheet, for dark and light.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from markupsafe import Markup, escape

from rythmiq_ray.console import formatting

_WIDE: Final = 1000
"""Units across a chart."""
BINS: Final = 8
"""Colours of a scale: classes ``q0`` to ``q7``."""


def _svg(content: str, label: str, *, height: int, view: str | None = None, kind: str = "") -> Markup:
    """An SVG that fills its place; ``content`` holds numbers, classes and escaped texts alone."""
    return Markup(
        '<svg class="chart {}" role="img" aria-label="{}" viewBox="{}" preserveAspectRatio="none" width="100%"'
        ' height="{}" focusable="false">{}</svg>'
    ).format(kind, label, view or f"0 0 {_WIDE} {height}", height, Markup(content))  # noqa: S704 - see above


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


# ------------------------------------------------------------------------------------------------------------- strips


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a strip."""

    kind: str
    """Its class."""
    amount: float
    said: str
    """For who points at it."""


def strip(parts: Iterable[Part], label: str, *, height: int = 14, total: float | None = None) -> Markup:
    """Segments beside each other; every segment above 0 is wide enough to be seen."""
    shown = [part for part in parts if part.amount > 0]
    whole = max(total or 0.0, sum(part.amount for part in shown)) or 1.0
    least = 4.0
    widths = [max(least, part.amount / whole * _WIDE) for part in shown]
    over = sum(widths) - _WIDE
    if over > 0 and (large := sum(width for width in widths if width > 2 * least)) > over:
        widths = [width - over * width / large if width > 2 * least else width for width in widths]
    content, at = [], 0.0
    for part, width in zip(shown, widths, strict=True):
        content.append(
            f'<rect class="{part.kind}" x="{_n(at)}" y="0" width="{_n(width)}" height="{height}">'
            f"<title>{escape(part.said)}</title></rect>"
        )
        at += width
    return _svg("".join(content), label, height=height, kind="strip")


# --------------------------------------------------------------------------------------------------- columns over time


@dataclass(frozen=True, slots=True)
class Column:
    """What is counted in a step of time."""

    at: datetime
    parts: Mapping[str, float]
    """By class, from below."""
    said: str


def columns(data: Sequence[Column], label: str, *, height: int = 120) -> Markup:
    """Stacked columns of equal width."""
    most = max((sum(column.parts.values()) for column in data), default=0) or 1
    wide = _WIDE / max(1, len(data))
    gap = min(2.0, wide / 5)
    content = []
    for place, column in enumerate(data):
        at = float(height)
        content.append(
            f"<g><title>{escape(column.said)}</title>"
            f'<rect class="hit" x="{_n(place * wide)}" y="0" width="{_n(wide)}" height="{height}"/>'
        )
        for kind, amount in column.parts.items():
            if amount <= 0:
                continue
            high = max(1.5, amount / most * (height - 2))
            at -= high
            content.append(
                f'<rect class="{kind}" x="{_n(place * wide + gap / 2)}" y="{_n(at)}" width="{_n(wide - gap)}"'
                f' height="{_n(high)}"/>'
            )
        content.append("</g>")
    return _svg("".join(content), label, height=height, kind="columns")


# ------------------------------------------------------------------------------------------------------ scales, colour


@dataclass(frozen=True, slots=True)
class Scale:
    """Numbers as colours: :data:`BINS` classes of equal width, on a logarithmic scale if the numbers spread far."""

    low: float
    high: float
    log: bool

    @classmethod
    def of(cls, values: Iterable[float]) -> Scale | None:
        """None where there are no numbers."""
        found = [value for value in values if math.isfinite(value)]
        if not found:
            return None
        low, high, middle = min(found), max(found), statistics.median(found)
        # Most numbers are near the low end of a wide range: on a linear scale they would all have one colour.
        return cls(low, high, log=low > 0 and high > 200 * low and middle - low < 0.1 * (high - low))

    def place(self, value: float) -> float:
        """From 0 to 1."""
        if self.high <= self.low:
            return 0.5
        if self.log:
            whole = math.log(self.high) - math.log(self.low)
            return min(1.0, max(0.0, (math.log(max(value, self.low)) - math.log(self.low)) / whole))
        # The difference of two very large numbers may be 0.
        return min(1.0, max(0.0, value / (self.high - self.low) - self.low / (self.high - self.low)))

    def bin(self, value: float | None) -> str:
        """The class of its colour."""
        if value is None or not math.isfinite(value):
            return "none"
        return f"q{min(BINS - 1, int(self.place(value) * BINS))}"

    def at(self, place: float) -> float:
        """The number at a place."""
        if self.high <= self.low:
            return self.low
        if self.log:
            return math.exp(math.log(self.low) + place * (math.log(self.high) - math.log(self.low)))
        return self.low + place * (self.high - self.low)


# --------------------------------------------------------------------------------------------------- members of a group


def cells(marks: Mapping[str, Sequence[tuple[int, int]]], across: int, down: int, label: str) -> Markup:
    """A heat map. All cells of a class are one path, so that ten thousand cells take about 100 kB."""
    # Cells of a small map have gaps; ten thousand have no room for that.
    side, start = (0.94, 0.03) if across <= 60 and down <= 40 else (1, 0)
    shape = f"h{side}v{side}h-{side}z"
    content = "".join(
        f'<path class="{kind}" d="{"".join(f"M{_n(x + start)} {_n(y + start)}{shape}" for x, y in places)}"/>'
        for kind, places in marks.items()
        if places
    )
    height = min(440, max(36, down * (28 if down <= 12 else 12)))
    return _svg(content, label, height=height, view=f"0 0 {max(1, across)} {max(1, down)}", kind="cells")


def dots(marks: Mapping[str, Sequence[tuple[float, float]]], label: str, *, height: int = 320) -> Markup:
    """A scatter: places from 0 to 1, y upwards. Dots are strokes of no length, which keep their size when stretched."""
    inner_w, inner_h = _WIDE - 20, height - 20
    grid = "".join(f'<path class="grid" d="M0 {_n(10 + inner_h * part / 4)}H{_WIDE}"/>' for part in range(5))
    content = "".join(
        f'<path class="dot {kind}" d="'
        + "".join(f"M{_n(10 + x * inner_w)} {_n(10 + (1 - y) * inner_h)}h0" for x, y in places)
        + '"/>'
        for kind, places in marks.items()
        if places
    )
    count = sum(map(len, marks.values()))
    return _svg(grid + content, label, height=height, kind="dots many" if count > 1_500 else "dots")


def hours(at: datetime, *, with_date: bool = False) -> str:
    """A step's time, in UTC."""
    return f"{at:%Y-%m-%d %H:%M}" if with_date else f"{at:%H:%M}"


def shares(counts: Mapping[str, int], label: str, *, height: int = 14, total: int | None = None) -> Markup:
    """A bar of states: how many of all are in which."""
    parts = [
        Part(f"s-{state.lower()}", count, f"{state}: {formatting.number(count)}")
        for state, count in counts.items()
        if count
    ]
    return strip(parts, label, height=height, total=total)
