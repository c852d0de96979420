"""The API key, which may change while we run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rythmiq_ray.config import CamberConfig
from rythmiq_ray.secret import Secret, read_secret


class ApiKey:
    """The key that a call is to be made with: what ``camber.api_key_file`` holds now, or ``camber.api_key``.

    The driver alone reads the file, and sends the key with each task: a Ray node needs neither. The file is read for
    each use, some 20 microseconds for a call that takes milliseconds: nothing is to be noticed or missed. While it
    cannot be read, or holds what is no key, the last one stays. Thread-safe.
    """

    def __init__(self, config: CamberConfig, *, on_change: Callable[[Secret], None] = lambda _key: None) -> None:
        """``on_change`` is told of a new key before it is used."""
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
    """Whether a key can go into a header."""
    text = key.reveal()
    return bool(text) and text.isascii() and text.isprintable() and " " not in text
