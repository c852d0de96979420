"""A string that must not be shown."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

MASK: Final = "***"
_MAX_BYTES: Final = 64 * 1024


class Secret:
    """Holds a secret so that printing, formatting or logging it shows only ``***``.

    Only :meth:`reveal` returns the value, so every use is easy to search for. A Secret may be pickled into a Ray
    task's arguments, which Ray shows nowhere.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __str__(self) -> str:
        return MASK

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __format__(self, spec: str) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)


def read_secret(path: Path) -> Secret:
    """The content of a file without surrounding white space: Docker and Kubernetes pass secrets as files.

    Raises OSError, and ValueError if the file is empty, too long for a secret, or not text.
    """
    # O_NONBLOCK, because opening a pipe that nobody writes to would wait forever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(_MAX_BYTES + 1)
    text = content.decode("utf-8", "replace").strip()
    if not text or "\ufffd" in text or len(content) > _MAX_BYTES:
        raise ValueError("it holds no secret" if not text else "it holds something else than a secret")
    return Secret(text)
