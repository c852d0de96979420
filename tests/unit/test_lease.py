"""The lease as the driver counts it: never longer than Postgres does."""

from __future__ import annotations

from typing import cast

import pytest

from rythmiq_ray.driver.lease import HEARTBEATS_PER_LEASE, Lease
from rythmiq_ray.queue import Queue

LEASE_S = 30.0
CALL_S = 2.0


class _Queue:
    """Postgres' side, which takes a while to answer."""

    def __init__(self) -> None:
        self.now = 100.0
        self.held = True

    def register(self) -> None:
        self.now += CALL_S

    def renew(self) -> bool:
        self.now += CALL_S
        return self.held


@pytest.fixture
def postgres() -> _Queue:
    return _Queue()


@pytest.fixture
def lease(postgres: _Queue) -> Lease:
    return Lease(cast("Queue", postgres), LEASE_S, clock=lambda: postgres.now)


def test_it_does_not_hold_before_it_is_taken(lease: Lease) -> None:
    assert not lease.held(0.0)
    assert lease.age_s(0.0) is None


def test_it_counts_from_when_it_was_asked_for(lease: Lease) -> None:
    lease.take()
    assert lease.held(129.9)
    assert not lease.held(130.0)
    assert lease.renew_at == pytest.approx(100.0 + LEASE_S / HEARTBEATS_PER_LEASE)
    assert lease.age_s(102.0) == pytest.approx(CALL_S)


def test_a_renewal_counts_from_when_it_was_asked_for(lease: Lease, postgres: _Queue) -> None:
    lease.take()
    postgres.now = 110.0
    assert lease.renew()
    assert lease.left_s(112.0) == pytest.approx(LEASE_S - CALL_S)


def test_a_renewal_that_was_refused_leaves_the_end_where_it_was(lease: Lease, postgres: _Queue) -> None:
    lease.take()
    postgres.now, postgres.held = 110.0, False
    assert not lease.renew()
    assert not lease.held(130.0)
    assert lease.renew_at <= 110.0
