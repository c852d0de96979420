"""A task's steps: what is not done when it must not be, and what an error may say."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from samples import NOW, config, job, remote

from rythmiq_ray.artifacts import open_store
from rythmiq_ray.clock import now_s
from rythmiq_ray.errors import (
    ArtifactCorrupt,
    BackendBusy,
    BackendUnavailable,
    CreateUncertain,
    ErrorCode,
    NotFound,
    StoreUnavailable,
)
from rythmiq_ray.executor import PROBES, SMALL_BYTES, Executor
from rythmiq_ray.model import (
    Collected,
    Faulted,
    Input,
    JobSpec,
    JobState,
    NotYet,
    RemoteFile,
    RemoteResult,
    RemoteStatus,
    Step,
    StepRequest,
    StepResult,
    Submitted,
    SubmitUncertain,
)


class Backend:
    """Notes what is called; ``create`` does as told."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.calls: list[str] = []
        self.fault = fault

    def upload(self, *_: Any, **__: Any) -> None:
        self.calls.append("upload")

    def create(self, row: Any) -> Any:
        self.calls.append("create")
        if self.fault is not None:
            raise self.fault
        return remote(row)

    def read_result(self, _: Any) -> None:
        self.calls.append("read_result")


class Store:
    open_input = None


def executor(backend: Backend) -> Executor:
    return Executor(backend=backend, store=Store(), timeout_s=1.0, concurrency=1)  # type: ignore[arg-type]


def submit(**changes: Any) -> StepRequest:
    return StepRequest(**{"step": Step.SUBMIT, "job": job(), "create_by": now_s() + 60.0, **changes})


def test_a_submit_uploads_and_creates() -> None:
    backend = Backend()
    assert isinstance(executor(backend).run(submit()), Submitted)
    assert backend.calls == ["upload", "create"]


def test_nothing_is_created_once_the_lease_may_be_over() -> None:
    backend = Backend()
    result = executor(backend).run(submit(create_by=now_s() - 0.001))
    assert isinstance(result, NotYet)
    assert result.uploaded
    assert backend.calls == ["upload"]


@pytest.mark.parametrize("day_s", [86_400.0, -86_400.0])
def test_the_end_of_a_lease_is_read_by_the_nodes_own_clock(day_s: float) -> None:
    ahead = executor(Backend())
    open_still = submit(create_by=now_s() - day_s + 60.0)
    assert isinstance(ahead.run(open_still, clock_offset_s=day_s), Submitted)
    over = submit(create_by=now_s() - day_s - 1.0)
    result = ahead.run(over, clock_offset_s=day_s)
    assert isinstance(result, NotYet)
    assert result.delay_s > 0, "nothing is sent again in a busy loop"


def test_a_node_whose_clock_the_driver_has_not_heard_of_creates_nothing() -> None:
    backend = Backend()
    result = executor(backend).run(submit(), clock_offset_s=None)
    assert isinstance(result, NotYet)
    assert result.uploaded
    assert backend.calls == ["upload"]


@pytest.mark.parametrize("part", PROBES)
def test_a_probe_tells_what_is_wrong_and_nothing_where_all_is_well(part: str) -> None:
    backend, store = Backend(), Store()
    one = Executor(backend=backend, store=store, timeout_s=1.0, concurrency=1)  # type: ignore[arg-type]
    asked = backend if part == "backend" else store
    asked.check = lambda: "ada"  # type: ignore[union-attr]
    assert one.probe(part) is None

    def busy() -> None:
        raise BackendBusy("slow down", 7.0)

    asked.check = busy  # type: ignore[union-attr]
    error = one.probe(part)
    assert error is not None
    assert (error.code, error.retry_after_s) == (ErrorCode.BACKEND_BUSY, 7.0)

    def unforeseen() -> None:
        raise ValueError("canary")

    asked.check = unforeseen  # type: ignore[union-attr]
    error = one.probe(part)
    assert error is not None
    assert error.code is PROBES[part]
    assert "canary" not in error.message


def test_what_is_uploaded_is_not_uploaded_again() -> None:
    backend = Backend()
    executor(backend).run(submit(uploaded=True))
    assert backend.calls == ["create"]


def test_an_uncertain_create_is_no_error() -> None:
    assert isinstance(executor(Backend(CreateUncertain("lost"))).run(submit()), SubmitUncertain)


def test_an_error_keeps_its_code_and_its_wait() -> None:
    result = executor(Backend(BackendBusy("slow down", 7.0))).run(submit())
    assert isinstance(result, Faulted)
    assert (result.error.code, result.error.retry_after_s) == (ErrorCode.BACKEND_BUSY, 7.0)


def test_an_unforeseen_error_tells_its_place_and_no_value() -> None:
    result = executor(Backend(ValueError("canary"))).run(submit())
    assert isinstance(result, SubmitUncertain), "it may have come after the create"
    assert result.error.code is ErrorCode.INTERNAL
    assert "canary" not in result.error.message
    assert "ValueError in submit at" in result.error.message


@pytest.mark.parametrize("final", [True, False])
def test_a_job_that_never_started_is_not_waited_for(final: bool) -> None:
    backend = Backend()
    backend.cost_credits = lambda *_: None  # type: ignore[attr-defined]
    row = job()
    request = StepRequest(step=Step.COLLECT, job=row, remote=remote(row, status=RemoteStatus.CANCELLED), final=final)
    result = executor(backend).run(request)
    assert result.error is not None  # type: ignore[union-attr]
    assert result.error.code is ErrorCode.REMOTE_CANCELLED  # type: ignore[union-attr]
    assert backend.calls == []


# ---- Collecting, from a path in memory into a real folder


class PathInMemory:
    """What a remote job left, and the calls that were made to see it."""

    def __init__(self, files: dict[str, bytes] | None = None, result: RemoteResult | None = None) -> None:
        self.files = files or {}
        self.result: RemoteResult | Exception | None = result
        self.service_log: bytes | None = b"service"
        self.calls: Counter[str] = Counter()

    def read_result(self, _: Any) -> RemoteResult | None:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def list_files(self, _: Any) -> list[RemoteFile]:
        self.calls["list"] += 1
        return [RemoteFile(name=name, size_bytes=len(data)) for name, data in self.files.items() if name != "log"]

    def read_file(self, _: Any, name: str) -> bytes:
        self.calls["read"] += 1
        if name not in self.files:
            raise NotFound(f"there is no {name}")
        return self.files[name]

    @contextmanager
    def open_file(self, row: Any, name: str, *, start: int = 0) -> Iterator[Iterator[bytes]]:
        yield iter([self.read_file(row, name)[start:]])

    @contextmanager
    def open_log(self, _: Any) -> Iterator[Iterator[bytes]]:
        self.calls["service log"] += 1
        if self.service_log is None:
            raise NotFound("no log")
        yield iter([self.service_log])

    def cost_credits(self, *_: Any) -> None:
        return None


def file(name: str, data: bytes) -> RemoteFile:
    return RemoteFile(name=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def left(outputs: dict[str, bytes], log: bytes = b"said", **changes: Any) -> RemoteResult:
    result = RemoteResult(
        exit_code=0,
        reason="exited",
        started_at=NOW,
        finished_at=NOW,
        log=file("log", log),
        outputs=tuple(file(name, data) for name, data in outputs.items()),
    )
    return replace(result, **changes)


class Collecting:
    """Tries of one COLLECT request against a path, with the store in a folder."""

    def __init__(self, folder: Path, path: PathInMemory, status: RemoteStatus = RemoteStatus.COMPLETED) -> None:
        self.store = open_store(replace(config().artifacts, path=str(folder)))
        self.executor = Executor(backend=path, store=self.store, timeout_s=1, concurrency=4)  # type: ignore[arg-type]
        row = job()
        self.request = StepRequest(step=Step.COLLECT, job=row, remote=remote(row, status=status))

    def collect(self, **changes: Any) -> StepResult:
        return self.executor.run(replace(self.request, **changes))

    def done(self, **changes: Any) -> Collected:
        result = self.collect(**changes)
        assert isinstance(result, Collected), result
        return result

    def content(self, result: Collected) -> dict[str, bytes]:
        found = {}
        for artifact in result.artifacts:
            with self.store.open(artifact.uri) as stored:
                found[artifact.name] = stored.read()
        return found

    def manifest(self, result: Collected) -> Any:
        with self.store.open(result.manifest_uri or "") as stored:
            return json.loads(stored.read())


def test_a_late_sync_is_measured_and_looked_at_by_one_listing_a_try(tmp_path: Path) -> None:
    outputs = {f"{number}": b"%d" % number for number in range(300)}
    path = PathInMemory({"log": b"said"}, left(outputs))
    collecting = Collecting(tmp_path, path)
    seen = None
    for arrived in (0, 100, 299):
        path.files |= dict(list(outputs.items())[:arrived])
        path.calls.clear()
        result = collecting.collect(seen=seen)
        assert isinstance(result, NotYet)
        assert result.seen == (arrived, sum(len(data) for name, data in path.files.items() if name != "log"))
        assert result.delay_s > 0
        assert path.calls == {"list": 1}
        seen = result.seen
    path.files |= outputs
    stored = collecting.done(seen=seen)
    assert collecting.content(stored) == {"log.txt": b"said"} | outputs
    assert stored.warnings == ()


def test_the_first_try_of_a_small_job_needs_no_listing_and_a_later_one_does(tmp_path: Path) -> None:
    path = PathInMemory({"log": b"said", "a": b"a"}, left({"a": b"a"}))
    Collecting(tmp_path, path).done()
    assert path.calls == {"read": 2}
    path = PathInMemory({"log": b"said", "a": b"half"}, left({"a": b"half a file"}))
    late = Collecting(tmp_path, path)
    first = late.collect()
    assert isinstance(first, NotYet)
    assert first.seen == (1, 4)
    path.calls.clear()
    assert isinstance(late.collect(seen=first.seen), NotYet)
    assert path.calls == {"list": 1}


def test_a_service_that_cannot_list_does_not_keep_files_from_being_collected(tmp_path: Path) -> None:
    path = PathInMemory({"log": b"said"}, left({"a": b"a"}))

    def refuse(_: Any) -> list[RemoteFile]:
        raise BackendUnavailable("there is no such route")

    path.list_files = refuse  # type: ignore[method-assign]
    late = Collecting(tmp_path, path)
    first = late.collect()
    assert isinstance(first, NotYet)
    path.files["a"] = b"a"
    assert late.done(seen=first.seen).state is JobState.SUCCEEDED


def test_an_output_that_is_an_input_too_is_not_waited_for_in_the_listing(tmp_path: Path) -> None:
    path = PathInMemory({"log": b"said", "in": b"x"}, left({"in": b"x"}))
    collecting = Collecting(tmp_path, path)
    spec = JobSpec(command="true", inputs=(Input(uri="s3://b/in", name="in"),))
    path.list_files = lambda _: []  # type: ignore[method-assign]
    assert collecting.done(seen=(0, 0), job=replace(collecting.request.job, spec=spec)).state is JobState.SUCCEEDED


def test_what_never_became_whole_is_named_and_the_rest_is_stored(tmp_path: Path) -> None:
    path = PathInMemory({"log": b"said", "a": b"a", "b": b"half"}, left({"a": b"a", "b": b"half a file", "c": b"c"}))
    collecting = Collecting(tmp_path, path)
    result = collecting.done(final=True, seen=(2, 5))
    assert (result.state, result.exit_code) == (JobState.FAILED, 0)
    assert result.error is not None
    assert result.error.code is ErrorCode.ARTIFACT_CORRUPT
    assert "'b' has 4 bytes instead of 11" in result.error.message
    assert collecting.content(result) == {"log.txt": b"said", "a": b"a"}
    assert collecting.manifest(result)["warnings"] == list(result.warnings)
    assert len(result.warnings) == 2


def test_a_completed_job_without_a_result_has_not_succeeded_before_its_path_was_still_for_long(tmp_path: Path) -> None:
    path = PathInMemory({"a": b"abc"})
    collecting = Collecting(tmp_path, path)
    waiting = [
        {},
        {"final": True},
        {"final": True, "seen": (1, 2), "quiet_s": 1000.0},
        {"final": True, "seen": (1, 3), "quiet_s": 9.9},
        {"final": True, "seen": (1, 3), "quiet_s": 59.0, "growing_s": 600.0},
    ]
    for changes in waiting:
        assert isinstance(collecting.collect(**changes), NotYet), changes
    for changes in ({"quiet_s": 10.0}, {"quiet_s": 60.0, "growing_s": 600.0}):
        result = collecting.done(final=True, seen=(1, 3), **changes)
        assert (result.state, result.exit_code) == (JobState.SUCCEEDED, 0)
        assert collecting.content(result) == {"log.txt": b"service", "a": b"abc"}
        (warning,) = result.warnings
        assert warning.startswith("result_missing: ")
        assert warning.endswith("1 files of 3 bytes")
        assert collecting.manifest(result)["warnings"] == [warning]


def test_a_path_without_a_result_is_measured_while_it_is_waited_for(tmp_path: Path) -> None:
    path = PathInMemory({"a": b"abc"})
    collecting = Collecting(tmp_path, path, RemoteStatus.FAILED)
    early, later = collecting.collect(), collecting.collect(quiet_s=30.0)
    assert isinstance(early, NotYet)
    assert isinstance(later, NotYet)
    assert (early.seen, early.delay_s, later.seen, later.delay_s) == (None, 1.0, (1, 3), 3.0)
    result = collecting.done(final=True, seen=(1, 3), quiet_s=120.0)
    assert result.error is not None
    assert result.error.code is ErrorCode.REMOTE_KILLED
    assert "removed its own working directory" in result.error.message


def test_a_result_that_is_none_counts_as_missing_and_is_told(tmp_path: Path) -> None:
    path = PathInMemory({"a": b"abc"})
    path.result = ArtifactCorrupt("rythmiq-result.json is not what the wrapper writes")
    collecting = Collecting(tmp_path, path)
    assert isinstance(collecting.collect(), NotYet)
    result = collecting.done(final=True, seen=(1, 3), quiet_s=120.0)
    assert result.state is JobState.SUCCEEDED
    assert result.warnings[0] == "rythmiq-result.json is not what the wrapper writes"


@pytest.mark.parametrize("size", [4, SMALL_BYTES + 1])
def test_the_services_log_is_kept_where_the_wrappers_is_cut_or_does_not_come(tmp_path: Path, size: int) -> None:
    log = b"x" * size
    path = PathInMemory({"log": log}, left({}, log, log_cut=True))
    cut = Collecting(tmp_path, path)
    result = cut.done()
    assert cut.content(result) == {"log.txt": b"service"}
    assert result.warnings[0].startswith("log: the command truncated")
    path = PathInMemory({}, left({}, log))
    missing = Collecting(tmp_path, path)
    assert isinstance(missing.collect(), NotYet)
    result = missing.done(final=True)
    assert (result.state, missing.content(result)) == (JobState.SUCCEEDED, {"log.txt": b"service"})
    assert result.warnings[0].startswith("log: the wrapper's log could not be fetched")
    path.service_log = None
    assert missing.done(final=True).artifacts == ()


def test_what_was_left_out_is_told_in_few_plain_lines(tmp_path: Path) -> None:
    names = {f"bad\n{number}": b"" for number in range(100)}
    result = left({"fine": b"1"} | names, unmatched=("none*", "\udce9\0"), warnings=("x" * 1000,))
    path = PathInMemory({"log": b"said", "fine": b"1"}, result)
    collecting = Collecting(tmp_path, path)
    stored = collecting.done()
    assert collecting.content(stored) == {"log.txt": b"said", "fine": b"1"}
    assert stored.error is not None
    assert (stored.state, stored.error.code) == (JobState.FAILED, ErrorCode.OUTPUT_REFUSED)
    assert len(stored.warnings) == 51
    assert stored.warnings[-1] == "and 53 more"
    assert stored.warnings[0] == "output 'none*' matched no file"
    assert all(len(line) <= 300 and line.isprintable() for line in stored.warnings)
    assert collecting.manifest(stored)["warnings"] == list(stored.warnings)


def test_an_output_larger_than_any_store_takes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    huge = RemoteFile(name="huge", size_bytes=2**62, sha256="0" * 64)
    path = PathInMemory({"log": b"said", "huge": b"x"}, replace(left({}), outputs=(huge,)))
    result = Collecting(tmp_path, path).done()
    assert result.error is not None
    assert result.error.code is ErrorCode.OUTPUT_REFUSED
    assert path.calls == {"read": 1}


def test_a_store_fault_leaves_the_path_for_another_try(tmp_path: Path) -> None:
    path = PathInMemory({"log": b"said"}, left({}))
    collecting = Collecting(tmp_path / "store", path)
    (tmp_path / "store").touch()
    result = collecting.collect(final=True)
    assert isinstance(result, Faulted)
    assert result.error.code is StoreUnavailable.code
    (tmp_path / "store").unlink()
    # Long after, the row alone tells of the remote job.
    assert collecting.request.remote is not None
    bare = replace(collecting.request.remote, status=RemoteStatus.CANCELLED, created_at=None, started_at=None)
    assert collecting.content(collecting.done(remote=bare)) == {"log.txt": b"said"}
