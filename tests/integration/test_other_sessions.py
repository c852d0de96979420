"""What other sessions of the same Postgres do to ours: locks that are held, deadlocks, a server that is read-only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from uuid import UUID

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest

from rythmiq_ray import JobSpec, NewJob, cli, enqueue_many
from rythmiq_ray.driver.completer import Completer
from rythmiq_ray.errors import DatabaseUnavailable
from rythmiq_ray.model import JobState, Phase
from rythmiq_ray.queue import Ending, Heartbeat, Progress, Queue, inspect, listing
from rythmiq_ray.queue.connection import Conflict
from rythmiq_ray.secret import Secret

Connection = psycopg2.extensions.connection


@pytest.fixture
def connect(database_url: str) -> Iterator[Callable[[], Connection]]:
    """Opens further sessions."""
    opened: list[Connection] = []

    def connect() -> Connection:
        opened.append(psycopg2.connect(database_url))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


@pytest.fixture
def driver(database_url: str) -> Iterator[Queue]:
    queue = Queue(Secret(database_url), lease_s=30.0, statement_timeout_s=5.0)
    queue.register()
    yield queue
    queue.close()


def put(connection: Connection, count: int) -> list[UUID]:
    ids = enqueue_many(connection, [NewJob(spec=JobSpec(command="true"))] * count)
    connection.commit()
    return ids


def holding(connection: Connection, table: str, *ids: UUID) -> None:
    """What a session idle in transaction does, after a SELECT … FOR UPDATE by hand."""
    connection.cursor().execute(
        f"SELECT FROM rythmiq.{table} WHERE job_id = ANY(%s::uuid[]) FOR UPDATE", ([str(i) for i in ids],)
    )


def done(job_id: UUID) -> Ending:
    return Ending(job_id=job_id, attempt=1, state=JobState.SUCCEEDED)


@pytest.mark.parametrize("table", ["jobs", "attempts"])
def test_a_row_that_another_session_holds_holds_up_no_other(
    connect: Callable[[], Connection], driver: Queue, table: str
) -> None:
    ids = put(connect(), 4)
    driver.claim(10)
    steps = [Progress(job_id=job_id, attempt=1, phase=Phase.WAITING, remote_id=1) for job_id in ids]
    assert driver.advance(steps).ours == set(ids)
    other = connect()
    holding(other, table, ids[0])
    if table == "jobs":
        written = driver.advance(steps)
        assert (written.ours, written.locked) == (set(ids[1:]), {ids[0]})
        assert driver.release() == set(ids[1:])
        assert driver.disown([]) == set()
        driver.adopt(10)
    written = driver.finish([done(job_id) for job_id in ids])
    assert (written.ours, written.locked) == (set(ids[1:]), {ids[0]})
    if table == "attempts":
        assert driver.cleaned([(job_id, 1) for job_id in ids]) == {(ids[0], 1)}
    other.rollback()
    written = driver.finish([done(job_id) for job_id in ids])
    assert (written.ours, written.locked) == (set(ids), frozenset())
    assert driver.cleaned([(job_id, 1) for job_id in ids]) == set()
    assert driver.uncleaned(10, older_than_s=0.0) == []


def test_the_completer_keeps_what_is_held_and_asks_for_it_now_and_then(
    connect: Callable[[], Connection], driver: Queue
) -> None:
    ids = put(connect(), 5)
    driver.claim(10)
    now = 100.0
    completer = Completer(2, retry_s=2.0, clock=lambda: now)
    for job_id in ids:
        completer.ending(done(job_id))
    other = connect()
    holding(other, "jobs", ids[0])
    assert [(item.job_id, ours) for item, ours in completer.flush(driver)] == [(job_id, True) for job_id in ids[1:]]
    assert (completer.endings, completer.due_at) == (1, 102.0)
    other.rollback()
    assert list(completer.flush(driver)) == [], "not before its time"
    now = 102.0
    assert [item.job_id for item, _ in completer.flush(driver)] == [ids[0]]
    assert completer.due_at is None


def test_a_step_of_a_job_that_is_another_drivers_is_told(
    connect: Callable[[], Connection], driver: Queue, database_url: str
) -> None:
    mine, lost = put(connect(), 2)
    driver.claim(10)
    taker = connect()
    taker.cursor().execute("UPDATE rythmiq.jobs SET driver_id = NULL WHERE job_id = %s", (str(lost),))
    taker.commit()
    completer = Completer(10)
    for job_id in (mine, lost):
        completer.progress(Progress(job_id=job_id, attempt=1, phase=Phase.WAITING, remote_id=1))
    assert [(item.job_id, ours) for item, ours in completer.flush(driver)] == [(lost, False)]
    assert len(completer) == 0


def test_nothing_that_holds_up_the_queue_holds_up_the_heartbeat(
    connect: Callable[[], Connection], database_url: str
) -> None:
    heartbeat = Heartbeat(Secret(database_url), lease_s=3.0)
    heartbeat.register()
    queue = Queue(Secret(database_url), lease_s=3.0)
    queue.driver_id = heartbeat.driver_id
    put(connect(), 1)
    other = connect()
    other.cursor().execute("LOCK TABLE rythmiq.jobs")
    claimed: list[int] = []
    thread = threading.Thread(target=lambda: claimed.append(len(queue.claim(1))))
    thread.start()
    for _ in range(4):
        assert heartbeat.renew()
        time.sleep(0.2)
    assert claimed == []
    other.rollback()
    thread.join()
    assert claimed == [1]
    holder = connect()
    holder.cursor().execute("SELECT FROM rythmiq.drivers FOR UPDATE")
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        heartbeat.renew()
    assert time.monotonic() - began < 1.0, "a renewal that waits gives up well before the lease ends"
    holder.rollback()
    assert heartbeat.renew()
    heartbeat.resign()
    assert not heartbeat.renew()
    for session in (heartbeat, queue):
        session.close()


def at_once(*works: Callable[[], None]) -> list[BaseException]:
    failed: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - told to the test's own thread
            failed.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def test_two_producers_of_the_same_keys_in_other_orders_never_deadlock(connect: Callable[[], Connection]) -> None:
    keys = [f"{number:04}" for number in range(1000)]
    found: list[dict[str, UUID]] = []

    def produce(keys: list[str]) -> None:
        connection = connect()
        connection.cursor().execute("SELECT 1")  # So the transaction is the caller's, and nothing is repeated.
        ids = enqueue_many(connection, [NewJob(spec=JobSpec(command="true"), unique_key=key) for key in keys])
        connection.commit()
        found.append(dict(zip(keys, ids, strict=True)))

    assert at_once(lambda: produce(keys), lambda: produce(keys[::-1])) == []
    assert found[0] == found[1]


@pytest.mark.parametrize("what", [inspect.cancel, inspect.retry])
def test_rows_are_locked_in_the_order_of_their_ids_whatever_the_plan(
    connect: Callable[[], Connection], what: Callable[..., object]
) -> None:
    ids = [UUID(f"{number:032}") for number in range(1, 401)]
    setup, holder, watch = connect(), connect(), connect()
    watch.autocommit = True
    # The order of the table is the reverse of the index's.
    setup.cursor().execute(
        "INSERT INTO rythmiq.jobs (job_id, spec, state, attempt)"
        " SELECT lpad(number::text, 32, '0')::uuid, '{}', %s, 1 FROM generate_series(400, 1, -1) AS number",
        ("QUEUED" if what is inspect.cancel else "FAILED",),
    )
    setup.commit()
    by_index, by_table = connect(), connect()
    by_index.cursor().execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
    by_table.cursor().execute("SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off")
    # Both in transactions of the caller's, so that nothing is repeated. The first comes as far as a row that is held.
    holding(holder, "jobs", ids[149])
    failed: list[BaseException] = []

    def begin(connection: Connection) -> threading.Thread:
        def work() -> None:
            failed.extend(at_once(lambda: what(connection, ids), lambda: None))
            connection.commit()

        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: waits(watch, connection))
        return thread

    threads = [begin(by_index), begin(by_table)]
    holder.rollback()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_deadlock_is_repeated_where_the_transaction_is_ours(connect: Callable[[], Connection]) -> None:
    first, second = put(connect(), 2)
    ours, other, watch = connect(), connect(), connect()
    ours.cursor().execute("SET deadlock_timeout = '50ms'")  # So it is ours that is ended.
    ours.commit()
    other.cursor().execute("SET deadlock_timeout = '30s'")
    holding(other, "jobs", second)
    asked: list[object] = []
    thread = threading.Thread(target=lambda: asked.append(inspect.cancel(ours, [first, second])))
    # Ours holds the first row and waits for the second; then the other waits for the first.
    watch.autocommit = True
    thread.start()
    wait_until(lambda: waits(watch, ours))
    holding(other, "jobs", first)
    other.commit()
    thread.join()
    assert asked == [{first: JobState.CANCELLED, second: JobState.CANCELLED}]
    ours.commit()


def test_a_deadlock_in_the_callers_transaction_is_the_callers(connect: Callable[[], Connection]) -> None:
    first, second = put(connect(), 2)
    ours, other, watch = connect(), connect(), connect()
    ours.cursor().execute("SET deadlock_timeout = '50ms'")
    other.cursor().execute("SET deadlock_timeout = '30s'")
    holding(other, "jobs", second)
    failed: list[BaseException] = []
    thread = threading.Thread(target=lambda: failed.extend(at_once(lambda: inspect.cancel(ours, [first, second]))))
    watch.autocommit = True
    thread.start()
    wait_until(lambda: waits(watch, ours))
    holding(other, "jobs", first)
    thread.join()
    assert [type(error) for error in failed] == [Conflict]


def waits(watch: Connection, session: Connection) -> bool:
    cursor = watch.cursor()
    cursor.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", (session.info.backend_pid,))
    return bool((cursor.fetchone() or [False])[0])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_jobs_of_one_key_one_is_retried(connect: Callable[[], Connection]) -> None:
    connection = connect()
    ids: list[UUID] = []
    for _ in range(2):
        ids += enqueue_many(connection, [NewJob(spec=JobSpec(command="true"), unique_key="k")])
        inspect.cancel(connection, ids)
    connection.commit()
    assert len(inspect.retry(connection, ids)) == 1
    assert inspect.retry(connection, ids) == set()
    inspect.cancel(connection, ids)
    connection.commit()
    taken: list[set[UUID]] = []

    def retry(job_id: UUID) -> None:
        one = connect()
        taken.append(inspect.retry(one, [job_id]))
        time.sleep(0.1)
        one.commit()

    assert at_once(*(lambda job_id=job_id: retry(job_id) for job_id in ids)) == []
    assert sorted(map(len, taken)) == [0, 1]


def test_autocommit_enqueues_all_or_nothing(connect: Callable[[], Connection]) -> None:
    connection = connect()
    connection.autocommit = True
    connection.cursor().execute(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;"
        "CREATE TRIGGER no BEFORE INSERT ON rythmiq.jobs FOR EACH ROW WHEN (NEW.unique_key = 'bad')"
        " EXECUTE FUNCTION no()"
    )
    jobs = [NewJob(spec=JobSpec(command="true")), NewJob(spec=JobSpec(command="true"), unique_key="bad")]
    with pytest.raises(psycopg2.errors.RaiseException):
        enqueue_many(connection, jobs)
    assert listing.counts(connection) == []
    assert connection.autocommit


def test_a_server_that_is_read_only_is_an_outage_and_the_next_connection_finds_the_other(driver: Queue) -> None:
    assert driver._connection is not None
    driver._connection.cursor().execute("SET default_transaction_read_only = on")
    with pytest.raises(DatabaseUnavailable, match="read-only"):
        driver.renew()
    assert driver.renew(), "by a new connection"


def test_the_command_line_says_that_the_server_is_read_only(
    connect: Callable[[], Connection],
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (job_id,) = put(connect(), 1)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("PGOPTIONS", "-c default_transaction_read_only=on")
    assert cli.run(["cancel", str(job_id)]) == 1
    said = capsys.readouterr().err
    assert "read-only" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("state", ["08006", "25006", "40001", "40P01", "53300", "57P01", "57P03", "55P03", "25P03"])
def test_what_the_server_or_another_session_does_is_no_rows_fault(driver: Queue, state: str) -> None:
    """As Postgres itself reports them: raised in a statement of the driver's own."""
    assert driver._connection is not None
    driver._connection.cursor().execute(
        "CREATE FUNCTION away() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION 'away' USING ERRCODE = '{state}'; END $$;"
        "CREATE TRIGGER away BEFORE UPDATE ON rythmiq.drivers FOR EACH ROW EXECUTE FUNCTION away()"
    )
    with pytest.raises(DatabaseUnavailable):
        driver.renew()
