"""What runs and has begun of each scope as a function of its own; comments in plainer English."""

from __future__ import annotations

from rythmiq_ray.queue.migrations import run_sql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run_sql("0008_usage.sql")
