"""Checks of file names from the remote side, which are not trusted."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Final
from uuid import UUID

from rythmiq_ray.errors import ArtifactCorrupt

LOG_NAME: Final = "log.txt"
MANIFEST_NAME: Final = "manifest.json"

_MAX_NAME_BYTES: Final = 900
"""S3 keys have at most 1,024 bytes, and prefix, job id and attempt precede the name."""
_MAX_SEGMENT_BYTES: Final = 255
"""The limit of common file systems."""
_BAD_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Control characters, lone surrogates, line and paragraph separators."""
_BIDI: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of text and can make a name look like another one."""


def check_names(names: Iterable[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Splits names into those that may be stored, and (name, reason) for those that may not.

    Of two names that differ only in case or Unicode normalization, which many file systems take as equal, the one that
    sorts first is accepted; of a file and a folder with one name, the file.
    """
    accepted: list[str] = []
    refused: list[tuple[str, str]] = []
    files: dict[str, str] = {_folded(LOG_NAME): LOG_NAME, _folded(MANIFEST_NAME): MANIFEST_NAME}
    folders: dict[str, str] = {}
    for name in sorted(set(names)):
        reason = fault_of_name(name) or _clash(name, files, folders)
        if reason is not None:
            refused.append((name, reason))
            continue
        accepted.append(name)
        folded = _folded(name)
        files[folded] = name
        parts = folded.split("/")
        for depth in range(1, len(parts)):
            folders["/".join(parts[:depth])] = name
    return accepted, refused


def fault_of_name(name: str) -> str | None:
    """Why a name by itself may not be stored; None if it may."""
    if not name:
        return "is empty"
    if name.startswith("/"):
        return "is absolute"
    if "\\" in name:
        return "has a backslash"
    if any(unicodedata.category(letter) in _BAD_CATEGORIES for letter in name):
        return "has a control character or is not UTF-8"
    if any(letter in _BIDI for letter in name):
        return "has a character that changes the direction of text"
    if len(name.encode()) > _MAX_NAME_BYTES:
        return f"is longer than {_MAX_NAME_BYTES} bytes"
    for segment in name.split("/"):
        if segment in ("", ".", ".."):
            return f"has a segment {segment!r}"
        if segment != segment.strip():
            return "has a segment that starts or ends with a space"
        if len(segment.encode()) > _MAX_SEGMENT_BYTES:
            return f"has a segment longer than {_MAX_SEGMENT_BYTES} bytes"
    return None


def plain(text: str, most: int) -> str:
    """Text on one line of at most ``most`` characters; characters that break a database or terminal are escaped."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def refuse_unsafe(name: str) -> None:
    """Raises ArtifactCorrupt for an unsafe name; for callers whose names did not go through :func:`check_names`."""
    fault = fault_of_name(name)
    if fault is not None:
        raise ArtifactCorrupt(f"{name!a} {fault}")


def key_of(prefix: str, job_id: UUID, attempt: int, name: str) -> str:
    """The key of an attempt's file in a store."""
    path = f"{job_id}/{attempt}/{name}"
    return f"{prefix}/{path}" if prefix else path


def input_key(prefix: str, sha256: str) -> str:
    """The key of an uploaded local input, which all jobs with the same content share."""
    return f"{prefix}/inputs/{sha256}" if prefix else f"inputs/{sha256}"


def _clash(name: str, files: dict[str, str], folders: dict[str, str]) -> str | None:
    folded = _folded(name)
    if folded in files:
        return f"clashes with {files[folded]!r}"
    if folded in folders:
        return f"clashes with the folder of {folders[folded]!r}"
    parts = folded.split("/")
    for depth in range(1, len(parts)):
        above = "/".join(parts[:depth])
        if above in files:
            return f"clashes with the file {files[above]!r}"
    return None


def _folded(name: str) -> str:
    """A key that is equal for names that differ only in case or Unicode normalization (Unicode, definition D145)."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name).casefold())
