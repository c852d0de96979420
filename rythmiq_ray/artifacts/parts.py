"""Uploads parts of a multipart upload in the background for smart-open, which itself waits for each part."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Final, Self

from rythmiq_ray.artifacts.streaming import budget

_PARTS_AT_ONCE: Final = 4


class PartBuffer:
    """The buffer that smart-open fills for each part. It replaces BytesIO, which takes twice the memory as it grows."""

    def __init__(self) -> None:
        self._pieces: list[bytes | memoryview] = []
        self._size = 0

    def write(self, data: memoryview) -> int:
        # Immutable bytes need not be copied here; getvalue copies once.
        self._pieces.append(data if isinstance(data.obj, bytes) else bytes(data))
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def seek(self, position: int) -> int:
        return position

    def truncate(self, size: int) -> int:
        assert size == 0  # noqa: S101 - smart-open does no other
        self._pieces.clear()
        self._size = 0
        return 0

    def getvalue(self) -> bytes:
        return b"".join(self._pieces)


class BackgroundParts:
    """An S3 client for one multipart upload of smart-open: threads send parts while the next one fills.

    smart-open only passes each part's ETag on to ``complete_multipart_upload``, so it gets a future in place of it.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._threads = ThreadPoolExecutor(_PARTS_AT_ONCE, thread_name_prefix="part")
        self._under_way: set[Future[str]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def upload_part(self, *, Body: Any, **place: Any) -> dict[str, Any]:
        """Sends the content of ``Body`` in the background. Raises the error of an earlier part, if there was one."""
        full = len(self._under_way) >= _PARTS_AT_ONCE
        done, self._under_way = wait(self._under_way, None if full else 0, return_when=FIRST_COMPLETED)
        for part in done:
            part.result()
        content = Body.getvalue()
        size = len(content)
        in_memory = budget.try_take(size)
        part = self._threads.submit(self._send, content, place)
        if in_memory:
            # The callback holds only the size, not the content: smart-open keeps the futures, and they their callbacks.
            part.add_done_callback(lambda _: budget.give_back(size))
            self._under_way.add(part)
        else:
            part.result()
        return {"ETag": part}

    def complete_multipart_upload(self, *, MultipartUpload: Any, **place: Any) -> Any:
        """Waits for all parts, then completes the upload."""
        parts = [{**part, "ETag": part["ETag"].result()} for part in MultipartUpload["Parts"]]
        return self._client.complete_multipart_upload(MultipartUpload={"Parts": parts}, **place)

    def abort_multipart_upload(self, **place: Any) -> Any:
        """Waits for running parts, then aborts: a part that arrived after the abort would stay in the bucket."""
        wait(self._under_way)
        return self._client.abort_multipart_upload(**place)

    def _send(self, content: bytes, place: dict[str, Any]) -> str:
        return str(self._client.upload_part(Body=content, **place)["ETag"])
