"""A cluster without Ray: requests run in threads of the driver's own process, so whole runs take a second or two."""

from __future__ import annotations

from rythmiq_ray.driver.loop import Loop
from rythmiq_ray.model import Phase
from rythmiq_ray.testing import InlineCluster

__all__ = ["InlineCluster", "in_phase"]


def in_phase(loop: Loop, phase: Phase) -> int:
    """How many attempts of a driver are in a phase."""
    return sum(attempt.phase is phase for attempt in loop.attempts)
