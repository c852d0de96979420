"""The whole emulator: puts its parts together, listens, and can run in a thread."""

from __future__ import annotations

import asyncio
import fcntl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, Self

from aiohttp import web

from rythmiq_ray.local.camber.app import API, Api
from rythmiq_ray.local.camber.deadlines import Deadlines
from rythmiq_ray.local.camber.faults import Faults, Mischief, Outage
from rythmiq_ray.local.camber.journal import JOURNAL_NAME, Journal
from rythmiq_ray.local.camber.ledger import Ledger
from rythmiq_ray.local.camber.processes import Processes
from rythmiq_ray.local.camber.scheduler import Scheduler
from rythmiq_ray.local.camber.settings import Settings
from rythmiq_ray.local.camber.stash import Stash

HOST: Final = "127.0.0.1"
"""The only address: anybody who can reach the socket and has the key can run commands on this machine."""
_START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 30.0
_SHUTDOWN_TIMEOUT_S: Final = 1.0
_BACKLOG: Final = 1024
_OWN_FOLDERS: Final = ("stash", "work", "logs", "unfinished", "trash")


class Emulator:
    """A Camber Cloud on this machine. Its state is in a folder and survives restarts.

    Use :meth:`start` and :meth:`stop` (or ``with``) to run it in a thread, or :meth:`serve` in an event loop.
    """

    def __init__(
        self,
        root: Path,
        *,
        api_key: str,
        port: int = 0,
        settings: Settings | None = None,
        faults: Faults | None = None,
    ) -> None:
        """``port`` 0 means any free port at the first start of this object, and the same port after that."""
        self.root = root
        self.settings = settings or Settings()
        self.api_key = api_key
        """May be set while it runs; the former key is then refused."""
        self._port = port
        self._mischief = Mischief(faults or Faults())
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._listener: asyncio.Server | None = None
        self._relisten: asyncio.Task[None] | None = None
        self._protocol: web.Server | None = None

    @property
    def port(self) -> int:
        return self._port

    @property
    def origin(self) -> str:
        """Where the routes for tests and benchmarks are: ``<origin>/_emulator/…``."""
        return f"http://{HOST}:{self._port}"

    @property
    def endpoint(self) -> str:
        """The base URL for clients."""
        return f"{self.origin}{API}"

    @property
    def owner(self) -> str:
        return self.settings.owner

    @property
    def faults(self) -> Faults:
        """May be set while it runs; that also ends an outage, even one that refuses connections."""
        return self._mischief.faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        if self._loop is None:
            self._mischief.set(faults)
        else:
            asyncio.run_coroutine_threadsafe(self._misbehave(faults), self._loop).result(_START_TIMEOUT_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Runs it in a thread and returns when it listens.

        Raises OSError if the port or the folder is in use, or if the folder holds files that are not an emulator's.
        """
        listening = threading.Event()
        errors: list[BaseException] = []

        def serve() -> None:
            try:
                asyncio.run(self.serve(listening.set))
            except BaseException as error:  # noqa: BLE001 - it belongs to the thread that waits
                errors.append(error)
                listening.set()

        self._thread = threading.Thread(target=serve, name="camber-emulator", daemon=True)
        self._thread.start()
        if not listening.wait(_START_TIMEOUT_S):
            raise TimeoutError("the emulator does not start")
        if errors:
            self._thread.join()
            raise errors[0]

    def stop(self) -> None:
        """Kills the running jobs, closes the socket and ends the thread; does nothing if it is not running."""
        thread, loop, stopping = self._thread, self._loop, self._stopping
        if thread is None:
            return
        if loop is not None and stopping is not None:
            loop.call_soon_threadsafe(stopping.set)
        thread.join(_STOP_TIMEOUT_S)
        if thread.is_alive():
            raise TimeoutError("the emulator does not stop")
        self._thread = None

    async def serve(self, on_listening: Callable[[], None], stopping: asyncio.Event | None = None) -> None:
        """Serves until ``stopping`` is set. Raises OSError as :meth:`start` does."""
        self._stopping = stopping or asyncio.Event()
        with _locked(self.root):
            async with self._parts() as api:
                self._protocol = api.server()
                try:
                    await self._listen()
                    self._loop = asyncio.get_running_loop()
                    await self._misbehave(self._mischief.faults)
                    on_listening()
                    await self._stopping.wait()
                finally:
                    self._loop = None
                    if self._relisten is not None:
                        self._relisten.cancel()
                    self._hush()
                    self._protocol.pre_shutdown()
                    await self._protocol.shutdown(_SHUTDOWN_TIMEOUT_S)

    @asynccontextmanager
    async def _parts(self) -> AsyncIterator[Api]:
        root = self.root.resolve()
        journal = Journal(root / JOURNAL_NAME)
        deadlines = Deadlines()
        stash = Stash(root, self.settings.owner)
        ledger = Ledger(journal)
        processes = Processes(root, stash, ledger, self.settings)
        scheduler = Scheduler(
            ledger=ledger,
            stash=stash,
            processes=processes,
            deadlines=deadlines,
            mischief=self._mischief,
            settings=self.settings,
        )
        scheduler.recover()
        try:
            yield Api(
                api_key=lambda: self.api_key,
                settings=self.settings,
                ledger=ledger,
                stash=stash,
                processes=processes,
                scheduler=scheduler,
                mischief=self._mischief,
                set_faults=self._misbehave,
            )
        finally:
            deadlines.close()
            await processes.close()
            stash.close()
            journal.close()

    async def _listen(self) -> None:
        if self._listener is None and self._protocol is not None:
            loop = asyncio.get_running_loop()
            self._listener = await loop.create_server(self._protocol, HOST, self._port, backlog=_BACKLOG)
            self._port = self._listener.sockets[0].getsockname()[1]

    def _hush(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _misbehave(self, faults: Faults) -> None:
        self._mischief.set(faults)
        if self._relisten is not None:
            self._relisten.cancel()
            self._relisten = None
        if faults.outage is not Outage.REFUSED:
            await self._listen()
            return
        self._hush()
        if faults.outage_s is not None:
            self._relisten = asyncio.get_running_loop().create_task(self._listen_after(faults.outage_s))

    async def _listen_after(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self._listen()


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Allows one emulator for each folder: a second one would kill the first one's jobs as left over from a crash."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_foreign(root)
    with (root / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(f"another emulator runs over {root}") from None
        yield


def _refuse_foreign(root: Path) -> None:
    """Raises FileExistsError if the folder is not an emulator's, because a start empties some of its subfolders."""
    if not (root / JOURNAL_NAME).exists():
        foreign = [name for name in _OWN_FOLDERS if (root / name).exists()]
        if foreign:
            raise FileExistsError(f"{root} is no emulator's folder, but has {', '.join(foreign)}: choose another one")
