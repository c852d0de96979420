"""Runs what users would pick instead, each as a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.environment import Environment

LIMIT_S = 900
LEAST = 0.8
"""Of its jobs a peer must have done so many: at the pace of the service some give a part of them up."""


def run_peer(
    environment: Environment, module: str, *, jobs: int, concurrency: int, empty: bool = False
) -> dict[str, float]:
    """Runs a peer and returns seconds, by what they went into. Most of its jobs must have been done (:data:`LEAST`)."""
    removed = len(environment.journal("remove"))
    command = [sys.executable, "-m", f"benchmarks.peers.{module}"]
    arguments = ["--jobs", str(jobs), "--concurrency", str(concurrency), *(["--empty"] if empty else [])]
    done = subprocess.run(
        [*command, *arguments],
        env=environment.environ(),
        cwd=environment.root,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    if done.returncode:
        raise RuntimeError(f"{module} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    worked = len(environment.journal("remove")) - removed
    if not empty and worked < jobs * LEAST:
        raise RuntimeError(f"{module} did the remote work of {worked} jobs instead of {jobs}:\n{done.stderr[-2000:]}")
    # Ray may say something behind it.
    return dict(json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))))
