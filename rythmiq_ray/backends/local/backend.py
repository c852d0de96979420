"""The local execution backend: maps the protocol to files below one folder, and processes of the node."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import signal
import stat
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO, Final

from rythmiq_ray.backends import InputOpener, Unclear
from rythmiq_ray.backends.bundle import (
    CANCEL_NAME,
    ENV_NAME,
    INPUTS_NAME,
    LOG_NAME,
    OWN_PREFIX,
    RESULT_NAME,
    SCRIPT_NAME,
    InputRecorder,
    Upload,
    attempt_path,
    check_input_names,
    env_file,
    file_path,
    left_by_command,
    script,
)
from rythmiq_ray.backends.bundle.result import read_result
from rythmiq_ray.backends.local.ledger import Ledger, id_of
from rythmiq_ray.errors import BackendUnavailable, CreateUncertain, NotFound, SpecRejected
from rythmiq_ray.model import Job, RemoteFile, RemoteJob, RemoteResult
from rythmiq_ray.secret import Secret

_LEDGER: Final = ".ledger"
_STARTER: Final = Path(__file__).with_name("start.sh")
_CHUNK_BYTES: Final = 1024 * 1024
_START_TIMEOUT_S: Final = 30.0
_TRIES: Final = 5
_PASSED_ON: Final = ("HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
"""Of the variables here, beside ``LC_*``: others are the worker's own, and secrets among them."""
_BAD_NAME: Final = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EILSEQ})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.ENOTEMPTY})
_UNREADABLE: Final = _BAD_NAME | _FORBIDDEN | {errno.ENOENT, errno.ELOOP, errno.EINVAL, errno.ENXIO}
"""What a command can do to its own files: it says nothing about the folder that others work in too."""


class LocalExecutionBackend:
    """Runs jobs as processes of the node it is called on; an :class:`~rythmiq_ray.backends.ExecutionBackend`.

    Engine, node size, GPU and number of nodes of a job mean nothing here.
    """

    def __init__(self, root: Path) -> None:
        """``root``: below it each attempt has its path, and ``.ledger`` tells of all. It is made by :meth:`check`."""
        self._root = root.absolute()
        self._ledger = Ledger(self._root / _LEDGER)

    @property
    def backend_type(self) -> str:
        return type(self).__name__

    def close(self) -> None:
        """Does nothing: there are no connections."""

    def check(self) -> str:
        """See the protocol: that entries can be made and locked, and the name of the user that commands run as."""
        path = f"probe/{token_hex(16)}"
        with self._translated():
            self._ledger.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                with self._ledger.enter(path):
                    entry = self._ledger.read(id_of(path))
            finally:
                self._ledger.remove(id_of(path))
        if entry is None or entry.remote.status.terminal:
            raise BackendUnavailable(f"The folder for jobs {self._root} is on a file system without locks (flock)")
        if shutil.which("bash") is None:
            raise BackendUnavailable("The local backend needs bash, which is not on PATH here")
        try:
            return pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return str(os.getuid())

    def upload(self, job: Job, *, secrets: Mapping[str, Secret], timeout_s: float, open_input: InputOpener) -> None:
        variables = env_file(job.spec, secrets)
        wrapper = script(job, timeout_s=timeout_s)
        check_input_names(job)
        folder = self._folder(job)
        with self._translated():
            self._require_ledger()
            _make_folder(folder, mode=0o700)
        recorder = InputRecorder(open_input)
        for file in job.spec.inputs:
            with recorder.open(file) as source:
                self._write(folder, self._place(job, file.name), Upload(source))
        if job.spec.inputs:
            self._write(folder, folder / INPUTS_NAME, [recorder.as_bytes()])
        if variables is not None:
            self._write(folder, folder / ENV_NAME, [variables])
        # Last, so that a path with a script in it is whole.
        self._write(folder, folder / SCRIPT_NAME, [wrapper])

    def create(self, job: Job) -> RemoteJob:
        """See the protocol. If the path has a job already, returns that one instead of creating a second."""
        path, folder = attempt_path(job), self._folder(job)
        remote_id = id_of(path)
        with self._translated():
            if not (folder / SCRIPT_NAME).is_file():
                raise BackendUnavailable(f"{folder} holds no {SCRIPT_NAME}: somebody removed it")
            with self._ledger.enter(path) as descriptor:
                if descriptor is not None:
                    self._start(remote_id, folder, descriptor)
                with suppress(OSError):
                    if entry := self._ledger.read(remote_id):
                        return entry.remote
        raise CreateUncertain(f"the entry of {path} cannot be read")

    def watch(
        self,
        waiting: Collection[int],
        searched: Collection[str],
        search_age_s: float,  # noqa: ARG002 - what is there is found, however old
        *,
        paths: Collection[str] = frozenset(),  # noqa: ARG002 - nothing else can lie there
    ) -> Iterator[list[RemoteJob | Unclear]]:
        """See the protocol. One page, and no list: ids and paths name their entries, and a path has no second job."""
        with self._translated():
            self._require_ledger()
            wanted = {*waiting, *(id_of(path.strip("/")) for path in searched)}
            entries = (self._ledger.read(remote_id) for remote_id in wanted)
            yield [entry.remote for entry in entries if entry is not None]

    def read_result(self, job: Job) -> RemoteResult | None:
        try:
            with self.open_file(job, RESULT_NAME) as chunks:
                return read_result(chunks)
        except NotFound:
            return None

    def list_files(self, job: Job) -> list[RemoteFile]:
        """See the protocol. Links are left out, and inputs and the wrapper's log too."""
        folder = self._folder(job)
        with self._translated():
            self._require_ledger()
            return left_by_command(job, _files_below(folder))

    def read_file(self, job: Job, name: str) -> bytes:
        with self.open_file(job, name) as chunks:
            return b"".join(chunks)

    @contextmanager
    def open_file(self, job: Job, name: str, *, start: int = 0) -> Iterator[Iterator[bytes]]:
        """See the protocol. A link is followed as long as it stays in the attempt's path."""
        place, folder = self._place(job, name), self._folder(job)
        with self._translated():
            self._require_ledger()
            if os.path.commonpath(map(os.path.realpath, (folder, place))) != os.path.realpath(folder):
                raise NotFound(f"{name[:200]!a} leads out of the attempt's path")
        with self._opened(place) as file:
            file.seek(start)
            yield self._chunks(file)

    @contextmanager
    def open_log(self, job: Job) -> Iterator[Iterator[bytes]]:
        """See the protocol: what the wrapper printed, which the command cannot reach by chance; else its own file."""
        log = self._ledger.log(job.remote_id or id_of(attempt_path(job)))
        with self._translated():
            self._require_ledger()
            known = log.is_file()
        with self._opened(log if known else self._place(job, LOG_NAME)) as file:
            yield self._chunks(file)

    def cancel(self, job: Job, *, mark: bool = True) -> bool:
        """See the protocol. The marker is for a wrapper on another machine, which no signal reaches."""
        if mark:
            with suppress(OSError):
                self._place(job, CANCEL_NAME).write_bytes(b"cancel\n")
        with self._translated():
            entry = self._ledger.read(job.remote_id or id_of(attempt_path(job)))
            return entry is not None and entry.send(signal.SIGTERM)

    def remove(self, job: Job) -> None:
        with suppress(NotFound), self._translated(_FORBIDDEN):
            path, folder = attempt_path(job), self._folder(job)
            self._require_ledger()
            _remove_folder(folder)
            # After the script, without which nothing is started, so that a late create finds one or the other.
            self._ledger.remove(id_of(path))
            with suppress(OSError):  # Other attempts may have theirs in it.
                for parent in folder.relative_to(self._root).parents[:-1]:
                    (self._root / parent).rmdir()

    def cost_credits(self, job: Job, remote: RemoteJob) -> None:
        """See the protocol. None: these jobs cost nothing."""

    def _start(self, remote_id: int, folder: Path, descriptor: int) -> None:
        """Starts the job of a new entry. Where it certainly was not started, the entry is gone again."""
        try:
            shell = subprocess.Popen(
                ["bash", _STARTER, str(descriptor), self._ledger.log(remote_id)],
                cwd=folder,
                env={name: value for name, value in os.environ.items() if name in _PASSED_ON or name[:3] == "LC_"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=[descriptor],
                start_new_session=True,
            )
        except OSError:
            self._ledger.remove(remote_id)
            raise
        with shell:
            try:
                said, _ = shell.communicate(timeout=_START_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                shell.kill()
                said = b""
        if not said.strip().isdigit():
            raise CreateUncertain("bash did not say that it started a job")
        with suppress(OSError):  # It runs all the same; the marker stops it then.
            self._ledger.note_process(descriptor, int(said))

    def _folder(self, job: Job) -> Path:
        return self._root / attempt_path(job)

    def _place(self, job: Job, name: str) -> Path:
        return self._root / file_path(job, name)

    def _require_ledger(self) -> None:
        """Raises OSError if the folder is missing, as when it is unmounted: its jobs must not count as lost then."""
        self._ledger.folder.stat()

    def _write(self, folder: Path, place: Path, chunks: Iterable[bytes]) -> None:
        """A file of an attempt, whole or not at all. What reading the chunks raises is passed on."""
        partial = folder / f"{OWN_PREFIX}{token_hex(8)}.part"
        with self._translated(_BAD_NAME):
            _make_folder(place.parent)
            file = partial.open("xb")
        try:
            with file:
                for chunk in chunks:
                    with self._translated():
                        file.write(chunk)
            with self._translated(_BAD_NAME):
                partial.replace(place)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    @contextmanager
    def _opened(self, place: Path) -> Iterator[BinaryIO]:
        """Opens a regular file; raises NotFound for anything else. Errors of the reader are passed on."""
        with self._translated():
            try:
                descriptor = os.open(
                    place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
                )  # A pipe would wait for a writer.
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.close(descriptor)
                    raise NotFound(f"There is no file {place}")
            except OSError as error:
                if error.errno not in _UNREADABLE:
                    raise
                raise NotFound(f"There is no file {place}") from None
        with open(descriptor, "rb", buffering=0) as file:
            yield file

    def _chunks(self, file: BinaryIO) -> Iterator[bytes]:
        while True:
            with self._translated():
                chunk = file.read(_CHUNK_BYTES)
            if not chunk:
                return
            yield chunk

    @contextmanager
    def _translated(self, the_jobs_fault: Collection[int] = ()) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if error.errno in the_jobs_fault:
                raise SpecRejected(f"{error.filename2 or error.filename} of this job: {reason}") from None
            raise BackendUnavailable(f"The folder for jobs {self._root} cannot be used: {reason}") from None


def _make_folder(folder: Path, *, mode: int = 0o777) -> None:
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):  # Another attempt's removal took away the folder above, which was empty.
            folder.mkdir(parents=True, exist_ok=True, mode=mode)
            return
    folder.mkdir(parents=True, exist_ok=True, mode=mode)


def _files_below(folder: Path) -> Iterator[RemoteFile]:
    """What can be read of it. Raises OSError where the fault is not the command's."""

    def tell(error: OSError) -> None:
        if error.errno not in _UNREADABLE:
            raise error

    for above, _, names in os.walk(folder, onerror=tell):
        for name in names:
            place = os.path.join(above, name)
            try:
                status = os.lstat(place)
            except OSError as error:
                tell(error)
                continue
            if stat.S_ISREG(status.st_mode):
                yield RemoteFile(name=os.path.relpath(place, folder), size_bytes=status.st_size)


def _remove_folder(folder: Path) -> None:
    """Also what the command made unreadable; raises OSError where something stays."""
    with suppress(OSError):
        folder.chmod(0o700)
        for above, names, _ in os.walk(folder):
            for name in names:
                place = os.path.join(above, name)
                if not os.path.islink(place):
                    os.chmod(place, 0o700)
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
