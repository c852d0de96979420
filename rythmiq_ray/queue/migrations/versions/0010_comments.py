"""Clearer comments on tables and columns, for readers of ``\\d+``."""

from __future__ import annotations

from rythmiq_ray.queue.migrations import run_sql

revision = "0010"
down_revision = "0008"


def upgrade() -> None:
    run_sql("0010_comments.sql")
