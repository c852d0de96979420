"""Two sessions on a real Postgres, their statements in every order: who owns a job, and whether an end is lost.

Each operation is one transaction in three steps: it begins, it runs its statement, it commits. All orders of the steps
of two operations are tried, so that a commit may be late and a statement may wait for the other session.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest

from rythmiq_ray.queue.sql import queries

A, B = UUID(int=0xA), UUID(int=0xB)
RUNNING, QUEUED, FAILED = UUID(int=1), UUID(int=2), UUID(int=3)
START: Final = datetime(2026, 1, 1, tzinfo=UTC)
LEASE_S: Final = 30.0
IN_TIME: Final = START + timedelta(seconds=LEASE_S - 1)
"""A moment in which the lease of driver A holds; its operations began then, however late they come."""
TOO_LATE: Final = START + timedelta(seconds=LEASE_S + 1)
RENEW_OF_0_1_0: Final = """
UPDATE rythmiq.drivers
SET heartbeat_at = %(now)s, lease_expires_at = %(now)s::timestamptz + make_interval(secs => %(lease_s)s)
WHERE driver_id = %(driver_id)s AND lease_expires_at > %(now)s
RETURNING driver_id
"""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Operation:
    """A statement of one driver, or of a person."""

    name: str
    sql: str
    driver: UUID
    parameters: dict[str, Any] = field(default_factory=dict)
    now: datetime = IN_TIME


def by_driver(name: str, driver: UUID = A, *, now: datetime = IN_TIME, **parameters: Any) -> Operation:
    return Operation(name, queries("driver")[name], driver, parameters, now)


def by_person(name: str, *ids: UUID) -> Operation:
    return Operation(name, queries("inspect")[name], UUID(int=0), {"ids": [str(i) for i in ids], "queue": None})


def ending(job_id: UUID) -> str:
    record = {"job_id": str(job_id), "attempt": 1, "state": "SUCCEEDED", "warnings": [], "free": False, "artifacts": []}
    return json.dumps([record])


STEP: Final = json.dumps([{"job_id": str(RUNNING), "attempt": 1, "phase": "waiting", "remote_id": 7}])
OF_A: Final = (
    by_driver("renew", lease_s=LEASE_S),
    Operation("renew of 0.1.0", RENEW_OF_0_1_0, A, {"lease_s": LEASE_S}),
    by_driver("claim"),
    by_driver("advance", rows=STEP),
    by_driver("finish", rows=ending(RUNNING)),
    by_driver("release"),
    by_driver("resign"),
    by_driver("disown", known=[]),
)
OF_OTHERS: Final = (
    by_driver("adopt", B, now=TOO_LATE),
    by_driver("claim", B, now=TOO_LATE),
    by_person("cancel", FAILED, QUEUED, RUNNING),
    by_person("retry", FAILED),
)
PAIRS: Final = [
    *itertools.product(OF_A, OF_OTHERS),
    *itertools.combinations_with_replacement(OF_OTHERS, 2),
]
ORDERS: Final = sorted(set(itertools.permutations("aaabbb")))


class Session:
    """One operation on a connection of its own, a step at a time."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg2.connect(url)
        self.pid = self.connection.info.backend_pid
        self.rows: Rows = []
        self.error: psycopg2.Error | None = None
        self.fault: Exception | None = None
        self._todo: list[Callable[[], None]] = []
        self._thread: threading.Thread | None = None

    def begin(self, operation: Operation) -> None:
        self.rows, self.error = [], None
        cursor = self.connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor)
        parameters = dict.fromkeys(("queues", "queue", "groups", "only", "skipped", "account", "age_s", "after"))
        parameters |= {"limit": 10, "downstream": False, **operation.parameters}
        parameters |= {"driver_id": str(operation.driver), "now": operation.now}

        def run() -> None:
            cursor.execute(operation.sql, parameters)
            self.rows = [dict(row) for row in cursor.fetchall()] if cursor.description else []

        self._todo = [lambda: cursor.execute("SELECT now()"), run, self.connection.commit]

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def done(self) -> bool:
        return not self._todo and not self.busy

    def step(self, waits: Callable[[int], bool]) -> None:
        """Begins the next step, and returns once it is done or waits for another session."""
        if self.busy or not self._todo:
            return
        todo = self._todo.pop(0)

        def carry_out() -> None:
            try:
                todo()
            except psycopg2.Error as error:
                self.error = error
                self.connection.rollback()
                self._todo.clear()
            except Exception as error:  # noqa: BLE001 - raised again by join
                self.fault = error
                self._todo.clear()

        self._thread = threading.Thread(target=carry_out)
        self._thread.start()
        while self.busy and not waits(self.pid):
            time.sleep(0.001)

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self.fault is not None:
            raise self.fault


class Table:
    """The tables of one test, and who waits for whom."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg2.connect(url, cursor_factory=psycopg2.extras.RealDictCursor)
        self.connection.autocommit = True
        self.first, self.second = Session(url), Session(url)

    def rows(self, sql: str, **parameters: Any) -> Rows:
        cursor = self.connection.cursor()
        cursor.execute(sql, parameters)
        return [dict(row) for row in cursor.fetchall()] if cursor.description else []

    def waits(self, pid: int) -> bool:
        return bool(self.rows("SELECT cardinality(pg_blocking_pids(%(pid)s)) > 0 AS waits", pid=pid)[0]["waits"])

    def set_up(self) -> None:
        """Driver A has a job, and a lease that ends between its operations and others'; a job waits, and one failed."""
        self.rows("DELETE FROM rythmiq.jobs; DELETE FROM rythmiq.drivers")
        self.rows(
            "INSERT INTO rythmiq.drivers (driver_id, hostname, pid, version, heartbeat_at, lease_expires_at)"
            " VALUES (%(a)s, 'a', 1, '', %(start)s, %(end)s), (%(b)s, 'b', 1, '', %(end)s, %(far)s)",
            a=str(A),
            b=str(B),
            start=START,
            end=START + timedelta(seconds=LEASE_S),
            far=START + timedelta(days=1),
        )
        self.rows(
            "INSERT INTO rythmiq.jobs"
            " (job_id, spec, state, phase, attempt, driver_id, remote_path, next_visible_at, updated_at, finished_at)"
            " VALUES"
            " (%(running)s, '{}', 'RUNNING', 'waiting', 1, %(a)s, 'x', %(start)s, %(start)s, NULL),"
            " (%(queued)s, '{}', 'QUEUED', NULL, 0, NULL, NULL, %(start)s, %(start)s, NULL),"
            " (%(failed)s, '{}', 'FAILED', NULL, 1, %(a)s, 'x', %(start)s, %(start)s, %(start)s)",
            running=str(RUNNING),
            queued=str(QUEUED),
            failed=str(FAILED),
            a=str(A),
            start=START,
        )
        self.rows(
            "INSERT INTO rythmiq.attempts"
            " (job_id, attempt, driver_id, remote_path, state, started_at, finished_at) VALUES"
            " (%(running)s, 1, %(a)s, 'x', 'RUNNING', %(start)s, NULL),"
            " (%(failed)s, 1, %(a)s, 'x', 'FAILED', %(start)s, %(start)s)",
            running=str(RUNNING),
            failed=str(FAILED),
            a=str(A),
            start=START,
        )

    def run(self, first: Operation, second: Operation, order: tuple[str, ...]) -> None:
        self.first.begin(first)
        self.second.begin(second)
        for turn in order:
            (self.first if turn == "a" else self.second).step(self.waits)
        while not (self.first.done and self.second.done):
            for session in (self.first, self.second):
                session.step(self.waits)
            time.sleep(0.001)

    def run_alone(self, operation: Operation) -> Rows:
        self.first.begin(operation)
        while not self.first.done:
            self.first.step(self.waits)
        assert self.first.error is None
        return self.first.rows

    def close(self) -> None:
        for session in (self.first, self.second):
            session.join()
            session.connection.close()
        self.connection.close()


@pytest.fixture
def table(database_url: str) -> Iterator[Table]:
    table = Table(database_url)
    yield table
    table.close()


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda operation: f"{operation.name}".replace(" ", "-"))
def test_in_every_order_each_job_has_one_owner_and_no_end_is_lost(
    table: Table, first: Operation, second: Operation
) -> None:
    for order in ORDERS:
        table.set_up()
        table.run(first, second, order)
        found = {first.name: table.first.rows, second.name: table.second.rows}
        said = f"{first.name}, {second.name} in the order {''.join(order)}: {found}"
        for session in (table.first, table.second):
            assert session.error is None, f"{said}: {session.error}"
        check(table, first, second, table.first.rows, table.second.rows, said)


def check(table: Table, first: Operation, second: Operation, of_first: Rows, of_second: Rows, said: str) -> None:
    jobs = {UUID(str(row["job_id"])): row for row in table.rows("SELECT * FROM rythmiq.jobs")}
    taken = {UUID(str(row["job_id"])) for row in of_second} if second.name == "adopt" else set()
    claims = [
        row["job_id"] for one, rows in ((first, of_first), (second, of_second)) if one.name == "claim" for row in rows
    ]
    assert len(claims) == len(set(claims)), f"claimed twice: {said}"
    for row in table.rows(
        "SELECT j.job_id, j.attempt, array_agg(a.attempt) AS open FROM rythmiq.jobs AS j"
        " LEFT JOIN rythmiq.attempts AS a ON a.job_id = j.job_id AND a.state = 'RUNNING'"
        " WHERE j.state = 'RUNNING' GROUP BY 1, 2"
    ):
        assert row["open"] == [row["attempt"]], f"a running job has its one open attempt: {said}"

    if taken:
        for job_id in taken:
            assert UUID(str(jobs[job_id]["driver_id"])) == B, f"what was taken is the taker's: {said}"
        if first.name.startswith("renew"):
            assert of_first == [], f"both have the lease: {said}"
        if first.name == "finish":
            assert RUNNING not in taken or not any(row["written"] for row in of_first), f"ended and taken: {said}"
        if first.name == "advance" and RUNNING in taken:
            (seen,) = [row["remote_id"] == 7 for row in of_second if UUID(str(row["job_id"])) == RUNNING]
            assert any(row["written"] for row in of_first) == seen, f"what was written is not what was taken: {said}"
        assert not any(row["written"] for row in table.run_alone(by_driver("advance", rows=STEP))), said
        assert not any(row["written"] for row in table.run_alone(by_driver("finish", rows=ending(RUNNING)))), said
        if first.name == "claim":
            left = {UUID(str(row["job_id"])) for row in of_first} - taken
            assert not left, f"a driver claimed while its lease was taken: {said}"
    if taken and first.name not in ("release", "disown"):  # What was given back is taken from nobody's lease.
        for again in (OF_A[0], OF_A[1]):
            assert table.run_alone(again) == [], f"a taken lease was renewed, in time by its own clock: {said}"
        assert table.run_alone(by_driver("claim")) == [], f"a driver without a lease claimed: {said}"
    if first.name == "finish":
        # The end is written, or is kept to be written, or the job is another's: it is never lost between two.
        (state,) = [row["written"] for row in of_first] or [None]
        job = jobs[RUNNING]
        if state is True:
            assert job["state"] == "SUCCEEDED", said
        elif state is False:
            again = table.run_alone(first)
            owner = table.rows("SELECT driver_id FROM rythmiq.jobs WHERE job_id = %(id)s", id=str(RUNNING))[0][
                "driver_id"
            ]
            assert bool(again and again[0]["written"]) == (UUID(str(owner)) == A), said
        else:
            assert UUID(str(job["driver_id"])) != A, said
    if second.name == "cancel":
        for row in of_second:
            job = jobs[UUID(str(row["job_id"]))]
            if row["state"] == "CANCELLED":
                assert (job["state"], job["attempt"]) == ("CANCELLED", 0), f"a cancelled job was claimed: {said}"
            else:
                assert job["cancel_requested_at"] is not None or job["state"] == "SUCCEEDED", said


def test_several_batches_of_one_dead_driver_all_know_when_it_died(table: Table) -> None:
    table.set_up()
    table.rows(
        "INSERT INTO rythmiq.jobs (spec, state, phase, attempt, driver_id) SELECT '{}', 'RUNNING', 'waiting', 1, %(a)s"
        " FROM generate_series(1, 4)",
        a=str(A),
    )
    seen = []
    for seconds in (1, 5, 9):
        now = START + timedelta(seconds=LEASE_S + seconds)
        rows = table.run_alone(by_driver("adopt", B, now=now, limit=2))
        seen += [row["orphaned_s"] for row in rows]
    assert seen == [1.0, 1.0, 5.0, 5.0, 9.0]
