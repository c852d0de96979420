"""``rythmiq prune``: deletes old ended jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Final
from uuid import UUID

import typer

from rythmiq_ray.access import database, store_of
from rythmiq_ray.cli.failure import say
from rythmiq_ray.cli.filters import JobSelection, References, Yes, confirm, filtered, require_selection, selected_states
from rythmiq_ray.cli.output import print_json
from rythmiq_ray.errors import NotFound

_BATCH: Final = 500
"""Jobs in a batch: few enough that nobody waits long for its locks."""
_AT_ONCE: Final = 16
_REASONS: Final = {
    "unfinished": "it has not ended; `rythmiq cancel` ends it",
    "uncleaned": "a path at Camber has not been removed yet; drivers do that while they run",
    "kept": "files that could not be stored are kept at Camber; `rythmiq collect` stores them",
    "odd": "its rows name files that are not its own, or that are in no store",
    "in_use": "another session holds the row, or the job was queued again meanwhile",
}
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def age_s(text: str) -> float:
    """``30d``, ``12h``, ``90m`` or ``45s`` in seconds; raises BadParameter."""
    match = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if match is None:
        raise typer.BadParameter("give a number and a unit of s, m, h, d or w, such as 30d")
    return float(int(match[1]) * _UNITS_S[match[2]])


@filtered
def prune(
    context: typer.Context,
    wanted: JobSelection,
    references: References = None,
    older_than: Annotated[
        str | None, typer.Option(help="Age since the end: a number and s, m, h, d or w.", metavar="AGE")
    ] = None,
    yes: Yes = False,
    artifacts: Annotated[bool, typer.Option("--artifacts", help="Delete the jobs' stored files, too.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print how many there are (up to a batch).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Delete ended jobs of a certain age, of groups, or by filters, in batches.

    A group is deleted with its last member. Jobs that unfinished jobs depend on are kept, and so are members of
    unfinished groups. Artifacts are kept without --artifacts; they are deleted before the rows that name them, so an
    interrupted run can be repeated.

    \b
    Examples:
      rythmiq prune --older-than 30d
      rythmiq prune --older-than 12w --artifacts
      rythmiq prune lr --artifacts
      rythmiq prune --label team=ml --state failed --older-than 1d --yes
    """
    from rythmiq_ray.queue import inspect

    if older_than is None:
        require_selection(context, references, wanted)
    seconds = 0.0 if older_than is None else age_s(older_than)
    only: list[UUID] | None = None
    unfinished = 0
    if references or wanted.given:
        with database() as connection:
            states = selected_states(connection, references, wanted)
        only = [job_id for job_id, state in states.items() if state.finished]
        unfinished = len(states) - len(only)
        if wanted.given and not dry_run:
            confirm(len(only), "Delete", yes=yes)
    jobs = files = 0
    locked: set[UUID] = set()
    odd: set[UUID] = set()
    while True:
        # No transaction is open while files are deleted: that may take long, and Postgres may end idle transactions.
        with database() as connection:
            batch = inspect.prunable(connection, older_than_s=seconds, limit=_BATCH, but=locked | odd, only=only)
        ids = {job.job_id for job in batch}
        uris = [uri for job in batch for uri in job.uris] if artifacts else []
        if dry_run:
            jobs, files = len(batch), len(uris)
            break
        foreign = _delete((job.job_id, uri) for job in batch if artifacts for uri in job.uris)
        with database() as connection:
            gone = inspect.prune(connection, ids - foreign, older_than_s=seconds)
            inspect.prune_drivers(connection, older_than_s=seconds)
        odd |= foreign
        locked |= ids - gone - foreign
        jobs += len(gone)
        files += len(uris)
        if len(batch) < _BATCH:
            break
    with database() as connection:
        stays = inspect.unprunable(connection, older_than_s=seconds)
    left = {
        "unfinished": unfinished,
        "uncleaned": stays.uncleaned,
        "kept": stays.kept,
        "in_use": len(locked),
        "odd": len(odd),
    }
    if as_json:
        print_json({"jobs": jobs, "files": files, "dry_run": dry_run, "left": left})
        return
    verb = "would be deleted" if dry_run else "deleted"
    more = " or more" if dry_run and jobs == _BATCH else ""
    typer.echo(f"{jobs}{more} jobs and {files} files {verb}")
    for name, count in left.items():
        if count:
            say(f"{count} {'job was' if count == 1 else 'jobs were'} left alone: {_REASONS[name]}")


def _delete(files: Iterable[tuple[UUID, str]]) -> set[UUID]:
    """Deletes stored files; returns the jobs whose rows name files that cannot be theirs."""

    from rythmiq_ray.artifacts import is_own

    def delete(file: tuple[UUID, str]) -> UUID | None:
        job_id, uri = file
        if not is_own(uri, job_id):
            return job_id
        try:
            store_of(uri).delete(uri)
        except (NotFound, ValueError):
            return job_id
        return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return {job_id for job_id in pool.map(delete, files) if job_id is not None}
