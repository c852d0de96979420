"""Runs a program with a timeout and bounded output, and leaves none of its processes behind."""

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
    """Runs a program in ``folder``; returns its exit code, or None if it was killed.

    It is killed when ``within_s`` seconds have passed, or if it cannot be watched. ``answer`` is its standard input.
    ``out`` and ``err`` are files, not pipes: they never fill up, and a child that inherits them blocks nothing. No file
    that the program writes gets longer than ``most_bytes``. When this returns or raises, the program has ended and its
    whole process group was killed.

    Raises OSError if it could not be started.
    """
    # A create that outlives its driver could happen after the list was searched for it. A preexec_fn could also tie it
    # to the driver, but is not safe beside the threads of Ray and gRPC.
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
        # Once it is started, an error here must not look like a failed start, so it counts as killed.
        with suppress(OSError):
            _bound_files(process.pid, most_bytes)
            if process.stdin is not None:
                with suppress(BrokenPipeError), process.stdin as stdin:
                    stdin.write(answer)
            ended = _ends_within(process.pid, within_s)
    finally:
        # Before wait(): until then no other process can have its pid, which is also its group's id.
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
    """Waits for the end of a child without reaping it, so that its pid is not used again; whether it ended in time."""
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(max(0.0, seconds) * 1000))
    finally:
        os.close(descriptor)
