"""The steps that a Ray task runs for an attempt: submit, collect, cancel, clean. No Ray in here.

Each step is idempotent, and returns errors as data.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from threading import BoundedSemaphore
from types import MappingProxyType
from typing import Any, Final

from rythmiq_ray.artifact_names import LOG_NAME, check_names, fault_of_name, plain
from rythmiq_ray.artifacts import ArtifactStore, manifest
from rythmiq_ray.backends import ExecutionBackend
from rythmiq_ray.backends.bundle import INPUTS_NAME
from rythmiq_ray.clock import now_s
from rythmiq_ray.errors import (
    ArtifactCorrupt,
    BackendUnavailable,
    CreateUncertain,
    ErrorCode,
    InputMissing,
    NotFound,
    RythmiqError,
    SpecRejected,
    place_of,
)
from rythmiq_ray.inputs import MAX_FILES
from rythmiq_ray.model import (
    Artifact,
    Cancelling,
    Cleaned,
    Collected,
    ErrorInfo,
    Faulted,
    Input,
    Job,
    JobState,
    NotYet,
    RemoteFile,
    RemoteJob,
    RemoteResult,
    RemoteStatus,
    Step,
    StepRequest,
    StepResult,
    Submitted,
    SubmitUncertain,
)

SMALL_BYTES: Final = 256 * 1024
"""Files up to this size are fetched whole, in one call."""
PROBES: Final = MappingProxyType({"backend": ErrorCode.BACKEND_UNAVAILABLE, "store": ErrorCode.STORE_UNAVAILABLE})
"""What :meth:`Executor.probe` can test, and the error code if the test itself fails unexpectedly."""
ALONE_BYTES: Final = 16 * 1024 * 1024
"""More than this is streamed in a Ray task of its own, so that small jobs do not wait for it to end."""
LATE_DELAY_S: Final = 1.0
"""Pause before a create is tried again that was not sent because the driver's lease had ended."""
STREAMS: Final = 32
"""The most files above :data:`SMALL_BYTES` that a process streams at once; each takes an upload part of memory."""
SYNC_DELAY_S: Final = 1.0
"""The shortest pause between two listings of a path whose late sync is not complete. The pause is a tenth of the wait
so far, up to SYNC_DELAY_MAX_S."""
SYNC_DELAY_MAX_S: Final = 10.0
LOOK_AFTER_S: Final = 3.0
"""How long the result file may be missing before the path is listed: most arrive sooner, without the cost of that."""
FEW_FILES: Final = 16
"""Up to this many outputs are fetched without listing the path first, on the chance that they are complete."""
MAX_FILE_BYTES: Final = 5 * 1024**4
"""The largest object that S3 takes."""
MAX_WARNINGS: Final = 50
MAX_WARNING_CHARACTERS: Final = 300


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Runs requests with a backend and an artifact store. Thread-safe; one executor serves a whole process."""

    backend: ExecutionBackend
    store: ArtifactStore
    timeout_s: float
    """The timeout of a job that names none, in seconds."""
    concurrency: int
    """How many files of one job are fetched at once."""
    streams: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(STREAMS), init=False)
    settled_s: float = 10.0
    """A completed job without a result file counts as succeeded only after its path has not changed for this long."""

    def run(self, request: StepRequest, *, clock_offset_s: float | None = 0.0) -> StepResult:
        """Runs one request. Never raises: a RythmiqError keeps its code, any other exception becomes ``internal``.

        ``clock_offset_s``: how many seconds this machine's clock is ahead of the driver's, at least; 0 on the driver's
        own machine, None if the driver does not know this machine's clock yet.
        """
        steps: dict[Step, Callable[[StepRequest], StepResult]] = {
            Step.SUBMIT: partial(self.submit, clock_offset_s=clock_offset_s),
            Step.COLLECT: self.collect,
            Step.CANCEL: self.cancel,
            Step.CLEAN: self.clean,
        }
        step = steps[request.step]
        try:
            return step(request)
        except RythmiqError as error:
            return Faulted(error=ErrorInfo.of(error))
        except Exception as error:  # noqa: BLE001 - its class may not unpickle in the driver, and its text may hold a secret
            return Faulted(error=_internal(error, request))

    def probe(self, part: str) -> ErrorInfo | None:
        """Tests whether the backend or the store, a name in :data:`PROBES`, can be used from here; None = it can."""
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

    def submit(self, request: StepRequest, *, clock_offset_s: float | None) -> StepResult:
        """Uploads bundle and inputs and creates the remote job; raises RythmiqError if no create was sent."""
        job = self._with_files(request.job)
        if not request.uploaded:
            self.backend.upload(
                job,
                secrets=request.secrets,
                timeout_s=job.spec.timeout_s or self.timeout_s,
                open_input=self.store.open_input,
            )
        if request.create_by is not None:
            if clock_offset_s is None:
                return NotYet(reason="the driver does not know this node's clock yet", uploaded=True)
            if now_s() > request.create_by + clock_offset_s:
                return NotYet(reason="the lease under which it was sent has ended", delay_s=LATE_DELAY_S, uploaded=True)
        began = now_s()
        try:
            remote = self.backend.create(job)
            return Submitted(remote=remote, create_s=now_s() - began)
        except CreateUncertain as error:
            return SubmitUncertain(error=ErrorInfo.of(error))
        except RythmiqError:
            raise
        except Exception as error:  # noqa: BLE001 - as in run(); it may have come after the create
            return SubmitUncertain(error=_internal(error, request))

    def _with_files(self, job: Job) -> Job:
        """The job with an input for each file of the folders and patterns among its inputs; raises InputMissing."""
        if not any(item.name.endswith("/") for item in job.spec.inputs):
            return job
        inputs: dict[str, Input] = {}
        for item in job.spec.inputs:
            if not item.name.endswith("/"):
                inputs[item.name] = item
                continue
            folder = "" if item.name == "./" else item.name
            for uri, name in self.store.list_inputs(item.uri):
                inputs[f"{folder}{name}"] = Input(uri=uri, name=f"{folder}{name}")
        if len(inputs) > MAX_FILES:
            raise InputMissing(f"inputs: {len(inputs):,} files; one job may have at most {MAX_FILES:,}")
        for name in inputs:
            if (fault := fault_of_name(name)) is not None:
                raise InputMissing(f"input {plain(name, 200)} {fault}")
        return replace(job, spec=replace(job.spec, inputs=tuple(inputs.values())))

    def _recorded(self, job: Job) -> tuple[dict[str, Any], ...]:
        """The inputs of an attempt, as its upload recorded them; empty if that record is missing or unreadable."""
        if not job.spec.inputs:
            return ()
        try:
            found = json.loads(self.backend.read_file(job, INPUTS_NAME))
        except (NotFound, ValueError, RecursionError):
            return ()
        if not isinstance(found, list):
            return ()
        return tuple(item for item in found if isinstance(item, dict) and isinstance(item.get("name"), str))

    def cancel(self, request: StepRequest) -> StepResult:
        """Asks the remote job to end; raises RythmiqError."""
        return Cancelling(accepted=self.backend.cancel(request.job, mark=not request.stray))

    def clean(self, request: StepRequest) -> StepResult:
        """Removes the attempt's path from the stash; raises RythmiqError."""
        self.backend.remove(request.job)
        return Cleaned()

    def collect(self, request: StepRequest) -> StepResult:
        """Streams log and outputs into the store, the manifest last; raises RythmiqError."""
        job, remote = request.job, request.remote
        assert remote is not None  # noqa: S101 - a COLLECT request always has it
        inputs = self._recorded(job)
        if inputs:
            named = tuple(Input(uri=str(item.get("uri")), name=item["name"]) for item in inputs)
            job = replace(job, spec=replace(job.spec, inputs=named))
            request = replace(request, job=job)
        # Without a time of creation, ``remote`` is from a row, which does not tell whether the job had started.
        never_started = remote.created_at is not None and remote.started_at is None
        if remote.status is RemoteStatus.CANCELLED and never_started:
            return self._collected(request, remote, None, (), (), ())
        warnings: list[str] = []
        try:
            result = self.backend.read_result(job)
        except ArtifactCorrupt as error:
            result = None
            warnings.append(error.message)
        if result is None:
            found = self._found_without_result(request, remote)
            if isinstance(found, NotYet):
                return found
            files, unsafe = _safe(found)
            log = None
            if request.stop_code is None and remote.status is not RemoteStatus.CANCELLED:
                kept = "{:,} files of {:,} bytes".format(*_measure(found))
                warnings.append(
                    f"result_missing: the job left no result file, so all files in its path were kept: {kept}"
                )
        else:
            files, unsafe = _safe(result.outputs)
            if not request.final and (request.seen is not None or len(files) > FEW_FILES):
                seen, late = self._look(request, files)
                if late:
                    return _not_yet(request, f"{late} of {len(files)} outputs are not complete yet", seen)
            warnings.extend(f"output {glob!r} matched no file" for glob in result.unmatched)
            warnings.extend(result.warnings)
            log = result.log
            if result.log_cut:
                log = None
                warnings.append("log: the command truncated the wrapper's log; Camber's own is kept, if any")
        total_bytes = sum(file.size_bytes for file in files) + (log.size_bytes if log else 0)
        if total_bytes > ALONE_BYTES and not request.alone:
            return NotYet(reason="large", alone=True, alone_bytes=total_bytes, seen=request.seen)
        warnings.extend(unsafe)
        if request.again:
            self.store.discard_partial(job.job_id, job.attempt)
        faults: list[str] = []
        artifacts = self._copy_all(request, log, files, faults, warnings)
        if faults and not request.final:
            return _not_yet(request, faults[0], self._look(request)[0], total_bytes)
        warnings.extend(faults)
        return self._collected(request, remote, result, artifacts, unsafe, tuple(warnings), tuple(faults), inputs)

    def _found_without_result(self, request: StepRequest, remote: RemoteJob) -> tuple[RemoteFile, ...] | NotYet:
        """The files in the path of a job that left no result file, once they can be taken as complete."""
        if not request.final:
            early = request.growing_s + request.quiet_s < LOOK_AFTER_S
            return _not_yet(
                request, "the result file has not arrived yet", request.seen if early else self._look(request)[0]
            )
        listing = tuple(self.backend.list_files(request.job))
        seen = _measure(listing)
        if seen != request.seen:
            return _not_yet(request, "files in the path are still changing", seen)
        if remote.status is RemoteStatus.COMPLETED and request.quiet_s < max(self.settled_s, request.growing_s / 10):
            return _not_yet(request, "files in the path have changed too recently", seen)
        return listing

    def _look(self, request: StepRequest, files: tuple[RemoteFile, ...] = ()) -> tuple[tuple[int, int], int]:
        """Number and bytes of the files in the path, and how many of ``files`` are not complete there. One call.

        If the service cannot list, no file counts as late, and each is fetched to find out.
        """
        try:
            listing = self.backend.list_files(request.job)
        except (BackendUnavailable, NotFound, SpecRejected):
            return request.seen or (0, 0), 0
        sizes = {file.name: file.size_bytes for file in listing}
        inputs = {file.name for file in request.job.spec.inputs}  # An input's file was there before the job ran.
        late = sum(sizes.get(file.name) != file.size_bytes for file in files if file.name not in inputs)
        return _measure(listing), late

    def _copy_all(
        self,
        request: StepRequest,
        log: RemoteFile | None,
        files: tuple[RemoteFile, ...],
        faults: list[str],
        warnings: list[str],
    ) -> tuple[Artifact, ...]:
        """Copies files from the stash to the store, several at once; the log comes first in the result.

        A file that cannot be fetched completely adds to ``faults``. Unless the request is final, the first one stops
        the copying, since the sync may still be going on.
        """

        def copied(copy: Callable[[], Artifact | None]) -> Artifact | None:
            if faults and not request.final:
                return None
            try:
                return copy()
            except (ArtifactCorrupt, NotFound, SpecRejected) as error:
                faults.append(error.message)
                return None

        def copied_log(log: RemoteFile) -> Artifact | None:
            try:
                return self._copy(request.job, log, LOG_NAME)
            except (ArtifactCorrupt, NotFound):
                if not request.final:
                    raise
            warnings.append("log: the wrapper's log could not be fetched completely; Camber's own is kept, if any")
            return self._service_log(request, warnings)

        calls: list[Callable[[], Artifact | None]] = [
            partial(self._service_log, request, warnings) if log is None else partial(copied_log, log),
            *(partial(self._copy, request.job, file, file.name) for file in files),
        ]
        done = _together([partial(copied, call) for call in calls], self.concurrency)
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

    def _service_log(self, request: StepRequest, warnings: list[str]) -> Artifact | None:
        """The service's own log, for a job without a usable wrapper log. A final request goes on without it."""
        job = request.job
        try:
            log: AbstractContextManager[Iterator[bytes]] = self.backend.open_log(job)
            with log as chunks:
                return self.store.write(job.job_id, job.attempt, LOG_NAME, chunks)
        except NotFound:
            return None
        except BackendUnavailable as error:
            if not request.final:
                raise
            warnings.append(f"log: it could not be fetched: {error.message}")
            return None

    def _collected(
        self,
        request: StepRequest,
        remote: RemoteJob,
        result: RemoteResult | None,
        artifacts: tuple[Artifact, ...],
        unsafe: tuple[str, ...],
        warnings: tuple[str, ...],
        faults: tuple[str, ...] = (),
        inputs: tuple[dict[str, Any], ...] = (),
    ) -> Collected:
        job = request.job
        warnings = _bounded(warnings)
        state, exit_code, error = _verdict(request, remote, result)
        if faults and state is JobState.SUCCEEDED:
            state = JobState.FAILED
            error = ErrorInfo(code=ErrorCode.ARTIFACT_CORRUPT, message=_listed(faults))
        if unsafe and state is not JobState.CANCELLED:
            state = JobState.FAILED
            error = ErrorInfo(code=ErrorCode.OUTPUT_REFUSED, message=_listed(unsafe))
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
                    warnings=warnings,
                    inputs=inputs,
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
            unstored=bool(faults or unsafe),
        )


def _together(calls: Sequence[Callable[[], Artifact | None]], at_once: int) -> list[Artifact | None]:
    """The results of calls, ``at_once`` of them at a time. Raises what the first of them raised, once none runs."""
    if len(calls) == 1:
        return [calls[0]()]
    with ThreadPoolExecutor(min(at_once, len(calls))) as pool:
        return list(pool.map(lambda call: call(), calls))  # If one raises, those that have not begun are cancelled.


def _internal(error: Exception, request: StepRequest) -> ErrorInfo:
    message = f"{type(error).__name__} in {request.step} at {place_of(error)}"
    return ErrorInfo(code=ErrorCode.INTERNAL, message=message)


def _safe(files: tuple[RemoteFile, ...]) -> tuple[tuple[RemoteFile, ...], tuple[str, ...]]:
    """The files that may be stored, and a sentence for each other one that says why not."""
    large = {file.name for file in files if file.size_bytes > MAX_FILE_BYTES}
    accepted, refused = check_names(file.name for file in files if file.name not in large)
    names = set(accepted)
    refused.extend((name, f"is larger than {MAX_FILE_BYTES:,} bytes") for name in sorted(large))
    return (
        tuple(file for file in files if file.name in names),
        tuple(f"output {name!a}: {reason}" for name, reason in refused),
    )


def _not_yet(request: StepRequest, reason: str, seen: tuple[int, int] | None, alone_bytes: int = 0) -> NotYet:
    """Wait for a late sync: the longer it takes, the longer the pause before the next attempt to collect."""
    delay_s = min(SYNC_DELAY_MAX_S, max(SYNC_DELAY_S, (request.growing_s + request.quiet_s) / 10))
    return NotYet(reason=reason, delay_s=delay_s, alone=request.alone, alone_bytes=alone_bytes, seen=seen)


def _measure(listing: Collection[RemoteFile]) -> tuple[int, int]:
    return len(listing), sum(file.size_bytes for file in listing)


def _bounded(warnings: Sequence[str]) -> tuple[str, ...]:
    """The warnings without duplicates, limited in number and length, without control characters."""
    shown = [plain(warning, MAX_WARNING_CHARACTERS) for warning in dict.fromkeys(warnings)]
    rest = len(shown) - MAX_WARNINGS
    return (*shown[:MAX_WARNINGS], f"and {rest:,} more") if rest > 0 else tuple(shown)


def _listed(faults: tuple[str, ...]) -> str:
    """The first faults, for a message."""
    rest = f"; and {len(faults) - 20:,} more" if len(faults) > 20 else ""
    return "; ".join(plain(fault, MAX_WARNING_CHARACTERS) for fault in faults[:20]) + rest


def _verdict(
    request: StepRequest, remote: RemoteJob, result: RemoteResult | None
) -> tuple[JobState, int | None, ErrorInfo | None]:
    """How the attempt ended: by the wrapper's result if there is one, else by the service's status."""

    def failed(code: ErrorCode, message: str) -> tuple[JobState, int | None, ErrorInfo]:
        exit_code = result.exit_code if result else None
        state = JobState.CANCELLED if code is ErrorCode.CANCELLED else JobState.FAILED
        return state, exit_code, ErrorInfo(code=code, message=message)

    if result is not None and result.reason == "exited":
        if result.exit_code == 0:
            return JobState.SUCCEEDED, 0, None
        return failed(ErrorCode.COMMAND_FAILED, f"the command ended with exit code {result.exit_code}")
    if result is not None and result.reason == "timeout":
        return failed(ErrorCode.JOB_TIMEOUT, "the command ran longer than its timeout and was stopped")
    if result is None and remote.status is RemoteStatus.COMPLETED:
        return JobState.SUCCEEDED, 0, None
    if request.stop_code is ErrorCode.CANCELLED:
        return failed(ErrorCode.CANCELLED, "cancelled on request")
    if request.stop_code is ErrorCode.REMOTE_LOST:
        return failed(request.stop_code, "Camber no longer knows the remote job, and its path holds no result")
    if request.stop_code is not None:
        return failed(request.stop_code, f"stopped by the driver: {request.stop_code}")
    if result is not None or remote.status is RemoteStatus.CANCELLED:
        return failed(ErrorCode.REMOTE_CANCELLED, "Camber cancelled the job by itself")
    return failed(
        ErrorCode.REMOTE_KILLED,
        "the remote job failed and left no result file: it was killed, most often for lack of memory, or the command"
        " removed its own working directory or filled the disk; the log's last lines may show which",
    )
