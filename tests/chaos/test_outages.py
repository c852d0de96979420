"""An outage is not a failure of jobs: dispatch pauses with one line, no attempt is burned, and it resumes by itself."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psycopg2
import pytest
from inline_cluster import in_phase
from inline_driver import Run

from rythmiq_ray.local.camber import Emulator, Faults, Outage
from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.model import Phase

Message = Callable[[], list[str]]


@pytest.fixture
def run(database_url: str, tmp_path: Path, camber: Emulator) -> Iterator[Run]:
    run = Run(database_url, tmp_path / "store", camber.endpoint)
    yield run
    run.close()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Message:
    caplog.set_level(logging.INFO, logger="rythmiq")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    "faults", [Faults(refuse_key=True), Faults(outage=Outage.UNAVAILABLE)], ids=["refused key", "Camber down"]
)
def test_camber_away(run: Run, camber: Emulator, said: Message, faults: Faults) -> None:
    run.put(4, "sleep 0.5; echo done")
    run.until(lambda: in_phase(run.loop, Phase.WAITING) == 4, "all wait")
    camber.faults = faults
    run.put(4)
    run.until(lambda: "Dispatch paused" in said(), "dispatch pauses")
    seen = time.monotonic()
    run.until(lambda: time.monotonic() > seen + 1.0, "some probes fail")
    assert said().count("Dispatch paused") == 1
    assert "Dispatch resumed" not in said()
    camber.faults = Faults()
    run.until(run.all_succeeded_at_once, "all succeed in their first attempt")
    assert said().count("Dispatch resumed") == 1


def test_artifact_store_away(run: Run, tmp_path: Path, said: Message) -> None:
    run.put(3)
    store, aside = tmp_path / "store", tmp_path / "aside"
    store.mkdir(exist_ok=True)
    store.rename(aside)
    store.write_text("a file where the folder was")
    run.until(lambda: "Dispatch paused" in said(), "dispatch pauses")
    store.unlink()
    aside.rename(store)
    run.until(run.all_succeeded_at_once, "all succeed in their first attempt")
    assert said().count("Dispatch paused") == said().count("Dispatch resumed") == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB where the artifacts go."""
    folder = tmp_path / "store"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("not allowed to mount a file system (needs root)")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_disk_of_the_local_store_full(small_disk: Path, run: Run, said: Message) -> None:
    filler = small_disk / "of somebody else"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    run.put(4)
    run.until(lambda: "Dispatch paused" in said(), "dispatch pauses")
    assert "Dispatch resumed" not in said()
    filler.unlink()
    run.until(run.all_succeeded_at_once, "all succeed in their first attempt")
    assert said().count("Dispatch paused") == said().count("Dispatch resumed") == 1


@pytest.mark.parametrize("crash", [False, True])
def test_postgres_away(run: Run, postgres: Postgres, said: Message, crash: bool) -> None:
    run.put(4, "sleep 0.3; echo done")
    run.until(lambda: in_phase(run.loop, Phase.WAITING) >= 1, "some wait")
    postgres.restart(crash=crash)
    run.connection = psycopg2.connect(run.connection.dsn)
    run.connection.autocommit = True
    run.until(run.all_succeeded_at_once, "all succeed in their first attempt")
    assert said().count("Postgres does not answer, outcomes are kept") == said().count("Postgres is back") == 1
