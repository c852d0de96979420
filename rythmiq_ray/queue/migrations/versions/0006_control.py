"""Limits, turns, pauses, budgets and costs."""

from __future__ import annotations

from rythmiq_ray.queue.migrations import run_sql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run_sql("0006_control.sql")
