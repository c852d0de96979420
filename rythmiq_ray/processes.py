"""The processes that this one has started: which they are, and an end to all of them."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Final

import psutil

_KILL_TIMEOUT_S: Final = 5.0


def children() -> set[psutil.Process]:
    """Those that run now, without their own children."""
    return set(psutil.Process().children())


def kill(roots: Collection[psutil.Process]) -> None:
    """Ends these and everything below them, and waits until they are gone.

    They are stopped first, top down: what is stopped starts nothing more, so nothing is missed.
    """
    found: set[psutil.Process] = set()
    fresh = set(roots)
    while fresh:
        found |= fresh
        for process in fresh:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        family: set[psutil.Process] = set()
        for process in found:
            with suppress(psutil.NoSuchProcess):
                family |= set(process.children(recursive=True))
        fresh = family - found
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=_KILL_TIMEOUT_S)
