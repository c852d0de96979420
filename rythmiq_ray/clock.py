"""The clock for all durations. The dates of two machines are never compared; only seconds of this clock are sent."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from uuid import uuid4


def now_s() -> float:
    """Seconds since boot, with time that the machine was suspended, which ``time.monotonic`` leaves out on Linux."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@cache
def clock_id() -> str:
    """The name of the clock that :func:`now_s` reads: two processes with the same name read the same seconds.

    Each boot of a machine has its own clock, and so has each time namespace of a container (Linux 5.6 and later). If
    the boot id cannot be read, each process counts as having its own clock.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(uuid4())
    with suppress(OSError):
        boot += f" {Path('/proc/self/ns/time').readlink()}"
    return boot
