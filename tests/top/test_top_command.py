"""`rythmiq top` as a process in a terminal: it draws, it ends, and it leaves the terminal as it was."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from top_screen import COMMAND, ROOT, Terminal
from web_rows import Rows

Start = Callable[..., Terminal]


def colours(written: bytes) -> Iterator[str]:
    """The colours that were set, by their codes."""
    for codes in re.findall(rb"\x1b\[([0-9;]*)m", written):
        numbers = [int(code or 0) for code in codes.split(b";")]
        yield from (str(n) for n in numbers if n in (38, 48) or 30 <= n <= 37 or 40 <= n <= 47 or 90 <= n <= 107)


def test_it_draws_and_q_leaves_the_terminal_as_it_was(terminal: Start, rows: Rows) -> None:
    rows.job("RUNNING", queue="night")
    top = terminal("--interval", "0.5")
    top.until_seen("night", "1 running", "q quit")
    assert set(colours(top.written))
    top.press("3")
    top.until_seen("python3 fit.py")
    top.press("q")
    assert top.wait() == 0
    assert top.restored


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_it_so_too(terminal: Start, rows: Rows, number: signal.Signals) -> None:
    rows.job("RUNNING", queue="night")
    top = terminal()
    top.until_seen("night")
    top.signal(number)
    assert top.wait() in (0, 130)
    assert top.restored


@pytest.mark.parametrize("how", ["--no-color", "NO_COLOR"])
def test_there_are_no_colours_where_none_are_wanted(terminal: Start, rows: Rows, how: str) -> None:
    rows.job("RUNNING", queue="night")
    rows.job("FAILED", name="fit")
    top = terminal("--no-color") if how == "--no-color" else terminal(NO_COLOR="1")
    top.until_seen("night", "1 failed")
    top.press("3")
    top.until_seen("command_failed")
    top.press("?")
    top.until_seen("NAVIGATE")
    assert not set(colours(top.written))


def test_what_did_not_change_is_not_drawn_again(terminal: Start, rows: Rows) -> None:
    for n in range(12):
        rows.job("BLOCKED", queue=f"queue-{n}")
    top = terminal("--interval", "0.5")
    top.until_seen("queue-11", "UTC")
    first = shown(top)
    top.until(lambda: shown(top) != first)
    before, second = len(top.written), shown(top)
    top.until(lambda: shown(top) != second)
    # The clock, and no row.
    assert b"queue" not in top.written[before:]
    assert len(top.written) - before < 200


def shown(top: Terminal) -> str:
    return next(line for line in top.screen.display if "UTC" in line)


def test_filters_and_the_first_view_come_from_the_command_line(terminal: Start, rows: Rows) -> None:
    rows.job("FAILED", queue="night", name="one")
    rows.job("QUEUED", queue="night", name="other")
    top = terminal("--queue", "night", "--state", "failed", columns=100)
    top.until_seen("filter: queue=night state=FAILED", "one  command_failed")
    assert not any("other" in line for line in top.screen.display)
    top = terminal("--view", "drivers")
    top.until_seen("No driver yet")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "it needs a terminal"),
        (["--interval", "soon"], "--interval"),
        (["--interval", "0.1"], "0.5 s or more"),
        (["--since", "tomorrow"], "--since"),
    ],
)
def test_what_does_not_fit_is_refused(database_url: str, arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments],
        env={"PYTHONPATH": str(ROOT), "DATABASE_URL": database_url, "TERM": "xterm"},
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_a_database_that_does_not_fit_is_said_before_the_screen_goes(terminal: Start, empty_database_url: str) -> None:
    top = terminal(url=empty_database_url)
    assert top.wait() == 1
    assert b"rythmiq migrate" in top.written
    assert b"\x1b[?1049h" not in top.written


def test_a_fault_of_its_own_ends_it_without_a_word_of_what_it_holds(terminal: Start) -> None:
    breaks = "def show(self, found): secret = 'canary'; raise KeyError(secret)"
    top = terminal(before=f"from rythmiq_ray.top import main\n{breaks}\nmain.MainScreen.show = show")
    assert top.wait() == 1
    assert top.restored
    assert b"unexpected KeyError at __main__:2" in top.written
    assert b"canary" not in top.written


def test_without_the_extra_it_says_how_to_install_it() -> None:
    program = "import sys; sys.modules['textual'] = None; from rythmiq_ray.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "top"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "textual is not installed: pip install 'rythmiq-ray[top]'" in done.stderr
