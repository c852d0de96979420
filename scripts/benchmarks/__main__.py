"""``scripts/bench``: measures what docs/benchmarks.md shows, side by side with what one would pick instead."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.measure import Bench, Row

ROWS = (
    *("pace", "cost", "waiting", "latency", "artifacts", "recovery", "depth", "start", "queue", "groups", "limits"),
    *("console", "rest", "growth", "soak", "scale"),
)
Choice = StrEnum("Choice", ["all", *ROWS])  # type: ignore[misc]  # made of the names of the modules
QUICK_NOTE = "measured in small, by --quick; the goals are set for the full sizes"
MEMORY_FILES = Path("/dev/shm")
DOCS = Path(__file__).parents[2] / "docs"


def main(
    rows: Annotated[list[Choice], typer.Argument(help="what to measure")],
    quick: Annotated[bool, typer.Option("--quick", help="small sizes, one run: under two minutes for all")] = False,
    repeat: Annotated[int, typer.Option(min=1, help="runs of each row; 1 with --quick")] = 3,
    out: Annotated[Path, typer.Option(help="where JSON and picture go")] = Path("bench-output"),
    kills: Annotated[
        int | None, typer.Option(min=1, help="how often recovery kills a driver; 100, 1 with --quick")
    ] = None,
    docs: Annotated[bool, typer.Option("--docs", help="put figures and picture into docs/benchmarks.md")] = False,
    root: Annotated[Path | None, typer.Option(help="where Postgres, S3 and emulator keep their files")] = None,
) -> None:
    """Measures rows P1 to P14, each side by side with what it is compared with.

    Rows that were measured before stay in the JSON file and the picture until they are measured again.

    example: scripts/bench pace queue --repeat 5
    """
    console = Console(width=None if sys.stdout.isatty() else 120)
    chosen = ROWS if Choice["all"] in rows else tuple(dict.fromkeys(str(row) for row in rows))
    machine = report.machine()
    begun = time.monotonic()
    parent = root or (MEMORY_FILES if os.access(MEMORY_FILES, os.W_OK) else None)
    done: list[Row] = []
    out.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        console.print(f"[bold]{name}[/bold]")
        folder = Path(tempfile.mkdtemp(prefix="rythmiq-bench-", dir=parent))
        folder.chmod(0o711)
        try:
            bench = Bench(root=folder, quick=quick, repeat=1 if quick else repeat, kills=kills, console=console)
            row = import_module(f"benchmarks.rows.{name}").measure(bench)
            if quick:
                row.notes.append(QUICK_NOTE)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        row.at = datetime.now(UTC).isoformat(timespec="seconds")
        report.show(console, row)
        # Written after each row, so that a run that is stopped keeps its results.
        done = report.merge(out / "benchmarks.json", row)
        report.write_json(out / "benchmarks.json", done, machine)
    report.plot(out / "benchmarks.png", done)
    report.plot_scale(out / "scale.png", done)
    console.print(f"{time.monotonic() - begun:.0f} s; wrote {out}/benchmarks.json and {out}/benchmarks.png")
    if docs:
        report.write_docs(DOCS / "benchmarks.md", done, machine)
        for picture in out.glob("*.png"):
            shutil.copyfile(picture, DOCS / picture.name)


if __name__ == "__main__":
    typer.run(main)
