"""All events, one JSON object in each line, appended and never changed. The emulator's state is read back from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rythmiq_ray.local.camber.answers import encode

JOURNAL_NAME: Final = "journal.jsonl"
"""In the emulator's folder; it is made before everything else, so its absence shows that the folder is another's."""


class Journal:
    """An append-only file. A line is given to the kernel in one write, so it survives a kill of this process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._drop_torn_line()

    def records(self) -> Iterator[dict[str, Any]]:
        """Everything written so far, oldest first."""
        with self._path.open("rb") as lines:
            for line in lines:
                yield json.loads(line)

    def write(self, event: str, time: float, **facts: Any) -> None:
        """Appends one event; ``time`` is in seconds since 1970. Raises OSError."""
        line = encode({"event": event, "time": time, **facts}) + b"\n"
        while line:
            line = line[os.write(self._file, line) :]

    def close(self) -> None:
        os.close(self._file)

    def _drop_torn_line(self) -> None:
        """Removes an incomplete last line, which a full disk may have left; no caller was told of its event."""
        end = self._path.stat().st_size
        if end == 0:
            return
        with self._path.open("rb") as file:
            file.seek(end - 1)
            if file.read(1) == b"\n":
                return
            file.seek(0)
            whole = sum(len(line) for line in file if line.endswith(b"\n"))
        os.ftruncate(self._file, whole)
