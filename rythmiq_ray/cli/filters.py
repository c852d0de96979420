"""The selection of jobs that many commands share: by filter options, or by ids and names."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, get_type_hints
from uuid import UUID

import typer

from rythmiq_ray.cli.failure import say
from rythmiq_ray.errors import NotFound
from rythmiq_ray.filtering import labels_of, past_time
from rythmiq_ray.model import JobState

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from rythmiq_ray.queue.listing import Filter, Found

_F = TypeVar("_F", bound=Callable[..., Any])

References = Annotated[
    list[str] | None,
    typer.Argument(metavar="ID|GROUP...", help="Ids, their first digits (4 or more), or names."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before many jobs are changed.")]


def _many(flag: str, metavar: str, words: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=words)


_OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "groups": (list[str] | None, _many("--group", "GROUP", "Only members of this group, by id or name.")),
    "queues": (list[str] | None, _many("--queue", "NAME", "Only jobs of this queue.")),
    "users": (list[str] | None, typer.Option("--user", "--user-id", metavar="USER", help="Only this user's jobs.")),
    "states": (
        list[JobState] | None,
        typer.Option("--state", case_sensitive=False, help="Only jobs in this state; each filter may be given again."),
    ),
    "name": (str | None, typer.Option("--name", metavar="GLOB", help="Only jobs whose name matches.")),
    "labels": (list[str] | None, _many("--label", "K=V", "Only jobs with this label.")),
    "errors": (list[str] | None, _many("--error", "CODE", "Only jobs with this error code.")),
    "since": (str | None, typer.Option("--since", metavar="TIME", help="Enqueued later: 2h or 30d ago, or a date.")),
    "until": (str | None, typer.Option("--until", metavar="TIME", help="Enqueued before: 2h or 30d ago, or a date.")),
}


@dataclass(frozen=True)
class JobSelection:
    """The values of the filter options; groups are not resolved yet."""

    groups: Sequence[str]
    filter: Filter
    written: Sequence[tuple[str, str]] = ()
    """Name and value of each option, as it was given."""

    @property
    def given(self) -> bool:
        """Whether any filter was given."""
        return bool(self.groups) or not self.filter.empty

    def resolved(self, connection: Connection) -> Filter:
        """The filter, with groups resolved to ids; raises NotFound."""
        if not self.groups:
            return self.filter
        return replace(self.filter, groups=[_group(connection, name) for name in self.groups])


def filtered(command: _F) -> _F:
    """Decorator that adds the filter options to a command, which receives them as one argument ``wanted``."""
    hints = get_type_hints(command, include_extras=True)
    parameters = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name == "wanted":
            parameters += [
                inspect.Parameter(
                    f"filter_{name}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option]
                )
                for name, (kind, option) in _OPTIONS.items()
            ]
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def run(**arguments: Any) -> Any:
        values = {name: arguments.pop(f"filter_{name}") for name in _OPTIONS}
        return command(**arguments, wanted=_wanted(**values))

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__  # Otherwise Typer would use the signature of the wrapped function.
    return run  # type: ignore[return-value]


def _wanted(
    *,
    groups: list[str] | None,
    queues: list[str] | None,
    users: list[str] | None,
    states: list[JobState] | None,
    name: str | None,
    labels: list[str] | None,
    errors: list[str] | None,
    since: str | None,
    until: str | None,
) -> JobSelection:
    from rythmiq_ray.queue.listing import Filter

    return JobSelection(
        groups=groups or (),
        filter=Filter(
            queues=queues or None,
            users=users or None,
            states=states or None,
            name=name,
            labels=labels_of(labels or ()),
            errors=errors or None,
            since=None if since is None else time_of(since, "--since"),
            until=None if until is None else time_of(until, "--until"),
        ),
        written=[
            (name, str(value))
            for name, values in {
                "group": groups,
                "queue": queues,
                "user": users,
                "state": states,
                "name": name and [name],
                "label": labels,
                "error": errors,
                "since": since and [since],
                "until": until and [until],
            }.items()
            for value in values or ()
        ],
    )


def time_of(text: str, option: str, now: datetime | None = None) -> datetime:
    """As :func:`~rythmiq_ray.filtering.past_time`, but raises BadParameter for the option."""
    try:
        return past_time(text, now)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _group(connection: Connection, name: str) -> UUID:
    from rythmiq_ray.queue.listing import find

    found = find(connection, name)
    if found.is_job:
        raise NotFound(f"{name!r} is a job, not a group")
    return found.id


def found_of(connection: Connection, references: Sequence[str] | None) -> list[Found]:
    """The jobs and groups with these ids and names, without duplicates; raises NotFound for the first unknown one."""
    from rythmiq_ray.queue.listing import find

    return list(dict.fromkeys(find(connection, reference) for reference in references or ()))


def selected_states(
    connection: Connection, references: Sequence[str] | None, wanted: JobSelection
) -> dict[UUID, JobState]:
    """The selected jobs: those given, the members of given groups, and of these the ones that match the filters."""
    from rythmiq_ray.queue import listing

    asked = wanted.resolved(connection)
    if not references:
        return listing.ids(connection, asked)
    found = found_of(connection, references)
    states = listing.ids(connection, replace(asked, ids=[item.id for item in found if item.is_job]))
    if groups := [item.id for item in found if not item.is_job]:
        states |= listing.ids(connection, replace(asked, groups=groups))
    return states


def require_selection(context: typer.Context, references: Sequence[str] | None, wanted: JobSelection) -> None:
    """Refuses a command that would select every job."""
    if not references and not wanted.given:
        raise typer.BadParameter("give ids, names or groups, or filters such as --state or --group", ctx=context)


def confirm(count: int, what: str, *, yes: bool) -> None:
    """Asks before jobs that filters selected are changed."""
    if yes or count == 0:
        return
    words = f"{what} {count:,} job{'' if count == 1 else 's'}?"
    if not sys.stdin.isatty():
        say(f"{words} (without a terminal, give --yes)")
    typer.confirm(words, abort=True, err=True)
