"""What runs in each scope as a function; members enqueued by SQL at a constant cost; clearer comments for ``\\d+``."""

from __future__ import annotations

from rythmiq_ray.queue.migrations import run_sql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run_sql("0008_usage_and_comments.sql")
