"""``camber.max_in_flight=auto`` against accounts simulated by their two rules: slots to run in, and a cap on jobs."""

from __future__ import annotations

from collections import Counter, deque

import pytest

from rythmiq_ray.driver.concurrency_limit import AFTER_REFUSAL, AUTO, FIRST, WINDOW_S, ConcurrencyLimit


class Account:
    """Runs up to ``slots`` jobs of ``job_s`` seconds at once, and refuses creates beyond ``cap`` jobs."""

    def __init__(self, *, slots: int, cap: int = 10**9, start_s: float = 1.0, job_s: float = 10.0) -> None:
        self.slots, self.cap, self.start_s, self.job_s = slots, cap, start_s, job_s
        self.queued: deque[tuple[float, ConcurrencyLimit]] = deque()
        self.running: list[tuple[float, ConcurrencyLimit]] = []
        self.in_flight: Counter[ConcurrencyLimit] = Counter()
        self.refused = self.idle = self.now = 0

    def second(self, limits: list[ConcurrencyLimit]) -> None:
        """One second in which each driver, which has more jobs than it can run, fills its limit."""
        self.now += 1
        self.in_flight -= Counter(owner for ends_at, owner in self.running if ends_at <= self.now)
        self.running = [(ends_at, owner) for ends_at, owner in self.running if ends_at > self.now]
        for limit in limits:
            for _ in range(int(limit) - self.in_flight[limit]):
                if len(self.queued) + len(self.running) >= self.cap:
                    self.refused += 1
                    limit.refused(self.now, self.now)
                    break
                self.queued.append((self.now, limit))
                self.in_flight[limit] += 1
        while self.queued and len(self.running) < self.slots and self.now - self.queued[0][0] >= self.start_s:
            created_at, owner = self.queued.popleft()
            self.running.append((self.now + self.job_s, owner))
            owner.started(created_at, self.now, in_flight=self.in_flight[owner])
        self.idle += self.slots - len(self.running)


def run(account: Account, limits: list[ConcurrencyLimit], seconds: int) -> list[float]:
    """The mean limit of each driver over the second half."""
    sums = [0] * len(limits)
    for second in range(seconds):
        account.second(limits)
        if second >= seconds // 2:
            sums = [total + int(limit) for total, limit in zip(sums, limits, strict=True)]
    return [total / (seconds - seconds // 2) for total in sums]


def auto() -> ConcurrencyLimit:
    return ConcurrencyLimit(AUTO, slack_s=5.0)


@pytest.mark.parametrize("slots", [4, 50, 400])
def test_it_finds_as_many_as_keep_the_account_busy_and_few_more(slots: int) -> None:
    account = Account(slots=slots)
    run(account, [limit := auto()], 1000)
    account.idle = 0
    (mean,) = run(account, [limit], 2000)
    assert slots <= mean <= 3 * slots + 8
    assert account.idle <= 0.05 * 2000 * slots


def test_refusals_bring_it_below_the_cap_and_stay_rare() -> None:
    account = Account(slots=10_000, cap=60)
    (mean,) = run(account, [auto()], 2000)
    assert 30 <= mean <= 60
    assert account.refused <= 2000 / 10, "each refusal buys a long time without one"


def test_two_drivers_come_to_even_shares() -> None:
    account = Account(slots=10_000, cap=100)
    first = auto()
    run(account, [first], 500)
    shares = run(account, [first, auto()], 4000)
    assert max(shares) <= 2 * min(shares)


def test_a_burst_of_refusals_is_one_sign() -> None:
    limit = auto()
    for _ in range(10):
        limit.refused(sent_at=100.0, now=101.0)
    assert int(limit) == FIRST // 2


def test_a_service_that_became_slower_for_good_is_not_taken_for_a_full_one() -> None:
    account = Account(slots=100)
    limit = auto()
    run(account, [limit], 1000)
    account.start_s = 60.0
    run(account, [limit], int(2 * WINDOW_S))
    account.idle = 0
    run(account, [limit], 2000)
    assert account.idle <= 0.3 * 2000 * 100


def test_a_fixed_limit_stays() -> None:
    limit = ConcurrencyLimit(7, slack_s=5.0)
    limit.refused(1.0, 2.0)
    limit.started(3.0, 4.0, in_flight=7)
    assert int(limit) == 7


def test_a_limit_that_is_not_reached_does_not_grow() -> None:
    limit = auto()
    for second in range(100):
        limit.started(second, second + 1.0, in_flight=1)
    assert int(limit) == FIRST


def test_what_is_shared_is_what_was_found_and_a_limit_never_lowered_is_searched_for_on() -> None:
    first, second = (ConcurrencyLimit(AUTO, slack_s=1.0) for _ in range(2))
    for _ in range(4):
        first.started(100_000.0, 100_000.5, in_flight=FIRST)
    grown, share, _ = first.found()
    assert (grown, share) == (4.0, None)
    second.share(FIRST + grown, None)
    second.started(100_001.0, 100_001.5, in_flight=FIRST)
    assert int(second) == FIRST + 5, "still by one for each start, however long the machine is up"
    second.refused(100_002.0, 100_003.0)
    assert second.found() == (0.0, AFTER_REFUSAL, 100_002.0)
    first.share(10.0, 100_003.0)
    first.started(100_002.5, 100_004.0, in_flight=10)
    assert int(first) == 10, "what was sent before it was lowered proves nothing"
    first.started(100_003.5, 100_004.0, in_flight=10)
    assert first.found()[0] == pytest.approx(0.1), "found again by small steps"
