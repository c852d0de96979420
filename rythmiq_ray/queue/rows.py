"""Turns rows of ``rythmiq.jobs`` into :class:`~rythmiq_ray.model.Job`; an unexpected value in a row never raises."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, TypeVar

from rythmiq_ray.model import Job, JobSpec, JobState, Phase, RemoteStatus, path_of
from rythmiq_ray.queue.connection import EARLIEST, LATEST
from rythmiq_ray.spec import read_spec

_Word = TypeVar("_Word", JobState, Phase)
_SHOWN: Final = 80
_WORDS: Final = (("state", frozenset(map(str, JobState))), ("phase", frozenset([None, *map(str, Phase)])))
_DATES: Final = (
    "next_visible_at",
    "cancel_requested_at",
    "created_at",
    "updated_at",
    "started_at",
    "submitted_at",
    "running_at",
    "ended_at",
    "finished_at",
    "collect_until",
)


def job_from_row(row: Mapping[str, Any]) -> Job:
    """The job of a row. An unexpected value gets a warning, and becomes a default or None if a job cannot hold it."""
    return read_job(row)[0]


def read_job(row: Mapping[str, Any]) -> tuple[Job, list[str]]:
    """The job of a row, and why it cannot be run: a sentence for each fault of its spec, field first."""
    spec, faults = _spec(row["spec"])
    odd = [*faults, *_odd_fields(row)]
    job = Job(
        job_id=row["job_id"],
        user_id=row["user_id"],
        queue=row["queue"],
        state=state_of(row["state"]),
        phase=phase_of(row["phase"]),
        priority=row["priority"],
        spec=spec,
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        next_visible_at=row["next_visible_at"],
        unique_key=row["unique_key"],
        driver_id=row["driver_id"],
        remote_id=row["remote_id"],
        remote_status=RemoteStatus(row["remote_status"]) if row["remote_status"] else None,
        remote_path=row["remote_path"],
        cancel_requested_at=row["cancel_requested_at"],
        exit_code=row["exit_code"],
        error_code=row["error_code"],
        error_message=row["error_message"],
        retryable=row["retryable"],
        artifact_uri=row["artifact_uri"],
        cost_credits=finite(row["cost_credits"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        warnings=(*warnings_of(row["warnings"]), *(f"this row is odd: {fault}" for fault in odd)),
        free_attempts=row["free_attempts"],
        collect_until=row["collect_until"],
        submitted_at=row["submitted_at"],
        running_at=row["running_at"],
        ended_at=row["ended_at"],
        wait_reason=row["wait_reason"],
        name=row["name"],
        labels=texts_of(row["labels"]),
        group_id=row["group_id"],
        group_index=row["group_index"],
        params=texts_of(row["params"]) or None,
        waits_for=row["waits_for"],
        notify=row["notify"],
        traceparent=row["traceparent"],
        enqueued_by=row["enqueued_by"],
    )
    return job, faults


def faults_of_place(job: Job) -> list[str]:
    """Faults in a running job's ``remote_path`` and ``remote_id``: acting on these could affect another remote job."""
    faults = []
    if job.remote_path != path_of(job.job_id, job.attempt):
        faults.append("remote_path: is not this attempt's own")
    if job.remote_id is not None and job.remote_id <= 0:
        faults.append(f"remote_id: {job.remote_id} is not a valid job id")
    return faults


def finite(number: float | None) -> float | None:
    """The number, or None for NaN and Infinity: Postgres stores them, but JSON and sums cannot hold them."""
    return number if number is None or math.isfinite(number) else None


def state_of(word: str) -> JobState:
    """The state with this name. A name that only a newer version knows is kept as it is and equals no known state."""
    try:
        return JobState(word)
    except ValueError:
        return _foreign(JobState, word)


def phase_of(word: str | None) -> Phase | None:
    """The phase with this name; an unknown name is treated as in :func:`state_of`."""
    try:
        return None if word is None else Phase(word)
    except ValueError:
        return _foreign(Phase, word)


def warnings_of(text: object) -> tuple[str, ...]:
    """The sentences of a ``warnings`` column; other values in it are shown as JSON."""
    try:
        found = json.loads(text) if isinstance(text, str) else text
        items = found if isinstance(found, list) else [found]
        return tuple(item if isinstance(item, str) else json.dumps(item)[:_SHOWN] for item in items)
    except (ValueError, RecursionError):
        return ("this row is odd: warnings: cannot be read",)


def texts_of(text: object) -> dict[str, str]:
    """The texts in a JSON object of a column. Other values in it become JSON; a column that is no object gives {}."""
    try:
        found = json.loads(text) if isinstance(text, str) else text
        pairs = found.items() if isinstance(found, dict) else ()
        return {name: value if isinstance(value, str) else json.dumps(value)[:_SHOWN] for name, value in pairs}
    except (ValueError, RecursionError):
        return {}


def _foreign(kind: type[_Word], word: object) -> _Word:
    member = str.__new__(kind, str(word))
    member._name_ = member._value_ = str(word)
    return member


def _odd_fields(row: Mapping[str, Any]) -> list[str]:
    odd = [f"{name}: {_far(row[name])}" for name in _DATES if row[name] is EARLIEST or row[name] is LATEST]
    if finite(row["cost_credits"]) != row["cost_credits"]:
        odd.append(f"cost_credits: is {row['cost_credits']}")
    for name, known in _WORDS:
        if row[name] not in known:
            odd.append(f"{name}: {row[name]!r:.80} is not known to this version")
    return odd


def _far(date: datetime) -> str:
    return f"is {'before' if date is EARLIEST else 'after'} the year {date.year}"


def _spec(text: Any) -> tuple[JobSpec, list[str]]:
    """The spec, with the default for each field that cannot be read, and the faults."""
    try:
        return read_spec(json.loads(text) if isinstance(text, str) else text)
    except RecursionError:
        fault = "is nested too deeply"
    except Exception as error:  # noqa: BLE001 - a bad spec must not affect other rows
        fault = (
            "holds a number that is too long"
            if isinstance(error, ValueError)
            else f"cannot be read ({type(error).__name__})"
        )
    return JobSpec(command=""), [f"spec: {fault}"]
