"""Numbers from members' output files, read in the background because ten thousand files take long."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

from rythmiq_ray import access, results
from rythmiq_ray.artifacts import is_own
from rythmiq_ray.console.database import FAULTS, Database, said_of
from rythmiq_ray.errors import NotFound
from rythmiq_ray.model import Artifact
from rythmiq_ray.queue import listing

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

MOST_BYTES: Final = 256 * 1024
"""Of a file whose numbers a chart shows."""
_AT_ONCE: Final = 8
_MOST_TABLES: Final = 20
"""Groups and files that are remembered."""
_STEP: Final = 200
_WAIT_S: Final = 0.12
"""A page waits so long for the first numbers: those of a small group are there then."""


@dataclass
class Numbers:
    """The numeric fields of one file of each member, as far as they have been read."""

    of: dict[UUID, Mapping[str, float]] = field(default_factory=dict)
    wanted: int = 0
    running: bool = False
    fault: str | None = None

    @property
    def fields(self) -> list[str]:
        """Names of fields, in the order in which they first come."""
        return list(dict.fromkeys(name for row in list(self.of.values())[:200] for name in row))


class OutputNumbers:
    """Remembers what it has read: a stored file never changes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._tables: OrderedDict[tuple[UUID, str], Numbers] = OrderedDict()
        self._closed = threading.Event()

    def close(self) -> None:
        """Lets what is being read end early."""
        self._closed.set()

    def of(self, group_id: UUID, file: str, members: Sequence[UUID]) -> Numbers:
        """The numbers read so far for these members that have ended; starts to read the missing ones."""
        with self._lock:
            numbers = self._tables.setdefault((group_id, file), Numbers())
            self._tables.move_to_end((group_id, file))
            while len(self._tables) > _MOST_TABLES:
                self._tables.popitem(last=False)
            missing = [member for member in members if member not in numbers.of]
            numbers.wanted = len(members)
            thread = None
            if missing and not numbers.running:
                numbers.running = True
                thread = threading.Thread(target=self._read, args=(numbers, file, missing), daemon=True)
                thread.start()
        if thread is not None:
            thread.join(_WAIT_S)
        return numbers

    def _read(self, numbers: Numbers, file: str, members: Sequence[UUID]) -> None:
        try:
            for start in range(0, len(members), _STEP):
                if self._closed.is_set():
                    return
                with self._database.read() as connection:
                    stored = stored_of(connection, members[start : start + _STEP], file)
                numbers.of.update(_read_all(stored, access.read))
            numbers.fault = None
        except FAULTS as error:
            numbers.fault = said_of(error)
        finally:
            numbers.running = False


Read = Callable[[str], Iterable[bytes]]


def read_numbers(
    connection: Connection, members: Sequence[UUID], file: str, read: Read
) -> Iterator[dict[UUID, dict[str, float]]]:
    """The numbers in a file of each member, some members at a time. Raises StoreUnavailable and DatabaseUnavailable."""
    for start in range(0, len(members), _STEP):
        yield _read_all(stored_of(connection, members[start : start + _STEP], file), read)


def stored_of(connection: Connection, members: Sequence[UUID], file: str) -> dict[UUID, Artifact | None]:
    """The file of each member; None for one that left none."""
    stored = listing.stored(connection, members, file)
    return {member: stored[member][0][1] if member in stored else None for member in members}


def _read_all(files: Mapping[UUID, Artifact | None], read: Read) -> dict[UUID, dict[str, float]]:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        rows = pool.map(lambda item: _numbers_of(item[0], item[1], read), files.items())
        return dict(zip(files, rows, strict=True))


def _numbers_of(member: UUID, file: Artifact | None, read: Read) -> dict[str, float]:
    if file is None or file.bytes > MOST_BYTES or not is_own(file.uri, member):
        return {}
    try:
        rows = results.fields_of(file, read)
    except (NotFound, ValueError, RecursionError):
        return {}
    # The last row of a table: if training writes a line for each epoch, that is the final result.
    row = rows[-1] if rows else {}
    return {
        str(name): float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    }
