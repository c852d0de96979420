"""Shows jobs' files in a browser. They are not trusted: only pictures, tables and text are shown.

A file is sent as a download, of a type that nothing is run of. Pictures alone are sent to be shown; SVG and HTML are no
pictures here, because a browser runs what is in them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from rythmiq_ray import access, results
from rythmiq_ray.artifacts import is_own, read_manifest
from rythmiq_ray.console.database import Database
from rythmiq_ray.errors import NotFound
from rythmiq_ray.model import Artifact
from rythmiq_ray.queue import inspect

PICTURES: Final = MappingProxyType(
    {
        ".png": "image/png",
        ".jpg": "image/jpeg",
        ".jpeg": "image/jpeg",
        ".gif": "image/gif",
        ".webp": "image/webp",
        ".avif": "image/avif",
        ".bmp": "image/bmp",
    }
)
"""Image formats that cannot contain scripts."""
_TABLES: Final = frozenset({".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet"})
_TEXT: Final = frozenset(
    (
        *(".txt", ".log", ".out", ".err", ".md", ".tex", ".py", ".r", ".jl", ".sh", ".sql", ".js", ".css"),
        *(".yaml", ".yml", ".toml", ".ini", ".cfg", ".xml", ".html", ".htm", ".svg"),
    )
)
MOST_PICTURE: Final = 32 * 1024 * 1024
MOST_TEXT: Final = 64 * 1024
MOST_TABLE: Final = 8 * 1024 * 1024
MOST_ROWS: Final = 200
MOST_COLUMNS: Final = 40


def kind_of(name: str, size: int) -> str:
    """How a file can be shown in place: ``picture``, ``table`` or ``text``; empty = not at all."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PICTURES and size <= MOST_PICTURE:
        return "picture"
    if suffix in _TABLES and size <= MOST_TABLE:
        return "table"
    return "text" if suffix in _TEXT or not suffix or suffix in _TABLES - {".parquet"} else ""


def file_of(database: Database, job_id: UUID, attempt: int, name: str) -> Artifact:
    """A stored file of an attempt. Raises NotFound, also if its row names a file that is not the job's."""
    with database.read() as connection:
        files = inspect.artifacts(connection, job_id, attempt)
    for _, file in files:
        if file.name == name:
            if not is_own(file.uri, job_id):
                raise NotFound("The row of this file names a place that is not this job's own")
            return file
    raise NotFound(f"Attempt {attempt} of job {job_id} stored no such file")


def headers_of(file: Artifact, *, show: bool) -> tuple[str, dict[str, str]]:
    """The content type and headers for a file: a picture is shown if ``show`` asks for it, all else is a download."""
    suffix = PurePosixPath(file.name).suffix.lower()
    picture = show and suffix in PICTURES
    last = PurePosixPath(file.name).name
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-+@ ") else "_" for c in last)[-150:] or "file"
    how = "inline" if picture else "attachment"
    disposition = f"{how}; filename=\"{plain}\"; filename*=UTF-8''{quote(last, safe='')}"
    return PICTURES[suffix] if picture else "application/octet-stream", {
        "Content-Disposition": disposition,
        "Content-Length": str(file.bytes),
    }


def stream(file: Artifact) -> Iterator[bytes]:
    """Its bytes; raises NotFound or StoreUnavailable before the first."""
    chunks = access.read(file.uri)
    first = next(chunks, b"")

    def rest() -> Iterator[bytes]:
        yield first
        yield from chunks

    return rest()


@dataclass(frozen=True)
class Table:
    """A file's rows, as much as is shown."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    more_rows: bool
    more_columns: int


@dataclass(frozen=True)
class Text:
    """The beginning of a file."""

    text: str
    more: int
    """Bytes that are not shown."""


def preview(file: Artifact) -> Table | Text | None:
    """A file as a table, else as text; None for one that is neither. Raises NotFound and StoreUnavailable."""
    kind = kind_of(file.name, file.bytes)
    if kind == "table":
        try:
            table = _table(file)
        except (ValueError, RecursionError, csv.Error):
            table = None
        if table is not None or file.name.lower().endswith(".parquet"):
            return table
    return _text(file) if kind in ("text", "table") else None


def _text(file: Artifact) -> Text | None:
    data = b""
    for chunk in access.read(file.uri):
        data += chunk
        if len(data) >= MOST_TEXT:
            break
    data = data[:MOST_TEXT]
    if b"\0" in data:
        return None
    return Text(data.decode("utf-8", "replace"), max(0, file.bytes - len(data)))


def _table(file: Artifact) -> Table | None:
    suffix = PurePosixPath(file.name).suffix.lower()
    if suffix == ".parquet":
        return _parquet(file)
    if suffix in (".csv", ".tsv"):
        text = b"".join(access.read(file.uri)).decode("utf-8-sig", "replace")
        reader = csv.reader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ",")
        lines = []
        for line in reader:
            lines.append(line)
            if len(lines) > MOST_ROWS + 1:
                break
        return _cut(lines[0], lines[1:]) if lines and len(lines[0]) > 1 else None
    rows = results.fields_of(file, access.read)
    columns = list(dict.fromkeys(name for row in rows[: MOST_ROWS + 1] for name in row))
    return _cut(columns, [[row.get(name) for name in columns] for row in rows[: MOST_ROWS + 1]])


def _parquet(file: Artifact) -> Table | None:
    try:
        from pyarrow import parquet  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ModuleNotFoundError:
        return None
    table = parquet.ParquetFile(io.BytesIO(b"".join(access.read(file.uri))))
    batch = next(table.iter_batches(batch_size=MOST_ROWS + 1), None)
    rows = [] if batch is None else batch.to_pylist()
    names = [str(name) for name in table.schema_arrow.names]
    return _cut(names, [[row.get(name) for name in names] for row in rows])


def _cut(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    return Table(
        [str(name)[:200] for name in columns[:MOST_COLUMNS]],
        [[_cell(value) for value in row[:MOST_COLUMNS]] for row in rows[:MOST_ROWS]],
        more_rows=len(rows) > MOST_ROWS,
        more_columns=max(0, len(columns) - MOST_COLUMNS),
    )


def _cell(value: Any) -> str:
    try:
        text = results.cell(value)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= 500 else f"{text[:500]}…"


def inputs_of(manifest_uri: str, job_id: UUID) -> list[dict[str, Any]]:
    """An attempt's inputs with their hashes, as its manifest has them. Raises NotFound and StoreUnavailable."""
    if not is_own(manifest_uri, job_id):
        raise NotFound("The row names a manifest that is not this job's own")
    try:
        found = read_manifest(access.store_of(manifest_uri), manifest_uri)
    except (ValueError, RecursionError):
        raise NotFound("The manifest cannot be read") from None
    items = found.get("inputs", []) if isinstance(found, dict) else []
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def as_json(data: object) -> str:
    """JSON that may stand in a page's data, not in its markup."""
    return json.dumps(data, separators=(",", ":"))
