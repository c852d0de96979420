"""Converts the CLI's filters to a query string and back; invalid values are reported, not ignored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from rythmiq_ray.errors import InvalidJob, NotFound
from rythmiq_ray.filtering import labels_of, past_time
from rythmiq_ray.model import JobState
from rythmiq_ray.queue.listing import Filter, find

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

NAMES: Final = ("group", "queue", "user", "state", "name", "label", "error", "since", "until")
"""The same names as the options of the command line."""
_LONGEST: Final = 1_000
_MOST: Final = 100


@dataclass(frozen=True)
class ParsedFilter:
    """The filters of a query string."""

    given: tuple[tuple[str, str], ...]
    """Name and value of each filter, as it was given."""
    filter: Filter = field(default_factory=Filter)
    faults: tuple[str, ...] = ()

    @property
    def query(self) -> str:
        """The filters as a query string."""
        return urlencode(self.given)

    @property
    def command(self) -> str:
        """The filters as options of the command line."""
        import shlex

        return " ".join(f"--{name} {shlex.quote(value)}" for name, value in self.given)

    @property
    def text(self) -> str:
        """The filters as a text that :func:`items_of` reads."""
        import shlex

        return " ".join(f"{name}={shlex.quote(value)}" for name, value in self.given)

    def values(self, name: str) -> list[str]:
        """The values given for one filter."""
        return [value for known, value in self.given if known == name]

    def with_(self, name: str, *values: str) -> str:
        """The query string with other values of one filter."""
        kept = [(known, value) for known, value in self.given if known != name]
        return urlencode(kept + [(name, value) for value in values])

    def toggled(self, name: str, value: str) -> str:
        """The query string with a value of a filter added, or removed if it was there."""
        now = self.values(name)
        return self.with_(name, *([each for each in now if each != value] if value in now else [*now, value]))


def read(items: Iterable[tuple[str, str]], connection: Connection) -> ParsedFilter:
    """Reads the items of a query string, and looks up the names of groups. Raises DatabaseUnavailable."""
    given = tuple((k, v.strip()[:_LONGEST]) for k, v in items if k in NAMES and v.strip())[:_MOST]
    asked = ParsedFilter(given)
    faults: list[str] = []
    wanted = Filter(
        queues=asked.values("queue") or None,
        users=asked.values("user") or None,
        states=_states(asked.values("state"), faults) or None,
        name=next(iter(asked.values("name")), None),
        errors=asked.values("error") or None,
    )
    try:
        wanted = replace(wanted, labels=labels_of(asked.values("label")))
    except InvalidJob as error:
        faults += error.faults
    wanted = replace(wanted, since=_time("since", asked, faults), until=_time("until", asked, faults))
    if groups := asked.values("group"):
        wanted = replace(wanted, groups=[])
        found = []
        for name in groups:
            try:
                each = find(connection, name)
            except NotFound as error:
                faults.append(error.message)
                continue
            if each.is_job:
                faults.append(f"{name!r} is a job, not a group")
            else:
                found.append(each.id)
        wanted = replace(wanted, groups=found)
    return replace(asked, filter=wanted, faults=tuple(faults))


def items_of(text: str) -> list[tuple[str, str]]:
    """Names and values in a text such as ``queue=night state=failed 'name=fit *'``.

    A word without ``=`` is a glob for a job's name or a part of it. Raises ValueError with a sentence for the user.
    """
    import shlex

    items = []
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"it cannot be parsed: {error}") from None
    for word in words:
        name, mark, value = word.partition("=")
        if not mark:
            items.append(("name", word if set(word) & set("*?[") else f"*{word}*"))
        elif name not in NAMES:
            raise ValueError(f"there is no filter {name!r}; filters are {', '.join(NAMES)}")
        else:
            items.append((name, value))
    return items


def _time(name: str, asked: ParsedFilter, faults: list[str]) -> datetime | None:
    for value in asked.values(name)[:1]:
        try:
            return past_time(value)
        except ValueError as error:
            faults.append(f"{name}: {error}")
    return None


def _states(values: Sequence[str], faults: list[str]) -> list[JobState]:
    states = []
    for value in values:
        try:
            states.append(JobState(value.upper()))
        except ValueError:
            faults.append(f"state: {value!r} is not one of {', '.join(JobState).lower()}")
    return states
