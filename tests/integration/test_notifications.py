"""Who asked to be told of an end is told, of each end, by whichever driver is alive."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import psycopg2.extras
import pytest

from rythmiq_ray import Client, JobSpec, NewJob, enqueue, enqueue_many
from rythmiq_ray.config import NotifyConfig
from rythmiq_ray.driver.notifier import SILENCES_OF_A_HOST, Notifier, pause_s
from rythmiq_ray.errors import DatabaseUnavailable, ErrorCode, InvalidJob
from rythmiq_ray.model import ErrorInfo, JobState, NewGroup
from rythmiq_ray.queue import Ending, Queue, enqueue_group
from rythmiq_ray.secret import Secret
from rythmiq_ray.webhooks import Answer

URL = "https://example.org/told"


@pytest.fixture
def connection(database_url: str) -> Iterator[Any]:
    connection = psycopg2.connect(database_url, cursor_factory=psycopg2.extras.RealDictCursor)
    connection.autocommit = True
    yield connection
    connection.close()


@pytest.fixture
def queue(database_url: str) -> Iterator[Queue]:
    queue = Queue(Secret(database_url), lease_s=30.0)
    queue.register()
    yield queue
    queue.close()


class Post:
    """Stands for the network: keeps what is sent and answers as it is told."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, dict[str, Any]]] = []
        self.answer: Callable[[str], Answer] = lambda _url: Answer(error=None)

    def __call__(self, notification_id: str, url: str, body: str) -> Answer:
        self.sent.append((notification_id, url, json.loads(body)))
        return self.answer(url)


class Teller:
    """A driver's notifier; ``round`` is one look of the loop, to the end of what it began."""

    def __init__(self, queue: Queue, post: Post, *, max_attempts: int = 3) -> None:
        import threading

        self._done = threading.Event()
        config = NotifyConfig(secret=Secret("x"), timeout_s=1.0, max_attempts=max_attempts, private_networks=())
        self._queue = queue
        self.notifier = Notifier(config, queue, send=post, wake=self._done.set)

    def round(self) -> None:
        self._done.clear()
        self.notifier.tick(due=self._queue.control_state([]).notifications_due)
        if self.notifier.busy:
            assert self._done.wait(30.0)
            self.notifier.tick(due=False)


def rows(connection: Any) -> list[dict[str, Any]]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT * FROM rythmiq.notifications ORDER BY created_at")
        return [dict(row) for row in cursor.fetchall()]


def end(queue: Queue, state: JobState = JobState.SUCCEEDED, *, retry_delay_s: float | None = None) -> None:
    for job in queue.claim(100):
        error = None if state is JobState.SUCCEEDED else ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="exit code 3")
        ending = Ending(job_id=job.job_id, attempt=job.attempt, state=state, error=error, retry_delay_s=retry_delay_s)
        queue.finish([ending])


def due_now(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE rythmiq.notifications SET next_at = now() WHERE next_at IS NOT NULL")


def test_an_end_is_told_once_and_a_retry_is_none(connection: Any, queue: Queue) -> None:
    job_id = enqueue(connection, JobSpec(command="x"), name="fit", labels={"team": "a"}, notify=URL)
    enqueue(connection, JobSpec(command="x"))
    post = Post()
    teller = Teller(queue, post)
    end(queue, JobState.FAILED, retry_delay_s=0.0)
    teller.round()
    assert post.sent == [], "an attempt that is retried is no end"
    end(queue)
    teller.round()
    teller.round()
    ((_, url, body),) = post.sent
    assert url == URL
    assert body["type"] == "job.ended"
    assert body["data"]["job_id"] == str(job_id)
    assert (body["data"]["state"], body["data"]["name"], body["data"]["labels"]) == ("SUCCEEDED", "fit", {"team": "a"})
    (row,) = rows(connection)
    assert row["delivered_at"] is not None
    assert row["next_at"] is None


def test_a_cancel_before_the_start_and_a_failed_dependency_are_told_too(connection: Any, queue: Queue) -> None:
    first = enqueue(connection, JobSpec(command="x"), notify=URL)
    enqueue(connection, JobSpec(command="x"), after=[first], notify=URL)
    with connection.cursor() as cursor:
        cursor.execute("SELECT rythmiq.cancel(%s)", (str(first),))
    post = Post()
    Teller(queue, post).round()
    assert {body["data"]["error_code"] for _, _, body in post.sent} == {"cancelled", "dependency_failed"}


def test_a_group_is_told_of_once_when_its_last_member_ended(connection: Any, queue: Queue) -> None:
    jobs = [NewJob(spec=JobSpec(command="x")) for _ in range(3)]
    group_id, _ = enqueue_group(connection, NewGroup(name="lr", notify=URL), jobs)
    post = Post()
    teller = Teller(queue, post)
    for job in queue.claim(3):
        teller.round()
        assert post.sent == []
        queue.finish([Ending(job_id=job.job_id, attempt=1, state=JobState.SUCCEEDED)])
    teller.round()
    ((_, _, body),) = post.sent
    assert body["type"] == "group.ended"
    assert body["data"]["group_id"] == str(group_id)
    assert (body["data"]["state"], body["data"]["members"], body["data"]["succeeded"]) == ("SUCCEEDED", 3, 3)


def test_what_is_refused_is_tried_again_with_growing_pauses_and_given_up(connection: Any, queue: Queue) -> None:
    enqueue(connection, JobSpec(command="x"), notify=URL)
    end(queue)
    post = Post()
    post.answer = lambda _url: Answer(error="it answered 503")
    teller = Teller(queue, post, max_attempts=3)
    teller.round()
    teller.round()
    assert len(post.sent) == 1, "it was tried again before its pause was over"
    for _ in range(5):
        due_now(connection)
        teller.round()
    assert len(post.sent) == 3
    assert len({notification_id for notification_id, _, _ in post.sent}) == 1, "a receiver tells repeats by the id"
    (row,) = rows(connection)
    assert (row["delivered_at"], row["next_at"], row["error"]) == (None, None, "it answered 503")
    assert [pause_s(tries) for tries in (1, 2, 3, 99)] == [5.0, 20.0, 80.0, 6 * 3600.0]


def test_two_drivers_tell_of_each_end_once_and_one_that_dies_leaves_it_to_the_other(
    connection: Any, queue: Queue, database_url: str
) -> None:
    enqueue_many(connection, [NewJob(spec=JobSpec(command="x"), notify=f"{URL}/{n}") for n in range(40)])
    end(queue)
    other_queue = Queue(Secret(database_url), lease_s=30.0)
    other_queue.register()
    # The first takes some and dies with them; they are held for it for a while.
    taken = queue.take_notifications(10, hold_s=3600.0, keep_s=1e9)
    post = Post()
    Teller(other_queue, post).round()
    assert len(post.sent) == 30
    due_now(connection)
    Teller(other_queue, post).round()
    assert len({url for _, url, _ in post.sent}) == len(post.sent) == 40
    assert {str(one.notification_id) for one in taken} <= {notification_id for notification_id, _, _ in post.sent}
    other_queue.close()


def test_a_host_that_does_not_answer_holds_up_no_other(connection: Any, queue: Queue) -> None:
    jobs = [NewJob(spec=JobSpec(command="x"), notify=f"https://dead.example/{n}") for n in range(30)]
    enqueue_many(connection, [*jobs, NewJob(spec=JobSpec(command="x"), notify=URL)])
    end(queue)
    post = Post()
    post.answer = lambda url: Answer(error="no answer in time", silent=True) if "dead" in url else Answer(error=None)
    Teller(queue, post).round()
    asked = [url for _, url, _ in post.sent if "dead" in url]
    assert URL in {url for _, url, _ in post.sent}
    assert SILENCES_OF_A_HOST <= len(asked) < 30
    assert sum(row["next_at"] is not None for row in rows(connection)) == 30


def test_what_was_not_tried_is_no_try_and_answers_hold_up_nobody(connection: Any, queue: Queue) -> None:
    hooks = [NewJob(spec=JobSpec(command="x"), notify=f"https://hooks.example/gone/{n}") for n in range(20)]
    hooks += [NewJob(spec=JobSpec(command="x"), notify=f"https://hooks.example/good/{n}") for n in range(20)]
    enqueue_many(connection, hooks)
    end(queue)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE rythmiq.notifications SET tries = 2")  # the next one is the last
    post = Post()
    post.answer = lambda url: Answer(error="it answered 410", final=True) if "gone" in url else Answer(error=None)
    Teller(queue, post).round()
    assert sum(row["delivered_at"] is not None for row in rows(connection)) == 20
    enqueue_many(connection, [NewJob(spec=JobSpec(command="x"), notify="https://dead.example/") for _ in range(30)])
    end(queue)
    post.answer = lambda _url: Answer(error="no answer in time", silent=True)
    Teller(queue, post, max_attempts=1).round()
    dead = [row for row in rows(connection) if "dead" in row["url"]]
    untried = [row for row in dead if row["error"].startswith("not tried")]
    assert untried
    assert {(row["tries"], row["next_at"] is None) for row in untried} == {(0, False)}


def test_results_that_could_not_be_written_are_written_later(connection: Any, queue: Queue) -> None:
    enqueue(connection, JobSpec(command="x"), notify=URL)
    end(queue)
    teller = Teller(queue, Post())
    lost = iter([DatabaseUnavailable("away")])
    write = queue.record_deliveries

    def told(answers: Any) -> None:
        for error in lost:
            raise error
        write(answers)

    queue.record_deliveries = told  # type: ignore[method-assign]
    with pytest.raises(DatabaseUnavailable):
        teller.round()
    assert teller.notifier.busy
    teller.round()
    assert not teller.notifier.busy
    assert rows(connection)[0]["delivered_at"] is not None
    enqueue(connection, JobSpec(command="x"), notify=URL)
    end(queue)
    teller.round()
    assert len([row for row in rows(connection) if row["delivered_at"]]) == 2


def test_a_row_that_somebody_holds_keeps_no_driver_waiting(connection: Any, queue: Queue, database_url: str) -> None:
    enqueue(connection, JobSpec(command="x"), notify=URL)
    end(queue)
    holder = psycopg2.connect(database_url)

    class Holding(Post):
        def __call__(self, notification_id: str, url: str, body: str) -> Answer:
            holder.cursor().execute("SELECT FROM rythmiq.notifications FOR UPDATE")
            return super().__call__(notification_id, url, body)

    Teller(queue, Holding()).round()
    assert rows(connection)[0]["delivered_at"] is None, "it is told again once it is due"
    holder.rollback()
    holder.close()


def test_a_row_that_cannot_be_sent_concerns_itself_alone(connection: Any, queue: Queue) -> None:
    enqueue_many(connection, [NewJob(spec=JobSpec(command="x"), notify=f"https://{n}.example/") for n in "ab"])
    end(queue)
    post = Post()

    def answer(url: str) -> Answer:
        if "a.example" in url:
            raise RuntimeError("odd")
        return Answer(error=None)

    post.answer = answer
    Teller(queue, post).round()
    assert sorted(row["error"] or "" for row in rows(connection)) == ["", "RuntimeError while it was sent"]


def test_a_driver_that_drains_tells_first(connection: Any, queue: Queue) -> None:
    enqueue(connection, JobSpec(command="x"), notify=URL)
    end(queue)
    assert queue.unfinished(telling=True)
    assert not queue.unfinished(telling=False), "a driver without a secret would wait for ever"
    Teller(queue, Post()).round()
    assert not queue.unfinished(telling=True)


def test_old_ones_go(connection: Any, queue: Queue) -> None:
    enqueue(connection, JobSpec(command="x"), notify=URL)
    end(queue)
    Teller(queue, Post()).round()
    with connection.cursor() as cursor:
        cursor.execute("UPDATE rythmiq.notifications SET created_at = now() - interval '31 days'")
    enqueue(connection, JobSpec(command="x"), notify=URL)
    end(queue)
    Teller(queue, Post()).round()
    assert len(rows(connection)) == 1


@pytest.mark.parametrize("url", ["ftp://example.org/", "https://user:pass@example.org/", "example.org", ""])
def test_a_url_that_cannot_be_told_is_refused_at_once(connection: Any, database_url: str, url: str) -> None:
    with pytest.raises(InvalidJob, match="notify"):
        enqueue(connection, JobSpec(command="x"), notify=url)
    with pytest.raises(InvalidJob, match="notify"), Client(database_url) as client:
        client.sweep(JobSpec(command="x"), [{"N": 1}], notify=url)
    with connection.cursor() as cursor, pytest.raises(psycopg2.Error) as refused:
        cursor.execute("SELECT rythmiq.enqueue(%s)", (json.dumps({"command": "x", "notify": url}),))
    assert refused.value.pgcode == "22023"


def test_from_sql_and_by_a_sweep_of_the_client(connection: Any, queue: Queue, database_url: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT rythmiq.enqueue(%s) AS id", (json.dumps({"command": "x", "notify": URL}),))
        job_id = cursor.fetchone()["id"]
    with Client(database_url) as client:
        sweep = client.sweep(JobSpec(command="x"), [{"N": 1}, {"N": 2}], notify=f"{URL}/sweep")
    end(queue)
    post = Post()
    Teller(queue, post).round()
    told = {(body["data"].get("job_id"), body["data"]["group_id"]) for _, _, body in post.sent}
    assert told == {(str(job_id), None), (None, str(sweep.id))}
