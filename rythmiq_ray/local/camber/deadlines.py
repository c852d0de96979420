"""Calls functions at set times; ten thousand cost little more than ten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Final

_BATCH: Final = 32
"""The most calls before the event loop gets a turn: many jobs that end at once must not delay requests."""


class Deadlines:
    """A heap of calls with one timer of the event loop, and no task."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._timer: asyncio.Handle | None = None

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Runs ``call`` after ``delay_s``. Calls run in the order of their deadlines, then as they were added."""
        entry = (self._loop.time() + delay_s, next(self._order), call)
        heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._arm()

    def close(self) -> None:
        self._heap.clear()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._heap:
            when = self._heap[0][0]
            due = when <= self._loop.time()
            self._timer = self._loop.call_soon(self._run) if due else self._loop.call_at(when, self._run)

    def _run(self) -> None:
        # The loop may run a timer early, by up to its clock's resolution; without the margin it would spin until then.
        now = self._loop.time() + 0.001
        try:
            for _ in range(_BATCH):
                if not self._heap or self._heap[0][0] > now:
                    break
                heappop(self._heap)[2]()
        finally:
            self._arm()
