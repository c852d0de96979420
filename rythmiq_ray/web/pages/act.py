"""The confirmation page of an action, and the form that carries it out."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from rythmiq_ray.console import filters, formatting
from rythmiq_ray.console.actions import Action, Kind, Target, action_of, job_ids
from rythmiq_ray.errors import NotFound, RythmiqError
from rythmiq_ray.queue import inspect, listing
from rythmiq_ray.web.render import page
from rythmiq_ray.web.security import MOST_BODY, same
from rythmiq_ray.web.state import Console, console_of


async def act(request: Request) -> Response:
    """``/act/ACTION/KIND?name=NAME``, or ``/act/ACTION/filter?…``: GET asks for confirmation, POST does it."""
    from starlette.concurrency import run_in_threadpool

    console = console_of(request)
    if not console.settings.actions:
        return PlainTextResponse("This console only shows; `rythmiq web --actions` allows changes.\n", status_code=403)
    if request.method != "POST":
        return await run_in_threadpool(_ask, request, console)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BODY:
            return PlainTextResponse("The form is too large.\n", status_code=413)
    form = dict(parse_qsl(body.decode("utf-8", "replace")))
    if not same(form.get("csrf", ""), console.keys.csrf):
        return PlainTextResponse("This form is from another console, or from one that has ended.\n", status_code=403)
    return await run_in_threadpool(_do, request, console, option=form.get("option") == "1")


def _target(request: Request, console: Console, kind: Kind) -> tuple[Target, str, str]:
    """The target, its name for the page, and the path of the page that shows it. Raises NotFound."""
    name = request.query_params.get("name", "")
    with console.database.read() as connection:
        match kind:
            case "job":
                job = inspect.job(connection, name)
                return Target("job", id=job.job_id), f"job {formatting.called(job)}", f"jobs/{job.job_id}"
            case "group":
                found = listing.find(connection, name)
                if found.is_job:
                    raise NotFound("That is a job, not a group")
                (group,) = listing.groups_of(connection, [found.id])
                called = f"group {group.name or group.group_id}"
                return Target("group", id=group.group_id), called, f"groups/{group.group_id}"
            case "filter":
                asked = filters.read(request.query_params.multi_items(), connection)
                return Target("filter", asked=asked), f"all jobs with {asked.command}", f"jobs?{asked.query}"
            case "account":
                return Target("account"), "everything", "queues"
            case "queue" | "user":
                return Target(kind, name=name), f"{kind} {name}", "queues"
    raise NotFound("There is nothing to act on here")


def _ask(request: Request, console: Console) -> Response:
    action, target, called, back = _what(request, console)
    count = None
    if action.states is not None:
        with console.database.patient() as connection:
            count = len(job_ids(connection, target, action.states))
    return page(
        request,
        "act.html",
        title=f"{action.label}?",
        live=False,
        action=action,
        target=target,
        called=formatting.visible(called),
        back=back,
        count=count,
    )


def _do(request: Request, console: Console, *, option: bool) -> Response:
    action, target, _, back = _what(request, console)
    try:
        with console.database.write() as connection:
            said = action.run(connection, target, option)
    except RythmiqError as error:
        said = f"{action.label} was not done: {error.message}"
    console.forget()
    mark = "&" if "?" in back else "?"
    return RedirectResponse(f"{console.settings.base}/{back}{mark}said={console.said.keep(said)}", status_code=303)


def _what(request: Request, console: Console) -> tuple[Action, Target, str, str]:
    kind: Kind = request.path_params["kind"]  # checked by action_of
    action = action_of(request.path_params["action"], kind)
    target, called, back = _target(request, console, kind)
    return action, target, called, back
