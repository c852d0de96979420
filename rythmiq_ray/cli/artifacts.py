"""``rythmiq artifacts``: lists an attempt's files, or downloads them and verifies their SHA-256."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from rythmiq_ray.access import bring, database
from rythmiq_ray.cli import output
from rythmiq_ray.cli.failure import Unfinished, say
from rythmiq_ray.cli.filters import JobSelection, References, filtered, found_of, require_selection, selected_states
from rythmiq_ray.cli.jobs import Json, artifact_rows, called
from rythmiq_ray.errors import NotFound, RythmiqError
from rythmiq_ray.model import Artifact, Group, Job

_UNFIT: Final = re.compile(r"[^\w.=,+@-]+")
"""Characters of a name that no folder should have."""
_LONGEST: Final = 100


@filtered
def artifacts(
    context: typer.Context,
    wanted: JobSelection,
    references: References = None,
    attempt: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="This attempt of one job; by default the last one with files."),
    ] = None,
    download: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", file_okay=False, help="Download the files to this folder; it is created if missing."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List or download stored files: of one job, of a group's members, or by filters.

    Size and SHA-256 of each download are verified; a file that differs is not kept. With several jobs each gets a
    folder, named by its place in the group, its name and its parameters; with several groups these are in a folder for
    each group. Files that are there already and match are skipped, so an interrupted download can be continued. Exits 1
    if a file could not be downloaded.

    \b
    Examples:
      rythmiq artifacts 019a5c3e
      rythmiq artifacts 019a5c3e --download results
      rythmiq artifacts lr --download results
      rythmiq artifacts --label nightly=2026-01-07 --json
    """
    from rythmiq_ray.queue import inspect, listing

    require_selection(context, references, wanted)
    with database() as connection:
        found = found_of(connection, references)
        alone = len(found) == 1 and found[0].is_job and not wanted.given
        if attempt is not None and not alone:
            raise typer.BadParameter("--attempt is for a single job", ctx=context)
        if alone:
            jobs = [inspect.job(connection, found[0].id)]
        else:
            ids = list(selected_states(connection, references, wanted))
            jobs = sorted(
                listing.jobs(connection, listing.Filter(ids=ids), limit=None),
                key=lambda job: (str(job.group_id or ""), job.group_index or 0, job.job_id),
            )
        if attempt is not None:
            if attempt > jobs[0].attempt:
                raise NotFound(f"Job {jobs[0].job_id} has no attempt {attempt}; the last one is {jobs[0].attempt}")
            stored = {jobs[0].job_id: inspect.artifacts(connection, jobs[0].job_id, attempt)}
        else:
            stored = listing.stored(connection, [job.job_id for job in jobs])
        tops = _tops(listing.groups_of(connection, {job.group_id for job in jobs if job.group_id is not None}))
    files = [
        _File(job, number, file, Path() if alone else tops.get(job.group_id, Path()) / folder_of(job))
        for job in jobs
        for number, file in stored.get(job.job_id, ())
    ]
    faults = {} if download is None else _download(files, download)
    if as_json:
        output.print_items(
            {"job_id": str(each.job.job_id), "attempt": each.attempt}
            | output.record(each.file)
            | _path(download, each, faults)
            for each in files
        )
    elif download is not None:
        brought = [each.file for each in files if each not in faults]
        total = output.size(sum(file.bytes for file in brought))
        typer.echo(f"{len(brought)} file{'' if len(brought) == 1 else 's'}, {total}, verified, in {download}")
    elif files:
        output.rows(*(artifact_rows([(each.attempt, each.file) for each in files]) if alone else _rows(files)))
    elif alone:
        say(f"job {jobs[0].job_id} has no artifacts: it is {jobs[0].state}")
    else:
        say(f"{len(jobs):,} job{'' if len(jobs) == 1 else 's'}, no artifacts")
    for fault in faults.values():
        say(output.printable(fault))
    if faults:
        raise Unfinished


@dataclass(frozen=True, eq=False)
class _File:
    job: Job
    attempt: int
    file: Artifact
    folder: Path
    """Below the one that is downloaded to."""


def folder_of(job: Job) -> str:
    """The folder of a job among others: ``0003_fit_LR=0.1``, or its id where it is in no group."""
    words = [str(job.job_id) if job.group_index is None else f"{job.group_index:04}", called(job)]
    return _fit("_".join(filter(None, words))) or str(job.job_id)


def _tops(groups: Sequence[Group]) -> dict[UUID | None, Path]:
    """The folder of each group, if there are several: its name; with its id if that is missing or not unique."""
    if len(groups) < 2:
        return {}
    names = {group.group_id: _fit(group.name or "") for group in groups}
    times = Counter(name.casefold() for name in names.values())
    return {
        group_id: Path(name if name and times[name.casefold()] == 1 else f"{name}_{group_id}".lstrip("_"))
        for group_id, name in names.items()
    }


def _fit(text: str) -> str:
    return _UNFIT.sub("_", text).strip("._")[:_LONGEST]


def _rows(files: Sequence[_File]) -> tuple[dict[str, str], list[list[object]]]:
    columns = {"JOB": "<", "SIZE": ">", "SHA-256": "<", "NAME": "~"}
    short = output.shortened({each.job.job_id for each in files})
    return columns, [
        [
            output.clipped(called(each.job), 24) if called(each.job) else short[each.job.job_id],
            output.size(each.file.bytes),
            each.file.sha256[:12],
            each.file.name,
        ]
        for each in files
    ]


def _path(folder: Path | None, each: _File, faults: dict[_File, str]) -> dict[str, object]:
    if folder is None:
        return {}
    return {"path": None if each in faults else str(folder / each.folder / each.file.name)}


def _download(files: Sequence[_File], folder: Path) -> dict[_File, str]:
    """Downloads the files, several at once; returns the faults."""
    folder.mkdir(parents=True, exist_ok=True)
    progress, advance = _progress(sum(each.file.bytes for each in files))
    with progress:
        found = bring([(each.file, folder / each.folder) for each in files], advance)
    return {each: _said(each.file, fault) for each, fault in zip(files, found, strict=True) if fault is not None}


def _said(file: Artifact, fault: Exception) -> str:
    if isinstance(fault, RythmiqError):
        return fault.message
    return f"{file.name!r}: {getattr(fault, 'strerror', None) or type(fault).__name__}"


def _progress(total_bytes: int) -> tuple[AbstractContextManager[Any], Callable[[int], None]]:
    """A bar on stderr where that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        return nullcontext(), lambda _count: None
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    bar = Progress(BarColumn(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task("download", total=total_bytes)
    return bar, lambda count: bar.advance(task, count)
