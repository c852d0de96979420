"""What a place that runs jobs must offer; each has a folder here. An oddity of one stops at its own folder's edge."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from rythmiq_ray.model import ErrorInfo, Job, RemoteFile, RemoteJob, RemoteResult
from rythmiq_ray.secret import Secret

OnCall = Callable[[str, str, float], None]
"""Told of every call of a service: the operation, its answer's class (``2xx`` … ``5xx``, ``error``), its seconds."""


class InputOpener(Protocol):
    """Opens an input's URI for streaming; raises InputMissing, InputUnreadable or StoreUnavailable."""

    def __call__(self, uri: str) -> AbstractContextManager[BinaryIO]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Unclear:
    """A remote job of which the backend gives no clear answer; that says nothing about any other."""

    remote_id: int
    error: ErrorInfo


class ExecutionBackend(Protocol):
    """A place that runs commands. Every call has a time-out and raises only errors of :mod:`rythmiq_ray.errors`.

    Thread-safe: one instance serves all threads of a process.
    """

    @property
    def backend_type(self) -> str:
        """The name in the start line, e.g. ``CamberExecutionBackend``."""
        ...

    def close(self) -> None:
        """Gives connections back; no call is under way then."""
        ...

    def check(self) -> str:
        """One cheap authenticated call; returns who we are (the owner of the stash). Used at start and as the probe."""
        ...

    def upload(self, job: Job, *, secrets: Mapping[str, Secret], timeout_s: float, open_input: InputOpener) -> None:
        """Puts the attempt's bundle and inputs at ``job.remote_path``; may be repeated."""
        ...

    def create(self, job: Job) -> RemoteJob:
        """Creates the attempt's remote job; one call, never repeated here.

        Raises CreateUncertain when the call was sent and its outcome is not known, SpecRejected when the service
        refused the job, and others when it was certainly not created.
        """
        ...

    def watch(
        self,
        waiting: Collection[int],
        searched: Collection[str],
        search_age_s: float,
        *,
        paths: Collection[str] = frozenset(),
    ) -> Iterator[list[RemoteJob | Unclear]]:
        """One poll of the remote list, a page at a time.

        Gives the state of every remote id in ``waiting`` that still exists and every remote job whose path is in
        ``searched`` (attempts whose create is uncertain, none of them created longer ago than ``search_age_s``). What
        else lies on one of ``paths`` is given where it is come upon. It costs pages of the list, not calls a job, and
        stops at the oldest that it looks for.
        """
        ...

    def read_result(self, job: Job) -> RemoteResult | None:
        """What the wrapper wrote last, or None while it is not there.

        Raises ArtifactCorrupt where its file holds a part of it, or something else.
        """
        ...

    def list_files(self, job: Job) -> list[RemoteFile]:
        """What lies in the attempt's path, less the bundle's own files. Sizes may still grow."""
        ...

    def read_file(self, job: Job, name: str) -> bytes:
        """A small file of the attempt's path, whole; raises NotFound."""
        ...

    def open_file(self, job: Job, name: str, *, start: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        """Streams a file of the attempt's path from byte ``start``; raises NotFound."""
        ...

    def open_log(self, job: Job) -> AbstractContextManager[Iterator[bytes]]:
        """Streams the log as the service has it, also of a running job; raises NotFound where it has none."""
        ...

    def cancel(self, job: Job, *, mark: bool = True) -> bool:
        """Asks for the end of the remote job, through the API and by the marker file; True if the API took it.

        Without ``mark`` there is no marker file, which would end every job on that path.
        """
        ...

    def remove(self, job: Job) -> None:
        """Removes the attempt's path; fine if it is gone."""
        ...

    def cost_credits(self, job: Job, remote: RemoteJob) -> float | None:
        """Estimated from run time and price; None where either is not known."""
        ...
