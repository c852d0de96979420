"""The one clock of durations. Dates of two machines are never compared; seconds of one clock cross machines."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from uuid import uuid4


def now_s() -> float:
    """Seconds that also pass while the machine is suspended, which ``time.monotonic`` leaves out on Linux."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def clock_id() -> str:
    """Names the clock that :func:`now_s` reads: two processes with the same name read the same seconds.

    Each boot of a machine has a clock, and so has each container with a time of its own, which kernels have had since
    5.6. Where the boot cannot be told, each process counts as having a clock.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(uuid4())
    with suppress(OSError):
        boot += f" {Path('/proc/self/ns/time').readlink()}"
    return boot
