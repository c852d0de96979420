"""Warnings, free attempts, and what is kept to be collected again."""

from __future__ import annotations

from rythmiq_ray.queue.migrations import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql("0002_keeping.sql")
