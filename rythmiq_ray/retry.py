"""Decides whether a job whose attempt failed gets another one, and after which back-off."""

from __future__ import annotations

import random
from collections.abc import Callable

from rythmiq_ray.config import RetryConfig
from rythmiq_ray.errors import ErrorCode, Verdict
from rythmiq_ray.model import ErrorInfo, Job


def retryable(job: Job, error: ErrorInfo, exit_code: int | None) -> bool:
    """Whether another attempt could succeed, however many are left."""
    if error.verdict is not Verdict.RETRY_ATTEMPT:
        return False
    if error.code is ErrorCode.COMMAND_FAILED and job.spec.retry_exit_codes is not None:
        return exit_code in job.spec.retry_exit_codes
    return True


def retry_delay_s(
    job: Job,
    error: ErrorInfo,
    exit_code: int | None,
    config: RetryConfig,
    uniform: Callable[[float, float], float] = random.uniform,
    *,
    free: bool = False,
) -> float | None:
    """Seconds until the next attempt; None = no other attempt.

    ``free``: this attempt never ran and does not count against ``max_attempts``.

    The delay is exponential with full jitter, so that jobs which failed together are not retried together. It is never
    shorter than the server asked for.
    """
    used = job.attempt - job.free_attempts
    if not retryable(job, error, exit_code) or (used >= job.max_attempts and not free):
        return None
    ceiling_s = min(config.max_delay_s, config.base_delay_s * 2.0 ** min(job.attempt - 1, 60))
    return max(uniform(0.0, ceiling_s), error.retry_after_s or 0.0)
