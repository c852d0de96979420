"""Lines for COPY, made while Postgres takes in those before them."""

from __future__ import annotations

from collections.abc import Iterator


class Stream:
    """What psycopg2 reads a COPY from."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines
        self._rest = ""

    def read(self, size: int, /) -> bytes:
        """At most so many characters, in UTF-8; none at the end."""
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
