"""The API key, which may change while the driver runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rythmiq_ray.config import CamberConfig
from rythmiq_ray.secret import Secret, read_secret


class ApiKey:
    """The key for a call: the present content of ``camber.api_key_file``, or ``camber.api_key``.

    Only the driver reads the file, and sends the key with each task, so Ray nodes need no file. It is read for each use
    (about 20 microseconds), so no change is missed. While the file cannot be read or holds no valid key, the last key
    is used. Thread-safe.
    """

    def __init__(self, config: CamberConfig, *, on_change: Callable[[Secret], None] = lambda _key: None) -> None:
        """``on_change`` is called with a new key before it is used."""
        self._file = None if config.api_key_file is None else Path(config.api_key_file)
        self._key = config.api_key
        self._on_change = on_change
        self._lock = threading.Lock()

    def __call__(self) -> Secret:
        if self._file is not None:
            with self._lock, suppress(OSError, ValueError):
                found = read_secret(self._file)
                if found != self._key and usable(found):
                    self._on_change(found)
                    self._key = found
        return self._key


def usable(key: Secret) -> bool:
    """Whether a key can be sent in a header."""
    text = key.reveal()
    return bool(text) and text.isascii() and text.isprintable() and " " not in text
