"""``rythmiq collect``: stores files that stayed at Camber because the artifact store had refused them."""

from __future__ import annotations

from typing import Final

import typer

from rythmiq_ray.access import database
from rythmiq_ray.cli import output
from rythmiq_ray.cli.failure import Unfinished, say
from rythmiq_ray.cli.filters import (
    JobSelection,
    References,
    Yes,
    confirm,
    filtered,
    found_of,
    require_selection,
    selected_states,
)
from rythmiq_ray.cli.jobs import Json
from rythmiq_ray.model import Job, JobState, Phase

_TAKEN: Final = "its driver will bring in what it left; no new remote job is created"
_UNDER_WAY: Final = "is being collected already"


@filtered
def collect(
    context: typer.Context, wanted: JobSelection, references: References = None, yes: Yes = False, as_json: Json = False
) -> None:
    """Collect jobs' files again, once the store works.

    A job whose command ended but whose files the store refused is FAILED with artifacts_not_stored.
    Camber keeps the files until the time that `rythmiq show` prints. This command stores them, without
    a new remote job. In groups and filters, jobs with nothing to collect are skipped.
    Exits 1 if a job given by id has nothing to collect, 4 if there is no such job.

    \b
    Examples:
      rythmiq collect 019a5c3e
      rythmiq collect --error artifacts_not_stored --since 1d --yes
    """
    from rythmiq_ray.queue import inspect, listing

    require_selection(context, references, wanted)
    with database() as connection:
        found = found_of(connection, references)
        only = [item.id for item in found if item.is_job] if not wanted.given else []
        ids = list(selected_states(connection, references, wanted))
        named = {job.job_id: job for job in listing.jobs(connection, listing.Filter(ids=ids), limit=None)}
        if set(ids) != set(only):
            named = {job_id: job for job_id, job in named.items() if job_id in only or job.collect_until is not None}
        connection.rollback()
        if wanted.given:
            confirm(len(named), "Collect", yes=yes)
        left_alone = inspect.collect(connection, list(named))
    refused = {job_id: reason for job_id, reason in left_alone.items() if not _under_way(named[job_id])}
    said = {job_id: refused.get(job_id) or (_UNDER_WAY if job_id in left_alone else _TAKEN) for job_id in named}
    if as_json:
        output.print_items(
            {"job_id": str(job_id), "collecting": job_id not in refused, "message": said[job_id]} for job_id in named
        )
    else:
        for job_id in named:
            if job_id not in refused:
                typer.echo(f"{job_id}  {said[job_id]}")
    for job_id, reason in refused.items():
        say(f"{job_id} was left alone: {output.printable(reason)}")
    if any(job_id in only for job_id in refused):
        raise Unfinished
    if not named:
        say("nothing of these is kept to be collected")


def _under_way(job: Job) -> bool:
    waits = job.state is JobState.RETRYING and job.collect_until is not None
    return waits or (job.state is JobState.RUNNING and job.phase is Phase.COLLECTING)
