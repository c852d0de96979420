"""``rythmiq doctor`` names each thing that is wrong; ``--probe`` finds out how a service differs, and harms nothing."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from inline_driver import Run
from other_camber import Dialect, OtherCamber, serving
from samples import API_KEY

from rythmiq_ray import cli, diagnosis
from rythmiq_ray.local.camber import Emulator
from rythmiq_ray.local.postgres import Postgres

COMMANDS = {"command", "cmd", "commands", "run_command", "shell_command", "script", "entrypoint"}
STRUCT = ("mount_dir", "engine_type", "command", "node_size", "num_nodes", "with_gpu", "tags")
DIALECTS = {
    "the contract": Dialect(),
    "another envelope": Dialect(envelope="result"),
    "no envelope": Dialect(envelope=None),
    "other paths": Dialect(
        routes={
            "create": ("POST", "/job/create"),
            "list": ("GET", "/job/list"),
            "get": ("GET", "/job/{job_id}"),
            "logs": ("GET", "/job/{job_id}/logs"),
            "stash_list": ("POST", "/stash/ls"),
            "stash_read": ("GET", "/stash/download"),
            "stash_write": ("POST", "/stash/upload"),
        },
    ),
    "other verbs": Dialect(
        routes={
            "create": ("PUT", "/jobs"),
            "cancel": ("POST", "/jobs/{job_id}/cancel"),
            "stash_write": ("POST", "/stash/file"),
        }
    ),
    "other names": Dialect(
        create={"command": "cmd", "node_size": "size", "mount_dir": "path", "with_gpu": "gpu"},
        job={"job_id": "id", "job_status": "state", "mount_dir": "path", "started_at": "startedAt"},
        paging={"size": "per_page"},
        stash={"path": "uri", "size": "bytes"},
    ),
    "other names, complaints in the service's own order": Dialect(
        create={"command": "script", "engine_type": "engine", "tags": "labels"}, order=STRUCT
    ),
    "complaints in an order with the command last": Dialect(
        create={"command": "entrypoint"}, order=(*(name for name in STRUCT if name != "command"), "command")
    ),
    "all of it": Dialect(
        routes={
            "create": ("POST", "/jobs/submit"),
            "list": ("GET", "/runs"),
            "cancel": ("POST", "/jobs/{job_id}/stop"),
        },
        envelope="payload",
        create={"command": "cmd", "mount_dir": "workdir"},
        job={"job_id": "id", "mount_dir": "workdir"},
        paging={"page": "page_number", "size": "page_size"},
        stash={"path": "file"},
        order=STRUCT,
    ),
}


@pytest.fixture
def environment(
    database_url: str, camber: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    for name, value in {
        "SERVICE_ENV": "prod",
        "DATABASE_URL": database_url,
        "ARTIFACT_STORE_TYPE": "local",
        "ARTIFACT_STORE_PATH": str(tmp_path / "store"),
        "EXECUTION_BACKEND": "camber",
        "CAMBER_API_KEY": API_KEY,
        "CAMBER_API_ENDPOINT": camber.endpoint,
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "store").mkdir()
    return monkeypatch


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit code, and by check what was found."""
    code = cli.run(["doctor", "--json", *arguments])
    output = capsys.readouterr()
    assert API_KEY not in output.out + output.err
    answer = json.loads(output.out)
    assert answer["total"] == len(answer["items"])
    return code, {item["check"]: item for item in answer["items"]}


def test_all_is_well(environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, found = run(capsys)
    assert code == 0
    assert {item["outcome"] for item in found.values()} == {"ok"}, found
    assert found.keys() == {"configuration", "postgres", "clock", "store", "camber", "ray"}
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()], "what was written is gone"


def test_all_that_is_wrong_is_said_at_once(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, empty_database_url: str
) -> None:
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_text("no folder")
    environment.setenv("CAMBER_API_KEY", "f" * 40)
    environment.setenv("DATABASE_URL", empty_database_url)
    environment.setenv("RAY_ADDRESS", "127.0.0.1:1")
    code, found = run(capsys)
    assert code == 1
    assert {name for name, item in found.items() if item["outcome"] == "fault"} == {
        "postgres",
        "store",
        "camber",
        "ray",
    }
    assert "rythmiq migrate" in found["postgres"]["said"]
    assert "RAY_ADDRESS" in found["ray"]["said"]


def test_a_faulty_configuration_is_said_whole_and_what_can_be_checked_is(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.delenv("CAMBER_API_KEY")
    environment.setenv("PORT", "99999999")
    code = cli.run(["doctor"])
    output = capsys.readouterr().out
    assert code == 2
    assert "fault    configuration: camber.api_key: required" in output
    assert "fault    configuration: health.port: " in output
    assert "ok       postgres: " in output


def test_what_hangs_ends_at_the_deadline(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], postgres: Postgres
) -> None:
    environment.setattr(diagnosis.examine, "__kwdefaults__", {"deadline_s": 3.0})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment.setenv("DATABASE_URL", f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/db")
        code, found = run(capsys)
    assert code == 1
    assert found["postgres"]["said"] == "no answer within 3 s"
    assert found["store"]["outcome"] == "ok"


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=DIALECTS)
def test_a_probe_creates_nothing_and_learns_what_lets_jobs_run(
    dialect: Dialect,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    camber: Emulator,
    database_url: str,
    tmp_path: Path,
) -> None:
    for _ in range(3):
        _create_by_hand(camber)
    before = requests.get(f"{camber.origin}/_emulator/state", timeout=10).json()
    service = OtherCamber(camber.origin, dialect)
    layer = tmp_path / "learnt.yaml"
    with serving(service) as endpoint:
        environment.setenv("CAMBER_API_ENDPOINT", endpoint)
        _code, found = run(capsys, "--probe", "--write", str(layer))
        assert not [
            item
            for item in found.values()
            if item["outcome"] in ("unknown", "fault")
            and item["check"].startswith("probe")
            # It is asked where it can harm nothing, and nowhere else.
            and not (item["check"] == "probe stash_remove" and "stash_read" in dialect.routes)
        ], found
        after = requests.get(f"{camber.origin}/_emulator/state", timeout=10).json()
        assert {**after, "jobs": sum(after["jobs"].values())} == {**before, "jobs": 3}
        for body in service.created:
            assert not isinstance(body.get("command"), str), "no request could have created a job"
        assert layer.exists() == (dialect not in (Dialect(), Dialect(envelope=None))), found
        driver = Run(database_url, tmp_path / "store", endpoint, layer=layer if layer.exists() else None)
        try:
            driver.put(3, "echo done; echo more > out.txt")
            driver.until(driver.all_succeeded_at_once, "jobs run with the layer that was written")
            code, again = run(capsys) if not layer.exists() else _with(environment, layer, capsys)
            assert code == 0, again
        finally:
            driver.close()


def _with(
    environment: pytest.MonkeyPatch, layer: Path, capsys: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, dict[str, Any]]]:
    environment.setenv("RYTHMIQ_CONFIG", str(layer))
    return run(capsys, "--probe")


def _create_by_hand(camber: Emulator) -> None:
    path = f"by-hand/{threading.get_ident()}"
    body = {"command": "true", "engine_type": "BASE", "node_size": "XSMALL", "mount_dir": path}
    headers = {"Authorization": f"Bearer {API_KEY}"}
    requests.post(f"{camber.endpoint}/jobs", json=body, headers=headers, timeout=10).raise_for_status()


def test_a_service_that_takes_a_create_without_a_command_is_a_loud_fault(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], camber: Emulator
) -> None:
    class Careless(OtherCamber):
        def answer(self, method: str, target: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
            if method == "POST" and target.endswith("/jobs"):
                return 200, {"Content-Type": "application/json"}, b'{"code":0,"data":{"job_id":4711}}'
            return super().answer(method, target, headers, body)

    with serving(Careless(camber.origin, Dialect())) as endpoint:
        environment.setenv("CAMBER_API_ENDPOINT", endpoint)
        code, found = run(capsys, "--probe")
    assert code == 1
    assert found["probe"]["outcome"] == "fault"
    assert "4711" in found["probe"]["said"]


def test_a_probe_says_what_it_could_not_find(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], camber: Emulator
) -> None:
    dialect = Dialect(routes={"cancel": ("PATCH", "/never/heard/of/{job_id}")}, create={"command": "do_this"})
    with serving(OtherCamber(camber.origin, dialect)) as endpoint:
        environment.setenv("CAMBER_API_ENDPOINT", endpoint)
        code, found = run(capsys, "--probe")
    assert code == 1
    assert found["probe cancel"]["outcome"] == "unknown"
    assert "marker file" in found["probe cancel"]["said"]
    assert found["probe create"]["outcome"] == "fault"
    assert "no field is known for command" in found["probe create"]["said"]
