"""Lists and kills the child processes of this process."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Final

import psutil

_KILL_TIMEOUT_S: Final = 5.0


def children() -> set[psutil.Process]:
    """The direct children that run now."""
    return set(psutil.Process().children())


def kill(roots: Collection[psutil.Process]) -> None:
    """Kills these processes and all their descendants, and waits until they have ended.

    They are suspended first, parents before children: a suspended process starts no other, so none is missed.
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
