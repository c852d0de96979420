"""The command ``rythmiq``, for people and scripts. Only the module of the command that runs is imported."""

from __future__ import annotations

import os
import sys
from typing import Final

INTERRUPTED: Final = 130
"""The exit code that a shell reports for a program ended by Ctrl-C (128 + SIGINT)."""


def main() -> None:
    """The entry point: runs the command of ``sys.argv`` and exits with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code; :mod:`rythmiq_ray.cli.failure` names them.

    An error is reported on stderr in one sentence; ``RYTHMIQ_DEBUG=1`` adds the traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks must not be an error.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        from rythmiq_ray.cli.app import app  # Here, because Ctrl-C may come during it.

        code = app(arguments or ["--help"], prog_name="rythmiq", standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        # The reader has closed the pipe; Typer turns that into SystemExit.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # Replaced by /dev/null, because Python would report an error when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("RYTHMIQ_DEBUG") == "1":
            raise
        from rythmiq_ray.cli.failure import report

        return report(error)
    return code if isinstance(code, int) else 0
