"""Reports failures to the user: sentences on stderr, and an exit code."""

from __future__ import annotations

from typing import Final

import typer

from rythmiq_ray.errors import NotFound, RythmiqError, Verdict, place_of

FAILED: Final = 1
REFUSED: Final = 2
"""The input or the configuration is invalid."""
ENDED_BADLY: Final = 3
"""The command is done, and a job that was asked about FAILED or was CANCELLED."""
NO_SUCH: Final = 4
"""There is no such job, group or file."""
NOT_YET: Final = 5
TIME_OVER: Final = 124
"""``--timeout`` of a wait is over; the same code as the program ``timeout`` has."""

_NO_PATTERN: Final = "2201B"
"""SQLSTATE of an invalid regular expression; globs are sent as such."""

UsageError: Final = typer.BadParameter.__mro__[1]
"""Click's UsageError, whose import path differs between versions of Typer."""


class Unfinished(Exception):
    """The command was done only in part; stderr has said what was not done."""


class Ended(Exception):
    """Ends the command with this exit code, and a message on stderr if there is one."""

    def __init__(self, exit_code: int, message: str | None = None) -> None:
        super().__init__(exit_code, message)
        self.exit_code = exit_code
        self.message = message


def say(message: str) -> None:
    """Writes a line for people to stderr; stdout has the command's own output."""
    for line in message.splitlines() or [""]:
        typer.echo(f"rythmiq: {line}", err=True)


def report(error: Exception) -> int:
    """Reports an error and returns the exit code. Messages of foreign errors may contain a secret and are not shown."""
    if isinstance(error, Unfinished):
        return FAILED
    if isinstance(error, Ended):
        if error.message is not None:
            say(error.message)
        return error.exit_code
    if isinstance(error, typer.Abort):
        say("aborted")
        return FAILED
    if isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        say(error.format_message())  # type: ignore[attr-defined]
        if context is not None:
            say(f"see `{context.command_path} --help`")
        return REFUSED
    if isinstance(error, RythmiqError):
        say(error.message)
        if isinstance(error, NotFound):
            return NO_SUCH
        return REFUSED if error.verdict is Verdict.REFUSE else FAILED
    if (state := getattr(error, "pgcode", None)) == _NO_PATTERN:
        say("--name: is not a pattern: a range in its brackets goes backwards, or names no class of characters")
        return REFUSED
    if state is not None:
        # Without the message, which may quote the row.
        say(f"Postgres refused this: {type(error).__name__} (SQLSTATE {state})")
        return FAILED
    if isinstance(error, OSError) and error.strerror:
        say(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
        return FAILED
    say(f"unexpected {type(error).__name__} at {place_of(error)}; RYTHMIQ_DEBUG=1 shows the traceback")
    return FAILED
