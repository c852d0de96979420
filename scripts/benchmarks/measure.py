"""The parts of a row: series of measured values, goals for them, and the options of a run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

SETTLE_LIMIT_S = 600.0


@dataclass
class Series:
    """One figure, with its value in each run."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.values), max(self.values)


@dataclass(frozen=True)
class Goal:
    """A limit for a figure; a run meets it if the run's own value is within the limit."""

    text: str
    values: Sequence[float]
    bound: float
    at_most: bool = False

    @property
    def met(self) -> int:
        """In how many runs it is met."""
        return sum(value <= self.bound if self.at_most else value >= self.bound for value in self.values)


@dataclass
class Row:
    """What a row measured."""

    number: str
    title: str
    series: list[Series] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    at: str = ""
    """When it was measured."""

    def add(self, name: str, unit: str, value: float) -> None:
        """Adds a value of one run to the series of that name."""
        for series in self.series:
            if series.name == name:
                series.values.append(value)
                return
        self.series.append(Series(name, unit, [value]))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Row:
        """The inverse of ``dataclasses.asdict``."""
        series = [Series(**item) for item in data["series"]]
        return cls(**{**data, "series": series, "goals": [Goal(**item) for item in data["goals"]]})

    def __getitem__(self, name: str) -> list[float]:
        return next(series.values for series in self.series if series.name == name)

    def compare(self, name: str, over: str, at_least: float) -> None:
        """A goal for the ratio of two series, computed for each run: only values of the same run can be compared."""
        ratios = [a / b for a, b in zip(self[name], self[over], strict=True)]
        self.goals.append(Goal(f"{name} over {over}", ratios, at_least))


@dataclass(frozen=True)
class Bench:
    """The options with which a row is run."""

    root: Path
    """A folder for the row alone; in memory if possible, so that other users of the disk do not matter."""
    quick: bool
    repeat: int
    kills: int | None
    """How many drivers P6 kills; None = as many as its goal asks for."""
    console: Console

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False, style="dim")


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of the values, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def wait_for(
    condition: Callable[[], bool], what: str, *, timeout_s: float = SETTLE_LIMIT_S, every_s: float = 0.02
) -> None:
    """Waits for a condition. Raises TimeoutError, which says what it waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)


def tree(pid: int) -> list[psutil.Process]:
    """A process and all its descendants."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_mb(pids: Sequence[int]) -> float:
    """The memory of these processes and their descendants, in which a shared page counts only once (PSS)."""
    total = 0
    for pid in pids:
        for process in tree(pid):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
    return total / 1e6


def cpu_s(pid: int) -> float:
    """The CPU time in seconds of a process and of its descendants that still run."""
    total = 0.0
    for process in tree(pid):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total
