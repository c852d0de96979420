"""The circuit breaker: what it takes for an outage, and when it asks again."""

from __future__ import annotations

import samples

from rythmiq_ray.driver.breaker import Breaker
from rythmiq_ray.errors import ErrorCode
from rythmiq_ray.model import ErrorInfo

YEAR_S = 31_536_000.0


def test_an_answer_that_asks_for_a_year_holds_up_the_others_no_longer_than_a_probe() -> None:
    config = samples.config().outage
    asks = ErrorInfo(code=ErrorCode.BACKEND_BUSY, message="", retry_after_s=YEAR_S)
    breaker = Breaker(config)
    breaker.trip(asks, 100.0)
    assert breaker.due_at == 100.0 + config.probe_max_interval_s
    breaker.probe_sent()
    assert not breaker.probe_ended(asks, 200.0)
    assert breaker.due_at == 200.0 + config.probe_max_interval_s
    assert breaker.probe_ended(None, 300.0)
    assert not breaker.open


def test_a_shorter_time_that_a_service_asks_for_is_kept() -> None:
    breaker = Breaker(samples.config().outage)
    breaker.trip(ErrorInfo(code=ErrorCode.BACKEND_BUSY, message="", retry_after_s=7.0), 100.0)
    assert breaker.due_at == 107.0
