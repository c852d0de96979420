"""The one clock of durations. Dates of two machines are never compared; seconds of this clock cross machines."""

from __future__ import annotations

import time


def now_s() -> float:
    """Seconds that also pass while the machine is suspended, which ``time.monotonic`` leaves out on Linux."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
