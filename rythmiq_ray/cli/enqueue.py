"""``rythmiq enqueue``: one job from options, or many from a file of JSON lines."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from rythmiq_ray.cli.failure import say
from rythmiq_ray.cli.output import print_json
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.model import JobSpec, NewJob

_SPEC: Final = JobSpec(command="")
_JOB: Final = NewJob(spec=_SPEC)
_ENDING: Final = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,9}$")
"""Of a file's name."""
_BULK_TIMEOUT_S: Final = 600.0
"""One statement may bring millions of jobs."""


def enqueue(
    context: typer.Context,
    command: Annotated[str | None, typer.Option(help="What bash is to run in the job's working directory.")] = None,
    engine: Annotated[str, typer.Option(help="One of Camber's engines.")] = _SPEC.engine,
    node_size: Annotated[str, typer.Option(help="One of Camber's node sizes.")] = _SPEC.node_size,
    num_nodes: Annotated[int, typer.Option(help="How many nodes.")] = _SPEC.num_nodes,
    gpu: Annotated[bool, typer.Option("--gpu", help="Nodes with GPUs.")] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="URI[=NAME]", help="A file to put there first: s3, file, http or https."),
    ] = None,
    outputs: Annotated[
        list[str] | None,
        typer.Option("--output", metavar="GLOB", help="Files to keep, relative; ** crosses folders."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="K=V", help="A variable for the command.")] = None,
    secrets: Annotated[
        list[str] | None,
        typer.Option("--secret", metavar="NAME", help="A variable whose value is the driver's RYTHMIQ_SECRET_<NAME>."),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long the command may run: seconds, or 90s, 2h, 1d.")
    ] = None,
    retry_exit_codes: Annotated[
        list[int] | None,
        typer.Option("--retry-exit-code", metavar="N", help="Only these exit codes are worth another attempt."),
    ] = None,
    max_attempts: Annotated[int, typer.Option(metavar="N", help="Attempts in all.")] = _JOB.max_attempts,
    priority: Annotated[int, typer.Option(metavar="N", help="Higher goes first.")] = _JOB.priority,
    queue: Annotated[str, typer.Option(help="The queue's name.")] = _JOB.queue,
    user_id: Annotated[str | None, typer.Option(help="Whose job it is.")] = None,
    unique_key: Annotated[
        str | None, typer.Option(help="While a job with this key is unfinished, its id is printed instead.")
    ] = None,
    delay: Annotated[
        str, typer.Option(metavar="TIME", help="Not before this has passed: seconds, or 90s, 2h, 1d.")
    ] = "0",
    file: Annotated[
        str | None, typer.Option("--file", metavar="JSONL|-", help="Many jobs, a JSON object a line; - is stdin.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False,
) -> None:
    """Add a job, or all jobs of a file.

    Prints the id of each. A file is added in one transaction, and one bad line refuses it whole; its keys are the
    names of the options and those that `rythmiq schema` prints.

    The name of an --input is what follows the last `=` of its last part, where that `=` follows a file's ending
    (`x.csv=y`) or is the only one and no digit follows it; so `s3://b/epoch=3-step=10.ckpt` is a URI alone. `=./NAME`
    is always a name, and may hold folders; a line of --file has "uri" and "name" apart. Without a name it is the last
    part of the URI's path.

    \b
    Examples:
      rythmiq enqueue --command 'echo hello'
      rythmiq enqueue --command 'python3 fit.py' --node-size medium \\
          --input s3://lab/fit.py --input s3://lab/dt=1/x.csv=x.csv --output 'results/**'
      rythmiq enqueue --command ./train --secret HF_TOKEN --timeout 2h --max-attempts 5
      rythmiq enqueue --file jobs.jsonl
      echo '{"command": "true", "queue": "night"}' | rythmiq enqueue --file -
    """
    if file is None:
        data = {
            "command": command,
            "engine": engine,
            "node_size": node_size,
            "num_nodes": num_nodes,
            "gpu": gpu,
            "inputs": [input_of(text) for text in inputs or ()],
            "outputs": outputs or [],
            "env": env_of(env or []),
            "secrets": secrets or [],
            "timeout": timeout,
            "retry_exit_codes": retry_exit_codes or None,
            "max_attempts": max_attempts,
            "priority": priority,
            "queue": queue,
            "user_id": user_id,
            "unique_key": unique_key,
            "delay": delay,
        }
        if command is None:
            raise typer.BadParameter("give --command or --file", ctx=context)
        jobs = [_one(data)]
    else:
        _refuse_others(context)
        jobs = _many(file)
    ids = _insert(jobs)
    if as_json:
        print_json([{"job_id": str(job_id)} for job_id in ids])
    else:
        sys.stdout.write("".join(f"{job_id}\n" for job_id in ids))


def input_of(text: str) -> dict[str, str]:
    """``URI[=NAME]`` as the fields of an input.

    URIs hold ``=`` too: in queries, and in keys such as ``dt=1/x.csv`` or ``epoch=3-step=1000.ckpt``.
    """
    from rythmiq_ray.spec import default_name

    uri, mark, name = text.rpartition("=./")
    if mark:
        return {"uri": uri, "name": name}
    uri, mark, name = text.rpartition("=")
    query = text.startswith(("http://", "https://")) and "?" in uri
    last = uri.rpartition("/")[2]
    part_of_key = not _ENDING.search(last) and ("=" in last or name[:1].isdigit())
    if not mark or "/" in name or query or part_of_key:
        return {"uri": text, "name": default_name(text)}
    return {"uri": uri, "name": name}


def env_of(assignments: list[str]) -> dict[str, str]:
    """``K=V`` each; the value is never repeated in a fault, because people put secrets there."""
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


def _one(data: dict[str, Any]) -> NewJob:
    from rythmiq_ray.layers import load_catalog
    from rythmiq_ray.spec import check, parse

    job = parse(data)
    faults = check(job, load_catalog())
    if faults:
        raise InvalidJob(faults)
    return job


def _many(file: str) -> list[NewJob]:
    from rythmiq_ray.layers import load_catalog
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
        raise typer.BadParameter(f"--file brings every field of its jobs: leave out {', '.join(given)}", ctx=context)


def _insert(jobs: list[NewJob]) -> list[Any]:
    from rythmiq_ray.cli.session import database
    from rythmiq_ray.queue import insert

    if not jobs:
        return []
    with database(statement_timeout_s=_BULK_TIMEOUT_S) as connection:
        return insert(connection, jobs)
