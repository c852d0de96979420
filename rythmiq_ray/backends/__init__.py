"""The protocol of an execution backend. Each backend has a folder here, which hides the backend's peculiarities."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from rythmiq_ray.model import ErrorInfo, Job, RemoteFile, RemoteJob, RemoteResult
from rythmiq_ray.secret import Secret

CallObserver = Callable[[str, str, float], None]
"""Called for every call to a service: the operation, the outcome (``2xx`` … ``5xx``, ``error``), the seconds taken."""


class InputOpener(Protocol):
    """Opens an input's URI for streaming; raises InputMissing, InputUnreadable or StoreUnavailable."""

    def __call__(self, uri: str) -> AbstractContextManager[BinaryIO]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Unclear:
    """A remote job about which the backend gives no clear answer; it says nothing about other jobs."""

    remote_id: int
    error: ErrorInfo


class ExecutionBackend(Protocol):
    """A service that runs commands. Every call has a timeout and raises only errors of :mod:`rythmiq_ray.errors`.

    Every method but ``create`` may also raise BackendUnavailable, BackendRefusedKey or BackendBusy. Thread-safe: one
    instance serves all threads of a process.
    """

    @property
    def backend_type(self) -> str:
        """The name in the start line, e.g. ``CamberExecutionBackend``."""
        ...

    def close(self) -> None:
        """Closes connections. No call may be running."""
        ...

    def check(self) -> str:
        """Makes one cheap authenticated call; returns the account's name (the owner of the stash). Used at the start
        and as the probe."""
        ...

    def upload(self, job: Job, *, secrets: Mapping[str, Secret], timeout_s: float, open_input: InputOpener) -> None:
        """Uploads the attempt's bundle and inputs to ``job.remote_path``; may be repeated. ``timeout_s``: the job's.

        Raises what ``open_input`` raises, SecretMissing for a secret that is not given, and SpecRejected for inputs or
        variables with names that cannot be used.
        """
        ...

    def create(self, job: Job) -> RemoteJob:
        """Creates the attempt's remote job with one call, which is never repeated here.

        Raises CreateUncertain if the call was sent and its outcome is not known, SpecRejected if the service refused
        the job, and other errors if the job was certainly not created.
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
        """Polls the remote list once, and yields what it finds page by page.

        It yields the status of every remote id in ``waiting`` that still exists, and every remote job whose path is in
        ``searched`` (attempts with an uncertain create, sent at most ``search_age_s`` seconds ago). Other remote jobs
        on ``paths`` are yielded if a page shows them. It costs a call per page, not per job, and stops at the oldest
        job that it looks for.
        """
        ...

    def read_result(self, job: Job) -> RemoteResult | None:
        """The wrapper's result file; None while it is missing.

        Raises ArtifactCorrupt if the file is incomplete or not what the wrapper writes.
        """
        ...

    def list_files(self, job: Job) -> list[RemoteFile]:
        """The files in the attempt's path, without the bundle's own. Sizes, in bytes, may still grow."""
        ...

    def read_file(self, job: Job, name: str) -> bytes:
        """The content of a small file of the attempt's path; raises NotFound."""
        ...

    def open_file(self, job: Job, name: str, *, start: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        """Streams a file of the attempt's path from byte ``start``; raises NotFound."""
        ...

    def open_log(self, job: Job) -> AbstractContextManager[Iterator[bytes]]:
        """Streams the service's own log, also of a running job; raises NotFound if there is none."""
        ...

    def cancel(self, job: Job, *, mark: bool = True) -> bool:
        """Asks the remote job to end, by the API and by the cancel marker file; returns whether the API agreed.

        ``mark=False`` writes no marker file, since that ends every job on the path.
        """
        ...

    def remove(self, job: Job) -> None:
        """Removes the attempt's path; it is no error if the path does not exist."""
        ...

    def cost_credits(self, job: Job, remote: RemoteJob) -> float | None:
        """The job's cost in credits, estimated from run time and price; None if either is not known."""
        ...
