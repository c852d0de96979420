"""Runs jobs as real processes: fills a working directory from the stash, and later copies new files back."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import psutil

from rythmiq_ray.local.camber.ledger import Job, Ledger, Status
from rythmiq_ray.local.camber.settings import Settings
from rythmiq_ray.local.camber.stash import Stash, copy_file, regular_files

_CONTAINER: Final = Path(__file__).with_name("container.py")
_CANNOT_EXECUTE: Final = 126
_NOTES: Final = "known.json"


@dataclass(slots=True, kw_only=True)
class _Run:
    """A job that has a working directory and, once that is filled, a process."""

    job: Job
    home: Path
    known: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and modification time (ns) of each file that the job did not write itself."""
    written: set[str] = field(default_factory=set)
    """Paths that were written to the stash before the process was started."""
    process: Process | None = None

    @property
    def workdir(self) -> Path:
        return self.home / "workdir"

    @property
    def notes(self) -> Path:
        return self.home / _NOTES


class Processes:
    """Runs jobs in the order in which they came, at most ``max_running`` at once."""

    def __init__(self, folder: Path, stash: Stash, ledger: Ledger, settings: Settings) -> None:
        self._work = folder / "work"
        self._logs = folder / "logs"
        self._stash = stash
        self._ledger = ledger
        self._settings = settings
        self._ready: deque[Job] = deque()
        self._running: dict[int, _Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        for place in (self._work, self._logs):
            place.mkdir(mode=0o700, exist_ok=True)

    def log(self, job: Job) -> Path:
        """The file with the job's output; it exists once the job runs."""
        return self._logs / f"{job.job_id}.log"

    def recover(self) -> None:
        """After a restart: jobs that were running are killed and become FAILED; their late files are still copied."""
        _kill_jobs_below(self._work)
        for job in self._ledger.all():
            if job.status is Status.RUNNING:
                self._ledger.end(job, Status.FAILED, None)
        for home in self._work.iterdir():
            started = self._ledger.get(int(home.name))
            if started is None or started.started is None or not (home / _NOTES).exists():
                shutil.rmtree(home, ignore_errors=True)
            else:
                run = _Run(job=started, home=home)
                run.known = {
                    name: (size, changed) for name, (size, changed) in json.loads(run.notes.read_bytes()).items()
                }
                self._spawn(self._bring_back(run))

    def start(self, job: Job) -> None:
        """Runs the job as soon as fewer than ``max_running`` run."""
        self._ready.append(job)
        self._fill()

    def kill(self, job: Job) -> None:
        """Kills a job that is already marked as cancelled."""
        run = self._running.get(job.job_id)
        if run is not None and run.process is not None:
            _let_go(run.process)

    async def written(self, path: str) -> None:
        """Copies a file that was written to the stash into the working directory of the running job with that path."""
        for run in list(self._running.values()):
            if path.startswith(f"{run.job.path}/"):
                if run.process is None:
                    run.written.add(path)
                else:
                    await asyncio.to_thread(self._hand_in, run, path)

    async def close(self) -> None:
        """Kills all jobs; the next start on this folder treats them as jobs that were running."""
        self._ready.clear()
        processes = [run.process for run in self._running.values() if run.process is not None]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in processes:
            _let_go(process)
            await process.wait()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _fill(self) -> None:
        while self._ready and len(self._running) < self._settings.max_running:
            job = self._ready.popleft()
            if job.status is Status.PENDING:
                run = _Run(job=job, home=self._work / str(job.job_id))
                self._running[job.job_id] = run
                self._spawn(self._live(run))

    async def _live(self, run: _Run) -> None:
        try:
            await asyncio.to_thread(self._prepare, run)
            if run.job.status is Status.PENDING:
                await self._execute(run)
        except OSError as error:  # this machine's disk is full, or the like
            self._fail(run.job, str(error))
        finally:
            del self._running[run.job.job_id]
            self._fill()
        await self._bring_back(run)

    def _prepare(self, run: _Run) -> None:
        shutil.rmtree(run.home, ignore_errors=True)
        run.known = self._stash.copy_out(run.job.path, run.workdir)
        run.notes.write_text(json.dumps(run.known))

    async def _execute(self, run: _Run) -> None:
        job = run.job
        self._ledger.start(job)
        try:
            if "\0" in job.request.command:
                raise ValueError("it holds a NUL")
            with self.log(job).open("wb") as log:
                run.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-I",
                    "-S",
                    str(_CONTAINER),
                    job.request.command,
                    stdin=PIPE,
                    stdout=log,
                    stderr=STDOUT,
                    cwd=run.workdir,
                    env={"PATH": self._settings.search_path, "HOME": str(run.home), "LANG": "C.UTF-8"},
                    start_new_session=True,
                )
        except (OSError, ValueError) as error:  # a command that no process can be given: too long, or with a NUL
            self._fail(job, str(error))
            return
        while run.written:
            await asyncio.to_thread(self._hand_in, run, run.written.pop())
        if job.status is Status.CANCELLED:
            _let_go(run.process)
        code = await run.process.wait()
        if code < 0:  # the container itself was killed, so it could not end what it held
            await asyncio.to_thread(_kill_jobs_below, run.home)
        if job.status is Status.RUNNING:
            self._ledger.end(job, Status.COMPLETED if code == 0 else Status.FAILED, code)

    def _fail(self, job: Job, reason: str) -> None:
        with suppress(OSError):
            self.log(job).write_text(f"cannot run the command: {reason}\n")
        if not job.status.terminal:
            self._ledger.end(job, Status.FAILED, _CANNOT_EXECUTE)

    def _hand_in(self, run: _Run, path: str) -> None:
        name = path.removeprefix(f"{run.job.path}/")
        beside = self._stash.unfinished()
        target = run.workdir / name
        with suppress(OSError):  # removed meanwhile, or the job has a folder of that name
            known = copy_file(Path(self._stash.place(path)), beside)
            target.parent.mkdir(parents=True, exist_ok=True)
            beside.replace(target)
            run.known[name] = known

    async def _bring_back(self, run: _Run) -> None:
        """Copies new and changed files back one by one, in random order and each in two halves."""
        await asyncio.sleep(self._settings.sync_delay_s)
        files = await asyncio.to_thread(lambda: list(regular_files(run.workdir)))
        changed = [(name, size) for name, size, changed_ns in files if run.known.get(name) != (size, changed_ns)]
        Random(f"{self._settings.seed}/{run.job.job_id}").shuffle(changed)  # noqa: S311 - to be repeatable
        for name, size in changed:
            with suppress(OSError):  # a file stands where a folder is needed, or the job made it unreadable
                source, path = run.workdir / name, f"{run.job.path}/{name}"
                half = size // 2
                await asyncio.to_thread(self._copy_half, source, path, half, first=True)
                if half < size:
                    await asyncio.sleep(self._settings.sync_step_s)
                    await asyncio.to_thread(self._copy_half, source, path, half, first=False)
        await asyncio.to_thread(shutil.rmtree, run.home, True)

    def _copy_half(self, source: Path, path: str, half: int, *, first: bool) -> None:
        with source.open("rb") as reader:
            if first:
                with os.fdopen(self._stash.open_new(path), "wb") as writer:
                    while (left := half - writer.tell()) and (chunk := reader.read(min(left, 1 << 20))):
                        writer.write(chunk)
            else:
                reader.seek(half)
                with Path(self._stash.place(path)).open("ab") as writer:
                    shutil.copyfileobj(reader, writer, 1 << 20)


def _let_go(process: Process) -> None:
    """Makes the container kill all its processes."""
    if process.stdin is not None:
        process.stdin.close()


def _kill_jobs_below(folder: Path) -> None:
    """Kills the processes whose HOME is at or below the folder, and all their descendants.

    A container ends by itself when the emulator is killed; this is for containers that were killed too. Processes
    inherit HOME. It is used instead of the working directory, so that a person's shell in the folder is not killed.
    """
    doomed: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            home = process.environ().get("HOME")
            if home is not None and Path(home).is_relative_to(folder):
                doomed.update((process, *process.children(recursive=True)))
    for process in doomed:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(doomed, timeout=5)
