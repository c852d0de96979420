"""How the emulated service behaves without faults."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

Range = tuple[float, float]
"""Lowest and highest value in seconds; each job's value is drawn uniformly from this range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Delays and limits. All times are in seconds."""

    owner: str = "camber-local"
    """The name of the key's owner, as in ``stash://<owner>/``."""
    queue_wait_s: Range = (0.1, 0.3)
    """How long a job stays PENDING at least."""
    max_running: int = 4
    """How many processes run at once; more jobs stay PENDING. Not applied in instant mode."""
    sync_delay_s: float = 0.3
    """From the end of a job until its first file is copied back to the stash."""
    sync_step_s: float = 0.02
    """How long only the first half of each file is there before the rest is copied."""
    instant_s: Range | None = None
    """If set, no process is run: a job is RUNNING for this long and then COMPLETED."""
    seed: int = 0
    """For the waits and for the order in which files are copied back."""
    search_path: str = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    """PATH of the jobs; the emulator's own Python comes first, so that there is a ``python3``."""

    def __post_init__(self) -> None:
        if not self.owner or "/" in self.owner:
            raise ValueError("owner is one word without a slash")
        if self.max_running < 1:
            raise ValueError("max_running is at least 1")
        for name in ("queue_wait_s", "instant_s"):
            limits: Range | None = getattr(self, name)
            if limits is not None and not 0 <= limits[0] <= limits[1]:
                raise ValueError(f"{name} is two numbers, the lower one first and not below 0")
        if self.sync_delay_s < 0 or self.sync_step_s < 0:
            raise ValueError("sync_delay_s and sync_step_s are not below 0")

    @classmethod
    def instant(cls, lowest_s: float = 0.0, highest_s: float | None = None) -> Settings:
        """For benchmarks: no process, no wait in the queue, and a result that is there as soon as the job has ended."""
        return cls(
            queue_wait_s=(0.0, 0.0),
            sync_delay_s=0.0,
            instant_s=(lowest_s, lowest_s if highest_s is None else highest_s),
        )
