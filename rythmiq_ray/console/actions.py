"""The changes that a console can make: each is confirmed once, then done.

Each action is an entry of :data:`ACTIONS`; its page and its buttons are made from that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal
from uuid import UUID

from rythmiq_ray.console import formatting
from rythmiq_ray.console.filters import ParsedFilter
from rythmiq_ray.errors import InvalidJob, NotFound
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import control, inspect, listing
from rythmiq_ray.queue.control import Scope

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

Kind = Literal["job", "group", "filter", "account", "queue", "user"]
"""The kinds of targets. A queue or user is given by name, a job or group by id; there is only one account."""
UNFINISHED: Final = frozenset({JobState.BLOCKED, JobState.QUEUED, JobState.RETRYING, JobState.RUNNING})
ENDED_BADLY: Final = frozenset({JobState.FAILED, JobState.CANCELLED})
MOST_CHANGED: Final = 100_000
"""The most jobs that one action by filter may change; for more, use the command line."""


@dataclass(frozen=True)
class Target:
    """The target of an action."""

    kind: Kind
    id: UUID | None = None
    """The id of a job or group."""
    name: str = ""
    """The name of a queue or user."""
    asked: ParsedFilter | None = None
    """The filters, for the kind ``filter``."""

    @property
    def path(self) -> str:
        """The part of a URL after the action's name. Names are in the query: ``..`` in a path would lead elsewhere."""
        from urllib.parse import urlencode

        if self.kind == "filter":
            return f"filter?{self.asked.query if self.asked else ''}"
        return f"{self.kind}?{urlencode({'name': self.id or self.name})}"

    @property
    def scope(self) -> Scope:
        """The scope that pausing this target pauses."""
        return Scope(self.kind, str(self.id or self.name))


@dataclass(frozen=True)
class Action:
    """A change that a console can make."""

    name: str
    """Its name in URLs."""
    label: str
    """The text of its button."""
    meaning: str
    """What will happen, in a sentence."""
    kinds: Collection[Kind]
    states: Collection[JobState] | None
    """It changes jobs in these states; a button is shown only if there may be one. None for actions on a scope."""
    run: Callable[[Connection, Target, bool], str]
    """Does it, and returns a sentence on what was done. The last argument is whether the ``option`` is chosen."""
    option: str = ""
    """The label of a checkbox beside the button."""
    danger: bool = False


def job_ids(connection: Connection, target: Target, states: Collection[JobState]) -> list[UUID]:
    """The ids of a target's jobs in these states.

    Raises InvalidJob for a filter that is empty, has faults or matches more than ``MOST_CHANGED`` jobs.
    """
    if target.kind == "job":
        assert target.id is not None  # noqa: S101 - the route has it
        wanted = listing.Filter(ids=[target.id])
    elif target.kind == "group":
        assert target.id is not None  # noqa: S101 - the route has it
        wanted = listing.Filter(groups=[target.id])
    else:
        assert target.asked is not None  # noqa: S101 - the route has it
        wanted = target.asked.filter
        if wanted.empty or target.asked.faults:
            raise InvalidJob(["filter: give at least one valid filter; an empty one would match every job"])
        if listing.total(connection, wanted, most=MOST_CHANGED) is None:
            raise InvalidJob([f"filter: matches more than {MOST_CHANGED:,} jobs; use the command line for that many"])
    return [job_id for job_id, state in listing.ids(connection, wanted).items() if state in states]


def _cancel(connection: Connection, target: Target, _option: bool) -> str:
    if target.kind == "group":
        assert target.id is not None  # noqa: S101 - the route has it
        asked = inspect.cancel(connection, groups=[target.id])
    else:
        ids = job_ids(connection, target, UNFINISHED)
        connection.rollback()  # The cancel is tried again after a deadlock only if it begins the transaction.
        asked = inspect.cancel(connection, ids=ids) if ids else {}
    if not asked:
        return "Nothing was left to cancel."
    running = sum(state is JobState.RUNNING for state in asked.values())
    rest = f", {running:,} of them will be stopped by their drivers" if running else ""
    return f"Cancelled {formatting.plural(len(asked), 'job')}{rest}."


def _retry(connection: Connection, target: Target, downstream: bool) -> str:
    ids = job_ids(connection, target, ENDED_BADLY)
    connection.rollback()
    queued = inspect.retry(connection, ids, downstream=downstream) if ids else set()
    if not queued:
        return (
            "Nothing was queued again: no job FAILED or was CANCELLED, another job has its unique key, or what it"
            " needs can no longer succeed."
        )
    left = len(ids) - len(queued.intersection(ids))
    return f"Queued {formatting.plural(len(queued), 'job')} again{f'; {left:,} were left alone' if left else ''}."


def _pause(connection: Connection, target: Target, cancel_running: bool) -> str:
    running = control.pause(connection, target.scope, reason="by the console", cancel_running=cancel_running)
    stopped = f" {formatting.plural(running, 'running job')} will be stopped." if cancel_running else ""
    return f"Paused: nothing new is submitted.{stopped}"


def _resume(connection: Connection, target: Target, _option: bool) -> str:
    control.resume(connection, target.scope)
    return "Resumed."


_SCOPES: Final[tuple[Kind, ...]] = ("account", "queue", "user", "group")
ACTIONS: Final = {
    action.name: action
    for action in (
        Action(
            name="cancel",
            label="Cancel",
            meaning="Waiting jobs end at once, running ones as soon as their driver has stopped them.",
            kinds=("job", "group", "filter"),
            states=UNFINISHED,
            run=_cancel,
            danger=True,
        ),
        Action(
            name="retry",
            label="Retry",
            meaning="Each job that FAILED or was CANCELLED gets one more attempt, which costs as much as any other.",
            kinds=("job", "group", "filter"),
            states=ENDED_BADLY,
            run=_retry,
            option="Also jobs that were cancelled because they needed one of these",
        ),
        Action(
            name="pause",
            label="Pause",
            meaning="Nothing new is submitted until it is resumed; running jobs go on.",
            kinds=_SCOPES,
            states=None,
            run=_pause,
            option="Also cancel running jobs",
            danger=True,
        ),
        Action(
            name="resume",
            label="Resume",
            meaning="Waiting jobs are submitted again, as limits and budgets allow.",
            kinds=_SCOPES,
            states=None,
            run=_resume,
        ),
    )
}


def action_of(name: str, kind: str) -> Action:
    """The action with this name, if it can be done to this kind. Raises NotFound."""
    action = ACTIONS.get(name)
    if action is None or kind not in action.kinds:
        raise NotFound("There is no such action")
    return action


def offered(kind: Kind, states: Collection[JobState]) -> list[Action]:
    """The actions that can change something if jobs are in these states."""
    return [action for action in ACTIONS.values() if kind in action.kinds and set(action.states or ()) & set(states)]


def of_scope(*, paused: bool) -> list[Action]:
    """The actions for a scope: resume if it is paused, else pause."""
    return [ACTIONS["resume" if paused else "pause"]]
