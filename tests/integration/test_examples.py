"""The examples of the README, run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rythmiq_ray import Client

pytest_plugins = ["rythmiq_ray.testing"]

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("sweep.py", "best: LR=0.01 SEED=0 loss=0.00"),
        ("chain.py", "sum: 5050"),
        ("notebook.py", "pi is about 3.1"),
    ],
)
def test_an_example_prints_what_it_says(rythmiq: Client, name: str, last: str) -> None:
    script = EXAMPLES / name
    assert len(script.read_text().splitlines()) <= 32
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(last)


def test_the_nightly_batch_needs_no_program(rythmiq: Client, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        [EXAMPLES / "nightly.sh", tmp_path / "reports"],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "north,SUCCEEDED" in done.stdout
    assert len(list((tmp_path / "reports").rglob("report.txt"))) == 4
