"""Checks of everything that a driver needs, run at the same time, each with a deadline; for ``rythmiq doctor``."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from queue import Empty, Queue
from typing import Final
from uuid import uuid4

from rythmiq_ray import machine
from rythmiq_ray.artifacts import open_store
from rythmiq_ray.assembly import open_backend
from rythmiq_ray.config import Config
from rythmiq_ray.errors import RayUnavailable, RythmiqError, place_of
from rythmiq_ray.secret import Secret

DEADLINE_S: Final = 30.0
_PART_BYTES: Final = 5 * 1024 * 1024
"""The smallest part of a multipart upload that S3 takes, except the last."""
_CLOCKS_APART_S: Final = 60.0
"""A difference that is worth a warning: S3 refuses signatures of a clock that is 15 minutes wrong."""

Said = str | tuple[str, str]
"""The result of a check: a sentence, or (outcome, sentence)."""


@dataclass(frozen=True)
class Finding:
    """One check's outcome, ``ok``, ``warning`` or ``fault``, and a sentence with the finding and its remedy."""

    check: str
    outcome: str
    said: str


def examine(config: Config | None, database_url: Secret | None, *, deadline_s: float = DEADLINE_S) -> list[Finding]:
    """Runs all checks that the configuration allows; a check that takes longer than ``deadline_s`` is a fault.

    ``config`` is None if it has faults, which the caller reports; checks that need it are left out then.
    """
    checks: dict[str, Callable[[], Said]] = {}
    if database_url is not None:
        url = database_url
        checks["postgres"] = lambda: _postgres(url, config)
        checks["clock"] = lambda: _clock(url)
    if config is not None:
        known = config
        checks["store"] = lambda: _store(known)
        checks["camber" if config.execution.backend == "camber" else "backend"] = lambda: _backend(known)
    checks["ray"] = _ray
    return _all(checks, deadline_s)


def _all(checks: Mapping[str, Callable[[], Said]], deadline_s: float) -> list[Finding]:
    found: Queue[Finding] = Queue()

    def run(name: str, check: Callable[[], Said]) -> None:
        found.put(_finding(name, check))

    for name, check in checks.items():
        # Daemon threads, so that a call that hangs does not keep the program from ending.
        threading.Thread(target=run, args=(name, check), name=f"doctor-{name}", daemon=True).start()
    findings: dict[str, Finding] = {}
    until = time.monotonic() + deadline_s
    while len(findings) < len(checks):
        try:
            finding = found.get(timeout=max(0.0, until - time.monotonic()))
        except Empty:
            break
        findings[finding.check] = finding
    late = f"no answer within {deadline_s:.0f} s"
    return [findings.get(name, Finding(name, "fault", late)) for name in checks]


def _finding(name: str, check: Callable[[], Said]) -> Finding:
    try:
        said = check()
    except RythmiqError as error:
        return Finding(name, "fault", error.message)
    except Exception as error:  # noqa: BLE001 - a check must not end the others; its words may hold a secret
        return Finding(name, "fault", f"unexpected {type(error).__name__} at {place_of(error)}")
    outcome, words = ("ok", said) if isinstance(said, str) else said
    return Finding(name, outcome, words)


def _postgres(url: Secret, config: Config | None) -> Said:
    from rythmiq_ray.queue import check_database, inspect
    from rythmiq_ray.queue.connection import connect
    from rythmiq_ray.queue.schema import REVISION

    check_database(url, retention=config is not None and config.retention.on)
    connection = connect(url)
    try:
        server = inspect.server(connection)
    finally:
        connection.close()
    return f"Postgres {server.version}, schema revision {REVISION}; role {server.role!r} has a driver's rights"


def _clock(url: Secret) -> Said:
    from rythmiq_ray.queue import inspect
    from rythmiq_ray.queue.connection import connect

    connection = connect(url)
    try:
        apart_s = abs((datetime.now(UTC) - inspect.server(connection).now).total_seconds())
    finally:
        connection.close()
    if apart_s > _CLOCKS_APART_S:
        return "warning", (
            f"this machine's clock and Postgres' are {apart_s:.0f} s apart: jobs run all the same, but S3 refuses a"
            " clock that is 15 minutes wrong; set up time synchronization"
        )
    return f"this machine's clock and Postgres' are {apart_s:.0f} s apart"


def _store(config: Config) -> Said:
    store = open_store(replace(config.artifacts, part_size_bytes=_PART_BYTES), config.inputs)
    store.check()
    block = os.urandom(64 * 1024)
    count = _PART_BYTES // len(block) + 1
    expected = hashlib.sha256(block * count).hexdigest()
    job_id = uuid4()
    artifact = store.write(job_id, 1, "doctor.bin", (block for _ in range(count)))
    try:
        with store.open(artifact.uri) as source:
            found = hashlib.sha256(source.read()).hexdigest()
    finally:
        store.delete(artifact.uri)
    if found != expected:
        return "fault", "a file that was written in two parts came back changed: a proxy or gateway may change it"
    where = (
        f"s3://{config.artifacts.bucket}" if config.artifacts.type == "s3" else f"the folder {config.artifacts.path}"
    )
    return f"{where} can be written, read and deleted from, also in several parts"


def _backend(config: Config) -> Said:
    backend = open_backend(config.execution, config.camber)
    try:
        owner = backend.check()
        # A poll for a job that cannot exist reads the newest page of the list.
        for _ in backend.watch({2**53 - 1}, (), 0.0):
            break
    finally:
        backend.close()
    if config.execution.backend != "camber":
        return f"{backend.backend_type} runs commands as {owner!r}"
    where = f"{config.camber.transport} at {config.camber.endpoint}"
    return f"{where}: the key is {owner!r}'s, and the list of jobs can be read"


def _ray() -> Said:
    from rythmiq_ray import cluster

    machine.check()
    address = os.environ.get("RAY_ADDRESS", "")
    version = cluster.version()
    if address in ("", "local", "auto"):
        return f"Ray {version}; RAY_ADDRESS is {address or 'unset'}: " + (
            "a driver joins the Ray of this machine" if address == "auto" else "a driver starts a local Ray"
        )
    try:
        cluster.check_address(address, timeout_s=10.0)
    except RayUnavailable as error:
        return "fault", error.message
    return f"Ray {version}, and the head at {address} has the same version"
