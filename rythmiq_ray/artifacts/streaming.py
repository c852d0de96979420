"""Streams on their way to a store: counts, hashes and compares them, and limits memory."""

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
    """Wraps an error of the source, so that it is not translated as an error of the store."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextmanager
def source_errors_as_they_were() -> Iterator[None]:
    """Unwraps SourceFailed: a source's OSError must not look like a full disk or a store that is down."""
    try:
        yield
    except SourceFailed as failed:
        raise failed.error from None


class Meter:
    """Counts and hashes a stream, and compares it with the expected size and SHA-256."""

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
        """The same chunks; raises ArtifactCorrupt as soon as there are too many bytes, or at the end if they differ."""
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
            raise ArtifactCorrupt(f"{self._name!r} has a different SHA-256 from the expected one")


class _Budget:
    """The memory, in bytes, that all uploads of this process may use together."""

    def __init__(self, total: int) -> None:
        self._free = self._total = total
        self._waiting = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        """Holds ``amount`` bytes, after waiting until they are free; at most the whole budget."""
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
        """Takes ``amount`` bytes if they are free and nobody waits; the caller has to give them back."""
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
    """The content type by the name's extension; for the log plain text in UTF-8."""
    if name == LOG_NAME:
        return "text/plain; charset=utf-8"
    # Only the extensions are passed: mimetypes takes a name for a URL, and would believe one such as "data:text/html,".
    endings = "".join(PurePosixPath(name).suffixes[-2:])
    kind, encoding = mimetypes.guess_type(f"name{endings}", strict=False)
    if encoding is not None:
        return _OF_ENCODING.get(encoding, _UNKNOWN)
    return kind or _UNKNOWN
