"""Starts and stops the programs of the embedded default, so that none outlives its owner."""

from __future__ import annotations

import os
import pwd
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import psutil

from rythmiq_ray.local import PartFailed

START_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.02
_TAIL_LINES: Final = 8
_LAUNCHER: Final = Path(__file__).with_name("launch.py")
PORT_TRIES: Final = 5
_PORTS: Final = range(20_000, 32_000)
"""Below the range for outgoing connections, so that a port is usually still free when its server starts again."""


Server = TypeVar("Server")


@dataclass(frozen=True)
class Handle:
    """Identifies a process by its id and its start time (seconds since 1970), because ids are used again."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> Handle:
        return cls(pid, psutil.Process(pid).create_time())

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 1.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def stop(self, number: signal.Signals, *, grace_s: float) -> None:
        """Sends a signal, and after ``grace_s`` seconds kills what is left of the process and its descendants."""
        if not self.alive:
            return
        try:
            process = psutil.Process(self.pid)
            family = [process, *process.children(recursive=True)]
            process.send_signal(number)
        except psutil.NoSuchProcess:
            return
        _, left = psutil.wait_procs(family, timeout=grace_s)
        for member in left:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(left, timeout=grace_s)


def start(
    command: Sequence[str | Path],
    *,
    log: Path,
    folder: Path,
    environ: Mapping[str, str],
    tether: signal.Signals | None,
    user: pwd.struct_passwd | None = None,
) -> Handle:
    """Starts a program in ``folder``, in a session of its own, so that a Ctrl-C in the terminal does not reach it.

    With ``tether`` the kernel sends it that signal when the calling thread ends, however it ends. So call this from a
    thread that lives as long as the program is needed.
    """
    identity = "-" if user is None else f"{user.pw_uid}:{user.pw_gid}"
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(int(tether or 0)), identity]
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as sink:
        process = subprocess.Popen(
            [*launcher, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=dict(environ),
            start_new_session=True,
        )
    _children.append(process)
    return Handle.of(process.pid)


_children: Final[list[subprocess.Popen[bytes]]] = []
"""Kept so that ended children can be reaped and do not stay zombies."""


def wait_until(ready: Callable[[], bool], *, part: str, handle: Handle, log: Path) -> None:
    """Waits for a part to answer; raises PartFailed with the end of its log if it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        for child in _children:
            child.poll()
        alive = handle.alive
        if not alive or time.monotonic() > deadline:
            reason = f"did not answer within {START_TIMEOUT_S:.0f} s" if alive else "ended instead of answering"
            raise PartFailed(f"{part} {reason}; the end of {log}:\n{_tail(log)}")
        time.sleep(_POLL_S)


def free_ports(count: int) -> list[int]:
    """This many ports of the loopback address that no program listens on now. Raises PartFailed."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        if port_is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise PartFailed(f"No {count} free ports between {_PORTS.start} and {_PORTS.stop} on 127.0.0.1")


def on_free_ports(count: int, begin: Callable[[list[int]], Server]) -> Server:
    """Calls ``begin`` with free ports, and again with others if another program takes one before the server listens.

    If ``begin`` raises PartFailed it must leave nothing running.
    """
    for _ in range(PORT_TRIES - 1):
        ports = free_ports(count)
        try:
            return begin(ports)
        except PartFailed:
            if all(map(port_is_free, ports)):
                raise
    return begin(free_ports(count))


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback address now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _tail(log: Path) -> str:
    with suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
    return "(no log)"
