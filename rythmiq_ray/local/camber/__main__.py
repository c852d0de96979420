"""``python -m rythmiq_ray.local.camber``: runs the emulator as a separate process."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from rythmiq_ray.local.camber.emulator import Emulator
from rythmiq_ray.local.camber.faults import Faults
from rythmiq_ray.local.camber.settings import Range, Settings


def main() -> int:
    """Serves until SIGTERM or SIGINT. Exit code 0 after that, 1 if it cannot start, 2 for bad arguments."""
    parser = _parser()
    arguments = parser.parse_args()
    try:
        emulator = Emulator(
            arguments.root,
            api_key=_api_key(arguments.api_key_file),
            port=arguments.port,
            settings=_settings(arguments),
            faults=_faults(arguments.faults),
        )
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        asyncio.run(_serve(emulator))
    except OSError as error:
        sys.stderr.write(f"the emulator cannot start: {error}\n")
        return 1
    return 0


async def _serve(emulator: Emulator) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopping.set)

    def on_listening() -> None:
        sys.stdout.write(f"listening on {emulator.endpoint}\n")
        sys.stdout.flush()

    await emulator.serve(on_listening, stopping)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rythmiq_ray.local.camber",
        description="An emulator of Camber Cloud's API on 127.0.0.1. It runs the commands it is sent on this machine, "
        "as the user who started it. Times are in seconds.",
    )
    defaults = Settings()
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="where all its state is kept")
    parser.add_argument("--port", type=int, default=0, help="0 = any free port (default)")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="holds the one key it accepts; default: CAMBER_API_KEY"
    )
    parser.add_argument("--owner", default=defaults.owner, help="owner of the key and the stash (%(default)s)")
    parser.add_argument(
        "--instant",
        nargs="?",
        const=(0.0, 0.0),
        type=_range,
        metavar="SECONDS",
        help="run no process: a job ends at once, after SECONDS, or after a time drawn from a range such as 60-120; "
        "the queue wait and the sync delay are then 0 unless given",
    )
    parser.add_argument("--queue-wait", type=_range, metavar="SECONDS", help="time in PENDING, or a range of it")
    parser.add_argument(
        "--max-running", type=int, default=defaults.max_running, metavar="N", help="processes at once (%(default)s)"
    )
    parser.add_argument("--sync-delay", type=float, metavar="SECONDS", help="until files of an ended job come back")
    parser.add_argument(
        "--sync-step",
        type=float,
        default=defaults.sync_step_s,
        metavar="SECONDS",
        help="how long each of them is there by half only (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of waits and of the order of late files (%(default)s)")
    parser.add_argument(
        "--faults",
        metavar="JSON",
        help='misbehaviour as JSON or @FILE, e.g. \'{"seed": 7, "lost_answer": 0.1}\'; the fields are those of '
        "GET /_emulator/faults",
    )
    return parser


def _api_key(file: Path | None) -> str:
    key = os.environ.get("CAMBER_API_KEY", "") if file is None else file.read_text()
    if not key.strip():
        raise ValueError("there is no key: give --api-key-file, or set CAMBER_API_KEY")
    return key.strip()


def _settings(arguments: argparse.Namespace) -> Settings:
    base = Settings() if arguments.instant is None else Settings.instant(*arguments.instant)
    return Settings(
        owner=arguments.owner,
        queue_wait_s=base.queue_wait_s if arguments.queue_wait is None else arguments.queue_wait,
        max_running=arguments.max_running,
        sync_delay_s=base.sync_delay_s if arguments.sync_delay is None else arguments.sync_delay,
        sync_step_s=arguments.sync_step,
        instant_s=base.instant_s,
        seed=arguments.seed,
    )


def _faults(text: str | None) -> Faults:
    if text is None:
        return Faults()
    given = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    if not isinstance(given, dict):
        raise ValueError("--faults is a JSON object")
    return Faults.from_dict(given)


def _range(text: str) -> Range:
    lowest, _, highest = text.partition("-")
    return float(lowest), float(highest or lowest)


if __name__ == "__main__":
    sys.exit(main())
