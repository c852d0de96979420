"""The jobs of a folder, one file each, that say whether a job runs and how it ended, whoever asks and from wherever.

An entry is made locked, and its descriptor is handed down to the job: the lock is held while anything of the job runs
and freed by the kernel, however that ended, on a shared file system also for another machine. So a process's number,
which may be another's by now, decides nothing; it is only what a signal is sent to, once it is known to be the same.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from signal import Signals
from typing import Any, Final

from rythmiq_ray.backends.times import time_of
from rythmiq_ray.model import RemoteJob, RemoteStatus

_HANDED_DOWN: Final = 100
"""The lowest number for a descriptor that a shell script hands down: it uses those of one digit itself."""
_MODE: Final = 0o600


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the ledger has of a job."""

    remote: RemoteJob
    group: int | None
    """The process group of the job's wrapper, where it runs on this machine."""

    def send(self, number: Signals) -> bool:
        """Sends a signal to the wrapper; whether there was one to send it to."""
        if self.group is None:
            return False
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.group, number)
            return True
        return False


def id_of(path: str) -> int:
    """The remote id of the job at a path: the same path is the same job, so none can be created twice."""
    return int.from_bytes(sha256(path.encode(errors="surrogateescape")).digest()[:8]) >> 2 or 1


class Ledger:
    """The entries in one folder. Thread-safe, and for many processes. Every method raises OSError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def enter(self, path: str) -> Iterator[int | None]:
        """Makes the entry of the job at a path; gives its descriptor, to be handed down, or None if there is one.

        The entry appears whole and locked, so that nobody takes it for one whose job has ended.
        """
        new = self.folder / f".{token_hex(16)}"
        opened = os.open(new, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        try:
            descriptor: int | None = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, _HANDED_DOWN)
        finally:
            os.close(opened)
        assert descriptor is not None  # noqa: S101 - for the type checker
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                _append(descriptor, {"path": path, "created_at": datetime.now(UTC).isoformat()})
                os.link(new, self._file(id_of(path)))
            except FileExistsError:
                yield None
                return
            finally:
                new.unlink()
            yield descriptor
        finally:
            os.close(descriptor)

    def note_process(self, descriptor: int, pid: int) -> None:
        """Notes the leader of the job's process group."""
        if (started := _started(pid)) is not None:
            _append(descriptor, {"pid": pid, "started": started, "machine": _machine()})

    def read(self, remote_id: int) -> Entry | None:
        try:
            descriptor = os.open(self._file(remote_id), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:
            # First the lock: where it is free, nothing is written any more.
            running = _is_locked(descriptor)
            known = _merged(file.read())
        exit_code = known.get("exit_code")
        if isinstance(exit_code, int):
            # Of the wrapper. What the command left behind may still hold the lock.
            status = RemoteStatus.FAILED if exit_code else RemoteStatus.COMPLETED
        else:
            status = RemoteStatus.RUNNING if running else RemoteStatus.FAILED
        created_at = time_of(known.get("created_at"))
        remote = RemoteJob(
            remote_id=remote_id,
            status=status,
            path=str(known.get("path", "")),
            created_at=created_at,
            started_at=created_at,
            finished_at=time_of(known.get("finished_at")),
        )
        return Entry(remote=remote, group=None if status.terminal else _group(known))

    def log(self, remote_id: int) -> Path:
        """Where a job's output goes."""
        return self.folder / f"{remote_id}.log"

    def remove(self, remote_id: int) -> None:
        self.log(remote_id).unlink(missing_ok=True)
        self._file(remote_id).unlink(missing_ok=True)

    def _file(self, remote_id: int) -> Path:
        return self.folder / str(remote_id)


def _append(descriptor: int, item: Mapping[str, object]) -> None:
    os.write(descriptor, f"{json.dumps(item)}\n".encode())


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # Shared: others may be asking at the same time.
    except BlockingIOError:
        return True
    return False


def _merged(content: bytes) -> dict[str, Any]:
    """All that an entry's lines say; one that a killed process did not write whole, or that a command wrote, says
    nothing."""
    known: dict[str, Any] = {}
    for line in content.splitlines():
        with suppress(ValueError, RecursionError):
            item = json.loads(line)
            if isinstance(item, dict):
                known.update(item)
    return known


def _group(known: Mapping[str, Any]) -> int | None:
    pid = known.get("pid")
    if not isinstance(pid, int) or pid <= 1 or known.get("machine") != _machine():
        return None
    started = _started(pid)
    return pid if started is not None and started == known.get("started") else None


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since boot: with its number and the machine no other process has it."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        return int(stat.rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


@cache
def _machine() -> str:
    """Where process numbers are the same: one boot of one machine, or one container of it."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
