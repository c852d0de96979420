"""Counts calls and their times, for benchmarks and tests."""

from __future__ import annotations

from array import array
from collections import defaultdict
from typing import Any


class CallLog:
    """Arrival times by operation, in seconds since 1970; 8 bytes for each call."""

    def __init__(self) -> None:
        self._times: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))

    def arrived(self, operation: str, time: float) -> None:
        self._times[operation].append(time)

    def clear(self) -> None:
        self._times.clear()

    def as_dict(self) -> dict[str, Any]:
        return {
            "counts": {operation: len(times) for operation, times in self._times.items()},
            "times": {operation: times.tolist() for operation, times in self._times.items()},
        }
