"""Rows of ``rythmiq.jobs`` as :class:`~rythmiq_ray.model.Job`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rythmiq_ray.model import Job, JobSpec, JobState, Phase, RemoteStatus


def job_from_row(row: Mapping[str, Any]) -> Job:
    return Job(
        job_id=row["job_id"],
        user_id=row["user_id"],
        queue=row["queue"],
        state=JobState(row["state"]),
        phase=Phase(row["phase"]) if row["phase"] else None,
        priority=row["priority"],
        spec=_spec(row["spec"]),
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
        cost_credits=row["cost_credits"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def _spec(data: Any) -> JobSpec:
    """A spec that something else wrote and that cannot be read becomes an empty one, which no check lets pass."""
    try:
        return JobSpec.from_dict(data)
    except (KeyError, TypeError, ValueError, AttributeError):
        return JobSpec(command="")
