"""Runs the Camber emulator as a separate process."""

from __future__ import annotations

import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import requests

from rythmiq_ray.local import NotInstalled
from rythmiq_ray.local.process import Handle, start, wait_until


class CamberProcess:
    """``python -m rythmiq_ray.local.camber`` with its state in one folder."""

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
        """Starts the process; :meth:`wait` returns once it answers. Raises NotInstalled.

        ``tethered``: it ends with the calling thread.
        """
        if find_spec("aiohttp") is None:
            raise NotInstalled("aiohttp")
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = self._root / "api-key"
        key.touch(mode=0o600)
        key.write_text(self._api_key)
        self.handle = start(
            [
                *(sys.executable, "-m", "rythmiq_ray.local.camber"),
                *("--root", self._root, "--port", str(self._port), "--api-key-file", key),
            ],
            log=self._log,
            folder=Path("/"),
            # Jobs inherit it, so of the caller's variables it has only PATH.
            environ={
                "PATH": os.environ.get("PATH", os.defpath),
                "HOME": str(self._root),
                "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            },
            tether=signal.SIGTERM if tethered else None,
        )

    def wait(self) -> None:
        """Returns once it accepts its key; raises PartFailed if it ends or takes too long."""
        assert self.handle is not None  # noqa: S101 - start() comes first
        with requests.Session() as session:
            session.trust_env = False  # a proxy cannot reach this machine's loopback address
            session.headers["Authorization"] = f"Bearer {self._api_key}"

            def ready() -> bool:
                try:
                    return session.get(f"{self.endpoint}/me", timeout=2).ok
                except requests.RequestException:
                    return False

            wait_until(ready, part="The Camber emulator", handle=self.handle, log=self._log)

    def stop(self) -> None:
        """Stops it and the jobs that it runs."""
        if self.handle is not None:
            self.handle.stop(signal.SIGTERM, grace_s=10)
            self.handle = None
