"""Creates and upgrades the schema ``rythmiq``; Alembic keeps the order, the SQL is plain SQL."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import psycopg2
import psycopg2.extensions

from rythmiq_ray.errors import DatabaseUnavailable
from rythmiq_ray.queue.connection import as_ours, connect, explain, fetch
from rythmiq_ray.queue.schema import REVISION, USABLE_FROM, check_encoding, record
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.secret import Secret

_T = TypeVar("_T")
_HERE: Final = Path(__file__).parent
_LOCK: Final = 0x72797468  # "ryth": any number that no other program takes
_BUILD_LOCK: Final = _LOCK + 1
"""Another one, for a build waits for every open transaction, and so for one that would wait for the same lock."""
_LOCK_TIMEOUT_S: Final = 3.0
"""Behind a migration that waits for a table wait all that use the table: it gives way after this, and tries again."""
_TRIES: Final = 20
_PAUSE_S: Final = 1.0
_INDEX_TIMEOUT_S: Final = 600.0
"""A build waits for every transaction that is open; one that stays open for so long was forgotten by somebody."""
_WAITS: Final = ("55P03", "40P01")
"""A lock that was not to be had in time; a deadlock."""
_DROPPED: Final = ("jobs_finished", "jobs_unique_key", "jobs_claimable_by_queue")
"""Indexes that others took the place of."""


def migrate(dsn: Secret, *, tell: Callable[[str], object] = lambda _: None) -> list[str]:
    """Brings the database up to this version's schema and returns the revisions applied now, oldest first.

    One transaction under an advisory lock, then what reads large tables whole, and their indexes, one by one: it may
    run twice, from several places at once, and be killed at any moment. ``tell`` is told once what it waits for.
    Raises ConfigurationError for a database that cannot hold the schema, and DatabaseUnavailable.
    """
    connection = connect(dsn, statement_timeout_s=0, lock_timeout_s=_LOCK_TIMEOUT_S)
    try:
        connection.autocommit = True
        check_encoding(connection)
    finally:
        connection.close()
    applied = _repeated(lambda: _upgrade(dsn), tell)
    _repeated(lambda: _complete(dsn), tell)
    _build_indexes(dsn, tell)
    return applied


def _repeated(work: Callable[[], _T], tell: Callable[[str], object]) -> _T:
    for left in reversed(range(_TRIES)):
        try:
            return work()
        except _Busy as error:
            if not left:
                raise DatabaseUnavailable(
                    f"The migration was rolled back: {error}. Another session uses the tables for long: look for"
                    " transactions that stay open in pg_stat_activity, then run `rythmiq migrate` again"
                ) from None
            if left == _TRIES - 1:
                tell(f"Waiting for another session: {error}")
            time.sleep(_PAUSE_S)
    raise AssertionError("the last try returns or raises")


class _Busy(Exception):
    """Another session holds what the migration needs."""


def _upgrade(dsn: Secret) -> list[str]:
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
        "postgresql+psycopg2://",
        creator=lambda: connect(dsn, statement_timeout_s=0, lock_timeout_s=_LOCK_TIMEOUT_S),
        poolclass=NullPool,
    )
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            found = connection.exec_driver_sql("SELECT FROM pg_namespace WHERE nspname = 'rythmiq'")
            # IF NOT EXISTS would ask for CREATE on the database also where there is nothing to do.
            if found.first() is None:
                connection.exec_driver_sql("CREATE SCHEMA rythmiq")
            context = MigrationContext.configure(
                connection, opts={"version_table": "migrations", "version_table_schema": "rythmiq"}
            )
            before = context.get_current_revision()
            if before is not None and before > REVISION:
                raise DatabaseUnavailable(
                    f"The schema is of revision {before}, this program knows {REVISION}: upgrade the program"
                )
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.exec_driver_sql(record(REVISION, USABLE_FROM))
    except DBAPIError as error:
        cause = error.orig if isinstance(error.orig, psycopg2.Error) else psycopg2.Error(str(error.orig))
        if cause.pgcode in _WAITS:
            raise _Busy(explain(cause)) from None
        ours = as_ours(cause)
        raise DatabaseUnavailable(f"The migration was rolled back: {ours or explain(cause)}") from None
    if before == REVISION:
        return []
    applied = scripts.iterate_revisions(REVISION, before or "base")
    return [revision.revision for revision in reversed(list(applied))]


def _build_indexes(dsn: Secret, tell: Callable[[str], object]) -> None:
    """Builds what is missing and what a killed run left half built, without keeping anybody from the tables."""
    connection = connect(dsn, statement_timeout_s=0, lock_timeout_s=_INDEX_TIMEOUT_S)
    try:
        connection.autocommit = True
        if not _missing(connection) and not _superfluous(connection):
            return
        # Asked for again and again: a statement that waits for the lock is a transaction, which the build by the one
        # who has the lock would wait for.
        told = False
        while not fetch(connection, f"SELECT pg_try_advisory_lock({_BUILD_LOCK}) AS held", {})[0]["held"]:
            if not told:
                tell("Waiting for another migrate that builds the indexes")
            told = True
            time.sleep(_PAUSE_S / 5)
        for name, valid in _missing(connection).items():
            if valid is False:
                _execute(connection, name, f"DROP INDEX CONCURRENTLY rythmiq.{name}")
            _execute(connection, name, _indexes()[name])
        for name in _superfluous(connection):
            _execute(connection, name, f"DROP INDEX CONCURRENTLY IF EXISTS rythmiq.{name}")
    finally:
        connection.close()


def _complete(dsn: Secret) -> None:
    """Does what a migration has left for after its transaction, while nobody waits to read the tables."""
    connection = connect(dsn, statement_timeout_s=0, lock_timeout_s=_LOCK_TIMEOUT_S)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            cursor.execute("SELECT FROM pg_proc WHERE oid = to_regprocedure('rythmiq.complete_migration()')")
            if cursor.rowcount:
                cursor.execute("SELECT rythmiq.complete_migration()")
                cursor.execute("DROP FUNCTION rythmiq.complete_migration()")
    except psycopg2.Error as error:
        if error.pgcode in _WAITS:
            raise _Busy(explain(error)) from None
        raise DatabaseUnavailable(f"The migration is not complete: {as_ours(error) or explain(error)}") from None
    finally:
        connection.close()


def _indexes() -> dict[str, str]:
    return dict(queries("migrations/indexes"))


def _missing(connection: psycopg2.extensions.connection) -> dict[str, bool | None]:
    """The indexes to build: False for one that is there and not valid."""
    found = _found(connection, list(_indexes()))
    return {name: found.get(name) for name in _indexes() if not found.get(name)}


def _superfluous(connection: psycopg2.extensions.connection) -> list[str]:
    return list(_found(connection, list(_DROPPED)))


def _found(connection: psycopg2.extensions.connection, names: list[str]) -> dict[str, bool]:
    rows = fetch(
        connection,
        "SELECT c.relname, i.indisvalid FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid"
        " JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = 'rythmiq' AND c.relname = ANY(%(names)s)",
        {"names": names},
    )
    return {row["relname"]: row["indisvalid"] for row in rows}


def _execute(connection: psycopg2.extensions.connection, index: str, statement: str) -> None:
    try:
        fetch(connection, statement, {})
    except (psycopg2.Error, DatabaseUnavailable) as error:
        said = explain(error) if isinstance(error, psycopg2.Error) else error.message
        raise DatabaseUnavailable(
            f"The schema is there, and drivers may work, but its index {index} was not built: {said}. Look for"
            " transactions that stay open in pg_stat_activity, then run `rythmiq migrate` again"
        ) from None


def run_sql(name: str) -> None:
    """Runs ``versions/<name>`` in the migration's transaction; for the versions' own use."""
    from alembic import op

    connection: Any = op.get_bind()
    connection.exec_driver_sql((_HERE / "versions" / name).read_text(encoding="utf-8"))
