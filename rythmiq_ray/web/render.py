"""Templates, and what they all can use. Everything that is put into one is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rythmiq_ray import __version__
from rythmiq_ray.console import formatting
from rythmiq_ray.web import times

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

HERE: Final = Path(__file__).parent
NAVIGATION: Final = (
    ("overview", "", "Overview"),
    ("jobs", "jobs", "Jobs"),
    ("groups", "groups", "Groups"),
    ("queues", "queues", "Queues"),
    ("drivers", "drivers", "Drivers"),
    ("schedules", "schedules", "Schedules"),
    ("cost", "cost", "Cost"),
)
"""A page's name, its address below the base, and what it is called."""


@cache
def environment() -> Environment:
    """The templates of the console and of the report."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "visible": formatting.visible,
        "number": formatting.number,
        "measure": formatting.measure,
        "credits": formatting.credits,
        "duration": formatting.duration,
        "rough": formatting.rough,
        "size": formatting.size,
        "moment": times.moment,
        "ago": times.ago,
        "called": formatting.called,
        "stage": formatting.stage,
        "segment": lambda text: quote(str(text), safe=""),
    }
    made.globals |= {"plural": formatting.plural, "version": __version__}
    return made


def render(template: str, context: Mapping[str, Any]) -> str:
    """A template as text."""
    return environment().get_template(template).render(context)


def page(request: Request, template: str, /, *, status: int = 200, **context: Any) -> Response:
    """A page of the console, or a part of one."""
    from starlette.responses import HTMLResponse

    from rythmiq_ray.web.state import console_of

    console = console_of(request)
    common = {
        "base": console.settings.base,
        "navigation": NAVIGATION,
        "here": "",
        "now": datetime.now(UTC),
        "csrf": console.keys.csrf,
        "actions_on": console.settings.actions,
        "said": console.said.of(request.query_params.get("said", "")),
        "live": True,
        # A part that is opened by itself, without scripts, is a page like others.
        "layout": "base.html" if request.headers.get("sec-fetch-dest") == "document" else "bare.html",
    }
    return HTMLResponse(render(template, {**common, **context}), status_code=status)
