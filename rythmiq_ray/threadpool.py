"""A thread pool for one event loop that uses as few threads as its calls need.

Threads that run Python hand its lock to each other at every call to the system. With twenty of them, the two small
files that each job leaves took 1.3 ms of processor time, with one 0.3 ms. So more threads join in only while calls
really block: where none has begun for :data:`PATIENCE_S`, their number doubles.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

PATIENCE_S: Final = 0.002
"""Some ten small writes to a disk that answers at once. Slower calls get threads until 500 a second begin."""


@dataclass(slots=True)
class _Call:
    function: Callable[[], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None


class LoopThreadPool:
    """Runs blocking calls for the event loop it is used from. Every method is to be called on that loop's thread."""

    def __init__(self, size: int) -> None:
        """``size``: how many calls may block at once."""
        self._size = size
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="offload")
        self._waiting: deque[_Call] = deque()
        self._ended: deque[_Call] = deque()
        self._at_work = 0
        self._begun = 0
        self._begun_before = 0
        self._told = False
        self._timer: asyncio.TimerHandle | None = None

    def run(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """What comes of the call: its result, or what it raised."""
        loop = asyncio.get_running_loop()
        call = _Call(function, loop.create_future())
        self._waiting.append(call)
        if not self._at_work:
            self._join(loop, 1)
        elif self._timer is None and self._at_work < self._size:
            self._watch(loop)
        return call.future

    def close(self) -> None:
        """Lets what runs end; returns at once."""
        self._threads.shutdown(wait=False)

    def _join(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        self._at_work += count
        for _ in range(count):
            self._threads.submit(self._work, loop)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._begun_before = self._begun
        self._timer = loop.call_later(PATIENCE_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if not self._waiting:
            return
        if self._begun == self._begun_before:
            self._join(loop, min(self._at_work, len(self._waiting), self._size - self._at_work))
        if self._at_work < self._size:
            self._watch(loop)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: takes calls while there are any."""
        while True:
            try:
                call = self._waiting.popleft()
            except IndexError:
                break
            self._begun += 1  # Where two threads lose one to each other, it has changed all the same.
            try:
                call.result = call.function()
            except StopIteration:
                call.error = RuntimeError("a call raised StopIteration")  # No future can carry it.
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the call
                call.error = error
            self._ended.append(call)
            if not self._told:
                self._told = True
                loop.call_soon_threadsafe(self._deliver)
            del call  # It may hold a file's bytes.
        loop.call_soon_threadsafe(self._leave, loop)

    def _deliver(self) -> None:
        self._told = False  # First, so that a call which ends from here on tells of itself.
        while self._ended:
            call = self._ended.popleft()
            if call.future.done():  # cancelled
                continue
            if call.error is None:
                call.future.set_result(call.result)
            else:
                call.future.set_exception(call.error)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        self._at_work -= 1
        if self._waiting:
            self._join(loop, 1)  # What waits came in after this one had looked, while it still counted as at work.
