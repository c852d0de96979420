"""The stash: folders and files of one owner, kept as folders and files on this disk.

Calls that every job makes use ``os``, because pathlib takes more processor time than the system calls themselves.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Final

_SCHEME: Final = "stash://"
_LONGEST_STEP: Final = 255
_LONGEST_PATH: Final = 1024
_NO_STEPS: Final = frozenset(("", ".", ".."))
_FEW: Final = 16
"""A folder with at most this many files is removed at once, which costs less than passing it to a thread."""


class InvalidPath(ValueError):
    """A path that is not relative, leaves the owner's root, is too long or is not Unicode."""


class ForeignOwner(ValueError):
    """A path in somebody else's stash."""


def checked_path(path: str) -> str:
    """Checks a relative path and removes a slash at its end. Raises InvalidPath."""
    if path.startswith("/"):
        raise InvalidPath("must be relative")
    checked = path.removesuffix("/")
    if "\0" in path or not _NO_STEPS.isdisjoint(checked.split("/")):
        raise InvalidPath("must stay below the owner's root")
    try:
        longest = max(map(len, os.fsencode(checked).split(b"/")))
    except UnicodeEncodeError:
        raise InvalidPath("must be valid Unicode") from None
    if longest > _LONGEST_STEP or len(path) > _LONGEST_PATH:
        raise InvalidPath("is too long")
    return checked


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of a listing; ``path`` is relative to the owner's root."""

    path: str
    is_folder: bool
    size: int


class Stash:
    """Files of one owner. Methods block; call those that may take long in a thread.

    Only regular files and folders are ever made here, so no link can lead out of the root.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self.owner = owner
        self._root = os.fspath(folder / "stash" / owner)
        self._unfinished = folder / "unfinished"
        self._trash = folder / "trash"
        self._names = count()
        shutil.rmtree(self._unfinished, ignore_errors=True)
        shutil.rmtree(self._trash, ignore_errors=True)
        for place in (Path(self._root), self._unfinished, self._trash):
            # Files may hold secrets, and this machine may have other users.
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._remover = ThreadPoolExecutor(1, thread_name_prefix="stash-remover")

    def close(self) -> None:
        self._remover.shutdown(wait=True, cancel_futures=True)

    def path_of(self, uri: str) -> str:
        """The path under the owner's root that a URI names; empty for the root itself.

        Raises InvalidPath or ForeignOwner.
        """
        if not uri.startswith(_SCHEME):
            raise InvalidPath(f"must start with {_SCHEME}")
        owner, _, path = uri.removeprefix(_SCHEME).partition("/")
        if owner != self.owner:
            raise ForeignOwner("no access to this stash")
        return checked_path(path) if path else ""

    def place(self, path: str) -> str:
        """The place on disk of a path that :func:`checked_path` has checked."""
        return f"{self._root}/{path}"

    def entries(self, path: str, *, recursive: bool) -> list[Entry]:
        """The file at a path, or what is below a folder, sorted by name. Raises FileNotFoundError."""
        place = Path(self.place(path))
        status = place.stat()
        if not S_ISDIR(status.st_mode):
            return [Entry(path, False, status.st_size)]
        return list(self._below(place, path, recursive))

    def _below(self, place: Path, path: str, recursive: bool) -> Iterator[Entry]:
        for child in sorted(place.iterdir()):
            try:
                status = child.stat()
            except FileNotFoundError:  # removed meanwhile
                continue
            child_path = f"{path}/{child.name}" if path else child.name
            is_folder = S_ISDIR(status.st_mode)
            yield Entry(child_path, is_folder, 0 if is_folder else status.st_size)
            if is_folder and recursive:
                with suppress(FileNotFoundError):
                    yield from self._below(child, child_path, recursive)

    def count_files(self) -> int:
        return sum(1 for entry in self._below(Path(self._root), "", True) if not entry.is_folder)

    def open_new(self, path: str) -> int:
        """Opens a file, emptied, for writing, and makes missing folders; returns a descriptor. Raises OSError."""
        place = self.place(path)
        while True:
            try:
                return os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            except FileNotFoundError:
                # Repeated until it works: remove() may delete an empty folder between the two calls.
                _make_folder(place.rpartition("/")[0])

    def write(self, path: str, data: bytes) -> None:
        """Writes a whole file. Raises OSError."""
        file = self.open_new(path)
        try:
            while data:
                data = data[os.write(file, data) :]
        finally:
            os.close(file)

    def unfinished(self) -> Path:
        """A path for a file that is still being received, for :meth:`adopt`."""
        return self._unfinished / str(next(self._names))

    def adopt(self, unfinished: Path, path: str) -> None:
        """Moves a complete file to a path of the stash. Raises OSError."""
        place = self.place(path)
        while True:
            try:
                unfinished.replace(place)
                return
            except FileNotFoundError:
                _make_folder(place.rpartition("/")[0])

    def remove(self, path: str, *, recursive: bool) -> None:
        """Removes a file or a folder, and then empty folders above it; does nothing if it does not exist.

        Raises IsADirectoryError for a folder without ``recursive``.
        """
        place = self.place(path)
        try:
            if not S_ISDIR(os.stat(place).st_mode):
                os.unlink(place)
            elif recursive:
                self._remove_folder(place)
            else:
                raise IsADirectoryError(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        with suppress(OSError):
            while path := path.rpartition("/")[0]:
                os.rmdir(self.place(path))

    def _remove_folder(self, place: str) -> None:
        with os.scandir(place) as children:
            few = list(islice(children, _FEW + 1))
        if len(few) <= _FEW and all(child.is_file(follow_symlinks=False) for child in few):
            for child in few:
                os.unlink(child)
            with suppress(OSError):  # a late file has come back meanwhile
                os.rmdir(place)
                return
        # Moved away, so that it is gone at once; deleting the files can take long.
        doomed = self._trash / str(next(self._names))
        os.rename(place, doomed)
        self._remover.submit(shutil.rmtree, doomed, True)

    def copy_out(self, path: str, target: Path) -> dict[str, tuple[int, int]]:
        """Copies the files at and below a path into a new folder, without executable bits.

        Returns size and modification time (ns) of each copy, by its name relative to ``target``.
        """
        target.mkdir(parents=True)
        copied: dict[str, tuple[int, int]] = {}
        with suppress(FileNotFoundError, NotADirectoryError):
            for entry in self.entries(path, recursive=True):
                name = entry.path.removeprefix(f"{path}/")
                if entry.is_folder:
                    (target / name).mkdir(exist_ok=True)
                else:
                    with suppress(FileNotFoundError):
                        copied[name] = copy_file(Path(self.place(entry.path)), target / name)
        return copied


def _make_folder(place: str) -> None:
    """Makes a folder and the missing folders above it. Raises OSError."""
    try:
        os.mkdir(place)
    except FileExistsError:
        if not os.path.isdir(place):
            raise
    except FileNotFoundError:
        _make_folder(place.rpartition("/")[0])
        _make_folder(place)


def copy_file(source: Path, target: Path) -> tuple[int, int]:
    """Copies only a file's bytes; returns size and modification time (ns) of the copy. Raises OSError."""
    shutil.copyfile(source, target)
    status = target.stat()
    return status.st_size, status.st_mtime_ns


def regular_files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """The name relative to the folder, size and modification time (ns) of each file in it. Links are not followed."""
    pending = [folder]
    while pending:
        with suppress(OSError):
            for child in sorted(pending.pop().iterdir()):
                with suppress(FileNotFoundError):
                    status = child.lstat()
                    if S_ISDIR(status.st_mode):
                        pending.append(child)
                    elif S_ISREG(status.st_mode):
                        yield child.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns
