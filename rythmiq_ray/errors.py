"""All errors of this project: one base class, stable codes, and one table of what each code means for the job.

``rythmiq.jobs.error_code`` holds the code. What a code does to a job is data (:data:`RULES`), so that the driver, the
documentation and the tests read the same table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class ErrorCode(StrEnum):
    """Stable names of the faults of a job, or of a service that it needs."""

    COMMAND_FAILED = "command_failed"
    JOB_TIMEOUT = "job_timeout"
    QUEUE_TIMEOUT = "queue_timeout"
    CANCELLED = "cancelled"
    DEPENDENCY_FAILED = "dependency_failed"
    REMOTE_CANCELLED = "remote_cancelled"
    REMOTE_KILLED = "remote_killed"
    REMOTE_LOST = "remote_lost"
    SPEC_REJECTED = "spec_rejected"
    CREATE_FAILED = "create_failed"
    SECRET_REFUSED = "secret_refused"  # noqa: S105 - as the next
    SECRET_MISSING = "secret_missing"  # noqa: S105 - the name of an error, not a secret
    INPUT_MISSING = "input_missing"
    INPUT_UNREADABLE = "input_unreadable"
    OUTPUT_REFUSED = "output_refused"
    ARTIFACT_CORRUPT = "artifact_corrupt"
    ARTIFACTS_NOT_STORED = "artifacts_not_stored"
    PHASE_FAILED = "phase_failed"
    INTERNAL = "internal"
    BACKEND_UNAVAILABLE = "backend_unavailable"
    BACKEND_REFUSED_KEY = "backend_refused_key"
    BACKEND_BUSY = "backend_busy"
    STORE_UNAVAILABLE = "store_unavailable"
    DATABASE_UNAVAILABLE = "database_unavailable"
    RAY_UNAVAILABLE = "ray_unavailable"
    CONFIGURATION = "configuration"
    INVALID_JOB = "invalid_job"
    NOT_FOUND = "not_found"


class Verdict(StrEnum):
    """What an error means for the attempt it happened to."""

    RETRY_ATTEMPT = "retry"
    """The attempt ended; the job gets another one after a back-off, while ``max_attempts`` allows."""
    GIVE_UP = "give up"
    """The job ended; another attempt would end in the same way."""
    PAUSE = "pause"
    """Not the job's fault: dispatch pauses, and the phase is run again later. It does not count as an attempt."""
    REFUSE = "refuse"
    """Concerns no job: the CLI command or the start of the driver is refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One line of the error table."""

    verdict: Verdict
    meaning: str
    remedy: str


RULES: Final = MappingProxyType(
    {
        ErrorCode.COMMAND_FAILED: Rule(
            verdict=Verdict.RETRY_ATTEMPT,
            meaning="the command ended with an exit code other than 0",
            remedy="read the log; --retry-exit-code limits which codes are tried again",
        ),
        ErrorCode.JOB_TIMEOUT: Rule(
            verdict=Verdict.RETRY_ATTEMPT,
            meaning="the command ran longer than its timeout and was stopped",
            remedy="raise --timeout, or make the job smaller",
        ),
        ErrorCode.QUEUE_TIMEOUT: Rule(
            verdict=Verdict.RETRY_ATTEMPT,
            meaning="Camber did not start the job within execution.queue_timeout_s, or started later ones before it;"
            " it does not count as an attempt",
            remedy="look at Camber's capacity for this node size",
        ),
        ErrorCode.CANCELLED: Rule(
            verdict=Verdict.GIVE_UP,
            meaning="the job was cancelled",
            remedy="rythmiq retry runs it again",
        ),
        ErrorCode.DEPENDENCY_FAILED: Rule(
            verdict=Verdict.GIVE_UP,
            meaning="a job or group that it needs FAILED or was CANCELLED, so it never started",
            remedy="run rythmiq retry --downstream on what failed",
        ),
        ErrorCode.REMOTE_CANCELLED: Rule(
            verdict=Verdict.RETRY_ATTEMPT,
            meaning="Camber cancelled the job by itself, as it does with GPU jobs that waited too long",
            remedy="none needed; choose another node size if it happens again",
        ),
        ErrorCode.REMOTE_KILLED: Rule(
            verdict=Verdict.RETRY_ATTEMPT,
            meaning="the remote job failed without leaving a result: it was killed, most often for lack of memory",
            remedy="choose a larger node size",
        ),
        ErrorCode.REMOTE_LOST: Rule(
            verdict=Verdict.RETRY_ATTEMPT,
            meaning="Camber no longer knows the remote job",
            remedy="none needed",
        ),
        ErrorCode.SPEC_REJECTED: Rule(
            verdict=Verdict.GIVE_UP,
            meaning="Camber refused the job's description",
            remedy="the message is Camber's own; correct the job and enqueue it again",
        ),
        ErrorCode.CREATE_FAILED: Rule(
            verdict=Verdict.RETRY_ATTEMPT,
            meaning="Camber failed to create the remote job several times, and its list shows none",
            remedy="the message is Camber's own; report it to them if it happens again",
        ),
        ErrorCode.SECRET_REFUSED: Rule(
            verdict=Verdict.GIVE_UP,
            meaning="the login that enqueued the job has no grant for a secret that the job names",
            remedy="grant it in secrets.grants, then rythmiq retry",
        ),
        ErrorCode.SECRET_MISSING: Rule(
            verdict=Verdict.GIVE_UP,
            meaning="the driver has no RYTHMIQ_SECRET_<NAME> for a secret that the job names",
            remedy="set it in the driver's environment, then rythmiq retry",
        ),
        ErrorCode.INPUT_MISSING: Rule(
            verdict=Verdict.GIVE_UP,
            meaning="an input's URI does not exist or may not be read",
            remedy="correct the URI or the bucket's permissions, then rythmiq retry",
        ),
        ErrorCode.INPUT_UNREADABLE: Rule(
            verdict=Verdict.RETRY_ATTEMPT, meaning="reading an input failed before its end", remedy="none needed"
        ),
        ErrorCode.OUTPUT_REFUSED: Rule(
            verdict=Verdict.GIVE_UP,
            meaning="an output has a name that is not safe to store (.., absolute, control characters, a clash)",
            remedy="rename the output; the others are in the manifest",
        ),
        ErrorCode.ARTIFACT_CORRUPT: Rule(
            verdict=Verdict.GIVE_UP,
            meaning="an output differs in size or SHA-256 from what the job reported; the files stay at Camber for"
            " camber.keep_unstored_s",
            remedy="make sure that whatever writes files has ended before the command exits; `rythmiq collect` tries"
            " again",
        ),
        ErrorCode.ARTIFACTS_NOT_STORED: Rule(
            verdict=Verdict.GIVE_UP,
            meaning="the command ended, but the artifact store refused its files; they stay at Camber for"
            " camber.keep_unstored_s",
            remedy="fix the store, then run `rythmiq collect`; no new remote job is created",
        ),
        ErrorCode.PHASE_FAILED: Rule(
            verdict=Verdict.RETRY_ATTEMPT,
            meaning="a phase of this job failed repeatedly: its Ray task died, or Camber or the store"
            " refused it while serving others",
            remedy="the message says which; look at the Ray logs of that node, memory first",
        ),
        ErrorCode.INTERNAL: Rule(
            verdict=Verdict.RETRY_ATTEMPT,
            meaning="an internal fault of rythmiq-ray",
            remedy="report it with the log",
        ),
        ErrorCode.BACKEND_UNAVAILABLE: Rule(
            verdict=Verdict.PAUSE,
            meaning="Camber does not answer, or answers with server errors; or the local backend's folder is missing",
            remedy="check camber.endpoint and the network, or execution.local_path; work resumes by itself",
        ),
        ErrorCode.BACKEND_REFUSED_KEY: Rule(
            verdict=Verdict.PAUSE,
            meaning="Camber refuses the API key",
            remedy="check CAMBER_API_KEY, or the file that CAMBER_API_KEY_FILE names",
        ),
        ErrorCode.BACKEND_BUSY: Rule(
            verdict=Verdict.PAUSE,
            meaning="Camber limits the rate of calls (429)",
            remedy="none needed; lower camber.max_in_flight",
        ),
        ErrorCode.STORE_UNAVAILABLE: Rule(
            verdict=Verdict.PAUSE,
            meaning="the artifact store cannot be written or read",
            remedy="check the bucket, its permissions, AWS_* and AWS_ENDPOINT_URL_S3, or the free space of the disk",
        ),
        ErrorCode.DATABASE_UNAVAILABLE: Rule(
            verdict=Verdict.PAUSE,
            meaning="Postgres does not answer",
            remedy="check DATABASE_URL and the server",
        ),
        ErrorCode.RAY_UNAVAILABLE: Rule(
            verdict=Verdict.REFUSE,
            meaning="Ray cannot be started or joined",
            remedy="check RAY_ADDRESS and RAY_AUTH_MODE",
        ),
        ErrorCode.CONFIGURATION: Rule(
            verdict=Verdict.REFUSE,
            meaning="the configuration has faults",
            remedy="each is listed with its remedy",
        ),
        ErrorCode.INVALID_JOB: Rule(
            verdict=Verdict.REFUSE,
            meaning="a job's description has faults",
            remedy="each is listed with its field",
        ),
        ErrorCode.NOT_FOUND: Rule(
            verdict=Verdict.REFUSE, meaning="there is no such job, attempt or file", remedy="check the id"
        ),
    }
)


class RythmiqError(Exception):
    """Base of all errors of this project: a sentence for people and a stable code for programs.

    Subclasses set ``code``; the message never contains a secret. ``retry_after_s``: seconds that the service asked to
    wait, if it did. All arguments go to ``super().__init__`` so that an error survives pickling.
    """

    code: ErrorCode = ErrorCode.INTERNAL

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message

    @property
    def verdict(self) -> Verdict:
        return RULES[self.code].verdict


def place_of(error: BaseException) -> str:
    """``module:line`` of the innermost frame: it says where an error arose without showing any value."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "unknown" if trace is None else f"{trace.tb_frame.f_globals.get('__name__')}:{trace.tb_lineno}"


class ConfigurationError(RythmiqError):
    code = ErrorCode.CONFIGURATION


class InvalidJob(RythmiqError):
    """A job's description has faults; ``faults`` holds all of them, each with its field (and line, if from a file)."""

    code = ErrorCode.INVALID_JOB

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults

    def __reduce__(self) -> tuple[type[InvalidJob], tuple[list[str]]]:
        return type(self), (self.faults,)


class NotFound(RythmiqError):
    code = ErrorCode.NOT_FOUND


class SecretRefused(RythmiqError):
    code = ErrorCode.SECRET_REFUSED


class SecretMissing(RythmiqError):
    code = ErrorCode.SECRET_MISSING


class InputMissing(RythmiqError):
    code = ErrorCode.INPUT_MISSING


class InputUnreadable(RythmiqError):
    code = ErrorCode.INPUT_UNREADABLE


class SpecRejected(RythmiqError):
    code = ErrorCode.SPEC_REJECTED


class BackendUnavailable(RythmiqError):
    code = ErrorCode.BACKEND_UNAVAILABLE


class BackendRefusedKey(RythmiqError):
    code = ErrorCode.BACKEND_REFUSED_KEY


class BackendBusy(RythmiqError):
    """HTTP 429; ``retry_after_s`` holds the seconds that the server asked to wait, if it did."""

    code = ErrorCode.BACKEND_BUSY


class StoreUnavailable(RythmiqError):
    code = ErrorCode.STORE_UNAVAILABLE


class StoreRefused(StoreUnavailable):
    """The store answers and refuses: bucket, credentials or permissions are wrong."""


class DatabaseUnavailable(RythmiqError):
    code = ErrorCode.DATABASE_UNAVAILABLE


class DatabaseRefused(DatabaseUnavailable):
    """``DATABASE_URL`` is wrong: the password, a name, or an option."""


class RayUnavailable(RythmiqError):
    code = ErrorCode.RAY_UNAVAILABLE


class ArtifactCorrupt(RythmiqError):
    """A file differs in size or SHA-256 from what the job reported."""

    code = ErrorCode.ARTIFACT_CORRUPT


class CreateUncertain(RythmiqError):
    """A create had no clear answer (lost answer, 5xx, code 2): the remote job may or may not exist.

    Never ends an attempt: the driver searches the remote list for the attempt's path before it creates again.
    """

    code = ErrorCode.BACKEND_UNAVAILABLE
