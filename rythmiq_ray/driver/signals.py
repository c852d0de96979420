"""What SIGTERM, SIGINT and SIGHUP do to a driver, from its first line to its last.

Imports nothing that takes time: it is the first thing a driver runs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Final

STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """The start was interrupted by a signal. Raised wherever the main thread is, so no ``except Exception`` sees it."""


class Signals:
    """The first signal stops the driver in the way that fits where it is; the second one ends it at once."""

    def __init__(self) -> None:
        self.received = False
        self._on_first: Callable[[], object] = lambda: os._exit(0)
        """Nothing was started yet, so nothing has to be ended."""

    def install(self) -> None:
        """Sets the handlers, again where somebody else set theirs; on the main thread alone."""
        for number in STOPPING:
            # `nohup` ignores SIGHUP and means it; a shell ignores SIGINT of what it puts in the background and means
            # the keyboard's alone.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    def interrupts(self) -> None:
        """While what waits or runs on the main thread can be left anywhere: it raises Stopped."""
        self._set(_interrupt)

    def calls(self, stop: Callable[[], object]) -> None:
        """While the main thread looks by itself whether it shall stop: it calls this."""
        self._set(stop)

    def _set(self, on_first: Callable[[], object]) -> None:
        self._on_first = on_first
        if self.received:
            on_first()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            # The lease runs out and others take over; the kernel ends what was started here.
            os._exit(128 + number)
        self.received = True
        self._on_first()


def _interrupt() -> None:
    raise Stopped
