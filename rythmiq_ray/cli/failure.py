"""What a failure is to the person at the terminal: sentences on stderr, and an exit code."""

from __future__ import annotations

from typing import Final

import typer

from rythmiq_ray.errors import NotFound, RythmiqError, Verdict, place_of

FAILED: Final = 1
REFUSED: Final = 2
"""The input or the configuration is at fault."""
ENDED_BADLY: Final = 3
"""What was asked for is done, and the job that was asked about FAILED or was CANCELLED."""
NO_SUCH: Final = 4
"""There is no such job, group or file."""
NOT_YET: Final = 5
TIME_OVER: Final = 124
"""``--timeout`` of a wait is over; as of the program timeout."""

_NO_PATTERN: Final = "2201B"
"""SQLSTATE of a regular expression that is none, which globs become."""

UsageError: Final = typer.BadParameter.__mro__[1]
"""Click's, whose import path differs between versions of Typer."""


class Unfinished(Exception):
    """The command did part of what it was asked; what it did not do was said on stderr already."""


class Ended(Exception):
    """The command ends with this exit code, and says why if there is anything to say."""

    def __init__(self, exit_code: int, message: str | None = None) -> None:
        super().__init__(exit_code, message)
        self.exit_code = exit_code
        self.message = message


def say(message: str) -> None:
    """A line on stderr for the person, beside what the command writes to stdout."""
    for line in message.splitlines() or [""]:
        typer.echo(f"rythmiq: {line}", err=True)


def report(error: Exception) -> int:
    """Says what went wrong and returns the exit code. Texts of errors that are not ours may hold a secret."""
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
        say("--name: is no pattern: a range in its brackets goes backwards, or names no kind of character")
        return REFUSED
    if state is not None:
        # Not its words: those of a fault in a row may quote the row.
        say(f"Postgres refused this: {type(error).__name__} (SQLSTATE {state})")
        return FAILED
    if isinstance(error, OSError) and error.strerror:
        say(f"{error.filename}: {error.strerror}" if error.filename else error.strerror)
        return FAILED
    say(f"unexpected {type(error).__name__} at {place_of(error)}; RYTHMIQ_DEBUG=1 shows the traceback")
    return FAILED
