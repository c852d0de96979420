"""The demo: renders one fractal image as a sweep of 24 jobs, and puts it together in a 25th that waits for them.

Everything is real and on this machine: Postgres, S3, a Camber emulator that runs processes, Ray, the driver. The
scripts are local files that are uploaded once, each tile is a PNG that the last job has among its inputs; one tile
fails its first time on purpose and is retried. It leaves nothing running, and the picture in demo-output/.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table

from rythmiq_ray import Client, GroupHandle, Input, JobHandle, JobSpec
from rythmiq_ray.config_loader import load
from rythmiq_ray.errors import RythmiqError
from rythmiq_ray.local.stack import local_environment
from rythmiq_ray.model import Artifact, Job, JobState
from rythmiq_ray.queue.migrations import migrate

HERE = Path(__file__).parent
COLUMNS, ROWS = 6, 4
FAILS_FIRST = (2, 1)
LIMIT_S = 170.0
POLL_S = 0.25
GLYPHS = {"QUEUED": "·", "BLOCKED": "·", "RETRYING": "r", "submitting": "s", "waiting": "w", "collecting": "c"}
GLYPHS["SUCCEEDED"] = "█"
console = Console()


class DemoFailed(Exception):
    """The demo did not come to its end; the message says why."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for picture, summary and log")
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    # Ctrl-C and a plain kill take the same way out, also where a script started this with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    started_at = time.monotonic()
    try:
        console.print("Starting Postgres, S3 and the Camber emulator …")
        with local_environment({"postgres", "s3", "camber"}) as environment:
            os.environ.update(environment, SERVICE_ENV="local")
            run(output)
    except KeyboardInterrupt:
        console.print("Stopped; nothing is left running.")
        return 130
    except (DemoFailed, RythmiqError) as error:
        console.print(f"[red]The demo failed:[/red] {error}")
        return 1
    console.print(f"Done in {time.monotonic() - started_at:.0f} s.")
    return 0


def run(output: Path) -> None:
    migrate(load().config.database.url)
    with Client() as client:
        tiles, last = submit(client)
        console.print(f"{len(tiles)} tiles are queued; the driver starts (Ray takes some seconds).")
        log = output / "driver.log"
        with log.open("w") as sink:
            command = [sys.executable, "-m", "rythmiq_ray.driver"]
            driver = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
            try:
                watch([*tiles, last], driver, log)
            finally:
                driver.terminate()
                code = driver.wait(60)
        if code != 0:
            raise DemoFailed(f"the driver ended with exit code {code}; see {log}")
        last.download(output)
        summarize([*tiles, last], output)


def submit(client: Client) -> tuple[GroupHandle, JobHandle]:
    """The sweep of tiles, and the job that puts together what they leave."""
    places = [(column, row) for row in range(ROWS) for column in range(COLUMNS)]
    tiles = client.sweep(
        JobSpec(
            command="python3 tile.py $COLUMN $ROW $FLAGS",
            node_size="xmicro",
            inputs=(here("tile.py"), here("png.py")),
            outputs=("tile-*.png",),
            timeout=60,
        ),
        [{"COLUMN": x, "ROW": y, "FLAGS": "--fail-first" * ((x, y) == FAILS_FIRST)} for x, y in places],
        name="tiles",
        queue="demo",
    )
    last = client.submit(
        JobSpec(
            command="python3 assemble.py",
            node_size="xmicro",
            inputs=(here("assemble.py"), here("png.py"), Input(uri=f"group:{tiles.id}/tile-*.png", name="tiles/")),
            outputs=("fractal.png",),
            timeout=60,
        ),
        name="picture",
        queue="demo",
        after=[tiles],
    )
    return tiles, last


def here(name: str) -> Input:
    return Input(uri=str(HERE / name), name=name)


def watch(handles: list[JobHandle], driver: subprocess.Popen[bytes], log: Path) -> None:
    """Shows progress until all jobs ended; on a terminal as a picture of the tiles, else as a line a change."""
    deadline = time.monotonic() + LIMIT_S
    shown = ""
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        while True:
            jobs = [handle.info() for handle in handles]
            counts = Counter(str(job.phase or job.state).lower() for job in jobs)
            line = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
            if console.is_terminal:
                done = sum(job.state is JobState.SUCCEEDED for job in jobs)
                live.update(Group(picture_of(jobs), ProgressBar(total=len(jobs), completed=done, width=40), line))
            elif line != shown:
                console.print(f"  {line}")
            shown = line
            failed = [job for job in jobs if job.state in (JobState.FAILED, JobState.CANCELLED)]
            if failed:
                raise DemoFailed(
                    f"job {failed[0].job_id} ended {failed[0].state}: {failed[0].error_message}; see {log}"
                )
            if all(job.state is JobState.SUCCEEDED for job in jobs):
                return
            if driver.poll() is not None:
                tail = "\n".join(log.read_text().splitlines()[-10:])
                raise DemoFailed(f"the driver ended early with exit code {driver.returncode}:\n{tail}")
            if time.monotonic() > deadline:
                raise DemoFailed(f"not done after {LIMIT_S:.0f} s; see {log}")
            time.sleep(POLL_S)


def picture_of(jobs: list[Job]) -> str:
    glyphs = [GLYPHS.get(str(job.phase or job.state), "?") * 2 for job in jobs]
    rows = ["".join(glyphs[start : start + COLUMNS]) for start in range(0, len(glyphs), COLUMNS)]
    return "\n".join(rows)


def summarize(handles: list[JobHandle], output: Path) -> None:
    table = Table(Column("job", no_wrap=True), "state", "tries", "seconds", "bytes", box=None)
    rows: list[tuple[Job, list[Artifact]]] = []
    for handle in handles:
        rows.append((handle.info(), list(handle.result().artifacts)))
    for job, artifacts in rows:
        seconds = (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else 0.0
        size = sum(artifact.bytes for artifact in artifacts)
        name = job.name or "tile {COLUMN}-{ROW}".format(**(job.params or {}))
        table.add_row(name, job.state, str(job.attempt), f"{seconds:.1f}", f"{size:,}")
    console.print(table)
    retried = sum(job.attempt > 1 for job, _ in rows)
    console.print(f"{len(rows)} jobs, {retried} of them retried, {sum(len(files) for _, files in rows)} artifacts.")
    last = rows[-1][0]
    console.print(f"The artifacts are below {(last.artifact_uri or '').partition(str(last.job_id))[0]}")
    console.print(f"The picture: {output / 'fractal.png'}")
    summary = [
        {
            "job_id": str(job.job_id),
            "state": job.state,
            "attempt": job.attempt,
            "artifacts": [{"name": file.name, "sha256": file.sha256, "uri": file.uri} for file in artifacts],
        }
        for job, artifacts in rows
    ]
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
