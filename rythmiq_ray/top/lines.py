"""Widgets that draw lines of cells. Only what differs from what is on the screen is drawn, for slow connections."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar, Final

from rich.cells import cell_len
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from rythmiq_ray.top.cells import Cell, Column, Line, Part, fitted, head, row, segments

_CURSOR: Final = "reverse"


class Lines(Widget):
    """A part of the screen whose lines are set all at once; it does not scroll."""

    def __init__(self, lines: Sequence[Line] = (), *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines: Sequence[Line] = lines
        self._drawn: list[Strip] = []

    def set(self, lines: Sequence[Line]) -> None:
        """Shows other lines."""
        self._lines = lines
        self.draw()

    def strip(self, y: int) -> Strip:
        """The content of a line of the widget."""
        parts = self._lines[y] if y < len(self._lines) else ()
        return Strip(segments(fitted(parts, self.size.width)), self.size.width)

    def draw(self) -> None:
        """Draws only what has changed."""
        before, self._drawn = self._drawn, [self.strip(y) for y in range(self.size.height)]
        for y, strip in enumerate(self._drawn):
            old = before[y] if y < len(before) else None
            if old is None or old.cell_length != strip.cell_length:
                self.refresh(Region(0, y, self.size.width, 1))
            elif (span := _difference(old, strip)) is not None:
                self.refresh(Region(span[0], y, span[1] - span[0], 1))

    def on_resize(self, _event: events.Resize) -> None:
        self._drawn = []
        self.draw()

    def render_line(self, y: int) -> Strip:
        return self._drawn[y] if y < len(self._drawn) else Strip.blank(self.size.width)


def _difference(old: Strip, new: Strip) -> tuple[int, int] | None:
    """The first cell in which two lines of the same width differ, and the one after the last; None if none differs."""
    if old == new:
        return None
    before, after = _styled(old), _styled(new)
    differ = [at for at, (one, other) in enumerate(zip(before, after, strict=False)) if one != other]
    if not differ:
        return None if len(before) == len(after) else (0, new.cell_length)
    return differ[0], min(new.cell_length, differ[-1] + 1)


def _styled(strip: Strip) -> list[tuple[str, object]]:
    """A text and a style for each cell; a wide character fills two cells."""
    return [
        (character if part == 0 else "", segment.style)
        for segment in strip
        for character in segment.text
        for part in range(cell_len(character))
    ]


class Scrolled(Lines, can_focus=True):
    """Lines that scroll by keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "by(1)", "down", show=False),
        Binding("up,k", "by(-1)", "up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "page down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "page up", show=False),
        Binding("home,g", "to(0)", "first", show=False),
        Binding("end,G", "to(-1)", "last", show=False),
    ]

    class Moved(Message):
        """The lines were scrolled."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.top = 0

    @property
    def room(self) -> int:
        """How many lines are shown at once."""
        return max(1, self.size.height)

    @property
    def total(self) -> int:
        """How many lines there are."""
        return len(self._lines)

    @property
    def at_end(self) -> bool:
        """Whether the last line is on the screen."""
        return self.top + self.room >= self.total

    def set(self, lines: Sequence[Line], *, to_end: bool = False) -> None:
        """Shows other lines without scrolling, or with ``to_end`` the last of them."""
        self._lines = lines
        self._go(len(lines) if to_end else self.top)

    def strip(self, y: int) -> Strip:
        return super().strip(self.top + y)

    def action_by(self, lines: int) -> None:
        self._go(self.top + lines)

    def action_page(self, pages: int) -> None:
        self._go(self.top + pages * max(1, self.room - 1))

    def action_to(self, line: int) -> None:
        self._go(line if line >= 0 else self.total)

    def _go(self, top: int) -> None:
        self.top = max(0, min(top, self.total - self.room))
        self.draw()
        self.post_message(self.Moved())

    def on_resize(self, event: events.Resize) -> None:
        self.top = max(0, min(self.top, self.total - self.room))
        super().on_resize(event)


class Table(Scrolled):
    """Rows with a cursor, which stays on the row with the same key while other rows come and go."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter", "open", "look inside", show=False)]

    class Opened(Message):
        """Enter was pressed on a row."""

        def __init__(self, key: Hashable) -> None:
            super().__init__()
            self.key = key

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns: Sequence[Column] = ()
        self._rows: Sequence[tuple[Hashable, Sequence[Cell]]] = ()
        self._empty = ""
        self.cursor = 0

    @property
    def room(self) -> int:
        return max(1, self.size.height - 1)

    @property
    def total(self) -> int:
        return len(self._rows)

    @property
    def key(self) -> Hashable | None:
        """The key of the row that the cursor is on."""
        return self._rows[self.cursor][0] if self.cursor < len(self._rows) else None

    def show(
        self,
        columns: Sequence[Column],
        rows: Sequence[tuple[Hashable, Sequence[Cell]]],
        *,
        empty: str,
        keep: bool = True,
    ) -> None:
        """Shows rows, each with its key; ``empty`` says why there are none. ``keep``: the cursor stays on its row."""
        key, before = self.key, self.cursor
        self._columns, self._rows, self._empty = columns, rows, empty
        places = {row_key: at for at, (row_key, _) in enumerate(rows)}
        cursor = 0
        if keep:
            # A cursor at the top stays there, because new rows come in at the top.
            cursor = before if before == 0 else places.get(key, before)
        self._go(cursor)

    def strip(self, y: int) -> Strip:
        width = self.size.width
        if y == 0:
            return Strip(segments(head(self._columns, width)), width)
        at = self.top + y - 1
        if at < len(self._rows):
            over = _CURSOR if at == self.cursor else ""
            return Strip(segments(row(self._columns, self._rows[at][1], width), over), width)
        said = self._empty if not self._rows and y == 2 else ""
        return Strip(segments(fitted([Part(said, "dim")], width)), width)

    def action_by(self, lines: int) -> None:
        self._go(self.cursor + lines)

    def action_page(self, pages: int) -> None:
        self._go(self.cursor + pages * self.room)

    def action_to(self, line: int) -> None:
        self._go(line if line >= 0 else self.total)

    def action_open(self) -> None:
        if self.key is not None:
            self.post_message(self.Opened(self.key))

    def _go(self, cursor: int) -> None:
        self.cursor = max(0, min(cursor, self.total - 1))
        self._into_view()
        self.draw()
        self.post_message(self.Moved())

    def _into_view(self) -> None:
        top = min(self.top, self.cursor, max(0, self.total - self.room))
        self.top = max(top, self.cursor - self.room + 1, 0)

    def on_resize(self, event: events.Resize) -> None:
        self._into_view()
        Lines.on_resize(self, event)
