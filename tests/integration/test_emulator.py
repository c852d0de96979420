"""The Camber emulator over real HTTP: the contract, the ways of the real service, and misbehaviour on demand."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import psutil
import pytest
import requests

from rythmiq_ray.local.camber import Cancelling, Emulator, Faults, ListShape, Outage, Settings
from rythmiq_ray.local.camber.faults import OPERATIONS

KEY = "0123456789abcdef0123456789abcdef01234567"
OTHER_KEY = "f" * 40
TIMEOUT_S = 20.0
FAST = Settings(owner="ada", queue_wait_s=(0.0, 0.0), sync_delay_s=0.0, sync_step_s=0.0)

T = TypeVar("T")


def until(look: Callable[[], T | None], what: str) -> T:
    """Waits for something that is neither None nor false."""
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"never: {what}")


class Caller:
    """Speaks to an emulator as its only user, and knows nothing but the contract."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {KEY}"

    def call(self, method: str, path: str, **arguments: Any) -> requests.Response:
        return self.session.request(method, f"{self.emulator.endpoint}{path}", timeout=TIMEOUT_S, **arguments)

    def look(self, what: str) -> Any:
        """What the emulator shows about itself."""
        return requests.get(f"{self.emulator.origin}/_emulator/{what}", timeout=TIMEOUT_S).json()

    def data(self, method: str, path: str, **arguments: Any) -> Any:
        answer = self.call(method, path, **arguments)
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert (body["code"], body["message"]) == (0, "ok")
        return body["data"]

    def uri(self, path: str) -> str:
        return f"stash://{self.emulator.owner}/{path}"

    def put(self, path: str, data: Any) -> None:
        self.data("PUT", "/stash/file", params={"path": self.uri(path)}, data=data)

    def read(self, path: str, **headers: str) -> requests.Response:
        return self.call("GET", "/stash/file", params={"path": self.uri(path)}, headers=headers)

    def has(self, path: str, content: bytes) -> bool:
        answer = self.read(path)
        return answer.status_code == 200 and answer.content == content

    def remove(self, path: str, **params: str) -> requests.Response:
        return self.call("DELETE", "/stash/file", params={"path": self.uri(path), **params})

    def files(self, path: str, *, recursive: bool = True) -> dict[str, tuple[str, int]]:
        files = self.data("POST", "/stash", json={"path": self.uri(path), "recursive": recursive})["files"]
        return {item["path"]: (item["type"], item["size"]) for item in files}

    def create(self, command: str, mount_dir: str, **fields: Any) -> int:
        job = self.data("POST", "/jobs", json=body(command, mount_dir, **fields))
        assert job["job_status"] == "SUBMITTED"
        return int(job["job_id"])

    def job(self, job_id: int) -> dict[str, Any]:
        job: dict[str, Any] = self.data("GET", f"/jobs/{job_id}")
        return job

    def status(self, job_id: int) -> str:
        return str(self.job(job_id)["job_status"])

    def wait(self, job_id: int, *statuses: str) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["job_status"] in statuses else None

        return until(reached, f"job {job_id} {' or '.join(statuses)}")

    def log(self, job_id: int) -> str:
        answer = self.call("GET", f"/jobs/{job_id}/logs")
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"].startswith("text/plain")
        return answer.text


def body(command: str, mount_dir: str, **fields: Any) -> dict[str, Any]:
    return {
        "command": command,
        "engine_type": "BASE",
        "node_size": "XSMALL",
        "num_nodes": 1,
        "with_gpu": False,
        "mount_dir": mount_dir,
        "tags": ["t"],
        **fields,
    }


@contextlib.contextmanager
def running(root: Path, settings: Settings = FAST, faults: Faults | None = None) -> Iterator[Caller]:
    with Emulator(root, api_key=KEY, settings=settings, faults=faults) as emulator:
        yield Caller(emulator)


@pytest.fixture
def camber(tmp_path: Path) -> Iterator[Caller]:
    with running(tmp_path / "state") as caller:
        yield caller


@pytest.fixture
def instant(tmp_path: Path) -> Iterator[Caller]:
    with running(tmp_path / "state", Settings.instant()) as caller:
        yield caller


def journal(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "journal.jsonl").read_text().splitlines()]


def text_of(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def gone(pid: int) -> bool:
    """A process has ended, whether or not somebody has asked for its exit code."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# Transport


def test_says_who_the_key_belongs_to(camber: Caller) -> None:
    me = camber.data("GET", "/me")
    assert me["username"] == "ada"
    assert {"user_id", "email", "teams"} <= me.keys()
    assert me["teams"][0].keys() == {"team_id", "team_name", "is_default", "is_selected"}


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        (None, "unauthorized - invalid token"),
        ("Bearer short", "unauthorized - invalid token"),
        (f"Basic {KEY}", "unauthorized - invalid token"),
        (f"Bearer {OTHER_KEY}", "user not found"),
    ],
)
def test_refuses_any_other_key(camber: Caller, authorization: str | None, message: str) -> None:
    answer = requests.get(
        f"{camber.emulator.endpoint}/jobs", headers={"Authorization": authorization}, timeout=TIMEOUT_S
    )
    assert (answer.status_code, answer.json()) == (401, {"message": message})


def test_listens_on_loopback_only(camber: Caller) -> None:
    listening = [c.laddr for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert [address.ip for address in listening if address.port == camber.emulator.port] == ["127.0.0.1"]


@pytest.mark.parametrize("path", ["/credits", "/me/", "/jobs/", "/jobs//logs", "/jobs/1/2", "/jobs/1/logs/", ""])
def test_unknown_routes_are_not_found(camber: Caller, path: str) -> None:
    answer = camber.call("GET", path)
    assert (answer.status_code, answer.json()) == (404, {"message": "Not Found"})
    assert camber.look("calls")["counts"] == {}


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/me"), ("DELETE", "/jobs"), ("POST", "/jobs/1"), ("PUT", "/jobs/1/logs")]
)
def test_a_method_that_a_route_does_not_have_is_named_as_such(camber: Caller, method: str, path: str) -> None:
    answer = camber.call(method, path)
    assert (answer.status_code, answer.json()) == (405, {"message": "Method Not Allowed"})
    assert camber.look("calls")["counts"] == {}


def test_a_caller_may_wait_before_it_sends_the_body(camber: Caller) -> None:
    head = (
        f"PUT /api/cli/stash/file?path={camber.uri('a/b')} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", camber.emulator.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(head.encode())
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"late")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
    assert camber.has("a/b", b"late")


def test_a_body_that_is_too_large_is_refused(camber: Caller) -> None:
    answer = camber.call("POST", "/jobs", json=body("x" * 3_000_000, ""))
    assert [detail["field"] for detail in answer.json()["error_details"]] == ["MountDir"]
    assert camber.call("POST", "/jobs", json=body("x" * 17_000_000, "a/1")).status_code == 413


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command": {}}, "Unmarshal type error: expected=string, got=object, field=command"),
        ({"num_nodes": "1"}, "Unmarshal type error: expected=int, got=string, field=num_nodes"),
        ({"num_nodes": 1.5}, "Unmarshal type error: expected=int, got=number 1.5, field=num_nodes"),
        ({"with_gpu": {}}, "Unmarshal type error: expected=bool, got=object, field=with_gpu"),
        ({"tags": "x"}, "Unmarshal type error: expected=[]string, got=string, field=tags"),
        ({"tags": [1]}, "Unmarshal type error: expected=string, got=number, field=tags"),
    ],
)
def test_names_a_wrong_json_type_without_a_code(camber: Caller, change: dict[str, Any], message: str) -> None:
    answer = camber.call("POST", "/jobs", json={**body("true", "a/1"), **change})
    assert (answer.status_code, answer.json()) == (400, {"message": message})
    assert camber.data("GET", "/jobs")["total"] == 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"command": ""}, "Command"),
        ({"mount_dir": ""}, "MountDir"),
        ({"mount_dir": "/a"}, "MountDir"),
        ({"mount_dir": "a/../../b"}, "MountDir"),
        ({"mount_dir": "a//b"}, "MountDir"),
        ({"mount_dir": "a/\0"}, "MountDir"),
        ({"mount_dir": "a/\ud800"}, "MountDir"),
        ({"mount_dir": "a/" + "x" * 256}, "MountDir"),
        ({"node_size": "HUGE"}, "NodeSize"),
        ({"node_size": "XMICRO", "with_gpu": True}, "NodeSize"),
        ({"engine_type": "BASIC"}, "EngineType"),
        ({"num_nodes": 0}, "NumNodes"),
    ],
)
def test_validation_names_the_field(camber: Caller, change: dict[str, Any], field: str) -> None:
    answer = camber.call("POST", "/jobs", json={**body("true", "a/1"), **change})
    assert answer.status_code == 400
    refusal = answer.json()
    assert (refusal["code"], refusal["message"]) == (1, "Validation failed")
    assert [detail["field"] for detail in refusal["error_details"]] == [field]
    assert refusal["error_details"][0]["key"] == f"CreateJobRequest.{field}"
    assert refusal["error_details"][0]["message"]


def test_ignores_unknown_fields(camber: Caller) -> None:
    camber.wait(camber.create("true", "a/1", retries=9), "COMPLETED")


def test_a_body_that_is_no_json_is_refused(camber: Caller) -> None:
    answer = camber.call("POST", "/jobs", data=b"{")
    assert answer.status_code == 400
    assert answer.json()["message"].startswith("Syntax error")


def test_a_missing_job_is_500_with_code_2(camber: Caller) -> None:
    for method, path in (("GET", "/jobs/77"), ("GET", "/jobs/77/logs"), ("DELETE", "/jobs/77")):
        answer = camber.call(method, path)
        assert (answer.status_code, answer.json()["code"]) == (500, 2)
    assert camber.call("GET", "/jobs/x").json()["code"] == 1


# The life of a job


def test_runs_a_command_in_a_copy_of_its_path(camber: Caller) -> None:
    camber.put("a/1/run.sh", b"cat data/in.txt; echo made > made.txt; test -x run.sh && echo executable; exit 0")
    camber.put("a/1/data/in.txt", b"hello\n")
    job_id = camber.create("bash run.sh", "a/1/")
    job = camber.wait(job_id, "COMPLETED")
    assert camber.log(job_id) == "hello\n"
    until(lambda: camber.has("a/1/made.txt", b"made\n"), "made.txt in the stash")
    assert job["mount_dir"] == "a/1/"
    for time_of in ("created_at", "started_at", "finished_at"):
        time.strptime(job[time_of], "%Y-%m-%dT%H:%M:%SZ")
    sent = {"command": "bash run.sh", "engine_type": "BASE", "node_size": "XSMALL", "tags": ["t"], "with_gpu": False}
    assert {key: job[key] for key in sent} == sent


def test_a_nonzero_exit_is_failed_without_a_number_and_its_files_come_back(camber: Caller, tmp_path: Path) -> None:
    job_id = camber.create("echo no >&2; echo half > half.txt; exit 3", "a/1")
    job = camber.wait(job_id, "FAILED")
    assert "exit_code" not in job
    assert camber.log(job_id) == "no\n"
    until(lambda: camber.has("a/1/half.txt", b"half\n"), "files of a failed job")
    ended = [line for line in journal(tmp_path / "state") if line["event"] == "end"]
    assert [(line["job_id"], line["status"], line["exit_code"]) for line in ended] == [(job_id, "FAILED", 3)]


def test_a_job_that_dies_of_a_signal_is_failed(camber: Caller, tmp_path: Path) -> None:
    camber.wait(camber.create("kill -9 $$", "a/1"), "FAILED")
    assert journal(tmp_path / "state")[-1]["exit_code"] == 137


def test_a_command_that_no_process_can_be_given_fails(camber: Caller) -> None:
    job_id = camber.create("true " + "x" * 200_000, "a/1")
    camber.wait(job_id, "FAILED")
    assert "cannot run the command" in camber.log(job_id) or "too long" in camber.log(job_id)


def test_a_command_with_a_nul_fails(camber: Caller) -> None:
    job_id = camber.create("echo begun\0", "a/1")
    camber.wait(job_id, "FAILED")
    assert camber.log(job_id) == "cannot run the command: it holds a NUL\n"


def test_the_environment_of_a_job_is_its_own(camber: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "seen")
    job_id = camber.create("env | cut -d= -f1", "a/1")
    camber.wait(job_id, "COMPLETED")
    assert set(camber.log(job_id).split()) - {"PWD", "SHLVL", "_", "OLDPWD"} == {"PATH", "HOME", "LANG"}


def test_a_job_has_a_process_group_no_input_and_default_signals(camber: Caller) -> None:
    command = "cat; ps -o pgid= -p $$ | tr -d ' '; echo $$; yes | head -1; echo ${PIPESTATUS[0]}"
    job_id = camber.create(command, "a/1")
    camber.wait(job_id, "COMPLETED")
    group, pid, yes, killed_by_pipe = camber.log(job_id).split()
    assert (group, yes, killed_by_pipe) == (pid, "y", "141")


def test_nothing_of_a_job_is_left_when_it_ends(camber: Caller) -> None:
    job_id = camber.create("sleep 300 & echo $!; setsid sleep 300 & echo $!; exit 0", "a/1")
    camber.wait(job_id, "COMPLETED")
    for pid in camber.log(job_id).split():
        assert gone(int(pid))


def test_nothing_is_left_either_when_a_job_kills_its_container(camber: Caller, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    job_id = camber.create(f"cd /; setsid sleep 300 & echo $! > {shlex.quote(str(pids))}; kill -9 $PPID; wait", "a/1")
    camber.wait(job_id, "FAILED")
    assert gone(int(pids.read_text()))


def test_more_jobs_than_may_run_stay_pending(tmp_path: Path) -> None:
    settings = Settings(owner="ada", queue_wait_s=(0.0, 0.0), max_running=2, sync_delay_s=0.0)
    with running(tmp_path, settings) as camber:
        jobs = [camber.create("until test -e go; do sleep 0.02; done", f"a/{n}") for n in range(3)]
        for job_id in jobs[:2]:
            camber.wait(job_id, "RUNNING")
        assert camber.status(jobs[2]) == "PENDING"
        assert camber.look("state")["jobs"]["RUNNING"] == 2
        camber.put("a/0/go", b"")
        camber.wait(jobs[0], "COMPLETED")
        camber.wait(jobs[2], "RUNNING")
        assert camber.status(jobs[1]) == "RUNNING"


def test_a_job_waits_in_the_queue(tmp_path: Path) -> None:
    with running(tmp_path, Settings(queue_wait_s=(60.0, 90.0))) as camber:
        job_id = camber.create("true", "a/1")
        assert camber.status(job_id) == "PENDING"
        answer = camber.call("GET", f"/jobs/{job_id}/logs")
        assert (answer.status_code, answer.json()["code"]) == (400, 2)
        assert answer.json()["message"] == "job status is not completed, failed, or running"


def test_the_log_of_a_running_job_grows(camber: Caller) -> None:
    job_id = camber.create("echo one; until test -e go; do sleep 0.02; done; echo two", "a/1")
    camber.wait(job_id, "RUNNING")
    until(lambda: camber.log(job_id) == "one\n", "the first line")
    camber.put("a/1/go", b"")
    camber.wait(job_id, "COMPLETED")
    assert camber.log(job_id) == "one\ntwo\n"


def test_what_is_put_into_the_path_reaches_the_running_job(camber: Caller) -> None:
    job_id = camber.create("until test -e sub/marker; do sleep 0.02; done; cat sub/marker", "a/1")
    camber.wait(job_id, "RUNNING")
    camber.put("a/10/sub/marker", b"of another\n")
    camber.put("a/1/sub/marker", b"stop\n")
    camber.wait(job_id, "COMPLETED")
    assert camber.log(job_id) == "stop\n"


def test_files_come_back_late_and_short_at_first(tmp_path: Path) -> None:
    late = Settings(owner="ada", queue_wait_s=(0.0, 0.0), sync_delay_s=300.0)
    short = Settings(owner="ada", queue_wait_s=(0.0, 0.0), sync_delay_s=0.0, sync_step_s=300.0)
    with running(tmp_path, late) as camber:
        job_id = camber.create("head -c 100000 /dev/zero > big", "a/1")
        camber.wait(job_id, "COMPLETED")
        assert camber.read("a/1/big").status_code == 400
    with running(tmp_path, short) as camber:
        until(lambda: camber.files("").get("a/1/big") == ("file", 50_000), "the first half is listed")
        assert len(camber.read("a/1/big").content) == 50_000
    with running(tmp_path, FAST) as camber:
        until(lambda: camber.files("a/1/").get("a/1/big") == ("file", 100_000), "the whole file")


def test_only_what_the_job_wrote_comes_back(camber: Caller) -> None:
    camber.put("a/1/input", b"old")
    camber.put("a/1/changed", b"old")
    camber.put("a/1/deleted", b"old")
    command = (
        "echo new > changed; rm deleted; mkdir -p sub; echo x > 'sub/with space é'; ln -s /etc/passwd link; "
        "echo started > started; until test -e go; do sleep 0.02; done"
    )
    job_id = camber.create(command, "a/1")
    camber.wait(job_id, "RUNNING")
    camber.put("a/1/input", b"newer, from outside")
    camber.put("a/1/go", b"")
    camber.wait(job_id, "COMPLETED")
    until(lambda: not list((camber.emulator.root / "work").iterdir()), "the sync is over")
    files = camber.files("a/1")
    assert files.keys() == {
        "a/1/input",
        "a/1/changed",
        "a/1/deleted",
        "a/1/go",
        "a/1/started",
        "a/1/sub",
        "a/1/sub/with space é",
    }
    assert camber.has("a/1/changed", b"new\n")
    assert camber.has("a/1/input", b"newer, from outside")


# Cancel


def test_cancel_kills_all_processes_has_no_log_and_files_come_back(camber: Caller, tmp_path: Path) -> None:
    command = "(setsid sleep 300 & echo $! > pid); echo half > half.txt; mv pid pids; sleep 300"
    job_id = camber.create(command, "a/1")
    camber.wait(job_id, "RUNNING")
    pids = camber.emulator.root / "work" / str(job_id) / "workdir" / "pids"
    pid = int(until(lambda: text_of(pids), "the job's process"))
    assert not gone(pid)
    assert camber.data("DELETE", f"/jobs/{job_id}")["job_status"] == "CANCELLED"
    until(lambda: gone(pid), "the job's process is gone")
    assert camber.call("GET", f"/jobs/{job_id}/logs").json()["code"] == 2
    until(lambda: camber.has("a/1/half.txt", b"half\n"), "files of a cancelled job")
    assert camber.status(job_id) == "CANCELLED"
    assert [line["event"] for line in journal(tmp_path / "state")] == ["create", "start", "cancel"]


def test_cancel_of_a_pending_job_means_that_it_never_runs(tmp_path: Path) -> None:
    settings = Settings(queue_wait_s=(0.0, 0.0), max_running=1)
    with running(tmp_path, settings) as camber:
        first = camber.create("until test -e go; do sleep 0.02; done", "a/1")
        second, third = camber.create("true", "a/2"), camber.create("true", "a/3")
        camber.data("DELETE", f"/jobs/{second}")
        camber.put("a/1/go", b"")
        camber.wait(third, "COMPLETED")
        assert camber.job(second)["started_at"] is None
        assert camber.status(second) == "CANCELLED"
        assert camber.data("DELETE", f"/jobs/{first}")["job_status"] == "COMPLETED"


# List


def test_pages_are_newest_first_with_a_total(instant: Caller) -> None:
    ids = [instant.create("true", f"a/{n}") for n in range(5)]
    assert ids == sorted(ids)
    pages = [instant.data("GET", "/jobs", params={"page": page, "size": 2}) for page in (1, 2, 3, 4)]
    assert [[job["job_id"] for job in page["jobs"]] for page in pages] == [ids[:2:-1], ids[2:0:-1], ids[:1], []]
    assert {page["total"] for page in pages} == {5}
    assert {job["mount_dir"] for job in pages[0]["jobs"]} == {"a/4", "a/3"}
    assert instant.call("GET", "/jobs", params={"page": 0}).json()["code"] == 1


# Stash


def test_stash_writes_reads_ranges_and_lists(camber: Caller) -> None:
    data = os.urandom(300_000)
    camber.put("deep/down/ü b.bin", data)
    camber.put("deep/small", b"12345")
    camber.put("deep/empty", b"")
    whole = camber.read("deep/down/ü b.bin")
    assert (whole.content, whole.headers["Content-Length"]) == (data, "300000")
    part = camber.read("deep/down/ü b.bin", Range="bytes=100000-")
    assert (part.status_code, part.content) == (206, data[100_000:])
    assert part.headers["Content-Range"] == "bytes 100000-299999/300000"
    assert camber.read("deep/small", Range="bytes=1-2").content == b"23"
    assert camber.read("deep/small", Range="bytes=-2").content == b"45"
    assert camber.read("deep/small", Range="bytes=5-").status_code == 416
    assert camber.read("deep/empty").content == b""
    assert camber.files("deep/", recursive=False) == {
        "deep/down": ("directory", 0),
        "deep/small": ("file", 5),
        "deep/empty": ("file", 0),
    }
    assert camber.files("")["deep/down/ü b.bin"] == ("file", 300_000)
    assert camber.look("state")["stash_files"] == 3


def test_stash_writes_are_streamed_without_a_length(camber: Caller) -> None:
    camber.put("a/streamed", iter([b"x" * 70_000, b"y" * 3_000_000]))
    assert sha256(camber.read("a/streamed").content).digest() == sha256(b"x" * 70_000 + b"y" * 3_000_000).digest()


@pytest.mark.parametrize("length", [1000, 1_000_000])
def test_an_upload_that_breaks_off_leaves_nothing(camber: Caller, length: int) -> None:
    head = (
        f"PUT /api/cli/stash/file?path={camber.uri('a/broken')} HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {length}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", camber.emulator.port)) as connection:
        connection.sendall(head.encode() + b"z" * 500)
        until(lambda: camber.look("calls")["counts"].get("stash_write"), "the upload has begun")
    camber.put("a/whole", b"")
    until(lambda: not list((camber.emulator.root / "unfinished").iterdir()), "the unfinished file is gone")
    assert camber.files("a/").keys() == {"a/whole"}


def test_removes_recursively_and_again(camber: Caller, tmp_path: Path) -> None:
    camber.put("a/1/x/y", b"1")
    camber.put("a/2", b"2")
    assert camber.remove("a/1").json()["code"] == 2
    assert camber.remove("a/1/", recursive="true").status_code == 200
    assert camber.remove("a/1/", recursive="true").status_code == 200
    assert camber.files("").keys() == {"a", "a/2"}
    assert camber.remove("a/2").status_code == 200
    assert camber.files("") == {}
    assert [line["path"] for line in journal(tmp_path / "state")] == ["a/1", "a/1", "a/2"]


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a/./b", "a\0b"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_stash_paths_stay_below_the_root(camber: Caller, method: str, path: str) -> None:
    answer = camber.call(method, "/stash/file", params={"path": camber.uri(path)})
    assert (answer.status_code, answer.json()["code"]) == (400, 1)


def test_the_stash_of_others_what_is_missing_and_what_is_in_the_way(camber: Caller) -> None:
    camber.put("a/file", b"")
    for answer in (
        camber.call("GET", "/stash/file", params={"path": "stash://eve/a/file"}),
        camber.call("POST", "/stash", json={"path": "stash://eve/"}),
        camber.read("a/none"),
        camber.read("a"),
        camber.call("POST", "/stash", json={"path": camber.uri("none")}),
        camber.call("PUT", "/stash/file", params={"path": camber.uri("a/file/below")}, data=b"x"),
        camber.call("PUT", "/stash/file", params={"path": camber.uri("a")}, data=b"x"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (400, 2)
    assert camber.call("DELETE", "/stash/file", params={"path": camber.uri("")}).json()["code"] == 1
    assert camber.call("GET", "/stash/file").json()["code"] == 1
    assert camber.call("POST", "/stash", json={"path": {}}).json() == {
        "message": "Unmarshal type error: expected=string, got=object, field=path"
    }


# Restart


def test_state_survives_a_restart(tmp_path: Path) -> None:
    long = Settings(owner="ada", queue_wait_s=(0.0, 0.0), max_running=2, sync_delay_s=0.0)
    with running(tmp_path, long) as camber:
        camber.put("b/kept", b"kept")
        done = camber.create("echo done; exit 4", "a/1", tags=["x", "y"])
        before = camber.wait(done, "FAILED")
        killed = camber.create("echo half > half; echo $$ > pid; mv pid pids; sleep 300", "a/2")
        blocker = camber.create("sleep 300", "a/3")
        waiting = camber.create("cat in", "a/4")
        camber.put("a/4/in", b"went on\n")
        pids = tmp_path / "work" / str(killed) / "workdir" / "pids"
        pid = int(until(lambda: text_of(pids), "the job runs"))
        camber.wait(blocker, "RUNNING")
        port = camber.emulator.port
    assert gone(pid)
    assert list((tmp_path / "unfinished").iterdir()) == []
    with running(tmp_path, long) as camber:
        assert camber.job(done) == before
        assert camber.log(done) == "done\n"
        assert camber.status(killed) == camber.status(blocker) == "FAILED"
        camber.wait(waiting, "COMPLETED")
        assert camber.log(waiting) == "went on\n"
        until(lambda: camber.has("a/2/half", b"half\n"), "late files of the killed job")
        assert camber.has("b/kept", b"kept")
        assert camber.create("true", "a/5") == waiting + 1
    assert port
    ends = {line["job_id"]: line["exit_code"] for line in journal(tmp_path) if line["event"] == "end"}
    assert (ends[done], ends[killed]) == (4, None)


def test_a_torn_line_of_the_journal_is_dropped(tmp_path: Path) -> None:
    with running(tmp_path, Settings.instant()) as camber:
        job_id = camber.create("true", "a/1")
        camber.wait(job_id, "COMPLETED")
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"event":"crea')
    with running(tmp_path, Settings.instant()) as camber:
        assert camber.create("true", "a/2") == job_id + 1
    assert all(line["event"] for line in journal(tmp_path))


def test_one_emulator_for_a_folder(tmp_path: Path) -> None:
    with running(tmp_path), pytest.raises(FileExistsError, match="another emulator"):
        Emulator(tmp_path, api_key=KEY).start()


@pytest.mark.parametrize("name", ["trash/mine", "unfinished/mine", "work/7/mine", "stash/mine", "logs/mine"])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(FileExistsError, match="no emulator's folder"):
        Emulator(tmp_path, api_key=KEY).start()
    assert mine.read_text() == "precious"


def test_no_other_user_of_the_machine_reads_the_state(tmp_path: Path) -> None:
    root = tmp_path / "state"
    root.mkdir(mode=0o755)
    with running(root) as camber:
        camber.put("a/1/env", b"secret")
        places = (root / "stash" / "ada", root / "work", root / "logs", root / "unfinished", root / "trash")
        for place in (*places, root / "journal.jsonl"):
            assert place.stat().st_mode & 0o077 == 0, place


@contextlib.contextmanager
def standalone(root: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The emulator as a process, and the endpoint that it prints."""
    key = root.parent / "key"
    key.write_text(f"{KEY}\n")
    command = [sys.executable, "-m", "rythmiq_ray.local.camber", "--root", str(root), "--api-key-file", str(key)]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:")
        yield process, line.split()[-1]
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)


def test_a_process_of_its_own_does_the_same_on_its_faster_loop(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    with standalone(tmp_path / "state", "--owner", "ada", "--queue-wait", "0", "--sync-delay", "0") as (_, endpoint):
        camber = Caller(SimpleNamespace(endpoint=endpoint, owner="ada"))  # type: ignore[arg-type]
        camber.put("a/1/in", data)
        camber.wait(camber.create("cp in out; exit 3", "a/1"), "FAILED")
        until(lambda: camber.has("a/1/out", data), "the file that the job wrote")
        killed = camber.create("sleep 300", "a/2")
        camber.wait(killed, "RUNNING")
        assert camber.data("DELETE", f"/jobs/{killed}")["job_status"] == "CANCELLED"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_jobs_die_with_the_process(tmp_path: Path, end: signal.Signals) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    with standalone(tmp_path / "state", "--queue-wait", "0") as (process, endpoint):
        pids = tmp_path / "pids"
        command = f"setsid sleep 300 & echo $$ $! > {shlex.quote(str(pids))}; wait"
        requests.post(f"{endpoint}/jobs", json=body(command, "a/1"), headers=headers, timeout=TIMEOUT_S)
        until(lambda: pids.exists() and len(pids.read_text().split()) == 2, "the job runs")
        process.send_signal(end)
        assert process.wait(TIMEOUT_S) == (-signal.SIGKILL if end is signal.SIGKILL else 0)
        assert process.stderr is not None
        assert process.stderr.read() == ""
        for pid in pids.read_text().split():
            until(lambda pid=pid: gone(int(pid)), "the job's processes are gone")  # type: ignore[misc]


def test_the_next_start_kills_what_a_killed_container_left(tmp_path: Path) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    root = tmp_path / "state"
    with standalone(root, "--queue-wait", "0") as (process, endpoint):
        pids = tmp_path / "pids"
        command = f"cd /; setsid sleep 300 & echo $PPID $! > {shlex.quote(str(pids))}; wait"
        requests.post(f"{endpoint}/jobs", json=body(command, "a/1"), headers=headers, timeout=TIMEOUT_S)
        until(lambda: pids.exists() and len(pids.read_text().split()) == 2, "the job runs")
        container, left = map(int, pids.read_text().split())
        process.send_signal(signal.SIGSTOP)
        os.kill(container, signal.SIGKILL)
        process.kill()
        process.wait(TIMEOUT_S)
        assert not gone(left)
    with running(root) as camber:
        assert camber.data("GET", "/jobs")["jobs"][0]["job_status"] == "FAILED"
        until(lambda: gone(left), "the left-over process is gone")


def test_bad_arguments_are_said_in_a_line(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    for arguments in (
        ["--root", str(tmp_path / "r"), "--api-key-file", str(tmp_path / "none")],
        ["--root", str(tmp_path / "r"), "--api-key-file", str(key), "--faults", '{"lost_answer": 2, "nope": 1}'],
    ):
        command = [sys.executable, "-m", "rythmiq_ray.local.camber", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert ended.returncode == 2
        assert "Traceback" not in ended.stderr
        assert KEY not in ended.stderr


# What benchmarks read


def test_counts_calls_and_shows_times_of_jobs(instant: Caller) -> None:
    before = time.time()
    job_id = instant.create("true", "a/1")
    instant.wait(job_id, "COMPLETED")
    instant.put("b", b"")
    calls = instant.look("calls")
    assert calls["counts"]["create"] == calls["counts"]["stash_write"] == 1
    assert len(calls["times"]["get"]) == calls["counts"]["get"] >= 1
    (job,) = instant.look("jobs")["jobs"]
    assert (job["job_id"], job["mount_dir"], job["status"]) == (job_id, "a/1", "COMPLETED")
    assert before <= job["arrived_at"] <= job["started_at"] <= job["ended_at"] <= time.time()
    assert instant.look("state")["jobs"]["COMPLETED"] == 1
    requests.delete(f"{instant.emulator.origin}/_emulator/calls", timeout=TIMEOUT_S)
    assert instant.look("calls") == {"counts": {}, "times": {}}


def test_every_operation_is_counted_by_the_name_that_faults_know_it_by(instant: Caller) -> None:
    job_id = instant.create("true", "a/1")
    instant.wait(job_id, "COMPLETED")
    instant.log(job_id)
    instant.put("b", b"")
    instant.read("b")
    instant.files("")
    instant.remove("b")
    for method, path in (("GET", "/me"), ("GET", "/jobs"), ("DELETE", f"/jobs/{job_id}")):
        instant.data(method, path)
    assert instant.look("calls")["counts"].keys() == set(OPERATIONS)


def test_an_instant_job_leaves_what_the_wrapper_leaves(instant: Caller) -> None:
    job_id = instant.create("bash run.sh", "a/1")
    job = instant.wait(job_id, "COMPLETED")
    result = instant.read("a/1/rythmiq-result.json").json()
    log = instant.read("a/1/rythmiq-log.txt").content
    assert result["log"] == {"name": "rythmiq-log.txt", "bytes": len(log), "sha256": sha256(log).hexdigest()}
    assert (result["version"], result["exit_code"], result["reason"]) == (1, 0, "exited")
    assert (result["outputs"], result["unmatched"]) == ([], [])
    assert (result["started_at"], result["finished_at"]) == (job["started_at"], job["finished_at"])
    assert instant.log(job_id).encode() == log


def test_instant_jobs_run_for_their_time_all_at_once_and_can_be_cancelled(tmp_path: Path) -> None:
    with running(tmp_path, Settings.instant(300.0, 600.0)) as camber:
        jobs = [camber.create("true", f"a/{n}") for n in range(20)]
        for job_id in jobs:
            camber.wait(job_id, "RUNNING")
        camber.data("DELETE", f"/jobs/{jobs[0]}")
        assert camber.status(jobs[0]) == "CANCELLED"
        assert camber.look("state")["jobs"]["RUNNING"] == 19
    with running(tmp_path, Settings.instant(0.05, 0.1)) as camber:
        assert camber.look("state")["jobs"]["FAILED"] == 19
        camber.wait(camber.create("true", "b"), "COMPLETED")


# Misbehaviour


def lost(camber: Caller, mount_dir: str) -> bool:
    """Whether a create got no answer."""
    try:
        return camber.call("POST", "/jobs", json=body("true", mount_dir)).status_code == 0
    except requests.ConnectionError:
        return True


def test_a_lost_answer_leaves_a_job(instant: Caller, tmp_path: Path) -> None:
    instant.emulator.faults = Faults(lost_answer=1.0, at_most=1)
    assert lost(instant, "a/1")
    assert not lost(instant, "a/2")
    assert [job["mount_dir"] for job in instant.data("GET", "/jobs")["jobs"]] == ["a/2", "a/1"]
    creates = [line for line in journal(tmp_path / "state") if line["event"] == "create"]
    assert [(line["mount_dir"], line["answer"], line["withheld"], line["command"]) for line in creates] == [
        ("a/1", "lost", True, "true"),
        ("a/2", "sent", False, "true"),
    ]


def test_a_ghost_create_leaves_a_job(instant: Caller) -> None:
    instant.emulator.faults = Faults(ghost_create=1.0)
    answer = instant.call("POST", "/jobs", json=body("true", "a/1"))
    assert (answer.status_code, answer.json()["code"]) == (500, 2)
    assert [job["mount_dir"] for job in instant.data("GET", "/jobs")["jobs"]] == ["a/1"]


def test_draws_repeat_with_the_seed(instant: Caller) -> None:
    def run(seed: int) -> list[bool]:
        instant.emulator.faults = Faults(seed=seed, lost_answer=0.5, too_many=0.0)
        return [lost(instant, f"{seed}/{n}") for n in range(24)]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_429_and_5xx_come_before_anything_is_done(instant: Caller) -> None:
    instant.emulator.faults = Faults(too_many=1.0, retry_after_s=7, operations=("create",))
    answer = instant.call("POST", "/jobs", json=body("true", "a/1"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "7")
    assert instant.data("GET", "/jobs")["total"] == 0
    instant.emulator.faults = Faults(server_error=1.0)
    seen = {instant.call("POST", "/jobs", json=body("true", "a/1")).status_code for _ in range(30)}
    assert seen == {500, 502, 503, 504}
    instant.emulator.faults = Faults()
    assert instant.data("GET", "/jobs")["total"] == 0


@pytest.mark.parametrize("size", [1000, 5_000_000])
def test_cut_downloads(camber: Caller, size: int) -> None:
    camber.put("a/1", b"x" * size)
    job_id = camber.create("seq 100", "b")
    camber.wait(job_id, "COMPLETED")
    camber.emulator.faults = Faults(cut_download=1.0)
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        camber.read("a/1")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        camber.log(job_id)
    camber.emulator.faults = Faults()
    assert len(camber.read("a/1").content) == size


def test_the_service_cancels_pending_jobs_by_itself(camber: Caller, tmp_path: Path) -> None:
    camber.emulator.faults = Faults(self_cancel=1.0, at_most=1)
    job_id = camber.create("true", "a/1")
    camber.wait(job_id, "CANCELLED")
    camber.wait(camber.create("true", "a/2"), "COMPLETED")
    assert [line.get("by") for line in journal(tmp_path / "state") if line["event"] == "cancel"] == ["service"]


def test_shapes_of_the_list(instant: Caller) -> None:
    job_id = instant.create("true", "a/1")
    instant.emulator.faults = Faults(list_shape=ListShape.BARE)
    bare = instant.call("GET", "/jobs").json()
    assert bare.keys() == {"jobs"}
    instant.emulator.faults = Faults(list_shape=ListShape.OTHER_KEY)
    other = instant.data("GET", "/jobs")
    assert [job["job_id"] for job in other["items"]] == [job["job_id"] for job in bare["jobs"]] == [job_id]


def test_a_list_that_lags(instant: Caller) -> None:
    instant.emulator.faults = Faults(list_lag_s=0.5)
    job_id = instant.create("true", "a/1")
    assert instant.data("GET", "/jobs") == {"jobs": [], "total": 0}
    assert instant.job(job_id)["job_id"] == job_id
    until(lambda: instant.data("GET", "/jobs")["total"] == 1, "the job is listed")


def test_an_outage_with_503(instant: Caller) -> None:
    instant.emulator.faults = Faults(outage=Outage.UNAVAILABLE, outage_s=0.3)
    assert instant.call("GET", "/me").status_code == 503
    until(lambda: instant.call("GET", "/me").status_code == 200, "the end of the outage")


def refused(camber: Caller) -> bool:
    try:
        camber.call("GET", "/me")
    except requests.ConnectionError:
        return True
    return False


def test_an_outage_that_refuses_connections(instant: Caller) -> None:
    instant.data("GET", "/me")
    instant.emulator.faults = Faults(outage=Outage.REFUSED, outage_s=0.3)
    assert refused(instant)
    until(lambda: not refused(instant), "the end of the outage")
    instant.emulator.faults = Faults(outage=Outage.REFUSED)
    assert refused(instant)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", instant.emulator.port), timeout=TIMEOUT_S)
    instant.emulator.faults = Faults()
    assert not refused(instant)


def test_a_refused_key(instant: Caller) -> None:
    instant.emulator.faults = Faults(refuse_key=True)
    answer = instant.call("GET", "/me")
    assert (answer.status_code, answer.json()) == (401, {"message": "unauthorized - invalid token"})


@pytest.mark.parametrize(
    ("cancel", "status", "message"),
    [(Cancelling.NOT_FOUND, 404, "Not Found"), (Cancelling.METHOD_NOT_ALLOWED, 405, "Method Not Allowed")],
)
def test_a_service_that_cannot_cancel(camber: Caller, cancel: Cancelling, status: int, message: str) -> None:
    camber.emulator.faults = Faults(cancel=cancel)
    job_id = camber.create("until test -e go; do sleep 0.02; done", "a/1")
    answer = camber.call("DELETE", f"/jobs/{job_id}")
    assert (answer.status_code, answer.json()) == (status, {"message": message})
    camber.put("a/1/go", b"")
    camber.wait(job_id, "COMPLETED")


def test_latency_holds_back_an_answer_and_blocks_nobody(instant: Caller) -> None:
    instant.emulator.faults = Faults(create_latency_s=300.0)
    given_up = threading.Event()

    def create() -> None:
        with contextlib.suppress(requests.Timeout):
            requests.post(
                f"{instant.emulator.endpoint}/jobs",
                json=body("true", "a/1"),
                headers={"Authorization": f"Bearer {KEY}"},
                timeout=0.3,
            )
            return
        given_up.set()

    thread = threading.Thread(target=create)
    thread.start()
    assert instant.data("GET", "/jobs")["total"] == 0
    thread.join(TIMEOUT_S)
    assert given_up.is_set()


def test_faults_are_set_and_read_over_http(instant: Caller) -> None:
    def put(faults: Mapping[str, Any]) -> requests.Response:
        return requests.put(f"{instant.emulator.origin}/_emulator/faults", json=faults, timeout=TIMEOUT_S)

    given = {"seed": 3, "list_shape": "bare", "operations": ["create"], "outage_s": None, "at_most": 2, "too_many": 1}
    assert put(given).status_code == 200
    assert instant.look("faults") == {**Faults().as_dict(), **given}
    assert put({}).json() == instant.look("faults") == {**Faults().as_dict(), "operations": []}
    answer = put({"lost_answer": "x", "nope": 1, "list_shape": "round", "refuse_key": 1})
    assert answer.status_code == 400
    for name in ("lost_answer", "nope", "list_shape", "refuse_key"):
        assert name in answer.json()["message"]
    assert "lost_answer" in put({"lost_answer": 1.5}).json()["message"]
    assert "'creat'" in put({"operations": ["create", "creat"]}).json()["message"]
