"""Jobs, attempts, artifacts, drivers."""

from __future__ import annotations

from rythmiq_ray.queue.migrations import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_sql("0001_jobs.sql")
