"""What the filters of the command line mean, and how listings fit a terminal."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
import typer
from samples import job

from rythmiq_ray.cli import output
from rythmiq_ray.cli.artifacts import folder_of
from rythmiq_ray.cli.filters import time_of
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.filtering import labels_of
from rythmiq_ray.inputs import regex_of
from rythmiq_ray.queue.listing import pattern_of

NOW = datetime(2026, 1, 7, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("lr-*", ["lr-", "lr-1 x/y"], ["xlr-1", "lr"]),
        ("a?c", ["abc"], ["ac", "abbc"]),
        ("[!ab]x", ["cx"], ["ax", "cxx"]),
        ("[a-c]", ["b"], ["d"]),
        ("a.b(c)+$^{}|\\", ["a.b(c)+$^{}|\\"], ["aXb(c)+$^{}|\\"]),
        ("[", ["["], ["x"]),
    ],
)
def test_a_glob_of_names_matches_the_whole_name(glob: str, yes: list[str], no: list[str]) -> None:
    pattern = re.compile(pattern_of(glob), re.DOTALL)
    assert all(pattern.search(text) for text in yes)
    assert not any(pattern.search(text) for text in no)


@pytest.mark.parametrize(
    ("glob", "yes", "no"),
    [
        ("*.csv", ["a.csv"], ["d/a.csv", "a.csv.gz"]),
        ("**/*.csv", ["a.csv", "d/e/a.csv"], ["a.txt"]),
        ("out/**", ["out/a", "out/b/c"], ["outs/a"]),
        ("a+b.c", ["a+b.c"], ["aab.c"]),
    ],
)
def test_a_glob_of_files_knows_folders(glob: str, yes: list[str], no: list[str]) -> None:
    pattern = re.compile(regex_of(glob))
    assert all(pattern.fullmatch(text) for text in yes)
    assert not any(pattern.fullmatch(text) for text in no)


def test_a_time_is_an_age_or_a_date() -> None:
    assert time_of("2h", "--since", NOW) == NOW - timedelta(hours=2)
    assert time_of("2026-01-07T10:30:00+00:00", "--since") == datetime(2026, 1, 7, 10, 30, tzinfo=UTC)
    assert time_of("2026-01-07", "--since").date().isoformat() == "2026-01-07"
    with pytest.raises(typer.BadParameter):
        time_of("yesterday", "--since")


def test_labels_are_pairs() -> None:
    assert labels_of(["a=1", "b=x=y", "c="]) == {"a": "1", "b": "x=y", "c": ""}
    with pytest.raises(InvalidJob, match=r"label\[0\]: must be K=V"):
        labels_of(["a"])
    with pytest.raises(InvalidJob, match="there twice"):
        labels_of(["a=1", "a=2"])


def test_ids_are_as_short_as_tells_them_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [UUID("01a21896-4845-7db0-824d-b632b8bca4ff"), UUID("01a21896-4845-7db1-a81b-629da631e67f")]
    monkeypatch.setattr(output, "width", lambda: 80)
    assert list(output.shortened(ids).values()) == ["01a21896-4845-7db0", "01a21896-4845-7db1"]
    assert output.shortened(ids[:1])[ids[0]] == "01a21896"
    monkeypatch.setattr(output, "width", lambda: None)
    assert output.shortened(ids)[ids[0]] == str(ids[0]), "in a pipe they are whole"


def test_of_an_error_the_end_is_kept() -> None:
    cell = output.Tail("fit: command_failed: ", "x" * 100 + " the cause")
    assert cell.cut(50).startswith("fit: command_failed: …")
    assert cell.cut(50).endswith(" the cause")
    assert len(cell.cut(50)) == 50
    assert len(cell.cut(5)) == 5


@pytest.mark.parametrize("width", [80, 120])
def test_listings_fit_with_what_matters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], width: int
) -> None:
    from rythmiq_ray.cli import jobs
    from rythmiq_ray.model import JobState

    monkeypatch.setattr(output, "width", lambda: width)
    found = [
        job(
            UUID(int=(0x01A218964845_7DB0 << 64 | 0x8 << 60) + (at << 64)),
            state=JobState.FAILED,
            phase=None,
            queue="q" * 90,
            user_id="u" * 90,
            name="a long name of a member" * 3,
            error_code="command_failed",
            error_message="Traceback " + "." * 300 + " ValueError: the cause",
        )
        for at in range(3)
    ]
    columns, data = jobs._listing(found, wide=width >= jobs._WIDE)
    output.rows(columns, data)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    body = lines[-3:]
    assert len({line.split()[0] for line in body}) == 3, "ids tell jobs apart"
    assert all("FAILED" in line and "command_failed" in line for line in body)
    assert all(line.rstrip().endswith("cause") for line in body)


def test_a_folder_of_a_member_says_which_and_stays_inside() -> None:
    member = job(group_index=3, params={"LR": "0.1", "P": "../../etc"}, name="fit/x")
    assert folder_of(member) == "0003_fit_x_LR=0.1_P=.._.._etc"
    assert folder_of(job(group_index=0, name="." * 200)).startswith("0000")
