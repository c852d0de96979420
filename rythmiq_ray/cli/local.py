"""``rythmiq local``: the embedded services, which keep running between commands."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING

import typer

from rythmiq_ray.cli import output
from rythmiq_ray.cli.jobs import Json
from rythmiq_ray.errors import ConfigurationError

if TYPE_CHECKING:
    from rythmiq_ray.local.stack import Stack

app = typer.Typer(
    rich_markup_mode=None,
    help="Postgres, S3 and a Camber emulator on this machine.\n\n"
    "Their state is in .rythmiq here, or in the folder that RYTHMIQ_LOCAL_DIR names. While they run, every command "
    "uses them unless DATABASE_URL or SERVICE_ENV says otherwise.",
)


@app.command()
def up(as_json: Json = False) -> None:
    """Start the services that do not run yet, and migrate the database.

    \b
    Example:
      rythmiq local up
      rythmiq enqueue --command 'echo hello'
      SERVICE_ENV=local python -m rythmiq_ray.driver --drain
    """
    from rythmiq_ray.queue.migrations import migrate
    from rythmiq_ray.secret import Secret

    stack = _stack()
    stack.up()
    migrate(Secret(stack.environment()["DATABASE_URL"]))
    _print_status(stack, as_json)


@app.command()
def down(as_json: Json = False) -> None:
    """Stop all services; their data stays.

    \b
    Example:
      rythmiq local down
    """
    stack = _stack()
    stopped = sorted(stack.down())
    if as_json:
        output.print_json(stopped)
    else:
        typer.echo(f"stopped: {', '.join(stopped) or 'nothing was running'}")


@app.command()
def status(as_json: Json = False) -> None:
    """Show which services run.

    \b
    Example:
      rythmiq local status --json
    """
    _print_status(_stack(), as_json)


@app.command()
def env(as_json: Json = False) -> None:
    """Print the environment variables with which psql, aws or a driver use the running services.

    \b
    Example:
      eval "$(rythmiq local env)" && psql "$DATABASE_URL"
    """
    stack = _stack()
    running = [name for name, pid in stack.status().items() if pid is not None]
    if not running:
        raise ConfigurationError("No local services run here: start them with `rythmiq local up`")
    variables = {"SERVICE_ENV": "local"} | stack.environment(running)
    if as_json:
        output.print_json(variables)
    else:
        for name, value in variables.items():
            typer.echo(f"export {name}={shlex.quote(value)}")


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def camber(context: typer.Context) -> None:
    """Run the Camber emulator alone, in the foreground; see its own --help.

    \b
    Example:
      CAMBER_API_KEY=secret rythmiq local camber --root /tmp/camber --port 8080 --instant
    """
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "rythmiq_ray.local.camber", *context.args])  # noqa: S606


def _stack() -> Stack:
    try:
        from rythmiq_ray.local.stack import Stack, local_root
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: pip install 'rythmiq-ray[local]'") from None
    return Stack(local_root())


def _print_status(stack: Stack, as_json: bool) -> None:
    status = stack.status()
    if as_json:
        output.print_json(status)
        return
    output.rows(
        {"PART": "<", "STATE": "<", "PID": ">"}, [[name, "up" if pid else "down", pid] for name, pid in status.items()]
    )
