"""Nodes of a Ray cluster on this machine, each as ``ray start`` makes it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from rythmiq_ray.local.camber import Emulator

WAIT_S = 90.0


class Node:
    """``ray start`` as a process, and everything that it started."""

    def __init__(self, folder: Path, environment: dict[str, str], *arguments: str) -> None:
        self.log = folder / f"ray-{len(list(folder.glob('ray-*.log')))}.log"
        with self.log.open("wb") as sink:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats", *arguments],
                env={**environment, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"},
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_for(lambda: "Ray runtime started" in self.log.read_text(), "a Ray node")

    @property
    def works(self) -> bool:
        """Whether a task of ours runs on it at this moment."""
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    if " ".join(process.cmdline()).startswith("ray::rythmiq."):
                        return True
        return False

    @property
    def raylets(self) -> int:
        """How many run here: one, and none once the node has ended itself; a provider's nodes are its own children."""
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
            return sum(process.name() == "raylet" and process.status() != "zombie" for process in family)
        return 0

    def kill(self) -> None:
        """Everything of the node at once, as when its machine is switched off."""
        with suppress(psutil.NoSuchProcess):
            node = psutil.Process(self._process.pid)
            family = [node, *node.children(recursive=True)]
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGSTOP)
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait(30)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.05)


def creates(camber: Emulator) -> Counter[str]:
    events = [json.loads(line) for line in (camber.root / "journal.jsonl").read_text().splitlines()]
    return Counter(event["mount_dir"] for event in events if event["event"] == "create")
