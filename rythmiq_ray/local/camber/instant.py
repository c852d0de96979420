"""Jobs without a process, for benchmarks: they leave only the files that a command's wrapper would have left."""

from __future__ import annotations

from hashlib import sha256

from rythmiq_ray.local.camber.answers import encode
from rythmiq_ray.local.camber.ledger import Job, timestamp
from rythmiq_ray.local.camber.stash import Stash

RESULT_NAME = "rythmiq-result.json"
LOG_NAME = "rythmiq-log.txt"


def log_of(job: Job) -> bytes:
    return f"job {job.job_id} ended at once\n".encode()


def leave_result(stash: Stash, job: Job) -> None:
    """Writes the log and the result of an ended job to its path. Raises OSError."""
    log = log_of(job)
    result = {
        "version": 1,
        "exit_code": 0,
        "reason": "exited",
        "started_at": timestamp(job.started or job.created),
        "finished_at": timestamp(job.ended or job.created),
        "log": {"name": LOG_NAME, "bytes": len(log), "sha256": sha256(log).hexdigest()},
        "outputs": [],
        "unmatched": [],
    }
    stash.write(f"{job.path}/{LOG_NAME}", log)
    stash.write(f"{job.path}/{RESULT_NAME}", encode(result))
