"""Schedules."""

from __future__ import annotations

from rythmiq_ray.queue.migrations import run_sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run_sql("0005_schedules.sql")
