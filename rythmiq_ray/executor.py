"""What a Ray task does for an attempt, with no Ray in it: submit, collect, cancel, clean.

Each step is idempotent, and every error comes back as data.
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
"""Between two looks at a path whose late sync is not whole yet; a tenth of the wait so far, up to SYNC_DELAY_MAX_S."""
SYNC_DELAY_MAX_S: Final = 10.0
LOOK_AFTER_S: Final = 3.0
"""Most result files are there sooner; a path is listed only while its own comes later."""
FEW_FILES: Final = 16
"""So many are asked for one by one before it is known that they are whole; of more, the path is listed first."""
MAX_FILE_BYTES: Final = 5 * 1024**4
"""Of an object in S3."""
MAX_WARNINGS: Final = 50
MAX_WARNING_CHARACTERS: Final = 300


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Runs requests with a backend and an artifact store, in many threads; one serves all of a process."""

    backend: ExecutionBackend
    store: ArtifactStore
    timeout_s: float
    """A job's time-out where the job names none."""
    concurrency: int
    """Files of one job that are fetched at once."""
    streams: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(STREAMS), init=False)
    settled_s: float = 10.0
    """For so long at least a path must not have changed before a job without a result file has succeeded."""

    def run(self, request: StepRequest, *, clock_offset_s: float | None = 0.0) -> StepResult:
        """Carries out one request. Never raises: an error of ours keeps its code, any other is ``internal``.

        ``clock_offset_s``: how far this machine's clock is ahead of the driver's, at least; 0 on the driver's own
        machine, None where the driver has not heard of this one yet.
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

    def submit(self, request: StepRequest, *, clock_offset_s: float | None) -> StepResult:
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
                return NotYet(reason="the node is new to the driver, which cannot tell its time yet", uploaded=True)
            if now_s() > request.create_by + clock_offset_s:
                return NotYet(reason="the lease it was sent under is over", delay_s=LATE_DELAY_S, uploaded=True)
        try:
            return Submitted(remote=self.backend.create(job))
        except CreateUncertain as error:
            return SubmitUncertain(error=ErrorInfo.of(error))
        except RythmiqError:
            raise
        except Exception as error:  # noqa: BLE001 - as in run(); it may have come after the create
            return SubmitUncertain(error=_internal(error, request))

    def _with_files(self, job: Job) -> Job:
        """With each file of the inputs that are several; raises InputMissing."""
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
            raise InputMissing(f"inputs: {len(inputs):,} files; the most of one job is {MAX_FILES:,}")
        for name in inputs:
            if (fault := fault_of_name(name)) is not None:
                raise InputMissing(f"input {plain(name, 200)} {fault}")
        return replace(job, spec=replace(job.spec, inputs=tuple(inputs.values())))

    def _recorded(self, job: Job) -> tuple[dict[str, Any], ...]:
        """What the inputs of an attempt were; empty where nobody knows any more."""
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
        return Cancelling(accepted=self.backend.cancel(request.job, mark=not request.stray))

    def clean(self, request: StepRequest) -> StepResult:
        self.backend.remove(request.job)
        return Cleaned()

    def collect(self, request: StepRequest) -> StepResult:
        job, remote = request.job, request.remote
        assert remote is not None  # noqa: S101 - a COLLECT request always has it
        inputs = self._recorded(job)
        if inputs:
            named = tuple(Input(uri=str(item.get("uri")), name=item["name"]) for item in inputs)
            job = replace(job, spec=replace(job.spec, inputs=named))
            request = replace(request, job=job)
        # Only a list has a time of creation; a row does not tell whether the job had started.
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
                    f"result_missing: the job left no result file, so all that its path held was kept: {kept}"
                )
        else:
            files, unsafe = _safe(result.outputs)
            if not request.final and (request.seen is not None or len(files) > FEW_FILES):
                seen, late = self._look(request, files)
                if late:
                    return _not_yet(request, f"{late} of {len(files)} outputs are not whole yet", seen)
            warnings.extend(f"output {glob!r} matched no file" for glob in result.unmatched)
            warnings.extend(result.warnings)
            log = result.log
            if result.log_cut:
                log = None
                warnings.append("log: the command cut the wrapper's log, so Camber's is kept where there is one")
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
        """What lies in the path of a job that left no result, once it can be taken for whole."""
        if not request.final:
            early = request.growing_s + request.quiet_s < LOOK_AFTER_S
            return _not_yet(
                request, "the result file is not there yet", request.seen if early else self._look(request)[0]
            )
        listing = tuple(self.backend.list_files(request.job))
        seen = _measure(listing)
        if seen != request.seen:
            return _not_yet(request, "the path still changes", seen)
        if remote.status is RemoteStatus.COMPLETED and request.quiet_s < max(self.settled_s, request.growing_s / 10):
            return _not_yet(request, "the path has not been the same for long enough", seen)
        return listing

    def _look(self, request: StepRequest, files: tuple[RemoteFile, ...] = ()) -> tuple[tuple[int, int], int]:
        """What the path holds, and how many of these files it does not hold whole. One call.

        Where a service cannot list, nothing is known to be late: each file is then asked for.
        """
        try:
            listing = self.backend.list_files(request.job)
        except (BackendUnavailable, NotFound, SpecRejected):
            return request.seen or (0, 0), 0
        sizes = {file.name: file.size_bytes for file in listing}
        inputs = {file.name for file in request.job.spec.inputs}  # Not listed: they were there before.
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
        """Stash to store, several files at once; the log first in the result.

        What cannot be had whole is told in ``faults``; while the sync may still go on, the first one ends the try.
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
            warnings.append("log: the wrapper's log did not come back whole, so Camber's is kept where there is one")
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
        """The log as the service kept it, for a job whose wrapper left none; files do not wait for it for ever."""
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
            warnings.append(f"log: it could not be had: {error.message}")
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
    """The outcomes of calls, so many at once. Raises what one of them raised, once none runs any more."""
    if len(calls) == 1:
        return [calls[0]()]
    with ThreadPoolExecutor(min(at_once, len(calls))) as pool:
        return list(pool.map(lambda call: call(), calls))  # Where one raises, those that have not begun are cancelled.


def _internal(error: Exception, request: StepRequest) -> ErrorInfo:
    message = f"{type(error).__name__} in {request.step} at {place_of(error)}"
    return ErrorInfo(code=ErrorCode.INTERNAL, message=message)


def _safe(files: tuple[RemoteFile, ...]) -> tuple[tuple[RemoteFile, ...], tuple[str, ...]]:
    """Those whose names may be stored, and why each other one may not."""
    large = {file.name for file in files if file.size_bytes > MAX_FILE_BYTES}
    accepted, refused = check_names(file.name for file in files if file.name not in large)
    names = set(accepted)
    refused.extend((name, f"is larger than {MAX_FILE_BYTES:,} bytes") for name in sorted(large))
    return (
        tuple(file for file in files if file.name in names),
        tuple(f"output {name!a}: {reason}" for name, reason in refused),
    )


def _not_yet(request: StepRequest, reason: str, seen: tuple[int, int] | None, alone_bytes: int = 0) -> NotYet:
    """A late sync is waited for, with fewer looks the longer it takes."""
    delay_s = min(SYNC_DELAY_MAX_S, max(SYNC_DELAY_S, (request.growing_s + request.quiet_s) / 10))
    return NotYet(reason=reason, delay_s=delay_s, alone=request.alone, alone_bytes=alone_bytes, seen=seen)


def _measure(listing: Collection[RemoteFile]) -> tuple[int, int]:
    return len(listing), sum(file.size_bytes for file in listing)


def _bounded(warnings: Sequence[str]) -> tuple[str, ...]:
    """So few, so short and so plain that a row, a manifest and a terminal can take them."""
    shown = [plain(warning, MAX_WARNING_CHARACTERS) for warning in dict.fromkeys(warnings)]
    rest = len(shown) - MAX_WARNINGS
    return (*shown[:MAX_WARNINGS], f"and {rest:,} more") if rest > 0 else tuple(shown)


def _listed(faults: tuple[str, ...]) -> str:
    """A few of many for a message."""
    rest = f"; and {len(faults) - 20:,} more" if len(faults) > 20 else ""
    return "; ".join(plain(fault, MAX_WARNING_CHARACTERS) for fault in faults[:20]) + rest


def _verdict(
    request: StepRequest, remote: RemoteJob, result: RemoteResult | None
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
        " removed its own working directory or filled the disk; the log's last lines may tell which",
    )
