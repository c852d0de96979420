"""Sends and receives files. Large ones are streamed, never held in memory; small ones cost little."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from errno import EISDIR
from pathlib import Path
from stat import S_ISREG
from typing import Final

from aiohttp import web

from rythmiq_ray.local.camber.stash import Stash

_SMALL: Final = 64 * 1024
"""A file of at most this size is read or written in one call, which is cheaper than a thread."""
_CHUNK: Final = 1024 * 1024
_PIECE: Final = 512 * 1024


async def send_file(
    request: web.BaseRequest, place: str | Path, content_type: str, *, cut: bool = False
) -> web.StreamResponse:
    """Answers with a file, or with the part that ``Range`` asks for; ``cut`` closes the connection in the middle.

    Raises OSError if there is no such file.
    """
    file = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not S_ISREG(status.st_mode):
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        try:
            start, end, partial = _range(request, status.st_size)
        except ValueError:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{status.st_size}"})
        headers = {"Content-Type": content_type, "Accept-Ranges": "bytes"}
        if partial:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{status.st_size}"
        code = 206 if partial else 200
        if end - start <= _SMALL and not cut:
            return web.Response(body=os.pread(file, end - start, start), status=code, headers=headers)
        return await _stream(request, file, start, end, code, headers, cut=cut)
    finally:
        os.close(file)


async def send_bytes(
    request: web.BaseRequest, data: bytes, content_type: str, *, cut: bool = False
) -> web.StreamResponse:
    """Answers with bytes; ``cut`` as in :func:`send_file`."""
    if not cut:
        return web.Response(body=data, headers={"Content-Type": content_type})
    response = web.StreamResponse(headers={"Content-Type": content_type})
    response.content_length = len(data)
    await response.prepare(request)
    await response.write(data[: len(data) // 2])
    hang_up(request)
    return response


def hang_up(request: web.BaseRequest) -> None:
    """Closes the connection once what was written has been sent."""
    if request.transport is not None:
        request.transport.close()


async def receive_file(request: web.BaseRequest, stash: Stash, path: str) -> None:
    """Stores the body of a request; a body that breaks off leaves nothing. Raises OSError."""
    if request.content_length is not None and request.content_length <= _SMALL:
        stash.write(path, await request.content.read(-1))
        return
    unfinished = stash.unfinished()
    try:
        with unfinished.open("wb") as file:
            buffer = bytearray()
            async for chunk in request.content.iter_any():
                buffer += chunk
                if len(buffer) >= _CHUNK:
                    await asyncio.to_thread(file.write, buffer)
                    buffer = bytearray()
            file.write(buffer)
        stash.adopt(unfinished, path)
    finally:
        with suppress(FileNotFoundError):
            unfinished.unlink()


def _range(request: web.BaseRequest, size: int) -> tuple[int, int, bool]:
    """The first byte, the byte after the last one, and whether a part was asked for. Raises ValueError for a 416."""
    if "Range" not in request.headers:
        return 0, size, False
    try:
        asked = request.http_range
    except ValueError:  # not a single range of bytes, which RFC 9110 says to ignore
        return 0, size, False
    start, end, _ = asked.indices(size)
    if start >= end:
        raise ValueError("outside of the file")
    return start, end, True


async def _stream(
    request: web.BaseRequest, file: int, start: int, end: int, code: int, headers: dict[str, str], *, cut: bool
) -> web.StreamResponse:
    response = web.StreamResponse(status=code, headers=headers)
    response.content_length = end - start
    await response.prepare(request)
    if cut:
        end = start + (end - start) // 2
    while start < end and (piece := os.pread(file, min(_PIECE, end - start), start)):
        await response.write(piece)
        start += len(piece)
    if cut or start < end:  # the file may have become shorter meanwhile
        hang_up(request)
    return response
