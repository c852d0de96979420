"""The execution backend for Camber: maps the protocol to the owner's stash, the job list and the cancel marker."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

from rythmiq_ray.backends import CallObserver, InputOpener, Unclear
from rythmiq_ray.backends.bundle import (
    CANCEL_NAME,
    ENV_NAME,
    INPUTS_NAME,
    LOG_NAME,
    REMOTE_COMMAND,
    RESULT_NAME,
    SCRIPT_NAME,
    InputRecorder,
    attempt_path,
    check_input_names,
    env_file,
    file_path,
    left_by_command,
    script,
)
from rythmiq_ray.backends.bundle.result import read_result
from rythmiq_ray.backends.camber.answers import job_id_of, job_of, path_of
from rythmiq_ray.backends.camber.calls import CamberCalls, JobPage
from rythmiq_ray.backends.camber.client import CamberClient
from rythmiq_ray.backends.camber.program import CamberProgram
from rythmiq_ray.backends.times import time_of
from rythmiq_ray.clock import now_s
from rythmiq_ray.config import CamberConfig, NodeSize
from rythmiq_ray.errors import BackendUnavailable, NotFound, RythmiqError
from rythmiq_ray.model import ErrorInfo, Job, RemoteFile, RemoteJob, RemoteResult
from rythmiq_ray.secret import Secret

_CLOCK_SKEW: Final = timedelta(minutes=1)
"""How far Camber's clocks that date jobs and answers may be apart."""
_LONGEST_SEARCH_S: Final = 10 * 365 * 86400.0
_OUTAGE: Final = 3
"""This many jobs in a row without a clear answer are taken for an outage."""
_PAGES_AT_ONCE: Final = 4
_SLOW_LIST_S: Final = 0.5
"""A poll that has taken this long reads several pages at once."""
_STUCK_PAGES: Final = 3
"""This many pages in a row without an older job, which new jobs do not explain: the server has no pages."""


class CamberExecutionBackend:
    """Runs jobs on Camber Cloud; an :class:`~rythmiq_ray.backends.ExecutionBackend`.

    A normal job costs five calls: the bundle, the create, the result, the log, the removal.
    """

    def __init__(
        self,
        config: CamberConfig,
        *,
        key: Callable[[], Secret] | None = None,
        threads: int = 32,
        on_call: CallObserver | None = None,
    ) -> None:
        """``threads``: how many threads call at once; ``on_call`` is called for every call, for metrics.

        ``key`` returns the API key for each call; without it, the configuration's key is used.

        Raises ConfigurationError for a key that cannot be sent in a header. Makes no call.
        """
        self._config = config
        self.client: Final[CamberCalls] = (
            CamberProgram(config, key=key, on_call=on_call)
            if config.transport == "cli"
            else CamberClient(config, key=key, threads=threads, on_call=on_call)
        )
        self._owner: str | None = None
        self._asked_last = 0

    @property
    def backend_type(self) -> str:
        return type(self).__name__

    def close(self) -> None:
        """Closes the connections."""
        self.client.close()

    def check(self) -> str:
        self._owner = self.client.me()
        return self._owner

    def upload(self, job: Job, *, secrets: Mapping[str, Secret], timeout_s: float, open_input: InputOpener) -> None:
        variables = env_file(job.spec, secrets)
        size = self._size(job)
        wrapper = script(job, timeout_s=timeout_s, cpus=size.cpus if size else None)
        check_input_names(job)
        recorder = InputRecorder(open_input)
        for file in job.spec.inputs:
            self.client.stash_stream(self._uri(job, file.name), partial(recorder.open, file))
        if job.spec.inputs:
            self.client.stash_write(self._uri(job, INPUTS_NAME), recorder.as_bytes())
        if variables is not None:
            self.client.stash_write(self._uri(job, ENV_NAME), variables)
        # Last, so that a path with a script is complete.
        self.client.stash_write(self._uri(job, SCRIPT_NAME), wrapper)

    def create(self, job: Job) -> RemoteJob:
        tags = ["rythmiq", f"rythmiq-job:{job.job_id}", f"rythmiq-attempt:{job.attempt}"]
        if self._config.region:
            tags.append(f"rythmiq-region:{self._config.region}")
        path = attempt_path(job)
        remote = self.client.create(
            {
                "command": REMOTE_COMMAND,
                "engine_type": job.spec.engine.upper(),
                "node_size": job.spec.node_size.upper(),
                "num_nodes": job.spec.num_nodes,
                "with_gpu": job.spec.gpu,
                "mount_dir": path,
                "tags": tags,
            }
        )
        return _at(remote, path)

    def watch(
        self,
        waiting: Collection[int],
        searched: Collection[str],
        search_age_s: float,
        *,
        paths: Collection[str] = frozenset(),
    ) -> Iterator[list[RemoteJob | Unclear]]:
        """See the protocol. A job that the list does not show is queried by its id before it counts as gone.

        For the last few old jobs that is cheaper than to read on: after as many pages without a find as there are jobs
        left, one call for each costs no more than those pages did.
        """
        searched, paths = _bare(searched), _bare(paths)
        unseen, unseen_paths = set(waiting), set(searched)
        reported: set[int] = set()
        horizon: datetime | None = None
        barren = 0
        walk = _Walk(self._config.page_size)
        for page in self._pages(unseen, to_the_end=bool(unseen_paths)):
            walk.note(page)
            if horizon is None and page.at is not None:
                # Camber's dates are compared only with Camber's own clock.
                horizon = page.at - timedelta(seconds=min(search_age_s, _LONGEST_SEARCH_S)) - _CLOCK_SKEW
            barren += 1
            found: list[RemoteJob | Unclear] = []
            for item in page.jobs:
                remote_id, path = job_id_of(item), path_of(item)
                wanted = remote_id in unseen or path in searched
                if remote_id in reported or not (wanted or path in paths):
                    continue
                remote = job_of(item)
                if remote is None:
                    continue
                barren = 0 if wanted else barren
                reported.add(remote.remote_id)
                unseen.discard(remote.remote_id)
                unseen_paths.discard(path)
                found.append(remote)
            if found:
                yield found
            if barren >= len(unseen) > 0:
                yield from self._ask_for_each(unseen)
                reported |= unseen
                unseen.clear()
            ids_done = not unseen or _lowest(page) < min(unseen)
            if ids_done and (not unseen_paths or _reaches_before(page, horizon)):
                unseen_paths.clear()
                break
        yield from self._ask_for_each(unseen)
        if unseen_paths and not walk.whole:
            # A later page may show the job of an uncertain create, which would then be created twice.
            raise BackendUnavailable("Camber's list ended early")

    def read_result(self, job: Job) -> RemoteResult | None:
        try:
            with self.client.stash_open(self._uri(job, RESULT_NAME)) as chunks:
                return read_result(chunks)
        except NotFound:
            return None

    def list_files(self, job: Job) -> list[RemoteFile]:
        """See the protocol. Inputs and the wrapper's log are left out too, because they are not outputs."""
        try:
            entries = self.client.stash_list(self._folder_uri(job))
        except NotFound:
            return []
        found = (_file_of(entry, attempt_path(job)) for entry in entries)
        return left_by_command(job, (file for file in found if file is not None))

    def read_file(self, job: Job, name: str) -> bytes:
        return self.client.stash_read(self._uri(job, name))

    def open_file(self, job: Job, name: str, *, start: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        return self.client.stash_open(self._uri(job, name), start)

    @contextmanager
    def open_log(self, job: Job) -> Iterator[Iterator[bytes]]:
        """See the protocol. If the service refuses its log (PENDING, CANCELLED), the wrapper's copy is read."""
        with ExitStack() as stack:
            yield self._open_any_log(job, stack)

    def cancel(self, job: Job, *, mark: bool = True) -> bool:
        if mark:
            with suppress(RythmiqError):
                self.client.stash_write(self._uri(job, CANCEL_NAME), b"cancel\n")
        return job.remote_id is not None and self.client.cancel(job.remote_id)

    def remove(self, job: Job) -> None:
        with suppress(NotFound):
            self.client.stash_remove(self._folder_uri(job))

    def cost_credits(self, job: Job, remote: RemoteJob) -> float | None:
        """See the protocol. Camber bills the time in RUNNING, for each node (camber-api, section 4)."""
        an_hour = self._config.catalog.credits_per_hour(job.spec)
        if an_hour is None or remote.started_at is None or remote.finished_at is None:
            return None
        hours = max(0.0, (remote.finished_at - remote.started_at).total_seconds()) / 3600
        return hours * an_hour

    def _size(self, job: Job) -> NodeSize | None:
        """The size of the job's nodes in the catalog; None if it is not there."""
        return self._config.catalog.size(job.spec)

    def _pages(self, unseen: Collection[int], *, to_the_end: bool) -> Iterator[JobPage]:
        """Pages of the list, newest first. ``to_the_end``: only an empty page ends it, whatever total and sizes say.

        ``unseen``: the jobs that are still looked for. If the list is long and slow, the pages that they need at least
        are read several at once. A new job may then push another one to a page that was read already, so not where it
        has to be certain that nothing is missed, ``to_the_end``.
        """
        began = now_s()
        number, stuck, full = 0, 0, 0
        lowest = deepest = math.inf
        ahead: deque[Future[JobPage]] = deque()
        with ThreadPoolExecutor(_PAGES_AT_ONCE, thread_name_prefix="list") as pool:
            while stuck < _STUCK_PAGES:
                number += 1
                page = ahead.popleft().result() if ahead else self.client.list_page(number)
                if not page.jobs:
                    return
                yield page
                # The server may return shorter pages than requested; the first page shows their length.
                full = full or len(page.jobs)
                counted = page.total is not None and len(page.jobs) <= page.total <= number * full
                if not to_the_end and (counted or len(page.jobs) < full):
                    return
                # How many jobs are older than this page's. New jobs push the pages back, and no page is older for a
                # while.
                older = -number if page.total is None else page.total - number * full
                stuck = stuck + 1 if _lowest(page) >= lowest and older < deepest else 0
                lowest, deepest = min(lowest, _lowest(page)), min(deepest, older)
                if not to_the_end and now_s() - began > _SLOW_LIST_S:
                    for _ in range(min(_PAGES_AT_ONCE, math.ceil(len(unseen) / full)) - len(ahead)):
                        ahead.append(pool.submit(self.client.list_page, number + len(ahead) + 1))

    def _ask_for_each(self, remote_ids: Collection[int]) -> Iterator[list[RemoteJob | Unclear]]:
        """Queries jobs one by one; those not found are left out. A fault counts as that job's, unless it is an outage.

        Each answer is yielded at once. If a call raises, the next poll begins with the job after that one.
        """
        in_a_row = 0
        for remote_id in sorted(remote_ids, key=lambda remote_id: (remote_id <= self._asked_last, remote_id)):
            try:
                yield [self.client.get(remote_id)]
                in_a_row = 0
            except NotFound:
                in_a_row = 0
            except RythmiqError as error:
                in_a_row += 1
                if in_a_row % _OUTAGE == 0:
                    self.check()  # Raises if this is an outage.
                yield [Unclear(remote_id=remote_id, error=ErrorInfo.of(error))]
            self._asked_last = remote_id

    def _open_any_log(self, job: Job, stack: ExitStack) -> Iterator[bytes]:
        if job.remote_id is not None:
            with suppress(NotFound):
                return stack.enter_context(self.client.open_log(job.remote_id))
        return stack.enter_context(self.open_file(job, LOG_NAME))

    def _uri(self, job: Job, name: str) -> str:
        return self._stash_uri(file_path(job, name))

    def _folder_uri(self, job: Job) -> str:
        return self._stash_uri(f"{attempt_path(job)}/")

    def _stash_uri(self, place: str) -> str:
        return f"stash://{self._stash_owner()}/{place}"

    def _stash_owner(self) -> str:
        """The stash's owner, queried once in a process (or once by each thread before the first answer)."""
        return self._owner or self.check()


class _Walk:
    """How far the pages of one poll have reached."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._ids: set[int | None] = set()
        self._others = self._first = self._last = 0
        self._total: int | None = None
        self._repeats = False

    def note(self, page: JobPage) -> None:
        ids = [job_id_of(item) for item in page.jobs]
        if not self._first:
            self._first, self._total = len(ids), page.total
        self._last = len(ids)
        self._repeats = self._ids.issuperset(ids)
        self._others += ids.count(None)
        self._ids.update(ids)

    @property
    def whole(self) -> bool:
        """Whether they reached the list's end, as far as can be told."""
        if self._total is not None and len(self._ids - {None}) + self._others >= self._total:
            return True
        if self._repeats:  # The server has no pages: it returned all jobs at once, or the first ones repeatedly.
            return self._first > self._page_size
        return self._total is None or self._last < self._first


def _bare(paths: Collection[str]) -> frozenset[str]:
    return frozenset(path.strip("/") for path in paths)


def _file_of(entry: Mapping[str, Any], path: str) -> RemoteFile | None:
    """The file of an entry of a stash listing; None for a folder and for a file that is not below ``path``."""
    size, kind = entry.get("size", 0), entry.get("type", "file")
    place, name = entry.get("path"), entry.get("name")
    if kind != "file" or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        return None
    relative = None
    if isinstance(place, str):
        # The path is this attempt's alone, so wherever it occurs in a URI, the name follows it.
        relative = place.partition(f"{path}/")[2]
    if not relative and isinstance(name, str):
        relative = name.removeprefix(f"{path}/")
    return RemoteFile(name=relative, size_bytes=size) if relative else None


def _at(remote: RemoteJob, path: str) -> RemoteJob:
    return remote if remote.path == path else replace(remote, path=path)


def _lowest(page: JobPage) -> int:
    return min((remote_id for item in page.jobs if (remote_id := job_id_of(item)) is not None), default=0)


def _reaches_before(page: JobPage, horizon: datetime | None) -> bool:
    """Whether the page's last job was created before ``horizon``; False if either is not known."""
    created_at = time_of(page.jobs[-1].get("created_at"))
    return horizon is not None and created_at is not None and created_at < horizon
