"""When a job gets another attempt, and how long after."""

from __future__ import annotations

import pytest
from samples import job

from rythmiq_ray.config import RetryConfig
from rythmiq_ray.errors import RULES, ErrorCode, Verdict
from rythmiq_ray.model import ErrorInfo, JobSpec
from rythmiq_ray.retry import retry_delay_s, retryable

CONFIG = RetryConfig(base_delay_s=5.0, max_delay_s=600.0)
FAILED = ErrorInfo(code=ErrorCode.COMMAND_FAILED, message="exit code 1")


def longest(_low: float, high: float) -> float:
    return high


def test_the_ceiling_doubles_up_to_a_limit() -> None:
    delays = [
        retry_delay_s(job(attempt=attempt, max_attempts=100), FAILED, 1, CONFIG, longest)
        for attempt in (1, 2, 3, 8, 90)
    ]
    assert delays == [5.0, 10.0, 20.0, 600.0, 600.0]


def test_the_jitter_is_full() -> None:
    drawn: list[tuple[float, float]] = []

    def note(low: float, high: float) -> float:
        drawn.append((low, high))
        return low

    assert retry_delay_s(job(attempt=3, max_attempts=9), FAILED, 1, CONFIG, note) == 0.0
    assert drawn == [(0.0, 20.0)]


def test_the_server_may_ask_for_longer() -> None:
    error = ErrorInfo(code=ErrorCode.REMOTE_KILLED, message="", retry_after_s=99.0)
    assert retry_delay_s(job(), error, None, CONFIG, longest) == 99.0


def test_the_last_attempt_is_the_last() -> None:
    assert retry_delay_s(job(attempt=3, max_attempts=3), FAILED, 1, CONFIG) is None


@pytest.mark.parametrize(
    ("codes", "exit_code", "again"), [(None, 1, True), ((4, 5), 5, True), ((4,), 1, False), ((), 1, False)]
)
def test_exit_codes_can_be_chosen(codes: tuple[int, ...] | None, exit_code: int, again: bool) -> None:
    row = job(spec=JobSpec(command="x", retry_exit_codes=codes))
    assert retryable(row, FAILED, exit_code) is again


@pytest.mark.parametrize("code", list(ErrorCode))
def test_every_code_has_a_rule_that_is_kept(code: ErrorCode) -> None:
    error = ErrorInfo(code=code, message="")
    assert retryable(job(), error, 1) is (RULES[code].verdict is Verdict.RETRY_ATTEMPT)
    assert RULES[code].meaning
    assert RULES[code].remedy
