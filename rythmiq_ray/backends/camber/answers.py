"""Parses Camber's answers: the envelope, errors, job objects. Pure functions of bytes that are not trusted.

Facts come from camber-api, sections 1, 2 and 5.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from http import HTTPStatus
from typing import Any, Final

from rythmiq_ray.backends.times import time_of
from rythmiq_ray.errors import (
    BackendBusy,
    BackendRefusedKey,
    BackendUnavailable,
    CreateUncertain,
    NotFound,
    RythmiqError,
    SpecRejected,
)
from rythmiq_ray.model import RemoteJob, RemoteStatus

MAX_MESSAGE: Final = 500
"""Characters of the server's own words that go into an error."""

_MAX_RETRY_AFTER_S: Final = 3600.0
_EARLIEST_YEAR: Final = 2000
_LATEST_YEAR: Final = 9000
"""Dates outside of these years cannot be a service's, and would overflow in Python's arithmetic."""
_MAX_DETAILS: Final = 20
_VALIDATION_FAILED: Final = 1
_DOMAIN_FAILURE: Final = 2
_NO_AGENT: Final = 10
_LOG_REFUSED: Final = 15
_FREE_TIER: Final = 1005
"""A code that comes with status 403 and concerns the requested job, not the key."""
_MISSING: Final = re.compile(r"not found|no such|(does not|doesn't) exist|not exist", re.IGNORECASE)
_KEY_UNKNOWN: Final = "user not found"
_BRACKETS: Final = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
_DEEPEST: Final = 32
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_STASH_ROOT: Final = re.compile(r"^stash://[^/]+/")


@dataclass(frozen=True)
class Answer:
    """One complete answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    envelope: str = "data"
    names: Mapping[str, str] = field(default_factory=dict)
    """Names of fields: the service's to the contract's."""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def accepted(self) -> bool:
        """Whether it is :attr:`ok` and its envelope says so too. Not for a file's bytes, which may look like one."""
        return self.ok and not (self.code and not self.json.get(self.envelope))

    @cached_property
    def json(self) -> Any:
        """The body; None if it is not JSON. An odd value does not hide the others."""
        return renamed(self._parsed, self.names) if self.names else self._parsed

    @property
    def _parsed(self) -> Any:
        text = self.body.decode(json.detect_encoding(self.body), errors="replace")
        try:
            return _loads(text)
        except RecursionError:
            text = _shallow(text)
        except ValueError:
            return None
        try:
            return _loads(text)
        except (ValueError, RecursionError):
            return None

    @property
    def data(self) -> Any:
        """The body without its envelope, if it has one."""
        body = self.json
        return body[self.envelope] if isinstance(body, dict) and self.envelope in body else body

    @property
    def code(self) -> int | None:
        """The envelope's code, 0 = ok; None if there is none."""
        code = self.json.get("code") if isinstance(self.json, dict) else None
        return code if isinstance(code, int) and not isinstance(code, bool) else None

    @property
    def date(self) -> datetime | None:
        """The time of the answer by the server's clock; None if the answer has no date."""
        value = self._header("date")
        date = None if value is None else _http_date(value)
        return None if date is None or not _EARLIEST_YEAR <= date.year < _LATEST_YEAR else date

    def _header(self, name: str) -> str | None:
        return next((value for key, value in self.headers.items() if key.lower() == name), None)

    @property
    def retry_after_s(self) -> float | None:
        value = self._header("retry-after")
        if value is None:
            return None
        try:
            delay_s = float(value)
        except ValueError:
            until = _http_date(value)
            if until is None:
                return None
            delay_s = (until - datetime.now(UTC)).total_seconds()
        # The comparison is false for NaN too.
        return min(delay_s, _MAX_RETRY_AFTER_S) if delay_s >= 0 else 0.0

    @property
    def message(self) -> str:
        """The server's message with each field that it complains about, safe to print; '' if there is none."""
        body = self.json
        if not isinstance(body, dict):
            return ""
        words = [body["message"]] if isinstance(body.get("message"), str) else []
        details = body.get("error_details")
        for detail in details[:_MAX_DETAILS] if isinstance(details, list) else ():
            if isinstance(detail, dict):
                field, said = detail.get("field") or detail.get("key"), detail.get("message")
                # Only text: a deeply nested value could not be shown.
                words.append(": ".join(word if isinstance(word, str) else "?" for word in (field, said)))
        return printable("; ".join(words))


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The same JSON with other keys, at every depth."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(item, names) for key, item in value.items()}
    return [renamed(item, names) for item in value] if isinstance(value, list) else value


def _loads(text: str) -> Any:
    """JSON in which texts may hold control characters, and numbers be of any length."""
    return json.loads(text, strict=False, parse_int=lambda digits: (int if len(digits) < 20 else float)(digits))


def _shallow(text: str) -> str:
    """JSON with ``null`` for what is nested more deeply than any answer."""
    kept, depth, start = [], 0, 0
    for part in _BRACKETS.finditer(text):
        if part[0] in "[{":
            depth += 1
            if depth == _DEEPEST:
                kept.append(f"{text[start : part.start()]}null")
        elif part[0] in "]}":
            if depth == _DEEPEST:
                start = part.end()
            depth -= 1
    return "".join([*kept, text[start:]])


def printable(text: str) -> str:
    """Cut to :data:`MAX_MESSAGE` characters, control characters replaced by a space."""
    return _CONTROL.sub(" ", text[: MAX_MESSAGE * 2]).strip()[:MAX_MESSAGE]


def error_of(answer: Answer, operation: str) -> RythmiqError:
    """The error for a failed answer to an idempotent call.

    A code 2 that says that something is missing becomes NotFound, whatever the status. Any other may be transient, so
    it becomes BackendUnavailable, and the caller limits how often it tries.
    """
    words = answer.message
    said = f"Camber answered {operation} with {answer.status}" + (f": {words}" if words else "")
    if answer.code in (_LOG_REFUSED, _NO_AGENT):
        return NotFound(said)
    if answer.code == _FREE_TIER:
        return SpecRejected(said)
    if _refuses_key(answer):
        return BackendRefusedKey(said)
    if answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        return BackendBusy(said, answer.retry_after_s)
    if answer.status == HTTPStatus.NOT_FOUND or (answer.code == _DOMAIN_FAILURE and _MISSING.search(words)):
        return NotFound(said)
    if answer.status == HTTPStatus.BAD_REQUEST and answer.code in (None, _VALIDATION_FAILED) and words:
        return SpecRejected(said)
    if answer.status in (HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY):
        return SpecRejected(said)
    return BackendUnavailable(said, answer.retry_after_s)


def create_error_of(answer: Answer) -> RythmiqError:
    """The error for a failed answer to a create: CreateUncertain, unless nothing can have been created."""
    error = error_of(answer, "create")
    if isinstance(error, BackendRefusedKey | BackendBusy | SpecRejected):
        return error
    if answer.status in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED) and answer.code is None:
        return BackendUnavailable(f"{error.message} (is camber.endpoint right?)")
    return CreateUncertain(error.message)


def job_of(data: object) -> RemoteJob | None:
    """The job object in an unwrapped answer, possibly one level deeper; None if there is none."""
    if not isinstance(data, dict):
        return None
    for candidate in (data, *data.values()):
        if isinstance(candidate, dict) and (remote_id := job_id_of(candidate)) is not None:
            return RemoteJob(
                remote_id=remote_id,
                status=_status_of(candidate),
                path=path_of(candidate),
                created_at=time_of(candidate.get("created_at")),
                started_at=time_of(candidate.get("started_at")),
                finished_at=time_of(candidate.get("finished_at")),
            )
    return None


def _status_of(item: Mapping[str, object]) -> RemoteStatus:
    """The status: the vendor's CLI has it as ``job_status``, the SDK as ``status``."""
    words = (item.get("job_status"), item.get("status"))
    return RemoteStatus(next((word.strip().upper() for word in words if isinstance(word, str) and word), ""))


def job_id_of(item: Mapping[str, object]) -> int | None:
    """The ``job_id`` of a job object; None if it is not a whole number above 0."""
    value = item.get("job_id")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63:
        return value
    return None


def path_of(item: Mapping[str, object]) -> str:
    """The ``mount_dir`` under the owner's root, without slashes at its ends."""
    place = item.get("mount_dir")
    return _STASH_ROOT.sub("", place).strip("/") if isinstance(place, str) else ""


def _http_date(value: str) -> datetime | None:
    """The date of a header; None if it is not one, for which the parser raises errors of many kinds."""
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, LookupError, OverflowError):
        return None
    return date.replace(tzinfo=date.tzinfo or UTC)


def items_of(answer: Answer, *keys: str) -> list[dict[str, Any]] | None:
    """The array of objects that have one of ``keys``, under whatever key; empty if it is empty or null.

    None if the answer has no such array: a proxy's page must not pass for an empty list.
    """
    data = answer.data
    candidates = [data, *data.values()] if isinstance(data, dict) else [data]
    for candidate in candidates:
        if isinstance(candidate, list) and (items := list(_having(candidate, keys))):
            return items
    null = None in candidates and (total_of(answer) == 0 or answer.code == 0)
    return [] if null or [] in candidates else None


def total_of(answer: Answer) -> int | None:
    """The total that a paged list reports; None if it reports none."""
    for holder in (answer.data, answer.json):
        total = holder.get("total") if isinstance(holder, dict) else None
        if isinstance(total, int) and not isinstance(total, bool):
            return total
    return None


def _having(items: list[object], keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for item in items:
        if isinstance(item, dict) and any(key in item for key in keys):
            yield item


def _refuses_key(answer: Answer) -> bool:
    return answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN) or (
        not answer.accepted and _KEY_UNKNOWN in answer.message.lower()
    )
