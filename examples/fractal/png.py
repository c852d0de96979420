"""Enough of PNG for RGB pictures, with the standard library alone: it runs where nothing is installed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write(path: Path, width: int, rows: list[bytes]) -> None:
    """Writes rows of ``width`` RGB pixels, three bytes each."""
    header = struct.pack(">IIBBBBB", width, len(rows), 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\x00" + row for row in rows), 9)
    body = b"".join(_chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")))
    path.write_bytes(SIGNATURE + body)


def read(path: Path) -> tuple[int, list[bytes]]:
    """Reads what :func:`write` wrote; raises ValueError for any other PNG."""
    data = path.read_bytes()
    if not data.startswith(SIGNATURE):
        raise ValueError(f"{path} is not a PNG")
    width = height = 0
    pixels = b""
    at = len(SIGNATURE)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, *rest = struct.unpack(">IIBBBBB", content)
            if rest != [8, 2, 0, 0, 0]:
                raise ValueError(f"{path} is not an RGB PNG of ours")
        elif kind == b"IDAT":
            pixels += content
        at += 12 + length
    raw = zlib.decompress(pixels)
    stride = 1 + 3 * width
    rows = [raw[start : start + stride] for start in range(0, height * stride, stride)]
    if any(row[0] != 0 for row in rows):
        raise ValueError(f"{path} uses a filter that this reader does not know")
    return width, [row[1:] for row in rows]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
