"""A stop that takes long: what the driver still does is its own until it is done."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from inline_driver import WAIT_S, Run

from rythmiq_ray.artifacts import LocalArtifactStore
from rythmiq_ray.local.camber import Emulator
from rythmiq_ray.queue import Queue
from rythmiq_ray.secret import Secret

LEASE_S = 3


def test_a_stop_that_outlasts_the_lease_loses_no_outcome(
    database_url: str, tmp_path: Path, camber: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, may_store = threading.Event(), threading.Event()
    write = LocalArtifactStore.write

    def slowly(*arguments: Any, **options: Any) -> Any:
        stores.set()
        assert may_store.wait(WAIT_S)
        return write(*arguments, **options)

    monkeypatch.setattr(LocalArtifactStore, "write", slowly)
    grace = f"shutdown.grace_s={WAIT_S:.0f}"
    run = Run(database_url, tmp_path / "store", camber.endpoint, f"driver.lease_s={LEASE_S}", grace)
    other = Queue(Secret(database_url), lease_s=60.0)
    other.register()
    try:
        run.put(1)
        run.until(stores.is_set, "it collects")
        stop = threading.Thread(target=run.loop.stop)
        stop.start()
        with run.connection.cursor() as cursor:
            cursor.execute("SELECT now() + make_interval(secs => %s)", (2.5 * LEASE_S,))
            (end,) = cursor.fetchone()
            over = False
            while not over:
                assert other.adopt(10) == []
                cursor.execute("SELECT pg_sleep(0.1), clock_timestamp() > %s", (end,))
                _, over = cursor.fetchone()
        assert stop.is_alive()
        may_store.set()
        stop.join(WAIT_S)
        assert run.all_succeeded_at_once()
    finally:
        may_store.set()
        other.close()
        run.close()
