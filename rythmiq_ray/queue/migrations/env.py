"""Alembic's entry; the connection and its transaction are :func:`rythmiq_ray.queue.migrations.migrate`'s."""

from __future__ import annotations

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="migrations",
    version_table_schema="rythmiq",
)
context.run_migrations()
