"""Who called what and when: the numbers that benchmarks compare."""

from __future__ import annotations

from array import array
from collections import defaultdict
from typing import Any


class CallLog:
    """Times of arrival by operation, in seconds since the epoch; 8 bytes a call."""

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
