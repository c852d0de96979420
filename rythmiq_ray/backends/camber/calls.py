"""The interface of the calls to Camber, which are made over HTTP or by the vendor's program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Protocol

from rythmiq_ray.model import RemoteJob


@dataclass(frozen=True, kw_only=True)
class JobPage:
    """A page of the list: job objects as the service sent them."""

    jobs: list[dict[str, Any]]
    total: int | None
    """How many jobs the whole list has; None if the server does not say."""
    at: datetime | None = None
    """When the server answered, by its own clock; None if it does not say."""


class CamberCalls(Protocol):
    """The calls of the contract, one method each. Thread-safe.

    Every method may raise BackendUnavailable, BackendRefusedKey or BackendBusy, and the errors that it names. All but
    ``create`` are idempotent, and are repeated a limited number of times.
    """

    calls: Counter[str]
    """The number of calls so far, by operation; each try counts."""

    def close(self) -> None:
        """Frees connections and temporary files. No call may be running."""
        ...

    def me(self) -> str:
        """The name of the key's owner, whose stash is used."""
        ...

    def create(self, body: Mapping[str, object]) -> RemoteJob:
        """Creates a job from the fields of the contract, with one call that is never repeated.

        Raises CreateUncertain if the call was sent and had no readable answer, SpecRejected if the service refused the
        job; any other error means that nothing was created.
        """
        ...

    def get(self, remote_id: int) -> RemoteJob:
        """One job. Raises NotFound."""
        ...

    def list_page(self, page: int) -> JobPage:
        """A page of ``camber.page_size`` jobs of the list, the newest on page 1."""
        ...

    def cancel(self, remote_id: int) -> bool:
        """Asks a job to end; returns False if the service refuses or has no such call."""
        ...

    def open_log(self, remote_id: int) -> AbstractContextManager[Iterator[bytes]]:
        """Streams a job's log. Raises NotFound if there is none, as for a PENDING or CANCELLED job."""
        ...

    def stash_list(self, uri: str) -> list[dict[str, Any]]:
        """The entries below a ``stash://`` folder, as the service sent them. Raises NotFound."""
        ...

    def stash_read(self, uri: str) -> bytes:
        """The content of a small file. Raises NotFound."""
        ...

    def stash_open(self, uri: str, start: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        """Streams a file from byte ``start``, in constant memory.

        Raises NotFound, and ArtifactCorrupt if the file changed meanwhile.
        """
        ...

    def stash_write(self, uri: str, data: bytes) -> None:
        """Writes a file; missing folders above it are created."""
        ...

    def stash_stream(self, uri: str, open_source: Callable[[], AbstractContextManager[BinaryIO]]) -> None:
        """Writes a file in constant memory; ``open_source`` is called again for each try, and its errors are passed on.

        Raises InputUnreadable if reading the source fails.
        """
        ...

    def stash_remove(self, uri: str) -> None:
        """Removes a folder with its content. May raise NotFound if the folder does not exist."""
        ...
