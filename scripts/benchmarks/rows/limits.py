"""P12: the rate of claims where users take turns and limits hold on all of them, in a deep queue."""

from __future__ import annotations

import statistics
import time

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Goal, Row
from rythmiq_ray import JobSpec, NewJob, enqueue_many
from rythmiq_ray.model import JobState
from rythmiq_ray.queue import Ending, Queue
from rythmiq_ray.secret import Secret

BATCH = 100
CLAIMS = 10
ROUNDS = 5
USERS = 1000
QUEUES = 200
FEW = 5


def measure(bench: Bench) -> Row:
    row = Row("P12", "limits and turns: the claim rate with 1,000 users and 200 queues, and limits on all of them")
    deep = bench.size(1_000_000, 50_000)
    plain, turns, limits = "one user, no limits", "1,000 users in 200 queues, no limits", "the same, limits on all"
    alone, beside = "claim of an empty queue's driver", f"the same beside {deep:,} jobs of other queues"
    rounds = []
    with Environment(bench.root / "limits", "--instant") as environment:
        for _ in range(bench.repeat):
            _empty(environment)
            row.add(alone, "ms", _claim_ms(environment))
            _fill(environment, deep, users=1, queues=1)
            row.add(plain, "jobs/s", _rate(environment))
            _empty(environment)
            _fill(environment, deep, users=USERS, queues=QUEUES)
            row.add(beside, "ms", _claim_ms(environment))
            row.add(turns, "jobs/s", _rate(environment))
            _bound(environment)
            row.add(limits, "jobs/s", _rate(environment))
            _empty(environment)
            rounds.append(_rounds(environment, bench.size(100_000, 5_000)))
            bench.say(", ".join(f"{series.name}: {series.values[-1]:.1f} {series.unit}" for series in row.series))
    row.compare(limits, plain, 0.5)
    ratios = [after / before for after, before in zip(row[beside], row[alone], strict=True)]
    row.goals.append(Goal(f"{beside} over {alone}", ratios, 2.0, at_most=True))
    row.goals.append(
        Goal(f"claims until all {FEW} of a user beside one with many have begun", rounds, 2.0, at_most=True)
    )
    return row


def _empty(environment: Environment) -> None:
    environment.clear()
    with environment.connection.cursor() as cursor:
        cursor.execute("DELETE FROM rythmiq.limits")
        cursor.execute("VACUUM ANALYZE rythmiq.jobs")


def _fill(environment: Environment, count: int, *, users: int, queues: int) -> None:
    with environment.connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO rythmiq.jobs (job_id, user_id, queue, spec)"
            " SELECT rythmiq.new_job_id(), 'user-' || n %% %s, 'queue-' || n / 7 %% %s, '{\"command\": \"true\"}'"
            " FROM generate_series(1, %s) AS n",
            [users, queues, count],
        )
        cursor.execute("VACUUM ANALYZE rythmiq.jobs")


def _bound(environment: Environment) -> None:
    """Sets limits that are never reached, but must be checked by each claim."""
    with environment.connection.cursor() as cursor:
        cursor.execute("SELECT rythmiq.set_limit('account', '', 1000000, NULL)")
        cursor.execute(
            "SELECT rythmiq.set_limit('queue', 'queue-' || n, 100000, NULL) FROM generate_series(0, 199) AS n"
        )
        cursor.execute("SELECT rythmiq.set_limit('user', 'user-' || n, 100000, NULL) FROM generate_series(0, 999) AS n")


def _rate(environment: Environment) -> float:
    """The rate of claims in jobs per second. Jobs end between the rounds, so that as few run in each series."""
    queue = _queue(environment)
    rates = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        claimed = [job for _ in range(CLAIMS) for job in queue.claim(BATCH)]
        rates.append(len(claimed) / (time.perf_counter() - begun))
        queue.finish(Ending(job_id=job.job_id, attempt=job.attempt, state=JobState.SUCCEEDED) for job in claimed)
    queue.close()
    return statistics.median(rates)


def _claim_ms(environment: Environment) -> float:
    """Milliseconds of a claim by a driver that serves only an empty queue."""
    queue = _queue(environment, "mine")
    took = []
    for _ in range(ROUNDS * CLAIMS):
        begun = time.perf_counter()
        queue.claim(BATCH)
        took.append((time.perf_counter() - begun) * 1000)
    queue.close()
    return statistics.median(took)


def _rounds(environment: Environment, many: int) -> int:
    """After how many claims all jobs of a user with few jobs have begun, who came after a user with many."""
    spec = JobSpec(command="true")
    enqueue_many(environment.connection, [NewJob(spec=spec, user_id="many") for _ in range(many)])
    few = set(enqueue_many(environment.connection, [NewJob(spec=spec, user_id="few") for _ in range(FEW)]))
    queue = _queue(environment)
    claims = 0
    while few:
        few -= {job.job_id for job in queue.claim(BATCH)}
        claims += 1
    queue.close()
    return claims


def _queue(environment: Environment, *queues: str) -> Queue:
    queue = Queue(Secret(environment.postgres.url), queues=queues, lease_s=600)
    queue.register()
    return queue
