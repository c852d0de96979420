"""``rythmiq enqueue``: one job from options, or many from a file of JSON lines."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, get_type_hints

import typer

from rythmiq_ray.cli.failure import say
from rythmiq_ray.cli.output import print_items, progress_bar
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.filtering import labels_of
from rythmiq_ray.job_fields import input_of
from rythmiq_ray.model import JobSpec, NewJob

_F = TypeVar("_F", bound=Callable[..., Any])
_KEYWORD: Final = inspect.Parameter.KEYWORD_ONLY

_SPEC: Final = JobSpec(command="")
_JOB: Final = NewJob(spec=_SPEC)
BULK_TIMEOUT_S: Final = 600.0
"""A timeout that is long enough for a statement that inserts millions of jobs."""


@dataclass(frozen=True)
class Work:
    """The options about a job's command, as fields of a JSON line."""

    data: Mapping[str, Any]


@dataclass(frozen=True)
class Queued:
    """The options about how a job is queued."""

    data: Mapping[str, Any]


def _several(flag: str, metavar: str, words: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=words)


_WORK: Final[dict[str, tuple[Any, Any, Any]]] = {
    "command": (str | None, None, typer.Option(help="The command that bash runs in the job's working directory.")),
    "engine": (str, _SPEC.engine, typer.Option(help="One of Camber's engines.")),
    "node_size": (str, _SPEC.node_size, typer.Option(help="One of Camber's node sizes; `rythmiq sizes` lists them.")),
    "num_nodes": (int, _SPEC.num_nodes, typer.Option(help="Number of nodes.")),
    "gpu": (bool, False, typer.Option("--gpu", help="Nodes with GPUs.")),
    "inputs": (
        list[str] | None,
        None,
        _several("--input", "PATH|URI[=NAME]", "A file or folder for the working directory; see below."),
    ),
    "outputs": (list[str] | None, None, _several("--output", "GLOB", "Files to keep, relative; ** crosses folders.")),
    "env": (list[str] | None, None, _several("--env", "K=V", "A variable for the command.")),
    "secrets": (
        list[str] | None,
        None,
        _several("--secret", "NAME", "A variable whose value is the driver's RYTHMIQ_SECRET_<NAME>."),
    ),
    "timeout": (
        str | None,
        None,
        typer.Option(metavar="TIME", help="How long the command may run: seconds, or 90s, 2h, 1d."),
    ),
    "retry_exit_codes": (
        list[int] | None,
        None,
        _several("--retry-exit-code", "N", "Only these exit codes lead to another attempt."),
    ),
}
_QUEUED: Final[dict[str, tuple[Any, Any, Any]]] = {
    "max_attempts": (int, _JOB.max_attempts, typer.Option(metavar="N", help="Most attempts.")),
    "priority": (int, _JOB.priority, typer.Option(metavar="N", help="Higher goes first.")),
    "queue": (str, _JOB.queue, typer.Option(help="The queue's name.")),
    "user_id": (str | None, None, typer.Option("--user-id", "--user", help="The user whose job it is.")),
    "unique_key": (
        str | None,
        None,
        typer.Option(help="While a job with this key is unfinished, its id is printed instead."),
    ),
    "delay": (str, "0", typer.Option(metavar="TIME", help="Time until it may start: seconds, or 90s, 2h, 1d.")),
    "name": (str | None, None, typer.Option(help="A name for people, and for other jobs of its group.")),
    "labels": (list[str] | None, None, _several("--label", "K=V", "A label to filter by and to sum costs by.")),
    "after": (
        list[str] | None,
        None,
        _several(
            "--after", "ID|GROUP", "Start once this has SUCCEEDED: an id, a group's name, or a job's in the same group."
        ),
    ),
    "after_ended": (
        list[str] | None,
        None,
        _several("--after-ended", "ID|GROUP", "Start once this has ended, in any state."),
    ),
    "notify": (
        str | None,
        None,
        typer.Option(metavar="URL", help="It gets a signed POST when the job, or a sweep as a whole, has ended."),
    ),
}


def job_options(command: _F) -> _F:
    """Decorator that adds the options of a job to a command, which receives them as ``work`` and ``queued``."""
    hints = get_type_hints(command, include_extras=True)
    parts = {"work": (_WORK, Work), "queued": (_QUEUED, Queued)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        options = parts[parameter.name][0] if parameter.name in parts else None
        if options is None:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=_KEYWORD))
            continue
        parameters += [
            inspect.Parameter(name, _KEYWORD, default=default, annotation=Annotated[kind, option])
            for name, (kind, default, option) in options.items()
        ]

    @wraps(command)
    def run(**arguments: Any) -> Any:
        made = {
            name: kind({option: arguments.pop(option) for option in options}) for name, (options, kind) in parts.items()
        }
        return command(**arguments, **made)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__  # Otherwise Typer would use the signature of the wrapped function.
    return run  # type: ignore[return-value]


@job_options
def enqueue(
    context: typer.Context,
    work: Work,
    queued: Queued,
    group: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Its group: an id or a name; a new name creates a group.")
    ] = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="JSONL|-", help="Many jobs, a JSON object a line; - is stdin.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object with the ids.")] = False,
) -> None:
    """Add a job, or all jobs of a file.

    Prints the id of each. A file is added in one transaction, and one bad line refuses the whole file; its keys are the
    names of the options, see `rythmiq schema`.

    An --input is a local file or folder, which is uploaded once; a URI (s3, https, http, file), an s3 folder
    (`s3://b/data/`) or pattern (`s3://b/*.csv`); or files that other jobs stored: `job:ID/GLOB`, `group:ID/GLOB`, for
    which the new job then waits. After `=` comes its name in the working directory, or a folder (`=data/`).

    The name is the text after the last `=` of the last part, if that `=` follows a file extension (`x.csv=y`), or if it
    is the only one and no digit follows it; so `s3://b/epoch=3-step=10.ckpt` is a URI without a name. `=./NAME` is
    always a name, and may contain folders; a line of --file has separate keys "uri" and "name". The default name is the
    last part of the URI's path.

    \b
    Examples:
      rythmiq enqueue --command 'echo hello'
      rythmiq enqueue --command 'python3 fit.py' --node-size medium \\
          --input ./fit.py --input s3://lab/dt=1/x.csv=x.csv --output 'results/**'
      rythmiq enqueue --command ./train --secret HF_TOKEN --timeout 2h --max-attempts 5
      rythmiq enqueue --command 'python3 merge.py' --input ./merge.py --input group:lr/score.json=scores/
      rythmiq enqueue --file jobs.jsonl
      echo '{"command": "true", "queue": "night"}' | rythmiq enqueue --file -
    """
    if file is None:
        if work.data["command"] is None:
            raise typer.BadParameter("give --command or --file", ctx=context)
        jobs = [replace(job_from(work, queued), group=group)]
        checked_all(jobs)
    else:
        _refuse_others(context)
        jobs = _many(file)
    ids = _insert(prepared(jobs))
    if as_json:
        print_items({"job_id": str(job_id)} for job_id in ids)
    else:
        sys.stdout.write("".join(f"{job_id}\n" for job_id in ids))


def env_of(assignments: list[str]) -> dict[str, str]:
    """Parses ``K=V`` items; raises InvalidJob. No fault repeats a value, because people put secrets there."""
    env: dict[str, str] = {}
    faults: list[str] = []
    for at, assignment in enumerate(assignments):
        name, mark, value = assignment.partition("=")
        if not mark:
            faults.append(f"env[{at}]: must be K=V")
        elif name in env:
            faults.append(f"env: {name!r} is there twice")
        env[name] = value
    if faults:
        raise InvalidJob(faults)
    return env


def job_from(work: Work, queued: Queued) -> NewJob:
    """The job that the options describe; raises InvalidJob."""
    from rythmiq_ray.spec import parse

    if work.data["command"] is None:
        raise InvalidJob(["command: give --command"])
    data = {
        **work.data,
        "inputs": [input_of(text) for text in work.data["inputs"] or ()],
        "outputs": work.data["outputs"] or [],
        "env": env_of(work.data["env"] or []),
        "secrets": work.data["secrets"] or [],
        "retry_exit_codes": work.data["retry_exit_codes"] or None,
        **queued.data,
        "labels": labels_of(queued.data["labels"] or ()),
        "after": queued.data["after"] or [],
        "after_ended": queued.data["after_ended"] or [],
    }
    return parse(data)


def checked_all(jobs: Sequence[NewJob]) -> None:
    """Raises InvalidJob with all faults. Local paths are allowed as inputs, because they are uploaded later."""
    from rythmiq_ray.config_loader import load_catalog
    from rythmiq_ray.spec import check_all

    found = list(check_all(jobs, load_catalog(), local=True))
    faults = [fault if len(jobs) == 1 else f"job {at}: {fault}" for at, each in enumerate(found, 1) for fault in each]
    if faults:
        raise InvalidJob(faults)


def prepared(jobs: list[NewJob]) -> list[NewJob]:
    """The jobs, after validation, with local inputs uploaded and with this program's trace, if it is in one."""
    from rythmiq_ray.telemetry.traces import of_caller
    from rythmiq_ray.uploads import Uploads

    if (trace := of_caller()) is not None:
        jobs = [replace(job, traceparent=job.traceparent or trace) for job in jobs]
    uploads = Uploads.of(jobs)
    if not uploads.files:
        return jobs
    from rythmiq_ray.access import own_store

    with progress_bar("upload", len(uploads.files)) as advance:
        return uploads.send(own_store(), progress=advance)


def warn_unserved(connection: Any, jobs: Sequence[NewJob]) -> None:
    """Warns about queues that no live driver serves, if there are drivers at all: the name may be misspelt."""
    from rythmiq_ray.queue import listing

    for queue in listing.unserved(connection, sorted({job.queue for job in jobs})):
        say(f"no live driver serves the queue {queue!r}; the job waits until one does")


def _many(file: str) -> list[NewJob]:
    from rythmiq_ray.config_loader import load_catalog
    from rythmiq_ray.spec import parse_lines

    catalog = load_catalog()
    with ExitStack() as stack:
        try:
            lines = sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        except OSError as error:
            raise typer.BadParameter(f"{file}: {error.strerror}", param_hint="--file") from None
        jobs = parse_lines(lines, catalog)
    if not jobs:
        say(f"{'stdin' if file == '-' else file} holds no jobs")
    return jobs


def _refuse_others(context: typer.Context) -> None:
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in ("file", "as_json", "help")
        and (source := context.get_parameter_source(parameter.name or "")) is not None
        and source.name == "COMMANDLINE"
    ]
    if given:
        raise typer.BadParameter(f"--file sets every field of its jobs: leave out {', '.join(given)}", ctx=context)


def _insert(jobs: list[NewJob]) -> list[Any]:
    from rythmiq_ray.access import database
    from rythmiq_ray.queue import insert

    if not jobs:
        return []
    with database(statement_timeout_s=BULK_TIMEOUT_S) as connection:
        ids = insert(connection, jobs)
        warn_unserved(connection, jobs)
        return ids
