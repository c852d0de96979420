"""What a row is made of: series of measured values, goals over them, and the options it is run with."""

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
    """One figure, measured more than once."""

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
    """A bound on a figure; it is met in a run when the run's own value is within it."""

    text: str
    values: Sequence[float]
    bound: float
    at_most: bool = False

    @property
    def met(self) -> int:
        """In how many runs."""
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
        """A goal: one series over another, run by run, as what is measured in one run is compared within it."""
        ratios = [a / b for a, b in zip(self[name], self[over], strict=True)]
        self.goals.append(Goal(f"{name} over {over}", ratios, at_least))


@dataclass(frozen=True)
class Bench:
    """With what a row is run."""

    root: Path
    """A folder for it alone, on a memory file system where there is one: the disk's other users do not count then."""
    quick: bool
    repeat: int
    kills: int | None
    """How often P6 kills; None for as many as its goal asks for."""
    console: Console

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else full

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False, style="dim")


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which so many percent lie, nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def wait_for(
    condition: Callable[[], bool], what: str, *, timeout_s: float = SETTLE_LIMIT_S, every_s: float = 0.02
) -> None:
    """Raises TimeoutError, which says what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def memory_mb(pids: Sequence[int]) -> float:
    """Of these processes and all below them, each shared page counted once among those who share it (PSS)."""
    total = 0
    for pid in pids:
        for process in tree(pid):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
    return total / 1e6


def cpu_s(pid: int) -> float:
    """CPU time of a process and of all below it that still live."""
    total = 0.0
    for process in tree(pid):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total
