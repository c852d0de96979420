"""The key in a file: how it is found, what is said of a bad one, and that a change is seen and never logged."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from samples import ENVIRONMENT

from rythmiq_ray.backends.camber.key import ApiKey
from rythmiq_ray.config import LoggingConfig
from rythmiq_ray.config_loader import load
from rythmiq_ray.errors import ConfigurationError
from rythmiq_ray.secret import Secret
from rythmiq_ray.telemetry.logs import get_logger, mask_also, setup

WITHOUT_KEY = {name: value for name, value in ENVIRONMENT.items() if name != "CAMBER_API_KEY"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text("canary-first\n")
    return file


def test_the_key_comes_from_the_file(file: Path) -> None:
    loaded = load(environ={**WITHOUT_KEY, "CAMBER_API_KEY_FILE": str(file)})
    assert loaded.config.camber.api_key == Secret("canary-first")
    assert loaded.origin("camber.api_key") == f"file {file}"
    assert "canary-first" not in loaded.render()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file or directory"),
        (b" \n", "holds no secret"),
        (b"canary\xff", "something else than a secret"),
        (b"canary-" * 20_000, "something else than a secret"),
        (b"canary key", "white space"),
    ],
)
def test_a_bad_file_is_one_line_that_shows_nothing_of_it(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        load(environ={**WITHOUT_KEY, "CAMBER_API_KEY_FILE": str(file)})
    (line,) = caught.value.message.splitlines()
    assert words in line
    assert str(file) in line
    assert "canary" not in line


def test_two_keys_are_refused(file: Path) -> None:
    with pytest.raises(ConfigurationError, match="keep one of them"):
        load(environ={**ENVIRONMENT, "CAMBER_API_KEY_FILE": str(file)})


def test_a_change_is_seen_and_told_once_and_what_is_no_key_is_passed_over(file: Path) -> None:
    told: list[Secret] = []
    config = load(environ={**WITHOUT_KEY, "CAMBER_API_KEY_FILE": str(file)}).config.camber
    key = ApiKey(config, on_change=told.append)
    assert key() == Secret("canary-first")
    for useless in ("", "two words", "naïve"):
        file.write_text(useless)
        assert key() == Secret("canary-first")
    file.unlink()
    assert key() == Secret("canary-first")
    file.write_text("canary-second")
    assert [key(), key()] == [Secret("canary-second")] * 2
    assert told == [Secret("canary-second")]


def test_a_new_key_is_masked_like_the_first() -> None:
    stream = io.StringIO()
    setup(LoggingConfig(level="INFO", format="text"), secrets=[Secret("canary-first")], stream=stream)
    mask_also(Secret("canary-second"))
    get_logger("driver").info("canary-first canary-second")
    setup(LoggingConfig(level="INFO", format="text"))
    assert stream.getvalue().endswith("*** ***\n")
