"""Reads ``rythmiq-result.json``, which the wrapper writes last. Not trusted: the command could have written it too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

from rythmiq_ray.backends.bundle import RESULT_NAME
from rythmiq_ray.backends.times import time_of
from rythmiq_ray.errors import ArtifactCorrupt
from rythmiq_ray.model import RemoteFile, RemoteResult

_REASONS: Final = ("exited", "timeout", "cancelled")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_VERSION: Final = 1
MAX_RESULT_BYTES: Final = 32 * 1024 * 1024
_MAX_OUTPUTS: Final = 100_000


def read_result(chunks: Iterable[bytes]) -> RemoteResult:
    """Parses the file from pieces, because the command could make it any size. Raises ArtifactCorrupt."""
    raw = bytearray()
    for chunk in chunks:
        raw += chunk
        if len(raw) > MAX_RESULT_BYTES:
            raise ArtifactCorrupt(f"{RESULT_NAME} has more than {MAX_RESULT_BYTES:,} bytes")
    result = parse_result(bytes(raw))
    if result is None:
        raise ArtifactCorrupt(f"{RESULT_NAME} is not what the wrapper writes, or not all of it")
    return result


def parse_result(raw: bytes) -> RemoteResult | None:
    """The result; None if the file is incomplete or is not what the wrapper writes.

    Bytes of a name that are not UTF-8 become lone surrogates (PEP 383). Names are not checked here; check them before
    use. Unknown fields are ignored: a newer wrapper may have written them.
    """
    if len(raw) > MAX_RESULT_BYTES:
        return None
    try:
        return _result(json.loads(raw.decode("utf-8", errors="surrogateescape"), parse_constant=_refuse))
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return None


def _result(data: Any) -> RemoteResult:
    if data["version"] != _VERSION or data["reason"] not in _REASONS:
        raise ValueError
    started_at, finished_at = time_of(data["started_at"]), time_of(data["finished_at"])
    if started_at is None or finished_at is None:
        raise ValueError
    outputs = tuple(_file(item) for item in _list(data["outputs"]))
    if len({file.name for file in outputs}) < len(outputs):
        raise ValueError
    return RemoteResult(
        exit_code=_whole(data["exit_code"], 255),
        reason=data["reason"],
        started_at=started_at,
        finished_at=finished_at,
        log=_file(data["log"]),
        outputs=outputs,
        unmatched=tuple(_text(item) for item in _list(data["unmatched"])),
        warnings=tuple(_text(item) for item in _list(data.get("warnings", []))),
        log_cut=data.get("log_cut", False) is True,
    )


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) > _MAX_OUTPUTS:
        raise TypeError
    return value


def _file(data: Any) -> RemoteFile:
    if not _SHA256.fullmatch(data["sha256"]):
        raise ValueError
    return RemoteFile(name=_text(data["name"]), size_bytes=_whole(data["bytes"], 2**63 - 1), sha256=data["sha256"])


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _whole(value: Any, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError
    return value
