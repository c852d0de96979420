"""``rythmiq artifacts``: what an attempt left, and a download that proves each file by its SHA-256."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from rythmiq_ray.cli import output
from rythmiq_ray.cli.failure import Unfinished, say
from rythmiq_ray.cli.jobs import JobId, Json, artifact_rows
from rythmiq_ray.cli.session import database, reading, store_of
from rythmiq_ray.errors import NotFound, RythmiqError
from rythmiq_ray.model import Artifact

_AT_ONCE: Final = 8


def artifacts(
    job_id: JobId,
    attempt: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="This attempt; else the last one that left any.")
    ] = None,
    download: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Bring the files here; made if it is missing.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List or download what a job left.

    A downloaded file is whole and its SHA-256 right, or it is not there. Exits 1 if
    one could not be brought; the others are there.

    \b
    Examples:
      rythmiq artifacts 019a5c3e
      rythmiq artifacts 019a5c3e --download results
    """
    from rythmiq_ray.queue import inspect

    with database() as connection:
        job = inspect.job(connection, job_id)
        found = inspect.artifacts(connection, job.job_id, attempt)
        if attempt is not None and attempt > job.attempt:
            raise NotFound(f"Job {job.job_id} has no attempt {attempt}; the last one is {job.attempt}")
    last = max((number for number, _ in found), default=0)
    found = [(number, file) for number, file in found if number == last]
    faults: dict[str, str] = {}
    if download is not None:
        faults = _download([file for _, file in found], download)
    if as_json:
        output.print_json(
            [{"attempt": number} | output.record(file) | _path(download, file, faults) for number, file in found]
        )
    elif download is not None:
        brought = [file for _, file in found if file.name not in faults]
        total = output.size(sum(file.bytes for file in brought))
        typer.echo(f"{len(brought)} file{'' if len(brought) == 1 else 's'}, {total}, verified, in {download}")
    elif found:
        output.rows(*artifact_rows(found))
    else:
        say(f"job {job.job_id} has no artifacts: it is {job.state}")
    for fault in faults.values():
        say(output.printable(fault))
    if faults:
        raise Unfinished


def _path(folder: Path | None, file: Artifact, faults: dict[str, str]) -> dict[str, object]:
    if folder is None:
        return {}
    return {"path": None if file.name in faults else str(folder / file.name)}


def _download(files: Sequence[Artifact], folder: Path) -> dict[str, str]:
    """Brings the files, several at once, and returns what went wrong, by name."""
    from rythmiq_ray.artifacts import download

    folder.mkdir(parents=True, exist_ok=True)
    faults: dict[str, str] = {}
    progress, advance = _progress(sum(file.bytes for file in files))

    def bring(file: Artifact) -> None:
        try:
            with reading():
                download(store_of(file.uri), file, folder, advance)
        except RythmiqError as error:
            faults[file.name] = error.message
        except OSError as error:
            faults[file.name] = f"{file.name!r}: {error.strerror or type(error).__name__}"

    with progress, ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for _ in pool.map(bring, files):
                pass
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return faults


def _progress(total_bytes: int) -> tuple[AbstractContextManager[Any], Callable[[int], None]]:
    """A bar on stderr where that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        return nullcontext(), lambda _count: None
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    bar = Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task("download", total=total_bytes)
    return bar, lambda count: bar.advance(task, count)
