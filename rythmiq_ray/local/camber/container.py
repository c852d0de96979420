"""Runs one command like a container: when it or the emulator ends, all its processes are killed.

It is run as a separate script with only the standard library: ``python -I -S container.py COMMAND``. Standard input is
a pipe whose other end only the emulator has. The pipe closes when the emulator wants the command killed, and also when
the emulator itself ends in any way.

The exit code is the command's own, or 128 + the signal that ended it, as a shell reports it.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
CANNOT_EXECUTE = 126
KILLED = 128 + signal.SIGKILL


def main() -> int:
    libc = ctypes.CDLL(None)
    # Processes that the command leaves in the background, in any session, become our children when their parent ends.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    command = os.fork()
    if command == 0:
        run(libc, sys.argv[1])
    code = wait(command, woken)
    kill_all()
    return code


def run(libc: ctypes.CDLL, command: str) -> None:
    """Becomes the command, in a process group of its own."""
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for ignored_by_python in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(ignored_by_python, signal.SIG_DFL)
        os.execvp("bash", ["bash", "-c", command])  # noqa: S606 - running what it is given is its purpose
    except OSError as error:
        os.write(2, f"{error.strerror}\n".encode())
    finally:
        os._exit(CANNOT_EXECUTE)


def wait(command: int, woken: int) -> int:
    """Waits until the command ends or the emulator closes the pipe; returns the exit code."""
    while True:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == command:
                    code = os.waitstatus_to_exitcode(ended[1])
                    return code if code >= 0 else 128 - code
        poll = select.poll()
        for descriptor in (0, woken):
            poll.register(descriptor, select.POLLIN)
        if 0 in (descriptor for descriptor, _ in poll.poll()):
            return KILLED
        os.read(woken, 4096)


def kill_all() -> None:
    """Kills every descendant, also those that are started meanwhile."""
    while True:
        for process in descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.002)


def descendants() -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # The process name in parentheses may contain anything; state and parent come after the last ")".
                parents[int(entry.name)] = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
    found = {os.getpid()}
    while grown := {child for child, parent in parents.items() if parent in found} - found:
        found |= grown
    return found - {os.getpid()}


if __name__ == "__main__":
    sys.exit(main())
