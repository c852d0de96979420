"""A task's steps: what is not done when it must not be, and what an error may say."""

from __future__ import annotations

from typing import Any

import pytest
from samples import job, remote

from rythmiq_ray.clock import now_s
from rythmiq_ray.errors import BackendBusy, CreateUncertain, ErrorCode
from rythmiq_ray.executor import PROBES, Executor
from rythmiq_ray.model import Faulted, NotYet, Order, RemoteStatus, Step, Submitted, SubmitUncertain


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


def submit(**changes: Any) -> Order:
    return Order(**{"step": Step.SUBMIT, "job": job(), "create_within_s": 60.0, **changes})


def test_a_submit_uploads_and_creates() -> None:
    backend = Backend()
    assert isinstance(executor(backend).run(submit()), Submitted)
    assert backend.calls == ["upload", "create"]


def test_nothing_is_created_once_the_lease_may_be_over() -> None:
    backend = Backend()
    result = executor(backend).run(submit(create_within_s=-1.0))
    assert isinstance(result, NotYet)
    assert result.uploaded
    assert backend.calls == ["upload"]


def test_the_time_to_create_counts_from_the_start_of_the_task() -> None:
    backend = Backend()
    assert isinstance(executor(backend).run(submit(create_within_s=60.0), now_s() - 61.0), NotYet)
    assert isinstance(executor(backend).run(submit(create_within_s=60.0), now_s() - 59.0), Submitted)
    assert backend.calls == ["upload", "upload", "create"]


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
    assert isinstance(result, Faulted)
    assert result.error.code is ErrorCode.INTERNAL
    assert "canary" not in result.error.message
    assert "ValueError in submit at" in result.error.message


@pytest.mark.parametrize("final", [True, False])
def test_a_job_that_never_started_is_not_waited_for(final: bool) -> None:
    backend = Backend()
    backend.cost_credits = lambda *_: None  # type: ignore[attr-defined]
    row = job()
    order = Order(step=Step.COLLECT, job=row, remote=remote(row, status=RemoteStatus.CANCELLED), final=final)
    result = executor(backend).run(order)
    assert result.error is not None  # type: ignore[union-attr]
    assert result.error.code is ErrorCode.REMOTE_CANCELLED  # type: ignore[union-attr]
    assert backend.calls == []
