"""Runs the steps of a start that may hang at the same time, each on a daemon thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import Empty, Queue
from typing import Final

from rythmiq_ray.clock import now_s
from rythmiq_ray.errors import RythmiqError

_LOOK_S: Final = 0.1


@dataclass(frozen=True, kw_only=True)
class StartStep:
    """A step that has to succeed before the driver is ready."""

    run: Callable[[], object]
    deadline: float
    """In seconds of :func:`rythmiq_ray.clock.now_s`."""
    late: RythmiqError
    """The error to raise if the step has not ended by ``deadline``."""


def all_of(steps: Sequence[StartStep], *, meanwhile: Callable[[], object] = lambda: None) -> None:
    """Runs the steps and returns when all have succeeded; raises the first error, or ``late`` of the first late step.

    ``meanwhile`` is called on this thread several times a second; it can end the wait by raising. A step that hangs
    goes on in its thread.
    """
    # Not SimpleQueue: in CPython 3.11 its get() may never return if a signal comes just when its timeout is over.
    ended: Queue[tuple[StartStep, BaseException | None]] = Queue()

    def run(step: StartStep) -> None:
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
        try:
            step, error = ended.get(timeout=_LOOK_S)
        except Empty:
            now = now_s()
            for each in waiting:
                if now >= each.deadline:
                    raise each.late from None
            continue
        if error is not None:
            raise error
        waiting.remove(step)
