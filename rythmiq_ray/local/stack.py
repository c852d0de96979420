"""Postgres, S3 and the Camber emulator together: kept running across commands, or for one owner alone."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import requests

from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.local.process import Handle, PartFailed, free_ports, port_is_free, start, wait_until
from rythmiq_ray.local.s3 import PORTS, REGION, S3

POSTGRES, STORE, CAMBER = "postgres", "s3", "camber"
PARTS: Final = frozenset({POSTGRES, STORE, CAMBER})
FOLDER_VARIABLE: Final = "RYTHMIQ_LOCAL_DIR"


class Part(Protocol):
    """A program of the stack."""

    handle: Handle | None

    def start(self, *, tethered: bool) -> None: ...
    def wait(self) -> None: ...
    def stop(self) -> None: ...


class Camber:
    """The Camber emulator as a process."""

    def __init__(self, root: Path, *, port: int, api_key: str) -> None:
        self._root = root
        self._port = port
        self._api_key = api_key
        self._log = root / "camber.log"
        self.handle: Handle | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}/api/cli"

    def start(self, *, tethered: bool) -> None:
        if find_spec("aiohttp") is None:
            raise PartFailed("The Camber emulator is not installed: pip install 'rythmiq-ray[local]'")
        self._root.mkdir(parents=True, exist_ok=True)
        key = self._root / "api-key"
        key.touch(mode=0o600)
        key.write_text(self._api_key)
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "rythmiq_ray.local.camber",
            "--root",
            self._root,
            "--port",
            str(self._port),
        ]
        package_folder = str(Path(__file__).resolve().parents[2])
        environ = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._root), "PYTHONPATH": package_folder}
        self.handle = start(
            [*command, "--api-key-file", key],
            log=self._log,
            tether=signal.SIGTERM if tethered else None,
            environ=environ,
        )

    def wait(self) -> None:
        assert self.handle is not None  # noqa: S101 - start() comes first

        def ready() -> bool:
            try:
                headers = {"Authorization": f"Bearer {self._api_key}"}
                return requests.get(f"{self.endpoint}/me", headers=headers, timeout=2).ok
            except requests.RequestException:
                return False

        wait_until(ready, part="The Camber emulator", handle=self.handle, log=self._log)

    def stop(self) -> None:
        if self.handle is not None:
            self.handle.stop(signal.SIGTERM, grace_s=10)
            self.handle = None


class Stack:
    """The parts over one folder. What it knows of them is in ``stack.json`` there, readable by its owner alone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file = root / "stack.json"

    def up(self, parts: Collection[str] = PARTS, *, tethered: bool = False) -> set[str]:
        """Starts what does not run, all at once, and returns the names of what it started.

        ``tethered``: they end with the calling thread, however that ends. Raises PartFailed, with nothing left running
        that it started.
        """
        with self._locked() as state:
            self._complete(state)
            running = self._running(state)
            made = {name: self._build(name, state) for name in sorted(set(parts) - running)}
            try:
                for part in made.values():
                    part.start(tethered=tethered)
                for part in made.values():
                    part.wait()
            except BaseException:
                for part in made.values():
                    part.stop()
                raise
            for name, part in made.items():
                assert part.handle is not None  # noqa: S101 - it was started
                state["processes"][name] = [part.handle.pid, part.handle.created]
            return set(made)

    def down(self, parts: Collection[str] = PARTS) -> set[str]:
        """Stops these parts and returns the names of those that ran."""
        with self._locked() as state:
            running = self._running(state) & set(parts)
            for name in sorted(running):
                part = self._build(name, state)
                part.handle = Handle(*state["processes"][name])
                part.stop()
            for name in parts:
                state.get("processes", {}).pop(name, None)
            return running

    def status(self) -> dict[str, int | None]:
        """The process id of each part; None where it does not run."""
        with self._locked() as state:
            running = self._running(state)
            return {name: state["processes"][name][0] if name in running else None for name in sorted(PARTS)}

    def environment(self, parts: Collection[str] = PARTS) -> dict[str, str]:
        """The variables by which a driver, ``psql`` or ``aws`` use these parts."""
        with self._locked() as state:
            self._complete(state)
            out: dict[str, str] = {}
            if POSTGRES in parts:
                out["DATABASE_URL"] = self._postgres(state).url
            if STORE in parts:
                store = self._s3(state)
                out |= {
                    "ARTIFACT_STORE_TYPE": "s3",
                    "ARTIFACT_STORE_BUCKET": store.bucket,
                    "AWS_ACCESS_KEY_ID": store.access_key,
                    "AWS_SECRET_ACCESS_KEY": store.secret_key,
                    "AWS_REGION": REGION,
                    "AWS_DEFAULT_REGION": REGION,
                    "AWS_ENDPOINT_URL_S3": store.endpoint,
                }
            if CAMBER in parts:
                camber = self._camber(state)
                out |= {
                    "EXECUTION_BACKEND": "camber",
                    "CAMBER_API_KEY": state["api_key"],
                    "CAMBER_API_ENDPOINT": camber.endpoint,
                }
            return out

    def _build(self, name: str, state: dict[str, Any]) -> Part:
        builders: dict[str, Callable[[dict[str, Any]], Part]] = {
            POSTGRES: self._postgres,
            STORE: self._s3,
            CAMBER: self._camber,
        }
        return builders[name](state)

    def _postgres(self, state: dict[str, Any]) -> Postgres:
        return Postgres(self._root / POSTGRES, socket_folder=state["socket_folder"])

    def _s3(self, state: dict[str, Any]) -> S3:
        return S3(
            self._root / STORE,
            ports=state["s3_ports"],
            access_key=state["access_key"],
            secret_key=state["secret_key"],
            bucket="rythmiq",
        )

    def _camber(self, state: dict[str, Any]) -> Camber:
        return Camber(self._root / CAMBER, port=state["camber_port"], api_key=state["api_key"])

    def _complete(self, state: dict[str, Any]) -> None:
        """Fills in what is chosen once, and chooses ports anew that somebody else took meanwhile."""
        state.setdefault("processes", {})
        state.setdefault("api_key", secrets.token_hex(20))
        state.setdefault("access_key", f"local-{secrets.token_hex(6)}")
        state.setdefault("secret_key", secrets.token_hex(20))
        if "socket_folder" not in state:
            state["socket_folder"] = tempfile.mkdtemp(prefix="rythmiq-pg-")
        running = self._running(state)
        if STORE not in running and not all(map(port_is_free, state.get("s3_ports") or [0])):
            state.pop("s3_ports")
        if CAMBER not in running and not port_is_free(state.get("camber_port", 0)):
            state.pop("camber_port")
        state.setdefault("s3_ports", free_ports(PORTS))
        state.setdefault("camber_port", free_ports(1)[0])

    @staticmethod
    def _running(state: dict[str, Any]) -> set[str]:
        return {name for name, (pid, created) in state.get("processes", {}).items() if Handle(pid, created).alive}

    @contextmanager
    def _locked(self) -> Iterator[dict[str, Any]]:
        """The state, under a lock that other commands wait for; it is written back at the end."""
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            text = file.read()
            state: dict[str, Any] = json.loads(text) if text else {}
            try:
                yield state
            finally:
                file.seek(0)
                file.truncate()
                file.write(json.dumps(state, indent=1))
                file.flush()


def local_root() -> Path:
    """Where the embedded default keeps its state: ``$RYTHMIQ_LOCAL_DIR``, or ``.rythmiq`` here."""
    return Path(os.environ.get(FOLDER_VARIABLE) or ".rythmiq").absolute()


def parts_needed(environ: Mapping[str, str]) -> set[str]:
    """The parts that the environment does not name real ones for."""
    needed = set(PARTS)
    if environ.get("DATABASE_URL"):
        needed.discard(POSTGRES)
    if environ.get("ARTIFACT_STORE_BUCKET") or environ.get("ARTIFACT_STORE_TYPE") == "local":
        needed.discard(STORE)
    if environ.get("CAMBER_API_ENDPOINT") or environ.get("CAMBER_API_KEY"):
        needed.discard(CAMBER)
    return needed


@contextmanager
def local_environment(parts: Collection[str]) -> Iterator[dict[str, str]]:
    """The variables of these parts, of those that run already or else of ones that end with this block."""
    stack = Stack(local_root())
    started = stack.up(parts, tethered=True) if parts else set()
    try:
        yield stack.environment(parts)
    finally:
        if started:
            stack.down(started)
