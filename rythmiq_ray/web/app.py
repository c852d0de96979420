"""The console as an ASGI application: its routes and middleware."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from rythmiq_ray.errors import (
    ConfigurationError,
    DatabaseUnavailable,
    InvalidJob,
    NotFound,
    RythmiqError,
    StoreUnavailable,
    place_of,
)
from rythmiq_ray.web.pages import act, groups, job, jobs, operations, overview
from rythmiq_ray.web.render import HERE, environment, page
from rythmiq_ray.web.security import Guard
from rythmiq_ray.web.state import Console, console_of

_STATUS: Final = (
    (NotFound, 404),
    (InvalidJob, 400),
    (ConfigurationError, 500),
    (DatabaseUnavailable, 503),
    (StoreUnavailable, 502),
)


def make_app(console: Console) -> ASGIApp:
    """The application that a console is served as."""
    settings = console.settings
    for name in environment().list_templates():
        environment().get_template(name)  # else the first page would wait for it

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        threading.Thread(target=console.warm, name="console-warm", daemon=True).start()
        yield
        console.close()

    app = Starlette(
        routes=[
            Route("/", overview.overview),
            Route("/jobs", jobs.jobs),
            Route("/find", jobs.find),
            Route("/jobs/{id:uuid}", job.job),
            Route("/jobs/{id:uuid}/{attempt:int}/log", job.log),
            Route("/jobs/{id:uuid}/{attempt:int}/follow", job.follow),
            Route("/jobs/{id:uuid}/{attempt:int}/file", job.file),
            Route("/jobs/{id:uuid}/{attempt:int}/preview", job.preview),
            Route("/jobs/{id:uuid}/{attempt:int}/inputs", job.inputs),
            Route("/groups", groups.groups),
            Route("/groups/{id:uuid}", groups.group),
            Route("/groups/{id:uuid}/picture.json", groups.picture_data),
            Route("/groups/{id:uuid}/members/{place:int}", jobs.member),
            Route("/queues", operations.queues),
            Route("/drivers", operations.drivers),
            Route("/schedules", operations.schedules),
            Route("/cost", operations.cost),
            Route("/act/{action}/{kind}", act.act, methods=["GET", "POST"]),
            Route("/events", events),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        exception_handlers={RythmiqError: _refused, HTTPException: _http, Exception: _unexpected},
        lifespan=lifespan,
    )
    app.state.console = console
    packed = GZipMiddleware(app, minimum_size=2_000)
    return Guard(
        packed,
        keys=console.keys,
        hosts=settings.hosts,
        base=settings.base,
        cookie=f"rythmiq_{settings.port}",
        secure=settings.secure,
    )


async def events(request: Request) -> Response:
    """Stream ``/events``: an event whenever pages should reload their data."""
    console = console_of(request)

    async def stream() -> AsyncIterator[str]:
        yield "retry: 3000\n\n"
        async for _ in console.feed.changes():
            yield "event: change\ndata: {}\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RythmiqError)  # noqa: S101 - registered for that class
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return page(request, "fault.html", status=status, title="Not shown", live=False, said=None, fault=error.message)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for that class
    fault = "There is no such page." if error.status_code == 404 else error.detail
    return page(request, "fault.html", status=error.status_code, title="Not shown", live=False, said=None, fault=fault)


def _unexpected(request: Request, error: Exception) -> Response:
    # Without the message, which may contain a row's values. The guard logs where it arose.
    fault = f"A fault of the console itself: {type(error).__name__} at {place_of(error)}."
    return page(request, "fault.html", status=500, title="Not shown", live=False, said=None, fault=fault)
