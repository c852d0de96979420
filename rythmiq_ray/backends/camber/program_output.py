"""What the vendor's program says: text and JSON, with notices around both. Pure functions of text that is not trusted.

Its exit code says nothing (camber-api, section 7): errors come with 0, and good uploads with 255.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from rythmiq_ray.backends.camber.answers import Answer, error_of, printable
from rythmiq_ray.errors import BackendBusy, BackendRefusedKey, CreateUncertain, RythmiqError, SpecRejected

_ESCAPES: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_MOST_STARTS: Final = 100
"""Lines that look like the beginning of JSON before the rest is not looked at any more."""
_MOST_WORDS: Final = 16 * 1024
"""Characters in which an error is looked for."""
_JOB_ID: Final = re.compile(r"^\s*Job ID:\s*(\d{1,18})\s*$", re.MULTILINE | re.IGNORECASE)
_VERSION: Final = re.compile(r"\b\d+\.\d+(?:\.\d+)*(?:[-+][\w.]+)?\b")
_API_ERROR: Final = re.compile(r"""\bcode"?\s*[=:]\s*(\d{1,9})\s*,\s*"?message"?\s*[=:]\s*[^\n]*""", re.IGNORECASE)
"""As text, or as the JSON of the API."""
_ERROR_LINE: Final = re.compile(r"^\s*(?:error|fatal|panic)\s*:[^\n]*", re.MULTILINE | re.IGNORECASE)
_DOUBT: Final = re.compile(
    r"error|fail|fatal|panic|abort|denied|refused|invalid|unauthori[sz]ed|"
    r"not found|no such|not exist|cannot|timed? ?out",
    re.IGNORECASE,
)
_LOG_REFUSED: Final = re.compile(r"job status is not", re.IGNORECASE)
_CODES: Final[Mapping[int, HTTPStatus]] = {1: HTTPStatus.BAD_REQUEST, 1005: HTTPStatus.UNPROCESSABLE_ENTITY}
"""What those codes come with over HTTP, or mean there: 1 a validation, 1005 a job that the account's plan excludes."""
_WORDS: Final[Sequence[tuple[HTTPStatus, re.Pattern[str]]]] = tuple(
    (status, re.compile(words, re.IGNORECASE))
    for status, words in (
        (
            HTTPStatus.UNAUTHORIZED,
            r"authentication (error|failed|required)|unauthori[sz]ed|invalid (token|api key)|user not found",
        ),
        (HTTPStatus.TOO_MANY_REQUESTS, r"too many requests|rate limit"),
        (
            HTTPStatus.SERVICE_UNAVAILABLE,
            r"connection (refused|reset)|no such host|dial tcp|i/o timeout|deadline exceeded|\bEOF\b|\btls\b|x509|"
            r"bad gateway|unavailable|network is unreachable",
        ),
        (HTTPStatus.NOT_FOUND, r"not found|no such|not exist"),
    )
)
"""In this order: a user that is not found is a refused key, and a host that does not exist is no missing file."""


def plain(said: bytes) -> str:
    """As text, without colours."""
    return _ESCAPES.sub("", said.decode("utf-8", errors="replace"))


def json_in(text: str) -> Answer | None:
    """The first object or list of objects that begins a line, as an answer of the API; None where there is none."""
    decoder = json.JSONDecoder()
    at = 0
    for _ in range(_MOST_STARTS):
        start = re.compile(r"^[ \t]*(?=[{\[])", re.MULTILINE).search(text, at)
        if start is None:
            break
        at = start.end() + 1
        try:
            value, _end = decoder.raw_decode(text, start.end())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) or (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
            return _answer(value)
    return _answer(None) if text.strip() == "null" else None


def job_id_in(text: str) -> int | None:
    """The id in the answer to a create; None where there is none, several, or an error beside it."""
    found = {int(digits) for digits in _JOB_ID.findall(text)}
    return found.pop() if len(found) == 1 and not _ERROR_LINE.search(text) else None


def version_in(text: str) -> str | None:
    """What looks like a version number."""
    found = _VERSION.search(text[:_MOST_WORDS])
    return found[0] if found else None


def complains(text: str) -> bool:
    """Whether anything in it sounds like a fault; a file's name may."""
    return _DOUBT.search(text[:_MOST_WORDS]) is not None


def fails(text: str) -> bool:
    """Whether a line of it is an error."""
    return _ERROR_LINE.search(text[:_MOST_WORDS]) is not None


def refuses_log(text: str) -> bool:
    """Whether it says that there is no log of a job in its state, or is an error and nothing else."""
    line = text.strip()
    return "\n" not in line and bool(_LOG_REFUSED.search(line) or _ERROR_LINE.match(line) or _API_ERROR.match(line))


def error_in(text: str, operation: str) -> RythmiqError:
    """The error that a failed idempotent call's words are."""
    head = text[:_MOST_WORDS]
    api = _API_ERROR.search(head)
    line = _ERROR_LINE.search(head)
    code = int(api[1]) if api else None
    words = printable(line[0] if line else api[0] if api else head.strip())
    status = _CODES.get(code) if code is not None else None
    if status is None:
        status = next((status for status, pattern in _WORDS if pattern.search(head)), HTTPStatus.INTERNAL_SERVER_ERROR)
    kind = error_of(Answer(status, {}, json.dumps({"code": code, "message": words}).encode()), operation)
    return type(kind)(f"The vendor's program answered {operation} with: {words or 'nothing'}")


def create_error_in(text: str) -> RythmiqError:
    """The error that a create's words are: what is no clear refusal is uncertain."""
    error = error_in(text, "create")
    clear = isinstance(error, BackendRefusedKey | BackendBusy | SpecRejected)
    return error if clear else CreateUncertain(error.message)


def file_sizes(entries: Sequence[Mapping[str, Any]], folder: str) -> dict[str, int]:
    """Sizes of a listing's files by their names relative to ``folder``, a path under the owner's root."""
    sizes: dict[str, int] = {}
    for entry in entries:
        size, place = entry.get("size", 0), entry.get("path") or entry.get("name")
        if entry.get("type", "file") != "file" or not isinstance(size, int) or not isinstance(place, str):
            continue
        _, inside, name = place.partition(f"{folder}/")
        sizes[name if inside else place.strip("/")] = size
    return sizes


def _answer(value: object) -> Answer:
    """In an envelope, unless it has one: an empty list is then told from no list."""
    enveloped = isinstance(value, dict) and ("code" in value or "data" in value)
    return Answer(HTTPStatus.OK, {}, json.dumps(value if enveloped else {"code": 0, "data": value}).encode())
