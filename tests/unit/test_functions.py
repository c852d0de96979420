"""A Python function as a job: what is sent."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from rythmiq_ray import JobSpec
from rythmiq_ray.functions import spec_of


def double(number: int) -> int:
    return 2 * number


def triple(number: int) -> str:
    return f"the code of triple {3 * number}"


class Store:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def find_input(self, _digest: str, _size: int) -> None:
        return None

    def write_input(self, digest: str, _size: int, data: Any) -> str:
        self.sent.append(b"".join(data))
        return f"file:///{digest}"

    def call(self) -> bytes:
        return next(data for data in self.sent if data.startswith(b"\x80"))


def sent(function: Callable[..., Any], *arguments: Any) -> bytes:
    store = Store()
    spec_of(store, function, arguments, {}, JobSpec(command="-"))  # type: ignore[arg-type]
    return store.call()


def is_whole(call: bytes) -> bool:
    """Whether a function goes with its code, not by the name of a module that no node has."""
    return b"_make_function" in call


class Held:
    """An argument whose pickling takes as long as the test wants."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        self.begun.set()
        assert self.go.wait(60)
        return int, (21,)


def test_functions_that_are_sent_at_once_are_all_sent_whole() -> None:
    first, second = Held(), Held()
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(sent, double, first)
        assert first.begun.wait(60)
        other = threads.submit(sent, double, second, triple)
        second.begun.wait(0.5)  # It may not begin before the first has ended.
        first.go.set()
        one.result()
        second.go.set()
        assert b"the code of triple" in other.result()


def test_a_partial_of_ones_own_function_is_sent_whole() -> None:
    assert is_whole(sent(partial(partial(double), 21)))
    assert not is_whole(sent(pickle.dumps, 21)), "what is installed is there"
