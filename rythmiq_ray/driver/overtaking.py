"""Which remote job waits although later ones of its kind have started: a new one in its place gets on sooner.

A service that is merely full starts jobs about in the order in which they came, and then nothing is gained by trying
again. One that is stuck, on a node that does not come or a path that does not mount, is passed by the others.
"""

from __future__ import annotations

from collections import defaultdict
from heapq import heappush, heappushpop
from typing import Final

Kind = tuple[bool, str, int]
"""GPU, node size, number of nodes: what waits for the same machines."""
ENOUGH: Final = 5
"""So many later ones must have started; an account runs 4 to 6 at once, whose order says little."""


class Overtaking:
    """Notes starts, and says who was overtaken. Times are seconds of :mod:`rythmiq_ray.clock`."""

    def __init__(self, after_s: float | None) -> None:
        """``after_s``: how long a job must have waited at the least; None = nobody counts as overtaken."""
        self._after_s = after_s
        self._latest: defaultdict[Kind, list[float]] = defaultdict(list)
        """When the latest of those that started were created: a heap, the earliest first."""

    def started(self, kind: Kind, created_at: float) -> None:
        """A remote job runs that was created then."""
        heap = self._latest[kind]
        if len(heap) < ENOUGH:
            heappush(heap, created_at)
        else:
            heappushpop(heap, created_at)

    def overtaken(self, kind: Kind, created_at: float, now: float) -> bool:
        """Whether enough later ones have started than the one that was created then."""
        if self._after_s is None or now - created_at < self._after_s:
            return False
        heap = self._latest.get(kind, ())
        return len(heap) >= ENOUGH and heap[0] > created_at
