"""A command that succeeded is not paid for again because a store refused a write: whole drivers in a scripted world."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scripted_world import LEASE_S, Remote, World

import rythmiq_ray.executor
from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.artifacts import ArtifactStore
from rythmiq_ray.errors import StoreUnavailable
from rythmiq_ray.model import Artifact, RemoteStatus
from rythmiq_ray.queue import inspect

GIVEN_UP_S = 300.0
"""Longer than the faults that end an attempt take."""


class RefusingStore:
    """A real store whose bucket refuses the writes of jobs, and nothing else."""

    def __init__(self, store: ArtifactStore) -> None:
        self._store = store
        self.refuses = True
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def write(self, *args: Any, **kwargs: Any) -> Artifact:
        if self.refuses:
            self.refused += 1
            raise StoreUnavailable("AccessDenied")
        return self._store.write(*args, **kwargs)


@pytest.fixture
def world(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(database_url, tmp_path)
    monkeypatch.setattr(rythmiq_ray.executor, "now_s", lambda: world.clock)
    yield world
    assert world.faults == []
    assert set(world.camber.creates.values()) <= {1}
    world.close()


@pytest.fixture
def store(world: World) -> RefusingStore:
    store = RefusingStore(world.executor.store)
    world.executor = replace(world.executor, store=store)  # type: ignore[arg-type]
    return store


def ended_well(world: World) -> Remote:
    """A job whose command succeeded at the backend."""
    enqueue(world.connection, JobSpec(command="true"), max_attempts=1)
    world.start_driver()
    world.work(3.0)
    (remote,) = world.camber.remotes.values()
    world.camber.begin(remote)
    world.camber.end(remote, RemoteStatus.COMPLETED, 0)
    return remote


def row(world: World) -> dict[str, Any]:
    (row,) = world.rows(
        "SELECT j.*, a.keep_until, a.cleaned_at"
        " FROM rythmiq.jobs AS j JOIN rythmiq.attempts AS a USING (job_id, attempt)"
    )
    return row


def by_collect(world: World) -> None:
    assert inspect.collect(world.connection, [row(world)["job_id"]]) == {}


def by_retry(world: World) -> None:
    assert inspect.retry(world.connection, [row(world)["job_id"]])


def test_while_the_store_refuses_a_job_its_row_says_so(world: World, store: RefusingStore) -> None:
    ended_well(world)
    world.work(20.0)
    assert row(world)["state"] == "RUNNING"
    assert row(world)["wait_reason"] == "store_unavailable: AccessDenied"
    store.refuses = False
    world.work(60.0)
    assert (row(world)["state"], row(world)["attempt"], row(world)["wait_reason"]) == ("SUCCEEDED", 1, None)


@pytest.mark.parametrize("again", [by_collect, by_retry])
def test_what_the_store_refused_is_kept_and_brought_in_by_the_same_attempt(
    world: World, store: RefusingStore, again: Callable[[World], None]
) -> None:
    ended_well(world)
    world.work(GIVEN_UP_S)
    found = row(world)
    assert (found["state"], found["error_code"]) == ("FAILED", "artifacts_not_stored")
    assert "AccessDenied" in found["error_message"]
    assert found["collect_until"] == found["keep_until"] > world.now()
    world.work(5 * LEASE_S)
    assert row(world)["cleaned_at"].year == 9999, "no janitor takes its path, an older one's neither"
    store.refuses = False
    again(world)
    world.work(30.0)
    found = row(world)
    assert (found["state"], found["attempt"], found["exit_code"]) == ("SUCCEEDED", 1, 0)
    assert found["artifact_uri"] is not None
    assert (found["collect_until"], found["keep_until"]) == (None, None)
    world.work(5 * LEASE_S)
    assert row(world)["cleaned_at"] is not None


def test_a_driver_that_dies_while_it_collects_again_costs_no_remote_job(world: World, store: RefusingStore) -> None:
    ended_well(world)
    world.work(GIVEN_UP_S)
    by_collect(world)
    world.work(5.0)
    assert row(world)["phase"] in ("waiting", "collecting")
    world.drivers[0].crash()
    store.refuses = False
    world.start_driver()
    world.work(LEASE_S + 30.0)
    assert (row(world)["state"], row(world)["attempt"]) == ("SUCCEEDED", 1)


def test_what_the_list_has_forgotten_is_collected_from_its_path(world: World, store: RefusingStore) -> None:
    remote = ended_well(world)
    world.work(GIVEN_UP_S)
    store.refuses = False
    listed = world.camber.watch
    world.camber.watch = lambda *_args, **_kwargs: iter(())  # type: ignore[method-assign]
    by_collect(world)
    world.work(60.0)
    world.camber.watch = listed  # type: ignore[method-assign]
    assert remote.status is RemoteStatus.COMPLETED
    assert (row(world)["state"], row(world)["attempt"]) == ("SUCCEEDED", 1)


def test_after_its_time_the_path_goes_and_there_is_nothing_more_to_collect(world: World, store: RefusingStore) -> None:
    ended_well(world)
    world.work(GIVEN_UP_S)
    world.advance(world.config.camber.keep_unstored_s + 60.0)
    world.work(5 * LEASE_S)
    found = row(world)
    assert found["cleaned_at"] is not None
    assert found["collect_until"] is None
    assert inspect.collect(world.connection, [found["job_id"]])[found["job_id"]] == "its kept files were removed"
