"""The nouns: plain data that everything else imports, and that does no I/O.

Units: seconds, bytes and credits, said in each name. Times are aware ``datetime`` in UTC. The classes have no slots,
because a frozen one with slots is unpickled field by field in Python, and they cross Ray by the thousand.
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
"""Of fields, and of keys of a JSON line. They are read for one version; rows keep ``timeout_s`` for older drivers."""


class JobState(StrEnum):
    """Where a job is in its life; the value of ``rythmiq.jobs.state``."""

    BLOCKED = "BLOCKED"
    """It waits for other jobs, or for a place among the members of its group that may run at once."""
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
    """What is being done about a RUNNING job; the value of ``rythmiq.jobs.phase``."""

    SUBMITTING = "submitting"
    WAITING = "waiting"
    COLLECTING = "collecting"


class RemoteStatus(StrEnum):
    """Camber's statuses (camber-api, section 2). A word that is not here is :attr:`UNKNOWN`, which is not terminal."""

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
    """Lets a class be made with the names its fields had before, for one version."""
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

    cls.__init__ = init  # type: ignore[assignment]  # with the same fields, and their former names
    return cls


@_reads_former_names
@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What to run and on what; stored as ``rythmiq.jobs.spec``. Checked by :func:`rythmiq_ray.spec.check`."""

    command: str
    engine: str = "base"
    node_size: str = "xsmall"
    num_nodes: int = 1
    gpu: bool = False
    inputs: tuple[Input, ...] = ()
    """Files that are put into the working directory first; a text among them is read as ``rythmiq enqueue --input``
    reads it, ``URI[=NAME]``."""
    outputs: tuple[str, ...] = ()
    """Globs relative to the working directory; ``**`` crosses folders."""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    """Names only; each value is the driver's ``RYTHMIQ_SECRET_<NAME>``."""
    timeout: float | str | None = None
    """How long the command may run: seconds, or text such as ``2h``; None = ``execution.timeout_ms``."""
    retry_exit_codes: tuple[int, ...] | None = None
    """Exit codes worth another attempt; None = any but 0."""

    def __post_init__(self) -> None:
        if self.inputs and isinstance(self.inputs, list | tuple) and any(isinstance(item, str) for item in self.inputs):
            from rythmiq_ray.job_fields import input_of

            inputs = (Input(**input_of(item)) if isinstance(item, str) else item for item in self.inputs)
            object.__setattr__(self, "inputs", tuple(inputs))

    @property
    def timeout_s(self) -> float | None:
        """``timeout`` in seconds; raises ValueError where it is no duration."""
        return None if self.timeout is None else seconds_of(self.timeout)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, which leaves out what has its default. Older drivers read it, hence ``timeout_s``."""
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
    """A job to enqueue: its spec and how it is to be queued."""

    spec: JobSpec
    queue: str = DEFAULT_QUEUE
    priority: int = 0
    """Higher goes first."""
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    user_id: str | None = None
    unique_key: str | None = None
    """Unique among unfinished jobs; enqueueing it again gives the first one's id."""
    delay: float | str = 0.0
    """How long after its enqueue it may start at the earliest: seconds, or text such as ``2h``."""
    name: str | None = None
    """For people; jobs of one group are found by it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] | None = None
    """The variables in which it differs from the other members of its group; the command has them beside ``env``."""
    group: str | UUID | None = None
    """Its group: the id of one that is there, or the name of one that is unfinished; a new name makes a new group."""
    after: tuple[str | UUID, ...] = ()
    """It starts once these have SUCCEEDED: ids of jobs and groups, or names of jobs and groups that are enqueued with
    it, or of jobs in its group."""
    after_ended: tuple[str | UUID, ...] = ()
    """It starts once these have ended, however they did."""
    notify: str | None = None
    """A URL that gets a signed POST each time the job has ended."""
    traceparent: str | None = None
    """The trace that its attempts belong to, as W3C Trace Context writes it; None = each has one of its own."""

    @property
    def delay_s(self) -> float:
        """``delay`` in seconds; raises ValueError where it is no duration."""
        return seconds_of(self.delay)


@dataclass(frozen=True, kw_only=True)
class NewGroup:
    """What is submitted as one thing: a sweep, a batch, the steps of a pipeline."""

    name: str | None = None
    user_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    max_parallel: int | None = None
    """So many of its members may be queued or running at once; None = all."""
    stop_after_failures: int | None = None
    """Once so many have FAILED the rest is cancelled, running ones too; None = never."""
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
        """As of a job: RUNNING while a member is unfinished, then FAILED or CANCELLED if one is, else SUCCEEDED."""
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
    """An :class:`ErrorCode`, or a word that a newer version or a person wrote."""
    error_message: str | None
    retryable: bool | None
    artifact_uri: str | None
    cost_credits: float | None
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    """When this attempt was claimed."""
    finished_at: datetime | None
    warnings: tuple[str, ...] = ()
    """What was odd about the last attempt without ending it: outputs that were not brought, a log that was cut."""
    free_attempts: int = 0
    """Attempts that do not count against ``max_attempts``, because they never ran."""
    collect_until: datetime | None = None
    """Up to this Camber keeps what the last attempt left and the store refused; the next claim collects it."""
    submitted_at: datetime | None = None
    """When this attempt's remote job was first known; then when it was first seen to run, and to have ended."""
    running_at: datetime | None = None
    ended_at: datetime | None = None
    wait_reason: str | None = None
    """Why a running attempt does not get on, in words."""
    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    group_id: UUID | None = None
    group_index: int | None = None
    """Its place among the members of its group, from 0."""
    params: Mapping[str, str] | None = None
    """The variables in which it differs from the other members of its group."""
    waits_for: int = 0
    """How many of its dependencies are not satisfied yet."""
    notify: str | None = None
    """A URL that gets a signed POST each time the job has ended."""
    traceparent: str | None = None
    """The trace of whoever put it in."""
    enqueued_by: str | None = None
    """The database login that put it in."""


def path_of(job_id: UUID, attempt: int) -> str:
    """An attempt's own path under the stash owner's root, as a claim writes it into the row."""
    return f"rythmiq/{job_id}/{attempt}"


@dataclass(frozen=True, kw_only=True)
class RemoteJob:
    """A job as the execution backend reports it."""

    remote_id: int
    status: RemoteStatus
    path: str
    """The attempt's path, without slashes at its ends."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file in an attempt's path. ``sha256`` is known only where the wrapper's result names the file."""

    name: str
    """Relative to the attempt's path."""
    size_bytes: int
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class RemoteResult:
    """What the wrapper wrote last: how the command ended and what it left (``rythmiq-result.json``)."""

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
    """What the wrapper left out, in sentences."""
    log_cut: bool = False
    """The command shortened the wrapper's log, so that the service's has more."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file in the artifact store; a row of ``rythmiq.artifacts`` and a line of the manifest."""

    name: str
    uri: str
    bytes: int
    sha256: str
    content_type: str


@dataclass(frozen=True, kw_only=True)
class ErrorInfo:
    """An error as data, so that it crosses Ray and Postgres without its class."""

    code: ErrorCode
    message: str
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: RythmiqError) -> ErrorInfo:
        return cls(code=error.code, message=error.message, retry_after_s=error.retry_after_s)

    @property
    def verdict(self) -> Verdict:
        return RULES[self.code].verdict


# What a driver asks of a Ray task, and what comes back. Errors are data here: an exception may not unpickle.


class Step(StrEnum):
    """What a Ray task does for one attempt; also the task's name, of which there must be few (ray-facts 0.7)."""

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
    """SUBMIT: when the driver's lease ends, by the driver's own :mod:`rythmiq_ray.clock`; another driver may own the
    attempt after that. A node translates it to its own clock, by what the driver has heard of that."""
    uploaded: bool = False
    """SUBMIT: the bundle and the inputs are in place already."""
    remote: RemoteJob | None = None
    """COLLECT: the remote job as it ended."""
    stop_code: ErrorCode | None = None
    """COLLECT: why the driver asked for the remote job's end, where it did."""
    final: bool = False
    """COLLECT: waiting for a late sync is over; keep what is there."""
    alone: bool = False
    """This request has a Ray task of its own."""
    stray: bool = False
    """CANCEL: the remote job is a second one on the path of an attempt, which itself goes on."""
    again: bool = False
    """COLLECT: another task or driver may have begun this and died; what it left half done is discarded first."""
    seen: tuple[int, int] | None = None
    """COLLECT: files and bytes that the path held at the last look; None before the first."""
    growing_s: float = 0.0
    """COLLECT: seconds from the end of the remote job to the last change of ``seen``."""
    quiet_s: float = 0.0
    """COLLECT: seconds since then."""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """The remote job exists."""

    remote: RemoteJob


@dataclass(frozen=True, kw_only=True)
class SubmitUncertain:
    """The create may have been sent, and whether the remote job exists is not known."""

    error: ErrorInfo


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Everything of an ended attempt is in the store; ``manifest_uri`` is None where there was nothing to collect."""

    state: JobState
    exit_code: int | None
    error: ErrorInfo | None
    manifest_uri: str | None
    artifacts: tuple[Artifact, ...]
    cost_credits: float | None
    warnings: tuple[str, ...] = ()
    unstored: bool = False
    """Something that the attempt left was not stored, so its path is kept for a while."""


@dataclass(frozen=True, kw_only=True)
class NotYet:
    """The step is to be run again: the remote side is not whole yet, or this job wants a task of its own."""

    reason: str
    delay_s: float = 0.0
    alone: bool = False
    alone_bytes: int = 0
    """How much such a task will stream."""
    uploaded: bool = False
    seen: tuple[int, int] | None = None
    """COLLECT: files and bytes that the path held; when that changes, the sync still goes on and is waited for."""


@dataclass(frozen=True, kw_only=True)
class Cancelling:
    """The end of the remote job was asked for; ``accepted`` says whether the API took it, beside the marker file."""

    accepted: bool


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """The attempt's path is gone from the stash."""


@dataclass(frozen=True, kw_only=True)
class Faulted:
    """The step ended in an error; what that means is said by :data:`rythmiq_ray.errors.RULES`."""

    error: ErrorInfo


@dataclass(frozen=True, kw_only=True)
class TaskLost:
    """The Ray task died, its node died, or it hung: the step may or may not have happened."""

    reason: str
    dead: bool
    """Its process is known to be gone, so it can do nothing any more."""


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
