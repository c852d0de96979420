"""The data model: plain classes that every other module imports. No I/O.

Units are seconds, bytes and credits; the name of each field says which. Times are timezone-aware ``datetime`` in UTC.
The classes have no slots: Python unpickles a frozen class with slots field by field, which is slow, and thousands of
them go through Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from functools import wraps
from typing import Any, Final, TypeVar
from uuid import UUID
from warnings import warn

from rythmiq_ray.duration import seconds_of
from rythmiq_ray.errors import RULES, ErrorCode, RythmiqError, Verdict
from rythmiq_ray.secret import Secret

T = TypeVar("T")

DEFAULT_QUEUE = "default"
DEFAULT_MAX_ATTEMPTS = 3
EACH_USER: Final = "*"
"""In place of a user's name, where limits are set; no job is of a user of that name."""
FORMER_NAMES: Final = {"timeout_s": "timeout", "delay_s": "delay"}
"""Former names of fields and JSON keys, and their present names. The former ones are accepted for one version; rows
keep ``timeout_s`` for older drivers."""


class JobState(StrEnum):
    """The state of a job; the value of ``rythmiq.jobs.state``."""

    BLOCKED = "BLOCKED"
    """It waits for other jobs, or for its group's ``max_parallel``."""
    QUEUED = "QUEUED"
    RETRYING = "RETRYING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def finished(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Phase(StrEnum):
    """The phase of a RUNNING job; the value of ``rythmiq.jobs.phase``."""

    SUBMITTING = "submitting"
    WAITING = "waiting"
    COLLECTING = "collecting"


class RemoteStatus(StrEnum):
    """Camber's statuses (camber-api, section 2). Any other value becomes :attr:`UNKNOWN`, which is not terminal."""

    SUBMITTED = "SUBMITTED"
    PENDING = "PENDING"
    PROVISIONING = "PROVISIONING"
    INITIALIZING = "INITIALIZING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"

    @classmethod
    def _missing_(cls, _value: object) -> RemoteStatus:
        return cls.UNKNOWN

    @property
    def terminal(self) -> bool:
        return self in (RemoteStatus.COMPLETED, RemoteStatus.FAILED, RemoteStatus.CANCELLED)

    @property
    def started(self) -> bool:
        return self is RemoteStatus.RUNNING or self.terminal


@dataclass(frozen=True, kw_only=True)
class Input:
    """A file that is streamed into the attempt's path before the job starts."""

    uri: str
    name: str
    """Path relative to the job's working directory."""


def _reads_former_names(cls: type[T]) -> type[T]:
    """Class decorator: the constructor also accepts the fields' former names, for one version."""
    made = cls.__init__

    @wraps(made)
    def init(self: T, **fields: Any) -> None:
        try:
            made(self, **fields)
        except TypeError:
            names = {name: FORMER_NAMES.get(name, name) for name in fields}
            if names.keys() == set(names.values()) or len(set(names.values())) < len(names):
                raise
            warn("timeout_s and delay_s are now called timeout and delay", DeprecationWarning, stacklevel=2)
            made(self, **{names[name]: value for name, value in fields.items()})

    cls.__init__ = init  # type: ignore[assignment]  # takes the same fields, also by their former names
    return cls


@_reads_former_names
@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What to run, and on which nodes; stored as ``rythmiq.jobs.spec``. Checked by :func:`rythmiq_ray.spec.check`."""

    command: str
    engine: str = "base"
    node_size: str = "xsmall"
    num_nodes: int = 1
    gpu: bool = False
    inputs: tuple[Input, ...] = ()
    """Files that are put into the working directory before the command starts. A string is parsed as
    ``rythmiq enqueue --input`` parses it: ``URI[=NAME]``."""
    outputs: tuple[str, ...] = ()
    """Globs relative to the working directory; ``**`` crosses folders."""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """Names only; each value is the driver's ``RYTHMIQ_SECRET_<NAME>``."""
    timeout: float | str | None = None
    """How long the command may run: seconds, or text such as ``2h``; None = ``execution.timeout_ms``."""
    retry_exit_codes: tuple[int, ...] | None = None
    """Exit codes that lead to another attempt; None = all but 0."""

    def __post_init__(self) -> None:
        if self.inputs and isinstance(self.inputs, list | tuple) and any(isinstance(item, str) for item in self.inputs):
            from rythmiq_ray.job_fields import input_of

            inputs = (Input(**input_of(item)) if isinstance(item, str) else item for item in self.inputs)
            object.__setattr__(self, "inputs", tuple(inputs))

    @property
    def timeout_s(self) -> float | None:
        """``timeout`` in seconds; raises ValueError if it is not a duration."""
        return None if self.timeout is None else seconds_of(self.timeout)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, without fields that have their default. Older drivers read it, hence ``timeout_s``."""
        out: dict[str, Any] = {"command": self.command, "engine": self.engine, "node_size": self.node_size}
        if self.num_nodes != 1:
            out["num_nodes"] = self.num_nodes
        if self.gpu:
            out["gpu"] = True
        if self.inputs:
            out["inputs"] = [{"uri": i.uri, "name": i.name} for i in self.inputs]
        if self.outputs:
            out["outputs"] = list(self.outputs)
        if self.env:
            out["env"] = dict(self.env)
        if self.secrets:
            out["secrets"] = list(self.secrets)
        if self.timeout is not None:
            out["timeout_s"] = self.timeout_s
        if self.retry_exit_codes is not None:
            out["retry_exit_codes"] = list(self.retry_exit_codes)
        return out


@_reads_former_names
@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to enqueue: its spec, and how it is queued."""

    spec: JobSpec
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    """Higher goes first."""
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    user_id: str | None = None
    unique_key: str | None = None
    """Unique among unfinished jobs: enqueueing the same key again returns the id of the job that has it."""
    delay: float | str = 0.0
    """The shortest time from enqueue to start: seconds, or text such as ``2h``."""
    name: str | None = None
    """Shown to people; other jobs of the same group may refer to it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] | None = None
    """The parameters that tell it from the other members of its group; environment variables of the command, beside
    ``env``."""
    group: str | UUID | None = None
    """Its group: the id of an existing group, or the name of an unfinished one; any other name creates a group."""
    after: tuple[str | UUID, ...] = ()
    """It starts once these have SUCCEEDED: ids of jobs and groups, or names of jobs and groups that are enqueued with
    it, or of jobs in its group."""
    after_ended: tuple[str | UUID, ...] = ()
    """It starts once these have ended, in whatever state."""
    notify: str | None = None
    """A URL that gets a signed POST each time the job has ended."""
    traceparent: str | None = None
    """The trace that its attempts belong to, as W3C Trace Context writes it; None = each has one of its own."""

    @property
    def delay_s(self) -> float:
        """``delay`` in seconds; raises ValueError if it is not a duration."""
        return seconds_of(self.delay)


@dataclass(frozen=True, kw_only=True)
class NewGroup:
    """What is submitted as one thing: a sweep, a batch, the steps of a pipeline."""

    name: str | None = None
    user_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    max_parallel: int | None = None
    """The most members that may be queued or running at once; None = all."""
    stop_after_failures: int | None = None
    """When this many members have FAILED, all others are cancelled, running ones too; None = never."""
    notify: str | None = None
    """A URL that gets a signed POST each time its last member has ended."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A row of ``rythmiq.groups``."""

    group_id: UUID
    name: str | None
    user_id: str | None
    labels: Mapping[str, str]
    max_parallel: int | None
    stop_after_failures: int | None
    members: int
    succeeded: int
    failed: int
    cancelled: int
    stopped_at: datetime | None
    """When ``stop_after_failures`` was reached."""
    created_at: datetime
    finished_at: datetime | None
    """When its last member ended; None again once one is retried or added."""
    enqueued_by: str | None = None

    @property
    def unfinished(self) -> int:
        """Members that have not ended."""
        return self.members - self.succeeded - self.failed - self.cancelled

    @property
    def state(self) -> JobState:
        """RUNNING while a member is unfinished; then FAILED if one FAILED, CANCELLED if one was, else SUCCEEDED."""
        if self.finished_at is None or self.unfinished > 0:
            return JobState.RUNNING
        if self.failed:
            return JobState.FAILED
        return JobState.CANCELLED if self.cancelled else JobState.SUCCEEDED


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of ``rythmiq.jobs``."""

    job_id: UUID
    user_id: str | None
    queue: str
    state: JobState
    phase: Phase | None
    priority: int
    spec: JobSpec
    attempt: int
    max_attempts: int
    next_visible_at: datetime
    unique_key: str | None
    driver_id: UUID | None
    remote_id: int | None
    remote_status: RemoteStatus | None
    remote_path: str | None
    """See :func:`path_of`."""
    cancel_requested_at: datetime | None
    exit_code: int | None
    error_code: str | None
    """An :class:`ErrorCode`, or another value that a newer version or a person wrote."""
    error_message: str | None
    retryable: bool | None
    artifact_uri: str | None
    cost_credits: float | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    """When the present attempt was claimed."""
    finished_at: datetime | None
    warnings: tuple[str, ...] = ()
    """Problems of the last attempt that did not fail it, in sentences: an output that matched no file, a cut log."""
    free_attempts: int = 0
    """How many attempts do not count against ``max_attempts``, because they never ran."""
    collect_until: datetime | None = None
    """Until then Camber keeps the last attempt's files that could not be stored; the next claim collects them."""
    submitted_at: datetime | None = None
    """When the driver first knew this attempt's remote job."""
    running_at: datetime | None = None
    """When the driver first saw the remote job run."""
    ended_at: datetime | None = None
    """When the driver first saw that the remote job had ended."""
    wait_reason: str | None = None
    """Why a running attempt makes no progress, in words; None while it does."""
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    group_id: UUID | None = None
    group_index: int | None = None
    """Its place among the members of its group, from 0."""
    params: Mapping[str, str] | None = None
    """The parameters that tell it from the other members of its group."""
    waits_for: int = 0
    """How many of its dependencies are not satisfied yet."""
    notify: str | None = None
    """A URL that gets a signed POST each time the job has ended."""
    traceparent: str | None = None
    """The trace of whoever put it in."""
    enqueued_by: str | None = None
    """The database login that enqueued it."""


def path_of(job_id: UUID, attempt: int) -> str:
    """The path that belongs to one attempt alone, below the stash owner's root. A claim writes it to the row."""
    return f"rythmiq/{job_id}/{attempt}"


@dataclass(frozen=True, kw_only=True)
class RemoteJob:
    """A job as the execution backend reports it."""

    remote_id: int
    status: RemoteStatus
    path: str
    """The attempt's path, without leading or trailing slash."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file in an attempt's path. ``sha256`` is known only if the wrapper's result file names the file."""

    name: str
    """Relative to the attempt's path."""
    size_bytes: int
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class RemoteResult:
    """The wrapper's result file, ``rythmiq-result.json``: how the command ended, and which files it left."""

    exit_code: int
    reason: str
    """``exited``, ``timeout`` or ``cancelled``."""
    started_at: datetime
    finished_at: datetime
    log: RemoteFile
    outputs: tuple[RemoteFile, ...]
    unmatched: tuple[str, ...] = ()
    """Output globs that matched no file."""
    warnings: tuple[str, ...] = ()
    """Files that the wrapper left out, in sentences."""
    log_cut: bool = False
    """The command truncated the wrapper's log, so the service's own log has more."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file in the artifact store; a row of ``rythmiq.artifacts`` and an entry of the manifest."""

    name: str
    uri: str
    bytes: int
    sha256: str
    content_type: str


@dataclass(frozen=True, kw_only=True)
class ErrorInfo:
    """An error as data, so that it can go through Ray and Postgres without its class."""

    code: ErrorCode
    message: str
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: RythmiqError) -> ErrorInfo:
        return cls(code=error.code, message=error.message, retry_after_s=error.retry_after_s)

    @property
    def verdict(self) -> Verdict:
        return RULES[self.code].verdict


# What a driver asks of a Ray task, and the task's results. Errors are data here, because an exception may not unpickle.


class Step(StrEnum):
    """What a Ray task does for an attempt. Also the name of the Ray task: Ray never frees the memory that a name takes,
    so there are only these (ray-facts 0.7)."""

    SUBMIT = "submit"
    COLLECT = "collect"
    CANCEL = "cancel"
    CLEAN = "clean"


@dataclass(frozen=True, kw_only=True)
class StepRequest:
    """One step for one attempt."""

    step: Step
    job: Job
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    create_by: float | None = None
    """SUBMIT: when the driver's lease ends, in seconds of the driver's :mod:`rythmiq_ray.clock`. No create may be sent
    later, since another driver may own the attempt then. The node converts it to its own clock."""
    uploaded: bool = False
    """SUBMIT: the bundle and the inputs are uploaded already."""
    remote: RemoteJob | None = None
    """COLLECT: the remote job as it ended."""
    stop_code: ErrorCode | None = None
    """COLLECT: why the driver stopped the remote job; None if it did not."""
    final: bool = False
    """COLLECT: do not wait for a late sync any longer; keep the files that are there."""
    alone: bool = False
    """The request is the only one of its Ray task."""
    stray: bool = False
    """CANCEL: cancel a second remote job on the path of an attempt; the attempt itself goes on."""
    again: bool = False
    """COLLECT: another task or driver may have begun to collect and died; its partial uploads are discarded first."""
    seen: tuple[int, int] | None = None
    """COLLECT: number and bytes of the files in the path when it was last listed; None before the first listing."""
    growing_s: float = 0.0
    """COLLECT: seconds from the end of the remote job to the last change of ``seen``."""
    quiet_s: float = 0.0
    """COLLECT: seconds since the last change of ``seen``."""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """The remote job exists."""

    remote: RemoteJob
    create_s: float | None = None
    """How long the create took, in seconds; None = it was not measured."""


@dataclass(frozen=True, kw_only=True)
class SubmitUncertain:
    """The create may have been sent; whether the remote job exists is not known."""

    error: ErrorInfo


@dataclass(frozen=True, kw_only=True)
class Collected:
    """All files of an ended attempt are stored; ``manifest_uri`` is None if there was nothing to collect."""

    state: JobState
    exit_code: int | None
    error: ErrorInfo | None
    manifest_uri: str | None
    artifacts: tuple[Artifact, ...]
    cost_credits: float | None
    warnings: tuple[str, ...] = ()
    unstored: bool = False
    """A file of the attempt was not stored, so its path is kept for ``camber.keep_unstored_s``."""


@dataclass(frozen=True, kw_only=True)
class NotYet:
    """The step has to run again after ``delay_s``: files are not complete yet, or it needs a Ray task of its own."""

    reason: str
    delay_s: float = 0.0
    alone: bool = False
    alone_bytes: int = 0
    """How many bytes that Ray task will stream."""
    uploaded: bool = False
    seen: tuple[int, int] | None = None
    """COLLECT: number and bytes of the files in the path. While these change, the sync is still going on."""


@dataclass(frozen=True, kw_only=True)
class Cancelling:
    """The remote job was asked to end, by its cancel marker and by the API; ``accepted``: whether the API agreed."""

    accepted: bool


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """The attempt's path was removed from the stash."""


@dataclass(frozen=True, kw_only=True)
class Faulted:
    """The step ended in an error; :data:`rythmiq_ray.errors.RULES` says what it means for the job."""

    error: ErrorInfo


@dataclass(frozen=True, kw_only=True)
class TaskLost:
    """The Ray task or its node died, or the task hung: the step may or may not have happened."""

    reason: str
    dead: bool
    """The task's process is known to have ended, so it can no longer do anything."""


StepResult = Submitted | SubmitUncertain | Collected | NotYet | Cancelling | Cleaned | Faulted | TaskLost


@dataclass(frozen=True, kw_only=True, slots=True)
class EndedAttempt:
    """An attempt that has ended, with all its times; None = it never came so far."""

    job_id: UUID
    attempt: int
    state: str
    queue: str
    name: str | None
    user_id: str | None
    traceparent: str | None
    enqueued_at: datetime
    """Of the job; of a further attempt, when the one before it ended."""
    started_at: datetime
    submitted_at: datetime | None
    running_at: datetime | None
    ended_at: datetime | None
    finished_at: datetime
    remote_id: int | None = None
    exit_code: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    cost_credits: float | None = None
    group_id: UUID | None = None
    create_s: float | None = None
    """How long the create took; None where another driver made it, or nobody knows whether it was answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndedGroup:
    """A group whose last member has ended."""

    group_id: UUID
    name: str | None
    state: str
    members: int
    created_at: datetime
    finished_at: datetime
    first: Sequence[tuple[UUID, int, str | None]]
    """Of some members: job, last attempt, and the traceparent of the job."""
