"""Functions and a view for programs of any language, and the queues that a driver serves."""

from __future__ import annotations

from rythmiq_ray.queue.migrations import run_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_sql("0004_from_sql.sql")
