"""Changes limits at random while things break, and checks whether the jobs at Camber kept to them."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg2
import psycopg2.extensions

from rythmiq_ray.errors import NotFound
from rythmiq_ray.queue import control
from rythmiq_ray.queue.control import Scope

QUEUES: Final = ("default", "night")
USERS: Final = ("ann", "bob", "cid")
EACH_USER: Final = "*"
SCOPES: Final = (
    Scope("account"),
    *(Scope("queue", name) for name in QUEUES),
    *(Scope("user", name) for name in (*USERS, EACH_USER)),
)
LOWEST, HIGHEST = 1, 8
SLACK_S: Final = 1.0
"""A limit counts as in force for this long before and after it was, because the moment of a commit is not known."""


@dataclass(frozen=True, slots=True)
class Change:
    """A limit that was set between two times; ``value`` None = unset."""

    began: float
    ended: float
    value: int | None
    sure: bool
    """False: the answer was lost, so the value before it may still be in force."""


@dataclass
class Limits:
    """Sets limits and keeps their history; times are in seconds since 1970."""

    chance: random.Random
    history: dict[Scope, list[Change]] = field(default_factory=lambda: defaultdict(list))

    def change(self, connection: psycopg2.extensions.connection) -> None:
        """Sets or removes one limit. ``connection`` must be in autocommit mode."""
        scope = self.chance.choice(SCOPES)
        value = None if self.chance.random() < 0.2 else self.chance.randint(LOWEST, HIGHEST)
        self._set(connection, scope, value)

    def lift(self, connection: psycopg2.extensions.connection) -> None:
        """Removes all limits."""
        for scope in SCOPES:
            self._set(connection, scope, None)

    def _set(self, connection: psycopg2.extensions.connection, scope: Scope, value: int | None) -> None:
        began = time.time()
        try:
            if value is None:
                with suppress(NotFound):  # It had none.
                    control.unset_limit(connection, scope)
            else:
                control.set_limit(connection, scope, max_running=value)
        except Exception:
            self.history[scope].append(Change(began, time.time(), value, sure=False))
            raise
        self.history[scope].append(Change(began, time.time(), value, sure=True))

    def highest(self, scope: Scope, at: float) -> int | None:
        """The highest value that may have been in force at about that time; None = no limit."""
        values: set[int | None] = {None}
        for change in self.history[scope]:
            if change.began > at + SLACK_S:
                break
            if change.sure and change.ended < at - SLACK_S:
                values = set()  # What was in force before is over.
            values.add(change.value)
        return None if None in values else max(value for value in values if value is not None)

    def violations(self, journal: Path, attempts: Iterable[Mapping[str, Any]]) -> Iterator[str]:
        """A sentence for each time that more jobs ran at Camber than a limit allowed when the last of them was claimed.

        ``attempts`` have ``path``, ``queue``, ``user_id`` and ``claimed``, the time of their claim.
        """
        known = {str(attempt["path"]): attempt for attempt in attempts}
        alive: dict[str, float] = {}
        for line in journal.read_text().splitlines():
            event = json.loads(line)
            path = str(event.get("mount_dir", "")).strip("/").partition("rythmiq/")[2]
            if event["event"] in ("end", "cancel"):
                alive.pop(path, None)
            elif event["event"] == "create" and path in known:
                alive[path] = float(known[path]["claimed"])
                yield from self._broken(alive, known)

    def _broken(self, alive: Mapping[str, float], known: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
        for scope in SCOPES:
            if scope.name == EACH_USER:
                continue
            of_scope = sorted(claimed for path, claimed in alive.items() if _is_in(known[path], scope))
            if not of_scope:
                continue
            allowed = self.highest(scope, of_scope[-1])
            if scope.kind == "user" and allowed is None:
                allowed = self.highest(Scope("user", EACH_USER), of_scope[-1])
            if allowed is not None and len(of_scope) > allowed:
                yield f"{len(of_scope)} ran in {scope}, of which {allowed} were allowed when the last was claimed"


def _is_in(attempt: Mapping[str, Any], scope: Scope) -> bool:
    match scope.kind:
        case "account":
            return True
        case "queue":
            return bool(attempt["queue"] == scope.name)
    return bool(attempt["user_id"] == scope.name)
