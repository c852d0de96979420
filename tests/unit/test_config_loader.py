"""Layers of configuration: who wins, and what each fault says."""

from __future__ import annotations

import dataclasses
import os
import pickle
import typing
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import ENVIRONMENT

from rythmiq_ray.config import Config
from rythmiq_ray.config_loader import VARIABLES, Loaded, conf_folder, database_url, load, load_catalog
from rythmiq_ray.errors import ConfigurationError


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


def test_the_local_backend_needs_a_folder_and_no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    local = {"EXECUTION_BACKEND": "local", "CAMBER_API_KEY": ""}
    assert faults(**local) == [
        "execution.local_path: required, but no layer sets it:"
        " set EXECUTION_LOCAL_PATH to the folder for the jobs of the local backend"
    ]
    loaded = load(environ={**ENVIRONMENT, **local, "EXECUTION_LOCAL_PATH": "jobs"})
    assert loaded.config.execution.local_path == str(tmp_path / "jobs"), "the same for all nodes"
    assert loaded.config.camber.max_in_flight == len(os.sched_getaffinity(0))
    assert loaded.origin("camber.max_in_flight") == "the CPUs of this machine, for the local backend"
    named = load(["camber.max_in_flight=50"], environ={**ENVIRONMENT, **local, "EXECUTION_LOCAL_PATH": "jobs"})
    assert named.config.camber.max_in_flight == 50
    assert load(environ={**ENVIRONMENT, "EXECUTION_LOCAL_PATH": "jobs"}).config.camber.max_in_flight == "auto"


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
        (["driver.batch_size=0"], {}, ["from 1 to 10,000", "argument driver.batch_size=0"]),
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
        ([], {"CAMBER_API_ENDPOINT": "camber"}, ["not an http(s) URL"]),
        ([], {"CAMBER_API_KEY": "two words"}, ["white space"]),
        (["retry.base_delay_s=700"], {}, ["above retry.max_delay_s"]),
        (["artifacts.prefix=../up"], {}, ["artifacts.prefix"]),
        (["database.statement_timeout_s=16"], {}, ["16 is above 50% of driver.lease_s, 30", "lower it"]),
        (["camber.keep_unstored_s=-1d"], {}, ["camber.keep_unstored_s", "must be a number"]),
        (["camber.catalog.cpu_sizes.XSMALL.cpus=many"], {}, ["cpu_sizes.XSMALL.cpus", "whole number", "'many'"]),
        (["driver.queues=[a, 1]"], {}, ["driver.queues[1]: must be a string, not 1", "argument driver.queues=[a, 1]"]),
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
        ("- a\n- b\n", ["must contain keys and values"]),
        ("driver: {lease: 3}\n", ["driver.lease: no such key", "did you mean driver.lease_s?"]),
        ("driver:\n  lease_s: ${nothing}\n", ["nothing"]),
        ("driver: 3\n", ["driver: must be a section of keys ("]),
        ("driver:\n", ["driver: must be a section of keys ("]),
        ("driver: [1]\n", ["driver: must be a section of keys ("]),
        ("driver: {queues: {a: 1}}\n", ["driver.queues: must be no section of keys ("]),
        ("drivr: {lease_s: 3}\n", ["drivr: no such key", "did you mean driver?"]),
        ("driver:\n  lease_s: ${nothing.at.all}\n", ["driver.lease_s: its interpolation cannot be resolved", "at.all"]),
        ("driver: {lease_s: '${oc.env:RYTHMIQ_NOT_SET}'}\n", ["driver.lease_s: ", "'RYTHMIQ_NOT_SET' not found"]),
        (
            "driver: {lease_s: '${driver.batch_size}', batch_size: '${driver.lease_s}'}\n",
            ["driver.lease_s: its interp"],
        ),
        (
            "camber: {catalog: {cpu_sizes: {HUGE: {cpus: 96}}}}\n",
            ["camber.catalog.cpu_sizes.HUGE.memory_gb: is missing"],
        ),
        ("driver: {lease_s: '${'}\n", ["driver.lease_s: its interpolation is not closed or not valid"]),
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


def loaded_with(tmp_path: Path, text: str, *overrides: str, **environ: str) -> Loaded:
    """A right configuration over which this file is laid."""
    path = tmp_path / "extra.yaml"
    path.write_text(text)
    return load(overrides, environ={**ENVIRONMENT, "RYTHMIQ_CONFIG": str(path), **environ})


def test_an_interpolation_sees_the_keys_of_all_layers(tmp_path: Path) -> None:
    text = "outage: {probe_interval_s: '${driver.lease_s}', probe_max_interval_s: '${camber.read_timeout_s}'}\n"
    loaded = loaded_with(tmp_path, text, "driver.lease_s=17")
    assert loaded.config.outage.probe_interval_s == 17, "of an argument, which is read after the file"
    assert loaded.config.outage.probe_max_interval_s == 30, "of conf/camber.yaml"
    assert loaded.origin("outage.probe_interval_s") == str(tmp_path / "extra.yaml")


def test_a_secret_may_come_from_a_variable_that_a_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SITE_CAMBER_KEY", "canary-of-the-site")
    loaded = loaded_with(tmp_path, "camber: {api_key: '${oc.env:SITE_CAMBER_KEY}'}\n", CAMBER_API_KEY="")
    assert loaded.config.camber.api_key.reveal() == "canary-of-the-site"
    assert loaded.origin("camber.api_key") == str(tmp_path / "extra.yaml")
    assert "canary-of" not in loaded.render() + str(loaded.as_dict()) + repr(loaded.config)


def test_a_secret_that_another_key_names_is_not_shown_either(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        loaded_with(tmp_path, "driver: {lease_s: '${camber.api_key}'}\n")
    assert "driver.lease_s: must be a number" in caught.value.message
    assert "canary" not in caught.value.message


def test_what_stands_around_an_unknown_name_in_a_secret_is_not_shown(tmp_path: Path) -> None:
    for text in ("database: {url: 'postgresql://u:pa${canary}x@h/d'}", "database: {url: 'postgresql://u:pa${canary'}"):
        path = tmp_path / "extra.yaml"
        path.write_text(text)
        lines = faults(RYTHMIQ_CONFIG=str(path), DATABASE_URL="")
        assert any("database.url: its interpolation" in line for line in lines)
        assert "canary" not in "".join(lines)


@settings(max_examples=40, deadline=None)
@given(st.text("\\${}a.:'", max_size=9))
def test_variables_and_arguments_mean_what_they_say(text: str) -> None:
    """A password may hold what would be an interpolation in a file."""
    url = f"postgresql://u:{text}@h/d"
    quoted = text.replace("'", "''")
    loaded = load([f"artifacts.prefix='x{quoted}x'"], environ={**ENVIRONMENT, "DATABASE_URL": url})
    assert loaded.config.database.url.reveal() == url
    assert loaded.config.artifacts.prefix == f"x{text}x"


def test_every_time_may_have_a_unit(tmp_path: Path) -> None:
    config = loaded_with(
        tmp_path,
        "execution: {queue_timeout_s: 2h}\ncamber: {keep_unstored_s: 1w}\n",
        "driver.lease_s=1m",
        CAMBER_EXECUTION_TIMEOUT_MS="1d",
    ).config
    assert (config.execution.queue_timeout_s, config.camber.keep_unstored_s) == (7200, 604_800)
    assert (config.driver.lease_s, config.execution.timeout_ms) == (60, 86_400_000)


def test_the_statement_timeout_follows_the_lease_unless_it_is_set() -> None:
    for overrides, expected in (
        ([], 12),
        (["driver.lease_s=10"], 4),
        (["driver.lease_s=1h"], 30),
        (["driver.lease_s=10", "database.statement_timeout_s=5"], 5),
    ):
        assert load(overrides, environ=ENVIRONMENT).config.database.statement_timeout_s == expected
    assert load(environ=ENVIRONMENT).origin("database.statement_timeout_s") == "two fifths of driver.lease_s"
    (line,) = faults("driver.lease_s=soon")
    assert line.startswith("driver.lease_s: ")


def test_the_defaults_of_what_waits_at_camber() -> None:
    config = load(environ=ENVIRONMENT).config
    assert config.execution.queue_timeout_s is None
    assert (config.camber.max_in_flight, config.camber.keep_unstored_s) == ("auto", 604_800)
    assert load(["camber.max_in_flight=7"], environ=ENVIRONMENT).config.camber.max_in_flight == 7


def test_the_environments_of_conf_are_right() -> None:
    for name in ("local", "dev", "staging", "prod"):
        assert load(environ={**ENVIRONMENT, "SERVICE_ENV": name}).config.service.env == name


def test_a_file_may_name_a_key_whole(tmp_path: Path) -> None:
    loaded = loaded_with(tmp_path, "driver.lease_s: 21\ndriver: {batch_size: 7}\n", "driver.batch_size=8")
    assert (loaded.config.driver.lease_s, loaded.config.driver.batch_size) == (21, 8)


def test_the_configuration_can_neither_be_changed_nor_lost_on_its_way() -> None:
    config = load(environ=ENVIRONMENT).config
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.driver.lease_s = 1.0  # type: ignore[misc]


def test_a_file_that_cannot_be_read_is_said_where_only_the_database_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml: cannot be read"):
        database_url({"RYTHMIQ_CONFIG": str(tmp_path / "nowhere.yaml")})
    assert database_url({"DATABASE_URL": "postgresql://h/d", "PORT": "x"}).reveal() == "postgresql://h/d"


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.sampled_from(["${driver.lease_s}", "${nope}", "${driver}", "${camber.api_key}", "???", "a${b", "2h", "${..x}"])
)
_KEYS = [
    *VARIABLES.values(),
    "driver.queues",
    "driver.lease_s",
    "camber.catalog.cpu_sizes.XSMALL.cpus",
    "camber.routes.me",
]
_NAMES = st.sampled_from(_KEYS).flatmap(lambda key: st.sampled_from([key, *key.split(".")]))
_TREES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(_NAMES | st.text(max_size=3) | st.integers(0, 3) | st.none(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(_TREES)
def test_any_file_is_a_configuration_or_faults(tree: object) -> None:
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(yaml.safe_dump(tree))
        file.flush()
        message = ""
        try:
            load(["driver.batch_size=3"], environ={**ENVIRONMENT, "RYTHMIQ_CONFIG": file.name}).render()
        except ConfigurationError as error:
            message = error.message
    assert "canary" not in message
    assert all(line.isprintable() and ": " in line for line in message.split("\n") if line)
