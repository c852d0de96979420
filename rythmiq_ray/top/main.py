"""The first screen: queues, groups, jobs and drivers, one table at a time."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from functools import partial
from typing import ClassVar, Final
from uuid import UUID

from textual import on
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Input

from rythmiq_ray.console import filters
from rythmiq_ray.console.actions import Target
from rythmiq_ray.console.filters import ParsedFilter
from rythmiq_ray.model import Job
from rythmiq_ray.top import changes, views
from rythmiq_ray.top.base import Keys, TopScreen
from rythmiq_ray.top.cells import Line, Part, parts_of
from rythmiq_ray.top.detail_screens import DriverScreen, GroupScreen, JobScreen
from rythmiq_ray.top.lines import Lines, Table
from rythmiq_ray.top.logscreen import LogScreen
from rythmiq_ray.top.source import Drivers, Groups, Head, Jobs, Queues, paused_of
from rythmiq_ray.top.watch import Look

VIEWS: Final = ("queues", "groups", "jobs", "drivers")
_OF_GROUPS: Final = frozenset({"group", "user", "name", "label", "since", "until"})
_COUNTED: Final = {
    "queues": frozenset({"queue"}),
    "groups": _OF_GROUPS,
    "jobs": frozenset(filters.NAMES),
    "drivers": frozenset({"queue"}),
}
"""Which filters apply in which view."""
Given = tuple[tuple[str, str], ...]


class FilterLine(Input):
    """The input line for a filter."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "give_up", "give up", show=False)]

    def action_give_up(self) -> None:
        self.display = False
        self.screen.query_one(Table).focus()


class MainScreen(TopScreen):
    """The tables, a filter for all of them, and the actions on the row that the cursor is on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(at + 1), f"view('{view}')", view, show=False) for at, view in enumerate(VIEWS)),
        Binding("tab", "next(1)", "next view", show=False, priority=True),
        Binding("shift+tab", "next(-1)", "view before", show=False, priority=True),
        Binding("slash,f4", "filter", "filter", show=False),
        Binding("l", "log", "log", show=False),
        Binding("c", "change('cancel')", "cancel", show=False),
        Binding("r", "change('retry')", "retry", show=False),
        Binding("p", "pause", "pause", show=False),
        Binding("P", "pause_account", "pause the account", show=False),
        Binding("d", "drain", "drain", show=False),
        Binding("greater_than_sign,full_stop", "older", "older", show=False),
        Binding("less_than_sign,comma", "newest", "newest", show=False),
    ]
    keys: ClassVar[Keys] = (
        ("1-4", "view"),
        ("\u21b5", "inside"),
        ("l", "log"),
        ("c", "cancel"),
        ("r", "retry"),
        ("p", "pause"),
        ("/", "filter"),
        ("?", "help"),
        ("q", "quit"),
    )

    def __init__(self, *, view: str, given: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self.view = view
        self.given: Given = tuple(given)
        self.before: UUID | None = None
        self.seen: Queues | Groups | Jobs | Drivers | None = None
        self._note = ""
        self._shown_view = ""

    def body(self) -> Iterable[Widget]:
        yield Lines(id="summary")
        yield Table(id="table")
        line = FilterLine(id="filter", compact=True, select_on_focus=False)
        line.cursor_blink = False
        line.display = False
        yield line

    def title_line(self) -> Line:
        line: list[Part] = []
        for at, view in enumerate(VIEWS):
            chosen = view == self.view
            line += [Part(f" {at + 1} {view.capitalize()} ", "bold reverse" if chosen else ""), Part(" ")]
        if self.given:
            line += [Part(" filter: "), *parts_of(Part(ParsedFilter(self.given).text, "bold yellow"))]
        return line

    def looks_at(self) -> Look:
        source, given = self.top.source, self.given
        match self.view:
            case "queues":
                return partial(source.queues, given)
            case "groups":
                return partial(source.groups, given)
            case "jobs":
                return partial(source.jobs, given, self.before)
        return partial(source.drivers, given)

    def show(self, found: object) -> None:
        now = self.top.clock()
        match found:
            case Queues():
                view, shown = "queues", views.queues(found, now)
            case Groups():
                view, shown = "groups", views.groups(found, now)
            case Jobs():
                view, shown = "jobs", views.jobs(found, now)
            case Drivers():
                view, shown = "drivers", views.drivers(found, now)
            case _:
                return
        self.seen = found
        self._note = shown.note
        table = self.query_one(Table)
        place = f"{view} {self.given} {self.before}"
        table.show(shown.columns, shown.rows, empty=shown.empty, keep=place == self._shown_view)
        self._shown_view = place
        self.query_one("#summary", Lines).set(views.summary(found.head, self.size.width))

    def note(self) -> list[str]:
        if self.seen is None:
            return []
        notes = [f"{fault}." for fault in self.seen.asked.faults]
        if idle := sorted({name for name, _ in self.given} - _COUNTED[self.view]):
            notes.append(f"The filter {' and '.join(idle)} does not apply here.")
        if self._note:
            notes.append(f"{self._note}.")
        return [*notes, *views.notes(self.seen.head)]

    # --------------------------------------------------------------------------------------- where one goes

    def action_view(self, view: str) -> None:
        if view != self.view:
            self.view, self.before = view, None
            self.look_again()
            self.draw()

    def action_next(self, by: int) -> None:
        self.action_view(VIEWS[(VIEWS.index(self.view) + by) % len(VIEWS)])

    def action_older(self) -> None:
        if isinstance(self.seen, Jobs) and self.view == "jobs" and self.seen.page.next is not None:
            self.before = self.seen.page.next
            self.look_again()

    def action_newest(self) -> None:
        if self.before is not None:
            self.before = None
            self.look_again()

    def action_back(self) -> None:
        if self.before is not None:
            self.action_newest()
        elif self.given:
            self.set_filter(())

    def action_filter(self) -> None:
        line = self.query_one(FilterLine)
        line.value = ParsedFilter(self.given).text
        line.display = True
        line.cursor_position = len(line.value)
        line.focus()

    @on(Input.Submitted)
    def _typed(self, message: Input.Submitted) -> None:
        try:
            given = tuple(filters.items_of(message.value))
        except ValueError as error:
            self.top.say(f"Filter refused: {error}.")
            return
        message.input.display = False
        self.query_one(Table).focus()
        self.set_filter(given)

    def set_filter(self, given: Given) -> None:
        """Shows the rows that match these filters."""
        self.given, self.before = given, None
        if given and not any(name in _COUNTED[self.view] for name, _ in given):
            self.view = "jobs"
        self.look_again()
        self.draw()

    @on(Table.Opened)
    def _opened(self, message: Table.Opened) -> None:
        self.open(message.key)

    def open(self, key: Hashable) -> None:
        """Opens the screen of a row."""
        if isinstance(self.seen, Queues):
            self.view = "jobs"
            self.set_filter((*((name, value) for name, value in self.given if name != "queue"), ("queue", str(key))))
        elif isinstance(key, UUID):
            match self.seen:
                case Groups():
                    self.app.push_screen(GroupScreen(key))
                case Jobs():
                    self.app.push_screen(JobScreen(key))
                case Drivers():
                    self.app.push_screen(DriverScreen(key))

    # --------------------------------------------------------------------------------------- what one does

    def action_log(self) -> None:
        job = self._job()
        if job is None:
            self.top.say("Only jobs have a log: 3 shows jobs.")
        else:
            self.app.push_screen(LogScreen(job.job_id, str(job.job_id)))

    def action_change(self, verb: str) -> None:
        key = self.query_one(Table).key
        match self.seen:
            case Queues() if key is not None:
                self.top.propose(verb, changes.on_queue(verb, str(key)))
            case Groups():
                if (group := next((each for each in self.seen.groups if each.group_id == key), None)) is not None:
                    self.top.propose(verb, changes.on_jobs(verb, *changes.group_target(group.group_id, group.name)))
            case Jobs():
                if (job := self._job()) is not None:
                    self.top.propose(verb, changes.on_jobs(verb, *changes.job_target(job)))
            case Drivers():
                self.top.say(f"Drivers have nothing to {verb}: d drains one.")

    def action_pause(self) -> None:
        key, head = self.query_one(Table).key, self._head()
        if head is None or key is None:
            return
        match self.seen:
            case Queues():
                self._pause(Target("queue", name=str(key)), changes.called("queue", key), head)
            case Groups():
                group = next((each for each in self.seen.groups if each.group_id == key), None)
                if group is not None:
                    self._pause(*changes.group_target(group.group_id, group.name), head)
            case _:
                self.top.say("Only queues, groups and (with P) the account can be paused.")

    def action_pause_account(self) -> None:
        if (head := self._head()) is not None:
            self._pause(Target("account"), "the account", head)

    def _pause(self, target: Target, what: str, head: Head) -> None:
        paused = paused_of(head.limits, target.scope.kind, target.scope.name) is not None
        self.top.propose("resume" if paused else "pause", changes.pause(target, what, paused=paused))

    def action_drain(self) -> None:
        key = self.query_one(Table).key
        if isinstance(self.seen, Drivers):
            driver = next((each for each in self.seen.drivers if each.driver_id == key), None)
            if driver is not None:
                self.top.propose("drain", changes.drain(driver))
        else:
            self.top.say("Only drivers can be drained: 4 shows them.")

    def _job(self) -> Job | None:
        key = self.query_one(Table).key
        if isinstance(self.seen, Jobs):
            return next((each for each in self.seen.page.jobs if each.job_id == key), None)
        return None

    def _head(self) -> Head | None:
        return None if self.seen is None else self.seen.head
