"""``rythmiq collect``: bring in what a job left at Camber while the artifact store could not take it."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from rythmiq_ray.cli import output
from rythmiq_ray.cli.failure import NO_SUCH, Ended, Unfinished, say
from rythmiq_ray.cli.jobs import Json
from rythmiq_ray.cli.session import database
from rythmiq_ray.errors import NotFound
from rythmiq_ray.model import Job, JobState, Phase

_TAKEN: Final = "its driver will bring in what it left; no new remote job is created"
_UNDER_WAY: Final = "is being collected already"


def collect(
    job_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, or their first digits (4 or more).")],
    as_json: Json = False,
) -> None:
    """Collect what a job left, once the store works again.

    A job whose command ended but whose files the store refused is FAILED with artifacts_not_stored.
    Camber keeps the files until the time that `rythmiq show` tells. This brings them in and creates
    no new remote job. Exits 1 if one of the jobs has nothing to be collected, 4 if there is no such job.

    \b
    Examples:
      rythmiq collect 019a5c3e
      rythmiq jobs --state failed --json | jq -r '.[] | select(.collect_until) | .job_id' | xargs rythmiq collect
    """
    from rythmiq_ray.queue import inspect

    with database() as connection:
        try:
            named = {job.job_id: job for job in (inspect.job(connection, job_id) for job_id in job_ids)}
        except NotFound as error:
            raise Ended(NO_SUCH, error.message) from None
        left_alone = inspect.collect(connection, list(named))
    refused = {job_id: reason for job_id, reason in left_alone.items() if not _under_way(named[job_id])}
    said = {job_id: refused.get(job_id) or (_UNDER_WAY if job_id in left_alone else _TAKEN) for job_id in named}
    if as_json:
        output.print_json(
            [{"job_id": str(job_id), "collecting": job_id not in refused, "message": said[job_id]} for job_id in named]
        )
    else:
        for job_id in named:
            if job_id not in refused:
                typer.echo(f"{job_id}  {said[job_id]}")
    for job_id, reason in refused.items():
        say(f"{job_id} was left alone: {output.printable(reason)}")
    if refused:
        raise Unfinished


def _under_way(job: Job) -> bool:
    waits = job.state is JobState.RETRYING and job.collect_until is not None
    return waits or (job.state is JobState.RUNNING and job.phase is Phase.COLLECTING)
