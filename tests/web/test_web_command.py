"""`rythmiq web` as a process: how it starts, what it refuses, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import requests

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "from rythmiq_ray.cli import main; main()", "web"]


def environment(url: str, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DATABASE_URL": url, "PYTHONUNBUFFERED": "1", **more}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_prints_its_address_and_ends_in_order(database_url: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--port", "0"],
        env=environment(database_url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        session = requests.Session()
        assert session.get(address, timeout=30).status_code == 200
        with session.get(address.partition("?")[0] + "events", stream=True, timeout=30) as stream:
            assert next(stream.iter_lines()) == b"retry: 3000"
            process.send_signal(number)
            out, said = process.communicate(timeout=10)
        assert process.returncode == 0
        assert out == ""
        token = address.rpartition("=")[2]
        assert token not in said
        assert "Traceback" not in said
        assert "ERROR" not in said
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "--insecure"),
        (["--tls-cert", "README.md"], "go together"),
        (["--root-path", "x"], "one slash"),
        (["--host", "192.0.2.7", "--insecure"], "cannot be had"),
        (["--port", "99999"], "--port"),
    ],
)
def test_what_does_not_fit_is_refused(database_url: str, arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(database_url),
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr


def test_a_database_that_does_not_fit_is_said_at_once(empty_database_url: str, postgres: object) -> None:
    for url, more, said in (
        (empty_database_url, {}, "rythmiq migrate"),
        ("postgresql://nobody@127.0.0.1:9/x", {}, "cannot be reached"),
        (empty_database_url, {"RYTHMIQ_WEB_TOKEN": "short"}, "fewer than 16"),
    ):
        done = subprocess.run(
            [*COMMAND, "--port", "0"],
            env=environment(url, **more),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode in (1, 2)
        assert said in done.stderr
        assert done.stdout == ""
