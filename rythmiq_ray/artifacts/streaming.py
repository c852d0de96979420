"""What passes through a store on its way: counted, hashed, compared, and bounded in memory."""

from __future__ import annotations

import hashlib
import mimetypes
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Final

from rythmiq_ray.artifact_names import LOG_NAME
from rythmiq_ray.errors import ArtifactCorrupt

CHUNK_BYTES: Final = 1024 * 1024
PROBE: Final = b"rythmiq-ray writes this, reads it back, and deletes it.\n"
_BUFFER_BUDGET_BYTES: Final = 80 * 1024 * 1024
_OF_ENCODING: Final = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}
_UNKNOWN: Final = "application/octet-stream"


class SourceFailed(Exception):
    """Carries an error of the source past the place where the store's own errors are translated."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def source_errors_as_they_were() -> Iterator[None]:
    """A source's OSError must not look like a full disk or a store that is down."""
    try:
        yield
    except SourceFailed as failed:
        raise failed.error from None


class Meter:
    """Counts and hashes what passes, and compares it with what is expected."""

    def __init__(self, name: str, expected_bytes: int | None, expected_sha256: str | None) -> None:
        self.bytes = 0
        self._name = name
        self._expected_bytes = expected_bytes
        self._expected_sha256 = expected_sha256
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def passing(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The same chunks; raises ArtifactCorrupt at the first byte too many, or at an end that differs."""
        source = iter(chunks)
        while True:
            try:
                chunk = next(source, None)
            except Exception as error:
                raise SourceFailed(error) from error
            if chunk is None:
                break
            self.bytes += len(chunk)
            if self._expected_bytes is not None and self.bytes > self._expected_bytes:
                raise ArtifactCorrupt(f"{self._name!r} has more than the {self._expected_bytes} bytes it should have")
            self._hash.update(chunk)
            yield chunk
        if self._expected_bytes is not None and self.bytes != self._expected_bytes:
            raise ArtifactCorrupt(f"{self._name!r} has {self.bytes} bytes instead of {self._expected_bytes}")
        if self._expected_sha256 is not None and self.sha256 != self._expected_sha256:
            raise ArtifactCorrupt(f"{self._name!r} has another SHA-256 than it should have")


class _Budget:
    """Bytes of memory that the uploads of this process may hold between them."""

    def __init__(self, total: int) -> None:
        self._free = self._total = total
        self._waiting = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Waits until there is as much; of more than the whole, the whole is enough."""
        amount = min(amount, self._total)
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: self._free >= amount)
            self._waiting -= 1
            self._free -= amount
        try:
            yield
        finally:
            self.give_back(amount)

    def try_take(self, amount: int) -> bool:
        """Takes as much if that makes nobody wait; it is to be given back."""
        with self._changed:
            taken = not self._waiting and self._free >= amount
            if taken:
                self._free -= amount
            return taken

    def give_back(self, amount: int) -> None:
        with self._changed:
            self._free += amount
            self._changed.notify_all()


budget: Final = _Budget(_BUFFER_BUDGET_BYTES)


def content_type(name: str) -> str:
    """By the name's ending; UTF-8 for the log, which the wrapper writes as it comes."""
    if name == LOG_NAME:
        return "text/plain; charset=utf-8"
    # Only the endings: mimetypes takes a whole name for a URL, and returns what a name like "data:…" says of itself.
    endings = "".join(PurePosixPath(name).suffixes[-2:])
    kind, encoding = mimetypes.guess_type(f"name{endings}", strict=False)
    if encoding is not None:
        return _OF_ENCODING.get(encoding, _UNKNOWN)
    return kind or _UNKNOWN
