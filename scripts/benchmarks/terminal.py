"""A program in a pseudo-terminal: keys go in, and what it draws is read."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

import psutil

SIZE = (40, 120)
_ESCAPES = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|.)")


class Terminal:
    """The program runs until the end of the ``with``."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        self._master, slave = pty.openpty()
        termios.tcsetwinsize(slave, SIZE)
        self._program = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environ, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(slave)
        self._drawn = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_error: object) -> None:
        self._program.kill()
        self._program.wait()
        os.close(self._master)

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self._program.pid)

    def press(self, keys: str) -> None:
        self._drawn = b""
        os.write(self._master, keys.encode())

    def shown_after(self, keys: str, pattern: str, *, timeout_s: float = 60.0) -> float:
        """Presses keys, and returns after how many milliseconds such a text was drawn. Raises TimeoutError."""
        begun = time.perf_counter()
        self.press(keys)
        while not re.search(pattern.encode(), seen := _ESCAPES.sub(b"", self._drawn)):
            if time.perf_counter() - begun > timeout_s:
                raise TimeoutError(f"{pattern!r} was not drawn: {seen[-2000:]!r}")
            self._read(0.1)
        return (time.perf_counter() - begun) * 1000

    def watch(self, seconds: float) -> None:
        """Reads what is drawn for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._read(left)

    def _read(self, wait_s: float) -> None:
        if select.select([self._master], [], [], wait_s)[0]:
            self._drawn += os.read(self._master, 65_536)
