"""Random graphs of jobs and groups under random ends, cancels, retries, deletions and lost connections.

What must hold of the rows at any moment when nobody is at work is said once, as queries that return what breaks it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from uuid import UUID

import psycopg2
import psycopg2.extensions
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rythmiq_ray import JobSpec, NewGroup, NewJob, enqueue_group, enqueue_many
from rythmiq_ray.errors import DatabaseUnavailable, ErrorCode, InvalidJob
from rythmiq_ray.model import ErrorInfo, Job, JobState
from rythmiq_ray.queue import Ending, Queue, inspect
from rythmiq_ray.secret import Secret

Connection = psycopg2.extensions.connection

BROKEN = {
    "a blocked job counts its unmet dependencies": """
        SELECT j.job_id, j.waits_for FROM rythmiq.jobs AS j
        WHERE j.state = 'BLOCKED' AND j.waits_for <> (
            SELECT count(*) FROM rythmiq.dependencies AS d WHERE d.job_id = j.job_id AND NOT d.satisfied)""",
    "what a blocked job waits for is unfinished": """
        SELECT row_to_json(d)::text, row_to_json(s)::text, row_to_json(g)::text
        FROM rythmiq.jobs AS j JOIN rythmiq.dependencies AS d USING (job_id)
        LEFT JOIN rythmiq.jobs AS s ON s.job_id = d.on_job_id
        LEFT JOIN rythmiq.groups AS g ON g.group_id = d.on_group_id
        WHERE j.state = 'BLOCKED' AND NOT d.satisfied
          AND (coalesce(rythmiq.ended(s.state), false) OR g.finished_at IS NOT NULL
               OR num_nonnulls(s.job_id, g.group_id) = 0)""",
    "a job that waits for nothing is blocked for want of a place alone": """
        SELECT j.job_id FROM rythmiq.jobs AS j LEFT JOIN rythmiq.groups AS g USING (group_id)
        WHERE j.state = 'BLOCKED' AND j.waits_for = 0 AND (g.max_parallel IS NULL OR g.max_parallel > (
            SELECT count(*) FROM rythmiq.jobs AS a
            WHERE a.group_id = g.group_id AND a.state IN ('QUEUED', 'RETRYING', 'RUNNING')))""",
    "no more members than places": """
        SELECT g.group_id FROM rythmiq.groups AS g
        WHERE g.max_parallel < (SELECT count(*) FROM rythmiq.jobs AS a
                                WHERE a.group_id = g.group_id AND a.state IN ('QUEUED', 'RETRYING', 'RUNNING'))""",
    "what runs or may run waits for nothing": """
        SELECT j.job_id FROM rythmiq.jobs AS j
        WHERE j.state IN ('QUEUED', 'RETRYING', 'RUNNING') AND EXISTS (
            SELECT FROM rythmiq.dependencies AS d WHERE d.job_id = j.job_id AND NOT d.satisfied)""",
    "a group counts its members": """
        SELECT row_to_json(g)::text, row_to_json(c)::text FROM rythmiq.groups AS g CROSS JOIN LATERAL (
            SELECT count(*) AS members, count(*) FILTER (WHERE state = 'SUCCEEDED') AS succeeded,
                   count(*) FILTER (WHERE state = 'FAILED') AS failed,
                   count(*) FILTER (WHERE state = 'CANCELLED') AS cancelled
            FROM rythmiq.jobs AS j WHERE j.group_id = g.group_id) AS c
        WHERE (g.members, g.succeeded, g.failed, g.cancelled) <> (c.members, c.succeeded, c.failed, c.cancelled)
           OR (g.finished_at IS NOT NULL) <> (c.members = c.succeeded + c.failed + c.cancelled)""",
}


def broken(connection: Connection) -> dict[str, list[tuple[object, ...]]]:
    """What breaks an invariant, by its name."""
    found = {}
    with connection.cursor() as cursor:
        for name, query in BROKEN.items():
            cursor.execute(query)
            if rows := cursor.fetchall():
                found[name] = rows
    connection.rollback()
    return found


class Actor:
    """One who does random things to the queue, with a connection and a driver of its own."""

    def __init__(self, url: str, rng: random.Random) -> None:
        self.url, self.rng = url, rng
        self.connection = psycopg2.connect(url)
        self.driver = Queue(Secret(url), lease_s=3600)
        self.driver.register()
        self.held: list[Job] = []

    def close(self) -> None:
        self.connection.close()
        self.driver.close()

    def known(self) -> tuple[list[UUID], list[UUID]]:
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT job_id FROM rythmiq.jobs ORDER BY job_id")
            jobs = [row[0] for row in cursor.fetchall()]
            cursor.execute("SELECT group_id FROM rythmiq.groups ORDER BY created_at, group_id")
            groups = [row[0] for row in cursor.fetchall()]
        self.connection.rollback()
        return jobs, groups

    def enqueue(self) -> None:
        rng = self.rng
        jobs, groups = self.known()

        def sources() -> tuple[UUID, ...]:
            chosen = rng.sample(jobs, min(len(jobs), rng.choice((0, 0, 1, 2))))
            return (*chosen, *rng.sample(groups, min(len(groups), rng.choice((0, 0, 0, 1)))))

        def new() -> NewJob:
            return NewJob(spec=JobSpec(command="true"), after=sources(), after_ended=sources())

        with suppress(InvalidJob):  # A circle by way of a group.
            if rng.random() < 0.5:
                limits = NewGroup(
                    max_parallel=rng.choice((None, 1, 2)), stop_after_failures=rng.choice((None, None, 1, 2))
                )
                enqueue_group(self.connection, limits, [new() for _ in range(rng.randint(1, 5))])
            else:
                group = str(rng.choice(groups)) if groups and rng.random() < 0.3 else None
                fields = {"group": group, "after": sources()}
                enqueue_many(self.connection, [NewJob(spec=JobSpec(command="true"), **fields)])  # type: ignore[arg-type]
        self.connection.commit()

    def claim(self) -> None:
        self.held += self.driver.claim(self.rng.randint(1, 4))

    def finish(self) -> None:
        endings = []
        for job in self.rng.sample(self.held, min(len(self.held), self.rng.randint(1, 3))):
            fate = self.rng.choice(("good", "good", "bad", "again", "cancelled"))
            state = {"good": JobState.SUCCEEDED, "cancelled": JobState.CANCELLED}.get(fate, JobState.FAILED)
            error = None if fate == "good" else ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="exit 1")
            delay = 0.0 if fate == "again" else None
            endings.append(
                Ending(job_id=job.job_id, attempt=job.attempt, state=state, error=error, retry_delay_s=delay)
            )
        written = self.driver.finish(endings)
        gone = {ending.job_id for ending in endings} - written.locked
        self.held = [job for job in self.held if job.job_id not in gone]

    def cancel(self) -> None:
        jobs, groups = self.known()
        if groups and self.rng.random() < 0.2:
            inspect.cancel(self.connection, groups=[self.rng.choice(groups)])
        elif jobs:
            inspect.cancel(self.connection, ids=self.rng.sample(jobs, min(len(jobs), 2)))
        self.connection.commit()

    def retry(self) -> None:
        jobs, _ = self.known()
        chosen = self.rng.sample(jobs, min(len(jobs), 6))
        inspect.retry(self.connection, chosen, downstream=self.rng.random() < 0.7)
        self.connection.commit()

    def delete(self) -> None:
        jobs, _ = self.known()
        if jobs:
            with self.connection.cursor() as cursor:
                cursor.execute("DELETE FROM rythmiq.jobs WHERE job_id = %s", (str(self.rng.choice(jobs)),))
        self.connection.commit()

    def step(self) -> None:
        """One random thing. What is refused because another is in the way is left undone."""
        choices = (self.enqueue, self.claim, self.claim, self.finish, self.finish, self.finish)
        act = self.rng.choice((*choices, self.cancel, self.retry, self.delete) if self.rng.random() < 0.6 else choices)
        try:
            act()
        except (DatabaseUnavailable, psycopg2.OperationalError, psycopg2.InterfaceError):
            with suppress(psycopg2.Error):
                self.connection.rollback()
            if self.connection.closed:
                self.connection = psycopg2.connect(self.url)

    def settle(self) -> None:
        while self.driver.settle_left(100).handled:
            pass

    def work_off(self) -> None:
        """Ends all that can be ended; what is held by nobody living is taken over."""
        while True:
            self.settle()
            with self.connection.cursor() as cursor:
                cursor.execute("UPDATE rythmiq.jobs SET driver_id = NULL WHERE state = 'RUNNING'")
            self.connection.commit()
            self.held = [orphan.job for orphan in self.driver.adopt(1000)] + self.driver.claim(1000)
            if not self.held:
                return
            while self.held:
                self.finish()


@pytest.fixture
def actors(database_url: str) -> Iterator[list[Actor]]:
    actors: list[Actor] = []
    yield actors
    for actor in actors:
        actor.close()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_nothing_breaks_one_step_after_another(database_url: str, seed: int) -> None:
    with closing(psycopg2.connect(database_url)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("TRUNCATE rythmiq.jobs, rythmiq.groups, rythmiq.dependencies, rythmiq.unsettled CASCADE")
        connection.commit()
        actor = Actor(database_url, random.Random(seed))
        try:
            for _ in range(60):
                actor.step()
                actor.settle()
                assert broken(connection) == {}
            actor.work_off()
            assert broken(connection) == {}
            assert unfinished(connection) == []
        finally:
            actor.close()


@pytest.mark.parametrize("seed", range(3))
def test_nothing_breaks_when_several_are_at_work_and_connections_are_lost(
    database_url: str, actors: list[Actor], seed: int
) -> None:
    actors += [Actor(database_url, random.Random(1000 * seed + at)) for at in range(3)]
    faults: list[BaseException] = []

    def work(actor: Actor) -> None:
        try:
            for _ in range(120):
                actor.step()
        except BaseException as error:  # noqa: BLE001 - raised again by the test
            faults.append(error)

    threads = [threading.Thread(target=work, args=(actor,)) for actor in actors]
    for thread in threads:
        thread.start()
    rng = random.Random(seed)
    with closing(psycopg2.connect(database_url)) as killer:
        killer.autocommit = True
        while any(thread.is_alive() for thread in threads):
            threads[0].join(rng.random() / 5)
            victims = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"
            )
            killer.cursor().execute(victims)
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    with closing(psycopg2.connect(database_url)) as connection:
        last = Actor(database_url, rng)
        actors.append(last)
        last.settle()
        assert broken(connection) == {}
        last.work_off()
        assert broken(connection) == {}
        assert unfinished(connection) == []


def unfinished(connection: Connection) -> list[tuple[object, ...]]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT job_id, state, waits_for, group_id FROM rythmiq.jobs WHERE NOT rythmiq.ended(state)")
        found = cursor.fetchall()
    connection.rollback()
    return found
