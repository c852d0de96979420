"""Groups, dependencies and the state BLOCKED."""

from __future__ import annotations

from rythmiq_ray.queue.migrations import run_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    run_sql("0003_groups.sql")
