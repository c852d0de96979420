"""The parts that a row uses: Postgres, the Camber emulator as a separate process, S3, and drivers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import requests

from benchmarks.measure import cpu_s, tree, wait_for
from rythmiq_ray import JobSpec, NewJob, enqueue_many
from rythmiq_ray.config import Config
from rythmiq_ray.config_loader import load
from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.local.s3 import REGION, S3
from rythmiq_ray.queue.migrations import migrate
from rythmiq_ray.secret import Secret

API_KEY = "benchmark-key-0123456789"
S3_KEYS = ("benchmark", "benchmark-secret")
BUCKET = "artifacts"
KILL_LIMIT_S = 10
READY_LIMIT_S = 120


class Environment:
    """Postgres and the emulator, while it is entered; drivers and S3 on request."""

    def __init__(self, root: Path, *emulator: str) -> None:
        """``emulator``: arguments of the emulator, such as ``--instant``."""
        self.root = root
        self._arguments = emulator
        self._stack = ExitStack()
        self._logs: dict[int, Path] = {}
        """The log of each driver, by its process id."""

    def __enter__(self) -> Environment:
        # Postgres may run as another user, and must be able to reach its folder.
        self.root.mkdir(parents=True, exist_ok=True)
        self.root.chmod(0o711)
        with ExitStack() as stack:
            self.postgres = Postgres(self.root / "postgres")
            self.postgres.start(tethered=True)
            stack.callback(self.postgres.stop)
            self.emulator = stack.enter_context(self._emulator())
            self.postgres.wait()
            migrate(Secret(self.postgres.url))
            self.connection = psycopg2.connect(self.postgres.url)
            self.connection.autocommit = True
            stack.callback(self.connection.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def postgres_cpu_s(self) -> float:
        """The CPU time of the Postgres server in seconds, including connections that have ended."""
        assert self.postgres.handle is not None
        ended = psutil.Process(self.postgres.handle.pid).cpu_times()
        return cpu_s(self.postgres.handle.pid) + ended.children_user + ended.children_system

    @contextmanager
    def _emulator(self) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "rythmiq_ray.local.camber", "--root", str(self.root / "camber"), *self._arguments],
            env={**os.environ, "CAMBER_API_KEY": API_KEY},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        self.endpoint = process.stdout.readline().split()[-1]
        try:
            yield process
        finally:
            kill(process)

    @cached_property
    def s3(self) -> S3:
        store = S3.tethered(self.root / "s3", access_key=S3_KEYS[0], secret_key=S3_KEYS[1], bucket=BUCKET)
        self._stack.callback(store.stop)
        return store

    def environ(self, *, s3: bool = False) -> dict[str, str]:
        """The environment variables of a driver or a peer."""
        store = {"ARTIFACT_STORE_TYPE": "local", "ARTIFACT_STORE_PATH": str(self.root / "artifacts")}
        if s3:
            store = {
                "ARTIFACT_STORE_TYPE": "s3",
                "ARTIFACT_STORE_BUCKET": BUCKET,
                "AWS_ACCESS_KEY_ID": S3_KEYS[0],
                "AWS_SECRET_ACCESS_KEY": S3_KEYS[1],
                "AWS_DEFAULT_REGION": REGION,
                "AWS_ENDPOINT_URL_S3": self.s3.endpoint,
            }
        return {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "RAY_USAGE_STATS_ENABLED": "0",
            "DATABASE_URL": self.postgres.url,
            "EXECUTION_BACKEND": "camber",
            "CAMBER_API_KEY": API_KEY,
            "CAMBER_API_ENDPOINT": self.endpoint,
            **store,
        }

    def config(self, *overrides: str, s3: bool = False) -> Config:
        return load(overrides, environ=self.environ(s3=s3)).config

    @contextmanager
    def driver(
        self, *overrides: str, environ: Mapping[str, str] | None = None, ready: bool = True
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Starts a driver with local Ray, or in the cluster that ``environ`` names; can wait until it is ready."""
        log = self.root / f"driver-{len(self._logs) + 1}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "rythmiq_ray.driver", *overrides],
                env={**self.environ(), **(environ or {})},
                cwd=self.root,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._logs[process.pid] = log
        try:
            if ready:
                self.wait_ready(process)
            yield process
        finally:
            kill(process)

    def wait_ready(self, driver: subprocess.Popen[bytes]) -> None:
        """Waits until a driver is ready. Raises RuntimeError with its log if it ends instead."""
        log = self._logs[driver.pid]

        def is_ready() -> bool:
            if driver.poll() is not None:
                raise RuntimeError(f"the driver ended with {driver.returncode}:\n{log.read_text()}")
            return "Worker ready" in log.read_text()

        wait_for(is_ready, f"driver ready, see {log}", timeout_s=READY_LIMIT_S)

    def put(self, count: int, *, command: str = "true") -> None:
        enqueue_many(self.connection, [NewJob(spec=JobSpec(command=command)) for _ in range(count)])

    def one(self, sql: str, *parameters: object) -> Any:
        """The first column of the first row."""
        with self.connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            row = cursor.fetchone()
        return row[0] if row else None

    def rows(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self.connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall()

    def clear(self) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute("TRUNCATE rythmiq.jobs CASCADE")

    def wait_finished(self, *, every_s: float = 0.02) -> None:
        unfinished = "SELECT EXISTS (SELECT FROM rythmiq.jobs WHERE state IN ('QUEUED', 'RETRYING', 'RUNNING'))"
        wait_for(lambda: not self.one(unfinished), "all jobs end", every_s=every_s)

    def wait_cleaned(self, *, every_s: float = 0.02) -> None:
        """Waits until every attempt's path is removed from the stash and its row says so."""
        left = "SELECT EXISTS (SELECT FROM rythmiq.attempts WHERE finished_at IS NOT NULL AND cleaned_at IS NULL)"
        wait_for(lambda: not self.one(left), "all paths are removed", every_s=every_s)

    def calls(self) -> dict[str, int]:
        """How often each operation was called since the last reset."""
        return dict(self._calls()["counts"])

    def call_times(self, operation: str) -> list[float]:
        """When each call of an operation arrived since the last reset, in seconds since 1970."""
        return list(self._calls()["times"].get(operation, []))

    def _calls(self) -> dict[str, Any]:
        answer = requests.get(f"{self._own}/calls", timeout=30)
        answer.raise_for_status()
        return dict(answer.json())

    def reset_calls(self) -> None:
        requests.delete(f"{self._own}/calls", timeout=30).raise_for_status()

    @property
    def _own(self) -> str:
        return self.endpoint.split("/api/")[0] + "/_emulator"

    def journal(self, event: str) -> list[dict[str, Any]]:
        """The emulator's journal entries for an event, oldest first."""
        lines = (self.root / "camber" / "journal.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == event]


def kill(process: subprocess.Popen[Any]) -> None:
    """Kills a process and its descendants, such as its Ray, at once, because they are not needed any more."""
    if process.poll() is not None:
        return
    members = tree(process.pid)
    for member in members:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    wait_for(lambda: all(map(_ended, members)), "its processes end", timeout_s=KILL_LIMIT_S)


def _ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
