"""A driver's start and end from outside: whenever a signal comes, whatever is at fault, and what is left running."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import psycopg2
import pytest
from ray_nodes import Node

from rythmiq_ray import JobSpec, enqueue
from rythmiq_ray.driver.signals import STOPPING
from rythmiq_ray.local.process import free_ports

Environment = dict[str, str]
WAIT_S = 90.0
BUSY_S = 30.0
"""For an end that takes one or two seconds by itself; far below what Ray's own waits take."""
SIGNALS = random.Random(7)
MOMENTS_S = (0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.2, 3.0, 3.5, 4.0, 5.0, SIGNALS.uniform(0, 6))
"""After its handlers are set: while it imports, asks the services, starts Ray, and works."""
PATIENT = "driver.start_timeout_s=120"
"""For a busy machine, where what is looked at is something else."""
DEADLINE_S = 12
SHORT = f"driver.start_timeout_s={DEADLINE_S}"


class Driver:
    """``python -m rythmiq_ray.driver`` in a session of its own, and every process that it starts."""

    def __init__(self, folder: Path, environment: Environment, *arguments: str, shell: str = "") -> None:
        self.log = folder / f"start-{len(list(folder.glob('start-*.log')))}.log"
        command = [sys.executable, "-m", "rythmiq_ray.driver", "driver.poll_interval_s=0.2", PATIENT, *arguments]
        if shell:
            command = ["bash", "-c", f'{shell}; exec "$@"', "bash", *command]
        self.began = time.monotonic()
        with self.log.open("wb") as sink:
            self.process = psutil.Popen(
                command,
                env=environment,
                cwd=folder,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_default_signals,
            )
        self._family: set[psutil.Process] = set()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self._see()

    def _see(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._family |= set(self.process.children(recursive=True))

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def listens(self) -> None:
        """Returns when its handlers are set, some milliseconds after the interpreter begins to run its code."""
        caught = 0
        while not caught & 1 << signal.SIGHUP - 1:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            caught = int(status.partition("SigCgt:")[2].split()[0], 16)

    def until(self, words: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while words not in self.text():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.01)

    def connects_to(self, port: int) -> None:
        """Returns when it has a connection there."""
        deadline = time.monotonic() + WAIT_S
        while not any(each.raddr and each.raddr.port == port for each in self.process.net_connections()):
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.01)

    def wait(self, timeout_s: float = WAIT_S) -> int:
        """The exit code; fails where anything of it is left."""
        code: int = self.process.wait(timeout_s)
        self._ended.set()
        self._watch.join()
        _, left = psutil.wait_procs(self._family, timeout=1.0)
        left = [each for each in left if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
        assert left == [], self.text()
        return code

    def stopped_by(self, number: signal.Signals, within_s: float) -> None:
        self._see()
        sent = time.monotonic()
        self.process.send_signal(number)
        code = self.wait()
        took_s = time.monotonic() - sent
        assert code == 0, self.text()
        assert took_s < within_s, f"{took_s:.1f} s: {self.text()}"
        assert "Traceback" not in self.text()

    def kill(self) -> None:
        self._ended.set()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def _default_signals() -> None:
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)


Start = Callable[..., Driver]


@pytest.fixture
def start(environment: Environment, tmp_path: Path) -> Iterator[Start]:
    started: list[Driver] = []

    def begin(*arguments: str, shell: str = "", **changes: str) -> Driver:
        driver = Driver(tmp_path, {**environment, **changes}, *arguments, shell=shell)
        started.append(driver)
        return driver

    yield begin
    for driver in started:
        driver.kill()


@pytest.fixture
def local_environment(environment: Environment, tmp_path: Path) -> Environment:
    """What names nothing but a folder: all is embedded."""
    for name in list(environment):
        if name.startswith(("AWS_", "CAMBER_", "ARTIFACT_", "DATABASE_", "EXECUTION_")):
            del environment[name]
    folder = tmp_path / "local"
    folder.mkdir(mode=0o711)
    environment |= {"SERVICE_ENV": "local", "RYTHMIQ_LOCAL_DIR": str(folder)}
    return environment


def one_line(driver: Driver, code: int, *words: str, within_s: float = DEADLINE_S + 20.0) -> None:
    """The driver ends with this code, and says why in one line, with these words in it."""
    assert driver.wait() == code, driver.text()
    assert time.monotonic() - driver.began < within_s
    lines = [line for line in driver.text().splitlines() if "[WORKER] Configuration loaded" not in line]
    assert len(lines) == 1, driver.text()
    for word in words:
        assert word in lines[0]


# ---------------------------------------------------------------------------------------------------- signals


@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_at_any_time_of_the_start_ends_with_0_and_leaves_nothing(start: Start, number: signal.Signals) -> None:
    # One handler serves all three, so each comes at every third of these times.
    for after_s in MOMENTS_S[STOPPING.index(number) :: len(STOPPING)]:
        driver = start()
        driver.listens()
        time.sleep(after_s)
        driver.stopped_by(number, within_s=BUSY_S)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("words", "number"), zip(["Configuration loaded", "Execution backend", "Worker ready"], STOPPING, strict=True)
)
def test_a_signal_at_each_line_of_the_log_ends_with_0(start: Start, words: str, number: signal.Signals) -> None:
    driver = start()
    driver.until(words)
    driver.stopped_by(number, within_s=BUSY_S)


@pytest.mark.timeout(600)
def test_the_embedded_parts_end_with_the_driver_whenever_it_is_stopped(
    start: Start, local_environment: Environment
) -> None:
    for after_s in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0):
        driver = start()
        driver.listens()
        time.sleep(after_s)
        driver.stopped_by(SIGNALS.choice(STOPPING), within_s=BUSY_S)
    driver = start()
    driver.until("Worker ready")
    driver.stopped_by(signal.SIGHUP, within_s=BUSY_S)


@pytest.mark.timeout(120)
def test_a_hangup_gives_jobs_back_and_nohup_is_heeded(start: Start, environment: Environment) -> None:
    with closing(psycopg2.connect(environment["DATABASE_URL"])) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        enqueue(connection, JobSpec(command="sleep 60"))
        driver = start(shell="trap '' HUP")
        driver.until("Worker ready")
        driver.process.send_signal(signal.SIGHUP)
        _until(cursor, "waiting", "driver_id IS NOT NULL")
        driver.stopped_by(signal.SIGTERM, within_s=BUSY_S)
        _until(cursor, "waiting", "driver_id IS NULL")

        driver = start()
        driver.until("Worker ready")
        _until(cursor, "waiting", "driver_id IS NOT NULL")
        driver.stopped_by(signal.SIGHUP, within_s=BUSY_S)
        _until(cursor, "waiting", "driver_id IS NULL")


def _until(cursor: psycopg2.extensions.cursor, phase: str, held: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        cursor.execute(f"SELECT count(*) FROM rythmiq.jobs WHERE phase = %s AND {held}", (phase,))
        row = cursor.fetchone()
        if row and row[0]:
            return
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {phase}, {held}"
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------ RAY_ADDRESS


class _Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.timeout(120)
def test_a_ray_address_that_is_refused_ends_in_one_line(start: Start) -> None:
    (port,) = free_ports(1)
    driver = start(RAY_ADDRESS=f"127.0.0.1:{port}")
    one_line(driver, 1, f"nothing answers at RAY_ADDRESS 127.0.0.1:{port}: Connection refused")


@pytest.mark.timeout(120)
def test_a_ray_address_that_answers_otherwise_ends_in_one_line(start: Start) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        one_line(start(RAY_ADDRESS=address), 1, f"what answers at RAY_ADDRESS {address} is not a Ray head")
        server.shutdown()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265", "127.0.0.1", "host:port"])
def test_a_ray_address_of_another_form_is_a_fault_of_the_configuration(start: Start, address: str) -> None:
    one_line(start(RAY_ADDRESS=address), 2, "RAY_ADDRESS: must be host:port of a Ray head")


@pytest.mark.timeout(120)
def test_a_ray_address_that_is_silent_ends_within_the_deadline_and_at_once_by_a_signal(
    start: Start, silent_port: int
) -> None:
    address = f"127.0.0.1:{silent_port}"
    driver = start(RAY_ADDRESS=address)
    driver.connects_to(silent_port)
    driver.stopped_by(signal.SIGTERM, within_s=2.0)
    one_line(start(SHORT, RAY_ADDRESS=address), 1, address)


@pytest.mark.timeout(180)
def test_a_cluster_that_needs_a_token_names_the_remedy(
    start: Start, environment: Environment, nodes: Callable[..., Node], tmp_path: Path
) -> None:
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
    nodes()
    home = str(tmp_path)  # No token is found there either.
    environment["HOME"] = home
    wrong = start(RAY_AUTH_TOKEN="fedcba9876543210" * 4)
    one_line(wrong, 1, "refuses this driver's token: set RAY_AUTH_MODE=token")
    one_line(start(RAY_AUTH_MODE="disabled"), 1, "refuses this driver's token")
    one_line(start(RAY_AUTH_TOKEN=""), 1, "needs a token and this driver has none: set RAY_AUTH_MODE=token")


# ---------------------------------------------------------------------------------------------------- machine


@pytest.mark.timeout(120)
def test_a_temporary_folder_that_ray_cannot_use_is_named_with_its_remedy(start: Start, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    for name in ("RAY_TMPDIR", "TMPDIR"):
        one_line(start(**{name: str(long)}), 2, str(long), "set RAY_TMPDIR")
    one_line(start(RAY_TMPDIR="/nowhere"), 2, "/nowhere cannot be used: No such file or directory")
    one_line(start(RAY_TMPDIR="/proc"), 2, "/proc cannot be used", "set RAY_TMPDIR")


@pytest.mark.timeout(120)
def test_too_few_files_are_named_with_their_remedy(start: Start) -> None:
    one_line(start(shell="ulimit -n 100"), 2, "may open 100 files", "ulimit -n 65536")


@pytest.mark.timeout(120)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
@pytest.mark.parametrize(
    ("options", "code", "words"),
    [("size=32k", 1, "No space left on device"), ("size=8m,ro", 2, "Read-only file system")],
)
def test_a_temporary_folder_that_is_full_or_read_only_is_named(
    environment: Environment, tmp_path: Path, options: str, code: int, words: str
) -> None:
    folder = "/tmp/rythmiq-full"
    Path(folder).mkdir(exist_ok=True)
    mount = f"mount -t tmpfs -o {options} none {folder}"
    ended = subprocess.run(
        ["unshare", "--mount", "bash", "-c", f'{mount} && exec "$@"', "-", sys.executable, "-m", "rythmiq_ray.driver"],
        env={**environment, "RAY_TMPDIR": folder},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    if "unshare" in ended.stderr:
        pytest.skip("this root may not mount")
    assert ended.returncode == code, ended.stdout + ended.stderr
    (line,) = ended.stdout.splitlines()[1:]
    assert f"{folder} cannot be used: {words}" in line


@pytest.mark.timeout(120)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_user_without_name_home_and_token_is_served(environment: Environment, tmp_path: Path) -> None:
    folder = Path("/tmp/rythmiq-nameless")
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    environment |= {"RAY_TMPDIR": str(folder)}
    environment |= {"ARTIFACT_STORE_TYPE": "local", "ARTIFACT_STORE_PATH": str(folder / "artifacts")}
    for name in ("HOME", "USER", "LOGNAME", "RAY_AUTH_MODE"):
        environment.pop(name, None)
    reads = "dac_read_search,dac_override"  # The interpreter may be below a folder of root's.
    as_nobody = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    as_nobody += [f"--inh-caps=+{reads.replace(',', ',+')}", f"--ambient-caps=+{reads.replace(',', ',+')}"]
    ended = subprocess.run(
        [*as_nobody, sys.executable, "-m", "rythmiq_ray.driver", "--drain"],
        env=environment,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Worker ready" in ended.stdout


# ------------------------------------------------------------------------------------------------------- others


@pytest.mark.timeout(180)
def test_whoever_does_not_answer_is_named_at_the_deadline(start: Start, silent_port: int) -> None:
    hanging = f"postgresql://u:canary-p@127.0.0.1:{silent_port}/d"
    one_line(start(DATABASE_URL=hanging), 1, f"127.0.0.1:{silent_port}", "Postgres")
    endpoint = f"http://127.0.0.1:{silent_port}"
    one_line(start(SHORT, AWS_ENDPOINT_URL_S3=endpoint), 1, "store s3://artifacts")
    one_line(start(SHORT, CAMBER_API_ENDPOINT=f"{endpoint}/api"), 1, "The execution backend", f"{endpoint}/api did not")


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"CAMBER_API_KEY": "canary-wrong"}, "backend_refused_key"),
        ({"AWS_SECRET_ACCESS_KEY": "canary-wrong"}, "SignatureDoesNotMatch"),
        ({"DATABASE_URL": "postgresql://u:canary%ss@127.0.0.1/d"}, "percent-encode"),
    ],
)
def test_what_the_configuration_can_mend_is_exit_2(start: Start, changes: Environment, words: str) -> None:
    driver = start(**changes)
    one_line(driver, 2, words)
    assert "canary" not in driver.text()


@pytest.mark.timeout(180)
def test_a_database_that_does_not_exist_is_exit_2(start: Start, environment: Environment) -> None:
    there = environment["DATABASE_URL"]
    driver = start(DATABASE_URL=there.replace("/test_", "/none_"))
    one_line(driver, 2, "does not exist")
