"""Temporary folders that are removed even if the process that made them is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

PREFIX: Final = "rythmiq-camber-"


class Spool:
    """A private folder of one process below the system's temporary one, made when it is first needed. Thread-safe.

    The process holds a lock on its folder, which the kernel releases when the process ends. A process that makes a
    folder removes those that nobody has locked.
    """

    def __init__(self) -> None:
        self._making = threading.Lock()
        self._root: Path | None = None
        self._drop: weakref.finalize[..., Spool] | None = None

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A new folder for one call, removed with all that is in it. Raises OSError."""
        with tempfile.TemporaryDirectory(dir=self._made(), ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def close(self) -> None:
        """Removes the folder; it is made again if it is needed."""
        with self._making:
            if self._drop is not None:
                self._drop()
            self._root = self._drop = None

    def _made(self) -> Path:
        with self._making:
            if self._root is None:
                _sweep(Path(tempfile.gettempdir()))
                self._root, lock = _locked_folder()
                self._drop = weakref.finalize(self, _remove, self._root, lock)
            return self._root


def _locked_folder() -> tuple[Path, int]:
    while True:
        root = Path(tempfile.mkdtemp(prefix=PREFIX))
        # Until the folder is locked, another process's sweep may remove it.
        with suppress(FileNotFoundError):
            lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # A file system without locks: nothing there is swept either.
                fcntl.flock(lock, fcntl.LOCK_EX)
            if root.exists():
                return root, lock
            os.close(lock)


def _remove(root: Path, lock: int) -> None:
    shutil.rmtree(root, ignore_errors=True)
    os.close(lock)


def _sweep(parent: Path) -> None:
    """Removes folders of this user whose process has ended."""
    for root in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            lock = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(root, ignore_errors=True)
            finally:
                os.close(lock)
