"""The screen of a log. It follows the log as long as the last line is on the screen."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import ClassVar, Final
from uuid import UUID

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget

from rythmiq_ray.console import formatting
from rythmiq_ray.top.base import Keys, TopScreen
from rythmiq_ray.top.cells import Line, Part
from rythmiq_ray.top.lines import Scrolled
from rythmiq_ray.top.logfeed import LogFeed, Text

_MOST_LINES: Final = 5_000
_LONGEST: Final = 4_000
"""The most characters of a line."""


class LogScreen(TopScreen):
    """A job's log, from the artifact store, or from the backend while the job runs."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("f", "follow", "follow", show=False)]
    keys: ClassVar[Keys] = (
        ("\u2191 \u2193", "move"),
        ("g G", "begin, end"),
        ("f", "follow"),
        ("esc", "back"),
        ("?", "help"),
        ("q", "quit"),
    )

    class Came(Message):
        """New text from the feed's thread."""

        def __init__(self, text: Text) -> None:
            super().__init__()
            self.text = text

    def __init__(self, job_id: UUID, called: str) -> None:
        super().__init__()
        self._job_id = job_id
        self._called = called
        self._feed: LogFeed | None = None
        self._log: deque[Line] = deque(maxlen=_MOST_LINES)
        self._rest: str | None = None
        """The last line while it has no line end yet."""
        self._following = True

    def body(self) -> Iterable[Widget]:
        yield Scrolled(id="text")

    def title_line(self) -> Line:
        follows = Part("  following" if self._following else "  not following: f or G", "dim")
        return [Part(" Log ", "bold reverse"), Part(f" {formatting.on_one_line(self._called)}"), follows]

    def on_mount(self) -> None:
        self._feed = LogFeed(self.top.source.database, self._job_id, lambda text: self._tell(text))
        self._feed.start()

    def _tell(self, text: Text) -> None:
        self.post_message(self.Came(text))

    def on_unmount(self) -> None:
        if self._feed is not None:
            self._feed.end()

    def on_log_screen_came(self, message: Came) -> None:
        text = message.text
        if text.said:
            self._end_line()
            self._log.extend([Part(formatting.visible(line), "dim italic")] for line in text.text.splitlines())
        else:
            *whole, rest = text.text.split("\n")
            for line in whole:
                self._add(line)
                self._end_line()
            if rest:
                self._add(rest)
        self.query_one(Scrolled).set(list(self._log), to_end=self._following)
        self.draw()

    def _add(self, text: str) -> None:
        """Adds text to the unfinished last line, or begins a new one."""
        if self._rest is not None:
            self._log.pop()
        self._rest = (self._rest or "") + text[:_LONGEST]
        self._log.append([Part(_shown(self._rest))])

    def _end_line(self) -> None:
        self._rest = None

    def on_scrolled_moved(self) -> None:
        following = self.query_one(Scrolled).at_end
        if following != self._following:
            self._following = following
            self.draw()

    def action_follow(self) -> None:
        self.query_one(Scrolled).action_to(-1)


def _shown(line: str) -> str:
    """The text to show for a line of the log: an empty line stays an empty line."""
    return formatting.visible(line.expandtabs(8)).replace("\n", " ") if line else ""
