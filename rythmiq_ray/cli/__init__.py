"""The command ``rythmiq``: what people and scripts do to the queue. Each command's module is imported with it alone."""

from __future__ import annotations

import os
import sys
from typing import Final

INTERRUPTED: Final = 130
"""What a shell reports for a program that Ctrl-C ended (128 + SIGINT)."""


def main() -> None:
    """The entry point: runs the command of ``sys.argv`` and exits with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code; :mod:`rythmiq_ray.cli.failure` names them.

    Whatever goes wrong is said on stderr in one sentence; the traceback is there with ``RYTHMIQ_DEBUG=1`` only.
    """
    for stream in (sys.stdout, sys.stderr):
        # A name in a script that the terminal's encoding lacks is no reason to fail.
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        from rythmiq_ray.cli.app import app  # It takes a while, in which Ctrl-C is Ctrl-C too.

        code = app(arguments or ["--help"], prog_name="rythmiq", standalone_mode=False)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        # The reader has seen enough; Typer makes a SystemExit of that.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # Python would complain when it flushes at exit, hence the other file.
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
