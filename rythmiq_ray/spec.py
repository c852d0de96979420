"""The check of a job before anything is stored, and its JSON form: one object a line, the names of the options.

Every fault is one sentence that starts with its field, e.g. ``node_size: there is no 'XSMAL'; did you mean XSMALL?``.
Faults quote names only, never a command, a URI or a value: those may hold what must not be seen.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from difflib import get_close_matches
from functools import lru_cache
from operator import attrgetter, is_
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from rythmiq_ray.config import CamberCatalog
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.model import Input, JobSpec, NewJob
from rythmiq_ray.names import LOG_NAME, MANIFEST_NAME, fault_of_name

MAX_COMMAND_BYTES: Final = 256 * 1024
MAX_ENV_BYTES: Final = 256 * 1024
MAX_ENV_ENTRY_BYTES: Final = 128 * 1024 - 1
"""Of ``NAME=value``: Linux starts no process with a longer one (MAX_ARG_STRLEN)."""
MAX_ENTRIES: Final = 1000
"""Of each list: inputs, outputs, env, secrets."""
MAX_URI_BYTES: Final = 8 * 1024
MAX_PATH_BYTES: Final = 1024
"""Of an input's name or an output's glob: the longest key that S3 takes."""
MAX_SEGMENT_BYTES: Final = 255
"""Of a file name between two slashes: what Linux file systems take."""
MAX_TIMEOUT_S: Final = 30 * 86400
MAX_DELAY_S: Final = 365 * 86400

BUNDLE_NAMES: Final = frozenset({"run.sh", "job.json"})
"""What the bundle itself puts into the attempt's path, beside everything that starts with :data:`BUNDLE_PREFIX`."""
BUNDLE_PREFIX: Final = "rythmiq-"
STORE_NAMES: Final = frozenset({LOG_NAME, MANIFEST_NAME})
"""What the artifact store itself puts beside the outputs."""
RESERVED_ENV: Final = frozenset(
    {
        *("BASH", "BASHOPTS", "BASH_ALIASES", "BASH_ARGC", "BASH_ARGV", "BASH_CMDS", "BASH_ENV", "BASH_LINENO"),
        *("BASH_SOURCE", "BASH_VERSINFO", "BASH_VERSION", "EUID", "IFS", "OLDPWD", "OPTERR", "OPTIND", "PPID", "PS4"),
        *("PWD", "SHELLOPTS", "SHLVL", "UID"),
    }
)
"""BASH_ENV would run a file before the command; the others are read-only in bash, or set anew by one that starts, so
that the command would never see the value."""
RESERVED_ENV_PREFIX: Final = "RYTHMIQ_"

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DOTTED: Final = re.compile(r"^(\./)+")
_SLASH: Final = re.compile("/")
_WILD: Final = re.compile(r"[*?\[]")
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
_SECRET_NAME: Final = re.compile(r"[A-Z][A-Z0-9_]{0,254}")
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_SCHEMES: Final = ("s3", "file", "http", "https")
_SPEC_KEYS: Final = frozenset(field.name for field in fields(JobSpec))
_QUEUE_KEYS: Final = frozenset(field.name for field in fields(NewJob)) - {"spec"}
_KEYS: Final = tuple(sorted(_SPEC_KEYS | _QUEUE_KEYS))
_FINE: Final[tuple[str, ...]] = ()
_SHOWN: Final = 20
"""Of unknown fields in a stored spec; each is compared with all that are known."""
_CACHED: Final = 4096
"""Jobs of one file mostly share their URIs, names and globs, so the answers about these are kept."""

_Check = Callable[[str, object], Sequence[str]]


def check(job: NewJob, catalog: CamberCatalog) -> list[str]:
    """All faults of a job, each starting with its field; none if it may be enqueued.

    Trusts no type hint: what a caller without a type checker passes is named too. ``catalog`` is what Camber
    offers (``conf/camber.yaml``).
    """
    faults = _faults_of_values(job)
    faults.extend(_faults_against(catalog, job.spec))
    return faults


def parse(data: Mapping[str, Any]) -> NewJob:
    """The job that a JSON object describes; the keys are the fields of JobSpec and NewJob.

    Raises InvalidJob with all faults but those against the catalog, which :func:`check` knows.
    """
    job, faults = _read(data)
    faults.extend(_faults_of_values(job))
    if faults:
        raise InvalidJob(faults)
    return job


def read_spec(data: object) -> tuple[JobSpec, list[str]]:
    """What can be read of a stored spec, and all its faults but those against the catalog.

    A field with a fault has its default in the spec, so that what shows it need not check it again.
    """
    if not isinstance(data, Mapping):
        return JobSpec(command=""), [f"spec: must be an object, not {_kind(data)}"]
    job, unknown = _read({key: value for key, value in data.items() if key in _SPEC_KEYS})
    names, strange = tuple(sorted(_SPEC_KEYS)), sorted(map(str, data.keys() - _SPEC_KEYS))
    unknown.extend(f"{_quote(key)}: is not a field of a spec{_nearest(key[:80], names)}" for key in strange[:_SHOWN])
    if len(strange) > _SHOWN:
        unknown.append(f"spec: has {len(strange) - _SHOWN:,} more fields that no spec has")
    faults = _faults_of_values(job)
    if not faults:
        return job.spec, unknown
    odd = {name for name in _SPEC_KEYS if any(re.match(rf"{name}\b", fault) for fault in faults)}
    plain = JobSpec(command="")
    return replace(job.spec, **{name: getattr(plain, name) for name in odd}), unknown + faults


def parse_lines(lines: Iterable[str | bytes], catalog: CamberCatalog) -> list[NewJob]:
    """The jobs of a JSON Lines file in UTF-8, one object a line; blank lines and a byte order mark are skipped.

    One bad line refuses all: raises InvalidJob with every fault, each as ``line <number>: <field>: <fault>``.
    """
    jobs: list[NewJob] = []
    faults: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            data = _decode(line, first=number == 1)
        except ValueError as error:
            faults.append(f"line {number}: {error}")
            continue
        if data is None:
            continue
        job, found = _read(data)
        found.extend(_faults_of_values(job))
        found.extend(_faults_against(catalog, job.spec))
        if found:
            faults.extend(f"line {number}: {fault}" for fault in found)
        else:
            jobs.append(job)
    if faults:
        raise InvalidJob(faults)
    return jobs


def default_name(uri: str) -> str:
    """The file name that an input has where none is given: the last segment of its URI's path; '' if it has none.

    The query of an http URI does not count, and its ``%20`` becomes a space; S3 keys and local paths are literal.
    """
    scheme, _, rest = uri.partition("://")
    if scheme in ("http", "https"):
        rest = unquote(re.split(r"[?#]", rest, maxsplit=1)[0])
    return rest.rpartition("/")[2]


# Reading. What has the wrong type is left as it is, so that the check alone says what is wrong with it.


class _NotAnObject(ValueError):
    """A line that is no JSON object; the message ends the sentence ``line N: …``."""


def _decode(line: str | bytes, *, first: bool) -> dict[str, Any] | None:
    if isinstance(line, bytes):
        try:
            line = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _NotAnObject(f"is not UTF-8 (byte {error.start + 1})") from None
    if first:
        line = line.removeprefix("\ufeff")
    if not line or line.isspace():
        return None
    try:
        data = _DECODER.decode(line)
    except _NotAnObject:
        raise
    except json.JSONDecodeError as error:
        raise _NotAnObject(f"is not JSON: {error.msg} at column {error.pos + 1}") from None
    except RecursionError:
        raise _NotAnObject("is not a job: its JSON is nested too deeply") from None
    except ValueError:
        raise _NotAnObject("is not JSON: a number in it is too long") from None
    if not isinstance(data, dict):
        raise _NotAnObject(f"must be an object, not {_kind(data)}")
    return data


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        twice = [_quote(key) for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        raise _NotAnObject(f"{', '.join(twice)}: is there twice")
    return data


def _no_constant(name: str) -> Any:
    raise _NotAnObject(f"is not JSON: {name} is not a number there")


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique_pairs, parse_constant=_no_constant)


def _read(data: Mapping[str, Any]) -> tuple[NewJob, list[str]]:
    spec: dict[str, Any] = {"command": ""}
    queued: dict[str, Any] = {}
    faults: list[str] = []
    for key, value in data.items():
        if key in _SPEC_KEYS:
            spec[key] = tuple(value) if isinstance(value, list) else value
        elif key in _QUEUE_KEYS:
            queued[key] = value
        else:
            faults.append(f"{_quote(key)}: is not a field of a job{_nearest(str(key)[:80], _KEYS)}")
    if isinstance(spec.get("inputs"), tuple) and len(spec["inputs"]) <= MAX_ENTRIES:
        spec["inputs"] = tuple(_read_input(at, item, faults) for at, item in enumerate(spec["inputs"]))
    return NewJob(spec=JobSpec(**spec), **queued), faults


def _read_input(at: int, item: object, faults: list[str]) -> object:
    if not isinstance(item, Mapping):
        return item
    for key in item.keys() - {"uri", "name"}:
        faults.append(
            f"inputs[{at}].{_quote(key)}: is not a field of an input{_nearest(str(key)[:80], ('uri', 'name'))}"
        )
    uri, name = item.get("uri"), item.get("name")
    if name is None and isinstance(uri, str):
        name = default_name(uri)
    return Input(uri=uri, name=name)  # type: ignore[arg-type]  # the check names what has the wrong type


# Checking: each takes the field's name and its value, and returns its faults.


def _faults_against(catalog: CamberCatalog, spec: JobSpec) -> list[str]:
    faults: list[str] = []
    engine: object = spec.engine
    size: object = spec.node_size
    if isinstance(engine, str) and engine.upper() not in catalog.engines:
        faults.append(f"engine: there is no {_quote(engine)}{_nearest(engine.upper()[:80], catalog.engines)}")
    if isinstance(size, str):
        name = size.upper()
        sizes = catalog.gpu_sizes if spec.gpu is True else catalog.cpu_sizes
        if name not in sizes:
            if name in catalog.cpu_sizes:
                faults.append(f"node_size: {name} has no GPU; those that have one are {', '.join(sizes)}")
            elif name in catalog.gpu_sizes:
                faults.append(f"node_size: {name} is there only with gpu")
            else:
                faults.append(f"node_size: there is no {_quote(size)}{_nearest(name[:80], tuple(sizes))}")
    return faults


def _command(field: str, value: object) -> Sequence[str]:
    if not isinstance(value, str):
        return (_wrong(field, "a string", value),)
    if not value or value.isspace():
        return (f"{field}: is missing or blank",)
    if "\0" in value:
        return (f"{field}: holds a NUL byte",)
    size = _utf8_size(value)
    if size is None:
        return (_surrogate(field),)
    if size > MAX_COMMAND_BYTES:
        return (f"{field}: has {size:,} bytes; the most is {MAX_COMMAND_BYTES:,}: send a script as an input",)
    return _FINE


def _word(field: str, value: object) -> Sequence[str]:
    """A name from the catalog: only its type, because the catalog says the rest."""
    return _FINE if isinstance(value, str) else (_wrong(field, "a string", value),)


def _flag(field: str, value: object) -> Sequence[str]:
    return _FINE if isinstance(value, bool) else (_wrong(field, "true or false", value),)


def _whole(low: int, high: int) -> _Check:
    def check_whole(field: str, value: object) -> Sequence[str]:
        if type(value) is not int:  # True is an int to isinstance
            return (_wrong(field, "a whole number", value),)
        return _FINE if low <= value <= high else (f"{field}: must be from {low:,} to {high:,}",)

    return check_whole


def _seconds(high: int, *, zero: bool, optional: bool) -> _Check:
    def check_seconds(field: str, value: object) -> Sequence[str]:
        if value is None and optional:
            return _FINE
        if isinstance(value, bool) or not isinstance(value, int | float):
            return (_wrong(field, "a number of seconds", value),)
        if (0 < value <= high) or (zero and value == 0):
            return _FINE
        return (f"{field}: must be {'from' if zero else 'more than'} 0 to {high:,} seconds",)

    return check_seconds


def _label(low: int, high: int, *, optional: bool) -> _Check:
    """Text of one line that we store and show."""

    def check_label(field: str, value: object) -> Sequence[str]:
        if value is None and optional:
            return _FINE
        if not isinstance(value, str):
            return (_wrong(field, "a string", value),)
        if not low <= len(value) <= high:
            return (f"{field}: must have {low or 'at most'}{' to' if low else ''} {high} characters",)
        if _CONTROL.search(value):
            return (f"{field}: holds a control character",)
        return _FINE if _utf8_size(value) is not None else (_surrogate(field),)

    return check_label


def _inputs(field: str, value: object) -> Sequence[str]:
    if not isinstance(value, (tuple, list)):
        return (_wrong(field, "a list of objects with uri and name", value),)
    if not value:
        return _FINE
    if many := _too_many(field, value):
        return many
    faults: list[str] = []
    files = _Files()
    for at, item in enumerate(value):
        if not isinstance(item, Input):
            faults.append(_wrong(f"{field}[{at}]", "an object with uri and name", item))
            continue
        uri: object = item.uri
        name: object = item.name
        if not isinstance(uri, str):
            faults.append(_wrong(f"{field}[{at}].uri", "a string", uri))
        elif (fault := _fault_of_uri(uri)) is not None:
            faults.append(f"{field}[{at}].uri: {fault}")
        if not isinstance(name, str):
            if name is not None or isinstance(uri, str):  # without a URI no name could be made: one fault is enough
                faults.append(_wrong(f"{field}[{at}].name", "a string", name))
        elif not name:
            faults.append(f"{field}[{at}].name: is missing, and the URI ends in no file name")
        elif (fault := _fault_of_input_name(name) or files.add(name)) is not None:
            faults.append(f"{field}[{at}].name: {fault}")
    return faults


class _Files:
    """The inputs' names so far: two may not become one file, on no file system, nor one lie inside another."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def add(self, name: str) -> str | None:
        """What forbids this name beside the others."""
        key = name if name.isascii() else unicodedata.normalize("NFC", name)
        key = key.casefold()
        parents = [key[: slash.start()] for slash in _SLASH.finditer(key)]
        fault = None
        if (twin := self._files.get(key)) is not None:
            fault = f"{_quote(name)} is there twice" if twin == name else f"{_quote(name)} clashes with {_quote(twin)}"
        elif other := self._folders.get(key) or next((self._files[up] for up in parents if up in self._files), None):
            fault = f"{_quote(name)} and {_quote(other)} make one name both a file and a folder"
        self._files.setdefault(key, name)
        for parent in parents:
            self._folders.setdefault(parent, name)
        return fault


@lru_cache(_CACHED)
def _fault_of_uri(uri: str) -> str | None:
    size = _utf8_size(uri)
    if size is None:
        return "holds a lone surrogate, which is not a character"
    if size > MAX_URI_BYTES:
        return f"has {size:,} bytes; the most is {MAX_URI_BYTES:,}"
    if _CONTROL.search(uri):
        return "holds a control character"
    scheme = _SCHEME.match(uri)
    if scheme is None or scheme[1] not in _SCHEMES:
        hint = "s3://bucket/key, file:///path, http://… or https://…"
        return f"must start with a scheme: {hint}" if scheme is None else f"its scheme is none of {hint}"
    rest = uri[scheme.end() :]
    if scheme[1] == "s3":
        return _fault_of_s3(rest)
    if scheme[1] == "file":
        return _fault_of_file(rest)
    return _fault_of_http(uri)


def _fault_of_s3(rest: str) -> str | None:
    bucket, _, key = rest.partition("/")
    if "@" in bucket:
        return "holds credentials, which would be stored in plain; S3's come from the driver's environment"
    if not bucket:
        return "names no bucket"
    if not _BUCKET.fullmatch(bucket):
        return "names a bucket with characters that no bucket has"
    if not key or key.endswith("/"):
        return "names no object of the bucket"
    return None


def _fault_of_file(rest: str) -> str | None:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        return "must be absolute, with three slashes: file:///path"
    if not path or path.endswith("/"):
        return "names no file"
    return None


def _fault_of_http(uri: str) -> str | None:
    if any(character.isspace() for character in uri):
        return "holds white space; write it as %20"
    try:
        parts = urlsplit(uri)
        host, _port = parts.hostname, parts.port
    except ValueError:
        return "has a malformed host or port"
    if "@" in parts.netloc:
        return "holds credentials, which would be stored in plain"
    return None if host else "names no host"


@lru_cache(_CACHED)
def _fault_of_input_name(name: str) -> str | None:
    fault = fault_of_name(name)
    return _fault_of_reserved(name, BUNDLE_NAMES) if fault is None else f"{_quote(name)} {fault}"


@lru_cache(_CACHED)
def _fault_of_output(glob: str) -> str | None:
    glob = _undotted(glob)
    fault = _fault_of_path(glob)
    if fault is None and not _WILD.search(glob):
        fault = _fault_of_reserved(glob, BUNDLE_NAMES | STORE_NAMES)
    return fault


def _undotted(glob: str) -> str:
    """Without the ``./`` that people write before a path."""
    return _DOTTED.sub("", glob)


def _fault_of_path(path: str) -> str | None:
    """Of a relative path below the working directory."""
    size = _utf8_size(path)
    if size is None:
        return "holds a lone surrogate, which is not a character"
    if size > MAX_PATH_BYTES:
        return f"has {size:,} bytes; the most is {MAX_PATH_BYTES:,}"
    if _CONTROL.search(path):
        return "holds a control character"
    if path.startswith("/"):
        return f"{_quote(path)} is absolute; it must be relative to the working directory"
    for segment in path.split("/"):
        if segment in ("", ".", ".."):
            return f"{_quote(path)} has {segment or 'nothing'} between slashes or at an end"
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            return f"has a file name of more than {MAX_SEGMENT_BYTES} bytes"
    return None


def _fault_of_reserved(path: str, names: frozenset[str]) -> str | None:
    first = path.partition("/")[0].casefold()
    if first in names or first.startswith(BUNDLE_PREFIX):
        return f"{_quote(path)} is a name that rythmiq uses itself"
    return None


def _outputs(field: str, value: object) -> Sequence[str]:
    if not isinstance(value, (tuple, list)):
        return (_wrong(field, "a list of strings", value),)
    if not value:
        return _FINE
    if many := _too_many(field, value):
        return many
    faults: list[str] = []
    seen: dict[str, str] = {}
    for at, glob in enumerate(value):
        if not isinstance(glob, str):
            faults.append(_wrong(f"{field}[{at}]", "a string", glob))
            continue
        fault = _fault_of_output(glob) if glob else "is empty"
        # The case of a glob's letters may be meant: [A-Z]* is not [a-z]*.
        key = _undotted(glob)
        if not _WILD.search(key):
            key = key.casefold()
        if fault is None and key in seen:
            same = seen[key] == glob
            fault = f"{_quote(glob)} is there twice" if same else f"{_quote(glob)} and {_quote(seen[key])} clash"
        if fault is not None:
            faults.append(f"{field}[{at}]: {fault}")
        seen.setdefault(key, glob)
    return faults


@lru_cache(_CACHED)
def _fault_of_env_name(name: str) -> str | None:
    if not _ENV_NAME.fullmatch(name):
        return "must be letters, digits and _, and start with no digit"
    if name in RESERVED_ENV or name.upper().startswith(RESERVED_ENV_PREFIX):
        return "is a name that bash or rythmiq uses itself"
    return None


def _env(field: str, value: object) -> Sequence[str]:
    if not isinstance(value, (dict, Mapping)):  # an abstract class alone takes three times as long to ask
        return (_wrong(field, "an object of strings", value),)
    if not value:
        return _FINE
    if many := _too_many(field, value):
        return many
    faults: list[str] = []
    total = 0
    for name, text in value.items():
        if not isinstance(name, str):
            faults.append(_wrong(f"{field} name", "a string", name))
            continue
        if (fault := _fault_of_env_name(name)) is not None:
            faults.append(f"{field}.{_quote(name)}: {fault}")
            continue
        if not isinstance(text, str):
            faults.append(_wrong(f"{field}.{name}", "a string", text))
            continue
        size = _utf8_size(text)
        if size is None:
            faults.append(_surrogate(f"{field}.{name}"))
            continue
        if "\0" in text:
            faults.append(f"{field}.{name}: holds a NUL byte")
        size += len(name) + 1
        if size > MAX_ENV_ENTRY_BYTES:
            faults.append(f"{field}.{name}: has {size:,} bytes; the most is {MAX_ENV_ENTRY_BYTES:,}")
        total += size
    if total > MAX_ENV_BYTES:
        faults.append(f"{field}: has {total:,} bytes in all; the most is {MAX_ENV_BYTES:,}")
    return faults


def _secrets(field: str, value: object) -> Sequence[str]:
    if not isinstance(value, (tuple, list)):
        return (_wrong(field, "a list of names", value),)
    if not value:
        return _FINE
    if many := _too_many(field, value):
        return many
    faults: list[str] = []
    seen: set[str] = set()
    for at, name in enumerate(value):
        if not isinstance(name, str):
            faults.append(_wrong(f"{field}[{at}]", "a string", name))
        elif not _SECRET_NAME.fullmatch(name):
            # Not quoted: who mistakes the option for one that takes NAME=VALUE has put the secret itself here.
            faults.append(f"{field}[{at}]: must be a name of capital letters, digits and _; the value stays outside")
        elif name in RESERVED_ENV or name.upper().startswith(RESERVED_ENV_PREFIX):
            faults.append(f"{field}[{at}]: {_quote(name)} is a name that bash or rythmiq uses itself")
        elif name in seen:
            faults.append(f"{field}[{at}]: {_quote(name)} is there twice")
        else:
            seen.add(name)
    return faults


def _exit_codes(field: str, value: object) -> Sequence[str]:
    if value is None:
        return _FINE
    if not isinstance(value, (tuple, list)):
        return (_wrong(field, "a list of exit codes", value),)
    if many := _too_many(field, value):
        return many
    faults: list[str] = []
    for at, code in enumerate(value):
        faults.extend(_EXIT_CODE(f"{field}[{at}]", code))
    return faults


_EXIT_CODE: Final = _whole(1, 255)
_SPEC_CHECKS: Final[Mapping[str, _Check]] = {
    "command": _command,
    "engine": _word,
    "node_size": _word,
    "num_nodes": _whole(1, 100),
    "gpu": _flag,
    "inputs": _inputs,
    "outputs": _outputs,
    "env": _env,
    "secrets": _secrets,
    "timeout_s": _seconds(MAX_TIMEOUT_S, zero=False, optional=True),
    "retry_exit_codes": _exit_codes,
}
_QUEUE_CHECKS: Final[Mapping[str, _Check]] = {
    "queue": _label(1, 100, optional=False),
    "priority": _whole(-1000, 1000),
    "max_attempts": _whole(1, 100),
    "user_id": _label(0, 200, optional=True),
    "unique_key": _label(1, 500, optional=True),
    "delay_s": _seconds(MAX_DELAY_S, zero=True, optional=False),
}


class _Checks:
    """The checks of a model's fields."""

    def __init__(self, model: type[JobSpec] | type[NewJob], checks: Mapping[str, _Check]) -> None:
        defaults = {field.name: field.default for field in fields(model)}
        self._all = [(name, defaults[name], check) for name, check in checks.items()]
        self._always = [row for row in self._all if row[1] is MISSING]
        optional = [name for name in checks if defaults[name] is not MISSING]
        self._values = attrgetter(*optional)
        self._defaults = [defaults[name] for name in optional]

    def faults(self, of: JobSpec | NewJob) -> list[str]:
        found: list[str] = []
        # Most fields of most jobs are the very default, which needs no check. To be equal is not enough: True == 1.
        plain = all(map(is_, self._values(of), self._defaults))
        for name, default, test in self._always if plain else self._all:
            value = getattr(of, name)
            if value is not default and (faults := test(name, value)):
                found.extend(faults)
        return found


_OF_SPEC: Final = _Checks(JobSpec, _SPEC_CHECKS)
_OF_QUEUE: Final = _Checks(NewJob, _QUEUE_CHECKS)


def _faults_of_values(job: NewJob) -> list[str]:
    spec = job.spec
    faults = _OF_SPEC.faults(spec)
    faults.extend(_OF_QUEUE.faults(job))
    if spec.secrets and spec.env and isinstance(spec.secrets, (tuple, list)) and isinstance(spec.env, Mapping):
        names = (name for name in spec.secrets if isinstance(name, str) and name in spec.env)
        faults.extend(f"secrets: {_quote(name)} is in env too" for name in dict.fromkeys(names))
    return faults


def _too_many(field: str, value: Sequence[object] | Mapping[Any, object]) -> Sequence[str]:
    """Said alone: a million entries that nobody may give are not worth a look at each."""
    return (f"{field}: has {len(value):,} entries; the most is {MAX_ENTRIES:,}",) if len(value) > MAX_ENTRIES else _FINE


def _wrong(field: str, expected: str, value: object) -> str:
    return f"{field}: must be {expected}, not {_kind(value)}"


def _surrogate(field: str) -> str:
    return f"{field}: holds a lone surrogate, which is not a character"


def _kind(value: object) -> str:
    """What JSON calls the type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a decimal number" if isinstance(value, float) else "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, (tuple, list)):
        return "a list"
    return "an object" if isinstance(value, Mapping | Input) else type(value).__name__


def _utf8_size(text: str) -> int | None:
    """Bytes in UTF-8; None where a lone surrogate cannot be encoded."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


def _quote(text: object) -> str:
    shown = str(text)
    return repr(shown if len(shown) <= 80 else shown[:77] + "...")


@lru_cache(_CACHED)
def _nearest(word: str, known: tuple[str, ...]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"
