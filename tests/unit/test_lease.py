"""The lease as the driver counts it: never longer than Postgres does."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from rythmiq_ray.driver.lease import RENEWALS_PER_LEASE, TRIES_PER_LEASE, Lease
from rythmiq_ray.errors import DatabaseUnavailable

LEASE_S = 30.0
CALL_S = 2.0


class _Postgres:
    """Its side, which takes a while to answer."""

    def __init__(self) -> None:
        self.now = 100.0
        self.takes_s = CALL_S
        self.held = True
        self.away = False
        self.resigned = False
        self.told_lost = 0

    def register(self) -> UUID:
        self._call()
        return uuid4()

    def renew(self) -> bool:
        self._call()
        return self.held

    def resign(self) -> None:
        self.resigned = True

    def lost(self) -> None:
        self.told_lost += 1

    def _call(self) -> None:
        self.now += self.takes_s
        if self.away:
            raise DatabaseUnavailable("away")


@pytest.fixture
def postgres() -> _Postgres:
    return _Postgres()


@pytest.fixture
def lease(postgres: _Postgres) -> Lease:
    return Lease(postgres, LEASE_S, clock=lambda: postgres.now, lost=postgres.lost)


def test_it_does_not_hold_before_it_is_taken(lease: Lease) -> None:
    assert not lease.held(0.0)
    assert lease.age_s(0.0) is None


def test_it_counts_from_when_it_was_asked_for(lease: Lease) -> None:
    lease.take()
    assert lease.held(129.9)
    assert not lease.held(130.0)
    assert lease.age_s(102.0) == pytest.approx(CALL_S)


def test_it_is_renewed_when_a_third_of_it_is_over(lease: Lease, postgres: _Postgres) -> None:
    lease.take()
    assert lease.run_once() == pytest.approx(LEASE_S / RENEWALS_PER_LEASE - CALL_S)
    assert lease.until == 130.0, "it was not due"
    postgres.now = 110.0
    lease.run_once()
    assert lease.until == 110.0 + LEASE_S, "counted from when it was asked for"


def test_a_renewal_that_was_refused_means_that_others_may_have_the_jobs(lease: Lease, postgres: _Postgres) -> None:
    lease.take()
    postgres.now, postgres.held = 110.0, False
    lease.run_once()
    assert lease.lost
    assert not lease.held(112.0), "though by its own count it would hold"
    assert postgres.told_lost == 1
    postgres.now += LEASE_S
    assert lease.run_once() > 0, "it waits to be taken anew"
    postgres.held = True
    lease.take()
    assert lease.held(postgres.now)


def test_a_renewal_whose_answer_comes_after_the_end_counts_as_lost(lease: Lease, postgres: _Postgres) -> None:
    lease.take()
    postgres.now, postgres.takes_s = 125.0, 6.0
    lease.run_once()
    assert lease.lost


def test_while_postgres_is_away_it_tries_more_often_and_holds_to_its_end(lease: Lease, postgres: _Postgres) -> None:
    lease.take()
    postgres.now, postgres.away = 110.0, True
    assert lease.run_once() == pytest.approx(LEASE_S / TRIES_PER_LEASE)
    assert not lease.lost
    assert lease.held(129.0)
    assert not lease.held(130.0)


def test_it_is_given_up_at_once_where_that_is_safe(lease: Lease, postgres: _Postgres) -> None:
    lease.take()
    lease.stop(resign=True)
    assert postgres.resigned
