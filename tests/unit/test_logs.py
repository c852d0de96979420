"""The form of a log line, and that no secret gets into one."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator

import pytest

from rythmiq_ray.config import LoggingConfig
from rythmiq_ray.secret import Secret
from rythmiq_ray.telemetry.logs import get_logger, setup

SECRETS = [
    Secret("canary-api-key"),
    Secret("postgresql://rythmiq:canary%2Fpass%20word@db/rythmiq"),
    Secret('canary "quoted"'),
    Secret("host=db password='canary-keyword' dbname=x"),
]


@pytest.fixture
def output(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    stream = io.StringIO()
    setup(LoggingConfig(level="DEBUG", format=getattr(request, "param", "text")), secrets=SECRETS, stream=stream)
    yield stream
    setup(LoggingConfig(level="INFO", format="text"))


def test_an_info_line_has_the_older_workers_form(output: io.StringIO) -> None:
    get_logger("driver").info("Worker ready", uptime="123ms", backend="camber", none=None)
    assert re.fullmatch(
        r"\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] \[WORKER\] Worker ready uptime=123ms backend=camber\n",
        output.getvalue(),
    )


def test_other_levels_name_themselves(output: io.StringIO) -> None:
    get_logger("driver").warning("Dispatch paused", part="store", message="no\nroom", empty="")
    assert output.getvalue().partition("[WORKER] ")[2] == (
        'WARNING Dispatch paused part=store message="no\\nroom" empty=""\n'
    )


@pytest.mark.parametrize("output", ["json"], indirect=True)
def test_json_has_the_fields_at_its_top(output: io.StringIO) -> None:
    get_logger("driver").error("Job failed", jobId=7, message="the field")
    entry = json.loads(output.getvalue())
    assert (entry["level"], entry["message"], entry["jobId"], entry["message_"]) == (
        "ERROR",
        "Job failed",
        7,
        "the field",
    )


@pytest.mark.parametrize("output", ["text", "json"], indirect=True)
def test_no_secret_in_any_spelling(output: io.StringIO) -> None:
    log = get_logger("driver")
    log.info("key canary-api-key", field="canary-api-key")
    log.info("url", url=SECRETS[1].reveal(), password="canary/pass word", encoded="canary%2Fpass%20word")
    log.info("quoted", text='canary "quoted"')
    log.info("keyword", text="canary-keyword")
    try:
        raise ValueError("canary-api-key in an exception")
    except ValueError:
        log.exception("fault")
    assert "canary" not in output.getvalue()
    assert "***" in output.getvalue()


def test_a_secret_prints_as_stars() -> None:
    secret = Secret("canary")
    assert f"{secret} {secret!r} {[secret]} {secret:>10}".count("canary") == 0
