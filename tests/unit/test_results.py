"""Results of many jobs as one table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from samples import job

from rythmiq_ray.errors import StoreUnavailable
from rythmiq_ray.model import Artifact, Job, JobState
from rythmiq_ray.results import MOST_BYTES, cell, gather


def table(file: str, content: bytes, **about: object) -> list[dict[str, object]]:
    return gathered([(file, content)], **about)[0]


def gathered(files: list[tuple[str, bytes]], **about: object) -> tuple[list[dict[str, object]], list[str]]:
    members: list[Job] = []
    stored: dict[object, Artifact] = {}
    contents: dict[str, bytes] = {}
    for at, (name, content) in enumerate(files):
        member = replace(job(state=JobState.SUCCEEDED), **{"params": {"N": str(at)}, **about})  # type: ignore[arg-type]
        uri = f"s3://b/{at}"
        contents[uri] = content
        stored[member.job_id] = Artifact(name=name, uri=uri, bytes=len(content), sha256="", content_type="")
        members.append(member)

    def read(uri: str) -> Iterator[bytes]:
        if contents[uri] == b"gone":
            raise StoreUnavailable("the store is away")
        yield contents[uri]

    found = gather(members, stored, read)  # type: ignore[arg-type]
    keep = {"state", "seconds", "credits"}
    return [{name: value for name, value in row.items() if name not in keep} for row in found.rows], found.faults


@pytest.mark.parametrize(
    ("name", "content", "fields"),
    [
        ("score.json", b'{"loss": 0.5, "by": {"step": {"n": 3}}, "l": [1]}', [{"loss": 0.5, "by.step.n": 3, "l": [1]}]),
        ("score.json", b'[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ("score.json", b"7", [{"score": 7}]),
        ("out/rows.jsonl", b'{"a": 1}\n\n{"b": 2}\n', [{"a": 1}, {"b": 2}]),
        ("rows.csv", "\ufeffa,b\n1,x\n2.5,y\n".encode(), [{"a": 1, "b": "x"}, {"a": 2.5, "b": "y"}]),
        ("rows.tsv", b"a\tb\n1\t2\n", [{"a": 1, "b": 2}]),
        ("rows.csv", b"a,b,c,d\n2024_01,007,+1,0x10\n", [{"a": "2024_01", "b": "007", "c": "+1", "d": "0x10"}]),
        ("rows.csv", b"a,b,c\n-1e-3,[1],Infinity\n", [{"a": -0.001, "b": "[1]", "c": float("inf")}]),
        ("value.txt", b" 0.25\n", [{"value": 0.25}]),
        ("word", b"fine", [{"word": "fine"}]),
        ("score.json", b'{"N": 9, "state": "x"}', [{"score.N": 9, "score.state": "x"}]),
    ],
)
def test_the_fields_of_each_kind_of_file(name: str, content: bytes, fields: list[dict[str, object]]) -> None:
    assert table(name, content) == [{"N": "0", **each} for each in fields]


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"gone", b"[" * 100_000])
def test_a_file_that_cannot_be_read_costs_its_row_alone(content: bytes) -> None:
    rows, faults = gathered([("score.json", b'{"loss": 1}'), ("score.json", content), ("score.json", b'{"loss": 2}')])
    assert rows == [{"N": "0", "loss": 1}, {"N": "1"}, {"N": "2", "loss": 2}]
    assert len(faults) == 1
    assert "score.json: " in faults[0]


def test_a_huge_file_is_not_read() -> None:
    member = job()
    file = Artifact(name="x.json", uri="s3://b/x", bytes=MOST_BYTES + 1, sha256="", content_type="")
    found = gather([member], {member.job_id: file}, lambda _uri: pytest.fail("it was read"))
    assert "the most for a table" in found.faults[0]


def test_names_come_first_and_cells_are_plain() -> None:
    assert list(table("score.json", b'{"loss": 1}', name="fit")[0]) == ["name", "N", "loss"]
    assert [cell(value) for value in (None, 1, 1.5, True, [1], "x")] == ["", "1", "1.5", "true", "[1]", "x"]


def test_a_parameter_keeps_its_value_beside_a_column_of_that_name() -> None:
    params = {"state": "Ohio", "seconds": "9", "N": "1"}
    found = gather([replace(job(state=JobState.FAILED), params=params, name="fit")], {}, lambda _uri: [])
    (row,) = found.rows
    assert (row["params.state"], row["params.seconds"], row["N"]) == ("Ohio", "9", "1")
    assert (row["name"], row["state"], row["seconds"]) == ("fit", "FAILED", None)
    assert found.columns == ["name", "params.state", "params.seconds", "N", "state", "seconds", "credits"]
