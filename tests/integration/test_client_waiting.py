"""All who wait share one connection, have a time of their own, and outlive an outage."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import Any
from uuid import uuid4

import pytest

from rythmiq_ray import Client, JobSpec, NewJob, cli, grid, waiting
from rythmiq_ray.client import JobHandle
from rythmiq_ray.errors import DatabaseUnavailable, NotFound
from rythmiq_ray.queue import listing
from rythmiq_ray.queue.listing import Connection

SPEC = JobSpec(command="true")
PATIENCE_S = 60.0


@pytest.fixture
def client(database_url: str) -> Iterator[Client]:
    with Client(database_url) as opened:
        yield opened


def until(condition: Callable[[], object], what: str) -> None:
    end = monotonic() + PATIENCE_S
    while not condition():
        assert monotonic() < end, what
        sleep(0.02)


def listening(connection: Connection) -> list[int]:
    """The processes of connections that wait."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND (query LIKE 'LISTEN%' OR query LIKE '%AS failed%')"
        )
        return [pid for (pid,) in cursor.fetchall()]


def cut(connection: Connection) -> None:
    with connection.cursor() as cursor:
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        cursor.execute(f"SELECT pid, pg_terminate_backend(pid) {others}")
        gone = [row[0] for row in cursor.fetchall()]

        def left() -> bool:
            cursor.execute(f"SELECT {others} AND pid = ANY(%s)", [gone])
            return bool(cursor.fetchall())

        until(lambda: not left(), "they stay")


class Cable:
    """Stands between the waiting thread and Postgres: while it is cut, who connects hears nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.whole = threading.Event()
        self.whole.set()
        self.tried = threading.Event()
        connect = waiting.connect

        def through(*arguments: Any) -> Connection:
            self.tried.set()
            self.whole.wait()
            return connect(*arguments)

        monkeypatch.setattr(waiting, "connect", through)

    def cut(self, connection: Connection) -> None:
        self.whole.clear()
        self.tried.clear()
        cut(connection)
        assert self.tried.wait(PATIENCE_S)


@pytest.fixture
def cable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cable]:
    made = Cable(monkeypatch)
    yield made
    made.whole.set()


def test_many_who_wait_have_one_connection(client: Client, connection: Connection) -> None:
    sweep = client.sweep(SPEC, grid(N=range(60)))
    members = sweep.members()
    most = 0

    async def run() -> None:
        nonlocal most
        waiters = [asyncio.ensure_future(ended(member)) for member in members]
        until_one = asyncio.to_thread(until, lambda: listening(connection), "nobody listens")
        await until_one
        with ThreadPoolExecutor(8) as threads:
            others = [threads.submit(members[at].result) for at in range(8)]
            most = len(listening(connection))
            await asyncio.to_thread(sweep.cancel)
            await asyncio.gather(*waiters)
            assert [each.result(PATIENCE_S).state for each in others] == ["CANCELLED"] * 8

    async def ended(member: JobHandle) -> None:
        with pytest.raises(Exception, match="cancelled before it started"):
            await member

    asyncio.run(run())
    assert most == 1
    client.close()
    until(lambda: not listening(connection), "it stays open")


def test_the_connection_goes_once_nobody_waits(
    client: Client, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client._waiting, "_slow_s", 0.05)
    job = client.submit(SPEC)
    with pytest.raises(TimeoutError):
        job.wait(timeout=0.01)
    until(lambda: not listening(connection), "it stays open")
    until(lambda: client._waiting._thread is None, "its thread stays")
    with pytest.raises(TimeoutError, match="has not ended within"):
        job.wait(timeout=0.01)
    job.cancel()
    with pytest.raises(Exception, match="cancelled before it started"):
        job.wait(timeout=0)


def test_who_waits_outlives_an_outage(client: Client, connection: Connection) -> None:
    job = client.submit(SPEC)
    with ThreadPoolExecutor(1) as threads:
        result = threads.submit(job.result)
        until(lambda: listening(connection), "nobody listens")
        cut(connection)
        until(lambda: listening(connection), "nobody listens again")
        with connection.cursor() as cursor:
            cursor.execute("SELECT rythmiq.cancel(%s)", [job.id])
        assert result.result(PATIENCE_S).state == "CANCELLED"


def test_a_time_is_over_in_an_outage_too(client: Client, connection: Connection, cable: Cable) -> None:
    job = client.submit(SPEC)

    async def run() -> None:
        waiter = asyncio.ensure_future(job._awaited())
        await asyncio.to_thread(until, lambda: listening(connection), "nobody listens")
        await asyncio.to_thread(cable.cut, connection)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiter, 0.1)

    asyncio.run(run())
    with pytest.raises(TimeoutError):
        job.wait(timeout=0.1)
    assert not cable.whole.is_set(), "all of that happened in the outage"


def test_the_command_ends_in_time_in_an_outage(
    client: Client,
    cable: Cable,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = client.submit(SPEC)
    monkeypatch.setenv("DATABASE_URL", database_url)
    cable.whole.clear()
    assert cli.run(["wait", str(job.id), "--timeout", "0.1"]) == 124
    assert "--timeout 0.1 has passed" in capsys.readouterr().err


def test_who_waits_is_told_that_the_client_was_closed(client: Client, connection: Connection) -> None:
    job = client.submit(SPEC)
    with ThreadPoolExecutor(1) as threads:
        result = threads.submit(job.wait)
        until(lambda: listening(connection), "nobody listens")
        client.close()
        with pytest.raises(DatabaseUnavailable, match="was closed"):
            result.result(PATIENCE_S)
    assert client.submit_many([NewJob(spec=SPEC)]), "a later call opens another"


def test_a_client_is_closed_between_two_polls(client: Client) -> None:
    job = client.submit(SPEC)
    changes = client._waiting.changes([listing.Found(job.id, True)])
    assert next(changes)
    client.close()
    with pytest.raises(DatabaseUnavailable, match="was closed"):
        next(changes)


def test_a_group_that_is_not_there_is_no_empty_one(client: Client) -> None:
    sweep = client.sweep(SPEC, grid(N=[1]))
    sweep.id = uuid4()
    with pytest.raises(NotFound):
        list(sweep.as_completed())
    with pytest.raises(NotFound):
        sweep.wait()

    async def run() -> None:
        async for _member in sweep.as_completed():
            pass

    with pytest.raises(NotFound):
        asyncio.run(run())


def test_a_server_that_is_not_there_is_said_at_once(empty_database_url: str) -> None:
    with Client(empty_database_url) as client, pytest.raises(DatabaseUnavailable, match="rythmiq migrate"):
        JobHandle(client, uuid4()).wait()


def test_a_lost_connection_costs_no_call(client: Client, connection: Connection) -> None:
    job = client.submit(SPEC)
    cut(connection)
    assert job.state == "QUEUED"

    def commit() -> None:
        with client._database() as own:
            listing.total(own, listing.Filter())
            cut(connection)

    with pytest.raises(DatabaseUnavailable):
        commit()
