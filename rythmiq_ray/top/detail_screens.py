"""Screens of one thing: a job, a group with its members, a driver, and the help."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import ClassVar
from uuid import UUID

from textual import events, on
from textual.binding import Binding, BindingType
from textual.widget import Widget

from rythmiq_ray.queue.listing import DriverState
from rythmiq_ray.top import changes, details, views
from rythmiq_ray.top.base import Keys, TopScreen
from rythmiq_ray.top.cells import Line, Part, parts_of
from rythmiq_ray.top.lines import Lines, Scrolled, Table
from rythmiq_ray.top.logscreen import LogScreen
from rythmiq_ray.top.source import GroupDetails, JobDetails
from rythmiq_ray.top.watch import Look

_BACK: Keys = (("esc", "back"), ("?", "help"), ("q", "quit"))


class JobScreen(TopScreen):
    """All that is known of a job."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "log", "log", show=False),
        Binding("c", "change('cancel')", "cancel", show=False),
        Binding("r", "change('retry')", "retry", show=False),
        Binding("o", "group", "its group", show=False),
    ]
    keys: ClassVar[Keys] = (("l", "log"), ("c", "cancel"), ("r", "retry"), ("o", "its group"), *_BACK)

    def __init__(self, job_id: UUID) -> None:
        super().__init__()
        self._job_id = job_id
        self._seen: JobDetails | None = None

    def body(self) -> Iterable[Widget]:
        yield Scrolled(id="text")

    def title_line(self) -> Line:
        return [Part(" Job ", "bold reverse"), Part(f" {self._job_id}")]

    def looks_at(self) -> Look:
        return partial(self.top.source.job, self._job_id)

    def show(self, found: object) -> None:
        if isinstance(found, JobDetails):
            self._seen = found
            self._draw_text()

    def _draw_text(self) -> None:
        if self._seen is not None:
            self.query_one(Scrolled).set(details.job(self._seen, self.size.width))

    def on_resize(self, event: events.Resize) -> None:
        super().on_resize(event)
        self.call_after_refresh(self._draw_text)

    def action_log(self) -> None:
        self.app.push_screen(LogScreen(self._job_id, str(self._job_id)))

    def action_change(self, verb: str) -> None:
        if self._seen is not None:
            self.top.propose(verb, changes.on_jobs(verb, *changes.job_target(self._seen.job)))

    def action_group(self) -> None:
        if self._seen is None or self._seen.group is None:
            self.top.say("This job is in no group.")
        else:
            self.app.push_screen(GroupScreen(self._seen.group.group_id))


class GroupScreen(TopScreen):
    """A group, and its members as rows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("l", "log", "log", show=False),
        Binding("c", "change('cancel')", "cancel", show=False),
        Binding("r", "change('retry')", "retry", show=False),
        Binding("p", "pause", "pause", show=False),
    ]
    keys: ClassVar[Keys] = (
        ("\u21b5", "member"),
        ("l", "log"),
        ("c", "cancel"),
        ("r", "retry"),
        ("p", "pause group"),
        *_BACK,
    )

    def __init__(self, group_id: UUID) -> None:
        super().__init__()
        self._group_id = group_id
        self._seen: GroupDetails | None = None

    def body(self) -> Iterable[Widget]:
        yield Lines(id="about")
        yield Table(id="table")

    def title_line(self) -> Line:
        name = str(self._group_id) if self._seen is None else self._seen.group.name or str(self._group_id)
        return [Part(" Group ", "bold reverse"), Part(" "), *parts_of(name)]

    def looks_at(self) -> Look:
        return partial(self.top.source.group, self._group_id)

    def show(self, found: object) -> None:
        if isinstance(found, GroupDetails):
            self._seen = found
            self._draw_about()
            shown = views.members(found.page.jobs, found.at)
            self.query_one(Table).show(shown.columns, shown.rows, empty=shown.empty)

    def _draw_about(self) -> None:
        if self._seen is not None:
            lines = details.group(self._seen, self.size.width)
            about = self.query_one("#about", Lines)
            # Limited, so that some members are visible however long it is.
            about.styles.height = min(len(lines), max(4, self.size.height // 2)) + 1
            about.set(lines)

    def note(self) -> list[str]:
        if self._seen is not None and self._seen.page.next is not None:
            shown, members = len(self._seen.page.jobs), self._seen.group.members
            return [f"The last {shown:,} of {members:,} members; / group=… in the jobs goes on behind them."]
        return []

    def on_resize(self, event: events.Resize) -> None:
        super().on_resize(event)
        self.call_after_refresh(self._draw_about)

    @on(Table.Opened)
    def _opened(self, message: Table.Opened) -> None:
        if isinstance(message.key, UUID):
            self.app.push_screen(JobScreen(message.key))

    def action_log(self) -> None:
        if isinstance(key := self.query_one(Table).key, UUID):
            self.app.push_screen(LogScreen(key, str(key)))

    def action_change(self, verb: str) -> None:
        key = self.query_one(Table).key
        members = () if self._seen is None else self._seen.page.jobs
        if (job := next((each for each in members if each.job_id == key), None)) is not None:
            self.top.propose(verb, changes.on_jobs(verb, *changes.job_target(job)))

    def action_pause(self) -> None:
        if self._seen is not None:
            group, paused = self._seen.group, self._seen.limit is not None
            ready = changes.pause(*changes.group_target(group.group_id, group.name), paused=paused)
            self.top.propose("resume" if paused else "pause", ready)


class DriverScreen(TopScreen):
    """All that is known of a driver."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("d", "drain", "drain", show=False)]
    keys: ClassVar[Keys] = (("d", "drain"), *_BACK)

    def __init__(self, driver_id: UUID) -> None:
        super().__init__()
        self._driver_id = driver_id
        self._seen: DriverState | None = None

    def body(self) -> Iterable[Widget]:
        yield Scrolled(id="text")

    def title_line(self) -> Line:
        return [Part(" Driver ", "bold reverse"), Part(f" {self._driver_id}")]

    def looks_at(self) -> Look:
        return partial(self.top.source.driver, self._driver_id)

    def show(self, found: object) -> None:
        if isinstance(found, DriverState):
            self._seen = found
            self.query_one(Scrolled).set(details.driver(found, self.top.clock(), self.size.width))

    def action_drain(self) -> None:
        if self._seen is not None:
            self.top.propose("drain", changes.drain(self._seen))


class HelpScreen(TopScreen):
    """Every key, and how filters are written."""

    keys: ClassVar[Keys] = (("esc", "back"), ("q", "quit"))

    def __init__(self, groups: Sequence[tuple[str, Keys]]) -> None:
        super().__init__()
        self._groups = groups

    def body(self) -> Iterable[Widget]:
        yield Scrolled(id="text")

    def title_line(self) -> Line:
        return [Part(" Help ", "bold reverse"), Part(" rythmiq top")]

    def on_resize(self, event: events.Resize) -> None:
        super().on_resize(event)
        self.query_one(Scrolled).set(details.keys(self._groups, event.size.width))

    def action_help(self) -> None:
        self.dismiss()
