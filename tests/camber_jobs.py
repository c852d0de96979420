"""What the tests of the Camber backend share: a configuration, jobs, and waiting for what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar

import samples

from rythmiq_ray.backends import ExecutionBackend
from rythmiq_ray.config import CamberConfig
from rythmiq_ray.errors import ArtifactCorrupt, InputMissing, NotFound
from rythmiq_ray.model import Job, JobSpec, RemoteJob, RemoteResult, RemoteStatus
from rythmiq_ray.secret import Secret

T = TypeVar("T")
KEY = "0123456789abcdef0123456789abcdef01234567"


def make_config(endpoint: str, **changes: Any) -> CamberConfig:
    quick = {"read_timeout_s": 10, "create_timeout_s": 10, "settle_s": 1, "sync_timeout_s": 5}
    known = {"api_key": Secret(KEY), "endpoint": endpoint, "region": "eu-1", "max_in_flight": 10}
    return replace(samples.config().camber, **{**quick, **known, **changes})


def make_job(command: str = "true", **spec: Any) -> Job:
    return replace(samples.job(), spec=JobSpec(command=command, **spec))


def no_input(uri: str) -> AbstractContextManager[BinaryIO]:
    raise InputMissing(f"there is no {uri}")


def submit(backend: ExecutionBackend, job: Job, **more: Any) -> Job:
    arguments = {"secrets": {}, "timeout_s": 60, "open_input": no_input, **more}
    backend.upload(job, **arguments)
    return replace(job, remote_id=backend.create(job).remote_id)


def eventually(look: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + 30
    while (found := look()) is None:
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
    return found


def watched(
    backend: ExecutionBackend, ids: Collection[int] = (), searched: Collection[str] = (), age_s: float = 60.0
) -> list[RemoteJob]:
    """What one poll of the list tells, of all its pages."""
    return [item for page in backend.watch(ids, searched, age_s) for item in page if isinstance(item, RemoteJob)]


def wait_for(backend: ExecutionBackend, job: Job, *statuses: RemoteStatus) -> RemoteJob:
    """The remote job once it has one of the statuses; none: once it has ended."""
    assert job.remote_id is not None

    def look() -> RemoteJob | None:
        (remote,) = watched(backend, {job.remote_id or 0})
        return remote if (remote.status in statuses if statuses else remote.status.terminal) else None

    return eventually(look)


def finish(backend: ExecutionBackend, job: Job) -> tuple[RemoteJob, RemoteResult]:
    def look() -> RemoteResult | None:
        try:
            return backend.read_result(job)
        except ArtifactCorrupt:  # a part of it
            return None

    return wait_for(backend, job), eventually(look)


def read(backend: ExecutionBackend, job: Job, name: str, start: int = 0) -> bytes:
    with backend.open_file(job, name, start=start) as chunks:
        return b"".join(chunks)


def whole(backend: ExecutionBackend, job: Job, name: str, size: int) -> bytes:
    """A file once it has that size: files come back late and by halves."""

    def look() -> bytes | None:
        try:
            data = read(backend, job, name)
        except NotFound:
            return None
        return data if len(data) == size else None

    return eventually(look)


def log_so_far(backend: ExecutionBackend, job: Job) -> bytes | None:
    try:
        with backend.open_log(job) as chunks:
            return b"".join(chunks) or None
    except NotFound:
        return None
