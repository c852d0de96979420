"""The application ``rythmiq top``: its screens, the thread that reads for them, and the actions of their keys."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import ClassVar, Final

from textual.app import App
from textual.binding import BindingType
from textual.message import Message
from textual.screen import Screen

from rythmiq_ray.console import formatting
from rythmiq_ray.console.database import Database
from rythmiq_ray.console.why import Why
from rythmiq_ray.secret import Secret
from rythmiq_ray.top import changes
from rythmiq_ray.top.base import Keys, TopScreen
from rythmiq_ray.top.changes import Change, Ready
from rythmiq_ray.top.detail_screens import HelpScreen
from rythmiq_ray.top.main import MainScreen
from rythmiq_ray.top.source import Source
from rythmiq_ray.top.watch import Seen, Watcher

INTERVAL_S: Final = 2.0
_SAID_S: Final = 20.0
"""How long the outcome of an action is shown."""

HELP: Final[Sequence[tuple[str, Keys]]] = (
    (
        "Navigate",
        (
            ("1 2 3 4, tab", "queues, groups, jobs, drivers"),
            ("\u2191 \u2193, j k", "a row down or up; also page up and down, g and G for the first and last"),
            ("enter", "open: a queue's jobs, a group, a job, a driver"),
            ("esc", "back; in a table, remove the filter"),
            ("> <", "older jobs, and back to the newest"),
            ("l", "a job's log; it follows while its end is on the screen"),
            ("space", "refresh now"),
            ("q", "quit"),
        ),
    ),
    (
        "Change; each asks first",
        (
            ("c", "cancel a job, a group, or all jobs of a queue"),
            ("r", "retry what FAILED or was CANCELLED"),
            ("p", "pause or resume a queue or a group"),
            ("P", "pause or resume the account"),
            ("d", "drain a driver"),
        ),
    ),
    (
        "Filter",
        (
            ("/", "the filters of the command line: queue=night state=failed user=alice since=2h label=team=ml"),
            ("", "also group, name, error; a bare word matches job names; an empty line removes all filters"),
        ),
    ),
    (
        "Columns",
        (
            ("WAITING", "QUEUED and RETRYING jobs; a plus means more than were counted"),
            ("RUNNING", "running jobs, and the most that may run where there is a limit"),
            ("OLDEST", "how long the oldest claimable job has waited"),
            ("ENDED", "how many ended in each of the last minutes; A MINUTE: in the last full one"),
            ("[##x-~..]", "# succeeded, x failed, - cancelled, ~ running, . waiting"),
        ),
    ),
)


class Top(App[None]):
    """The console in a terminal."""

    CSS = """
    Screen { background: ansi_default; color: ansi_default; overflow: hidden; }
    Lines { height: 1; width: 1fr; background: ansi_default; color: ansi_default; }
    Scrolled { height: 1fr; }
    #summary { height: 2; }
    #foot { height: 1; }
    #at { width: 13; }
    #filter { height: 1; background: ansi_default; color: ansi_default; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = []

    class Told(Message):
        """What the reading thread found."""

        def __init__(self, seen: Seen) -> None:
            super().__init__()
            self.seen = seen

    class Prepared(Message):
        """A change to be confirmed, or why it cannot be made."""

        def __init__(self, change: Change | str) -> None:
            super().__init__()
            self.change = change

    class Done(Message):
        """What was done, or why not."""

        def __init__(self, said: str) -> None:
            super().__init__()
            self.said = said

    def __init__(
        self,
        url: Secret,
        why: Why,
        *,
        view: str = "queues",
        given: Sequence[tuple[str, str]] = (),
        interval_s: float = INTERVAL_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(ansi_color=True)
        self.source = Source(Database(url), why)
        self.watcher = Watcher(lambda seen: self._post(self.Told(seen)), interval_s=interval_s)
        self.said = ""
        self.clock = clock
        self._view = view
        self._given = tuple(given)
        self._busy = False

    def get_default_screen(self) -> Screen[None]:
        return MainScreen(view=self._view, given=self._given)

    def run_in_terminal(self) -> None:
        """Runs until the user quits. The mouse is not used, so the terminal's own text selection still works."""
        self.run(mouse=False)
        if self._exception is not None:
            raise self._exception

    def _fatal_error(self) -> None:
        # Textual's version prints a traceback with the values of all variables; the caller reports the error instead.
        self._close_messages_no_wait()

    def on_mount(self) -> None:
        self.theme = "ansi-dark"
        self.animation_level = "none"
        self.watcher.start()
        if not self.is_headless:
            # A closed terminal or a signal ends the program normally, which restores the terminal.
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self.exit)

    def on_unmount(self) -> None:
        self.watcher.end()
        self.source.database.close()

    def _post(self, message: Message) -> None:
        """Posts a message from any thread; a message after the program's end is dropped."""
        with suppress(RuntimeError):
            self.post_message(message)

    def on_top_told(self, message: Told) -> None:
        screen = self.screen
        if isinstance(screen, TopScreen) and message.seen.look is screen.look:
            screen.told(message.seen)

    def help(self) -> None:
        """Shows every key."""
        self.push_screen(HelpScreen(HELP))

    def say(self, text: str) -> None:
        """Shows a line below the table for a while."""
        self.said = text
        self._draw()
        self.set_timer(_SAID_S, lambda: self._unsay(text))

    def _unsay(self, text: str) -> None:
        if self.said == text:
            self.said = ""
            self._draw()

    def _draw(self) -> None:
        if isinstance(self.screen, TopScreen):
            self.screen.draw()

    # ---------------------------------------------------------------------------------------------------------- changes

    def propose(self, verb: str, ready: Ready) -> None:
        """Prepares a change and asks for confirmation, if the login may make it."""
        rights = self.source.rights
        refused = None if rights is None else changes.refusal(rights, verb)
        if refused is not None:
            self.say(refused)
        elif not self._busy:
            self._busy = True
            self._in_background(lambda: self.Prepared(changes.prepare(self.source.database, ready)))

    def on_top_prepared(self, message: Prepared) -> None:
        self._busy = False
        if isinstance(message.change, str):
            self.say(message.change)
        elif isinstance(self.screen, TopScreen):
            self.said = ""
            self.screen.ask(message.change)

    def answered(self, change: Change, *, yes: bool) -> None:
        """Makes the change if the answer was yes."""
        if not yes:
            self.say(f"{change.label}: nothing was done.")
            return
        self.say(f"{change.label} …")
        self._in_background(lambda: self.Done(changes.do(self.source.database, change)))

    def on_top_done(self, message: Done) -> None:
        self.source.forget()
        self.say(formatting.on_one_line(message.said))
        if isinstance(self.screen, TopScreen):
            self.screen.look_again()

    def _in_background(self, work: Callable[[], Message]) -> None:
        threading.Thread(target=lambda: self._post(work()), name="top-change", daemon=True).start()
