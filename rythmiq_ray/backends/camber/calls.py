"""What the backend asks of Camber, whichever way it travels: over HTTP, or through the vendor's program."""

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
    """A page of the list: job objects as they came."""

    jobs: list[dict[str, Any]]
    total: int | None
    """How many jobs the whole list has, where the server says."""
    at: datetime | None = None
    """When the server answered, by its own clock, where it says."""


class CamberCalls(Protocol):
    """The calls of the contract, one method each. Thread-safe.

    Every method raises BackendUnavailable, BackendRefusedKey or BackendBusy, beside what it names itself. All but
    ``create`` change nothing when they are made again, and are repeated within bounds.
    """

    calls: Counter[str]
    """Calls made so far, by operation; each try counts."""

    def close(self) -> None:
        """Gives back what the calls hold; none is under way then."""
        ...

    def me(self) -> str:
        """The name of the key's owner, whose stash is used."""
        ...

    def create(self, body: Mapping[str, object]) -> RemoteJob:
        """Creates a job from the fields of the contract; one call, never repeated.

        Raises CreateUncertain where the call was sent and nothing readable says what became of it, SpecRejected where
        the service refused the job; any other error means that nothing was created.
        """
        ...

    def get(self, remote_id: int) -> RemoteJob:
        """One job. Raises NotFound."""
        ...

    def list_page(self, page: int) -> JobPage:
        """A page of ``camber.page_size`` jobs of the list, the newest on page 1."""
        ...

    def cancel(self, remote_id: int) -> bool:
        """Asks for the end of a job; False where the service refuses or cannot."""
        ...

    def open_log(self, remote_id: int) -> AbstractContextManager[Iterator[bytes]]:
        """Streams a job's log. Raises NotFound where the service has none, as for a PENDING or CANCELLED job."""
        ...

    def stash_list(self, uri: str) -> list[dict[str, Any]]:
        """The entries below a ``stash://`` folder, as they came. Raises NotFound."""
        ...

    def stash_read(self, uri: str) -> bytes:
        """A small file, whole. Raises NotFound."""
        ...

    def stash_open(self, uri: str, start: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        """Streams a file from byte ``start``, in constant memory.

        Raises NotFound, and ArtifactCorrupt where the file changed meanwhile.
        """
        ...

    def stash_write(self, uri: str, data: bytes) -> None:
        """Writes a file; folders above it are made."""
        ...

    def stash_stream(self, uri: str, open_source: Callable[[], AbstractContextManager[BinaryIO]]) -> None:
        """Writes a file in constant memory; ``open_source`` is called again for each try, and its errors are passed on.

        Raises InputUnreadable where reading the source breaks off.
        """
        ...

    def stash_remove(self, uri: str) -> None:
        """Removes a folder with all that is in it. Raises NotFound where the service minds that it is gone."""
        ...
