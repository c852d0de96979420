"""Creates and upgrades the schema ``rythmiq``; Alembic keeps the order, the SQL is plain SQL."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import psycopg2

from rythmiq_ray.errors import DatabaseUnavailable
from rythmiq_ray.queue.connection import connect, explain
from rythmiq_ray.secret import Secret

_HERE: Final = Path(__file__).parent
_LOCK: Final = 0x72797468  # "ryth": any number that no other program takes


def migrate(dsn: Secret) -> list[str]:
    """Brings the database up to this version's schema and returns the revisions applied now, oldest first.

    One transaction under an advisory lock: it may run twice, from several places at once, and be killed at any
    moment. Raises DatabaseUnavailable.
    """
    # Alembic and SQLAlchemy take half a second to import, and only this command needs them.
    from alembic import command
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine
    from sqlalchemy.exc import DBAPIError
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(_HERE))
    scripts = ScriptDirectory.from_config(config)
    engine = create_engine(
        "postgresql+psycopg2://", creator=lambda: connect(dsn, statement_timeout_s=0), poolclass=NullPool
    )
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS rythmiq")
            context = MigrationContext.configure(
                connection, opts={"version_table": "migrations", "version_table_schema": "rythmiq"}
            )
            before = context.get_current_revision()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        cause = error.orig if isinstance(error.orig, psycopg2.Error) else psycopg2.Error(str(error.orig))
        raise DatabaseUnavailable(f"The migration was rolled back: {explain(cause)}") from None
    head = scripts.get_current_head()
    if before == head:
        return []
    applied = scripts.iterate_revisions(head, before or "base")
    return [revision.revision for revision in reversed(list(applied))]


def run_sql(name: str) -> None:
    """Runs ``versions/<name>`` in the migration's transaction; for the versions' own use."""
    from alembic import op

    connection: Any = op.get_bind()
    connection.exec_driver_sql((_HERE / "versions" / name).read_text(encoding="utf-8"))
