"""One thing to wait on for everything that can happen: tasks that end, sweeps, notifications, signals."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from contextlib import suppress


class Wakeup:
    """A pipe that any thread, callback or signal handler may write to, and that the driver's loop waits on."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self) -> None:
        """Ends the present or the next wait. Safe in a signal handler; a full pipe wakes just as well."""
        with suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def wait(self, timeout_s: float, descriptors: Iterable[int] = ()) -> None:
        """Returns when :meth:`set` was called, a descriptor can be read, or the time is over."""
        readable, _, _ = select.select([self._reader, *descriptors], [], [], max(0.0, timeout_s))
        if self._reader in readable:
            with suppress(BlockingIOError):
                while os.read(self._reader, 4096):
                    pass

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)
