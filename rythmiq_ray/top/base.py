"""The base of every screen: a title, messages, a status line, the keys, and a question before a change."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, ClassVar, Final, cast

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.css.query import NoMatches
from textual.message import Message
from textual.screen import Screen
from textual.widget import Widget

from rythmiq_ray.console import formatting
from rythmiq_ray.top.cells import Line, Part, broken, parts_of
from rythmiq_ray.top.changes import Change
from rythmiq_ray.top.lines import Lines
from rythmiq_ray.top.watch import Look, Seen

if TYPE_CHECKING:
    from rythmiq_ray.top.app import Top

_MOST_SAID: Final = 4
"""The most lines of a message."""
Keys = Sequence[tuple[str, str]]
"""A key, and what it does."""


class Confirmation(Lines, can_focus=True):
    """A question that takes every key until it is answered."""

    class Answered(Message):
        """The question was answered; ``yes`` says how."""

        def __init__(self, change: Change, *, yes: bool) -> None:
            super().__init__()
            self.change = change
            self.yes = yes

    change: Change | None = None

    def ask(self, change: Change) -> None:
        """Shows the question and takes the focus until it is answered."""
        self.change = change
        self.display = True
        wide = self.screen.size.width
        lines = [
            (),
            *broken([Part(formatting.on_one_line(change.question), "bold")], wide),
            *broken([Part(change.meaning)], wide),
            [Part("y", "bold"), Part(" yes   "), Part("n", "bold"), Part(" no")],
        ]
        self.styles.height = len(lines)
        self.set(lines)
        self.focus()

    def on_key(self, event: events.Key) -> None:
        event.stop()
        event.prevent_default()
        change = self.change
        if change is not None and event.key in ("y", "n", "escape", "q", "ctrl+c"):
            self.change = None
            self.display = False
            self.post_message(self.Answered(change, yes=event.key == "y"))


class TopScreen(Screen[None]):
    """A screen that shows what a read of the database finds."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace", "back", "back", show=False),
        Binding("q,ctrl+c,ctrl+q", "app.quit", "quit", show=False, priority=False),
        Binding("question_mark,f1,h", "help", "help", show=False),
        Binding("space,ctrl+l", "again", "refresh now", show=False),
        Binding("ctrl+z", "app.suspend_process", "suspend", show=False),
    ]
    keys: ClassVar[Keys] = ()

    def __init__(self) -> None:
        super().__init__()
        self.look: Look | None = None
        self._seen_at: datetime | None = None
        self._fault: str | None = None

    @property
    def top(self) -> Top:
        return cast("Top", self.app)

    # --------------------------------------------------------------------------------------- what a screen is made of

    @abstractmethod
    def body(self) -> Iterable[Widget]:
        """The widgets between title and status line."""

    @abstractmethod
    def title_line(self) -> Line:
        """The title at the top."""

    def looks_at(self) -> Look | None:
        """What to read; None for a screen that reads nothing."""
        return None

    def show(self, found: object) -> None:
        """Shows what was read."""

    def note(self) -> list[str]:
        """The texts of the status line."""
        return []

    # --------------------------------------------------------------------------------------- the rest

    def compose(self) -> ComposeResult:
        yield Lines(id="title")
        yield from self.body()
        ask = Confirmation(id="ask")
        ask.display = False
        yield ask
        said = Lines(id="said")
        said.display = False
        yield said
        with Horizontal(id="foot"):
            yield Lines(id="status")
            yield Lines(id="at")
        yield Lines(id="keys")

    def on_screen_resume(self) -> None:
        self.look_again()
        self.draw()

    def look_again(self) -> None:
        """Reads at once what :meth:`looks_at` wants now, and goes on with that."""
        self.look = self.looks_at()
        self.top.watcher.want(self.look)

    def told(self, seen: Seen) -> None:
        """Takes what a read for this screen found."""
        self._fault = seen.fault
        with suppress(NoMatches):  # When a screen closes, its widgets are removed one by one before the screen is.
            if seen.found is not None:
                self._seen_at = self.top.clock()
                self.show(seen.found)
            self.draw()

    def on_resize(self, _event: events.Resize) -> None:
        self.call_after_refresh(self.draw)

    def draw(self) -> None:
        """Draws title, status and keys again if they have changed."""
        if not self.is_mounted:
            return
        self.query_one("#title", Lines).set([self.title_line()])
        at = "" if self._seen_at is None else f" {self._seen_at:%H:%M:%S} UTC"
        lines = self._said()
        said = self.query_one("#said", Lines)
        said.display = bool(lines)
        said.styles.height = max(1, len(lines))
        said.set(lines)
        self.query_one("#status", Lines).set([self._status()])
        self.query_one("#at", Lines).set([[Part(at, "dim")]])
        self.query_one("#keys", Lines).set([key_line(self.keys)])

    def _said(self) -> list[Line]:
        """The current problem, else the outcome of the last action, on as many lines as needed."""
        if self._fault is not None:
            since = "" if self._seen_at is None else f"As of {self._seen_at:%H:%M:%S} UTC. "
            said = Part(f"{since}{formatting.on_one_line(self._fault)}", "bold red")
        elif self.top.said:
            said = Part(formatting.on_one_line(self.top.said), "bold")
        else:
            return []
        lines: list[Line] = [*broken([said], self.size.width)]
        return lines[:_MOST_SAID]

    def _status(self) -> Line:
        if notes := self.note():
            return parts_of(Part("  ".join(notes), "yellow"))
        return [Part("reading …", "dim")] if self._seen_at is None and self.look is not None else []

    def ask(self, change: Change) -> None:
        """Asks before a change is made."""
        self.query_one("#ask", Confirmation).ask(change)

    def on_confirmation_answered(self, message: Confirmation.Answered) -> None:
        self.refocus()
        self.top.answered(message.change, yes=message.yes)

    def refocus(self) -> None:
        """Gives the focus back to the widget that usually has it."""
        for widget in self.query("Table, Scrolled"):
            widget.focus()
            return

    def action_back(self) -> None:
        self.dismiss()

    def action_help(self) -> None:
        self.top.help()

    def action_again(self) -> None:
        self.look_again()


def key_line(keys: Keys) -> Line:
    """``l log  c cancel``."""
    line: list[Part] = []
    for key, meaning in keys:
        line += [Part("  " if line else ""), Part(key, "bold"), Part(f" {meaning}", "dim")]
    return line
