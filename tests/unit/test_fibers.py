"""Fibers: plain code that waits on an event loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from rythmiq_ray import fibers
from rythmiq_ray.fibers import Fibers, in_fiber, offload, together


@pytest.fixture
def pool() -> Iterator[Fibers]:
    pool = Fibers(threads=2)
    yield pool
    pool.close()


def test_results_come_in_the_order_of_the_items_whatever_ends_first(pool: Fibers) -> None:
    def slow_first(number: int) -> int:
        fibers.sleep(0.05 / (number + 1))
        return number

    assert pool.map(slow_first, range(20)) == list(range(20))


def test_all_wait_at_once(pool: Fibers) -> None:
    barrier = [0]

    def arrive(_: int) -> int:
        barrier[0] += 1
        while barrier[0] < 50:
            fibers.sleep(0.001)
        return barrier[0]

    assert pool.map(arrive, range(50)) == [50] * 50


def test_what_blocks_runs_in_a_thread_and_the_others_go_on(pool: Fibers) -> None:
    gate = threading.Event()

    def step(number: int) -> str:
        if number == 0:
            offload(lambda: gate.wait(10))
            return threading.current_thread().name
        fibers.sleep(0.01)
        gate.set()
        return offload(lambda: threading.current_thread().name)

    first, second = pool.map(step, range(2))
    assert first == "fibers"
    assert second.startswith("offload")


def test_an_error_is_raised_where_the_code_waits(pool: Fibers) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    def step(_: int) -> str:
        try:
            offload(fail)
        except ZeroDivisionError:
            return "handled"
        return "missed"

    assert pool.map(step, [0]) == ["handled"]
    with pytest.raises(ZeroDivisionError):
        pool.map(lambda _: offload(fail), [0])


@pytest.fixture(params=["fiber", "thread"])
def run(request: pytest.FixtureRequest, pool: Fibers) -> Callable[[Callable[[], object]], object]:
    """Runs a call in a fiber, or in the calling thread."""
    if request.param == "fiber":
        return lambda call: pool.map(lambda _: call(), [0])[0]
    return lambda call: call()


def test_calls_run_together_but_no_more_than_so_many(run: Callable[[Callable[[], object]], object]) -> None:
    at_once, most = [0], [0]

    def call(number: int) -> int:
        at_once[0] += 1
        most[0] = max(most[0], at_once[0])
        fibers.sleep(0.02)
        at_once[0] -= 1
        return number

    assert run(lambda: together([partial(call, number) for number in range(10)], 3)) == list(range(10))
    assert most[0] == 3
    assert run(lambda: together([], 3)) == []


def test_an_error_of_one_call_waits_for_those_under_way(run: Callable[[Callable[[], object]], object]) -> None:
    ended: list[int] = []

    def call(number: int) -> None:
        fibers.sleep(0.02 if number == 0 else 0.1)
        if number == 0:
            raise ZeroDivisionError
        ended.append(number)

    with pytest.raises(ZeroDivisionError):
        run(lambda: together([partial(call, number) for number in range(2)], 2))
    assert ended == [1]


def test_after_an_error_no_other_call_begins(pool: Fibers) -> None:
    begun: list[int] = []

    def call(number: int) -> None:
        begun.append(number)
        fibers.sleep(0.001)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pool.map(lambda _: together([partial(call, number) for number in range(10)], 2), [0])
    assert begun == [0, 1]


def test_outside_of_a_fiber_the_same_code_runs_in_the_calling_thread() -> None:
    assert not in_fiber()
    assert offload(threading.get_ident) == threading.get_ident()
    begun = time.monotonic()
    fibers.sleep(0.01)
    assert time.monotonic() - begun >= 0.01


def test_a_pool_that_is_closed_ends_its_thread() -> None:
    pool = Fibers(threads=1)
    assert pool.map(lambda _: in_fiber(), [0]) == [True]
    pool.close()
    pool._thread.join(10)
    assert not pool._thread.is_alive()
