"""Looking for jobs and groups: what is found, and at what cost in a large table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import psycopg2
import pytest

from rythmiq_ray import JobSpec, NewGroup, NewJob, enqueue_group, enqueue_many, grid
from rythmiq_ray.errors import NotFound
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import inspect, listing
from rythmiq_ray.queue.listing import Connection, Filter
from rythmiq_ray.sweeps import expand

SPEC = JobSpec(command="true")
ROWS = 60_000


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    opened = psycopg2.connect(database_url)
    opened.autocommit = True
    yield opened
    opened.close()


def test_pages_follow_each_other_and_lose_nothing(connection: Connection) -> None:
    ids = enqueue_many(connection, [NewJob(spec=SPEC) for _ in range(25)])
    group_id, members = enqueue_group(connection, NewGroup(name="s"), expand(NewJob(spec=SPEC), grid(N=range(25))))
    inspect.cancel(connection, members[3:9])
    for wanted, expected in ((None, members[::-1] + ids[::-1]), (Filter(groups=[group_id]), members[::-1])):
        found = []
        before = None
        while page := list(listing.jobs(connection, wanted, limit=7, before=before)):
            found += [job.job_id for job in page]
            before = found[-1]
        assert found == expected
        assert [job.job_id for job in listing.jobs(connection, wanted, limit=None)] == expected
    assert [job.job_id for job in listing.members(connection, [group_id])] == members
    assert listing.total(connection, Filter()) == 50
    assert listing.total(connection, Filter(), most=49) is None
    counts = {count.state: count.jobs for count in listing.counts(connection, Filter(groups=[group_id]))}
    assert counts == {JobState.QUEUED: 19, JobState.CANCELLED: 6}


def test_one_thing_is_found_by_any_of_its_names(connection: Connection) -> None:
    (job,) = enqueue_many(connection, [NewJob(spec=SPEC, name="fit")])
    old, _ = enqueue_group(connection, NewGroup(name="lr"), [NewJob(spec=SPEC)])
    new, _ = enqueue_group(connection, NewGroup(name="lr"), [NewJob(spec=SPEC)])
    assert listing.find(connection, "fit").id == job
    assert listing.find(connection, str(job).upper()).id == job
    assert listing.find(connection, str(job)[:20]).id == job
    assert listing.find(connection, str(old).replace("-", "")).id == old
    assert listing.find(connection, "lr").id == new, "of unfinished ones the newest"
    inspect.cancel(connection, groups=[new])
    assert listing.find(connection, "lr").id == old, "an unfinished one goes before a newer one that ended"
    with connection.cursor() as cursor:
        cursor.execute("UPDATE rythmiq.jobs SET remote_id = 4711 WHERE job_id = %s", [job])
    assert listing.find(connection, "4711").id == job, "Camber's own number"
    named, _ = enqueue_group(connection, NewGroup(name=str(old)[:8]), [NewJob(spec=SPEC)])
    assert listing.find(connection, str(old)[:8]).id == named, "a name goes before the first digits of another's id"
    named, _ = enqueue_group(connection, NewGroup(name=str(old)), [NewJob(spec=SPEC)])
    assert listing.find(connection, str(old)).id == old, "a whole id goes before a name"
    for nothing in ("nobody", "fff", str(uuid4()), "0000", "99999999999999999999"):
        with pytest.raises(NotFound):
            listing.find(connection, nothing)


def test_many_ids_are_looked_up_by_the_page(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = enqueue_many(connection, [NewJob(spec=SPEC) for _ in range(2_500)])
    asked: list[int] = []
    fetch = listing.fetch

    def counting(*arguments: Any) -> list[Any]:
        asked.append(len(arguments[2]["ids"]))
        return fetch(*arguments)

    monkeypatch.setattr(listing, "fetch", counting)
    found = [job.job_id for job in listing.jobs(connection, Filter(ids=ids), limit=None)]
    assert found == ids[::-1]
    assert max(asked) <= 1_000
    some = listing.jobs(connection, Filter(ids=ids), limit=1_200, before=ids[2_000])
    assert [job.job_id for job in some] == ids[800:2_000][::-1]


LOOKS: dict[str, Callable[[Connection], object]] = {
    "jobs": lambda c: list(listing.jobs(c, limit=20)),
    "of a user": lambda c: list(listing.jobs(c, Filter(users=["user-7"]), limit=20)),
    "of a group": lambda c: list(listing.jobs(c, Filter(groups=[GROUP[0]]), limit=20)),
    "by name": lambda c: listing.find(c, "member-7"),
    "counts": lambda c: listing.counts(c),
    "counts of a group": lambda c: listing.counts(c, Filter(groups=[GROUP[0]])),
    "counts of a user": lambda c: listing.counts(c, Filter(users=["user-7"])),
    "ids of a group": lambda c: listing.ids(c, Filter(groups=[GROUP[0]], states=[JobState.FAILED])),
    "members": lambda c: listing.members(c, [GROUP[0]]),
    "pace": lambda c: listing.pace(c, GROUP[0]),
    "errors": lambda c: listing.group_errors(c, GROUP[0]),
    "groups": lambda c: listing.groups(c),
}
GROUP = [uuid4()]


def test_no_look_reads_the_whole_table(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    GROUP[0], members = enqueue_group(
        connection, NewGroup(name="sweep"), expand(NewJob(spec=SPEC, name="member"), grid(N=range(500)))
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO rythmiq.jobs (job_id, user_id, queue, spec, state, finished_at, created_at, name)"
            " SELECT rythmiq.new_job_id(), 'user-' || n %% 1000, 'queue-' || n %% 200, '{\"command\": \"true\"}',"
            " 'SUCCEEDED', now(), now(), 'member-' || n FROM generate_series(1, %s) AS n",
            [ROWS],
        )
        cursor.execute(
            "UPDATE rythmiq.jobs SET state = 'CANCELLED', finished_at = now() WHERE job_id = %s", [members[0]]
        )
        cursor.execute("VACUUM ANALYZE rythmiq.jobs")
    plans: dict[str, str] = {}

    def explained(opened: Connection, sql: str, parameters: dict[str, object]) -> list[dict[str, object]]:
        with opened.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, TIMING OFF) {sql}", parameters)
            plan = "\n".join(row[0] for row in cursor.fetchall())
            plans[sql] = plan
            # What is counted up to a bound may be read in any order, as it comes.
            assert "Seq Scan on jobs" not in plan or "Limit" in plan.partition("Seq Scan on jobs")[0], plan
        return original(opened, sql, parameters)

    original = listing.fetch
    monkeypatch.setattr(listing, "fetch", explained)
    for name, look in LOOKS.items():
        plans.clear()
        look(connection)
        for plan in plans.values():
            removed = [int(line.rpartition(": ")[2]) for line in plan.splitlines() if "Rows Removed by Filter" in line]
            assert sum(removed) < ROWS / 4, f"{name} reads what it does not want:\n{plan}"
