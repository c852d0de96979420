"""The Python client, and handles for the jobs and groups that it submitted.

    from rythmiq_ray import Client, JobSpec, grid

    with Client() as client:
        job = client.submit(JobSpec(command="python3 fit.py", inputs=["./fit.py"], outputs=["model.bin"]), name="fit")
        print(job.wait(timeout=3600).state)

All calls block; a handle can be awaited as well. Times are in seconds, costs in credits. Every call may raise
DatabaseUnavailable.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import select
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar
from uuid import UUID

from rythmiq_ray import access, functions, results, sweeps
from rythmiq_ray.artifact_names import LOG_NAME
from rythmiq_ray.errors import InvalidJob, NotFound, RythmiqError
from rythmiq_ray.model import Artifact, Group, Job, JobSpec, JobState, NewGroup, NewJob
from rythmiq_ray.queue import any_connection, control, inspect, listing
from rythmiq_ray.queue.connection import fetch, translated
from rythmiq_ray.queue.listing import Found, Progress
from rythmiq_ray.queue.schema import connect_checked
from rythmiq_ray.secret import Secret
from rythmiq_ray.spec import check_all
from rythmiq_ray.telemetry.traces import of_caller
from rythmiq_ray.uploads import Uploads
from rythmiq_ray.waiting import Waiting

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

__all__ = ["Client", "FunctionHandle", "GroupHandle", "JobFailed", "JobHandle", "Result", "Table"]

_T = TypeVar("_T")
_LAST_LINES: Final = 20
_BULK_TIMEOUT_S: Final = 600.0
_IDLE_S: Final = 10.0
_LONGEST_LOG: Final = 64 * 1024 * 1024


class JobFailed(RythmiqError):
    """A job that was waited for FAILED or was CANCELLED; the message ends with the last lines of its log."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a job ended."""

    job_id: UUID
    state: JobState
    exit_code: int | None
    artifacts: tuple[Artifact, ...]
    """The files that its last attempt stored; the log is ``log.txt``."""
    cost_credits: float | None
    """Estimated cost of all attempts."""
    warnings: tuple[str, ...]
    error_code: str | None
    error_message: str | None
    seconds: float | None
    """How long the command ran, in seconds."""

    @property
    def succeeded(self) -> bool:
        return self.state is JobState.SUCCEEDED


@dataclass(frozen=True)
class Table(Sequence[Mapping[str, Any]]):
    """The results of many jobs: rows by name of column."""

    rows: list[dict[str, Any]]
    faults: list[str] = field(default_factory=list)
    """Files that could not be read, a sentence for each member."""

    @property
    def columns(self) -> list[str]:
        return results.Gathered(self.rows, self.faults).columns

    def __getitem__(self, at: Any) -> Any:
        return self.rows[at]

    def __len__(self) -> int:
        return len(self.rows)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame; parameters that are numbers become numbers. Needs pandas."""
        import pandas  # type: ignore[import-untyped]

        frame = pandas.DataFrame(self.rows, columns=self.columns)
        for name in frame.columns:
            with suppress(ValueError, TypeError):
                frame[name] = pandas.to_numeric(frame[name])
        return frame


class Client:
    """Submits jobs and follows them. Thread-safe; ``with`` or :meth:`close` closes its connection.

    ``url`` is the database's address; by default that of DATABASE_URL, else of the configuration, else of the services
    that ``rythmiq local up`` started. Local inputs are uploaded to the artifact store that the configuration names.
    """

    def __init__(self, url: str | None = None) -> None:
        """Raises ConfigurationError if no database is configured. Does not connect yet."""
        self._url = Secret(url) if url is not None else access.database_url()
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._used_at = 0.0
        self._waiting = Waiting(self._url)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections; a later call opens new ones. Waits that have not ended raise DatabaseUnavailable."""
        self._waiting.close()
        self._disconnect()

    def _disconnect(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    # ------------------------------------------------------------------------------------------------ putting jobs in

    def submit(
        self,
        spec: JobSpec,
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        group: Any = None,
        after: Iterable[Any] = (),
        after_ended: Iterable[Any] = (),
        queue: str = "default",
        priority: int = 0,
        max_attempts: int = 3,
        user_id: str | None = None,
        unique_key: str | None = None,
        delay: float | str = 0.0,
        notify: str | None = None,
        connection: Any = None,
    ) -> JobHandle:
        """Adds one job. The fields are those of :class:`~rythmiq_ray.model.NewJob`; ``after`` takes handles too.

        As text it is a whole id, a group's name, or the name of a job of the same group; :meth:`job` finds any other.

        ``connection``, of psycopg2 or psycopg 3: adds it in that connection's own transaction. Raises InvalidJob with
        every fault, StoreUnavailable if a local input cannot be uploaded, and DatabaseUnavailable.
        """
        job = NewJob(
            spec=spec,
            name=name,
            labels=dict(labels or {}),
            group=_reference(group),
            after=tuple(filter(None, map(_reference, after))),
            after_ended=tuple(filter(None, map(_reference, after_ended))),
            queue=queue,
            priority=priority,
            max_attempts=max_attempts,
            user_id=user_id,
            unique_key=unique_key,
            delay=delay,
            notify=notify,
        )
        return self.submit_many([job], connection=connection)[0]

    def submit_many(self, jobs: Iterable[NewJob], *, connection: Any = None) -> list[JobHandle]:
        """Adds jobs in one transaction; see :meth:`submit`."""
        ready = self._prepared(list(jobs))
        if connection is None:
            with self._database() as own:
                ids = any_connection.enqueue_many(own, ready)
        else:
            ids = any_connection.enqueue_many(connection, ready)
        return [JobHandle(self, job_id, params=job.params) for job_id, job in zip(ids, ready, strict=True)]

    def sweep(
        self,
        spec: JobSpec,
        params: Iterable[Mapping[str, object]],
        *,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        max_parallel: int | None = None,
        stop_after_failures: int | None = None,
        after: Iterable[Any] = (),
        after_ended: Iterable[Any] = (),
        queue: str = "default",
        priority: int = 0,
        max_attempts: int = 3,
        user_id: str | None = None,
        notify: str | None = None,
        connection: Any = None,
    ) -> GroupHandle:
        """Adds a group with a member for each of ``params``; :func:`~rythmiq_ray.sweeps.grid` makes such a list.

        A member has its parameters as environment variables; ``{NAME}`` is replaced in command, inputs, outputs and
        name. ``notify``: a URL that gets one signed POST, when the last member has ended. Raises as :meth:`submit`.
        """
        job = NewJob(
            spec=spec,
            labels=dict(labels or {}),
            after=tuple(filter(None, map(_reference, after))),
            after_ended=tuple(filter(None, map(_reference, after_ended))),
            queue=queue,
            priority=priority,
            max_attempts=max_attempts,
            user_id=user_id,
        )
        rows = [{key: sweeps.text_of(value) for key, value in row.items()} for row in params]
        group = NewGroup(
            name=name,
            user_id=user_id,
            labels=dict(labels or {}),
            max_parallel=max_parallel,
            stop_after_failures=stop_after_failures,
            notify=notify,
        )
        return self.submit_group(sweeps.expand(job, rows), group=group, connection=connection)

    def submit_group(
        self, jobs: Iterable[NewJob], *, name: str | None = None, group: NewGroup | None = None, connection: Any = None
    ) -> GroupHandle:
        """Adds a group of jobs, such as the steps of a pipeline, which can refer to each other by their names.

        ``group`` sets more of the group's fields than ``name``. Raises as :meth:`submit`.
        """
        ready = self._prepared(list(jobs))
        new = group or NewGroup(name=name)
        if connection is not None:
            return GroupHandle(self, any_connection.enqueue_group(connection, new, ready))
        with self._database() as own:
            group_id = any_connection.enqueue_group(own, new, ready)
        return GroupHandle(self, group_id)

    def submit_function(
        self,
        function: Callable[..., _T],
        *args: Any,
        _spec: JobSpec | None = None,
        _name: str | None = None,
        _after: Iterable[Any] = (),
        **kwargs: Any,
    ) -> FunctionHandle[_T]:
        """Runs a Python function on a node: sends it with its arguments, and returns a handle for its value.

        The node's Python must have the same version (3.11 with 3.11) and the packages that the function imports. The
        file that defines the function is sent with it; other modules of your own must be given as inputs.
        ``_spec``: node size, inputs, outputs, variables, timeout; its command is not used. Needs the package
        cloudpickle. Raises as :meth:`submit`, ModuleNotFoundError without cloudpickle, and TypeError if function or
        arguments cannot be pickled.
        """
        store = access.own_store()
        spec = functions.spec_of(store, function, args, kwargs, _spec or JobSpec(command="-"))
        name = _name or getattr(function, "__name__", None)
        job = self.submit(spec, name=name if name and name.isprintable() else None, after=_after)
        return FunctionHandle(self, job.id)

    # -------------------------------------------------------------------------------------------------------- handles

    def job(self, reference: Any) -> JobHandle:
        """The job with this id, its first digits, or its name. Raises NotFound."""
        found = self._find(reference)
        if not found.is_job:
            raise NotFound(f"{reference} is a group, not a job")
        return JobHandle(self, found.id)

    def group(self, reference: Any) -> GroupHandle:
        """The group with this id, its first digits, or its name (unfinished, else the newest). Raises NotFound."""
        found = self._find(reference)
        if found.is_job:
            raise NotFound(f"{reference} is a job, not a group")
        return GroupHandle(self, found.id)

    def set_limit(self, scope: str, *, max_running: int | None = None, per_minute: int | None = None) -> None:
        """Limits ``account``, ``queue:NAME``, ``user:NAME``, ``user:*`` (each user) or ``group:ID``, for all drivers.

        ``max_running``: jobs at once; ``per_minute``: attempts begun in any minute; None changes nothing. Raises
        InvalidJob for an invalid scope and NotFound for an unknown group.
        """
        with self._database() as connection:
            control.set_limit(
                connection, control.scope_of(connection, scope), max_running=max_running, per_minute=per_minute
            )

    def unset_limit(self, scope: str) -> None:
        """Removes a scope's limits. Raises NotFound if it has none."""
        with self._database() as connection:
            control.unset_limit(connection, control.scope_of(connection, scope))

    def limits(self) -> list[control.Limit]:
        """All limits, pauses and budgets, with how much of each is used."""
        with self._database() as connection:
            return control.limits(connection)

    def pause(self, scope: str, reason: str | None = None, *, cancel_running: bool = False) -> int:
        """Stops new submits in a scope; returns how many running jobs were asked to end."""
        with self._database() as connection:
            found = control.scope_of(connection, scope)
            return control.pause(connection, found, reason=reason, cancel_running=cancel_running)

    def resume(self, scope: str) -> None:
        """Ends a pause. Raises NotFound if there is none."""
        with self._database() as connection:
            control.resume(connection, control.scope_of(connection, scope))

    def cost(self, by: str = "day", **asked: Any) -> list[control.Cost]:
        """Credits spent; see :func:`rythmiq_ray.queue.control.cost`."""
        with self._database() as connection:
            return control.cost(connection, by=by, **asked)

    def _find(self, reference: Any) -> Found:
        with self._database() as connection:
            return listing.find(connection, _reference(reference) or "")

    def _prepared(self, jobs: list[NewJob]) -> list[NewJob]:
        """The jobs, after validation and with local inputs uploaded."""
        from rythmiq_ray.config_loader import load_catalog

        found = list(check_all(jobs, load_catalog(), local=True))
        faults = [
            fault if len(jobs) == 1 else f"job {at}: {fault}" for at, each in enumerate(found, 1) for fault in each
        ]
        if faults:
            raise InvalidJob(faults)
        if (trace := of_caller()) is not None:
            jobs = [replace(job, traceparent=job.traceparent or trace) for job in jobs]
        uploads = Uploads.of(jobs)
        return uploads.send(access.own_store()) if uploads.files else jobs

    @contextmanager
    def _database(self) -> Iterator[Connection]:
        """The connection, for one thread at a time; commits at the end, or rolls back after an exception."""
        with self._lock:
            connection = self._connected()
            try:
                yield connection
                with translated():
                    connection.commit()
            except BaseException:
                with suppress(Exception):
                    connection.rollback()
                raise
            finally:
                self._used_at = time.monotonic()

    def _connected(self) -> Connection:
        """The connection; a new one if it was lost.

        It is tested if the server has sent something unasked, as it does when it closes it, or if it was long idle.
        """
        if self._connection is not None and (_readable(self._connection) or time.monotonic() > self._used_at + _IDLE_S):
            try:
                fetch(self._connection, "SELECT", {})
                self._connection.rollback()
            except RythmiqError:
                self._disconnect()
        if self._connection is None or self._connection.closed:
            self._connection = connect_checked(self._url, statement_timeout_s=_BULK_TIMEOUT_S)
        return self._connection


class JobHandle:
    """One job. ``await job`` does what :meth:`wait` does."""

    def __init__(self, client: Client, job_id: UUID, *, params: Mapping[str, str] | None = None) -> None:
        self._client = client
        self.id = job_id
        self._params = params

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"

    @property
    def params(self) -> Mapping[str, str]:
        """The parameters that tell it from the other members of its group."""
        if self._params is None:
            self._params = self.info().params or {}
        return self._params

    @property
    def name(self) -> str | None:
        return self.info().name

    @property
    def state(self) -> JobState:
        """Its present state."""
        return self.info().state

    def info(self) -> Job:
        """Its row as it is now; raises NotFound once it was pruned."""
        with self._client._database() as connection:
            return inspect.job(connection, self.id)

    def wait(self, timeout: float | None = None) -> Result:
        """Waits for its end. Raises JobFailed if it FAILED or was CANCELLED, TimeoutError after ``timeout`` seconds."""
        _wait(self._client, Found(self.id, True), timeout)
        return self._checked()

    def result(self) -> Result:
        """Waits for its end and returns its result in whatever state; raises NotFound once it was pruned."""
        if not self.state.finished:
            _wait(self._client, Found(self.id, True), None)
        return self._result()

    def __await__(self) -> Generator[Any, None, Result]:
        return self._awaited().__await__()

    async def _awaited(self) -> Result:
        await _await(self._client, Found(self.id, True))
        return await asyncio.to_thread(self._checked)

    def log(self, attempt: int | None = None) -> str:
        """The stored log of an attempt, by default of the last one with a log. Raises NotFound while there is none."""
        file = next((file for file in self._files(attempt) if file.name == LOG_NAME), None)
        if file is None:
            raise NotFound(f"Job {self.id} has no stored log: it is {self.state}")
        out = bytearray()
        for chunk in access.read(file.uri):
            out += chunk
            if len(out) > _LONGEST_LOG:
                del out[: len(out) - _LONGEST_LOG]
        return out.decode(errors="replace")

    def download(self, folder: str | os.PathLike[str], attempt: int | None = None) -> list[Path]:
        """Downloads its files into a folder and returns their paths; size and SHA-256 of each are verified.

        If some cannot be downloaded, the others are; then raises the first fault: ArtifactCorrupt, StoreUnavailable or
        OSError.
        """
        return _bring([(file, Path(folder)) for file in self._files(attempt)])

    def cancel(self) -> JobState:
        """Cancels it; returns its new state: RUNNING if its driver still has to stop it."""
        with self._client._database() as connection:
            asked = inspect.cancel(connection, ids=[self.id])
        return asked.get(self.id) or self.state

    def retry(self, *, downstream: bool = False) -> bool:
        """Queues it again if it FAILED or was CANCELLED; returns whether it did. ``downstream``: also jobs that were
        cancelled because they needed it."""
        with self._client._database() as connection:
            return self.id in inspect.retry(connection, [self.id], downstream=downstream)

    def _files(self, attempt: int | None) -> list[Artifact]:
        with self._client._database() as connection:
            if attempt is not None:
                return [file for _, file in inspect.artifacts(connection, self.id, attempt)]
            return [file for _, file in listing.stored(connection, [self.id]).get(self.id, ())]

    def _result(self) -> Result:
        job = self.info()
        return Result(
            job_id=job.job_id,
            state=job.state,
            exit_code=job.exit_code,
            artifacts=tuple(self._files(None)),
            cost_credits=job.cost_credits,
            warnings=job.warnings,
            error_code=job.error_code,
            error_message=job.error_message,
            seconds=results.seconds_of(job),
        )

    def _checked(self) -> Result:
        result = self._result()
        if result.succeeded:
            return result
        words = f"{self.id} is {result.state}: {result.error_code}: {result.error_message}"
        with suppress(RythmiqError, OSError):
            last = "\n".join(self.log().splitlines()[-_LAST_LINES:])
            words += f"\nThe last lines of its log:\n{last}"
        raise JobFailed(words, result)


class FunctionHandle(JobHandle, Generic[_T]):
    """A Python function that runs on a node."""

    def value(self, timeout: float | None = None) -> _T:
        """Waits for the function's value. Raises the function's own exception, or JobFailed if it did not complete.

        Raises TimeoutError after ``timeout`` seconds. The value is unpickled, so everyone who may write to the store
        must be trusted.
        """
        _wait(self._client, Found(self.id, True), timeout)
        value: _T = self._value()
        return value

    def __await__(self) -> Generator[Any, None, Any]:
        return self._awaited_value().__await__()

    async def _awaited_value(self) -> Any:
        await _await(self._client, Found(self.id, True))
        return await asyncio.to_thread(self._value)

    def _value(self) -> Any:
        # An earlier attempt may have left a result, which is neither this attempt's nor that of a cancelled job.
        job = self.info()
        files = [] if job.state is JobState.CANCELLED else self._files(job.attempt)
        file = next((each for each in files if each.name == functions.RESULT_NAME), None)
        if file is None:
            self._checked()
            raise NotFound(f"Job {self.id} left no {functions.RESULT_NAME}")
        outcome, value = pickle.loads(b"".join(access.read(file.uri)))  # noqa: S301 - as said above
        if outcome == "returned":
            return value
        raise value if isinstance(value, BaseException) else JobFailed(str(value), self._result())


class GroupHandle:
    """A group: a sweep, a batch, the steps of a pipeline. ``await group`` does what :meth:`wait` does."""

    def __init__(self, client: Client, group_id: UUID) -> None:
        self._client = client
        self.id = group_id

    def __repr__(self) -> str:
        return f"<GroupHandle {self.id}>"

    def __len__(self) -> int:
        return self.info().members

    def __iter__(self) -> Iterator[JobHandle]:
        return iter(self.members())

    def info(self) -> Group:
        """Its row as it is now; raises NotFound once it was pruned."""
        with self._client._database() as connection:
            found = listing.groups_of(connection, [self.id])
        if not found:
            raise NotFound(f"There is no group {self.id}")
        return found[0]

    @property
    def name(self) -> str | None:
        return self.info().name

    @property
    def state(self) -> JobState:
        """RUNNING while a member is unfinished, then FAILED or CANCELLED if one is, else SUCCEEDED."""
        return self.info().state

    def members(self) -> list[JobHandle]:
        """All members, in their order."""
        with self._client._database() as connection:
            jobs = listing.members(connection, [self.id])
        return [JobHandle(self._client, job.job_id, params=job.params or {}) for job in jobs]

    def wait(self, timeout: float | None = None) -> Group:
        """Waits until all members have ended, in whatever state. Raises TimeoutError after ``timeout`` seconds."""
        _wait(self._client, Found(self.id, False), timeout)
        return self.info()

    def __await__(self) -> Generator[Any, None, Group]:
        return self._awaited().__await__()

    async def _awaited(self) -> Group:
        await _await(self._client, Found(self.id, False))
        return await asyncio.to_thread(self.info)

    def as_completed(self, timeout: float | None = None) -> AsCompleted:
        """The members as they end, for ``for`` and ``async for``. Raises TimeoutError after ``timeout`` seconds."""
        return AsCompleted(self._client, self.id, timeout)

    def table(self, file: str | None = None) -> Table:
        """A row for each member, in their order: parameters, state, seconds, credits, and the fields of an output.

        ``file`` is the name of an output of each member: .json, .jsonl, .csv, or text.
        """
        with self._client._database() as connection:
            jobs = listing.members(connection, [self.id])
            stored = listing.stored(connection, [job.job_id for job in jobs], file) if file is not None else {}
        files = {job_id: found[0][1] for job_id, found in stored.items()}
        gathered = results.gather(jobs, files, access.read)
        return Table(gathered.rows, gathered.faults)

    def download(self, folder: str | os.PathLike[str]) -> dict[UUID, list[Path]]:
        """Downloads each member's files into a folder named by its place (``0003``); see :meth:`JobHandle.download`."""
        members = self.members()
        with self._client._database() as connection:
            stored = listing.stored(connection, [member.id for member in members])
        files = [
            (member.id, file, Path(folder) / f"{place:04}")
            for place, member in enumerate(members)
            for _, file in stored.get(member.id, ())
        ]
        brought: dict[UUID, list[Path]] = {member.id: [] for member in members}
        for (job_id, _, _), path in zip(files, _bring([each[1:] for each in files]), strict=True):
            brought[job_id].append(path)
        return brought

    def cancel(self) -> int:
        """Cancels all members; returns how many had not ended."""
        with self._client._database() as connection:
            return len(inspect.cancel(connection, groups=[self.id]))

    def retry(self, *, downstream: bool = False) -> int:
        """Queues members again that FAILED or were CANCELLED; returns how many."""
        with self._client._database() as connection:
            wanted = listing.Filter(groups=[self.id], states=[JobState.FAILED, JobState.CANCELLED])
            ended = list(listing.ids(connection, wanted))
            return len(inspect.retry(connection, ended, downstream=downstream)) if ended else 0


class AsCompleted:
    """The members of a group as they end; each comes once."""

    def __init__(self, client: Client, group_id: UUID, timeout: float | None) -> None:
        self._client = client
        self._group_id = group_id
        self._timeout = timeout
        self._seen: set[UUID] = set()

    def __iter__(self) -> Iterator[JobHandle]:
        item = Found(self._group_id, False)
        for progress in self._client._waiting.changes([item], self._timeout):
            _check(item, progress, self._timeout)
            yield from self._ended()

    async def __aiter__(self) -> AsyncIterator[JobHandle]:
        item = Found(self._group_id, False)
        async for progress in self._client._waiting.changes_async([item], self._timeout):
            _check(item, progress, self._timeout)
            for member in await asyncio.to_thread(self._ended):
                yield member

    def _ended(self) -> list[JobHandle]:
        """Members that have ended since the last call."""
        states = [state for state in JobState if state.finished]
        with self._client._database() as connection:
            ended = listing.ids(connection, listing.Filter(groups=[self._group_id], states=states))
            new = [job_id for job_id in ended if job_id not in self._seen]
            jobs = list(listing.jobs(connection, listing.Filter(ids=new), limit=None)) if new else []
        self._seen.update(new)
        jobs.sort(key=lambda job: (job.finished_at is None, job.finished_at, job.job_id))
        return [JobHandle(self._client, job.job_id, params=job.params or {}) for job in jobs]


# ------------------------------------------------------------------------------------------------------------- waiting


def _wait(client: Client, item: Found, timeout: float | None) -> None:
    for progress in client._waiting.changes([item], timeout):
        _check(item, progress, timeout)


async def _await(client: Client, item: Found) -> None:
    async for progress in client._waiting.changes_async([item]):
        _check(item, progress, None)


def _check(item: Found, progress: Mapping[UUID, Progress] | None, timeout: float | None) -> None:
    """Raises TimeoutError if the timeout is over, and NotFound if the job or group was deleted."""
    if progress is None:
        raise TimeoutError(f"{item.id} has not ended within {timeout:g} s")
    if item.id not in progress:
        raise NotFound(f"There is no {'job' if item.is_job else 'group'} {item.id} any more")


def _bring(files: Sequence[tuple[Artifact, Path]]) -> list[Path]:
    """Downloads all files that it can, then raises the first fault."""
    for fault in filter(None, access.bring(files)):
        raise fault
    return [folder / file.name for file, folder in files]


def _readable(connection: Connection) -> bool:
    """Whether the server has sent something unasked, or closed the connection."""
    if connection.closed:
        return False
    poll = select.poll()  # select.select() refuses descriptors from 1024 on.
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _reference(item: Any) -> str | None:
    """The id or name of a reference, which may be a handle."""
    if item is None:
        return None
    return str(item.id) if isinstance(item, JobHandle | GroupHandle) else str(item)
