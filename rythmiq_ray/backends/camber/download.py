"""A streamed body that is taken up where it broke off, so that its reader sees one unbroken stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Final

import requests
from urllib3.exceptions import HTTPError

from rythmiq_ray.errors import ArtifactCorrupt, BackendUnavailable

_CHUNK_BYTES: Final = 1024 * 1024
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Download:
    """The bytes of a resource from ``start`` on, in constant memory. To be iterated once, and closed.

    ``open_at`` opens the resource from a byte on, by ``Range`` where the server honours it (206, or 416 at its very
    end) and from its start where not (200). ``attempts`` bounds the breaks in a row that brought no byte.

    Iterating raises BackendUnavailable when that bound is reached, ArtifactCorrupt when the resource has changed
    since it was opened, and what ``open_at`` raises.
    """

    def __init__(self, open_at: Callable[[int], requests.Response], start: int, attempts: int) -> None:
        self._open_at = open_at
        self._position = start
        self._attempts = attempts
        self._total: int | None = None
        self._response = open_at(start)

    def __iter__(self) -> Iterator[bytes]:
        breaks = 0
        while True:
            skip = self._bytes_to_skip()
            try:
                while data := self._read():
                    breaks = 0
                    if skip:
                        data, skip = data[skip:], max(0, skip - len(data))
                    if data:
                        self._position += len(data)
                        yield data
                return
            except HTTPError as error:
                self._response.close()
                breaks += 1
                if breaks >= self._attempts:
                    raise BackendUnavailable(f"a download broke off {breaks} times in a row") from error
            self._response = self._open_at(self._position)

    def close(self) -> None:
        """Ends the transfer; a connection with unread bytes is dropped."""
        self._response.close()

    def _read(self) -> bytes:
        if self._response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return b""
        # What is there, rather than a full chunk: a break then loses nothing that came before it.
        data: bytes = self._response.raw.read1(_CHUNK_BYTES)
        return data

    def _bytes_to_skip(self) -> int:
        """Of the answer just opened; notes how long the resource is."""
        headers = self._response.headers
        skip, total = 0, None
        if self._response.status_code == HTTPStatus.PARTIAL_CONTENT:
            found = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
            if found is None or int(found[1]) > self._position:
                raise BackendUnavailable("Camber sent another part of a file than was asked for")
            skip = self._position - int(found[1])
            total = int(found[2]) if found[2] != "*" else None
        elif self._response.status_code == HTTPStatus.OK:
            skip = self._position
            length = headers.get("Content-Length", "")
            total = int(length) if length.isdigit() else None
        if total is not None:
            if self._total not in (None, total):
                raise ArtifactCorrupt("a file changed while it was read")
            self._total = total
        return skip
