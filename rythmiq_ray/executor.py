"""What a Ray task does for an attempt, with no Ray in it: submit, collect, cancel, clean.

Each step is idempotent, and every error comes back as data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from threading import BoundedSemaphore
from types import MappingProxyType
from typing import Final

from rythmiq_ray.artifacts import ArtifactStore, manifest
from rythmiq_ray.backends import ExecutionBackend
from rythmiq_ray.clock import now_s
from rythmiq_ray.errors import ArtifactCorrupt, CreateUncertain, ErrorCode, NotFound, RythmiqError, place_of
from rythmiq_ray.model import (
    Artifact,
    Cancelling,
    Cleaned,
    Collected,
    ErrorInfo,
    Faulted,
    Job,
    JobState,
    NotYet,
    Order,
    RemoteFile,
    RemoteJob,
    RemoteResult,
    RemoteStatus,
    Step,
    StepResult,
    Submitted,
    SubmitUncertain,
)
from rythmiq_ray.names import LOG_NAME, check_names

SMALL_BYTES: Final = 256 * 1024
"""A file of no more is fetched in one call, whole."""
PROBES: Final = MappingProxyType({"backend": ErrorCode.BACKEND_UNAVAILABLE, "store": ErrorCode.STORE_UNAVAILABLE})
"""What :meth:`Executor.probe` can look at, and what it means where even that fails."""
ALONE_BYTES: Final = 16 * 1024 * 1024
"""More than this is streamed in a Ray task of its own, so that small jobs do not wait for it to end."""
LATE_DELAY_S: Final = 1.0
"""Before a create is sent again that would have come after its lease."""
STREAMS: Final = 32
"""Files above :data:`SMALL_BYTES` that a process streams at once: each holds up to an upload's part in memory."""
SYNC_DELAY_S: Final = 1.0
"""Between two looks at a path whose late sync is not whole yet."""


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Runs orders with a backend and an artifact store, in many threads; one serves all of a process."""

    backend: ExecutionBackend
    store: ArtifactStore
    timeout_s: float
    """A job's time-out where the job names none."""
    concurrency: int
    """Files of one job that are fetched at once."""
    streams: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(STREAMS), init=False)

    def run(self, order: Order, *, clock_offset_s: float | None = 0.0) -> StepResult:
        """Carries out one order. Never raises: an error of ours keeps its code, any other is ``internal``.

        ``clock_offset_s``: how far this machine's clock is ahead of the driver's, at least; 0 on the driver's own
        machine, None where the driver has not heard of this one yet.
        """
        steps: dict[Step, Callable[[Order], StepResult]] = {
            Step.SUBMIT: partial(self.submit, clock_offset_s=clock_offset_s),
            Step.COLLECT: self.collect,
            Step.CANCEL: self.cancel,
            Step.CLEAN: self.clean,
        }
        step = steps[order.step]
        try:
            return step(order)
        except RythmiqError as error:
            return Faulted(error=ErrorInfo.of(error))
        except Exception as error:  # noqa: BLE001 - its class may not unpickle in the driver, and its text may hold a secret
            place = place_of(error)
            message = f"{type(error).__name__} in {order.step} at {place}"
            return Faulted(error=ErrorInfo(code=ErrorCode.INTERNAL, message=message))

    def probe(self, part: str) -> ErrorInfo | None:
        """Whether the backend or the store, named as in :data:`PROBES`, can be used from here; None = it can."""
        try:
            if part == "backend":
                self.backend.check()
            else:
                self.store.check()
        except RythmiqError as error:
            return ErrorInfo.of(error)
        except Exception as error:  # noqa: BLE001 - as in run()
            return ErrorInfo(code=PROBES[part], message=f"{type(error).__name__} in a probe at {place_of(error)}")
        return None

    def submit(self, order: Order, *, clock_offset_s: float | None) -> StepResult:
        job = order.job
        if not order.uploaded:
            self.backend.upload(
                job,
                secrets=order.secrets,
                timeout_s=job.spec.timeout_s or self.timeout_s,
                open_input=self.store.open_input,
            )
        if order.create_by is not None:
            if clock_offset_s is None:
                return NotYet(reason="the node is new to the driver, which cannot tell its time yet", uploaded=True)
            if now_s() > order.create_by + clock_offset_s:
                return NotYet(reason="the lease it was sent under is over", delay_s=LATE_DELAY_S, uploaded=True)
        try:
            return Submitted(remote=self.backend.create(job))
        except CreateUncertain as error:
            return SubmitUncertain(error=ErrorInfo.of(error))

    def cancel(self, order: Order) -> StepResult:
        return Cancelling(accepted=self.backend.cancel(order.job, mark=not order.stray))

    def clean(self, order: Order) -> StepResult:
        self.backend.remove(order.job)
        return Cleaned()

    def collect(self, order: Order) -> StepResult:
        job, remote = order.job, order.remote
        assert remote is not None  # noqa: S101 - a COLLECT order always has it
        if remote.status is RemoteStatus.CANCELLED and remote.started_at is None:
            return self._collected(order, remote, None, (), (), ())
        result = self.backend.read_result(job)
        if result is not None:
            files, unsafe = _safe(result.outputs)
            warnings = tuple(f"output {glob!r} matched no file" for glob in result.unmatched)
            log = result.log
        elif not order.final:
            return NotYet(reason="the result file is not there yet", delay_s=SYNC_DELAY_S)
        else:
            listing = tuple(self.backend.list_files(job))
            if listing != order.listing:
                return NotYet(reason="the path still changes", delay_s=SYNC_DELAY_S, listing=listing)
            files, unsafe = _safe(listing)
            warnings = ("the job left no result file; its path was listed instead",)
            log = None
        total_bytes = sum(file.size_bytes for file in files) + (log.size_bytes if log else 0)
        if total_bytes > ALONE_BYTES and not order.alone:
            return NotYet(reason="large", alone=True, alone_bytes=total_bytes)

        def conclude(artifacts: tuple[Artifact, ...]) -> Collected:
            return self._collected(order, remote, result, artifacts, unsafe, warnings)

        try:
            if order.again:
                self.store.discard_partial(job.job_id, job.attempt)
            return conclude(self._copy_all(job, log, files))
        except (ArtifactCorrupt, NotFound) as error:
            if not order.final:
                return NotYet(reason=error.message, delay_s=SYNC_DELAY_S, alone=order.alone, alone_bytes=total_bytes)
            raise ArtifactCorrupt(error.message) from None

    def _copy_all(self, job: Job, log: RemoteFile | None, files: tuple[RemoteFile, ...]) -> tuple[Artifact, ...]:
        """Stash to store, several files at once; the log first in the result."""
        calls: list[Callable[[], Artifact | None]] = [
            partial(self._service_log, job) if log is None else partial(self._copy, job, log, LOG_NAME),
            *(partial(self._copy, job, file, file.name) for file in files),
        ]
        done = _together(calls, self.concurrency)
        return tuple(artifact for artifact in done if artifact is not None)

    def _copy(self, job: Job, file: RemoteFile, name: str) -> Artifact:
        if file.size_bytes <= SMALL_BYTES:
            content = self.backend.read_file(job, file.name)
            return self._write(job, file, name, [content])
        with self.streams, self.backend.open_file(job, file.name) as chunks:
            return self._write(job, file, name, chunks)

    def _write(self, job: Job, file: RemoteFile, name: str, chunks: Iterable[bytes]) -> Artifact:
        return self.store.write(
            job.job_id, job.attempt, name, chunks, expected_bytes=file.size_bytes, expected_sha256=file.sha256
        )

    def _service_log(self, job: Job) -> Artifact | None:
        """The log as the service kept it, for a job whose wrapper left none."""
        try:
            log: AbstractContextManager[Iterator[bytes]] = self.backend.open_log(job)
            with log as chunks:
                return self.store.write(job.job_id, job.attempt, LOG_NAME, chunks)
        except NotFound:
            return None

    def _collected(
        self,
        order: Order,
        remote: RemoteJob,
        result: RemoteResult | None,
        artifacts: tuple[Artifact, ...],
        unsafe: tuple[str, ...],
        warnings: tuple[str, ...],
    ) -> Collected:
        job = order.job
        state, exit_code, error = _verdict(order, remote, result)
        if unsafe and state is not JobState.CANCELLED:
            state = JobState.FAILED
            error = ErrorInfo(code=ErrorCode.OUTPUT_REFUSED, message="; ".join(unsafe[:20]))
        uri = None
        if artifacts:
            uri = self.store.write_manifest(
                job.job_id,
                job.attempt,
                manifest(
                    job_id=job.job_id,
                    attempt=job.attempt,
                    state=state,
                    exit_code=exit_code,
                    remote_id=remote.remote_id,
                    started_at=result.started_at if result else remote.started_at,
                    finished_at=result.finished_at if result else remote.finished_at,
                    artifacts=artifacts,
                ),
            )
        return Collected(
            state=state,
            exit_code=exit_code,
            error=error,
            manifest_uri=uri,
            artifacts=artifacts,
            cost_credits=self.backend.cost_credits(job, remote),
            warnings=warnings,
        )


def _together(calls: Sequence[Callable[[], Artifact | None]], at_once: int) -> list[Artifact | None]:
    """The outcomes of calls, so many at once. Raises what one of them raised, once none runs any more."""
    if len(calls) == 1:
        return [calls[0]()]
    with ThreadPoolExecutor(min(at_once, len(calls))) as pool:
        return list(pool.map(lambda call: call(), calls))  # Where one raises, those that have not begun are cancelled.


def _safe(files: tuple[RemoteFile, ...]) -> tuple[tuple[RemoteFile, ...], tuple[str, ...]]:
    """Those whose names may be stored, and why each other one may not."""
    accepted, refused = check_names(file.name for file in files)
    names = set(accepted)
    return (
        tuple(file for file in files if file.name in names),
        tuple(f"output {name!a}: {reason}" for name, reason in refused),
    )


def _verdict(
    order: Order, remote: RemoteJob, result: RemoteResult | None
) -> tuple[JobState, int | None, ErrorInfo | None]:
    """How the attempt ended: the wrapper's word where there is one, else the service's."""

    def failed(code: ErrorCode, message: str) -> tuple[JobState, int | None, ErrorInfo]:
        exit_code = result.exit_code if result else None
        state = JobState.CANCELLED if code is ErrorCode.CANCELLED else JobState.FAILED
        return state, exit_code, ErrorInfo(code=code, message=message)

    if result is not None and result.reason == "exited":
        if result.exit_code == 0:
            return JobState.SUCCEEDED, 0, None
        return failed(ErrorCode.COMMAND_FAILED, f"the command ended with exit code {result.exit_code}")
    if result is not None and result.reason == "timeout":
        return failed(ErrorCode.JOB_TIMEOUT, "the command ran longer than its time-out and was stopped")
    if result is None and remote.status is RemoteStatus.COMPLETED:
        return JobState.SUCCEEDED, 0, None
    if order.stop_code is ErrorCode.CANCELLED:
        return failed(ErrorCode.CANCELLED, "cancelled on request")
    if order.stop_code is not None:
        return failed(order.stop_code, f"stopped by the driver: {order.stop_code}")
    if result is not None or remote.status is RemoteStatus.CANCELLED:
        return failed(ErrorCode.REMOTE_CANCELLED, "Camber cancelled the job by itself")
    return failed(ErrorCode.REMOTE_KILLED, "the remote job failed and left no result: it was killed")
