"""The changes that keys can make. Each is prepared in the background, confirmed once, then made and reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from rythmiq_ray.console import filters, formatting
from rythmiq_ray.console.actions import ACTIONS, Target, job_ids
from rythmiq_ray.console.database import FAULTS, Database, said_of
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.model import Job, JobState
from rythmiq_ray.queue import control
from rythmiq_ray.queue.control import Rights
from rythmiq_ray.queue.listing import DriverState

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection


@dataclass(frozen=True)
class Change:
    """A change that is prepared but not confirmed yet."""

    label: str
    """Its name, such as ``Cancel``."""
    question: str
    meaning: str
    run: Callable[[Connection], str]
    """Makes the change, and returns a sentence on what was done."""


_LONGEST: Final = 60
"""The most characters of a name in a question."""
Ready = Callable[[Database], Change]
"""Prepares a change. Raises the errors of a database read, and InvalidJob if there is nothing to change."""


def refusal(rights: Rights, verb: str) -> str | None:
    """Why the login may not do this; None if it may."""
    if getattr(rights, "pause" if verb == "resume" else verb):
        return None
    return f"The login {formatting.on_one_line(rights.login)} may not {verb}: that needs the role rythmiq_operator."


def on_jobs(verb: str, target: Target, what: str) -> Ready:
    """Prepares ``cancel`` or ``retry``, which work as in the web console and the command line."""
    action = ACTIONS[verb]

    def ready(database: Database) -> Change:
        with database.read() as connection:
            count = len(job_ids(connection, target, action.states or list(JobState)))
        if not count:
            raise InvalidJob([f"nothing of {what} is left to {verb}"])
        these = what if target.kind == "job" else f"{formatting.plural(count, 'job')} of {what}"
        return Change(
            action.label,
            f"{action.label} {these}?",
            action.meaning,
            lambda connection: action.run(connection, target, False),
        )

    return ready


def called(kind: str, name: object) -> str:
    """A kind and a name, such as ``queue night``; a long name is cut, so that the question still fits."""
    return f"{kind} {formatting.short(str(name), _LONGEST)}"


def job_target(job: Job) -> tuple[Target, str]:
    """A job as a target, and its name for questions."""
    return Target(
        "job", id=job.job_id
    ), f"job {str(job.job_id)[:13]} ({formatting.short(formatting.called(job), _LONGEST)})"


def group_target(group_id: UUID, name: str | None) -> tuple[Target, str]:
    return Target("group", id=group_id), called("group", name or group_id)


def queue_target(connection: Connection, queue: str) -> tuple[Target, str]:
    """The jobs of a queue as a target, and its name for questions."""
    return Target("filter", asked=filters.read([("queue", queue)], connection)), called("queue", queue)


def on_queue(verb: str, queue: str) -> Ready:
    """Like :func:`on_jobs`, for the jobs of a queue."""

    def ready(database: Database) -> Change:
        with database.read() as connection:
            target, what = queue_target(connection, queue)
        return on_jobs(verb, target, what)(database)

    return ready


def pause(target: Target, what: str, *, paused: bool) -> Ready:
    """Prepares to pause a queue, a group or the account, or to resume it if it is paused."""
    action = ACTIONS["resume" if paused else "pause"]

    def run(connection: Connection) -> str:
        action.run(connection, target, False)
        return f"{_first(what)} {'goes on' if paused else 'is paused'}."

    def ready(_database: Database) -> Change:
        return Change(action.label, f"{action.label} {what}?", action.meaning, run)

    return ready


def drain(driver: DriverState) -> Ready:
    """Prepares to drain a driver: it finishes its jobs, takes no new ones, and then ends."""
    driver_called = f"{called('the driver on', driver.hostname)}, process {driver.pid}"

    def run(connection: Connection) -> str:
        control.drain(connection, driver.driver_id)
        return f"{_first(driver_called)} is being drained."

    def ready(_database: Database) -> Change:
        if not driver.alive:
            raise InvalidJob([f"{driver_called} is gone already"])
        return Change("Drain", f"Drain {driver_called}?", "It ends what it has, takes nothing new, and goes.", run)

    return ready


def prepare(database: Database, ready: Ready) -> Change | str:
    """The change to be confirmed, or why it cannot be made."""
    try:
        return ready(database)
    except FAULTS as error:
        return _sentence(error)


def do(database: Database, change: Change) -> str:
    """Makes a change; returns what was done, or why not."""
    try:
        with database.write() as connection:
            return change.run(connection)
    except FAULTS as error:
        return f"{change.label} was not done: {_sentence(error)}"


def _sentence(error: Exception) -> str:
    said = error.faults[0] if isinstance(error, InvalidJob) and error.faults else said_of(error)
    said = formatting.on_one_line(_first(said))
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _first(text: str) -> str:
    return text[:1].upper() + text[1:]
