"""`rythmiq top` in a test: its screens by Textual's pilot, and the command itself in a terminal of its own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pyte
from rich.cells import cell_len
from textual.pilot import Pilot
from textual.widgets import Input

from rythmiq_ray.cli.operations import reasons_of
from rythmiq_ray.secret import Secret
from rythmiq_ray.top.app import Top

ROOT = Path(__file__).parents[1]
_PROGRAM = "from rythmiq_ray.cli import main; main()"
COMMAND = [sys.executable, "-c", _PROGRAM, "top"]
_WITHIN_S = 30.0


class Screen:
    """What is seen, and the keys."""

    def __init__(self, app: Top, pilot: Pilot[None]) -> None:
        self.app = app
        self._pilot = pilot

    @property
    def lines(self) -> list[str]:
        """The text of each line; all are as wide as the screen."""
        strips = self.app.screen._compositor.render_strips()
        return ["".join(segment.text for segment in strip) for strip in strips]

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines)

    def row(self, begins: str) -> str:
        """The line that begins so, with single spaces."""
        found = [line for line in self.lines if line.startswith(begins)]
        assert len(found) == 1, f"{begins!r} in\n{self.text}"
        return " ".join(found[0].split())

    async def press(self, *keys: str) -> None:
        await self._pilot.press(*keys)

    async def type(self, text: str) -> None:
        """Into the line for filters, over what it holds."""
        self.app.screen.query_one(Input).value = ""
        await self._pilot.press(*("space" if key == " " else key for key in text))

    async def until(self, *wanted: str | Callable[[], object]) -> None:
        """Waits until all of these are seen, or hold."""
        end = time.monotonic() + _WITHIN_S
        while missing := [each for each in wanted if not (each in self.text if isinstance(each, str) else each())]:
            assert time.monotonic() < end, f"{missing} did not come in\n{self.text}"
            await self._pilot.pause(0.02)

    async def resize(self, columns: int, rows: int) -> None:
        await self._pilot.resize_terminal(columns, rows)


def watch(
    url: str,
    script: Callable[[Screen], Awaitable[None]],
    *,
    size: tuple[int, int] = (80, 24),
    **options: Any,
) -> None:
    """Runs a script over a screen of that size. What is shown is looked at every 50 ms."""

    async def run() -> None:
        app = Top(Secret(url), reasons_of, **{"interval_s": 0.05} | options)
        async with app.run_test(size=size) as pilot:
            screen = Screen(app, pilot)
            await screen.until("UTC", "quit")
            await script(screen)
            for line in screen.lines:
                assert cell_len(line) == app.size.width, f"{line!r} is not as wide as the screen"

    asyncio.run(run())


class Terminal:
    """The command in a pseudo-terminal, and what an emulator makes of its output."""

    def __init__(
        self, url: str, *arguments: str, columns: int = 80, rows: int = 24, before: str = "", **variables: str
    ) -> None:
        """``before``: a program that runs first, to break something."""
        self.screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.written = b""
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self._slave)
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)
            for descriptor in range(3):
                os.dup2(self._slave, descriptor)
            environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DATABASE_URL": url}
            environment |= {"TERM": "xterm-256color", "HOME": os.environ.get("HOME", "/"), **variables}
            command = [sys.executable, "-c", f"{before}\n{_PROGRAM}", "top", *arguments]
            os.execve(command[0], command, environment)

    def until(self, seen: Callable[[], object]) -> None:
        """Reads until that holds."""
        end = time.monotonic() + _WITHIN_S
        while not seen():
            assert time.monotonic() < end, "\n".join(self.screen.display)
            self._read(0.05)

    def until_seen(self, *wanted: str) -> None:
        self.until(lambda: all(any(text in line for line in self.screen.display) for text in wanted))

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        ended: list[int] = []

        def look() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                ended.append(os.waitstatus_to_exitcode(status))
            return bool(pid)

        self.until(look)
        self._read(0.0)
        self.pid = 0
        return ended[0]

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was: its settings, its first screen, a cursor that is seen."""
        put_back = all(
            self.written.rindex(after) > self.written.rindex(before)
            for before, after in ((b"\x1b[?1049h", b"\x1b[?1049l"), (b"\x1b[?25l", b"\x1b[?25h"))
        )
        return put_back and termios.tcgetattr(self._slave) == self.before

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._master)
        os.close(self._slave)

    def _read(self, wait_s: float) -> None:
        while select.select([self._master], [], [], wait_s)[0]:
            new = os.read(self._master, 65536)
            self.written += new
            # The emulator knows no private modes with other marks than a question mark.
            self._stream.feed(_without(new, (b"\x1b[>", b"\x1b[<", b"\x1b[=")))
            wait_s = 0.0


def _without(data: bytes, marks: Sequence[bytes]) -> bytes:
    for mark in marks:
        while (at := data.find(mark)) >= 0:
            end = next((place for place in range(at + len(mark), len(data)) if data[place] >= 0x40), len(data) - 1)
            data = data[:at] + data[end + 1 :]
    return data
