"""Results of many jobs as one table: parameters, state, time, cost, and the fields of an output file of each."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final
from uuid import UUID

from rythmiq_ray.errors import RythmiqError
from rythmiq_ray.model import Artifact, Job

MOST_BYTES: Final = 16 * 1024 * 1024
"""The largest file that goes into a table."""
_AT_ONCE: Final = 16
_DEEPEST: Final = 5
_OWN: Final = frozenset({"name", "state", "seconds", "credits"})
"""Columns of the job itself."""
_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?|NaN|-?Infinity")
"""A number of JSON. Python reads 007 and 2024_01 as numbers too, but they are names."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Gathered:
    """The rows, and faults: a sentence for each file that could not be read."""

    rows: list[Row]
    faults: list[str]

    @property
    def columns(self) -> list[str]:
        """All names, in the order in which they first come."""
        return list(dict.fromkeys(name for row in self.rows for name in row))


def seconds_of(job: Job) -> float | None:
    """How many seconds the command ran by the service's status, else from claim to end; None before the end."""
    end = job.ended_at or job.finished_at
    start = job.running_at or job.started_at
    return None if end is None or start is None else max(0.0, (end - start).total_seconds())


def gather(
    members: Sequence[Job],
    files: Mapping[UUID, Artifact],
    read: Callable[[str], Iterable[bytes]],
    progress: Callable[[], object] = lambda: None,
) -> Gathered:
    """A row for each member, or several if its file has several records. ``files``: the file of each member with one.

    ``read`` streams the content of a URI. A member without a file has a row without the file's fields.
    """
    faults: list[str] = []

    def rows_of(job: Job) -> list[Row]:
        about: Row = {} if job.name is None else {"name": job.name}
        about |= {(f"params.{name}" if name in _OWN else name): value for name, value in (job.params or {}).items()}
        about |= {"state": str(job.state), "seconds": seconds_of(job), "credits": job.cost_credits}
        file = files.get(job.job_id)
        if file is None:
            return [about]
        try:
            return [_joined(about, fields, file.name) for fields in fields_of(file, read)] or [about]
        except (RythmiqError, ValueError, RecursionError) as error:
            said = error.message if isinstance(error, RythmiqError) else f"cannot be read: {error}"
            faults.append(f"{job.name or job.job_id}: {file.name}: {said}")
            return [about]
        finally:
            progress()

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return Gathered([row for rows in pool.map(rows_of, members) for row in rows], faults)


def _joined(about: Row, fields: Row, file: str) -> Row:
    stem = PurePosixPath(file).stem
    return about | {(f"{stem}.{name}" if name in about else name): value for name, value in fields.items()}


def fields_of(file: Artifact, read: Callable[[str], Iterable[bytes]]) -> list[Row]:
    """The rows of a JSON, JSON Lines, CSV or TSV file; of any other file its text, as a number if it is one.

    Raises ValueError, RecursionError, and whatever ``read`` raises.
    """
    if file.bytes > MOST_BYTES:
        raise ValueError(f"has {file.bytes:,} bytes; the most for a table is {MOST_BYTES:,}")
    text = b"".join(read(file.uri)).decode("utf-8-sig")
    path = PurePosixPath(file.name)
    match path.suffix.lower():
        case ".json":
            return _of_json(json.loads(text), path.stem)
        case ".jsonl" | ".ndjson":
            return [row for line in text.splitlines() if line.strip() for row in _of_json(json.loads(line), path.stem)]
        case ".csv" | ".tsv":
            delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
            return [
                {name: _number(value) for name, value in row.items() if isinstance(name, str)}
                for row in csv.DictReader(io.StringIO(text), delimiter=delimiter)
            ]
    return [{path.stem: _number(text.strip())}]


def _of_json(data: Any, name: str) -> list[Row]:
    if isinstance(data, dict):
        return [_flat(data)]
    if isinstance(data, list) and data and all(isinstance(item, dict) for item in data):
        return [_flat(item) for item in data]
    return [{name: data}]


def _flat(data: Mapping[str, Any], prefix: str = "", depth: int = 1) -> Row:
    """Flattens nested objects to ``outer.inner``; lists stay as they are."""
    row: Row = {}
    for name, value in data.items():
        if isinstance(value, dict) and depth < _DEEPEST:
            row |= _flat(value, f"{prefix}{name}.", depth + 1)
        else:
            row[f"{prefix}{name}"] = value
    return row


def _number(text: Any) -> Any:
    if isinstance(text, str) and _NUMBER.fullmatch(text):
        with suppress(ValueError):  # of more digits than Python reads
            return json.loads(text)
    return text


def cell(value: object) -> str:
    """A value as text for a CSV file or a table: empty for None, JSON for lists and objects."""
    if value is None:
        return ""
    return json.dumps(value) if isinstance(value, list | dict | bool) else str(value)
