"""Collects one job in a separate process, as a Ray worker does, and prints how long it took and its memory."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import psutil

from rythmiq_ray.assembly import ExecutorFactory
from rythmiq_ray.config_loader import load
from rythmiq_ray.model import Collected, Job, JobSpec, JobState, Phase, RemoteJob, RemoteStatus, Step, StepRequest


def job_of(job_id: UUID) -> Job:
    """An attempt that has ended."""
    now = datetime.now(UTC)
    return Job(
        job_id=job_id,
        user_id=None,
        queue="default",
        state=JobState.RUNNING,
        phase=Phase.COLLECTING,
        priority=0,
        spec=JobSpec(command="true"),
        attempt=1,
        max_attempts=3,
        next_visible_at=now,
        unique_key=None,
        driver_id=job_id,
        remote_id=1,
        remote_status=RemoteStatus.COMPLETED,
        remote_path=f"rythmiq/{job_id}/1",
        cancel_requested_at=None,
        exit_code=None,
        error_code=None,
        error_message=None,
        retryable=None,
        artifact_uri=None,
        cost_credits=None,
        created_at=now,
        updated_at=now,
        started_at=now,
        finished_at=None,
    )


def main() -> None:
    warm, measured = (UUID(argument) for argument in sys.argv[1:])
    config = load(environ=os.environ).config
    executor = ExecutorFactory.of(config).build()

    def collect(job_id: UUID) -> int:
        job = job_of(job_id)
        now = datetime.now(UTC)
        remote = RemoteJob(
            remote_id=1, status=RemoteStatus.COMPLETED, path=job.remote_path or "", created_at=now, started_at=now
        )
        order = StepRequest(step=Step.COLLECT, job=job, remote=replace(remote), alone=True)
        result = executor.run(order)
        if not isinstance(result, Collected):
            raise RuntimeError(f"not collected: {result}")
        return len(result.artifacts)

    collect(warm)
    process = psutil.Process()
    idle = process.memory_info().rss
    peak = idle
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    files = collect(measured)
    seconds = time.perf_counter() - begun
    over.set()
    watcher.join()
    sys.stdout.write(json.dumps({"seconds": seconds, "files": files, "memory_mb": (peak - idle) / 1e6}) + "\n")


if __name__ == "__main__":
    main()
