"""A cluster without Ray: orders run in threads of the driver's own process, so whole runs take a second or two."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from rythmiq_ray.driver.loop import Loop
from rythmiq_ray.executor import Executor
from rythmiq_ray.model import ErrorInfo, Order, Phase, Step, StepResult, TaskLost


def in_phase(loop: Loop, phase: Phase) -> int:
    """How many attempts of a driver are in a phase."""
    return sum(attempt.phase is phase for attempt in loop.attempts)


class InlineCluster:
    """What :class:`rythmiq_ray.driver.loop.Fanout` asks for; everything behind it is real."""

    def __init__(
        self,
        executor: Executor,
        *,
        wake: Callable[[], None],
        threads: int = 8,
        loses: Callable[[Order], bool] = lambda _order: False,
    ) -> None:
        """``loses`` says of an order that was carried out whether its task died before it could tell."""
        self._loses = loses
        self._executor = executor
        self._wake = wake
        self._threads = ThreadPoolExecutor(threads)
        self._ended: SimpleQueue[tuple[Order, StepResult]] = SimpleQueue()
        self._probed: SimpleQueue[tuple[str, ErrorInfo | None]] = SimpleQueue()
        self._pending: list[Order] = []
        self._running = 0
        self._size = threads

    def enqueue(self, order: Order, *, stream_bytes: int = 0) -> None:
        self._pending.append(order)

    def dispatch(self) -> None:
        while self._pending:
            order = self._pending.pop(0)
            self._running += 1
            future = self._threads.submit(self._executor.run, order)
            future.add_done_callback(lambda done, order=order: self._done(order, done))  # type: ignore[misc]

    def completed(self) -> list[tuple[Order, StepResult]]:
        out = []
        while not self._ended.empty():
            out.append(self._ended.get())
        self._running -= len(out)
        return out

    def withdraw(self) -> tuple[list[Order], list[Order]]:
        orders, self._pending = self._pending, []
        return orders, []

    def unplaced(self) -> tuple[int, float]:
        return 0, 0.0

    def probe(self, part: str) -> None:
        def look() -> None:
            self._probed.put((part, self._executor.probe(part)))
            self._wake()

        self._threads.submit(look)

    def probed(self) -> list[tuple[str, ErrorInfo | None]]:
        found = []
        while not self._probed.empty():
            found.append(self._probed.get())
        return found

    def backlog(self, step: Step) -> int:
        return sum(order.step is step for order in self._pending)

    def draining(self) -> bool:
        return False

    @property
    def reachable(self) -> bool:
        return True

    @property
    def room(self) -> int:
        return self._size

    @property
    def busy(self) -> bool:
        return bool(self._pending or self._running)

    def _done(self, order: Order, future: Future[StepResult]) -> None:
        lost = self._loses(order)
        self._ended.put((order, TaskLost(reason="WorkerCrashedError", dead=True) if lost else future.result()))
        self._wake()
