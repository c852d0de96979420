"""Camber through the vendor's program alone: its oddities, what it is given, and what is left of it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from camber_jobs import KEY, eventually, make_config, make_job, submit, wait_for
from vendor_program import VendorProgram

from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.backends.camber.program import CamberProgram
from rythmiq_ray.backends.camber.spool import PREFIX
from rythmiq_ray.errors import (
    BackendBusy,
    BackendRefusedKey,
    BackendUnavailable,
    CreateUncertain,
    NotFound,
    RythmiqError,
    SpecRejected,
)
from rythmiq_ray.local.camber import Emulator, Faults, Settings
from rythmiq_ray.model import RemoteStatus
from rythmiq_ray.secret import Secret

BODY = {"command": "bash run.sh", "engine_type": "BASE", "node_size": "XSMALL", "num_nodes": 1, "with_gpu": False}


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    settings = Settings(queue_wait_s=(0.0, 0.02), sync_delay_s=0.02, sync_step_s=0.005, max_running=2)
    with Emulator(tmp_path_factory.mktemp("camber"), api_key=KEY, settings=settings) as emulator:
        yield emulator


@pytest.fixture
def program(tmp_path: Path) -> VendorProgram:
    return VendorProgram.install(tmp_path / "vendor", records=True)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's temporary folder of this test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def config(emulator: Emulator, program: VendorProgram) -> Any:
    return make_config(emulator.endpoint, transport="cli", program=str(program.path), call_attempts=2)


@pytest.fixture
def client(config: Any, emulator: Emulator) -> Iterator[CamberProgram]:
    client = CamberProgram(config, backoff_s=0.01)
    client.me()
    yield client
    client.close()
    emulator.faults = Faults()


def place(emulator: Emulator, name: str) -> str:
    return f"stash://{emulator.owner}/rythmiq/{name}"


def created(emulator: Emulator, path: str) -> int:
    events = [json.loads(line) for line in (emulator.root / "journal.jsonl").read_text().splitlines()]
    return sum(event["event"] == "create" and event["mount_dir"] == path for event in events)


# ------------------------------------------------------------------------------------------------ what it is given


def test_the_key_is_in_the_environment_alone_and_nothing_of_ours_beside_it(
    client: CamberProgram, emulator: Emulator, program: VendorProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "RYTHMIQ_SECRET_TOKEN", "RAY_AUTH_TOKEN", "CAMBER_OTHER"):
        monkeypatch.setenv(name, "canary-ours")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:1")
    monkeypatch.setenv("SSL_CERT_FILE", "/certificates.pem")
    client.stash_write(place(emulator, "given/1/run.sh"), b"true\n")
    job = client.create({**BODY, "mount_dir": "rythmiq/given/1", "tags": ["rythmiq"]})
    client.get(job.remote_id)
    client.list_page(1)
    client.stash_remove(place(emulator, "given/1/"))
    calls = program.calls
    assert len(calls) >= 6
    for call in calls:
        assert call["environ"]["CAMBER_API_KEY"] == KEY
        assert KEY not in " ".join(call["arguments"])
        assert "--api-key" not in call["arguments"]
        assert "canary-ours" not in call["environ"].values()
    assert {"HTTPS_PROXY", "SSL_CERT_FILE", "PATH", "HOME"} <= calls[-1]["environ"].keys()
    known = {("me",), ("job", "create"), ("job", "get"), ("job", "list"), ("stash", "cp"), ("stash", "rm")}
    assert {tuple(word for word in call["arguments"][:2] if word[0] != "-") for call in calls} <= known
    (create,) = [call["arguments"] for call in calls if call["arguments"][:2] == ["job", "create"]]
    path = f"stash://{emulator.owner}/rythmiq/given/1/"
    assert create[2:] == ["--engine", "base", "--size", "xsmall", "--path", path, "--cmd", "bash run.sh"]


def test_a_large_job_is_asked_for_with_flags(client: CamberProgram, program: VendorProgram) -> None:
    job = client.create({**BODY, "num_nodes": 2, "with_gpu": True, "mount_dir": "rythmiq/large/1"})
    assert client.get(job.remote_id).path == "rythmiq/large/1"
    (create,) = [call["arguments"] for call in program.calls if call["arguments"][:2] == ["job", "create"]]
    assert create[6:9] == ["--gpu", "--num-nodes", "2"]


def test_each_call_has_the_key_of_its_time(config: Any, emulator: Emulator, program: VendorProgram) -> None:
    keys = [Secret(KEY), Secret(KEY[::-1])]
    client = CamberProgram(config, key=lambda: keys[0])
    assert client.me() == emulator.owner
    keys.pop(0)
    with pytest.raises(BackendRefusedKey) as refused:
        client.me()
    assert KEY[::-1] not in str(refused.value)
    client.close()


def test_the_program_is_whole_without_oddities(client: CamberProgram, emulator: Emulator, tmp_path: Path) -> None:
    environ = {"CAMBER_API_KEY": KEY, "CAMBER_API_ENDPOINT": emulator.endpoint, "PATH": os.environ["PATH"]}

    def say(*arguments: str) -> str:
        command = [sys.executable, "-m", "rythmiq_ray.local.camber.program", *arguments]
        root = Path(__file__).parents[2]
        return subprocess.run(command, env=environ, cwd=root, capture_output=True, text=True, check=True).stdout

    client.stash_write(place(emulator, "plain/1/x"), b"0123456789")
    assert json.loads(say("me", "--output", "json"))["username"] == emulator.owner
    listed = json.loads(say("stash", "ls", "-r", "-a", "--output", "json", place(emulator, "plain/1/")))
    assert [file["size"] for file in listed["files"]] == [10]
    assert client.stash_read(place(emulator, "plain/1/x")) == b"0123456789"
    target = tmp_path / "copy"
    say("stash", "cp", place(emulator, "plain/1/x"), str(target))
    assert target.read_bytes() == b"0123456789"
    say("stash", "test", "-f", place(emulator, "plain/1/x"))


# ------------------------------------------------------------------------------------------------ its oddities


@pytest.mark.parametrize("oddity", [{"banner": True}, {"garbage": True}, {"banner": True, "garbage": True}])
def test_notices_around_what_is_asked_for_change_nothing(
    config: Any, program: VendorProgram, oddity: dict[str, Any]
) -> None:
    program.behave(**oddity)
    backend = CamberExecutionBackend(config)
    job = submit(backend, make_job("echo hi"))
    assert wait_for(backend, job).status is RemoteStatus.COMPLETED
    assert eventually(lambda: backend.read_result(job)).exit_code == 0
    backend.remove(job)
    assert backend.list_files(job) == []
    backend.close()


def test_a_question_is_answered(client: CamberProgram, program: VendorProgram) -> None:
    program.behave(asks=True)
    assert client.create({**BODY, "mount_dir": "rythmiq/asked/1"}).remote_id > 0


@pytest.mark.parametrize("error_exit", [0, 1, 255])
def test_an_error_is_its_words_whatever_its_exit_code(
    client: CamberProgram, emulator: Emulator, program: VendorProgram, error_exit: int
) -> None:
    program.behave(error_exit=error_exit)
    calls: list[Callable[[], Any]] = [
        lambda: client.get(10**9),
        lambda: client.stash_list(place(emulator, "none/1/")),
        lambda: client.open_log(10**9).__enter__(),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            call()
    with pytest.raises(SpecRejected, match="Validation failed"):
        client.create({**BODY, "node_size": "GIANT", "mount_dir": "rythmiq/refused/1"})
    emulator.faults = Faults(refuse_key=True)
    calls = [client.me, lambda: client.create({**BODY, "mount_dir": "rythmiq/refused/1"})]
    calls += [lambda: client.stash_write(place(emulator, "refused/1/x"), b"x"), lambda: client.list_page(1)]
    calls += [lambda: client.stash_remove(place(emulator, "refused/1/")), lambda: client.stash_list("stash://x/y/")]
    for call in calls:
        with pytest.raises(BackendRefusedKey):
            call()
    assert created(emulator, "rythmiq/refused/1") == 0


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ('{"code": 2, "message": "job not found"}\n', NotFound),
        ('{\n  "code": 1,\n  "message": "Validation failed"\n}\n', SpecRejected),
        ('{"code": 2, "message": "try later"}\n', BackendUnavailable),
        ('{"message": "unauthorized - invalid token"}\n', BackendRefusedKey),
        ("not found\n", NotFound),
        ("authentication error\n", BackendRefusedKey),
        ("Error: user not found\n", BackendRefusedKey),
        ('Error: Get "https://x": dial tcp: lookup x: no such host\n', BackendUnavailable),
    ],
)
def test_an_error_is_known_in_every_form(
    client: CamberProgram, program: VendorProgram, said: str, error: type[RythmiqError]
) -> None:
    program.behave(says={"job_get": said})
    with pytest.raises(error):
        client.get(1)


def test_a_good_upload_with_code_255_is_good(client: CamberProgram, emulator: Emulator, program: VendorProgram) -> None:
    program.behave(upload_exit=255)
    client.stash_write(place(emulator, "good/1/x"), b"content")
    client.stash_stream(place(emulator, "good/1/y"), lambda: io.BytesIO(b"more"))
    assert client.calls["stash_write"] == 2, "neither is sent again"
    assert [client.stash_read(place(emulator, f"good/1/{name}")) for name in "xy"] == [b"content", b"more"]


def test_an_upload_that_left_nothing_fails_whatever_it_says(
    client: CamberProgram, emulator: Emulator, program: VendorProgram
) -> None:
    for said in ("Error: something went wrong\n", "upload failed\n", "Error: API error: code=2, message=not found\n"):
        program.behave(says={"stash_cp": said})
        with pytest.raises(BackendUnavailable):
            client.stash_write(place(emulator, "bad/1/x"), b"content")


def test_a_download_of_one_byte_is_asked_for_again(
    client: CamberProgram, emulator: Emulator, program: VendorProgram
) -> None:
    content = b"0123456789" * 1000
    client.stash_write(place(emulator, "placeholder/1/x"), content)
    program.behave(placeholders=1)
    assert client.stash_read(place(emulator, "placeholder/1/x")) == content
    program.behave(placeholders=1)
    with client.stash_open(place(emulator, "placeholder/1/x"), 5) as chunks:
        assert b"".join(chunks) == content[5:]


def test_a_file_that_never_comes_whole_is_not_there(
    client: CamberProgram, emulator: Emulator, program: VendorProgram
) -> None:
    client.stash_write(place(emulator, "placeholder/1/y"), b"0123456789")
    program.behave(placeholders=99)
    with pytest.raises(NotFound, match="1 bytes of a file of 10"):
        client.stash_read(place(emulator, "placeholder/1/y"))


def test_a_file_that_grew_since_it_was_listed_is_whole(client: CamberProgram, emulator: Emulator) -> None:
    for content in (b"short", b"a longer one", b""):
        client.stash_write(place(emulator, "grown/1/x"), content)
        assert client.stash_read(place(emulator, "grown/1/x")) == content


def test_folders_are_made_where_an_upload_makes_none(
    client: CamberProgram, emulator: Emulator, program: VendorProgram
) -> None:
    program.behave(needs_folders=True)
    client.stash_write(place(emulator, "deep/1/a/b/x"), b"content")
    assert client.stash_read(place(emulator, "deep/1/a/b/x")) == b"content"


@pytest.mark.parametrize(
    "said",
    [
        "",
        "Job created successfully\n",
        "Job ID: 12\nError: API error: code=2, message=failed\n",
        "Job ID: 12\nJob ID: 13\n",
        "Job ID: x\n",
        "Error: dial tcp: lookup api: no such host\n",
        "Error: API error: code=2, message=not found\n",
        "Error: unexpected EOF\n",
        "not found\n",
        "\x00\xff nonsense",
    ],
)
def test_a_create_without_a_clear_answer_is_uncertain(client: CamberProgram, program: VendorProgram, said: str) -> None:
    program.behave(says={"job_create": said})
    with pytest.raises(CreateUncertain):
        client.create({**BODY, "mount_dir": "rythmiq/doubt/1"})
    assert client.calls["create"] == 1


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Error: API error: code=1, message=Validation failed\n", SpecRejected),
        ("Error: API error: code=1005, message=Job creation is not available on the free tier\n", SpecRejected),
        ("authentication error\n", BackendRefusedKey),
        ("Error: too many requests\n", BackendBusy),
    ],
)
def test_a_create_that_is_clearly_refused_is_not_looked_for(
    client: CamberProgram, program: VendorProgram, said: str, error: type[RythmiqError]
) -> None:
    program.behave(says={"job_create": said})
    with pytest.raises(error) as raised:
        client.create({**BODY, "mount_dir": "rythmiq/clear/1"})
    assert said.strip().rpartition("=")[2] in raised.value.message


@pytest.mark.parametrize(
    "said", ["", "null of it\n", "{]\n", "[1, 2]\n", "<html>\n", "{" * 5000, '{"unexpected": 1}\n']
)
def test_what_is_no_answer_does_not_pass_for_an_empty_one(
    client: CamberProgram, emulator: Emulator, program: VendorProgram, said: str
) -> None:
    program.behave(says=dict.fromkeys(("me", "job_list", "stash_ls", "job_get"), said))
    calls: list[Callable[[], Any]] = [client.me, lambda: client.list_page(1), lambda: client.get(1)]
    calls.append(lambda: client.stash_list(place(emulator, "x/1/")))
    for call in calls:
        with pytest.raises(BackendUnavailable):
            call()


def test_words_are_printable_and_without_the_key(client: CamberProgram, program: VendorProgram) -> None:
    program.behave(says={"job_list": f"\x1b[31mError:\x1b[0m {KEY}\r\x07\u2028 what\n"})
    with pytest.raises(BackendUnavailable) as raised:
        client.list_page(1)
    assert raised.value.message.isprintable()
    assert "***" in raised.value.message
    assert KEY not in raised.value.message


@pytest.mark.parametrize("line", ["authentication error", "Error: connection refused", "Error: API error: code=1, x"])
def test_a_log_that_reads_like_an_error_concerns_its_job_alone(config: Any, line: str) -> None:
    backend = CamberExecutionBackend(config)
    job = submit(backend, make_job(f"echo '{line}'"))
    wait_for(backend, job)
    eventually(lambda: backend.read_result(job))
    with backend.open_log(job) as chunks:
        assert b"".join(chunks).decode() == f"{line}\n"
    backend.close()


def test_cancel_is_by_the_marker_alone(config: Any, program: VendorProgram) -> None:
    backend = CamberExecutionBackend(config)
    job = submit(backend, make_job("sleep 61.7"))
    wait_for(backend, job, RemoteStatus.RUNNING)
    assert backend.cancel(job) is False
    assert wait_for(backend, job).status is RemoteStatus.FAILED
    assert eventually(lambda: backend.read_result(job)).reason == "cancelled"
    backend.close()


def test_calls_are_counted_and_told_of(config: Any, emulator: Emulator) -> None:
    told: list[tuple[str, str]] = []
    client = CamberProgram(config, on_call=lambda operation, outcome, _seconds: told.append((operation, outcome)))
    client.me()
    with pytest.raises(NotFound):
        client.get(10**9)
    assert told == [("version", "2xx"), ("me", "2xx"), ("get", "4xx")]
    assert client.calls == {"version": 1, "me": 1, "get": 1}
    client.close()


def test_the_version_is_logged_once(config: Any, caplog: pytest.LogCaptureFixture) -> None:
    backend = CamberExecutionBackend(config)
    with caplog.at_level("INFO", "rythmiq"):
        backend.check()
        backend.check()
    (record,) = [record for record in caplog.records if record.message == "The vendor's program is used"]
    assert record.__dict__["fields"] == {"program": config.program, "version": "1.0.40"}
    backend.close()


# ------------------------------------------------------------------------------------------------ time and space


def test_a_program_that_hangs_is_ended_in_time_with_all_it_started(
    config: Any, emulator: Emulator, program: VendorProgram
) -> None:
    slow = replace(config, connect_timeout_s=0.5, read_timeout_s=1, create_timeout_s=1.5, call_attempts=1)
    client = CamberProgram(slow)
    client.me()
    program.behave(slow_s=60, child=True)
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="in time"):
        client.me()
    assert program.processes == []
    program.behave(hangs=["job_create"], child=True)
    with pytest.raises(CreateUncertain):
        client.create({**BODY, "mount_dir": "rythmiq/hung/1"})
    assert time.monotonic() - began < 8
    assert program.processes == []
    assert created(emulator, "rythmiq/hung/1") == 1, "it was made, and is to be found by its path"
    client.close()


def test_what_a_program_started_does_not_outlive_it(client: CamberProgram, program: VendorProgram) -> None:
    program.behave(child=True)
    client.list_page(1)
    assert program.processes == []


def test_a_create_that_waits_for_its_turn_is_not_sent_late(
    config: Any, emulator: Emulator, program: VendorProgram
) -> None:
    client = CamberProgram(replace(config, program_at_once=1, create_timeout_s=1.5))
    client.me()
    program.behave(slow_s=4)
    other = threading.Thread(target=lambda: client.list_page(1))
    other.start()
    eventually(lambda: program.processes or None)
    began = time.monotonic()
    with pytest.raises(BackendUnavailable, match="slots"):
        client.create({**BODY, "mount_dir": "rythmiq/late/1"})
    assert time.monotonic() - began < 3
    other.join()
    assert client.calls["create"] == 0
    assert created(emulator, "rythmiq/late/1") == 0
    client.close()


def test_no_more_run_at_once_than_are_allowed(config: Any, emulator: Emulator, program: VendorProgram) -> None:
    client = CamberProgram(replace(config, program_at_once=2))
    client.me()
    program.behave(slow_s=0.3)
    threads = [threading.Thread(target=lambda: client.list_page(1)) for _ in range(6)]
    for thread in threads:
        thread.start()
    most = 0
    while any(thread.is_alive() for thread in threads):
        most = max(most, len(program.processes))
    assert most <= 2
    client.close()


def test_large_files_pass_in_constant_memory(client: CamberProgram, emulator: Emulator) -> None:
    size = 96 * 1024 * 1024

    class Zeros(io.RawIOBase):
        left = size

        def read(self, most: int = -1) -> bytes:
            block = bytes(min(most, self.left))
            self.left -= len(block)
            return block

    source: BinaryIO = Zeros()  # type: ignore[assignment]
    tracemalloc.start()
    client.stash_stream(place(emulator, "large/1/x"), lambda: _Opened(source))  # type: ignore[arg-type,return-value]
    with client.stash_open(place(emulator, "large/1/x")) as chunks:
        assert sum(map(len, chunks)) == size
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * 1024 * 1024
    client.stash_remove(place(emulator, "large/1/"))


class _Opened:
    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def __enter__(self) -> BinaryIO:
        return self._source

    def __exit__(self, *_error: object) -> None: ...


def test_output_without_an_end_is_cut(client: CamberProgram, program: VendorProgram, tmp_path: Path) -> None:
    program.path.write_text("#!/bin/sh\nexec yes\n")
    with pytest.raises(BackendUnavailable) as raised:
        client.list_page(1)
    assert "in time" not in raised.value.message, "by its size, not by its time"


def test_a_full_disk_is_this_machines_fault(client: CamberProgram, emulator: Emulator, temporary: Path) -> None:
    client.close()
    temporary.rmdir()
    temporary.write_text("no folder")
    with pytest.raises(BackendUnavailable, match="temporary folder"):
        client.stash_write(place(emulator, "full/1/x"), b"x")
    with pytest.raises(BackendUnavailable, match="temporary folder"):
        client.create({**BODY, "mount_dir": "rythmiq/full/1"})


def test_a_program_that_is_gone_created_nothing(client: CamberProgram, program: VendorProgram) -> None:
    program.path.unlink()
    for call in (client.me, lambda: client.create({**BODY, "mount_dir": "rythmiq/gone/1"})):
        with pytest.raises(BackendUnavailable, match=r"camber\.program"):
            call()
    program.path.write_text("#!/nowhere/sh\n")
    program.path.chmod(0o755)
    with pytest.raises((BackendUnavailable, CreateUncertain)):
        client.create({**BODY, "mount_dir": "rythmiq/gone/1"})


def test_no_file_is_left_after_a_call_nor_a_folder_after_the_last(
    config: Any, emulator: Emulator, temporary: Path, program: VendorProgram
) -> None:
    client = CamberProgram(config)
    client.stash_write(place(emulator, "left/1/x"), b"x")
    with client.stash_open(place(emulator, "left/1/x")) as chunks:
        assert next(chunks) == b"x"
    with pytest.raises(NotFound):
        client.stash_read(place(emulator, "left/1/none"))
    program.behave(says={"stash_cp": "Error: no\n"})
    with pytest.raises(BackendUnavailable):
        client.stash_write(place(emulator, "left/1/y"), b"y")
    (folder,) = temporary.iterdir()
    assert folder.name.startswith(PREFIX)
    assert folder.stat().st_mode & 0o077 == 0
    assert list(folder.iterdir()) == []
    client.close()
    assert list(temporary.iterdir()) == []


CALLER = """
import sys
from camber_jobs import make_config
from rythmiq_ray.backends.camber.program import CamberProgram

client = CamberProgram(make_config(sys.argv[1], transport="cli", program=sys.argv[2], create_timeout_s=60))
print(client.me(), flush=True)
client.create({**%r, "mount_dir": "rythmiq/orphan/1"})
"""


def test_a_killed_caller_leaves_no_process_and_its_files_go_with_the_next(
    config: Any, emulator: Emulator, program: VendorProgram, temporary: Path
) -> None:
    program.behave(hangs=["job_create"])
    paths = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER % BODY, emulator.endpoint, str(program.path)],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
    )
    assert caller.stdout is not None
    assert caller.stdout.readline().decode().strip() == emulator.owner
    eventually(lambda: program.processes or None)
    eventually(lambda: created(emulator, "rythmiq/orphan/1") or None)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    eventually(lambda: None if program.processes else True)
    (left,) = temporary.iterdir()
    client = CamberProgram(config)
    client.stash_write(place(emulator, "next/1/x"), b"x")
    (own,) = temporary.iterdir()
    assert own != left
    other = CamberProgram(config)
    other.stash_write(place(emulator, "next/1/x"), b"x")
    assert len(list(temporary.iterdir())) == 2, "what the living use stays"
    client.close()
    other.close()
