"""A job's log for a page: its last lines, the lines that a search finds, and new lines while it runs."""

from __future__ import annotations

import codecs
import re
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from rythmiq_ray import access
from rythmiq_ray.access import Backends
from rythmiq_ray.artifact_names import LOG_NAME
from rythmiq_ray.artifacts import is_own
from rythmiq_ray.console.database import Database
from rythmiq_ray.errors import ConfigurationError, NotFound, RythmiqError
from rythmiq_ray.model import Artifact, Job, JobState
from rythmiq_ray.queue import inspect

LAST_LINES: Final = 1_000
MOST_FOUND: Final = 500
MOST_READ: Final = 256 * 1024 * 1024
"""The most bytes of a log that a page reads; for longer ones use `rythmiq logs`."""
LONGEST_LINE: Final = 4_000
"""The most characters of a line that are shown."""
_LOOK_S: Final = 1.0
_COLOURS: Final = re.compile(r"\x1b\[[0-9;:]*m")
_PATIENCE: Final = 4
"""Each read fetches the whole live log, so the pause after it is this many times as long as the read took."""
_MOST_NEW: Final = 256 * 1024
"""The most bytes that a follower gets at once; of more, it gets the last ones."""


@dataclass(frozen=True)
class Line:
    """A line of a log."""

    number: int
    text: str


@dataclass(frozen=True)
class Look:
    """What a page shows of a log."""

    lines: list[Line]
    total: int
    """The number of lines read."""
    bytes: int
    whole: bool
    """Whether the whole log was read."""
    found: int | None
    """How many lines the search found; None without one."""
    live: bool
    """Whether it is a running attempt's log, read from the backend."""


def look(database: Database, backends: Backends, job_id: UUID, attempt: int, search: str = "") -> Look:
    """The last lines of an attempt's log, or the lines that contain ``search``, ignoring case.

    Raises NotFound if there is no log, StoreUnavailable, and what the backend raises.
    """
    job, file = _log_of(database, job_id, attempt)
    if file is not None:
        with closing(_stored(file, job_id)) as chunks:
            return _looked(chunks, search, live=False)
    if job.state is not JobState.RUNNING or job.attempt != attempt or job.remote_id is None:
        raise NotFound(_none_yet(job, attempt))
    with backends.get().open_log(job) as live:
        return _looked(live, search, live=True)


def _none_yet(job: Job, attempt: int) -> str:
    if job.state.finished or attempt < job.attempt:
        return "This attempt left no log."
    if attempt > job.attempt or job.attempt == 0:
        return "It has not started yet, so there is no log."
    return "It is being submitted, and has no log yet."


def _looked(chunks: Iterable[bytes], search: str, *, live: bool) -> Look:
    wanted = search.casefold()
    kept: deque[Line] = deque(maxlen=MOST_FOUND if wanted else LAST_LINES)
    number = found = read = 0
    whole = True
    for line, size in _lines(chunks):
        read += size
        if read > MOST_READ:
            whole = False
            break
        number += 1
        # Progress bars use carriage returns; only the text after the last one is shown.
        text = plain(line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2])
        if not wanted or wanted in text.casefold():
            found += 1
            kept.append(Line(number, text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}…"))
    return Look(list(kept), number, read, whole, found if wanted else None, live)


def _lines(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Each line, and how many bytes it takes in the log; a line of more than 1 MiB is cut."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line, len(line) + 1
        while len(rest) > 1024 * 1024:
            yield rest[: 1024 * 1024], 1024 * 1024
            rest = rest[1024 * 1024 :]
    if rest:
        yield rest, len(rest)


@dataclass(frozen=True)
class News:
    """What a follower of a log is told."""

    text: str
    at: int
    """How many bytes of the log have been read up to here."""
    ended: bool = False


def plain(text: str) -> str:
    """A text without a terminal's colours."""
    return _COLOURS.sub("", text)


def unreadable(error: RythmiqError) -> str:
    """Why a log cannot be shown; covers a missing key and a missing configuration."""
    first = error.message.splitlines()[0]
    if isinstance(error, ConfigurationError):
        return (
            f"a live log needs the driver's configuration ({first}); it will be in the store once the attempt has ended"
        )
    return first


class Follower:
    """Follows an attempt's log from byte ``at`` on; the caller waits ``pause_s`` seconds between reads."""

    def __init__(self, database: Database, backends: Backends, job_id: UUID, attempt: int, at: int) -> None:
        self._database = database
        self._backends = backends
        self._job_id = job_id
        self._attempt = attempt
        self._at = at
        self._said = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.pause_s = _LOOK_S

    def look(self) -> list[News]:
        """The news since the last look; the very last one is ``ended``. Raises NotFound and DatabaseUnavailable."""
        began = time.monotonic()
        text, fault = b"", ""
        job, file = _log_of(self._database, self._job_id, self._attempt)
        running = job.state is JobState.RUNNING and job.attempt == self._attempt
        try:
            if file is not None:
                with closing(_stored(file, self._job_id)) as chunks:
                    text = self._behind(chunks)
            elif running and job.remote_id is not None:
                with self._backends.get().open_log(job) as live:
                    text = self._behind(live)
        except NotFound:
            pass
        except RythmiqError as error:
            fault = unreadable(error)
        # The decoder keeps the first part of a character that is split between two reads.
        said = plain(self._decoder.decode(text)).replace("\r\n", "\n").replace("\r", "\n")
        news = [News(said, self._at)] if said else []
        if fault and fault != self._said:
            self._said = fault
            news.append(News(f"[the log cannot be read now: {fault}]\n", self._at))
        if file is not None or (job.state.finished and job.attempt <= self._attempt) or job.attempt > self._attempt:
            news.append(News("", self._at, ended=True))
        self.pause_s = max(_LOOK_S, min(30.0, _PATIENCE * (time.monotonic() - began)))
        return news

    def _behind(self, chunks: Iterable[bytes]) -> bytes:
        skip, new = self._at, b""
        for chunk in chunks:
            if skip < len(chunk):
                part = chunk[skip:]
                self._at += len(part)
                new = (new + part)[-_MOST_NEW:]
            skip = max(0, skip - len(chunk))
        return new


def _log_of(database: Database, job_id: UUID, attempt: int) -> tuple[Job, Artifact | None]:
    with database.read() as connection:
        job = inspect.job(connection, job_id)
        files = inspect.artifacts(connection, job_id, attempt)
    return job, next((file for _, file in files if file.name == LOG_NAME), None)


def _stored(file: Artifact, job_id: UUID) -> Generator[bytes, None, None]:
    if not is_own(file.uri, job_id):
        raise NotFound("The row of this log has a URI that does not belong to this job.")
    yield from access.read(file.uri)
