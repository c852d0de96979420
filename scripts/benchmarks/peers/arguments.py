"""The command line and the output that all peers share."""

from __future__ import annotations

import argparse
import json
import os
import sys

from benchmarks.measure import cpu_s


def parse(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--warm", type=int, default=20, help="jobs that are run before, and not timed")
    parser.add_argument("--concurrency", type=int, default=20)
    parser.add_argument("--empty", action="store_true", help="no remote work: the queue alone")
    return parser.parse_args()


def report(**seconds: float) -> None:
    """Writes the last line of a peer's output. The processor time is that of its whole life, including its start."""
    sys.stdout.write(json.dumps({"cpu": cpu_s(os.getpid()), **seconds}) + "\n")
