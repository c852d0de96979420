"""A task's steps: what is not done when it must not be, and what an error may say."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from samples import job, remote

from rythmiq_ray.errors import BackendBusy, CreateUncertain, ErrorCode
from rythmiq_ray.executor import Executor
from rythmiq_ray.model import (
    Artifact,
    Collected,
    Faulted,
    NotYet,
    Order,
    RemoteFile,
    RemoteResult,
    RemoteStatus,
    Step,
    Submitted,
    SubmitUncertain,
)


class Backend:
    """Notes what is called; ``create`` does as told."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.calls: list[str] = []
        self.fault = fault
        self.result: RemoteResult | None = None

    def upload(self, *_: Any, **__: Any) -> None:
        self.calls.append("upload")

    def create(self, row: Any) -> Any:
        self.calls.append("create")
        if self.fault is not None:
            raise self.fault
        return remote(row)

    def read_result(self, _: Any) -> RemoteResult | None:
        self.calls.append("read_result")
        return self.result

    def read_file(self, _: Any, name: str) -> bytes:
        self.calls.append(f"read_file {name}")
        return b"fetched"

    def cost_credits(self, *_: Any) -> None:
        return None


class Store:
    open_input = None

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def write(self, _job_id: UUID, _attempt: int, name: str, chunks: Iterable[bytes], **_: Any) -> Artifact:
        self.files[name] = b"".join(chunks)
        return Artifact(name=name, uri=name, bytes=len(self.files[name]), sha256="", content_type="")

    def write_manifest(self, *_: Any) -> str:
        return "manifest"


def executor(backend: Backend, store: Store | None = None) -> Executor:
    return Executor(backend=backend, store=store or Store(), timeout_s=1.0, concurrency=1)  # type: ignore[arg-type]


def submit(**changes: Any) -> Order:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    return Order(**{"step": Step.SUBMIT, "job": job(), "create_before": soon, **changes})


def test_a_submit_uploads_and_creates() -> None:
    backend = Backend()
    assert isinstance(executor(backend).run(submit()), Submitted)
    assert backend.calls == ["upload", "create"]


def test_nothing_is_created_once_the_lease_may_be_over() -> None:
    backend = Backend()
    result = executor(backend).run(submit(create_before=datetime.now(UTC) - timedelta(milliseconds=1)))
    assert isinstance(result, NotYet)
    assert result.uploaded
    assert backend.calls == ["upload"]


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
    assert isinstance(result, Faulted)
    assert result.error.code is ErrorCode.INTERNAL
    assert "canary" not in result.error.message
    assert "ValueError in submit at" in result.error.message


@pytest.mark.parametrize("final", [True, False])
def test_a_job_that_never_started_is_not_waited_for(final: bool) -> None:
    backend = Backend()
    row = job()
    order = Order(step=Step.COLLECT, job=row, remote=remote(row, status=RemoteStatus.CANCELLED), final=final)
    result = executor(backend).run(order)
    assert result.error is not None  # type: ignore[union-attr]
    assert result.error.code is ErrorCode.REMOTE_CANCELLED  # type: ignore[union-attr]
    assert backend.calls == []


@pytest.mark.parametrize("outputs", [False, True])
def test_only_what_the_result_did_not_bring_along_is_fetched(outputs: bool) -> None:
    now = datetime.now(UTC)
    backend, store, row = Backend(), Store(), job()
    backend.result = RemoteResult(
        exit_code=0,
        reason="exited",
        started_at=now,
        finished_at=now,
        log=RemoteFile(name="rythmiq-log.txt", size_bytes=5, content=b"a log"),
        outputs=(RemoteFile(name="a", size_bytes=0, content=b""), RemoteFile(name="b", size_bytes=7))[: 2 * outputs],
    )
    order = Order(step=Step.COLLECT, job=row, remote=remote(row, status=RemoteStatus.COMPLETED))
    assert isinstance(executor(backend, store).run(order), Collected)
    assert backend.calls == ["read_result", *["read_file b"] * outputs]
    assert store.files == {"log.txt": b"a log"} | ({"a": b"", "b": b"fetched"} if outputs else {})
