"""The state file through which commands on one folder know which parts run there."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

from rythmiq_ray.local import PartFailed
from rythmiq_ray.local.postgres import new_socket_folder
from rythmiq_ray.local.process import Handle, free_ports
from rythmiq_ray.local.s3 import PORTS


@dataclass(frozen=True)
class Running:
    """A part that was started."""

    process: Handle
    owner: Handle | None
    """The process that it ends with; None if it runs until it is stopped."""

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Running:
        return cls(Handle(**raw["process"]), Handle(**raw["owner"]) if raw["owner"] else None)

    @property
    def usable(self) -> bool:
        """Whether it runs, and is not about to end because its owner did."""
        return self.process.alive and (self.owner is None or self.owner.alive)


@dataclass
class State:
    """Which parts run, and the addresses and keys of a stack.

    These are chosen at the first start and kept, so that exported variables stay valid.
    """

    socket_folder: str = field(default_factory=new_socket_folder)
    s3_ports: list[int] = field(default_factory=lambda: free_ports(PORTS))
    camber_port: int = field(default_factory=lambda: free_ports(1)[0])
    access_key: str = field(default_factory=lambda: f"local-{secrets.token_hex(6)}")
    secret_key: str = field(default_factory=lambda: secrets.token_hex(20))
    api_key: str = field(default_factory=lambda: secrets.token_hex(20))
    running: dict[str, Running] = field(default_factory=dict)

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> State:
        running = {name: Running.parse(each) for name, each in raw.pop("running").items()}
        return cls(**raw, running=running)


class StateFile:
    """``stack.json``, which only its owner can read, and the lock that lets one command at a time change it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / "stack.json"

    def read(self) -> State | None:
        """The state; None if nothing was ever started here. Raises PartFailed if the file is damaged."""
        try:
            return State.parse(json.loads(self._path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise PartFailed(
                f"{self._path} cannot be understood ({type(error).__name__}); stop what runs there, and remove it"
            ) from None

    def write(self, state: State) -> None:
        """Replaces the file atomically, so that neither a reader nor a crash sees half of it. Needs the lock."""
        fresh = self._path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(state), file, indent=1)
        fresh.rename(self._path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock, for which it waits. The kernel frees it if its holder dies."""
        # Others can enter the folder, because root's Postgres is another user; secret files in it are 0600 or 0700.
        self._root.mkdir(mode=0o711, parents=True, exist_ok=True)
        with (self._root / "stack.lock").open("w") as file:
            flock(file, LOCK_EX)
            yield
