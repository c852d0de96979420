"""What a loop waits on for all events: ended tasks, polls, notifications, signals, requests of other threads."""

from __future__ import annotations

import math
import os
import select
from collections.abc import Iterable
from contextlib import suppress


class Wakeup:
    """A pipe that any thread, callback or signal handler may write to, and that one thread waits on."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def set(self) -> None:
        """Ends the present or the next wait. Safe in a signal handler; a full pipe wakes just as well."""
        with suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def wait(self, timeout_s: float, descriptors: Iterable[int] = ()) -> None:
        """Returns when :meth:`set` was called, a descriptor is readable, or ``timeout_s`` is over."""
        poll = select.poll()  # select.select() refuses descriptors of 1024 and above.
        for descriptor in (self._reader, *descriptors):
            poll.register(descriptor, select.POLLIN)
        readable = poll.poll(math.ceil(max(0.0, timeout_s) * 1000))
        if self._reader in (descriptor for descriptor, _ in readable):
            with suppress(BlockingIOError):
                while os.read(self._reader, 4096):
                    pass

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)
