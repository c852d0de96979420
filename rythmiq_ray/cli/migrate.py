"""``rythmiq migrate``: the schema of the database."""

from __future__ import annotations

from typing import Annotated

import typer

from rythmiq_ray.access import database_url
from rythmiq_ray.cli.output import print_json


def migrate(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array of revisions.")] = False) -> None:
    """Create or upgrade the schema `rythmiq`.

    Safe to run twice, also from two places at once.

    \b
    Example:
      DATABASE_URL=postgresql://user:password@host/database rythmiq migrate
    """
    from rythmiq_ray.queue.migrations import migrate as upgrade

    applied = upgrade(database_url(), tell=lambda words: typer.echo(f"rythmiq: {words}", err=True))
    if as_json:
        print_json(applied)
    elif applied:
        typer.echo(f"The schema rythmiq is now at revision {applied[-1]}")
    else:
        typer.echo("The schema rythmiq is up to date")
