"""The thread that reads for the screens and tells them what it found or what went wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import psycopg2

from rythmiq_ray.console.database import said_of
from rythmiq_ray.errors import NotFound, RythmiqError, place_of

Look = Callable[[], object]
_PATIENCE: Final = 4
"""After each read it waits for this many times as long as the read took, so that a slow database is read less often."""
_LONGEST_S: Final = 30.0


@dataclass(frozen=True)
class Seen:
    """What a read found, or why it found nothing."""

    look: Look
    found: object | None
    fault: str | None = None
    gone: bool = False
    """Whether the row does not exist any more, and the connection is fine."""


class Watcher:
    """Reads every ``interval_s`` seconds, and at once if something else is wanted. ``tell`` is called on its thread."""

    def __init__(self, tell: Callable[[Seen], None], *, interval_s: float) -> None:
        self._tell = tell
        self._interval_s = interval_s
        self._look: Look | None = None
        self._wake = threading.Event()
        self._ending = threading.Event()
        # A daemon thread, because a statement that hangs must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="top-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def want(self, look: Look | None) -> None:
        """Reads this at once and from now on; None = nothing."""
        self._look = look
        self._wake.set()

    def end(self) -> None:
        """Ends the thread after the current read."""
        self._ending.set()
        self._wake.set()

    def _run(self) -> None:
        while not self._ending.is_set():
            self._wake.clear()
            began = time.monotonic()
            if (look := self._look) is not None:
                seen = told_of(look)
                if not self._ending.is_set():
                    self._tell(seen)
            took = time.monotonic() - began
            self._wake.wait(max(self._interval_s, min(_LONGEST_S, _PATIENCE * took)))


def told_of(look: Look) -> Seen:
    """Reads, and turns any error into a sentence."""
    try:
        return Seen(look, look())
    except NotFound as error:
        return Seen(look, None, error.message, gone=True)
    except (RythmiqError, psycopg2.Error) as error:
        return Seen(look, None, said_of(error))
    except Exception as error:  # noqa: BLE001 - otherwise the screen would stop without a message
        # Without its message, which may contain a row's values.
        return Seen(look, None, f"an internal fault of this program: {type(error).__name__} at {place_of(error)}")
