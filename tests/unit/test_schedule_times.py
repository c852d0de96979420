"""When a schedule is due, through a year and through changes of clocks; time is a parameter."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim

from rythmiq_ray import schedules
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.schedules import MOST_CAUGHT_UP, CatchUp, check, due, next_after

BERLIN = "Europe/Berlin"
START = datetime(2026, 1, 1, tzinfo=UTC)


def fired(cron: str, zone: str, *, days: int, step: timedelta, catch_up: CatchUp = CatchUp.ALL) -> list[datetime]:
    """All times that somebody fires who looks every ``step``."""
    out: list[datetime] = []
    next_at = next_after(cron, zone, START)
    now = START
    while now < START + timedelta(days=days):
        now += step
        found = due(cron, zone, next_at, now, catch_up)
        out += found.times
        assert found.next_at > now
        next_at = found.next_at
    return out


@pytest.mark.parametrize("catch_up", CatchUp)
def test_a_year_of_nights_has_one_run_each(catch_up: CatchUp) -> None:
    times = fired("30 2 * * *", BERLIN, days=365, step=timedelta(seconds=50 * 60), catch_up=CatchUp.ALL)
    assert len(times) == len(set(times)) == 365
    local = [at.astimezone(ZoneInfo(BERLIN)) for at in times]
    assert len({at.date() for at in local}) == 365
    odd = [at for at in local if (at.hour, at.minute) != (2, 30)]
    assert [at.isoformat() for at in odd] == ["2026-03-29T03:00:00+02:00"], "the hour that is left out is made up for"
    twice = [at.isoformat() for at in local if at.date().isoformat() == "2026-10-25"]
    assert twice == ["2026-10-25T02:30:00+02:00"], "of the hour that comes twice the first counts"
    assert due("30 2 * * *", BERLIN, times[0], times[0], catch_up).times == [times[0]]


def test_every_quarter_goes_by_the_time_that_has_passed() -> None:
    times = fired("*/15 * * * *", BERLIN, days=90, step=timedelta(minutes=7))
    assert {later - earlier for earlier, later in pairwise(times)} == {timedelta(minutes=15)}


def test_what_was_missed_is_caught_up_as_asked() -> None:
    first = next_after("0 * * * *", "UTC", START)
    now = START + timedelta(hours=5, minutes=30)
    hours = [START + timedelta(hours=hour) for hour in range(1, 6)]
    assert list(due("0 * * * *", "UTC", first, now, CatchUp.ALL).times) == hours
    assert list(due("0 * * * *", "UTC", first, now, CatchUp.ONE).times) == hours[-1:]
    assert list(due("0 * * * *", "UTC", first, now, CatchUp.NONE).times) == []
    on_time = START + timedelta(hours=5, seconds=30)
    assert list(due("0 * * * *", "UTC", first, on_time, CatchUp.NONE).times) == hours[-1:], (
        "half a minute late is not missed"
    )
    assert {due("0 * * * *", "UTC", first, now, each).next_at for each in CatchUp} == {START + timedelta(hours=6)}
    assert due("0 * * * *", "UTC", first, START, CatchUp.ALL).times == ()


def test_a_time_of_long_ago_costs_no_more_than_one_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0

    class Counted(CronSim):
        def __next__(self) -> datetime:
            nonlocal steps
            steps += 1
            return super().__next__()

    monkeypatch.setattr(schedules, "CronSim", Counted)
    for catch_up in CatchUp:
        found = due("* * * * *", "UTC", datetime(2, 1, 1, tzinfo=UTC), START, catch_up)
        assert found.times[-1] == START
    assert steps < 10 * MOST_CAUGHT_UP


@pytest.mark.parametrize("cron", ["30 2 * * *", "*/15 * * * *", "0 0 * * *", "*/7 1-2 * * *", "0 */2 * * *"])
@pytest.mark.parametrize("zone", [BERLIN, "America/Havana", "Australia/Lord_Howe"])
def test_whenever_it_is_asked_the_next_time_is_to_come(cron: str, zone: str) -> None:
    for month, day in ((3, 7), (3, 28), (4, 4), (10, 3), (10, 24), (10, 31)):  # The clocks change in the night after.
        noon = datetime(2026, month, day, 12, tzinfo=UTC)
        for at in (noon + timedelta(minutes=minutes) for minutes in range(1, 24 * 60, 7)):
            assert next_after(cron, zone, at) > at


def test_asked_in_the_second_of_two_equal_hours_the_next_one_is_the_day_after() -> None:
    for minute in (0, 29, 31):
        at = datetime(2026, 10, 25, 1, minute, tzinfo=UTC)
        assert next_after("30 2 * * *", BERLIN, at) == datetime(2026, 10, 26, 1, 30, tzinfo=UTC)


def test_what_was_missed_in_the_hour_that_comes_twice_is_caught_up() -> None:
    first = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    for minute in (0, 15, 45):
        found = due("30 2 * * *", BERLIN, first - timedelta(days=1), first.replace(hour=1, minute=minute), CatchUp.ONE)
        assert found.times == [first]


def test_a_time_that_a_person_chose_is_due_too() -> None:
    found = due("0 0 1 1 *", "UTC", START + timedelta(days=9), START + timedelta(days=10), CatchUp.ONE)
    assert found.times == [START + timedelta(days=9)]


def test_years_away_are_bounded() -> None:
    found = due("* * * * *", "UTC", START, START + timedelta(days=3), CatchUp.ALL)
    assert len(found.times) == MOST_CAUGHT_UP
    assert found.times[-1] == START + timedelta(days=3)


@pytest.mark.parametrize(
    ("cron", "zone", "said"),
    [
        ("* * * *", "UTC", "cron: "),
        ("61 * * * *", "UTC", "cron: "),
        ("0 2 * * someday", "UTC", "cron: "),
        ("0 2 * * *", "Mars/Olympus", "time_zone: there is no"),
        ("0 2 * * *", "../../etc/passwd", "time_zone: there is no"),
        ("", "", "time_zone: "),
    ],
)
def test_what_is_no_schedule_is_refused(cron: str, zone: str, said: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        check(cron, zone)
    assert caught.value.faults[0].startswith(said)


def test_a_day_that_never_comes_is_refused() -> None:
    with pytest.raises(InvalidJob, match="cron: '0 0 30 2 \\*'"):
        next_after("0 0 30 2 *", "UTC", START)
