"""A scheduled sweep is enqueued by one statement, and new members are counted without sorting them."""

from __future__ import annotations

from rythmiq_ray.queue.migrations import run_sql

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    run_sql("0009_sweeps.sql")
