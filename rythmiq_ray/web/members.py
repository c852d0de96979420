"""A group's members as a chart: a heat map by two parameters, a scatter plot by one, otherwise by place."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from markupsafe import Markup

from rythmiq_ray.console import formatting
from rythmiq_ray.model import JobState
from rythmiq_ray.queue.console import Point
from rythmiq_ray.web import charts
from rythmiq_ray.web.charts import Scale

_ROW: Final = 100
"""Members in a row where there are no parameters, of large groups."""
_SEVERITY: Final = ("FAILED", "CANCELLED", "RUNNING", "RETRYING", "QUEUED", "BLOCKED", "SUCCEEDED")
"""Of a cell with several members the first of these is its colour."""
_MOST_TICKS: Final = 8


@dataclass(frozen=True)
class Axis:
    """A parameter and its values in order; ``numeric`` where all are numbers."""

    name: str
    values: Sequence[str]
    numeric: bool

    def ticks(self) -> list[str]:
        """Some of its values, evenly chosen, the first and the last among them."""
        if len(self.values) <= _MOST_TICKS:
            return list(self.values)
        last = len(self.values) - 1
        return [self.values[round(last * part / 4)] for part in range(5)]


@dataclass(frozen=True)
class Legend:
    """A colour and what it stands for."""

    kind: str
    said: str


@dataclass(frozen=True)
class Picture:
    """What a page shows of a group's members."""

    kind: str
    """``heat``, ``scatter`` or ``places``."""
    svg: Markup
    x: Axis | None
    y: Axis | None
    legend: Sequence[Legend]
    said: str
    """A text alternative for screen readers."""
    across: int = 1
    down: int = 1
    y_ticks: Sequence[str] = ()
    y_title: str = ""
    x_ticks: Sequence[str] = ()
    data: Sequence[Any] = field(default=())
    """For the script: of each member its place in the group, its cell or point, and what is said of it."""


def parameters(points: Sequence[Point]) -> list[Axis]:
    """Parameters that differ among members, those with most values first."""
    values: dict[str, set[str]] = defaultdict(set)
    for point in points:
        for name, value in point.params.items():
            values[name].add(value)
    axes = [_axis(name, found) for name, found in values.items() if len(found) > 1]
    return sorted(axes, key=lambda axis: -len(axis.values))


def _axis(name: str, values: set[str]) -> Axis:
    numbers = {value: number for value in values if (number := _number(value)) is not None}
    if len(numbers) == len(values):
        return Axis(name, sorted(values, key=lambda value: (numbers[value], value)), True)
    return Axis(name, sorted(values), False)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < 1e300 else None


@dataclass(frozen=True)
class Gauge:
    """What is measured of a member, and how its numbers are said."""

    measure: Callable[[Point], float | None]
    unit: Callable[[float], str] = formatting.measure


def picture(
    points: Sequence[Point],
    axes: Sequence[Axis],
    *,
    x: str = "",
    y: str = "",
    height: Gauge | None = None,
    colour: Gauge | None = None,
) -> Picture:
    """Draws members. ``x``, ``y``: names of parameters. Without ``y``, ``height`` makes it a scatter.

    ``colour``: by what members are coloured; None: by state.
    """
    by_name = {axis.name: axis for axis in axes}
    across, down = by_name.get(x), by_name.get(y)
    if across is not None and down is not None and across is not down:
        return _heat(points, across, down, colour)
    if across is not None and height is not None:
        return _scatter(points, across, height, colour)
    return _places(points, colour)


def said_of(point: Point, *gauges: Gauge | None) -> str:
    """A member in a line."""
    params = " ".join(f"{name}={value}" for name, value in point.params.items())
    parts = [point.name or "", params, str(point.state)]
    if point.error_code and point.state in (JobState.FAILED, JobState.CANCELLED, JobState.RETRYING):
        parts.append(point.error_code)
    for gauge in dict.fromkeys(gauges):
        if gauge is not None and (value := gauge.measure(point)) is not None:
            parts.append(gauge.unit(value))
    return formatting.visible(formatting.short(" · ".join(part for part in parts if part), 200))


def _heat(points: Sequence[Point], x: Axis, y: Axis, colour: Gauge | None) -> Picture:
    columns = {value: place for place, value in enumerate(x.values)}
    rows = {value: place for place, value in enumerate(y.values)}
    held: dict[tuple[int, int], list[Point]] = defaultdict(list)
    for point in points:
        column, row = columns.get(point.params.get(x.name, "")), rows.get(point.params.get(y.name, ""))
        if column is not None and row is not None:
            held[column, row].append(point)
    marks, legend = _coloured(held, colour)
    said = f"Heat map of {formatting.plural(len(points), 'member')} by {x.name} and {y.name}: {_summary(points)}"
    return Picture(
        "heat",
        charts.cells(marks, len(x.values), len(y.values), formatting.visible(said)),
        x,
        y,
        legend,
        said,
        across=len(x.values),
        down=len(y.values),
        x_ticks=x.ticks(),
        y_ticks=y.ticks(),
        y_title=y.name,
        data=[
            [point.place, column, row, said_of(point, colour)] for (column, row), cell in held.items() for point in cell
        ],
    )


def _places(points: Sequence[Point], colour: Gauge | None) -> Picture:
    wide = min(_ROW, max(1, len(points))) if len(points) > 40 else max(1, len(points))
    held = {(at % wide, at // wide): [point] for at, point in enumerate(points)}
    marks, legend = _coloured(held, colour)
    down = (len(points) + wide - 1) // wide
    said = f"{formatting.plural(len(points), 'member')} in their order: {_summary(points)}"
    return Picture(
        "places",
        charts.cells(marks, wide, down, said),
        None,
        None,
        legend,
        said,
        across=wide,
        down=down,
        data=[
            [point.place, column, row, said_of(point, colour)] for (column, row), cell in held.items() for point in cell
        ],
    )


def _coloured(
    held: Mapping[tuple[int, int], Sequence[Point]], colour: Gauge | None
) -> tuple[dict[str, list[tuple[int, int]]], list[Legend]]:
    """Cells by the class of their colour, and what the colours stand for."""
    marks: dict[str, list[tuple[int, int]]] = defaultdict(list)
    if colour is None:
        for place, cell in held.items():
            states = {str(point.state) for point in cell}
            state = next((state for state in _SEVERITY if state in states), "OTHER")
            marks[f"s-{state.lower()}"].append(place)
        counts = Counter(str(point.state) for cell in held.values() for point in cell)
        return marks, [Legend(f"s-{state.lower()}", f"{state} {count:,}") for state, count in counts.most_common()]
    means: dict[tuple[int, int], float | None] = {}
    for place, cell in held.items():
        found = [value for point in cell if (value := colour.measure(point)) is not None]
        means[place] = sum(found) / len(found) if found else None
    scale = Scale.of(value for value in means.values() if value is not None)
    for place, mean in means.items():
        marks["none" if scale is None else scale.bin(mean)].append(place)
    return marks, _scale_legend(scale, colour.unit, missing="none" in marks)


def _scale_legend(scale: Scale | None, unit: Callable[[float], str], *, missing: bool) -> list[Legend]:
    legend = []
    if scale is not None:
        bins = [4] if scale.high <= scale.low else range(charts.BINS)
        legend = [Legend(f"q{place}", unit(scale.at((place + 0.5) / charts.BINS))) for place in bins]
    return [*legend, Legend("none", "no value")] if missing else legend


def _scatter(points: Sequence[Point], x: Axis, height: Gauge, colour: Gauge | None) -> Picture:
    values = {point.job_id: value for point in points if (value := height.measure(point)) is not None}
    shown = [point for point in points if point.job_id in values and x.name in point.params]
    up = Scale.of(values.values())
    tints = {} if colour is None else {point.job_id: colour.measure(point) for point in shown}
    tint = Scale.of(value for value in tints.values() if value is not None)
    # Few values stand beside each other in their order, whatever lies between them.
    numbers = {value: number for value in x.values if (number := _number(value)) is not None}
    along = Scale.of(numbers.values()) if x.numeric and len(x.values) > _MOST_TICKS else None
    order = {value: (place + 0.5) / len(x.values) for place, value in enumerate(x.values)}
    marks: dict[str, list[tuple[float, float]]] = defaultdict(list)
    data = []
    for point in shown if up is not None else ():
        given = point.params[x.name]
        right = order[given] if along is None else along.place(numbers[given])
        high = up.place(values[point.job_id]) if up is not None else 0.0
        if colour is None:
            kind = f"s-{str(point.state).lower()}"
        else:
            kind = "none" if tint is None else tint.bin(tints[point.job_id])
        marks[kind].append((right, high))
        data.append([point.place, round(right, 4), round(high, 4), said_of(point, height, colour)])
    said = f"{formatting.plural(len(shown), 'member')} of {len(points):,} by {x.name}"
    if up is not None:
        said += f", from {height.unit(up.low)} to {height.unit(up.high)}"
    if colour is None:
        counts = Counter(str(point.state) for point in shown)
        legend = [Legend(f"s-{state.lower()}", f"{state} {count:,}") for state, count in counts.most_common()]
    else:
        legend = _scale_legend(tint, colour.unit, missing="none" in marks)
    return Picture(
        "scatter",
        charts.dots(marks, formatting.visible(said)),
        x,
        None,
        legend,
        said,
        x_ticks=x.ticks() if along is None else [formatting.measure(along.at(part / 4)) for part in range(5)],
        y_ticks=[height.unit(up.at(part / 4)) for part in reversed(range(5))] if up is not None else (),
        data=data,
    )


def _summary(points: Sequence[Point]) -> str:
    counts = Counter(str(point.state) for point in points)
    return ", ".join(f"{count:,} {state}" for state, count in counts.most_common())


def ids_of(points: Sequence[Point], states: Sequence[JobState]) -> list[UUID]:
    """Members in these states."""
    return [point.job_id for point in points if point.state in states]
