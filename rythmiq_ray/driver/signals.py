"""What SIGTERM, SIGINT and SIGHUP do to a driver, from its first line to its last.

Imports nothing that takes time: it is the first thing a driver runs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Stopped(BaseException):
    """A signal came before the driver was at work. No ``except Exception`` takes it for a fault."""


class Signals:
    """The first signal stops the driver in the way that fits where it is; the second one ends it at once."""

    def __init__(self) -> None:
        self._received = False
        self._on_first: Callable[[], object] = lambda: os._exit(0)
        """Nothing was started yet, so nothing has to be ended."""

    def install(self) -> None:
        """Sets the handlers, again where somebody else set theirs; on the main thread alone."""
        for number in STOPPING:
            # `nohup` ignores SIGHUP and means it; a shell ignores SIGINT of what it puts in the background and means
            # the keyboard's alone.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    def calls(self, stop: Callable[[], object]) -> None:
        """From now on the first signal calls this, at once where it came before; without it, :meth:`check` tells."""
        self._on_first = stop
        if self._received:
            stop()

    def check(self) -> None:
        """Raises Stopped where a signal came."""
        if self._received:
            raise Stopped

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Around what waits and does not check: a signal raises Stopped in the middle of it.

        Not around imports and other code of libraries, where a bare ``except`` may swallow it.
        """
        self.calls(self.check)
        try:
            yield
        finally:
            self.calls(_note)
        self.check()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._received:
            # The lease runs out and others take over; the kernel ends what was started here.
            os._exit(128 + number)
        self._received = True
        self._on_first()


def _note() -> None:
    """What does not check now does so later."""
