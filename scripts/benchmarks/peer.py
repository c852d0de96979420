"""Runs the peers, which are what users would use instead, each as a separate process."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.environment import Environment

LIMIT_S = 900
LEAST = 0.8
"""The share of its jobs that a peer must complete: at the real service's pace some peers give up a part of them."""


def run_peer(
    environment: Environment, module: str, *, jobs: int, concurrency: int, empty: bool = False
) -> dict[str, float]:
    """Runs a peer and returns its times in seconds by name. It must complete the share :data:`LEAST` of its jobs."""
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
    # Ray may print something after the result.
    return dict(json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))))
