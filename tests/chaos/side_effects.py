"""Every side effect of a driver, read from the code, and a way to die just before or just after one.

A new writing statement, a new changing route or a new writing method of the store is a new point by itself.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from rythmiq_ray.artifacts import ArtifactStore, LocalArtifactStore
from rythmiq_ray.backends.camber.client import CamberClient
from rythmiq_ray.config_loader import load
from rythmiq_ray.queue.session import Session
from rythmiq_ray.queue.sql import queries

READING_ROUTES = frozenset({"stash_list"})
"""A POST that changes nothing."""
OF_NO_RUNNING_JOB = frozenset({"queue.refuse", "queue.delete_expired", "queue.forget_artifacts"})
"""One statement about a row that nobody runs, or runs any more: what a crash leaves there, the next look finds."""
NOT_THE_DRIVERS = frozenset({"store.delete", "store.write_input"})
"""``rythmiq prune`` alone deletes artifacts."""


def statements() -> set[str]:
    return {
        f"queue.{name}"
        for name, text in queries("driver").items()
        if re.search(r"\b(INSERT|UPDATE|DELETE)\b", re.sub(r"--.*|FOR UPDATE", "", text))
    }


def routes(environ: dict[str, str]) -> set[str]:
    known = load(environ=environ).config.camber.routes
    return {f"camber.{name}" for name, route in known.items() if route.method != "GET"} - {
        f"camber.{name}" for name in READING_ROUTES
    }


def store_methods() -> set[str]:
    names = {name for name in vars(ArtifactStore) if name.startswith(("write", "delete", "remove", "put", "copy"))}
    return {f"store.{name}" for name in names} - NOT_THE_DRIVERS


def all_points(environ: dict[str, str]) -> list[str]:
    effects = (statements() - OF_NO_RUNNING_JOB) | routes(environ) | store_methods()
    return sorted(f"{when}:{effect}" for effect in effects for when in ("before", "after"))


class Tripwire:
    """Notes in a file each point that is passed, and kills the process at one."""

    def __init__(self, record: Path, die_at: str | None) -> None:
        self._record = record
        self._die_at = die_at
        self._seen: set[str] = set()
        self._lock = threading.Lock()

    def install(self) -> None:
        self._wrap(Session, "_run", lambda _self, name, **_: f"queue.{name}")
        self._wrap(CamberClient, "_once", lambda _self, operation, **_: f"camber.{operation}")
        for point in store_methods():
            name = point.partition(".")[2]
            self._wrap(LocalArtifactStore, name, lambda *_args, _point=point, **_: _point)

    def _wrap(self, owner: type[Any], name: str, effect_of: Callable[..., str]) -> None:
        original = getattr(owner, name)

        @wraps(original)
        def passing(*args: Any, **kwargs: Any) -> Any:
            effect = effect_of(*args, **kwargs)
            self._pass(f"before:{effect}")
            result = original(*args, **kwargs)
            self._pass(f"after:{effect}")
            return result

        setattr(owner, name, passing)

    def _pass(self, point: str) -> None:
        with self._lock:
            if point not in self._seen:
                self._seen.add(point)
                with self._record.open("a") as file:
                    file.write(point + "\n")
            if point == self._die_at:
                os.kill(os.getpid(), signal.SIGKILL)
