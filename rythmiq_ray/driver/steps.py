"""The steps of a start that may hang: all at once, each on a thread that nobody has to wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Final

from rythmiq_ray.clock import now_s
from rythmiq_ray.errors import RythmiqError

_LOOK_S: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that has to succeed before the driver is ready."""

    run: Callable[[], object]
    late: RythmiqError
    """Raised when it takes too long."""


def all_of(steps: Sequence[Step], *, deadline: float, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Runs the steps and returns when all have succeeded; raises the first fault, or what is late at the deadline.

    ``deadline`` is in seconds of :func:`rythmiq_ray.clock.now_s`. A signal handler that raises ends the wait;
    ``meanwhile`` is called on this thread some times a second. A step that hangs goes on, on a daemon thread.
    """
    ended: SimpleQueue[tuple[Step, BaseException | None]] = SimpleQueue()

    def run(step: Step) -> None:
        try:
            step.run()
        except BaseException as error:  # noqa: BLE001 - raised again on the thread that waits
            ended.put((step, error))
        else:
            ended.put((step, None))

    waiting = list(steps)
    for step in steps:
        threading.Thread(target=run, args=(step,), name="rythmiq-start", daemon=True).start()
    while waiting:
        meanwhile()
        left_s = deadline - now_s()
        try:
            step, error = ended.get(timeout=max(0.0, min(_LOOK_S, left_s)))
        except Empty:
            if left_s <= 0:
                raise waiting[0].late from None
            continue
        if error is not None:
            raise error
        waiting.remove(step)
