"""A driver's side of the queue: claim, take-over, and fenced writes in batches."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
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
"""SQLSTATE classes of faults of one row: data and integrity. Faults of a trigger or the server may pass."""
_SET_ASIDE_S: Final = 600.0
_MOST_TEXT: Final = 4000
_MOST_WARNINGS: Final = 100
_COUNTED: Final = 10_000
"""The most waiting jobs that are counted one by one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adopted:
    """A job that was taken over; ``orphaned_s``: seconds since its former driver may last have acted for it."""

    job: Job
    orphaned_s: float
    age_s: float = 0.0
    """Seconds since its attempt was claimed, by the database's clock, as are the next two."""
    submitted_s: float = 0.0
    """Seconds since its remote job was first known."""
    running_s: float | None = None
    """Seconds since the remote job was first seen to run; None if it was not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """New values for a running attempt's row; None leaves a column unchanged."""

    job_id: UUID
    attempt: int
    phase: Phase
    remote_id: int | None = None
    remote_status: RemoteStatus | None = None
    wait_reason: str | None = None
    """Why it makes no progress, in words; None: it does."""
    credits_per_hour: float | None = None
    """Its cost while it runs, for budgets."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """The results of a batch of fenced writes, by job id."""

    ours: frozenset[UUID]
    """Jobs that were written."""
    locked: frozenset[UUID] = frozenset()
    """Jobs whose rows another session holds; write them again later. Jobs in neither set are no longer ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an attempt ended, and what happens to its job."""

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
    """How many seconds the attempt's path is kept, because files in it were not stored."""
    create_s: float | None = None
    """How long the create took, for traces; it is not stored."""
    free: bool = False
    """The attempt never ran and does not count against ``max_attempts``."""

    @property
    def collect_again(self) -> bool:
        """Whether the next claim collects the kept files instead of beginning a new attempt."""
        return self.keep_s is not None and self.error is not None and self.error.code in _COLLECTED_AGAIN


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """A row that could not be processed, and what was done about it. Other rows are not affected."""

    job_id: UUID
    attempt: int | None
    message: str
    ended: bool
    """Whether the job was ended as ``invalid_job``; else it is left unchanged for a while."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """An ended attempt and the URIs of its stored files, with the manifest."""

    job_id: UUID
    attempt: int
    uris: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ControlState:
    """The result of :meth:`Queue.control_state`."""

    draining: bool
    """Whether the driver has to finish its jobs and exit."""
    unsettled: bool
    """See :meth:`Queue.settle_left`."""
    schedules_due: bool
    """See :meth:`Queue.fire_schedules`."""
    notifications_due: bool
    """See :meth:`Queue.take_notifications`."""
    account_limit: int | None
    """The limit of running jobs that somebody set for the account; None: the configuration's applies."""
    closed: frozenset[UUID]
    """Those of the given jobs whose scope was paused, or whose budget was reached, after they were claimed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """The result of :meth:`Queue.settle_left`."""

    handled: int
    """How many entries of ``rythmiq.unsettled``."""
    groups: Sequence[UUID]
    """Groups that may have ended by that."""
    at: datetime
    """Their ``finished_at`` if so."""


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
class Delivery:
    """What became of a try."""

    notification_id: UUID
    error: str | None
    """None = it was delivered."""
    again_s: float | None
    """Seconds until the next try; None = there is none."""
    tries: int
    """How many there had been when this one was taken, with it."""
    tried: bool = True
    """False: it was left for later and does not count as a try."""

    @classmethod
    def of(cls, one: Notification, *, error: str | None, again_s: float | None, tried: bool = True) -> Delivery:
        return cls(notification_id=one.notification_id, error=error, again_s=again_s, tries=one.tries, tried=tried)


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
    at_limit: int
    """How many of its names use a limit up, of running jobs or of attempts begun in a minute."""
    used: float
    """The largest share of a limit that is used, 1 = all of it; 0 where there is none."""


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
    """Numbers of waiting jobs of all queues, also of those that the driver does not serve."""

    jobs: Mapping[tuple[str, str], int]
    """By queue and state; exact up to 10,000 jobs in all, then estimated."""
    oldest_claimable_s: float
    """How many seconds the oldest claimable job has been claimable; 0 if there is none."""


_Item = TypeVar("_Item", Progress, Ending)


class Queue(Session):
    """The queue as one driver sees it. Not thread-safe: it belongs to the driver's loop.

    Every method raises DatabaseUnavailable when Postgres does not answer, and the next call reconnects. A row that
    makes a statement fail, or that cannot be read, does not affect others: see :meth:`refusals`.
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
        """``age_s``: for each such time of waiting a job counts as one step of priority higher; None = never."""
        super().__init__(
            dsn,
            lease_s=lease_s,
            connect_timeout_s=connect_timeout_s,
            statement_timeout_s=statement_timeout_s,
            queues=queues,
        )
        self._age_s = age_s
        self._turn: str | None = None
        """The user whose job was claimed last; with very many users the next claim begins after this one."""
        self._skipped: dict[UUID, float] = {}
        self._refusals: list[Refusal] = []

    def claim(self, limit: int, *, account: int | None = None) -> list[Job]:
        """Claims up to ``limit`` jobs and opens an attempt for each: the highest priority first, users in turns.

        The user with the fewest running jobs is next, with the oldest job first. No claim exceeds a limit in
        ``rythmiq.limits``, or lets more than ``account`` jobs of all drivers be RUNNING.

        A job whose last attempt's files were kept gets that attempt again, in phase COLLECTING. A job that cannot be
        begun or read is ended as ``invalid_job``.
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

    def control_state(self, submitting: Iterable[UUID]) -> ControlState:
        """Updates budgets, and returns what the driver has to do beside its jobs. ``submitting``: jobs to check."""
        (row,) = self._run("control_state", ids=list(submitting))
        return ControlState(
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

    def may_see(self, login: str, ids: Iterable[UUID]) -> tuple[bool, frozenset[UUID]]:
        """Whether a login may see all jobs, and which of these are its own."""
        (row,) = self._run("may_see", login=login, ids=list(ids))
        return row["sees_all"], frozenset(row["ids"])

    def adjust_account(
        self, *, first: float, grown: float, share: float | None, sent_age_s: float
    ) -> tuple[float, float | None, int]:
        """Updates the account's limit that all drivers share for ``auto``. Returns the limit; how many seconds ago it
        was lowered, None = never; and how many jobs run.

        ``grown`` is added to the limit. ``share`` is the factor that lowers it, unless another driver has lowered it
        since the refused create was sent.
        """
        (row,) = self._run("adjust_account", first=first, grown=grown, share=share, sent_age_s=sent_age_s)
        return row["found_limit"], row["lowered_s"], row["running"]

    def adopt(self, limit: int) -> list[Adopted]:
        """Takes over up to three times ``limit`` running jobs that were released or whose driver's lease has ended.

        A job without a known remote job and with an unreadable spec is ended as ``invalid_job``, and so is one whose
        path or remote id cannot be its own.
        """
        rows = self._isolated("adopt", "adoptable", queues=self._queues, limit=limit)
        seconds = {row["job_id"]: {name: row[name] for name in _DURATIONS} for row in rows}
        return [Adopted(job=job, **seconds[job.job_id]) for job in self._readable(rows)]

    def take_notifications(self, limit: int, *, hold_s: float, keep_s: float) -> list[Notification]:
        """Those that are due, which no other driver takes for ``hold_s``; deletes what was done ``keep_s`` ago."""
        rows = self._run("take_notifications", limit=limit, hold_s=hold_s, keep_s=keep_s)
        return [Notification(**row) for row in rows]

    def record_deliveries(self, answers: Iterable[Delivery]) -> None:
        """Writes what became of tries."""
        rows = [{**asdict(one), "notification_id": str(one.notification_id)} for one in answers]
        self._run("record_deliveries", rows=json.dumps(rows))

    def fire_schedules(self, limit: int) -> int:
        """Fires due schedules, each due time exactly once by one of the drivers; returns how many it fired.

        A schedule whose cron has no further time, with an invalid row, or with a row that another session holds, is
        skipped and stays due.
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
        """The rows that could not be processed since the last call."""
        refusals, self._refusals = self._refusals, []
        return refusals

    def release(self) -> set[UUID]:
        """Releases all waiting jobs for other drivers, and returns their ids; rows that are locked are left out."""
        return {row["job_id"] for row in self._isolated("release", "held")}

    def disown(self, known: Iterable[UUID]) -> set[UUID]:
        """Releases jobs that the table says are this driver's but that are not in ``known``; returns their ids.

        Used after a lost connection: a claim whose answer was lost has taken jobs that nobody would run. Locked rows
        are released by a later call.
        """
        return {row["job_id"] for row in self._isolated("disown", "held", known=list(known))}

    def advance(self, steps: Iterable[Progress]) -> Written:
        """Writes progress of attempts."""
        return self._one_by_one(
            steps,
            lambda batch: self._write("advance", [_step_record(step) for step in batch]),
            lambda step, _error: Progress(job_id=step.job_id, attempt=step.attempt, phase=step.phase),
        )

    def finish(self, endings: Iterable[Ending]) -> Written:
        """Writes the ends of attempts. If Postgres refuses one, it ends as ``internal`` with a message that says so."""
        return self._one_by_one(
            endings, lambda batch: self._write("finish", [_ending_record(ending) for ending in batch]), _refused
        )

    def cancel_requests(self) -> set[UUID]:
        """This driver's jobs that somebody has cancelled."""
        return {row["job_id"] for row in self._run("cancel_requests")}

    def settle_left(self, limit: int) -> Settled:
        """Handles effects of ended jobs that were postponed because another session held a row."""
        return Settled(**self._run("settle_left", limit=limit)[0])

    def bounds(self) -> list[Bounds]:
        """What bounds the work of all drivers, for each kind of scope."""
        return [Bounds(**row) for row in self._run("bounds")]

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

    def ended_groups(self, ids: Iterable[UUID], *, at: Iterable[datetime], members: int) -> list[EndedGroup]:
        """Those of these groups that ended at one of these times, each with so many of its members.

        With the times at which its own attempts ended, and those of :class:`Settled`, only one driver finds a group.
        """
        rows = self._run("ended_groups", ids=list(ids), at=list(at), limit=members)
        for row in rows:
            row["first"] = [(UUID(job_id), number, parent) for job_id, number, parent in json.loads(row["first"])]
        return [EndedGroup(**row) for row in rows]

    def unfinished(self, *, telling: bool = False) -> bool:
        """Whether a job of the served queues is claimable, scheduled or running, with any driver.

        ``telling``: also whether a notification was never tried.
        """
        return bool(self._run("unfinished", queues=self._queues, telling=telling)[0]["unfinished"])

    def depth(self) -> Depth:
        """Numbers of waiting jobs. Takes about 10 ms at most, however long the queue is."""
        rows = self._run("depth", limit=_COUNTED)
        oldest_s: float = self._run("oldest_claimable")[0]["seconds"]
        return Depth(jobs={(row["queue"], row["state"]): row["jobs"] for row in rows}, oldest_claimable_s=oldest_s)

    def cleaned(self, attempts: Iterable[tuple[UUID, int]]) -> set[tuple[UUID, int]]:
        """Writes that these attempts' paths were removed from the stash; returns those to write again later."""
        attempts = list(attempts)
        rows = [{"job_id": str(job_id), "attempt": attempt} for job_id, attempt in attempts]
        try:
            return {(row["job_id"], row["attempt"]) for row in self._run("cleaned", rows=json.dumps(rows))}
        except psycopg2.Error:
            if len(attempts) <= 1:
                return set(attempts)
        return set().union(*(self.cleaned([attempt]) for attempt in attempts))

    def uncleaned(self, limit: int, *, older_than_s: float, but: Iterable[UUID] = ()) -> list[Job]:
        """Ended attempts whose path has to be removed, each as its job, oldest first; none of the jobs in ``but``.

        Without attempts whose path is still kept or is being collected again. A path that is not the attempt's own is
        never removed; its attempt is marked as done.
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

        After deleting the files, call :meth:`forget_artifacts`. No transaction stays open in between.
        """
        rows = self._run("expired_artifacts", limit=limit, older_than_s=older_than_s, but=list(but))
        return [Stored(job_id=row["job_id"], attempt=row["attempt"], uris=tuple(row["uris"])) for row in rows]

    def forget_artifacts(self, attempts: Iterable[Stored]) -> None:
        """Writes that the files of these attempts were deleted."""
        rows = [{"job_id": str(stored.job_id), "attempt": stored.attempt} for stored in attempts]
        self._run("forget_artifacts", rows=json.dumps(rows))

    def delete_expired(
        self, limit: int, *, succeeded_s: float | None, failed_s: float | None, files_first: bool
    ) -> set[UUID]:
        """Deletes up to ``limit`` jobs of each final state that are old enough; an age of None keeps them.

        ``files_first``: jobs that still have stored files are kept. Returns the ids of deleted jobs.
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
        """Whether a notification came with the answer to a query. It was read then, so the socket does not show it."""
        return self._connection is not None and bool(self._connection.notifies)

    def notifications(self) -> set[str]:
        """The notifications since the last call; never waits."""
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
        """Runs a statement for many rows; if a row makes it fail, runs it for each row that ``one_by_one`` lists."""
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
        """Ends a queued job whose own row prevents its claim; skips any other row for a while."""
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
        """The jobs of newly claimed or adopted rows; ends those that cannot be run."""
        jobs: list[Job] = []
        odd: list[Ending] = []
        for row in rows:
            job, faults = read_job(row)
            # If there is a remote job, it was paid for, and the remaining steps need little of the spec.
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
        """The jobs with URIs of stored files instead of ``job:`` and ``group:`` inputs.

        An input that matches no file stays unchanged; the submit then fails with InputMissing.
        """
        asked = [
            {"place": place, "number": number, "asker": job.enqueued_by, **_stored_by(item.uri)}
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
        """Writes a batch; if a row makes it fail, writes each alone, and that one as ``without`` returns it.

        A statement timeout is no outage: an item has very many rows then, and is written alone with a longer timeout.
        The lease is renewed on another connection meanwhile.
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
                    if self._skipped.get(item.job_id, 0.0) <= now_s():  # Reported only once, though it is tried again.
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
    """The input for a stored file. A member's file gets a folder named by its place, so that names do not clash."""
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
    """Text that Postgres accepts: without NULs and lone surrogates, and of limited length."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[:_MOST_TEXT]
