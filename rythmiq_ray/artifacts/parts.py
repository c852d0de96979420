"""Parts of a multipart upload in the background, below smart-open, which by itself waits for each to be sent."""

from __future__ import annotations

from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Final, Self

from rythmiq_ray.artifacts.streaming import budget

_PARTS_AT_ONCE: Final = 4


class PartBuffer:
    """What smart-open fills for each part, in place of its BytesIO, which takes twice the memory while it grows."""

    def __init__(self) -> None:
        self._pieces: list[bytes | memoryview] = []
        self._size = 0

    def write(self, data: memoryview) -> int:
        # What cannot change need not be copied; getvalue does that once.
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
    """An S3 client for one multipart upload of smart-open: parts are sent by threads while the next one fills.

    smart-open passes on to ``complete_multipart_upload`` what it was given for an ETag, so that may be one to come.
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
        """Takes what is in ``Body``, a BytesIO. Raises what an earlier part met."""
        full = len(self._under_way) >= _PARTS_AT_ONCE
        done, self._under_way = wait(self._under_way, None if full else 0, return_when=FIRST_COMPLETED)
        for part in done:
            part.result()
        content = Body.getvalue()
        size = len(content)
        in_memory = budget.try_take(size)
        part = self._threads.submit(self._send, content, place)
        if in_memory:
            # It holds the size alone: a future keeps its callbacks, and smart-open keeps every part's.
            part.add_done_callback(lambda _: budget.give_back(size))
            self._under_way.add(part)
        else:
            part.result()
        return {"ETag": part}

    def complete_multipart_upload(self, *, MultipartUpload: Any, **place: Any) -> Any:
        """Waits for all parts."""
        parts = [{**part, "ETag": part["ETag"].result()} for part in MultipartUpload["Parts"]]
        return self._client.complete_multipart_upload(MultipartUpload={"Parts": parts}, **place)

    def abort_multipart_upload(self, **place: Any) -> Any:
        """Waits for the parts under way: one that came in after the abort would stay in the bucket, and cost."""
        wait(self._under_way)
        return self._client.abort_multipart_upload(**place)

    def _send(self, content: bytes, place: dict[str, Any]) -> str:
        return str(self._client.upload_part(Body=content, **place)["ETag"])
