"""The parts of a driver's start: steps that hang, signals, descriptors above 1024, the machine's checks."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from rythmiq_ray import machine, processes
from rythmiq_ray.artifacts.s3 import _refused
from rythmiq_ray.clock import now_s
from rythmiq_ray.driver.signals import Signals, Stopped
from rythmiq_ray.driver.startup import StartStep, all_of
from rythmiq_ray.errors import BackendUnavailable, ConfigurationError, DatabaseUnavailable, StoreUnavailable
from rythmiq_ray.wakeup import Wakeup

LATE = BackendUnavailable("late")


def step(run: object, *, within_s: float = 30.0, late: Exception = LATE) -> StartStep:
    return StartStep(run=run, deadline=now_s() + within_s, late=late)  # type: ignore[arg-type]


def test_the_first_fault_ends_the_wait_while_others_hang() -> None:
    hangs = threading.Event()

    def fails() -> None:
        raise StoreUnavailable("no store")

    with pytest.raises(StoreUnavailable, match="no store"):
        all_of([step(hangs.wait), step(fails)])
    hangs.set()


def test_what_is_late_is_named_at_its_deadline() -> None:
    hangs = threading.Event()
    done: list[int] = []
    with pytest.raises(DatabaseUnavailable, match="Postgres is late"):
        all_of(
            [
                step(lambda: done.append(1), within_s=0.0),
                step(hangs.wait),
                step(hangs.wait, within_s=0.2, late=DatabaseUnavailable("Postgres is late")),
            ]
        )
    hangs.set()
    assert done == [1]


def test_all_that_succeed_return_at_once() -> None:
    all_of([step(lambda: None) for _ in range(3)])


@pytest.fixture
def handlers() -> Iterator[None]:
    # Under nohup, whose SIGHUP stays ignored, the tests hold too.
    former = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    former[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    yield
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_signal_ends_a_wait_for_steps_and_is_not_lost() -> None:
    signals = Signals()
    signals.calls(lambda: None)
    signals.install()
    hangs = threading.Event()
    began = time.monotonic()
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGHUP)).start()
    with pytest.raises(Stopped):
        all_of([step(hangs.wait)], meanwhile=signals.check)
    assert time.monotonic() - began < 5
    hangs.set()
    told: list[str] = []
    signals.calls(lambda: told.append("stop"))
    assert told == ["stop"], "what was received before is not lost"


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("swallowed", [False, True])
def test_a_signal_interrupts_what_does_not_check(swallowed: bool) -> None:
    signals = Signals()
    signals.calls(lambda: None)
    signals.install()

    def works() -> None:
        with signals.interrupting():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            except BaseException:
                if not swallowed:
                    raise

    with pytest.raises(Stopped):
        works()


@pytest.mark.usefixtures("handlers")
def test_an_ignored_hangup_stays_ignored_and_an_ignored_interrupt_does_not() -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Signals().install()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_a_driver_can_be_stopped_before_its_imports_are_done() -> None:
    code = """
import runpy, sys
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "argparse":
            print("importing", flush=True)
            import time
            time.sleep(60)
sys.meta_path.insert(0, Slow())
sys.modules.pop("argparse", None)
runpy.run_module("rythmiq_ray.driver", run_name="__main__")
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_wakeup_takes_descriptors_above_1024() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1300:
        pytest.skip("this machine allows too few")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1300), hard))
    reader, writer = os.pipe()
    held = [os.dup(reader) for _ in range(1100)]
    try:
        wakeup = Wakeup()
        assert held[-1] >= 1024
        threading.Timer(0.05, wakeup.set).start()
        began = time.monotonic()
        wakeup.wait(30, [held[-1]])
        os.write(writer, b"x")
        wakeup.wait(30, [held[-1]])
        assert time.monotonic() - began < 10
        os.read(reader, 1)
        wakeup.wait(0.01, [held[-1]])
        wakeup.close()
    finally:
        for descriptor in (reader, writer, *held):
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_nothing_of_a_family_outlives_its_end() -> None:
    before = processes.children()
    script = "sleep 60 & setsid sleep 60 & (setsid bash -c 'while :; do sleep 0.01; done') & wait"
    with subprocess.Popen(["bash", "-c", script]) as parent:
        root = psutil.Process(parent.pid)
        while len(root.children(recursive=True)) < 4:
            time.sleep(0.01)
        family = {root, *root.children(recursive=True)}
        processes.kill(processes.children() - before)
        parent.wait(10)
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family)


def test_the_longest_folder_that_the_check_allows_is_one_that_a_socket_fits_below(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(ConfigurationError, match=r"its sockets allow [0-9]+: set RAY_TMPDIR") as caught:
        machine.check()
    most = int(caught.value.message.partition("allow ")[2].partition(":")[0])
    session = f"/ray/session_2026-01-07_10-30-45_123456_{os.getpid()}/sockets/plasma_store"
    assert most + len(session) == 107


def test_only_what_a_service_says_about_us_counts_as_refused() -> None:
    def answer(status: int) -> ClientError:
        return ClientError({"Error": {"Code": "X"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")

    assert all(map(_refused, (answer(403), answer(404), NoCredentialsError())))
    assert not any(
        map(_refused, (answer(500), answer(503), EndpointConnectionError(endpoint_url="http://x"), OSError()))
    )
