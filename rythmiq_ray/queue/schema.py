"""Whether a database fits this program: its schema's revision, its encoding, and what stands between."""

from __future__ import annotations

import re
from typing import Final

import psycopg2.extensions

from rythmiq_ray.errors import ConfigurationError, DatabaseUnavailable
from rythmiq_ray.queue.connection import fetch

REVISION: Final = "0002"
"""The schema that this program is written for."""
USABLE_FROM: Final = "0001"
"""The oldest program, by the revision that it is written for, which may work on this schema beside newer ones. It
changes only with a migration that takes away what that program needs; adding columns and tables does not."""
_RECORDED: Final = re.compile(r"revision (\d{4}), usable by programs of (\d{4}) or later")
_FIRST: Final = "0001"
"""It has no record of itself."""
_RECORD: Final = """
SELECT c.oid IS NOT NULL AS there, obj_description(c.oid, 'pg_class') AS record
FROM (SELECT) AS one
LEFT JOIN (pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace AND n.nspname = 'rythmiq')
    ON c.relname = 'migrations' AND c.relkind = 'r'
"""


def record(revision: str, usable_from: str) -> str:
    """The statement by which a migration says in the schema what it is. Every login may read a comment."""
    return f"COMMENT ON TABLE rythmiq.migrations IS 'revision {revision}, usable by programs of {usable_from} or later'"


def check_schema(connection: psycopg2.extensions.connection) -> None:
    """Raises DatabaseUnavailable where the schema is missing, older than this program, or too new for it."""
    (found,) = fetch(connection, _RECORD, {})
    if not found["there"]:
        raise DatabaseUnavailable("The schema rythmiq is missing: run `rythmiq migrate`")
    recorded = _RECORDED.search(found["record"] or "")
    revision, usable_from = (recorded[1], recorded[2]) if recorded else (_FIRST, _FIRST)
    if revision < REVISION:
        raise DatabaseUnavailable(
            f"The schema rythmiq is older than this program ({revision}, needed is {REVISION}): run `rythmiq migrate`"
        )
    if usable_from > REVISION:
        raise DatabaseUnavailable(
            f"This program is older than the schema rythmiq ({revision}, usable from {usable_from} on, and this"
            f" program is written for {REVISION}): upgrade it"
        )


def check_encoding(connection: psycopg2.extensions.connection) -> None:
    """Raises ConfigurationError for a database that cannot hold every text."""
    encoding = fetch(connection, "SHOW server_encoding", {})[0]["server_encoding"]
    if encoding != "UTF8":
        raise ConfigurationError(
            f"The database's encoding is {encoding}, and commands are any text: create one with ENCODING 'UTF8'"
        )
