"""Sweeps: groups of jobs that differ in their parameters."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.model import Input, JobSpec, NewJob

MAX_MEMBERS: Final = 1_000_000
"""The most members of one sweep."""
_PLACE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_RANGE: Final = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?")
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Params = dict[str, str]


def grid(**values: Iterable[object]) -> list[Params]:
    """All combinations of the values, the last name varying fastest: ``grid(LR=[0.1, 0.01], SEED=range(9))`` has 18."""
    texts = {name: [text_of(value) for value in _listed(name, each)] for name, each in values.items()}
    return [dict(zip(texts, combination, strict=True)) for combination in itertools.product(*texts.values())]


def zipped(**values: Iterable[object]) -> list[Params]:
    """The first values together, then the second ones, and so on; raises InvalidJob if their numbers differ."""
    texts = {name: [text_of(value) for value in _listed(name, each)] for name, each in values.items()}
    if len({len(each) for each in texts.values()}) > 1:
        numbers = ", ".join(f"{name} has {len(each)}" for name, each in texts.items())
        raise InvalidJob([f"params: to be zipped they must have as many values each: {numbers}"])
    return [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]


def _listed(name: str, values: Iterable[object]) -> Iterable[object]:
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise InvalidJob([f"params.{name}: must be a list of values, not {values!r:.80}"])
    return values


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

    Raises InvalidJob with a fault for each bad line.
    """
    rows: list[Params] = []
    faults: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() == ".csv":
                reader = csv.DictReader(file, restkey="", strict=True)
                for row in reader:
                    if "" in row or None in row.values():
                        faults.append(f"{path}, line {reader.line_num}: has not as many values as there are names")
                    rows.append({str(name): str(value) for name, value in row.items()})
            else:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        row = json.loads(line)
                        if not isinstance(row, dict):
                            raise InvalidJob([f"{path}, line {number}: must be an object"])
                        rows.append({name: text_of(value) for name, value in row.items()})
    except OSError as error:
        raise InvalidJob([f"{path}: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise InvalidJob([f"{path}: is not UTF-8"]) from None
    except csv.Error as error:
        raise InvalidJob([f"{path}: {error}"]) from None
    except ValueError as error:
        raise InvalidJob([f"{path}, line {number}: is not JSON: {error}"]) from None
    if not rows and not faults:
        faults.append(f"{path}: holds no parameters")
    if faults:
        raise InvalidJob(faults)
    return rows


def combined(*tables: Sequence[Mapping[str, str]]) -> list[Params]:
    """All combinations of rows of the tables; raises InvalidJob if two tables have a name in common."""
    names = [set(table[0]) if table else set() for table in tables]
    if twice := {name for one, other in itertools.combinations(names, 2) for name in one & other}:
        raise InvalidJob([f"params: {', '.join(sorted(twice))}: given twice"])
    return [{name: value for row in rows for name, value in row.items()} for rows in itertools.product(*tables)]


def expand(job: NewJob, rows: Sequence[Mapping[str, str]]) -> Iterator[NewJob]:
    """A member for each row: its parameters are environment variables, and ``{NAME}`` is replaced in command, inputs,
    outputs and name, in the command quoted for the shell. Braces around other text stay. Raises InvalidJob.
    """
    if not rows:
        raise InvalidJob(["params: there are none, so the sweep has no members"])
    if len(rows) > MAX_MEMBERS:
        raise InvalidJob([f"params: make {len(rows):,} members; the most is {MAX_MEMBERS:,}"])
    names = set(rows[0])
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
