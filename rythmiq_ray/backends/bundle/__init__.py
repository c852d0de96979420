"""The bundle that every backend uploads to an attempt's path: inputs, a file of variables if there are any, a script.

The remote command is always ``bash run.sh``, because Camber shows commands in plain text and breaks their quoting
(camber-api, 3.7). ``run.sh`` is the packaged wrapper with the job's data at its top. It writes ``job.json`` and the
command to files itself, so a job without inputs and variables needs a single upload.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from io import SEEK_END
from typing import Any, BinaryIO, Final, cast
from urllib.parse import urlsplit

from rythmiq_ray.errors import InputUnreadable, NotFound, RythmiqError, SecretMissing, SpecRejected
from rythmiq_ray.model import Input, Job, JobSpec, RemoteFile
from rythmiq_ray.secret import Secret

REMOTE_COMMAND: Final = "bash run.sh"
SCRIPT_NAME: Final = "run.sh"
DESCRIPTION_NAME: Final = "job.json"
OWN_PREFIX: Final = "rythmiq-"
ENV_NAME: Final = "rythmiq-env"
CANCEL_NAME: Final = "rythmiq-cancel"
LOG_NAME: Final = "rythmiq-log.txt"
RESULT_NAME: Final = "rythmiq-result.json"
INPUTS_NAME: Final = "rythmiq-inputs.json"
"""A record of the inputs: for the manifest, and to tell inputs from outputs."""

_TEMPLATE: Final = "run.sh"
_MARK: Final = "#@parameters@\n"
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_WILDCARD: Final = re.compile(r"[*?\[]")
OWNED_BY_BASH: Final = frozenset(
    {
        *("BASHPID", "BASH_ARGV0", "BASH_COMMAND", "BASH_MONOSECONDS", "BASH_SUBSHELL", "COMP_WORDBREAKS", "DIRSTACK"),
        *("EPOCHREALTIME", "EPOCHSECONDS", "FUNCNAME", "GROUPS", "HISTCMD", "LINENO", "RANDOM", "SECONDS", "SRANDOM"),
    }
)
"""Variables that bash sets or computes itself when it starts; they lose this behaviour when they are unset."""
_HEAD_BYTES: Final = 64 * 1024


@dataclass(frozen=True, kw_only=True)
class StopTimes:
    """How long the wrapper waits, in seconds."""

    grace_s: float = 10.0
    """From SIGTERM to SIGKILL when it stops a command."""
    drain_s: float = 5.0
    """After the command's end, for the end of its log, which a process left behind may hold open."""


def is_own(name: str) -> bool:
    """Whether a name relative to the attempt's path is the bundle's or the wrapper's."""
    return name in (SCRIPT_NAME, DESCRIPTION_NAME) or name.startswith(OWN_PREFIX)


def attempt_path(job: Job) -> str:
    """The attempt's own path. Raises NotFound if it has none, or one so short that it would contain others' files."""
    path = (job.remote_path or "").strip("/")
    if "/" not in path or not stays_inside(path):
        raise NotFound(f"job {job.job_id} has no path of its own")
    return path


def file_path(job: Job, name: str) -> str:
    """The full path of a file in the attempt's path; raises NotFound for a name that leads out of it."""
    if not stays_inside(name):
        raise NotFound(f"no file of a job can be named {name[:200]!a}")
    return f"{attempt_path(job)}/{name}"


def stays_inside(name: str) -> bool:
    parts = name.split("/")
    encodable = name.isascii() or not any("\ud800" <= char <= "\udc7f" or "\udd00" <= char <= "\udfff" for char in name)
    return encodable and "\0" not in name and not any(part in ("", ".", "..") for part in parts)


def check_input_names(job: Job) -> None:
    """Raises SpecRejected for an input whose name the bundle uses itself."""
    for file in job.spec.inputs:
        if is_own(file.name):
            raise SpecRejected(f"input {file.name!r} has a name that the bundle uses itself")


def left_by_command(job: Job, files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """The files in the attempt's path that are not the bundle's, the wrapper's or inputs, sorted by name."""
    inputs = {file.name for file in job.spec.inputs}
    left = (file for file in files if not is_own(file.name) and file.name not in inputs)
    return sorted(left, key=lambda file: file.name)


def script(job: Job, *, timeout_s: float, cpus: int | None = None, times: StopTimes | None = None) -> bytes:
    """The ``run.sh`` of an attempt. It contains the command and the globs of outputs, but no variable's value.

    ``cpus``: CPUs of a node, which numeric libraries cannot find out by themselves there; None = not known.
    """
    times = times or StopTimes()
    spec = job.spec
    whole_s, rest_s = divmod(timeout_s, 1)
    parameters = {
        "job_id": shlex.quote(str(job.job_id)),
        "attempt": str(job.attempt),
        "has_env": "1" if spec.env or spec.secrets else "",
        "timeout_s": str(int(whole_s)),
        "timeout_rest": f"{rest_s:.3f}",
        "timeout_shown": f"{timeout_s:g}",
        "grace_s": f"{times.grace_s:.3f}",
        "drain_s": f"{times.drain_s:.3f}",
        "cpus": "" if cpus is None else str(cpus),
        "outputs": _array(map(_plain, spec.outputs)),
        "folders": _array(_folders(spec)),
        "description": shlex.quote(_description(job, timeout_s)),
        "command": shlex.quote(spec.command),
    }
    head = "".join(f"rythmiq_{name}={value}\n" for name, value in parameters.items())
    before, after = _template()
    return f"{before}{head}{after}".encode()


def env_file(spec: JobSpec, secrets: Mapping[str, Secret]) -> bytes | None:
    """The variables as shell code, with every value kept exactly; None if the job has none. Secrets override variables.

    Raises SecretMissing for a secret that is not given, SpecRejected for an invalid name or value.
    """
    values = dict(spec.env)
    for name in spec.secrets:
        if name not in secrets:
            raise SecretMissing(f"the secret {name} is not set")
        values[name] = secrets[name].reveal()
    if not values:
        return None
    for name, value in values.items():
        if not _ENV_NAME.fullmatch(name):
            raise SpecRejected(f"{name!r} cannot be the name of a variable")
        if "\0" in value:
            raise SpecRejected(f"the value of {name} holds a NUL byte")
    lines = {name: f"export {name}={shlex.quote(value)}\n" for name, value in values.items()}
    text = "".join(line for name, line in lines.items() if name not in OWNED_BY_BASH)
    owned = "".join(f"unset -v {name}\n{line}" for name, line in lines.items() if name in OWNED_BY_BASH)
    if owned:
        # Read by the command's own bash when it has started.
        text += f"rythmiq_prelude={shlex.quote(f'unset -v BASH_ENV{chr(10)}exec 3<&-{chr(10)}{owned}')}\n"
    return text.encode(errors="surrogateescape")


class InputRecorder:
    """Opens inputs, and records name, URI, size and SHA-256 of each."""

    def __init__(self, open_input: Callable[[str], AbstractContextManager[BinaryIO]]) -> None:
        self._open_input = open_input
        self._found: dict[str, dict[str, object]] = {}

    @contextmanager
    def open(self, file: Input) -> Iterator[BinaryIO]:
        """Opens an input for streaming. It may be opened again for another try; the last one is recorded."""
        with self._open_input(file.uri) as source:
            measured = _Measured(source)
            yield cast(BinaryIO, measured)
            self._found[file.name] = {
                "name": file.name,
                "uri": without_query(file.uri),
                "bytes": measured.bytes,
                "sha256": measured.sha256,
            }

    def as_bytes(self) -> bytes:
        """The content of :data:`INPUTS_NAME`."""
        return json.dumps(list(self._found.values())).encode()


def without_query(uri: str) -> str:
    """The URI without its query: that of a presigned URL is a credential, which no message or manifest may contain."""
    if not uri.startswith(("http://", "https://")):
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class _Measured:
    """A stream that notes the size and hash of what is read from it."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source
        self._hash = hashlib.sha256()
        self.bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._hash.update(data)
        self.bytes += len(data)
        return data

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


class Upload(Iterable[bytes]):
    """An opened input as the body of a request, read in pieces. Its length is known if that is cheap to find out.

    An error while reading becomes InputUnreadable, so that it is not taken for an error of the upload's connection.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sent = 0
        self._head = self._take(_HEAD_BYTES)
        self.len: int | None = self._find_length()
        """Size in bytes; None = not known. The library requests looks for an attribute of this name."""

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at most ``size``; b'' at the end."""
        data, self._head = (self._head, b"") if self._head else (self._take(size), b"")
        if 0 <= size < len(data):
            data, self._head = data[:size], data[size:]
        self._sent += len(data)
        if self.len is not None and (self._sent > self.len or (not data and size and self._sent < self.len)):
            raise InputUnreadable("an input changed while it was read")
        return data

    def __iter__(self) -> Iterator[bytes]:
        while data := self.read(_HEAD_BYTES):
            yield data

    def _take(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except RythmiqError:
            raise
        except Exception as error:
            raise InputUnreadable(f"reading an input failed before its end: {type(error).__name__}") from error

    def _find_length(self) -> int | None:
        if len(self._head) < _HEAD_BYTES:
            rest = self._take(_HEAD_BYTES)
            if not rest:
                return len(self._head)
            self._head += rest
        known = getattr(self._stream, "length", None)
        if isinstance(known, int):
            return known
        try:
            if not self._stream.seekable():
                return None
            here = self._stream.tell()
            end = self._stream.seek(0, SEEK_END)
            self._stream.seek(here)
        except RythmiqError:
            raise
        except (OSError, ValueError, AttributeError):
            return None
        except Exception as error:
            raise InputUnreadable(f"reading an input failed before its end: {type(error).__name__}") from error
        return end - here + len(self._head)


def _description(job: Job, timeout_s: float) -> str:
    """``job.json``, for people who look into the path. It has names only: URIs may be signed, and values secret."""
    spec = job.spec
    about = {
        "job_id": str(job.job_id),
        "attempt": job.attempt,
        "timeout_s": timeout_s,
        "inputs": [file.name for file in spec.inputs],
        "outputs": list(spec.outputs),
        "variables": sorted({*spec.env, *spec.secrets}),
    }
    # Written by hand, because the indentation of the json module takes ten times the CPU time.
    lines = ",\n".join([f'  "{name}": {json.dumps(value)}' for name, value in about.items()])
    return f"{{\n{lines}\n}}\n"


def _plain(glob: str) -> str:
    """The glob without empty and ``.`` segments, so that each file has one name."""
    return "/".join(part for part in glob.split("/") if part not in ("", "."))


def _folders(spec: JobSpec) -> list[str]:
    """The folders of outputs, up to the first wildcard; the wrapper makes them, so that the command need not.

    An empty list for a command that makes folders itself: its ``mkdir results`` would fail.
    """
    if "mkdir" in spec.command:
        return []
    folders = (_plain(_WILDCARD.split(glob, maxsplit=1)[0].rpartition("/")[0]) for glob in spec.outputs)
    return sorted({folder for folder in folders if folder and ".." not in folder.split("/")})


def _array(words: Iterable[str]) -> str:
    """A bash array."""
    return f"({' '.join(map(shlex.quote, words))})"


@cache
def _template() -> tuple[str, str]:
    before, _, after = files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8").partition(_MARK)
    return before, after
