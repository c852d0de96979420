"""``rythmiq logs``: a stored log, or the live log of a running job."""

from __future__ import annotations

import hashlib
import sys
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Final

import typer

from rythmiq_ray.access import Backends, database, read
from rythmiq_ray.artifact_names import LOG_NAME
from rythmiq_ray.cli import output
from rythmiq_ray.cli.failure import ENDED_BADLY, NOT_YET, Ended, say
from rythmiq_ray.cli.filters import JobSelection, References, filtered, found_of, require_selection, selected_states
from rythmiq_ray.cli.jobs import called
from rythmiq_ray.errors import BackendBusy, BackendUnavailable, ConfigurationError, NotFound
from rythmiq_ray.model import Artifact, Job, JobState

if TYPE_CHECKING:
    from uuid import UUID

    from psycopg2.extensions import connection as Connection

    from rythmiq_ray.queue.inspect import Attempt

_LOOK_S: Final = 0.5
"""The time between two checks of a job that is followed."""
_LONGEST_LINE: Final = 1024 * 1024
_PATIENCE: Final = 4
"""Each read fetches the whole live log, so the pause after it is this many times as long as the read took."""


@filtered
def logs(
    context: typer.Context,
    wanted: JobSelection,
    references: References = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the log until the job has ended.")] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="This attempt; by default the last one.")
    ] = None,
    tail: Annotated[
        int, typer.Option("--tail", "-n", min=1, metavar="N", help="Number of last lines of each, for several jobs.")
    ] = 20,
) -> None:
    """Write a job's log to stdout, or the last lines of several jobs' logs.

    The log comes from the artifact store, or from Camber while the job runs. -f follows all attempts until the job has
    ended, and writes no byte twice. A program that buffers its output may show nothing for a long time (Python: use
    -u). Exits 5 while there is no log yet, and with -f 3 if the job FAILED or was CANCELLED.

    For a group the last lines of each FAILED member are shown; for several ids or filters those of each job.

    \b
    Examples:
      rythmiq logs 019a5c3e
      rythmiq logs -f 019a5c3e | grep -i error
      rythmiq logs 019a5c3e --attempt 1
      rythmiq logs lr -n 5
      rythmiq logs --group lr --state succeeded
    """
    from rythmiq_ray.queue import inspect, listing

    require_selection(context, references, wanted)
    with database() as connection, Backends() as backends:
        # Autocommit: each read sees what drivers have written meanwhile, and no transaction stays open.
        connection.autocommit = True
        found = found_of(connection, references)
        if len(found) != 1 or not found[0].is_job or wanted.given:
            if follow or attempt is not None:
                raise typer.BadParameter("-f and --attempt are for a single job", ctx=context)
            if found and not any(item.is_job for item in found) and not wanted.given:
                wanted = JobSelection(wanted.groups, listing.Filter(states=[JobState.FAILED]))
            ids = list(selected_states(connection, references, wanted))
            _several(connection, list(listing.jobs(connection, listing.Filter(ids=ids), limit=None)), tail)
            return
        job = inspect.job(connection, found[0].id)
        if follow:
            _follow(connection, backends, job, attempt)
            if inspect.job(connection, job.job_id).state in (JobState.FAILED, JobState.CANCELLED):
                raise Ended(ENDED_BADLY)
        else:
            _print(connection, backends, job, attempt)


def _several(connection: Connection, jobs: list[Job], tail: int) -> None:
    """Prints the last lines of each stored log, under a line with the job."""
    from rythmiq_ray.queue import listing

    if not jobs:
        say("none of these jobs has a log")
        return
    jobs.sort(key=lambda job: (str(job.group_id or ""), job.group_index or 0, job.job_id))
    stored = listing.stored(connection, [job.job_id for job in jobs], LOG_NAME)
    for job in jobs:
        error = f" ({job.error_code})" if job.error_code else ""
        typer.echo(output.printable(f"==> {job.job_id} {called(job)} {job.state}{error} <=="))
        found = stored.get(job.job_id)
        if not found:
            typer.echo(output.printable(job.error_message or "it has no log"))
            continue
        lines: deque[bytes] = deque(maxlen=tail)
        rest = b""
        for chunk in read(found[0][1].uri):
            *whole, rest = (rest + chunk)[-_LONGEST_LINE:].split(b"\n")
            lines.extend(whole)
        if rest:
            lines.append(rest)
        sys.stdout.flush()
        _write([b"\n".join(lines)[-_LONGEST_LINE:] + b"\n"])


def _print(connection: Connection, backends: Backends, job: Job, number: int | None) -> None:
    number = number or job.attempt
    if number == 0:
        if job.state.finished:
            raise NotFound(f"Job {job.job_id} never started, so it has no log: it is {job.state}")
        raise Ended(NOT_YET, f"Job {job.job_id} has not started yet, so it has no log; -f waits for it")
    attempt = _attempt(connection, job, number)
    if attempt is None:
        raise NotFound(f"Job {job.job_id} has no attempt {number}; the last one is {job.attempt}")
    if attempt.state is JobState.RUNNING:
        if job.remote_id is None:
            raise Ended(
                NOT_YET, f"Attempt {number} of job {job.job_id} is being submitted and has no log yet; -f waits for it"
            )
        try:
            with backends.get().open_log(job) as chunks:
                _write(chunks)
        except ConfigurationError as error:
            said = f"Attempt {number} of job {job.job_id} runs: {_unreadable(error)}; -f waits for it"
            raise Ended(NOT_YET, said) from None
        except NotFound:
            status = job.remote_status or "not running yet"
            raise Ended(
                NOT_YET,
                f"Attempt {number} of job {job.job_id} is {status} at Camber and has no log yet; -f waits for it",
            ) from None
        return
    log = _stored(connection, job.job_id, number)
    if log is None:
        raise NotFound(f"Attempt {number} of job {job.job_id} left no log: {attempt.error_message or attempt.state}")
    _write(read(log.uri))


def _follow(connection: Connection, backends: Backends, job: Job, only: int | None) -> None:
    from rythmiq_ray.queue import inspect

    number = only or max(1, job.attempt)
    printed = _Printed()
    while True:
        job = inspect.job(connection, job.job_id)
        attempt = _attempt(connection, job, number)
        pause_s = _LOOK_S
        if attempt is not None and attempt.state is not JobState.RUNNING:
            _rest(connection, job, number, printed)
            if only is not None or (job.state.finished and job.attempt <= number):
                return
            number += 1
            printed = _Printed()
            if job.state is JobState.RETRYING:
                say(f"attempt {number - 1} ended with {attempt.error_code}; waiting for attempt {number}")
            continue
        if attempt is None and job.state.finished:
            if job.attempt == 0 or only is not None:
                raise NotFound(f"Job {job.job_id} has no attempt {number}: it is {job.state}")
            return
        if attempt is not None and job.remote_id is not None and job.attempt == number:
            started = time.monotonic()
            _more(backends, job, printed)
            pause_s = max(pause_s, _PATIENCE * (time.monotonic() - started))
        time.sleep(min(pause_s, 60.0))


class _Printed:
    """How much of an attempt's log was written to stdout, and its hash, to continue in the stored log."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()
        self._warned = False

    def write(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)
        self.bytes += len(data)
        self._hash.update(data)

    def outage(self, message: str) -> None:
        """Reports, once, that the live log cannot be read."""
        if not self._warned:
            say(message)
            self._warned = True

    @property
    def digest(self) -> bytes:
        return self._hash.digest()


def _more(backends: Backends, job: Job, printed: _Printed) -> None:
    """Prints the new part of the live log."""
    skip = printed.bytes
    try:
        with backends.get().open_log(job) as chunks:
            for chunk in chunks:
                if skip < len(chunk):
                    printed.write(chunk[skip:])
                skip = max(0, skip - len(chunk))
    except NotFound:
        pass
    except ConfigurationError as error:
        printed.outage(_unreadable(error))
    except (BackendUnavailable, BackendBusy) as error:
        # The job goes on, and its log will be in the store at the end.
        printed.outage(error.message)
    sys.stdout.buffer.flush()


def _unreadable(error: ConfigurationError) -> str:
    """The reason for users without Camber's key or without a configuration."""
    return (
        f"its live log cannot be read from here ({error.message.splitlines()[0]}), and will be in the store once the"
        " attempt has ended"
    )


def _rest(connection: Connection, job: Job, number: int, printed: _Printed) -> None:
    """Prints the rest of the stored log; all of it if the printed part differs."""
    log = _stored(connection, job.job_id, number)
    if log is None:
        if not printed.bytes:
            say(f"attempt {number} left no log")
        return
    if printed.bytes and not _begins_with(log, printed):
        say("the stored log differs from the live one, so all of it follows")
        printed = _Printed()
    skip = printed.bytes
    for chunk in read(log.uri):
        if skip < len(chunk):
            printed.write(chunk[skip:])
        skip = max(0, skip - len(chunk))
    sys.stdout.buffer.flush()


def _begins_with(log: Artifact, printed: _Printed) -> bool:
    if log.bytes < printed.bytes:
        return False
    left = printed.bytes
    digest = hashlib.sha256()
    for chunk in read(log.uri):
        digest.update(chunk[:left])
        left -= min(left, len(chunk))
        if not left:
            break
    return digest.digest() == printed.digest


def _attempt(connection: Connection, job: Job, number: int) -> Attempt | None:
    from rythmiq_ray.queue import inspect

    return next((a for a in inspect.attempts(connection, job.job_id) if a.attempt == number), None)


def _stored(connection: Connection, job_id: UUID, number: int) -> Artifact | None:
    from rythmiq_ray.queue import inspect

    return next((file for _, file in inspect.artifacts(connection, job_id, number) if file.name == LOG_NAME), None)


def _write(chunks: Iterable[bytes]) -> None:
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()
