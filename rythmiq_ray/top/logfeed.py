"""Reads a job's log for a screen: its last lines, then new ones, through all attempts until the job has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from rythmiq_ray.access import Backends
from rythmiq_ray.console.database import FAULTS, Database, said_of
from rythmiq_ray.console.joblog import Follower, look, unreadable
from rythmiq_ray.errors import NotFound, RythmiqError
from rythmiq_ray.model import Job
from rythmiq_ray.queue import inspect


@dataclass(frozen=True)
class Text:
    """New text."""

    text: str
    said: bool = False
    """Whether it is a message about the log, and not part of it."""


class LogFeed:
    """A thread that follows a job's log; ``tell`` is called on that thread."""

    def __init__(self, database: Database, job_id: UUID, tell: Callable[[Text], None]) -> None:
        self._database = database
        self._backends = Backends()
        self._job_id = job_id
        self._tell = tell
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="top-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Ends the thread after the current read."""
        self._ending.set()

    def _run(self) -> None:
        with self._backends:
            attempt: int | None = None
            while not self._ending.is_set():
                try:
                    job = self._job()
                    attempt = attempt or max(1, job.attempt)
                    self._attempt(attempt)
                    job = self._job()
                    if self._ending.is_set() or (job.state.finished and job.attempt <= attempt):
                        self._say(f"job {job.job_id} is {job.state}{f' ({job.error_code})' if job.error_code else ''}")
                        return
                    attempt += 1
                    self._say(f"attempt {attempt} of {job.max_attempts}")
                except NotFound as error:
                    self._say(error.message)
                    return
                except FAULTS as error:
                    self._say(said_of(error))
                    self._ending.wait(2.0)

    def _job(self) -> Job:
        with self._database.read() as connection:
            return inspect.job(connection, self._job_id)

    def _attempt(self, attempt: int) -> None:
        """Follows one attempt to its end."""
        at = 0
        try:
            found = look(self._database, self._backends, self._job_id, attempt)
            at = found.bytes
            if found.total > len(found.lines) or not found.whole:
                self._say(f"the last {len(found.lines):,} of {found.total:,} lines; `rythmiq logs` has all of them")
            self._tell(Text("".join(f"{line.text}\n" for line in found.lines)))
            if not found.live:
                return
        except NotFound as error:
            self._say(error.message)
        except RythmiqError as error:
            self._say(unreadable(error))
        follower = Follower(self._database, self._backends, self._job_id, attempt, at)
        said = ""
        while not self._ending.is_set():
            try:
                for news in follower.look():
                    if news.ended:
                        return
                    self._tell(Text(news.text))
                said = ""
            except NotFound:
                raise
            except FAULTS as error:
                if said_of(error) != said:
                    said = said_of(error)
                    self._say(said)
            self._ending.wait(follower.pause_s)

    def _say(self, text: str) -> None:
        self._tell(Text(text, said=True))
