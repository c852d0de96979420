"""The tree of commands."""

from __future__ import annotations

import typer

from rythmiq_ray import __version__
from rythmiq_ray.cli import control, local, operations, schedule
from rythmiq_ray.cli.artifacts import artifacts
from rythmiq_ray.cli.collect import collect
from rythmiq_ray.cli.completion import completion
from rythmiq_ray.cli.control import cost, pause, resume
from rythmiq_ray.cli.doctor import doctor
from rythmiq_ray.cli.enqueue import enqueue
from rythmiq_ray.cli.groups import gather, groups, wait
from rythmiq_ray.cli.jobs import cancel, jobs, retry, show
from rythmiq_ray.cli.logs import logs
from rythmiq_ray.cli.migrate import migrate
from rythmiq_ray.cli.operations import queues, why
from rythmiq_ray.cli.prune import prune
from rythmiq_ray.cli.report import report
from rythmiq_ray.cli.schema import schema
from rythmiq_ray.cli.sizes import sizes
from rythmiq_ray.cli.sweep import sweep
from rythmiq_ray.cli.top import top
from rythmiq_ray.cli.web import web

app = typer.Typer(
    name="rythmiq",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"rythmiq-ray {__version__}")
        raise typer.Exit


@app.callback()
def rythmiq(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_version, help="Print the version."),
) -> None:
    """A durable job runner: jobs in Postgres, work on Camber Cloud, artifacts in S3.

    Every command reads DATABASE_URL, or the layers of the configuration; without either it uses the services that
    `rythmiq local up` started. Exit codes: 0 done, 1 a fault, 2 bad input or configuration,
    3 done, and a job that was asked about FAILED or was CANCELLED, 4 no such job, group or file, 5 not yet,
    124 the --timeout of a wait is over.

    \b
    Examples:
      rythmiq local up && eval "$(rythmiq local env)"
      rythmiq enqueue --command 'echo hello' --output '*.txt'
      python -m rythmiq_ray.driver --drain
      rythmiq jobs
    """


for _command in (
    migrate,
    enqueue,
    sweep,
    jobs,
    groups,
    show,
    why,
    wait,
    logs,
    artifacts,
    gather,
    cancel,
    retry,
    collect,
    prune,
    pause,
    resume,
    cost,
    queues,
    top,
    web,
    report,
    sizes,
    schema,
    doctor,
    completion,
):
    app.command()(_command)
app.add_typer(control.limit, name="limit")
app.add_typer(control.budget, name="budget")
app.add_typer(schedule.app, name="schedule")
app.add_typer(operations.drivers, name="drivers")
app.add_typer(local.app, name="local")
