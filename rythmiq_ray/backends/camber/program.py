"""Calls Camber through the vendor's program ``camber``, whose commands are all verified (camber-api, section 7).

It cannot set a job's tags, so ``camber.region`` has no effect. It cannot cancel, so only the cancel marker in the stash
stops a job.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from rythmiq_ray.backends import CallObserver
from rythmiq_ray.backends.bundle import Upload
from rythmiq_ray.backends.camber import program_output
from rythmiq_ray.backends.camber.answers import Answer, items_of, job_of, printable, total_of
from rythmiq_ray.backends.camber.calls import JobPage
from rythmiq_ray.backends.camber.key import usable
from rythmiq_ray.backends.camber.process import run
from rythmiq_ray.backends.camber.spool import Spool
from rythmiq_ray.clock import now_s
from rythmiq_ray.config import CamberConfig
from rythmiq_ray.errors import (
    BackendBusy,
    BackendUnavailable,
    ConfigurationError,
    CreateUncertain,
    NotFound,
    RythmiqError,
    SpecRejected,
)
from rythmiq_ray.model import RemoteJob, RemoteStatus
from rythmiq_ray.programs import find_program
from rythmiq_ray.secret import MASK, Secret
from rythmiq_ray.telemetry.logs import get_logger

T = TypeVar("T")
log = get_logger("camber")

_MOST_ANSWER_BYTES: Final = 64 * 1024 * 1024
_MOST_LOG_BYTES: Final = 16 * 1024**3
_LOG_S: Final = 600.0
"""The timeout for a log, whose size is not known beforehand."""
_SLOWEST_BYTES_PER_S: Final = 1024 * 1024
"""The timeout of a transfer is the time that its bytes need at this rate, plus that of a small call."""
_SLACK_BYTES: Final = 64 * 1024 * 1024
"""How much a file may have grown between its listing and its download."""
_SHORT_BYTES: Final = 4096
"""Output of at most this size may be an error message instead of the log."""
_BLOCK_BYTES: Final = 1024 * 1024
_MAX_BACKOFF_S: Final = 5.0
_MAX_PATIENCE_S: Final = 15.0
_MOST_SIZES: Final = 100_000
"""The most files whose sizes are cached."""
_VERSION_S: Final = 10.0
_PASSED_ON: Final = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY"),
)
"""The environment variables that the program gets; others may hold secrets of the driver or of jobs."""


@dataclass(frozen=True, kw_only=True)
class _Said:
    """How a run of the program ended."""

    out: bytes
    """The beginning of its standard output."""
    err: str
    """The beginning of its standard error, with the key masked."""
    text: str
    """The beginning of both, with the key masked."""
    exit_code: int | None
    """None if it timed out, or if its output could not be read."""


class _NotWhole(BackendUnavailable):
    """A download is not as long as the listing says: a placeholder, or a file that still grows. Or a log broke off."""


class CamberProgram:
    """Implements :class:`~rythmiq_ray.backends.camber.calls.CamberCalls`; each call is a run of the program."""

    def __init__(
        self,
        config: CamberConfig,
        *,
        key: Callable[[], Secret] | None = None,
        on_call: CallObserver | None = None,
        backoff_s: float = 0.2,
    ) -> None:
        """``key`` returns the key for each call; the default is the configuration's. Does not run the program.

        Raises ConfigurationError for a key that cannot be an environment variable.
        """
        self._config = config
        self._key = key or (lambda: config.api_key)
        if not usable(self._key()):
            raise ConfigurationError("camber.api_key is empty or holds characters that no key has")
        self._on_call = on_call
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        # Two semaphores, so that a create never waits for large transfers.
        self._transfers = threading.BoundedSemaphore(config.program_at_once)
        self._others = threading.BoundedSemaphore(config.program_at_once)
        self._spool = Spool()
        self._sizes: OrderedDict[str, dict[str, int]] = OrderedDict()
        self._owner: str | None = None
        self._version_told = False
        self._small_s = config.connect_timeout_s + config.read_timeout_s
        self._retrying = Retrying(
            stop=stop_after_attempt(config.call_attempts),
            wait=wait_random_exponential(multiplier=backoff_s, max=_MAX_BACKOFF_S),
            retry=retry_if_exception(_worth_retrying),
            reraise=True,
        )

    def close(self) -> None:
        """Removes the temporary files."""
        self._spool.close()

    # ---------------------------------------------------------------------------------------------------- jobs

    def me(self) -> str:
        self._tell_version()
        self._owner = self._asked("me", ["me"], _owner_in)
        return self._owner

    def create(self, body: Mapping[str, object]) -> RemoteJob:
        return self._create(body, now_s())

    def get(self, remote_id: int) -> RemoteJob:
        def read(answer: Answer) -> RemoteJob | None:
            remote = job_of(answer.data)
            return remote if remote is not None and remote.remote_id == remote_id else None

        return self._asked("get", ["job", "get", str(remote_id)], read)

    def list_page(self, page: int) -> JobPage:
        def read(answer: Answer) -> JobPage | None:
            jobs = items_of(answer, "job_id")
            return None if jobs is None else JobPage(jobs=jobs, total=total_of(answer))

        return self._asked("list", ["job", "list", "--page", str(page), "--size", str(self._config.page_size)], read)

    def cancel(self, remote_id: int) -> bool:  # noqa: ARG002 - of the protocol
        """False: the program has no such command."""
        return False

    @contextmanager
    def open_log(self, remote_id: int) -> Iterator[Iterator[bytes]]:
        with self._folder() as folder:
            _whole(lambda: self._repeated(lambda: self._fetch_log(folder, remote_id)))
            with (folder / "out").open("rb") as file:
                yield _blocks(file)

    # --------------------------------------------------------------------------------------------------- stash

    def stash_list(self, uri: str) -> list[dict[str, Any]]:
        return self._asked(
            "stash_list", ["stash", "ls", uri, "-r", "-a"], lambda answer: items_of(answer, "path", "name")
        )

    def stash_read(self, uri: str) -> bytes:
        def read() -> bytes:
            with self._folder() as folder:
                file = self._downloaded(folder, uri)
                with _disk():
                    if file.stat().st_size > _MOST_ANSWER_BYTES:
                        raise BackendUnavailable("A file that should be small is too large")
                    return file.read_bytes()

        return read()

    @contextmanager
    def stash_open(self, uri: str, start: int = 0) -> Iterator[Iterator[bytes]]:
        with self._folder() as folder, self._downloaded(folder, uri).open("rb") as file:
            file.seek(start)
            yield _blocks(file)

    def stash_write(self, uri: str, data: bytes) -> None:
        def write() -> None:
            with self._folder() as folder:
                file = folder / "file"
                with _disk():
                    file.write_bytes(data)
                self._repeated(lambda: self._upload(folder, file, uri))

        write()

    def stash_stream(self, uri: str, open_source: Callable[[], AbstractContextManager[BinaryIO]]) -> None:
        def write() -> None:
            with self._folder() as folder:
                file = folder / "file"
                with open_source() as source:
                    blocks = iter(Upload(source))
                    with _disk(), file.open("wb") as copy:
                        copy.writelines(blocks)
                self._repeated(lambda: self._upload(folder, file, uri))

        write()

    def stash_remove(self, uri: str) -> None:
        self._repeated(lambda: self._remove(uri))

    # ------------------------------------------------------------------------------------------- one try of each

    def _create(self, body: Mapping[str, object], began_at: float) -> RemoteJob:
        """``began_at``: the timeout counts from then, so it includes the wait for a free slot."""
        path = str(body["mount_dir"])
        arguments = [
            *("job", "create", "--engine", str(body["engine_type"]).lower(), "--size", str(body["node_size"]).lower()),
            *(("--gpu",) if body.get("with_gpu") else ()),
            *(("--num-nodes", str(body["num_nodes"])) if body.get("num_nodes", 1) != 1 else ()),
            *("--path", f"stash://{self._owner or self.me()}/{path}/", "--cmd", str(body["command"])),
        ]
        until = began_at + self._config.create_timeout_s
        with self._folder() as folder:
            said = self._run("create", arguments, folder, until=until, answer=b"y\n")
        if said.exit_code is None:
            raise CreateUncertain(_late("create"))
        remote_id = program_output.job_id_in(said.text)
        if remote_id is None:
            raise program_output.create_error_in(said.text)
        return RemoteJob(remote_id=remote_id, status=RemoteStatus.SUBMITTED, path=path)

    def _asked(self, operation: str, command: Sequence[str], read: Callable[[Answer], T | None]) -> T:
        """What ``read`` makes of the JSON answer of an idempotent command; ``read`` gives None for another answer."""

        def attempt() -> T:
            with self._folder() as folder:
                said = self._run(operation, [*command, "--output", "json"], folder, within_s=self._small_s)
            answer = program_output.json_in(program_output.plain(said.out))
            found = read(answer) if answer is not None and answer.accepted else None
            if found is not None:
                return found
            error = _error(said, operation)
            if isinstance(error, NotFound | SpecRejected) and operation in ("me", "list"):
                raise BackendUnavailable(error.message)
            raise error

        return self._repeated(attempt)

    def _fetch_log(self, folder: Path, remote_id: int) -> None:
        """Leaves the log in ``folder/out``. A log can hold any text, so a long one is never read as an error."""
        said = self._run(
            "logs",
            ["job", "logs", str(remote_id)],
            folder,
            within_s=_LOG_S,
            most_bytes=_MOST_LOG_BYTES,
            head_bytes=_SHORT_BYTES + 1,
            transfer=True,
        )
        if said.exit_code is None:
            raise BackendUnavailable(_late("logs"))
        printed = program_output.plain(said.out)
        if len(said.out) <= _SHORT_BYTES and program_output.refuses_log(printed or said.err):
            raise NotFound(program_output.error_in(said.text, "logs").message)
        if not printed and program_output.complains(said.err):
            raise program_output.error_in(said.err, "logs")
        if said.exit_code and program_output.fails(said.err):
            raise _NotWhole("The log broke off")

    def _downloaded(self, folder: Path, uri: str) -> Path:
        """Downloads a file of the stash, which is then as long as the listing says. Raises NotFound."""
        return _whole(lambda: self._repeated(lambda: self._download(folder, uri)))

    def _download(self, folder: Path, uri: str) -> Path:
        file = folder / "file"
        file.unlink(missing_ok=True)
        size = self._size(uri)
        said = self._transfer("stash_read", uri, str(file), folder, size)
        brought = file.exists()
        if said.exit_code is None or (not brought and program_output.complains(said.text)):
            raise _error(said, "stash_read")
        with _disk():
            found = file.stat().st_size if brought else 0
            if found != size:
                size = self._size(uri, anew=True)
            if found != size:
                raise _NotWhole(f"The vendor's program returned {found} bytes of a file of {size}")
            file.touch()
        return file

    def _upload(self, folder: Path, file: Path, uri: str) -> None:
        size = file.stat().st_size
        said = self._transfer("stash_write", str(file), uri, folder, size)
        if said.exit_code == 0 and not program_output.complains(said.text):
            return
        # A file name can look like an error, and a good upload can exit with 255. So the listing decides.
        try:
            if self._size(uri, anew=True) == size:
                return
        except NotFound:
            pass
        error = _error(said, "stash_write")
        if isinstance(error, NotFound):
            self._make_folders(uri)
            error = BackendUnavailable(error.message)
        raise error

    def _transfer(self, operation: str, source: str, target: str, folder: Path, size: int) -> _Said:
        arguments = ["stash", "cp", source, target]
        within_s = self._small_s + size / _SLOWEST_BYTES_PER_S
        most = size + _SLACK_BYTES
        return self._run(operation, arguments, folder, within_s=within_s, most_bytes=most, transfer=True)

    def _make_folders(self, uri: str) -> None:
        """Makes the folders above a file. Errors are ignored: the next upload shows whether it worked."""
        owner, *steps = uri.removeprefix("stash://").split("/")[:-1]
        for depth in range(len(steps)):
            place = "/".join((owner, *steps[: depth + 1]))
            with self._folder() as folder:
                self._run("stash_mkdir", ["stash", "mkdir", f"stash://{place}/"], folder, within_s=self._small_s)

    def _remove(self, uri: str) -> None:
        with self._folder() as folder:
            said = self._run("stash_remove", ["stash", "rm", "-rf", uri], folder, within_s=self._small_s)
        with self._lock:
            self._sizes.pop(uri, None)
        if said.exit_code != 0 or program_output.complains(said.text):
            error = _error(said, "stash_remove")
            try:
                left = isinstance(error, NotFound) or self.stash_list(uri)
            except NotFound:
                return
            if left:
                raise error

    def _size(self, uri: str, *, anew: bool = False) -> int:
        """A file's size in bytes from the listing, which is read again with ``anew``. Raises NotFound."""
        parent, _, name = uri.rpartition("/")
        parent += "/"
        with self._lock:
            sizes = self._sizes.get(parent, {})
        if anew or name not in sizes:
            folder = parent.removeprefix("stash://").partition("/")[2].strip("/")
            sizes = program_output.file_sizes(self.stash_list(parent), folder)
            self._remember(parent, sizes)
        if name not in sizes:
            raise NotFound(f"Camber has no {uri!a}")
        return sizes[name]

    def _remember(self, parent: str, sizes: dict[str, int]) -> None:
        with self._lock:
            self._sizes[parent] = sizes
            self._sizes.move_to_end(parent)
            while len(self._sizes) > 1 and sum(map(len, self._sizes.values())) > _MOST_SIZES:
                self._sizes.popitem(last=False)

    def _tell_version(self) -> None:
        """Logs once for each process which program is used."""
        with self._lock:
            told, self._version_told = self._version_told, True
        if told:
            return
        with self._folder() as folder:
            said = self._run("version", ["--version"], folder, within_s=_VERSION_S)
        found = program_output.version_in(said.text)
        log.info("The vendor's program is used", program=self._place(), version=found or "unknown")

    # ------------------------------------------------------------------------------------------------ the process

    def _repeated(self, call: Callable[[], T]) -> T:
        return self._retrying(call)

    def _run(
        self,
        operation: str,
        arguments: Sequence[str],
        folder: Path,
        *,
        within_s: float = 0.0,
        until: float | None = None,
        answer: bytes = b"",
        most_bytes: int = _MOST_ANSWER_BYTES,
        head_bytes: int = _MOST_ANSWER_BYTES,
        transfer: bool = False,
    ) -> _Said:
        """Runs the program with its output in ``folder / "out"``; the first ``head_bytes`` of it are returned too.

        The timeout is ``within_s`` seconds after a slot is free, or ``until``, a time of :mod:`rythmiq_ray.clock`.
        Raises BackendUnavailable if the program was not started.
        """
        places = self._transfers if transfer else self._others
        if not places.acquire(timeout=None if until is None else max(0.0, until - now_s())):
            raise BackendUnavailable(
                f"All slots for the vendor's program stayed in use, so {operation} was not started in time"
            )
        try:
            if until is not None and (within_s := until - now_s()) <= 0:
                raise BackendUnavailable(
                    f"All slots for the vendor's program stayed in use, so {operation} was not started in time"
                )
            began_at = now_s()
            with self._lock:
                self.calls[operation] += 1
            key = self._key()
            exit_code = self._ran([self._place(), *arguments], folder, key, within_s, answer, most_bytes)
            said = self._read(folder, key, exit_code, head_bytes)
        finally:
            places.release()
        if self._on_call is not None:
            outcome = "error" if said.exit_code is None else "4xx" if program_output.fails(said.text) else "2xx"
            self._on_call(operation, outcome, now_s() - began_at)
        return said

    def _ran(
        self, command: Sequence[str], folder: Path, key: Secret, within_s: float, answer: bytes, most_bytes: int
    ) -> int | None:
        try:
            with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
                return run(
                    command,
                    environ=self._environ(folder, key),
                    folder=folder,
                    out=out,
                    err=err,
                    answer=answer,
                    within_s=within_s,
                    most_bytes=most_bytes,
                )
        except OSError as error:
            raise BackendUnavailable(f"The vendor's program cannot be started: {error.strerror}") from error

    def _read(self, folder: Path, key: Secret, exit_code: int | None, head_bytes: int) -> _Said:
        try:
            out, err = _head(folder / "out", head_bytes), _head(folder / "err", _SHORT_BYTES)
        except OSError:  # It was started, so its outcome is unknown, as after a timeout.
            return _Said(out=b"", err="", text="", exit_code=None)
        shown, complaint = program_output.plain(out[:_SHORT_BYTES]), program_output.plain(err)
        # If the key has changed meanwhile, the output may hold either.
        for secret in (self._config.api_key, key):
            shown, complaint = (text.replace(secret.reveal(), MASK) for text in (shown, complaint))
        return _Said(out=out, err=complaint, text=f"{shown}\n{complaint}", exit_code=exit_code)

    def _environ(self, folder: Path, key: Secret) -> dict[str, str]:
        return {
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            "HOME": os.environ.get("HOME") or str(folder),
            "TMPDIR": str(folder),
            "NO_COLOR": "1",
            "CAMBER_API_KEY": key.reveal(),
            "CAMBER_API_ENDPOINT": self._config.endpoint,
        }

    def _place(self) -> str:
        place = find_program(self._config.program)
        if place is None:
            raise BackendUnavailable(f"camber.program: there is no program {self._config.program!r} on this machine")
        return place

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """A folder for one call's files, removed after it. Raises BackendUnavailable."""
        with ExitStack() as stack:
            with _disk():
                folder = stack.enter_context(self._spool.folder())
            yield folder


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackendUnavailable(f"The temporary folder cannot be used: {error.strerror}") from error


def _whole(call: Callable[[], T]) -> T:
    """Turns _NotWhole into NotFound: a file that never becomes complete affects only its own job, not the backend."""
    try:
        return call()
    except _NotWhole as error:
        raise NotFound(error.message) from None


def _error(said: _Said, operation: str) -> RythmiqError:
    return (
        BackendUnavailable(_late(operation))
        if said.exit_code is None
        else program_output.error_in(said.text, operation)
    )


def _late(operation: str) -> str:
    return f"The vendor's program did not end {operation} in time"


def _owner_in(answer: Answer) -> str | None:
    name = answer.data.get("username") if isinstance(answer.data, dict) else None
    return name if isinstance(name, str) and name and name == printable(name) and "/" not in name else None


def _head(file: Path, most: int) -> bytes:
    with file.open("rb") as source:
        return source.read(min(most, file.stat().st_size))


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block


def _worth_retrying(error: BaseException) -> bool:
    return isinstance(error, BackendUnavailable | BackendBusy) and (error.retry_after_s or 0.0) <= _MAX_PATIENCE_S
