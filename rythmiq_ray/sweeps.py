"""Sweeps: groups of jobs that differ in their parameters."""

from __future__ import annotations

import csv
import itertools
import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TextIO

from rythmiq_ray.checks import quote
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.model import Input, JobSpec, NewJob

MAX_MEMBERS: Final = 1_000_000
"""The most members of one sweep."""
_PLACE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_RANGE: Final = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_NUMBER: Final = 18
"""In characters; ``len()`` of a range with longer numbers fails."""

Params = dict[str, str]


def grid(**values: Iterable[object]) -> list[Params]:
    """All combinations of the values, the last name varying fastest: ``grid(LR=[0.1, 0.01], SEED=range(9))`` has 18."""
    texts = {name: [text_of(value) for value in _listed(name, each)] for name, each in values.items()}
    _refuse_too_many(texts.values())
    return [dict(zip(texts, combination, strict=True)) for combination in itertools.product(*texts.values())]


def zipped(**values: Iterable[object]) -> list[Params]:
    """The first values together, then the second ones, and so on; raises InvalidJob if their numbers differ."""
    texts = {name: [text_of(value) for value in _listed(name, each)] for name, each in values.items()}
    if len({len(each) for each in texts.values()}) > 1:
        numbers = ", ".join(f"{name} has {len(each)}" for name, each in texts.items())
        raise InvalidJob([f"params: to be zipped they must all have the same number of values: {numbers}"])
    return [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]


def _listed(name: str, values: Iterable[object]) -> Iterable[object]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidJob([f"params.{name}: must be a list of values, not {values!r:.80}"])
    return values


def _refuse_too_many(factors: Iterable[Sized]) -> None:
    """Checked before the members are made, which could need more memory than there is."""
    if (count := math.prod(map(len, factors))) > MAX_MEMBERS:
        raise InvalidJob([f"params: make {count:,} members; the most is {MAX_MEMBERS:,}"])


def text_of(value: object) -> str:
    """A parameter's value as an environment variable: numbers and texts unchanged, booleans as ``true``, ``false``."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, list | dict) else str(value)


def param_of(text: str) -> tuple[str, list[str]]:
    """Parses ``NAME=0.1,0.01``, ``SEED=1..10`` or ``STEP=0..100..25``, both ends included; raises InvalidJob."""
    name, mark, given = text.partition("=")
    if not mark or not _NAME.fullmatch(name):
        raise InvalidJob([f"param {text!r:.80}: must be NAME=VALUE,VALUE or NAME=FIRST..LAST"])
    values: list[str] = []
    for part in given.split(","):
        if (found := _RANGE.fullmatch(part)) is None:
            values.append(part)
            continue
        if max(map(len, filter(None, found.groups()))) > _LONGEST_NUMBER:
            raise InvalidJob([f"param {name}: numbers of a range have at most {_LONGEST_NUMBER} digits"])
        first, last = int(found[1]), int(found[2])
        step = int(found[3] or (1 if last >= first else -1))
        if step == 0 or (last - first) * step < 0:
            raise InvalidJob([f"param {name}: {part} never reaches its end"])
        span = range(first, last + (1 if step > 0 else -1), step)
        if len(span) > MAX_MEMBERS:
            raise InvalidJob([f"param {name}: {part} has {len(span):,} values; the most is {MAX_MEMBERS:,}"])
        values.extend(map(str, span))
    return name, values


def read_params(path: Path) -> list[Params]:
    """The rows of a CSV file with a line of names, or of a JSON Lines file with an object each.

    All rows must have the same names. Raises InvalidJob with the first bad line.
    """
    rows: list[Params] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, row in _csv_rows(file) if path.suffix.lower() == ".csv" else _json_rows(file):
                if rows and row.keys() != rows[0].keys():
                    raise _BadLine(f"line {number}: has {_list(row)}, and the rows before it have {_list(rows[0])}")
                rows.append(row)
    except OSError as error:
        raise InvalidJob([f"{path}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise InvalidJob([f"{path}: is not UTF-8"]) from None
    except (csv.Error, _BadLine) as error:
        raise InvalidJob([f"{path}, {error}"]) from None
    if not rows:
        raise InvalidJob([f"{path}: holds no parameters"])
    return rows


class _BadLine(Exception):
    """``line N: what is wrong with it``."""


def _csv_rows(file: TextIO) -> Iterator[tuple[int, Params]]:
    reader = csv.reader(file, strict=True)
    names = next(reader, [])
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise _BadLine(f"line 1: {_list(twice)}: is there twice")
    for values in reader:
        if not values:
            continue
        if len(values) != len(names):
            raise _BadLine(f"line {reader.line_num}: has {len(values)} values, and there are {len(names)} names")
        yield reader.line_num, dict(zip(names, values, strict=True))


def _json_rows(file: Iterable[str]) -> Iterator[tuple[int, Params]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            said = "nested too deeply" if isinstance(error, RecursionError) else error
            raise _BadLine(f"line {number}: is not JSON: {said}") from None
        if not isinstance(row, dict):
            raise _BadLine(f"line {number}: must be an object")
        if empty := [name for name, value in row.items() if value is None]:
            raise _BadLine(f"line {number}: {_list(empty)}: is null; a parameter needs a value")
        yield number, {name: text_of(value) for name, value in row.items()}


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(quote, names))


def combined(*tables: Sequence[Mapping[str, str]]) -> list[Params]:
    """All combinations of rows of the tables; raises InvalidJob if two tables have a name in common."""
    names = [set(table[0]) if table else set() for table in tables]
    if twice := {name for one, other in itertools.combinations(names, 2) for name in one & other}:
        raise InvalidJob([f"params: {', '.join(sorted(twice))}: given twice"])
    _refuse_too_many(tables)
    return [{name: value for row in rows for name, value in row.items()} for rows in itertools.product(*tables)]


def expand(job: NewJob, rows: Sequence[Mapping[str, str]]) -> Iterator[NewJob]:
    """A member for each row: its parameters are environment variables, and ``{NAME}`` is replaced in command, inputs,
    outputs and name, in the command quoted for the shell. Braces around other text stay. Raises InvalidJob.
    """
    if not rows:
        raise InvalidJob(["params: there are none, so the sweep has no members"])
    _refuse_too_many([rows])
    if job.unique_key is not None:
        raise InvalidJob(["unique_key: applies to a single job, and a sweep has many: leave it out"])
    names = set(rows[0])
    if odd := next((at for at, row in enumerate(rows) if row.keys() != names), None):
        raise InvalidJob([f"params[{odd}]: must have the same names as params[0]: {', '.join(sorted(names))}"])
    if clash := names & (set(job.spec.env) | set(job.spec.secrets)):
        raise InvalidJob([f"params: {', '.join(sorted(clash))}: in env or secrets too"])
    spec = job.spec
    texts = [
        spec.command,
        job.name or "",
        *spec.outputs,
        *(part for item in spec.inputs for part in (item.uri, item.name)),
    ]
    if not any(names.intersection(_PLACE.findall(text)) for text in texts):
        # One spec for all: it is checked and written once.
        # dataclasses.replace would take ten times as long.
        about = {**vars(job), "params": None}
        for row in rows:
            member = object.__new__(NewJob)
            vars(member).update(about, params=dict(row))
            yield member
        return
    for row in rows:
        yield replace(
            job,
            spec=_filled_spec(spec, row),
            name=None if job.name is None else filled(job.name, row),
            params=dict(row),
        )


def _filled_spec(spec: JobSpec, row: Mapping[str, str]) -> JobSpec:
    return replace(
        spec,
        command=filled(spec.command, {name: shlex.quote(value) for name, value in row.items()}),
        inputs=tuple(Input(uri=filled(item.uri, row), name=filled(item.name, row)) for item in spec.inputs),
        outputs=tuple(filled(output, row) for output in spec.outputs),
    )


def filled(text: str, row: Mapping[str, str]) -> str:
    """The text with each ``{NAME}`` of the row replaced."""
    return _PLACE.sub(lambda found: row.get(found[1], found[0]), text)


def has_place(text: str, names: Iterable[str]) -> bool:
    """Whether the text contains ``{NAME}`` for one of the names."""
    return bool(set(names).intersection(_PLACE.findall(text)))


def shown(row: Mapping[str, Any]) -> str:
    """The parameters as text: ``LR=0.1 SEED=3``."""
    return " ".join(f"{name}={value}" for name, value in row.items())
