"""Parameters of a sweep, and the members that they make."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rythmiq_ray import Input, JobSpec, NewJob, grid, zipped
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.sweeps import combined, expand, param_of, read_params


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("LR=0.1,0.01", ["0.1", "0.01"]),
        ("SEED=1..4", ["1", "2", "3", "4"]),
        ("SEED=3..1", ["3", "2", "1"]),
        ("STEP=0..100..50", ["0", "50", "100"]),
        ("N=-1..1", ["-1", "0", "1"]),
        ("MIX=a,1..2,b", ["a", "1", "2", "b"]),
        ("EMPTY=", [""]),
        ("EQ=a=b", ["a=b"]),
        ("V=1.5..2.5", ["1.5..2.5"]),
    ],
)
def test_a_parameter_is_a_list_or_a_range(text: str, values: list[str]) -> None:
    assert param_of(text)[1] == values


@pytest.mark.parametrize(
    "text",
    [
        "LR",
        "1A=2",
        "=3",
        "A B=1",
        "N=1..5..0",
        "N=1..5..-1",
        "N=1..99999999",
        "N=1..99999999999999999999",
        "N=1.." + "9" * 5_000,
        "N=1..2..9999999999999999999999",
    ],
)
def test_a_bad_parameter_is_refused(text: str) -> None:
    with pytest.raises(InvalidJob):
        param_of(text)


def test_a_grid_is_every_combination_and_a_zip_is_not() -> None:
    assert grid(A=[1, 2], B=["x", True]) == [
        {"A": "1", "B": "x"},
        {"A": "1", "B": "true"},
        {"A": "2", "B": "x"},
        {"A": "2", "B": "true"},
    ]
    assert zipped(A=[1, 2], B=range(2)) == [{"A": "1", "B": "0"}, {"A": "2", "B": "1"}]
    with pytest.raises(InvalidJob, match="A has 1, B has 2"):
        zipped(A=[1], B=[1, 2])
    with pytest.raises(InvalidJob, match=re.escape("params.A: must be a list of values, not 'abc'")):
        grid(A="abc")


def test_tables_are_combined_and_a_name_stands_once() -> None:
    assert combined([{"A": "1"}], grid(B=[1, 2])) == [{"A": "1", "B": "1"}, {"A": "1", "B": "2"}]
    with pytest.raises(InvalidJob, match="A: given twice"):
        combined([{"A": "1"}], [{"A": "2"}])


def test_files_of_parameters(tmp_path: Path) -> None:
    table, lines = tmp_path / "cases.csv", tmp_path / "cases.jsonl"
    table.write_text('\ufeffCASE,NOTE\na,"x, y"\nb,\n', encoding="utf-8")
    assert read_params(table) == [{"CASE": "a", "NOTE": "x, y"}, {"CASE": "b", "NOTE": ""}]
    lines.write_text('{"LR": 0.1, "ON": true}\n\n{"ON": "", "LR": [1, 2]}\n')
    assert read_params(lines) == [{"LR": "0.1", "ON": "true"}, {"LR": "[1, 2]", "ON": ""}]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "A,B\n1\n", "x.csv, line 2: has 1 values, and there are 2 names"),
        ("x.csv", "A,B\n1,2,3\n", "x.csv, line 2: has 3 values, and there are 2 names"),
        ("x.csv", "A,A\n1,2\n", "x.csv, line 1: 'A': is there twice"),
        ("x.csv", 'A,B\n1,"2\n', "x.csv, unexpected end of data"),
        ("x.csv", "A,B\n", "holds no parameters"),
        ("x.csv", "", "holds no parameters"),
        ("x.jsonl", '{"A": 1}\n{"A"\n', "x.jsonl, line 2: is not JSON"),
        ("x.jsonl", '{"A": 1}\n\n{"B": 1}\n', "x.jsonl, line 3: has 'B', and the rows before it have 'A'"),
        ("x.jsonl", '{"A": null}\n', "x.jsonl, line 1: 'A': is null"),
        ("x.jsonl", "[" * 100_000, "x.jsonl, line 1: is not JSON: nested too deeply"),
        ("x.jsonl", "[1]\n", "line 1: must be an object"),
        ("none.csv", None, "No such file"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidJob, match=re.escape(said)):
        read_params(tmp_path / name)


def test_places_are_filled_and_quoted_in_the_command_alone() -> None:
    spec = JobSpec(
        command="run {NAME} {other} ${NAME}",
        inputs=(Input(uri="s3://b/{NAME}.csv", name="{NAME}.csv"),),
        outputs=("out/{NAME}/*",),
    )
    (member,) = expand(NewJob(spec=spec, name="fit {NAME}"), [{"NAME": "a b'c"}])
    assert member.spec.command == """run 'a b'"'"'c' {other} $'a b'"'"'c'"""
    assert member.spec.inputs == (Input(uri="s3://b/a b'c.csv", name="a b'c.csv"),)
    assert member.spec.outputs == ("out/a b'c/*",)
    assert member.name == "fit a b'c"
    assert member.params == {"NAME": "a b'c"}


def test_members_without_places_share_one_spec() -> None:
    job = NewJob(spec=JobSpec(command="echo $N"))
    members = list(expand(job, grid(N=range(3))))
    assert all(member.spec is job.spec for member in members)


def test_what_cannot_be_a_sweep_is_refused() -> None:
    with pytest.raises(InvalidJob, match="no members"):
        list(expand(NewJob(spec=JobSpec(command="x")), []))
    with pytest.raises(InvalidJob, match="N: in env or secrets too"):
        list(expand(NewJob(spec=JobSpec(command="x", env={"N": "1"})), grid(N=[1])))
    with pytest.raises(InvalidJob, match="unique_key: applies to a single job"):
        list(expand(NewJob(spec=JobSpec(command="x"), unique_key="k"), grid(N=[1, 2])))


def test_too_many_members_are_refused_before_they_are_made() -> None:
    many = [{"A": "1"}] * 100_000
    for make in (lambda: grid(A=range(100_000), B=range(100_000)), lambda: combined(many, [{"B": "1"}] * 100_000)):
        with pytest.raises(InvalidJob, match="make 10,000,000,000 members; the most is 1,000,000"):
            make()


def test_members_have_the_same_names() -> None:
    with pytest.raises(InvalidJob, match=re.escape("params[1]: must have the same names as params[0]: A")):
        list(expand(NewJob(spec=JobSpec(command="x")), [{"A": "1"}, {"A": "1", "B": "2"}]))
