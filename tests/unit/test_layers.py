"""Layers of configuration: who wins, and what each fault says."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from samples import ENVIRONMENT

from rythmiq_ray.config import Config
from rythmiq_ray.errors import ConfigurationError
from rythmiq_ray.layers import VARIABLES, conf_folder, database_url, load, load_catalog


def faults(*overrides: str, **environ: str) -> list[str]:
    """Each fault's line of a configuration that is right but for these; an empty value unsets a variable."""
    with pytest.raises(ConfigurationError) as caught:
        load(overrides, environ={**ENVIRONMENT, **environ})
    return caught.value.message.splitlines()


def test_the_vendors_program_is_looked_for_where_it_is_to_be_used(tmp_path: Path) -> None:
    missing = {**ENVIRONMENT, "CAMBER_TRANSPORT": "cli"}
    with pytest.raises(ConfigurationError) as refused:
        load(["camber.program=/nowhere/camber"], environ=missing)
    assert "camber.program: there is no program '/nowhere/camber' (argument" in refused.value.message
    assert load(["camber.program=/nowhere/camber"], environ=ENVIRONMENT).config.camber.transport == "http"
    program = tmp_path / "camber"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert load([f"camber.program={program}"], environ=missing).config.camber.transport == "cli"
    with pytest.raises(ConfigurationError, match=r"camber\.transport: must be one of http, cli"):
        load(environ={**ENVIRONMENT, "CAMBER_TRANSPORT": "grpc"})


def test_later_layers_win(tmp_path: Path) -> None:
    extra = tmp_path / "extra.yaml"
    extra.write_text("driver: {lease_s: 11, batch_size: 12}\nlogging: {level: ERROR}\n")
    environ = {**ENVIRONMENT, "SERVICE_ENV": "dev", "RYTHMIQ_CONFIG": str(extra), "LOG_LEVEL": "warning"}
    loaded = load(["driver.batch_size=13"], environ=environ)
    assert (loaded.config.driver.lease_s, loaded.origin("driver.lease_s")) == (11, str(extra))
    assert (loaded.config.driver.batch_size, loaded.origin("driver.batch_size")) == (
        13,
        "argument driver.batch_size=13",
    )
    assert (loaded.config.logging.level, loaded.origin("logging.level")) == (
        "WARNING",
        "environment variable LOG_LEVEL",
    )
    assert loaded.origin("retry.max_delay_s") == "conf/dev.yaml"
    assert loaded.origin("camber.page_size") == "conf/camber.yaml"
    assert loaded.origin("driver.poll_interval_s") == "conf/default.yaml"


def test_the_embedded_default_stands_below_real_variables() -> None:
    defaults = {**ENVIRONMENT, "ARTIFACT_STORE_PATH": "/embedded"}
    environ = {"SERVICE_ENV": "local", "ARTIFACT_STORE_PATH": "/real"}
    loaded = load(environ=environ, defaults=defaults)
    assert loaded.config.artifacts.path == "/real"
    assert loaded.origin("camber.api_key") == "embedded default"


def test_an_empty_variable_is_unset() -> None:
    assert load(environ={**ENVIRONMENT, "PORT": "", "RYTHMIQ_CONFIG": ""}).config.health.port is None


def test_numbers_come_from_text() -> None:
    config = load(environ={**ENVIRONMENT, "PORT": "3001", "CAMBER_EXECUTION_TIMEOUT_MS": "60000"}).config
    assert (config.health.port, config.execution.timeout_ms) == (3001, 60000)


def test_every_fault_is_reported_at_once() -> None:
    found = faults(
        "driver.lease=3", "nonsense", "ray.num_cpus=x", PORT="99999", EXECUTION_BACKEND="", CAMBER_API_KEY=""
    )
    assert len(found) == 6
    assert {line.split(":")[0] for line in found} == {
        "driver.lease",
        "'nonsense'",
        "ray.num_cpus",
        "health.port",
        "execution.backend",
        "camber.api_key",
    }


@pytest.mark.parametrize(
    ("overrides", "environ", "expected"),
    [
        (["driver.lease=3"], {}, ["no such key", "argument", "did you mean driver.lease_s?"]),
        (["driver.batch_size=0"], {}, ["from 1 to 10000", "argument driver.batch_size=0"]),
        (["driver.poll_interval_s=soon"], {}, ["must be a number", "'soon'"]),
        (["driver.batch_size=1.5"], {}, ["whole number"]),
        (["driver.batch_size=true"], {}, ["whole number"]),
        (["camber.max_in_flight=many"], {}, ["must be auto or a whole number", "'many'"]),
        (["camber.max_in_flight=0"], {}, ["must be auto or a whole number from 1"]),
        ([], {"PORT": "http"}, ["whole number", "environment variable PORT", "set PORT"]),
        ([], {"ARTIFACT_STORE_TYPE": "gcs"}, ["one of s3, local", "environment variable ARTIFACT_STORE_TYPE"]),
        ([], {"ARTIFACT_STORE_TYPE": "s3"}, ["artifacts.bucket", "set ARTIFACT_STORE_BUCKET"]),
        ([], {"ARTIFACT_STORE_PATH": ""}, ["artifacts.path", "set ARTIFACT_STORE_PATH"]),
        ([], {"SERVICE_ENV": "production"}, ["service.env", "local, dev, staging, prod"]),
        ([], {"DATABASE_URL": "mysql://root@db/x"}, ["database.url", "postgresql://"]),
        ([], {"CAMBER_API_ENDPOINT": "https://api.camber.cloud/v1"}, ["placeholder", "api-v2.cambercloud.com"]),
        ([], {"CAMBER_API_ENDPOINT": "http://camber.example"}, ["plain http", "use https"]),
        ([], {"CAMBER_API_ENDPOINT": "camber"}, ["no http(s) URL"]),
        ([], {"CAMBER_API_KEY": "two words"}, ["white space"]),
        (["retry.base_delay_s=700"], {}, ["above retry.max_delay_s"]),
        (["artifacts.prefix=../up"], {}, ["artifacts.prefix"]),
    ],
)
def test_a_fault_names_key_layer_and_remedy(overrides: list[str], environ: dict[str, str], expected: list[str]) -> None:
    (line,) = faults(*overrides, **environ)
    for words in expected:
        assert words in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("driver:\n  lease_s: 3\n lost: 4\n", ["line 3", "not valid YAML"]),
        ("- a\n- b\n", ["must hold keys and values"]),
        ("driver: {lease: 3}\n", ["driver.lease: no such key", "did you mean driver.lease_s?"]),
        ("driver:\n  lease_s: ${nothing}\n", ["nothing"]),
        ("driver: 3\n", ["driver: no such key"]),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: str, expected: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    lines = faults(RYTHMIQ_CONFIG=str(path))
    assert any(str(path) in line for line in lines)
    for words in expected:
        assert any(words in line for line in lines)


def test_a_missing_file_is_named() -> None:
    (line,) = faults(RYTHMIQ_CONFIG="/nowhere/at/all.yaml")
    assert "/nowhere/at/all.yaml" in line
    assert "RYTHMIQ_CONFIG" in line


def test_plain_http_is_for_this_machine() -> None:
    for endpoint in ("http://127.0.0.1:80/api/cli", "http://localhost/api"):
        assert load(environ={**ENVIRONMENT, "CAMBER_API_ENDPOINT": endpoint}).config.camber.endpoint == endpoint


def test_secrets_are_shown_nowhere() -> None:
    loaded = load(["camber.api_key=canary-argument"], environ=ENVIRONMENT)
    lines = faults("camber.api_key=canary argument", DATABASE_URL="canary://x:canary@y/z")
    for text in (loaded.render(), str(loaded.as_dict()), repr(loaded.config), "\n".join(lines)):
        assert "canary" not in text
    assert "***" in loaded.render()


def test_what_is_rendered_is_the_tree() -> None:
    loaded = load(environ=ENVIRONMENT)
    tree = yaml.safe_load(loaded.render())
    assert tree["driver"]["lease_s"] == loaded.config.driver.lease_s
    assert tree["camber"]["routes"]["list"] == {"method": "GET", "path": "/jobs"}
    assert tree["camber"]["api_key"] == "***"


def test_the_files_hold_every_key_of_the_schema_and_no_other() -> None:
    values = load(environ=ENVIRONMENT).values
    for name in ("local", "dev", "staging", "prod"):
        content = yaml.safe_load((conf_folder() / f"{name}.yaml").read_text())
        assert set(_keys(content)) <= set(values), f"conf/{name}.yaml has a key that no other file has"
    schema = {key for key in _schema(Config) if not key.startswith(("camber.routes", "camber.catalog"))}
    assert {key for key in values if not key.startswith(("camber.routes", "camber.catalog"))} == schema
    assert set(VARIABLES.values()) <= schema


def test_the_catalog_and_the_database_need_nothing_else() -> None:
    assert "BASE" in load_catalog().engines
    assert load_catalog().gpu_sizes["XSMALL"].gpus == 1
    assert database_url({"DATABASE_URL": "postgresql://h/d"}).reveal() == "postgresql://h/d"
    with pytest.raises(ConfigurationError, match="DATABASE_URL"):
        database_url({})


def _keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    return [
        key
        for name, value in tree.items()
        for key in (_keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"])
    ]


def _schema(kind: type[Any], prefix: str = "") -> list[str]:
    return [
        key
        for name, hint in typing.get_type_hints(kind).items()
        for key in (_schema(hint, f"{prefix}{name}.") if dataclasses.is_dataclass(hint) else [f"{prefix}{name}"])
    ]
