"""What happened, one JSON object a line, appended and never changed. It is the emulator's memory across restarts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rythmiq_ray.local.camber.answers import encode

JOURNAL_NAME: Final = "journal.jsonl"
"""In the emulator's folder; made before anything else there."""


class Journal:
    """An append-only file. A line is handed to the system in one write, so it outlives a kill of this process."""

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
        """Appends one event; ``time`` is in seconds since the epoch."""
        line = encode({"event": event, "time": time, **facts}) + b"\n"
        while line:
            line = line[os.write(self._file, line) :]

    def close(self) -> None:
        os.close(self._file)

    def _drop_torn_line(self) -> None:
        """A full disk may have left a line without its end; its event was then never answered for."""
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
