"""One run of a program: within a total time, with bounded output, and with nothing of it left behind."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from rythmiq_ray.programs import TETHER


def run(
    command: Sequence[str],
    *,
    environ: Mapping[str, str],
    folder: Path,
    out: BinaryIO,
    err: BinaryIO,
    answer: bytes,
    within_s: float,
    most_bytes: int,
) -> int | None:
    """Runs a program in ``folder``; returns its exit code, or None where it was killed because its time was over.

    ``answer`` is what its standard input holds. ``out`` and ``err`` are files rather than pipes: they take any amount,
    and a process that inherited them holds nothing up. No file that it writes gets longer than ``most_bytes``. It and
    what it started are gone when this returns or raises.

    Raises OSError where it could not be started.
    """
    # A create that outlived its driver would come after the look into the list. A function that is run in the child
    # (preexec_fn) could tether it too, but is not safe beside the threads of Ray and gRPC.
    process = subprocess.Popen(
        [TETHER, "--pdeathsig", "KILL", "--", *command],
        stdin=subprocess.PIPE if answer else subprocess.DEVNULL,
        stdout=out,
        stderr=err,
        cwd=folder,
        env=dict(environ),
        start_new_session=True,
    )
    ended = False
    try:
        # Once it is started, no fault of ours says that it was not: it counts as killed.
        with suppress(OSError):
            _bound_files(process.pid, most_bytes)
            if process.stdin is not None:
                with suppress(BrokenPipeError), process.stdin as stdin:
                    stdin.write(answer)
            ended = _ends_within(process.pid, within_s)
    finally:
        # Before it is waited for: until then its number, which is its group's, belongs to nobody else.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        exit_code = process.wait()
    return exit_code if ended else None


def _bound_files(pid: int, most_bytes: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        most = most_bytes if hard == resource.RLIM_INFINITY else min(most_bytes, hard)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, hard))


def _ends_within(pid: int, seconds: float) -> bool:
    """Waits for the end of a child without taking note of it, so that its number stays its own."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))
    finally:
        os.close(descriptor)
