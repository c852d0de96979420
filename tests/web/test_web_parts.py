"""The parts of the console that need no database: words, charts, filters, time lines, what a file may be shown as."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from samples import NOW, job
from web_rows import HOSTILE, LONG

from rythmiq_ray.console import formatting
from rythmiq_ray.console.filters import ParsedFilter
from rythmiq_ray.model import Artifact, JobState, Phase, RemoteStatus
from rythmiq_ray.queue.connection import EARLIEST, LATEST
from rythmiq_ray.queue.console import Point, id_at
from rythmiq_ray.queue.inspect import Attempt
from rythmiq_ray.web import charts, files, members, times
from rythmiq_ray.web.charts import Column, Part, Scale
from rythmiq_ray.web.members import Gauge
from rythmiq_ray.web.pages.job import time_lines


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "\u2013"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (3600, "1 h"),
        (273600, "3 d 4 h"),
        (-5, "in 5.0 s"),
        (8.64e9, "100,000 d"),
    ],
)
def test_durations_have_units(seconds: float | None, said: str) -> None:
    assert formatting.duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "\u2013"),
        (0, "0 credits"),
        (0.00001, "<0.0001 credits"),
        (0.0123, "0.0123 credits"),
        (12.345, "12.35 credits"),
        (1234567.0, "1,234,567.00 credits"),
    ],
)
def test_costs_have_units(value: float | None, said: str) -> None:
    assert formatting.credits(value) == said


def test_numbers_sizes_and_counts() -> None:
    assert formatting.number(1234567) == "1,234,567"
    assert formatting.number(20000, bounded=True) == "20,000+"
    assert [formatting.measure(n) for n in (0, 0.98765, 1e-9, 123456, 1e12)] == [
        "0",
        "0.9877",
        "1e-09",
        "123,456",
        "1e+12",
    ]
    assert [formatting.size(n) for n in (None, 0, 1023, 1024, 5 * 1024**4)] == [
        "\u2013",
        "0 B",
        "1023 B",
        "1.0 KiB",
        "5.0 TiB",
    ]
    assert formatting.plural(1, "job") == "1 job"
    assert formatting.plural(1200, "job") == "1,200 jobs"


def test_times_say_their_zone() -> None:
    assert times.moment(NOW) == '<time datetime="2026-01-07T10:30:00Z">2026-01-07 10:30:00 UTC</time>'
    ago = times.ago(NOW, NOW + timedelta(minutes=5))
    assert ago == '<time datetime="2026-01-07T10:30:00Z" title="2026-01-07 10:30:00 UTC">5 min ago</time>'
    assert "in 3 h" in times.ago(NOW + timedelta(hours=3), NOW)
    assert times.ago(None) == times.moment(None) == "\u2013"
    assert times.ago(EARLIEST) == "long ago"
    assert times.moment(LATEST) == "never"


def test_no_character_of_a_name_is_unseen() -> None:
    assert formatting.visible("a\u202eb\x1b[2J\x7f\u200b") == "a\\u202eb\\x1b[2J\\x7f\\u200b"
    assert formatting.visible("\u05e9\u05dc\u05d5\u05dd \u0434\u0430") == "\u05e9\u05dc\u05d5\u05dd \u0434\u0430"
    assert formatting.visible("a\nb\tc\r\n") == "a\nb\tc\n"
    assert formatting.visible(None) == formatting.visible("") == "\u2013"


# ------------------------------------------------------------------------------------------------------------- charts


def test_a_chart_has_no_text_but_escaped() -> None:
    drawn = [
        charts.strip([Part("s-failed", 1, HOSTILE)], HOSTILE),
        charts.columns([Column(NOW, {"cost": 1.0}, HOSTILE)], HOSTILE),
        charts.cells({"q1": [(0, 0)]}, 1, 1, HOSTILE),
        charts.dots({"q1": [(0.5, 0.5)]}, HOSTILE),
        charts.shares({"FAILED": 1}, HOSTILE),
    ]
    for svg in drawn:
        assert "<script" not in svg
        assert "<img" not in svg
        assert "style=" not in svg, "the content policy would take it off"
        assert svg.count("<svg") == 1
        assert 'role="img"' in svg


def test_what_there_is_at_all_is_seen_in_a_strip() -> None:
    widths = [
        float(w)
        for w in re.findall(
            r'width="([\d.]+)" height="14">',
            charts.strip([Part("a", 1_000_000, ""), Part("b", 1, ""), Part("c", 0, "")], ""),
        )
    ]
    assert len(widths) == 2
    assert widths[1] >= 4
    assert sum(widths) <= 1000.01


@pytest.mark.parametrize(
    "values", [[1.0], [0.0, 0.0], [-5, 5], [1e-300, 1e300], [1e299, -1e299], [1, 2, float("nan"), float("inf")]]
)
def test_a_scale_takes_any_numbers(values: list[float]) -> None:
    scale = Scale.of(values)
    assert scale is not None
    for value in values:
        assert re.fullmatch(r"q[0-7]|none", scale.bin(value))
    assert 0 <= scale.place(scale.low) <= scale.place(scale.high) <= 1
    assert Scale.of([]) is None


def test_numbers_that_spread_far_are_shown_by_their_logarithm() -> None:
    scale = Scale.of([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])
    assert scale is not None
    assert scale.place(1e-3) == pytest.approx(0.5)
    assert scale.at(0.5) == pytest.approx(1e-3)
    even = Scale.of([0.001, *(n / 100 for n in range(1, 100))])
    assert even is not None
    assert not even.log, "one that is small among many that are not"


# ------------------------------------------------------------------------------------------------------------ members


def point(place: int, state: str = "SUCCEEDED", seconds: float | None = 1.0, **params: str) -> Point:
    return Point(uuid4(), place, JobState(state), None, params, 0.01, None, seconds)


def grid(across: int, down: int) -> list[Point]:
    return [point(y * across + x, LR=str(10.0**-x), SEED=str(y)) for y in range(down) for x in range(across)]


def test_parameters_are_ordered_as_numbers_where_they_are() -> None:
    points = [
        point(n, LR=lr, NAME=name, SAME="1") for n, (lr, name) in enumerate([("10", "b"), ("9", "a"), ("1e-3", "a")])
    ]
    axes = members.parameters(points)
    assert [(axis.name, list(axis.values), axis.numeric) for axis in axes] == [
        ("LR", ["1e-3", "9", "10"], True),
        ("NAME", ["a", "b"], False),
    ]


def test_two_parameters_are_a_heat_map_one_is_a_scatter_none_is_an_order() -> None:
    points = grid(3, 4)
    axes = members.parameters(points)
    heat = members.picture(points, axes, x="LR", y="SEED")
    assert (heat.kind, heat.across, heat.down, len(heat.data)) == ("heat", 3, 4, 12)
    assert heat.x_ticks == ["0.01", "0.1", "1.0"]
    assert [legend.said for legend in heat.legend] == ["SUCCEEDED 12"]
    scatter = members.picture(points, axes, x="LR", height=Gauge(lambda p: p.seconds, formatting.duration))
    assert (scatter.kind, len(scatter.data)) == ("scatter", 12)
    assert members.picture(points, axes).kind == "places"
    assert members.picture(points, axes, x="LR", y="LR").kind == "places"


def test_a_cell_of_several_members_has_the_worst_state_or_their_mean() -> None:
    points = [
        point(0, LR="1", SEED="1", seconds=1.0),
        point(1, "FAILED", LR="1", SEED="1", seconds=3.0),
        point(2, LR="2", SEED="2", seconds=9.0),
    ]
    axes = members.parameters(points)
    by_state = members.picture(points, axes, x="LR", y="SEED")
    assert by_state.svg.count("<path") == 2
    assert 's-failed" d="M0' in by_state.svg
    by_time = members.picture(points, axes, x="LR", y="SEED", colour=Gauge(lambda p: p.seconds, formatting.duration))
    assert 'class="q0" d="M0' in by_time.svg
    assert 'class="q7" d="M1' in by_time.svg


def test_members_without_a_parameter_or_a_number_are_left_out() -> None:
    points = [point(0, LR="1"), point(1, LR="2", seconds=None), point(2), point(3, "RUNNING", seconds=None, LR="3")]
    axes = members.parameters(points)
    gauge = Gauge(lambda p: p.seconds, formatting.duration)
    assert [row[0] for row in members.picture(points, axes, x="LR", height=gauge).data] == [0]
    nothing = members.picture(points[1:2], axes, x="LR", height=gauge, colour=gauge)
    assert nothing.data == []
    assert list(nothing.legend) == []


def test_ten_thousand_members_are_a_small_picture() -> None:
    points = grid(100, 100)
    picture = members.picture(points, members.parameters(points), x="LR", y="SEED", colour=Gauge(lambda p: p.place))
    assert len(picture.svg) < 300_000
    assert len(picture.data) == 10_000


# --------------------------------------------------------------------------------------------------------- time lines


def attempt(
    number: int, start_s: float, *, state: JobState = JobState.FAILED, end_s: float | None = 100, **changes: Any
) -> Attempt:
    at = NOW + timedelta(seconds=start_s)
    values: dict[str, Any] = {
        "attempt": number,
        "state": state,
        "remote_path": "x",
        "remote_id": 1,
        "remote_status": None,
        "exit_code": None,
        "error_code": None,
        "error_message": None,
        "retryable": None,
        "artifact_uri": None,
        "cost_credits": None,
        "started_at": at,
        "finished_at": None if end_s is None else at + timedelta(seconds=end_s),
        "cleaned_at": None,
    }
    return Attempt(**values | changes)


def stages(lines: Sequence[Any]) -> list[list[tuple[str, float]]]:
    return [[(each.stage, each.seconds) for each in line.stretches] for line in lines]


def test_a_time_line_has_each_phase_that_rows_tell_of() -> None:
    at = [NOW + timedelta(seconds=s) for s in (10, 12, 40, 90)]
    first = attempt(1, 10, submitted_at=at[1], running_at=at[2], ended_at=at[3], end_s=85)
    second = attempt(2, 125, state=JobState.RUNNING, end_s=None)
    row = job(
        attempt=2,
        started_at=NOW + timedelta(seconds=125),
        submitted_at=NOW + timedelta(seconds=127),
        phase=Phase.WAITING,
        remote_status=RemoteStatus.PENDING,
    )
    found = stages(time_lines(row, [first, second], NOW + timedelta(seconds=187)))
    parts = [("submitting", 2), ("PENDING", 28), ("RUNNING", 50), ("syncing, collecting", 5)]
    assert found[1] == parts
    assert found[2] == [("submitting", 2), ("PENDING", 60)]
    assert found[0] == [("queued", 10), ("submitting", 4), ("PENDING", 88), *parts[2:], ("waiting to retry", 30)]


@pytest.mark.parametrize(
    ("state", "stage"),
    [
        (JobState.QUEUED, "queued"),
        (JobState.BLOCKED, "blocked"),
        (JobState.RETRYING, "queued"),
        (JobState.CANCELLED, "queued"),
    ],
)
def test_a_job_that_never_started_has_waited(state: JobState, stage: str) -> None:
    row = job(state=state, phase=None, attempt=0, finished_at=NOW + timedelta(seconds=60) if state.finished else None)
    assert stages(time_lines(row, [], NOW + timedelta(seconds=60))) == [[(stage, 60)]]


def test_odd_times_make_no_fault() -> None:
    row = job(created_at=LATEST, state=JobState.FAILED, phase=None, finished_at=EARLIEST)
    odd = attempt(1, 0, submitted_at=EARLIEST, running_at=LATEST, ended_at=NOW - timedelta(days=9))
    assert time_lines(row, [odd], NOW)


# -------------------------------------------------------------------------------------------------- files and filters


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.png", "picture"),
        ("A.JPG", "picture"),
        ("x.svg", "text"),
        ("x.html", "text"),
        ("t.csv", "table"),
        ("t.parquet", "table"),
        ("score.json", "table"),
        ("log.txt", "text"),
        ("Makefile", "text"),
        ("model.bin", ""),
        ("x.png.exe", ""),
        ("x.tar.gz", ""),
    ],
)
def test_what_a_file_is_shown_as(name: str, kind: str) -> None:
    assert files.kind_of(name, 100) == kind
    if kind == "picture":
        assert files.kind_of(name, 10**9) == ""


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        HOSTILE,
        LONG,
        'x".html',
        "a\r\nX: y.txt",
        "\u202efdp.exe",
        "\ud83d\ude00.csv".encode("utf-16", "surrogatepass").decode("utf-16"),
    ],
)
def test_headers_of_a_file_are_one_line_of_ascii(name: str) -> None:
    file = Artifact(name=name, uri="file:///x", bytes=1, sha256="", content_type="text/html")
    for show in (True, False):
        kind, headers = files.headers_of(file, show=show)
        assert kind in {"application/octet-stream", *files.PICTURES.values()}
        for value in headers.values():
            assert value.isascii()
            assert value.isprintable()


def test_filters_go_into_a_query_and_a_command() -> None:
    asked = ParsedFilter((("state", "failed"), ("name", "a b*"), ("label", "k=v&w")))
    assert asked.query == "state=failed&name=a+b%2A&label=k%3Dv%26w"
    assert asked.command == "--state failed --name 'a b*' --label 'k=v&w'"
    assert asked.toggled("state", "queued") == "name=a+b%2A&label=k%3Dv%26w&state=failed&state=queued"
    assert asked.toggled("state", "failed") == "name=a+b%2A&label=k%3Dv%26w"


def test_ids_of_a_time_sort_as_it_does() -> None:
    at = datetime(2026, 1, 7, tzinfo=UTC)
    assert id_at(at) < id_at(at + timedelta(milliseconds=1)) < UUID("f" * 32)
