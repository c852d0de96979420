"""A driver's side of the queue: claim, take-over, and fenced writes in batches."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar
from uuid import UUID

import psycopg2
import psycopg2.extensions

from rythmiq_ray.clock import now_s
from rythmiq_ray.errors import DatabaseUnavailable, ErrorCode, InvalidJob
from rythmiq_ray.inputs import WILDCARD, regex_of
from rythmiq_ray.job_fields import is_stored
from rythmiq_ray.model import (
    Artifact,
    EndedAttempt,
    EndedGroup,
    ErrorInfo,
    Input,
    Job,
    JobState,
    Phase,
    RemoteStatus,
    path_of,
)
from rythmiq_ray.queue.connection import Conflict, Row, StatementTimeout, explain, fetch, translated
from rythmiq_ray.queue.rows import faults_of_place, finite, job_from_row, read_job
from rythmiq_ray.queue.session import Session
from rythmiq_ray.queue.sql import queries
from rythmiq_ray.schedules import CatchUp, due
from rythmiq_ray.secret import Secret

_SQL: Final = queries("driver")
_COLLECTED_AGAIN: Final = frozenset({ErrorCode.ARTIFACTS_NOT_STORED, ErrorCode.ARTIFACT_CORRUPT})
_DURATIONS: Final = ("orphaned_s", "age_s", "submitted_s", "running_s")
"""Fields of :class:`Adopted`."""
_OF_THE_ROW: Final = ("22", "23")
"""SQLSTATE classes that are one row's own fault: data and integrity. A trigger's or the server's may pass."""
_SET_ASIDE_S: Final = 600.0
_MOST_TEXT: Final = 4000
_MOST_WARNINGS: Final = 100
_COUNTED: Final = 10_000
"""Up to this many waiting jobs are counted one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adopted:
    """A job taken over, and how many seconds ago its former driver may last have acted for it."""

    job: Job
    orphaned_s: float
    age_s: float = 0.0
    """Since its attempt was claimed, by the database's clock, as the next two."""
    submitted_s: float = 0.0
    """Since its remote job was known."""
    running_s: float | None = None
    """Since that was first seen to run; None where it was not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """A step of a running attempt; None leaves what the row has."""

    job_id: UUID
    attempt: int
    phase: Phase
    remote_id: int | None = None
    remote_status: RemoteStatus | None = None
    wait_reason: str | None = None
    """Why it does not get on, in words; None: it does."""
    credits_per_hour: float | None = None
    """What it costs while it runs, for budgets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What became of a batch of fenced writes, by job id."""

    ours: frozenset[UUID]
    """Written."""
    locked: frozenset[UUID] = frozenset()
    """Another session holds the row; to be written again later. All that is in neither was no longer ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an attempt ended, and what becomes of its job."""

    job_id: UUID
    attempt: int
    state: JobState
    """The attempt's: SUCCEEDED, FAILED or CANCELLED."""
    retry_delay_s: float | None = None
    """Seconds until the job's next attempt; None ends the job in ``state``."""
    exit_code: int | None = None
    error: ErrorInfo | None = None
    retryable: bool | None = None
    artifact_uri: str | None = None
    cost_credits: float | None = None
    remote_id: int | None = None
    remote_status: RemoteStatus | None = None
    artifacts: tuple[Artifact, ...] = ()
    warnings: tuple[str, ...] = ()
    keep_s: float | None = None
    """For so long the attempt's path is kept, because what is in it was not stored."""
    free: bool = False
    """The attempt never ran and does not count against ``max_attempts``."""

    @property
    def collect_again(self) -> bool:
        """Whether the next claim collects what is kept, instead of beginning a new attempt."""
        return self.keep_s is not None and self.error is not None and self.error.code in _COLLECTED_AGAIN


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A row that cannot be worked on, and what was done about it; every other row went on."""

    job_id: UUID
    attempt: int | None
    message: str
    ended: bool
    """The job ended as ``invalid_job``; else it was left alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """An ended attempt and the URIs of all that it stored, its manifest among them."""

    job_id: UUID
    attempt: int
    uris: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What a driver has to do beside its jobs."""

    draining: bool
    """It is to end what it has, and to go."""
    unsettled: bool
    """See :meth:`Queue.settle_left`."""
    schedules_due: bool
    """See :meth:`Queue.fire_schedules`."""
    notifications_due: bool
    """See :meth:`Queue.take_notifications`."""
    account_limit: int | None
    """Jobs that may run at once, where somebody set it; else the configuration says it."""
    closed: frozenset[UUID]
    """Jobs asked about whose scope was paused, or its budget reached, after they were claimed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notification:
    """A row of ``rythmiq.notifications`` that is due."""

    notification_id: UUID
    job_id: UUID | None
    group_id: UUID | None
    url: str
    body: str
    """JSON, as it is to be sent."""
    tries: int
    """With the one that is to come."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """What became of a try."""

    notification_id: UUID
    error: str | None
    """None = it was delivered."""
    again_s: float | None
    """Seconds until the next try; None = there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What bounds the work in one scope: ``account``, ``queue``, ``user`` or ``group``."""

    scope: str
    paused: int
    """How many of its names are paused."""
    over: int
    """How many have reached a budget."""
    spent: float
    """The largest share of a budget that is spent, 1 = all of it; 0 where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOver:
    """Counted up to 10,000."""

    oldest_group_s: float
    """Since the oldest unfinished group was made; 0 where there is none."""
    unstored: int
    """Attempts of which Camber keeps what the store did not take."""
    notifications: int
    """Those that are still to be delivered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Depth:
    """What waits in the queue, of all queues, whichever a driver serves."""

    jobs: Mapping[tuple[str, str], int]
    """By queue and state; exact up to 10,000 jobs in all, then estimated."""
    oldest_claimable_s: float
    """For how long the oldest claimable job has been so; 0 where there is none."""


_Item = TypeVar("_Item", Progress, Ending)


class Queue(Session):
    """The queue as one driver sees it. Not thread-safe: it belongs to the driver's loop.

    Every method raises DatabaseUnavailable when Postgres does not answer, and the next call connects anew. A row that
    breaks a statement, or that cannot be read, concerns itself alone: see :meth:`refusals`.
    """

    def __init__(
        self,
        dsn: Secret,
        *,
        queues: Sequence[str] = (),
        lease_s: float,
        age_s: float | None = None,
        connect_timeout_s: float = 10.0,
        statement_timeout_s: float = 30.0,
    ) -> None:
        """``age_s``: after each such wait a job counts as one step of priority higher; None = never."""
        super().__init__(
            dsn,
            lease_s=lease_s,
            connect_timeout_s=connect_timeout_s,
            statement_timeout_s=statement_timeout_s,
            queues=queues,
        )
        self._age_s = age_s
        self._turn: str | None = None
        """The user whose job was claimed last; where there are very many, the next claim begins behind."""
        self._skipped: dict[UUID, float] = {}
        self._refusals: list[Refusal] = []

    def claim(self, limit: int, *, account: int | None = None) -> list[Job]:
        """Takes up to ``limit`` jobs and opens an attempt for each: the highest priority first, users by turns.

        Of a user the oldest comes first, and whoever has fewest running is next. None goes beyond a limit of
        ``rythmiq.limits``, nor are more than ``account`` jobs RUNNING then, with whichever driver.

        A job whose last attempt is kept to be collected again gets that attempt, in phase COLLECTING. One that cannot
        be begun or read is ended as ``invalid_job``.
        """
        rows = self._isolated(
            "claim",
            "claimable",
            queues=self._queues,
            limit=limit,
            account=account,
            age_s=self._age_s,
            after=self._turn,
        )
        if not rows:
            return []
        rows = self._run("claimed", ids=[row["job_id"] for row in rows])
        if rows:
            self._turn = rows[-1]["user_id"]
        return self._readable(rows)

    def look_round(self, submitting: Iterable[UUID]) -> Round:
        """Keeps budgets up to date, and tells what there is to be done."""
        (row,) = self._run("look_round", ids=list(submitting))
        return Round(
            draining=row["draining"],
            unsettled=row["unsettled"],
            schedules_due=row["schedules_due"],
            notifications_due=row["notifications_due"],
            account_limit=row["account_limit"],
            closed=frozenset(row["closed"]),
        )

    def roles_of(self, login: str) -> tuple[frozenset[str], bool]:
        """The roles that a login is a member of, and whether it owns the tables or is a member of rythmiq_operator."""
        (row,) = self._run("roles_of", login=login)
        return frozenset(row["roles"] or ()), row["trusted"]

    def adjust_account(
        self, *, first: float, grown: float, share: float | None, sent_age_s: float
    ) -> tuple[float, float | None, int]:
        """What all drivers found of how much the account bears, how many seconds ago it was lowered; how many jobs run.

        It was never lowered: None.
        ``grown`` is added to it; ``share`` lowers it, unless that was done since the create that was refused was sent.
        """
        (row,) = self._run("adjust_account", first=first, grown=grown, share=share, sent_age_s=sent_age_s)
        return row["found_limit"], row["lowered_s"], row["running"]

    def adopt(self, limit: int) -> list[Adopted]:
        """Takes over up to thrice ``limit`` running jobs that were given back or whose driver's lease is over or lost.

        One of which no remote job is known and whose spec cannot be read is ended as ``invalid_job``, and so is one
        whose path or remote job is not its own.
        """
        rows = self._isolated("adopt", "adoptable", queues=self._queues, limit=limit)
        seconds = {row["job_id"]: {name: row[name] for name in _DURATIONS} for row in rows}
        return [Adopted(job=job, **seconds[job.job_id]) for job in self._readable(rows)]

    def take_notifications(self, limit: int, *, hold_s: float, keep_s: float) -> list[Notification]:
        """Those that are due, which no other driver takes for ``hold_s``; deletes what was done ``keep_s`` ago."""
        rows = self._run("take_notifications", limit=limit, hold_s=hold_s, keep_s=keep_s)
        return [Notification(**row) for row in rows]

    def told(self, answers: Iterable[Told]) -> None:
        """Writes what became of tries."""
        rows = [
            {"notification_id": str(one.notification_id), "error": one.error, "again_s": one.again_s} for one in answers
        ]
        self._run("told", rows=json.dumps(rows))

    def fire_schedules(self, limit: int) -> int:
        """Enqueues what schedules have due, each due time once, whichever driver comes first; returns how many.

        A schedule whose cron never comes again, or that a person broke, is left alone, and so is one of which another
        session holds something: it stays due.
        """
        fired = 0
        for row in self._run("due_schedules", limit=limit):
            try:
                found = due(row["cron"], row["time_zone"], row["next_at"], row["now"], CatchUp(row["catch_up"]))
                with self._patiently():  # It may be a sweep of very many jobs.
                    (done,) = self._run(
                        "fire_schedule",
                        schedule=row["name"],
                        was=row["next_at"],
                        next_at=found.next_at,
                        times=list(found.times),
                    )
            except (InvalidJob, ValueError, psycopg2.Error, Conflict, StatementTimeout):
                continue
            fired += done["fired"]
        return fired

    def refusals(self) -> list[Refusal]:
        """The rows that could not be worked on since this was asked last."""
        refusals, self._refusals = self._refusals, []
        return refusals

    def release(self) -> set[UUID]:
        """Gives back all jobs that wait, and returns their ids; those not whose row another session holds."""
        return {row["job_id"] for row in self._isolated("release", "held")}

    def disown(self, known: Iterable[UUID]) -> set[UUID]:
        """Gives back the running jobs that are this driver's by the table but not among ``known``; returns their ids.

        For after a lost connection: a claim whose answer was lost has taken jobs that nobody would run. A row that
        another session holds is given back by a later call.
        """
        return {row["job_id"] for row in self._isolated("disown", "held", known=list(known))}

    def advance(self, steps: Iterable[Progress]) -> Written:
        """Notes progress."""
        return self._one_by_one(
            steps,
            lambda batch: self._write("advance", [_step_record(step) for step in batch]),
            lambda step, _error: Progress(job_id=step.job_id, attempt=step.attempt, phase=step.phase),
        )

    def finish(self, endings: Iterable[Ending]) -> Written:
        """Ends attempts. One that Postgres will not store ends as ``internal``, and says so."""
        return self._one_by_one(
            endings, lambda batch: self._write("finish", [_ending_record(ending) for ending in batch]), _refused
        )

    def cancel_requests(self) -> set[UUID]:
        """Which of this driver's jobs somebody wants ended."""
        return {row["job_id"] for row in self._run("cancel_requests")}

    def settle_left(self, limit: int) -> int:
        """Does what follows from the end of jobs where another session was in the way; returns how much there was."""
        handled: int = self._run("settle_left", limit=limit)[0]["handled"]
        return handled

    def bounds(self) -> list[Bounds]:
        """What bounds the work of all drivers, by scope; a scope without limits is not in it."""
        return [Bounds(**row) for row in self._run("control")]

    def left_over(self) -> LeftOver:
        """What is left over, and has to be looked at if it grows."""
        (row,) = self._run("left_over", limit=_COUNTED)
        return LeftOver(**row)

    def unserved(self, waiting: Iterable[str]) -> set[str]:
        """Of these queues those that no living driver serves."""
        return {row["queue"] for row in self._run("unserved", waiting=list(waiting))}

    def ended_attempts(self, attempts: Iterable[tuple[UUID, int]]) -> list[EndedAttempt]:
        """What traces show of attempts that have ended."""
        rows = [{"job_id": str(job_id), "attempt": attempt} for job_id, attempt in attempts]
        return [EndedAttempt(**row) for row in self._run("ended_attempts", rows=json.dumps(rows))]

    def ended_groups(self, ids: Iterable[UUID], *, members: int) -> list[EndedGroup]:
        """Those of these groups that have ended, each with so many of its members."""
        rows = self._run("ended_groups", ids=list(ids), limit=members)
        for row in rows:
            row["first"] = [(UUID(job_id), number, parent) for job_id, number, parent in json.loads(row["first"])]
        return [EndedGroup(**row) for row in rows]

    def unfinished(self, *, telling: bool = False) -> bool:
        """Whether anything of the served queues is claimable, scheduled or running, with whichever driver.

        ``telling``: or whether a notification was never tried.
        """
        return bool(self._run("unfinished", queues=self._queues, telling=telling)[0]["unfinished"])

    def depth(self) -> Depth:
        """How much waits. It costs some 10 ms at most, however long the queue is."""
        rows = self._run("depth", limit=_COUNTED)
        oldest_s: float = self._run("oldest_claimable")[0]["seconds"]
        return Depth(jobs={(row["queue"], row["state"]): row["jobs"] for row in rows}, oldest_claimable_s=oldest_s)

    def cleaned(self, attempts: Iterable[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
        """Notes that the paths of these attempts are gone from the stash; returns those to be noted again later."""
        attempts = list(attempts)
        rows = [{"job_id": str(job_id), "attempt": attempt} for job_id, attempt in attempts]
        try:
            return {(row["job_id"], row["attempt"]) for row in self._run("cleaned", rows=json.dumps(rows))}
        except psycopg2.Error:
            if len(attempts) <= 1:
                return set(attempts)
        return set().union(*(self.cleaned([attempt]) for attempt in attempts))

    def uncleaned(self, limit: int, *, older_than_s: float, but: Iterable[UUID] = ()) -> list[Job]:
        """Ended attempts whose path is still to be removed, each as the job it was of, oldest first; none of ``but``.

        Not those whose path is kept until later, nor one that is being collected again. A path that is not the
        attempt's own is not touched, and noted as done with.
        """
        rows = self._run("uncleaned", limit=limit, older_than_s=older_than_s, but=list(but))
        jobs = [
            replace(
                job_from_row(row),
                attempt=row["ended_attempt"],
                remote_path=row["ended_path"],
                remote_id=row["ended_remote_id"],
            )
            for row in rows
        ]
        foreign = {(job.job_id, job.attempt) for job in jobs if job.remote_path != path_of(job.job_id, job.attempt)}
        if foreign:
            self.cleaned(foreign)
        return [job for job in jobs if (job.job_id, job.attempt) not in foreign]

    def expired_artifacts(self, limit: int, *, older_than_s: float, but: Iterable[UUID] = ()) -> list[Stored]:
        """Attempts of ended jobs whose files are due to be deleted, oldest first, without those of jobs in ``but``.

        Whoever deletes the files calls :meth:`forget_artifacts` after; no transaction is open between.
        """
        rows = self._run("expired_artifacts", limit=limit, older_than_s=older_than_s, but=list(but))
        return [Stored(job_id=row["job_id"], attempt=row["attempt"], uris=tuple(row["uris"])) for row in rows]

    def forget_artifacts(self, attempts: Iterable[Stored]) -> None:
        """Notes that the files of these attempts are gone."""
        rows = [{"job_id": str(stored.job_id), "attempt": stored.attempt} for stored in attempts]
        self._run("forget_artifacts", rows=json.dumps(rows))

    def delete_expired(
        self, limit: int, *, succeeded_s: float | None, failed_s: float | None, files_first: bool
    ) -> set[UUID]:
        """Deletes up to ``limit`` jobs of each end that are so old, FAILED and CANCELLED alike; None keeps them.

        With ``files_first`` those stay that still have stored files. Returns the ids of what is gone.
        """
        rows = self._run(
            "delete_expired", limit=limit, succeeded_s=succeeded_s, failed_s=failed_s, files_first=files_first
        )
        return {row["job_id"] for row in rows}

    def fileno(self) -> int | None:
        """The socket on which notifications arrive, for ``select``; None while there is no connection."""
        return None if self._connection is None or self._connection.closed else self._connection.fileno()

    @property
    def notified(self) -> bool:
        """Whether a notification came in with the answer to a query: it is read then, and the socket says no more."""
        return self._connection is not None and bool(self._connection.notifies)

    def notifications(self) -> set[str]:
        """What was notified since the last look; never waits."""
        if self._connection is None:
            return set()
        try:
            with translated():
                self._connection.poll()
        except DatabaseUnavailable:
            self.close()
            raise
        payloads = {notify.payload for notify in self._connection.notifies}
        self._connection.notifies.clear()
        return payloads

    def _open(self) -> psycopg2.extensions.connection:
        connection = super()._open()
        fetch(connection, _SQL["session"], {})
        return connection

    # ------------------------------------------------------------------------------------ one odd row among others

    def _isolated(self, name: str, one_by_one: str, **parameters: Any) -> list[dict[str, Any]]:
        """Runs a statement over many rows; where one row breaks it, over each alone that ``one_by_one`` lists."""
        now = now_s()
        self._skipped = {job_id: until for job_id, until in self._skipped.items() if until > now}
        parameters["skipped"] = list(self._skipped) or None
        try:
            return self._run(name, only=None, **parameters)
        except psycopg2.Error:
            rows: list[dict[str, Any]] = []
        for row in self._run(one_by_one, **parameters):
            try:
                rows += self._run(name, only=row["job_id"], **parameters)
            except psycopg2.Error as error:
                self._set_aside(row["job_id"], error)
        return rows

    def _set_aside(self, job_id: UUID, error: psycopg2.Error) -> None:
        """Ends a queued job that its own row keeps from being claimed; leaves any other alone for a while."""
        ended: list[dict[str, Any]] = []
        message = f"attempt: the next one cannot be opened: SQLSTATE {error.pgcode}, {explain(error)}"
        if (error.pgcode or "").startswith(_OF_THE_ROW):
            with suppress(psycopg2.Error):
                ended = self._run("refuse", job_id=job_id, message=_storable(message))
        if ended:
            refusal = Refusal(job_id=job_id, attempt=ended[0]["attempt"], message=message, ended=True)
            self._refusals.append(refusal)
        else:
            self._leave_alone(job_id, None, error)

    def _leave_alone(self, job_id: UUID, attempt: int | None, error: psycopg2.Error) -> None:
        self._skipped[job_id] = now_s() + _SET_ASIDE_S
        message = f"Postgres refuses to change this row: SQLSTATE {error.pgcode}, {explain(error)}"
        self._refusals.append(Refusal(job_id=job_id, attempt=attempt, message=message, ended=False))

    def _readable(self, rows: Iterable[Mapping[str, Any]]) -> list[Job]:
        """The jobs of rows that are ours now; ends those that cannot be run as they are."""
        jobs: list[Job] = []
        odd: list[Ending] = []
        for row in rows:
            job, faults = read_job(row)
            # Once there is a remote job, it was paid for, and what is left to do needs little of the spec.
            if job.phase is not Phase.SUBMITTING or job.remote_id is not None:
                faults = []
            if faults := [*faults_of_place(job), *faults]:
                odd.append(_invalid(job, faults))
            else:
                jobs.append(job)
        jobs = self._with_stored(jobs)
        if odd:
            self.finish(odd)
        self._refusals += [
            Refusal(
                job_id=ending.job_id,
                attempt=ending.attempt,
                message=ending.error.message if ending.error else "",
                ended=True,
            )
            for ending in odd
        ]
        return jobs

    def _with_stored(self, jobs: list[Job]) -> list[Job]:
        """With the URIs of what other jobs stored in place of their ``job:`` and ``group:`` inputs.

        One that matches nothing stays as it is, and is an input that is missing to whoever opens it.
        """
        asked = [
            {"place": place, "number": number, **_stored_by(item.uri)}
            for place, job in enumerate(jobs)
            if job.phase is Phase.SUBMITTING and job.spec.inputs
            for number, item in enumerate(job.spec.inputs)
            if is_stored(item.uri)
        ]
        if not asked:
            return jobs
        found: defaultdict[tuple[int, int], list[Row]] = defaultdict(list)
        for row in self._run("stored_inputs", asked=json.dumps(asked)):
            found[row["place"], row["number"]].append(row)
        jobs = list(jobs)
        for place in {place for place, _ in found}:
            spec = jobs[place].spec
            inputs = [
                each
                for number, item in enumerate(spec.inputs)
                for each in ([_stored_input(item, row) for row in found[place, number]] or [item])
            ]
            jobs[place] = replace(jobs[place], spec=replace(spec, inputs=tuple(inputs)))
        return jobs

    def _write(self, name: str, records: Sequence[Mapping[str, Any]]) -> Written:
        rows = self._run(name, rows=json.dumps(records))
        return Written(
            ours=frozenset(row["job_id"] for row in rows if row["written"]),
            locked=frozenset(row["job_id"] for row in rows if not row["written"]),
        )

    def _one_by_one(
        self,
        items: Iterable[_Item],
        write: Callable[[Sequence[_Item]], Written],
        without: Callable[[_Item, psycopg2.Error], _Item],
    ) -> Written:
        """Writes a batch; where one row breaks it, each alone, and that one ``without`` what Postgres may not like.

        One that takes longer than a statement may is not an outage: its rows are many, and it is written alone, for as
        long as it takes. The lease is renewed on another connection meanwhile.
        """
        items = list(items)
        try:
            return write(items)
        except (psycopg2.Error, StatementTimeout):
            found: list[Written] = []
        for item in items:
            try:
                with self._patiently():
                    found.append(write([item]))
            except psycopg2.Error as error:
                try:
                    found.append(write([without(item, error)]))
                except psycopg2.Error as again:
                    found.append(Written(ours=frozenset(), locked=frozenset([item.job_id])))
                    if self._skipped.get(item.job_id, 0.0) <= now_s():  # It is tried again all the time, and told once.
                        self._leave_alone(item.job_id, item.attempt, again)
        return Written(
            ours=frozenset().union(*(one.ours for one in found)),
            locked=frozenset().union(*(one.locked for one in found)),
        )


def _stored_by(uri: str) -> dict[str, str | None]:
    kind, _, rest = uri.partition(":")
    reference, _, glob = rest.partition("/")
    try:
        source = str(UUID(reference))
    except ValueError:  # a row that somebody wrote by hand
        source = None
    return {
        "job_id": source if kind == "job" else None,
        "group_id": source if kind == "group" else None,
        "pattern": f"^({regex_of(glob)})$",
        "literal": None if WILDCARD.search(glob) else glob,
    }


def _stored_input(item: Input, row: Row) -> Input:
    """A member's file lies in a folder of its place in the group, which keeps equal names apart."""
    if not item.name.endswith("/"):
        return Input(uri=row["uri"], name=item.name)
    folder = "" if item.name == "./" else item.name
    member = f"{row['group_index'] or 0:04}/" if item.uri.startswith("group:") else ""
    return Input(uri=row["uri"], name=f"{folder}{member}{row['name']}")


def _invalid(job: Job, faults: Sequence[str]) -> Ending:
    return Ending(
        job_id=job.job_id,
        attempt=job.attempt,
        state=JobState.FAILED,
        error=ErrorInfo(code=ErrorCode.INVALID_JOB, message="; ".join(faults)),
        retryable=False,
    )


def _refused(ending: Ending, error: psycopg2.Error) -> Ending:
    return Ending(
        job_id=ending.job_id,
        attempt=ending.attempt,
        state=JobState.FAILED,
        error=ErrorInfo(
            code=ErrorCode.INTERNAL,
            message=f"Postgres refused to store how this attempt ended: SQLSTATE {error.pgcode}",
        ),
        retryable=False,
        artifact_uri=ending.artifact_uri,
        keep_s=ending.keep_s,
    )


def _step_record(step: Progress) -> dict[str, Any]:
    return {
        "job_id": str(step.job_id),
        "attempt": step.attempt,
        "phase": step.phase,
        "remote_id": step.remote_id,
        "remote_status": step.remote_status,
        "running": step.remote_status is not None and step.remote_status.started,
        "credits_per_hour": finite(step.credits_per_hour),
        "wait_reason": None if step.wait_reason is None else _storable(step.wait_reason),
    }


def _ending_record(ending: Ending) -> dict[str, Any]:
    return {
        "job_id": str(ending.job_id),
        "attempt": ending.attempt,
        "state": ending.state,
        "retry_delay_s": ending.retry_delay_s,
        "exit_code": ending.exit_code,
        "error_code": ending.error.code if ending.error else None,
        "error_message": _storable(ending.error.message) if ending.error else None,
        "retryable": ending.retryable,
        "artifact_uri": ending.artifact_uri,
        "cost_credits": finite(ending.cost_credits),
        "remote_id": ending.remote_id,
        "remote_status": ending.remote_status,
        "warnings": [_storable(warning) for warning in ending.warnings[:_MOST_WARNINGS]],
        "keep_s": ending.keep_s,
        "collect_again": ending.collect_again,
        "free": ending.free,
        "artifacts": [
            {
                "name": artifact.name,
                "uri": artifact.uri,
                "bytes": artifact.bytes,
                "sha256": artifact.sha256,
                "content_type": artifact.content_type,
            }
            for artifact in ending.artifacts
        ],
    }


def _storable(text: str) -> str:
    """What Postgres takes as text: no NUL, no lone surrogate; and no more than a person reads."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[:_MOST_TEXT]
