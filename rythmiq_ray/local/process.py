"""Starting and stopping the programs of the embedded default, so that none outlives whom it serves."""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from rythmiq_ray.errors import RythmiqError

START_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.02
_PR_SET_PDEATHSIG: Final = 1
_TAIL_LINES: Final = 8

_libc: Final = ctypes.CDLL(None, use_errno=True)


class PartFailed(RythmiqError):
    """A part of the embedded default did not start."""


@dataclass(frozen=True)
class Handle:
    """A process by id and start time, which together no other process ever has."""

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
        """Signals the process, waits for its end, and kills it and its children when the grace is over."""
        if not self.alive:
            return
        try:
            process = psutil.Process(self.pid)
            family = [process, *process.children(recursive=True)]
            process.send_signal(number)
            process.wait(grace_s)
        except psutil.TimeoutExpired:
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
        except psutil.NoSuchProcess:
            return
        psutil.wait_procs(family, timeout=grace_s)


def start(
    command: Sequence[str | Path],
    *,
    log: Path,
    tether: signal.Signals | None,
    user: pwd.struct_passwd | None = None,
    environ: Mapping[str, str] | None = None,
) -> Handle:
    """Starts a program in a session of its own, so that a Ctrl-C in the terminal is not for it.

    With ``tether`` the kernel sends it that signal when the calling thread ends, however it ends; call it from a
    thread that lives as long as the program shall.
    """
    parent = os.getpid()

    def tie() -> None:
        if tether is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, tether, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    identity: dict[str, Any] = {}
    if user is not None:
        identity = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=None if environ is None else dict(environ),
            start_new_session=True,
            preexec_fn=tie,
            **identity,
        )
    _children.append(process)
    return Handle.of(process.pid)


_children: Final[list[subprocess.Popen[bytes]]] = []
"""Kept so that an ended child is waited for and no zombie is left."""


def wait_until(ready: Callable[[], bool], *, part: str, handle: Handle, log: Path) -> None:
    """Waits for a part to answer; raises PartFailed with the end of its log if it ends or takes too long."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready():
        for child in _children:
            child.poll()
        if not handle.alive or time.monotonic() > deadline:
            reason = "did not answer in time" if handle.alive else "ended at once"
            raise PartFailed(f"{part} {reason}; the end of {log}:\n{_tail(log)}")
        time.sleep(_POLL_S)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nobody listens on now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def port_is_free(port: int) -> bool:
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
