"""Pages: jobs by filters, and redirects that find a job or group."""

from __future__ import annotations

from dataclasses import replace
from typing import Final
from urllib.parse import quote
from uuid import UUID

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from rythmiq_ray.console import filters
from rythmiq_ray.console.actions import Target, offered
from rythmiq_ray.errors import NotFound
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import console as looks
from rythmiq_ray.queue import listing
from rythmiq_ray.web.render import page
from rythmiq_ray.web.state import console_of

PAGE: Final = 50


def jobs(request: Request) -> Response:
    """Page ``/jobs``."""
    console = console_of(request)
    before = uuid_of(request.query_params.get("before", ""))
    with console.database.read() as connection:
        asked = filters.read(request.query_params.multi_items(), connection)
        counts = console.counts(connection)
        found = looks.page(connection, asked.filter, limit=PAGE, before=before, counts=counts)
        names = listing.groups_of(connection, {job.group_id for job in found.jobs if job.group_id is not None})
    # They are of all jobs, so they say nothing beside a filter; to count those that match may take long.
    tallies = (
        {}
        if not replace(asked.filter, states=None).empty
        else {
            str(state): (
                sum(count.jobs for count in counts if count.state is state),
                any(count.bounded for count in counts if count.state is state),
            )
            for state in JobState
        }
    )
    whole = Target("filter", asked=asked)
    return page(
        request,
        "jobs.html",
        here="jobs",
        title="Jobs",
        asked=asked,
        found=found,
        before=before,
        tallies=tallies,
        states=list(map(str, JobState)),
        groups={group.group_id: group.name for group in names},
        target=whole,
        offered=offered("filter", asked.filter.states or list(JobState)) if asked.given and not asked.faults else [],
    )


def find(request: Request) -> Response:
    """``/find?q=``: redirects to the job or group with this id, these first digits of an id, or this name."""
    console = console_of(request)
    text = request.query_params.get("q", "").strip()
    base = console.settings.base
    if not text:
        return RedirectResponse(f"{base}/jobs", status_code=303)
    with console.database.read() as connection:
        try:
            found = listing.find(connection, text[:300])
        except NotFound as error:
            raise NotFound(error.message) from None
    return RedirectResponse(f"{base}/{'jobs' if found.is_job else 'groups'}/{found.id}", status_code=303)


def uuid_of(text: str) -> UUID | None:
    """The UUID in a text; None if it is none."""
    try:
        return UUID(text)
    except ValueError:
        return None


def member(request: Request) -> Response:
    """``/groups/ID/members/PLACE``: redirects to a member, because charts know only its place in the group."""
    console = console_of(request)
    with console.database.read() as connection:
        found = looks.member(connection, request.path_params["id"], request.path_params["place"])
    if found is None:
        raise NotFound("There is no such member")
    return RedirectResponse(f"{console.settings.base}/jobs/{quote(str(found))}", status_code=303)
