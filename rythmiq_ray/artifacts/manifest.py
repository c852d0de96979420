"""``manifest.json``: a record of an attempt's files, written last, for programs that do not read the database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, BinaryIO, Final, Protocol, cast
from uuid import UUID

from rythmiq_ray.model import Artifact, JobState

_encode: Final = json.JSONEncoder(ensure_ascii=False).encode


class Readable(Protocol):
    @property
    def open(self) -> Callable[[str], AbstractContextManager[BinaryIO]]: ...


def manifest(
    *,
    job_id: UUID,
    attempt: int,
    state: JobState,
    exit_code: int | None,
    remote_id: int,
    started_at: datetime | None,
    finished_at: datetime | None,
    artifacts: Iterable[Artifact],
    warnings: Sequence[str] = (),
    inputs: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The content of ``manifest.json``, version 1; times are RFC 3339 in UTC with a Z.

    ``inputs``, each with name, uri, bytes and sha256, and ``warnings`` are there only if any.
    """
    return {
        "version": 1,
        "job_id": str(job_id),
        "attempt": attempt,
        "state": str(state),
        "exit_code": exit_code,
        "remote_id": remote_id,
        "started_at": _rfc3339(started_at),
        "finished_at": _rfc3339(finished_at),
        "artifacts": [
            {
                "name": artifact.name,
                "uri": artifact.uri,
                "bytes": artifact.bytes,
                "sha256": artifact.sha256,
                "content_type": artifact.content_type,
            }
            for artifact in artifacts
        ],
    } | {name: list(items) for name, items in (("inputs", inputs), ("warnings", warnings)) if items}


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The manifest as JSON, a line for each field and artifact. The json module's indentation is ten times slower."""
    fields = [f"{_encode(name)}: {_encode(value)}" for name, value in manifest.items() if name != "artifacts"]
    artifacts = ",\n".join(map(_encode, manifest.get("artifacts", ())))
    fields.append(f'"artifacts": [\n{artifacts}\n]')
    return ("{\n" + ",\n".join(fields) + "\n}\n").encode()


def read_manifest(store: Readable, uri: str) -> dict[str, Any]:
    """Reads a manifest; raises NotFound, StoreUnavailable, or ValueError if it is not JSON."""
    with store.open(uri) as file:
        return cast("dict[str, Any]", json.loads(file.read()))


def _rfc3339(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat().replace("+00:00", "Z")
