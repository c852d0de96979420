"""What is wrong with DATABASE_URL is said, and no part of it shown."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rythmiq_ray.config_loader import load
from rythmiq_ray.errors import ConfigurationError, DatabaseRefused
from rythmiq_ray.queue.connection import connect
from rythmiq_ray.queue.dsn import check_dsn, refused
from rythmiq_ray.secret import Secret

FAULTS = {
    "postgresql://yusa:pa%ss-w0rd@hobst/dabas": "a % that is followed by no code: percent-encode",
    "postgresql://yusa:pa/ss-w0rd@hobst/dabas": "an @ or / in user or password: percent-encode",
    "postgresql://yusa:pa@ss-w0rd@hobst/dabas": "an @ or / in user or password: percent-encode",
    "postgresql://yusa:pa%00ss@hobst/dabas": "percent-encode",
    "postgresql://yusa:ss-w0rd@ho bst/dabas": "white space in the host",
    " postgresql://yusa:ss-w0rd@hobst/dabas": "white space around it",
    "postgresql://yusa:ss-w0rd@hobst/dabas\n": "white space around it",
    "postgresql://yusa:ss-w0rd@hobst:54ee/dabas": "a port that is not a number",
    "postgresql://yusa:ss-w0rd@hobst:99999/dabas": "a port that is not a number",
    "postgresql://yusa:ss-w0rd@hobst/dabas?sslmod=require": "did you mean sslmode?",
    "postgresql://yusa:ss-w0rd@hobst/dabas?zzz=ss": "an option that libpq does not know",
    "mysql://yusa:ss-w0rd@hobst/dabas": "must start with postgresql://",
    "postgresql+psycopg2://yusa:ss-w0rd@hobst/dabas": "as SQLAlchemy does",
    "yusa:ss-w0rd@hobst/dabas": "must start with postgresql://",
    "dabas": "must start with postgresql://",
    "host=hobst passwrd=ss-w0rd": "did you mean password?",
    "host=hobst password='ss-w0rd": "cannot be read",
    "postgresql://yusa:ss-w0rd@hobst/da\0bas": "",
}
SOUND = (
    "postgresql://u:p%25ss@h/d",
    "postgresql://u:p:w#x?y@h:5432/d?sslmode=require",
    "postgres://u@h1:1,h2:2/d",
    "postgresql:///d?host=/tmp/x",
    "postgresql://u:p@[::1]:5432/d",
    "postgresql://postgres@/postgres?host=%2Ftmp%2Fx",
    "host=h dbname=d password='a b'",
    "service=prod",
    "postgresql:///?service=prod",
    "postgresql://u:p@h/my%40db",
)


@pytest.mark.parametrize("url", FAULTS)
def test_a_fault_is_named_without_any_part_of_the_value(url: str) -> None:
    fault = check_dsn(Secret(url))
    assert fault is not None
    assert FAULTS[url] in fault
    for piece in re.findall(r"yusa|ss-w0rd|hobst|dabas|54ee|99999|zzz|passwrd", url):
        assert piece not in fault
    with pytest.raises(ConfigurationError) as caught:
        load(environ={"DATABASE_URL": url, "SERVICE_ENV": "prod"})
    (line,) = (line for line in caught.value.message.splitlines() if line.startswith("database.url"))
    assert line == f"database.url: {fault} (environment variable DATABASE_URL): set DATABASE_URL or database.url"


@pytest.mark.parametrize("url", SOUND)
def test_what_libpq_takes_as_it_is_meant_is_no_fault(url: str) -> None:
    assert check_dsn(Secret(url)) is None


@pytest.mark.parametrize("option", ["--print-config", "--drain"])
def test_the_driver_says_it_in_one_line_with_exit_2(option: str, tmp_path: Path) -> None:
    config = tmp_path / "more.yaml"
    config.write_text("database:\n  url: postgresql://u:ss${w0rd}@h/d\n")
    environ = {
        "ARTIFACT_STORE_TYPE": "local",
        "ARTIFACT_STORE_PATH": "/x",
        "EXECUTION_BACKEND": "camber",
        "CAMBER_API_KEY": "k",
        "LOG_LEVEL": "DEBUG",
    }
    for changes, words in (
        ({"DATABASE_URL": "postgresql://u:pa/ss-w0rd@h/d"}, "database.url: has an @ or / in user or password"),
        ({"RYTHMIQ_CONFIG": str(config)}, "database.url: its interpolation cannot be resolved"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "rythmiq_ray.driver", option],
            env={**environ, **changes, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        lines = done.stderr.splitlines()
        assert words in lines[0]
        assert len([line for line in lines if "required" not in line]) == 1, done.stderr
        assert done.stdout == ""
        assert "w0rd" not in done.stderr


def test_words_about_the_url_are_told_from_words_about_the_server() -> None:
    assert refused('FATAL:  password authentication failed for user "u"')
    assert refused('database "x" does not exist')
    assert refused('definition of service "prod" not found')
    assert refused('invalid sslmode value: "reqire"')
    assert not refused("FATAL:  the database system is starting up")
    assert not refused("connection to server failed: Connection refused")
    assert not refused("FATAL:  sorry, too many clients already")


def test_a_value_that_libpq_refuses_is_the_configurations_fault() -> None:
    with pytest.raises(DatabaseRefused, match="invalid sslmode value"):
        connect(Secret("postgresql://u:ss-w0rd@127.0.0.1:1/d?sslmode=reqire"))
