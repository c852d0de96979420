"""When the remote list is polled next."""

from __future__ import annotations

from typing import cast

import pytest

from rythmiq_ray.driver.attempts import Attempts
from rythmiq_ray.driver.poll_schedule import FEWEST_ENDS, PollSchedule, next_poll_s
from rythmiq_ray.driver.poller import Poll

INTERVAL_S = 2.0


@pytest.mark.parametrize(
    ("elapsed_s", "waiting", "ended", "after_s"),
    [
        (2.0, 10_000, 0, 2.0),
        (2.0, 10_000, 300, 2.0),  # Jobs of a minute: the interval is kept.
        (2.0, 4, 4, 2.0),  # A few: their finish is not worth calls of its own.
        (2.0, 1000, 1000, 1.0),
        (2.0, 40, 40, 1.0),
        (1.0, 1000, 500, 1.0),  # Half of them in the time since: the pace is right.
        (1.0, 1000, 800, 0.625),
        (0.5, 1000, 1000, 0.5),  # No sooner than that.
        (0.5, 1000, 200, 1.25),  # Fewer than thought: it slows down.
    ],
)
def test_a_poll_comes_early_only_where_many_will_have_ended(
    elapsed_s: float, waiting: int, ended: int, after_s: float
) -> None:
    assert next_poll_s(INTERVAL_S, elapsed_s=elapsed_s, waiting=waiting, ended=ended) == pytest.approx(after_s)


def test_a_poll_that_took_long_is_not_followed_at_once() -> None:
    assert next_poll_s(INTERVAL_S, elapsed_s=0.5, waiting=100, ended=100, took_s=0.3) == pytest.approx(1.2)
    assert next_poll_s(INTERVAL_S, elapsed_s=0.5, waiting=100, ended=100, took_s=30.0) == INTERVAL_S


@pytest.mark.parametrize("rate", [1, 10, 100, 1000, 10_000])
@pytest.mark.parametrize("waiting", [1, 50, 1000, 100_000])
def test_at_a_steady_rate_the_calls_beyond_the_intervals_are_one_for_twenty_ends_at_most(
    rate: int, waiting: int
) -> None:
    elapsed_s = INTERVAL_S
    calls = ends = time_s = 0.0
    for _ in range(200):
        ended = min(waiting, int(rate * elapsed_s))
        elapsed_s = next_poll_s(INTERVAL_S, elapsed_s=elapsed_s, waiting=waiting, ended=ended)
        time_s += elapsed_s
        calls += -(-waiting // 100)
        ends += ended
    usual = time_s / INTERVAL_S * -(-waiting // 100)
    assert calls - usual <= ends / FEWEST_ENDS + 1


class _Attempts:
    """What waits, as far as a poll asks."""

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting

    def waiting_ids(self) -> frozenset[int]:
        return frozenset(range(self.waiting))

    def searched_paths(self) -> frozenset[str]:
        return frozenset()

    def paths(self) -> frozenset[str]:
        return frozenset()

    def search_age_s(self, _now: float) -> float:
        return 0.0


def _schedule(waiting: int) -> tuple[PollSchedule, Attempts, list[Poll]]:
    sent: list[Poll] = []
    return PollSchedule(INTERVAL_S, send=sent.append), cast("Attempts", _Attempts(waiting)), sent


def _after_a_poll_that_found_all_ended() -> tuple[PollSchedule, Attempts, list[Poll]]:
    schedule, attempts, sent = _schedule(waiting=100)
    schedule.begin(attempts, 10.0)
    for _ in range(100):
        schedule.found_end()
    schedule.succeeded(sent[0], 10.1)
    return schedule, attempts, sent


def test_one_poll_is_under_way_at_a_time() -> None:
    schedule, attempts, sent = _schedule(waiting=100)
    schedule.begin(attempts, 10.0)
    assert schedule.due_at is None
    schedule.begin(attempts, 100.0)
    assert [poll.number for poll in sent] == [1]
    schedule.succeeded(sent[0], 100.0)
    schedule.begin(attempts, 100.0)
    assert [poll.number for poll in sent] == [1, 2]


def test_nothing_is_polled_while_nothing_waits() -> None:
    schedule, attempts, sent = _schedule(waiting=0)
    schedule.begin(attempts, 10.0)
    assert (schedule.due_at, sent) == (12.0, [])


def test_the_ends_that_a_poll_finds_pace_the_next_one() -> None:
    schedule, attempts, sent = _after_a_poll_that_found_all_ended()
    assert schedule.due_at == pytest.approx(11.0)
    schedule.begin(attempts, 11.0)
    schedule.succeeded(sent[1], 11.1)
    assert schedule.due_at == pytest.approx(13.0)


def test_after_a_fault_the_interval_is_kept() -> None:
    schedule, attempts, _sent = _after_a_poll_that_found_all_ended()
    schedule.begin(attempts, 11.0)
    schedule.failed(11.5)
    assert schedule.due_at == pytest.approx(13.5)
