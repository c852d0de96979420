"""The parts of `rythmiq top` that need no screen: cells, columns, rates, and what differs between two lines."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from textual.strip import Strip
from web_rows import HOSTILE, LONG, Connection, Rows, execute

from rythmiq_ray.console import filters
from rythmiq_ray.console.filters import ParsedFilter
from rythmiq_ray.errors import DatabaseUnavailable, NotFound
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import console
from rythmiq_ray.top.cells import Column, Part, broken, count, fitted, parts_of, row, segments, sparkline, widths_of
from rythmiq_ray.top.lines import _difference
from rythmiq_ray.top.rates import MINUTES, Rates
from rythmiq_ray.top.watch import Seen, Watcher, told_of

COLUMNS = (Column("NAME", 10, most=40), Column("N", 7, ">"), Column("WIDE", 9, wide=100), Column("REST", 10, most=1000))


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (12_345, "12,345"), (99_999, "99,999"), (123_456, "123k"), (1_234_567, "1.2M"), (12_345_678, "12M")],
)
def test_numbers_take_seven_cells_at_most(value: int, said: str) -> None:
    assert count(value) == said
    assert count(value, bounded=True) == f"{said}+"
    assert len(said) < 7


def test_a_sparkline_shows_the_last_and_whatever_there_is() -> None:
    assert sparkline([0, 1, 50, 100], 4) == " ▁▄█"
    assert sparkline([1, 2, 3, 4], 2) == "▆█"
    assert sparkline([5], 3) == "  █"
    assert sparkline([0, 0], 2) == "  "
    assert sparkline([1], 0) == ""


@given(text=st.text(max_size=60), width=st.integers(0, 60), align=st.sampled_from("<>"))
def test_a_cell_fills_its_width_whatever_is_in_it(text: str, width: int, align: str) -> None:
    parts = fitted(parts_of(text), width, align)
    assert sum(cell_len(part.text) for part in parts) == width
    assert all(part.text.isprintable() for part in parts)


@pytest.mark.parametrize("width", [20, 80, 99, 100, 200])
def test_a_row_is_as_wide_as_its_table(width: int) -> None:
    cells = (HOSTILE, Part("12"), LONG, [Part("漢字" * 40, "red")])
    assert sum(cell_len(part.text) for part in row(COLUMNS, cells, width)) == width
    assert len(widths_of(COLUMNS, width)) == (4 if width >= 100 else 3)


def test_columns_share_what_is_left_up_to_their_most() -> None:
    assert widths_of(COLUMNS, 80) == [(0, 35), (1, 7), (3, 36)]
    assert widths_of(COLUMNS, 200) == [(0, 40), (1, 7), (2, 9), (3, 141)]


def test_right_to_left_text_turns_nothing_behind_it_round() -> None:
    (segment,) = segments([Part("\u05e9\u05dc\u05d5\u05dd")])
    assert segment.text.endswith("\u200e")
    assert cell_len(segment.text) == 4
    assert segments([Part("fit [red]")])[0].text == "fit [red]"


def test_long_text_is_broken_and_keeps_its_styles() -> None:
    lines = list(broken([Part("one two ", "red"), Part("x" * 30), Part("\x1b[31m\nlast")], 20))
    assert ["".join(part.text for part in line).rstrip() for line in lines] == [
        "one two",
        "x" * 20,
        "x" * 10 + "\\x1b[31m",
        "last",
    ]
    assert lines[0][0].style == "red"


def test_only_what_differs_is_drawn() -> None:
    def strip(*parts: Part) -> Strip:
        return Strip(segments(parts))

    assert _difference(strip(Part("abc")), strip(Part("abc"))) is None
    assert _difference(strip(Part("abcdef")), strip(Part("abXdef"))) == (2, 3)
    assert _difference(strip(Part("ab"), Part("cd")), strip(Part("abcd"))) is None
    assert _difference(strip(Part("ab"), Part("cd", "red")), strip(Part("ab"), Part("cd"))) == (2, 4)
    assert _difference(strip(Part("漢字b")), strip(Part("漢字c"))) == (4, 5)


def test_a_typed_filter_is_read_both_ways() -> None:
    items = filters.items_of("queue=night 'name=fit *' label=a=b fit")
    assert items == [("queue", "night"), ("name", "fit *"), ("label", "a=b"), ("name", "*fit*")]
    assert filters.items_of(ParsedFilter(tuple(items)).text) == items
    for wrong in ("x=1", "'"):
        with pytest.raises(ValueError, match=r"there is no filter 'x'|cannot be parsed"):
            filters.items_of(wrong)


def test_rates_go_on_from_what_was_read(rows: Rows, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = Rates()
    assert rates.read(connection).whole.minutes == [0] * MINUTES
    assert rates.read(connection).ended == {}
    for n in range(5):
        rows.job("SUCCEEDED", queue="day" if n else "night", finished_at=rows.now)
    asked: list[int] = []
    original = console.ends_by_queue

    def read(opened: Connection, **bounds: int) -> object:
        asked.append(bounds["steps"])
        return original(opened, **bounds)

    monkeypatch.setattr(console, "ends_by_queue", read)
    seen = rates.read(connection)
    assert sum(seen.whole.minutes) == 5
    assert sum(seen.of("day").minutes) == 4
    assert sum(seen.of("nobody").minutes) == 0
    assert seen.ended == {JobState.SUCCEEDED: 5}
    # What was read is not forgotten when it is not read again.
    execute(connection, "DELETE FROM rythmiq.jobs")
    assert sum(rates.read(connection).whole.minutes) == 5
    assert max(asked) < 12


def test_ends_of_half_an_hour_are_there_at_the_first_look(rows: Rows, connection: Connection) -> None:
    for minutes in (1, 5, 20, 50):
        rows.job("FAILED", finished_at=rows.ago(minutes * 60))
    seen = Rates().read(connection)
    assert seen.ended == {JobState.FAILED: 3}
    assert [jobs for jobs in seen.whole.minutes if jobs] == [1, 1, 1]


def test_queues_are_counted_by_an_index(connection: Connection) -> None:
    execute(
        connection,
        "INSERT INTO rythmiq.jobs (job_id, queue, priority, spec, state)"
        " SELECT rythmiq.new_job_id(), 'queue-' || n %% 5, n %% 3, '{\"command\": \"true\"}',"
        " CASE WHEN n %% 100 = 0 THEN 'RETRYING' ELSE 'QUEUED' END FROM generate_series(1, %s) AS n",
        20_000,
    )
    execute(connection, "VACUUM ANALYZE rythmiq.jobs")
    found = console.queues(connection)
    assert [(each.queue, each.queued, each.retrying, each.bounded) for each in found] == [
        ("queue-0", 3800, 200, False),
        *((f"queue-{n}", 4000, 0, False) for n in range(1, 5)),
    ]
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN " + console._SQL["queues"], {"most": 10_000, "queues": 200})
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert plan.count("Index Only Scan using jobs_lanes") == 3
    assert "Seq Scan on jobs" not in plan


def test_the_thread_tells_what_is_wrong_and_goes_on() -> None:
    told: list[Seen] = []
    came = threading.Event()

    def tell(seen: Seen) -> None:
        told.append(seen)
        came.set()

    watcher = Watcher(tell, interval_s=60)
    watcher.start()
    looks: list[Callable[[], object]] = [fails, lambda: 7]
    for look in looks:
        came.clear()
        watcher.want(look)
        assert came.wait(20)
        assert told[-1].look is look
    watcher.end()
    assert [seen.found for seen in told] == [None, 7]
    assert told[0].fault == "Postgres does not answer"


def fails() -> object:
    raise DatabaseUnavailable("Postgres does not answer")


def test_a_fault_never_quotes_a_row() -> None:
    def gone() -> object:
        raise NotFound("There is no such job")

    def odd() -> object:
        raise KeyError("canary")

    assert told_of(gone).gone
    fault = told_of(odd).fault
    assert fault is not None
    assert fault.startswith("an internal fault of this program: KeyError at test_top_parts:")
    assert "canary" not in fault
