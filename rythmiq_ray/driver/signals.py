"""Handles SIGTERM, SIGINT and SIGHUP from the driver's first line to its last.

It is the first module that a driver runs, so it imports nothing that takes time.
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
    """A signal came before the driver was ready. Not an Exception, so that no ``except Exception`` catches it."""


class Signals:
    """The first signal stops the driver in the way that suits its present stage; the second one ends it at once."""

    def __init__(self) -> None:
        self._received = False
        self._on_first: Callable[[], object] = lambda: os._exit(0)
        """Called on the first signal. At first it just exits, because nothing has been started."""

    def install(self) -> None:
        """Sets the handlers, also again after a library has replaced them. Main thread only."""
        for number in STOPPING:
            # An ignored SIGHUP stays ignored, since `nohup` wants that. An ignored SIGINT does not: a shell sets it for
            # background processes only to keep Ctrl-C from them.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    def calls(self, stop: Callable[[], object]) -> None:
        """The first signal calls ``stop`` from now on; if it has come already, ``stop`` is called at once."""
        self._on_first = stop
        if self._received:
            stop()

    def check(self) -> None:
        """Raises Stopped if a signal has come."""
        if self._received:
            raise Stopped

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """For code that waits without calling :meth:`check`: a signal raises Stopped in the middle of it.

        Do not use it around imports or other library code, where a bare ``except`` may swallow the exception.
        """
        self.calls(self.check)
        try:
            yield
        finally:
            self.calls(_note)
        self.check()

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self._received:
            # The lease expires and other drivers take over; the kernel ends the processes that were started here.
            os._exit(128 + number)
        self._received = True
        self._on_first()


def _note() -> None:
    """Does nothing: :meth:`Signals.check` will find the signal later."""
