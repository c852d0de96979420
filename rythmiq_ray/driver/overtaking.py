"""Finds remote jobs that wait although later ones for the same nodes have started: creating them again is faster.

A service that is only full starts jobs roughly in the order in which they were created, and creating one again gains
nothing. A job that is stuck, on a node that never starts or a path that cannot be mounted, is overtaken by others.
"""

from __future__ import annotations

from collections import defaultdict
from heapq import heappush, heappushpop
from typing import Final

Kind = tuple[bool, str, int]
"""GPU, node size, number of nodes: jobs of one kind wait for the same nodes."""
ENOUGH: Final = 5
"""How many later jobs must have started. An account runs 4 to 6 at once, and their order says little."""


class Overtaking:
    """Records starts and tells which jobs were overtaken. Times are seconds of :mod:`rythmiq_ray.clock`."""

    def __init__(self, after_s: float | None) -> None:
        """``after_s``: how long a job must have waited to count as overtaken; None = no job does."""
        self._after_s = after_s
        self._latest: defaultdict[Kind, list[float]] = defaultdict(list)
        """Times of creation of the latest jobs that started: a heap, the earliest first."""

    def started(self, kind: Kind, created_at: float) -> None:
        """A remote job that was created at ``created_at`` has started."""
        heap = self._latest[kind]
        if len(heap) < ENOUGH:
            heappush(heap, created_at)
        else:
            heappushpop(heap, created_at)

    def overtaken(self, kind: Kind, created_at: float, now: float) -> bool:
        """Whether enough jobs that were created after ``created_at`` have started."""
        if self._after_s is None or now - created_at < self._after_s:
            return False
        heap = self._latest.get(kind, ())
        return len(heap) >= ENOUGH and heap[0] > created_at
