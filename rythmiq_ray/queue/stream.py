"""A stream of lines for COPY, generated while Postgres reads them."""

from __future__ import annotations

from collections.abc import Iterator


class Stream:
    """A file-like object from which psycopg2 reads the data of a COPY."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._rest = ""

    def read(self, size: int, /) -> bytes:
        """The next ``size`` characters at most, in UTF-8; empty at the end."""
        taken, length = [self._rest], len(self._rest)
        if length < size:
            for line in self._lines:
                taken.append(line)
                length += len(line)
                if length >= size:
                    break
        text = "".join(taken)
        self._rest = text[size:]
        return text[:size].encode()
