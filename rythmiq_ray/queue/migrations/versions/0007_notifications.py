"""Notifications: who is told by a signed POST that a job or a group has ended."""

from __future__ import annotations

from rythmiq_ray.queue.migrations import run_sql

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run_sql("0007_notifications.sql")
