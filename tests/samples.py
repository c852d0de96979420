"""Plain data for tests: a configuration, a job, a remote job, each with sensible values."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any
from uuid import UUID, uuid4

from rythmiq_ray.config import Config
from rythmiq_ray.config_loader import VARIABLES, load
from rythmiq_ray.model import Job, JobSpec, JobState, Phase, RemoteJob, RemoteStatus

NOW = datetime(2026, 1, 7, 10, 30, tzinfo=UTC)

API_KEY = "canaryca" * 5
"""Of the emulator; tests search for it where it must not be."""

ENVIRONMENT = {
    "DATABASE_URL": "postgresql://rythmiq:canary-database@db.example/rythmiq",
    "ARTIFACT_STORE_TYPE": "local",
    "ARTIFACT_STORE_PATH": "/nowhere",
    "EXECUTION_BACKEND": "camber",
    "CAMBER_API_KEY": "canary-key-0123456789",
}


@cache
def config(*overrides: str) -> Config:
    return load(overrides, environ=ENVIRONMENT).config


def variable_defaults() -> dict[str, str]:
    """Each environment variable's default, as it would be written; empty where there is none."""
    values = load(environ=ENVIRONMENT).values
    defaults = {}
    for variable, key in VARIABLES.items():
        item = values[key]
        defaults[variable] = str(item.value) if item.layer.startswith("conf/") and item.value is not None else ""
    return defaults


def job(job_id: UUID | None = None, *, command: str = "true", attempt: int = 1, **changes: Any) -> Job:
    """A job that a driver claimed just now."""
    job_id = job_id or uuid4()
    row = Job(
        job_id=job_id,
        user_id=None,
        queue="default",
        state=JobState.RUNNING,
        phase=Phase.SUBMITTING,
        priority=0,
        spec=JobSpec(command=command),
        attempt=attempt,
        max_attempts=3,
        next_visible_at=NOW,
        unique_key=None,
        driver_id=uuid4(),
        remote_id=None,
        remote_status=None,
        remote_path=f"rythmiq/{job_id}/{attempt}",
        cancel_requested_at=None,
        exit_code=None,
        error_code=None,
        error_message=None,
        retryable=None,
        artifact_uri=None,
        cost_credits=None,
        created_at=NOW,
        updated_at=NOW,
        started_at=NOW,
        finished_at=None,
    )
    return replace(row, **changes)


def remote(job: Job, remote_id: int = 1, status: RemoteStatus = RemoteStatus.PENDING) -> RemoteJob:
    """The remote job of an attempt."""
    started_at = NOW if status.started and status is not RemoteStatus.CANCELLED else None
    return RemoteJob(
        remote_id=remote_id, status=status, path=job.remote_path or "", created_at=NOW, started_at=started_at
    )
