"""A download that resumes after interruptions, so that its reader sees one continuous stream."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Final

import requests
from urllib3.exceptions import HTTPError

from rythmiq_ray.errors import ArtifactCorrupt, BackendUnavailable
from rythmiq_ray.http_adapter import STEP_BYTES

_CHUNK_BYTES: Final = 1024 * 1024
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_PLAIN: Final = ("", "identity")


class Download:
    """The bytes of a resource from ``start`` on, in constant memory. Iterate once, then close.

    ``open_at`` opens the resource at a byte: by ``Range`` if the server supports it (206, or 416 at the very end),
    otherwise from its start (200). An answer with ``Content-Encoding`` is decoded; its ranges count encoded bytes, so
    it is always read from its start. ``attempts``: how many interruptions in a row are allowed without progress of at
    least :data:`~rythmiq_ray.http_adapter.STEP_BYTES`.

    Iterating raises BackendUnavailable when that bound is reached, ArtifactCorrupt when the resource has changed
    since it was opened, and what ``open_at`` raises.
    """

    def __init__(self, open_at: Callable[[int], requests.Response], start: int, attempts: int) -> None:
        self._open_at = open_at
        self._position = start
        self._attempts = attempts
        self._total: int | None = None
        self._response = self._open()

    def __iter__(self) -> Iterator[bytes]:
        breaks = furthest = 0
        while True:
            skip = self._bytes_to_skip()
            reached = self._position - skip
            try:
                while data := self._read():
                    reached += len(data)
                    if skip:
                        data, skip = data[skip:], max(0, skip - len(data))
                    if data:
                        self._position += len(data)
                        yield data
                return
            except HTTPError as error:
                self._response.close()
                breaks = 1 if reached - furthest >= STEP_BYTES else breaks + 1
                furthest = max(furthest, reached)
                if breaks >= self._attempts:
                    raise BackendUnavailable(f"a download was interrupted {breaks} times in a row") from error
            self._response = self._open()

    def close(self) -> None:
        """Ends the transfer; a connection with unread bytes is dropped."""
        self._response.close()

    def _open(self) -> requests.Response:
        response = self._open_at(self._position)
        if self._position and response.status_code == HTTPStatus.PARTIAL_CONTENT and _encoded(response):
            response.close()
            response = self._open_at(0)
        return response

    def _read(self) -> bytes:
        if self._response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return b""
        # read1 returns what has arrived instead of waiting for a full chunk, so an interruption loses nothing.
        data: bytes = self._response.raw.read1(_CHUNK_BYTES, decode_content=True)
        return data

    def _bytes_to_skip(self) -> int:
        """How many bytes of the opened answer precede the wanted position; also notes the resource's length."""
        headers = self._response.headers
        skip, total = 0, None
        if self._response.status_code == HTTPStatus.PARTIAL_CONTENT:
            found = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
            if found is None or int(found[1]) > self._position:
                raise BackendUnavailable("Camber sent a different part of a file from the one requested")
            skip = self._position - int(found[1])
            total = int(found[2]) if found[2] != "*" else None
        elif self._response.status_code == HTTPStatus.OK:
            skip = self._position
            length = headers.get("Content-Length", "")
            total = int(length) if _LENGTH.fullmatch(length) and not _encoded(self._response) else None
        if total is not None:
            if self._total not in (None, total):
                raise ArtifactCorrupt("a file changed while it was read")
            self._total = total
        return skip


def _encoded(response: requests.Response) -> bool:
    return response.headers.get("Content-Encoding", "").strip().lower() not in _PLAIN
