"""The thread pool of an event loop: no more threads than the calls need, and every call is answered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from rythmiq_ray import threadpool
from rythmiq_ray.threadpool import LoopThreadPool


def in_loop(size: int, work: Callable[[LoopThreadPool], Awaitable[None]]) -> None:
    async def main() -> None:
        pool = LoopThreadPool(size)
        try:
            async with asyncio.timeout(60):
                await work(pool)
        finally:
            pool.close()

    asyncio.run(main())


@dataclass
class Counted:
    """A call that knows how many of it run at once."""

    release: threading.Event
    enough: int = 1
    """So many at once release all."""
    running: int = 0
    most: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> None:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            if self.running == self.enough:
                self.release.set()
        self.release.wait(60)
        with self.lock:
            self.running -= 1


def test_calls_run_one_after_the_other_as_long_as_none_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threadpool, "PATIENCE_S", 3600.0)
    call = Counted(threading.Event())

    async def work(pool: LoopThreadPool) -> None:
        await asyncio.gather(*[pool.run(call) for _ in range(100)])

    in_loop(20, work)
    assert call.most == 1


def test_calls_that_block_get_threads_up_to_the_size() -> None:
    together = threading.Barrier(20)

    async def work(pool: LoopThreadPool) -> None:
        places = await asyncio.gather(*[pool.run(lambda: together.wait(60)) for _ in range(20)])
        assert sorted(places) == list(range(20))

    in_loop(20, work)


def test_no_more_than_the_size_run_at_once() -> None:
    call = Counted(threading.Event(), enough=3)

    async def work(pool: LoopThreadPool) -> None:
        await asyncio.gather(*[pool.run(call) for _ in range(50)])

    in_loop(3, work)
    assert call.most == 3


def test_a_call_that_comes_as_the_last_thread_leaves_is_run() -> None:
    async def work(pool: LoopThreadPool) -> None:
        assert [await pool.run(lambda n=n: n) for n in range(2000)] == list(range(2000))

    in_loop(4, work)


def test_a_call_that_comes_as_the_last_but_one_thread_leaves_is_run() -> None:
    gate = threading.Event()

    async def work(pool: LoopThreadPool) -> None:
        long = pool.run(lambda: gate.wait(60))
        assert [await pool.run(lambda n=n: n) for n in range(2000)] == list(range(2000))
        gate.set()
        assert await long

    in_loop(2, work)


@pytest.mark.parametrize("error", [ZeroDivisionError(), SystemExit(3), StopIteration()])
def test_what_a_call_raises_reaches_who_waits_and_harms_no_other(error: BaseException) -> None:
    def fail() -> None:
        raise error

    async def work(pool: LoopThreadPool) -> None:
        failing, other = pool.run(fail), pool.run(lambda: "fine")
        expected = RuntimeError if isinstance(error, StopIteration) else type(error)
        with pytest.raises(expected):
            await failing
        assert await other == "fine"

    in_loop(1, work)


def test_a_cancelled_call_holds_up_no_other() -> None:
    gate = threading.Event()

    async def work(pool: LoopThreadPool) -> None:
        first, second = pool.run(lambda: gate.wait(60)), pool.run(lambda: "fine")
        first.cancel()
        gate.set()
        assert await second == "fine"

    in_loop(1, work)
