"""Runs Postgres, S3 and the Camber emulator together, either across commands or only for one process."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from rythmiq_ray.errors import NotFound
from rythmiq_ray.local import PartFailed
from rythmiq_ray.local.camber_process import CamberProcess
from rythmiq_ray.local.postgres import Postgres
from rythmiq_ray.local.process import PORT_TRIES, Handle, free_ports, port_is_free
from rythmiq_ray.local.s3 import PORTS, REGION, S3
from rythmiq_ray.local.state import Running, State, StateFile

POSTGRES, STORE, CAMBER = "postgres", "s3", "camber"
PARTS: Final = (STORE, CAMBER, POSTGRES)
"""In the order in which they start: the first two start up while Postgres makes its data folder."""
FOLDER_VARIABLE: Final = "RYTHMIQ_LOCAL_DIR"


class Part(Protocol):
    """A program of the stack."""

    handle: Handle | None

    def start(self, *, tethered: bool) -> None: ...
    def wait(self) -> None: ...
    def stop(self) -> None: ...


class Stack:
    """The parts of the embedded default in one folder. Addresses, keys and data stay the same across starts."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._file = StateFile(self._root)

    @classmethod
    @contextmanager
    def owned(cls, root: Path, parts: Collection[str] = PARTS) -> Iterator[Stack]:
        """Starts the parts that do not run yet; these end with this block, or with the process, even by SIGKILL.

        The kernel ties them to the calling thread, which must live as long as the block. Raises PartFailed.
        """
        stack = cls(root)
        started = stack.up(parts, tethered=True)
        try:
            yield stack
        finally:
            stack.down(started)

    def up(self, parts: Collection[str] = PARTS, *, tethered: bool = False) -> set[str]:
        """Starts the parts that do not run, and returns once all answer. Returns the names of those it started.

        ``tethered``: what it starts ends with the calling thread. Raises PartFailed and NotInstalled, after it has
        stopped what it started.
        """
        if not parts:
            return set()
        with self._file.locked():
            state = self._file.read() or State()
            found = {name: each for name, each in state.running.items() if name in parts and self._answers(name, state)}
            if not tethered:
                _refuse_owned(found)
            missing = [name for name in PARTS if name in parts and name not in found]
            self._stop(state, missing)
            self._renew_ports(state, missing)
            owner = Handle.of(os.getpid()) if tethered else None
            tries = PORT_TRIES
            while True:
                try:
                    self._start(state, missing, owner)
                    return set(missing)
                except BaseException as error:
                    self._stop(state, missing)
                    tries -= 1
                    # Another program may have taken a port since it was looked at.
                    again = isinstance(error, PartFailed) and tries > 0 and self._renew_ports(state, missing)
                    self._file.write(state)
                    if not again:
                        raise

    def _start(self, state: State, names: Collection[str], owner: Handle | None) -> None:
        """Starts these parts, records each at once, and returns once all answer."""
        made = {name: self._part(name, state) for name in names}
        for name, part in made.items():
            part.start(tethered=owner is not None)
            assert part.handle is not None  # noqa: S101 - it was started
            state.running[name] = Running(part.handle, owner)
            self._file.write(state)  # at once: after a crash right here the next command must find it
        for part in made.values():
            part.wait()

    def down(self, parts: Collection[str] = PARTS) -> set[str]:
        """Stops these parts, whoever started them, and returns the names of those that ran."""
        if not parts or self._file.read() is None:
            return set()
        with self._file.locked():
            state = self._state()
            ran = {name for name, each in state.running.items() if name in parts and each.process.alive}
            self._stop(state, parts)
            self._file.write(state)
            return ran

    def status(self) -> dict[str, int | None]:
        """The process id of each part; None if it does not run."""
        state = self._file.read()
        running = state.running if state else {}
        return {
            name: running[name].process.pid if name in running and running[name].usable else None
            for name in sorted(PARTS)
        }

    def environment(self, parts: Collection[str] = PARTS) -> dict[str, str]:
        """The variables with which a driver or ``aws`` uses these parts. Raises NotFound before the first start."""
        if not parts:
            return {}
        state = self._state()
        variables: dict[str, str] = {}
        if POSTGRES in parts:
            variables["DATABASE_URL"] = self._postgres(state).url
        if STORE in parts:
            store = self._s3(state)
            variables |= {
                "ARTIFACT_STORE_TYPE": "s3",
                "ARTIFACT_STORE_BUCKET": store.bucket,
                "AWS_ACCESS_KEY_ID": store.access_key,
                "AWS_SECRET_ACCESS_KEY": store.secret_key,
                "AWS_REGION": REGION,
                "AWS_DEFAULT_REGION": REGION,
                "AWS_ENDPOINT_URL_S3": store.endpoint,
            }
        if CAMBER in parts:
            variables |= {
                "EXECUTION_BACKEND": "camber",
                "CAMBER_API_KEY": state.api_key,
                "CAMBER_API_ENDPOINT": self._camber(state).endpoint,
            }
        return variables

    def _state(self) -> State:
        state = self._file.read()
        if state is None:
            raise NotFound(f"Nothing was ever started in {self._root}: start it with `rythmiq local up`")
        return state

    def _answers(self, name: str, state: State) -> bool:
        """Whether a part runs and answers. Raises PartFailed if it runs but does not answer."""
        running = state.running[name]
        if not running.usable:
            return False
        try:
            self._part(name, state).wait()
        except PartFailed:
            if running.process.alive:
                raise
            return False  # it was about to end
        return True

    def _stop(self, state: State, names: Collection[str]) -> None:
        """Stops these parts, all at the same time, and removes them from the state."""
        parts = [self._part(name, state) for name in names if name in state.running]
        with ThreadPoolExecutor(len(PARTS)) as pool:
            list(pool.map(lambda part: part.stop(), parts))
        for name in names:
            state.running.pop(name, None)

    @staticmethod
    def _renew_ports(state: State, names: Collection[str]) -> bool:
        """Chooses new ports for stopped parts if another program has taken one; whether that was so."""
        store = STORE in names and not all(map(port_is_free, state.s3_ports))
        camber = CAMBER in names and not port_is_free(state.camber_port)
        if store:
            state.s3_ports = free_ports(PORTS)
        if camber:
            state.camber_port = free_ports(1)[0]
        return store or camber

    def _part(self, name: str, state: State) -> Part:
        builders: dict[str, Callable[[State], Part]] = {
            POSTGRES: self._postgres,
            STORE: self._s3,
            CAMBER: self._camber,
        }
        part = builders[name](state)
        if name in state.running:
            part.handle = state.running[name].process
        return part

    def _postgres(self, state: State) -> Postgres:
        return Postgres(self._root / POSTGRES, socket_folder=state.socket_folder)

    def _s3(self, state: State) -> S3:
        return S3(
            self._root / STORE,
            ports=state.s3_ports,
            access_key=state.access_key,
            secret_key=state.secret_key,
            bucket="rythmiq",
        )

    def _camber(self, state: State) -> CamberProcess:
        return CamberProcess(self._root / CAMBER, port=state.camber_port, api_key=state.api_key)


def _refuse_owned(found: Mapping[str, Running]) -> None:
    owners = sorted({each.owner.pid for each in found.values() if each.owner})
    if owners:
        raise PartFailed(
            f"Process {owners[0]} runs parts of its own here, which end with it: stop it first, or use another"
            f" folder ({FOLDER_VARIABLE})"
        )


def local_root() -> Path:
    """Where the embedded default keeps its state: ``$RYTHMIQ_LOCAL_DIR``, or ``.rythmiq`` here."""
    return Path(os.environ.get(FOLDER_VARIABLE) or ".rythmiq").absolute()


def parts_needed(environ: Mapping[str, str]) -> set[str]:
    """The parts for which the environment names no real service."""
    needed = set(PARTS)
    if environ.get("DATABASE_URL"):
        needed.discard(POSTGRES)
    if environ.get("ARTIFACT_STORE_BUCKET") or environ.get("ARTIFACT_STORE_TYPE") == "local":
        needed.discard(STORE)
    camber = any(environ.get(name) for name in ("CAMBER_API_ENDPOINT", "CAMBER_API_KEY", "CAMBER_API_KEY_FILE"))
    if camber or environ.get("EXECUTION_BACKEND") == "local":
        needed.discard(CAMBER)
    return needed


@contextmanager
def local_environment(parts: Collection[str]) -> Iterator[dict[str, str]]:
    """The variables of these parts. Parts that do not run yet are started and end with this block.

    The data is the same either way: a driver that starts its own parts runs jobs that were enqueued while the stack was
    up.
    """
    with Stack.owned(local_root(), parts) as stack:
        yield stack.environment(parts)
