"""The types of a job's fields: pydantic checks them and writes them as JSON Schema.

No fault repeats a command, a URI or a value, because these may contain secrets. Faults quote names only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final, NotRequired
from urllib.parse import unquote, urlsplit
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Strict,
    WithJsonSchema,
    with_config,
)
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict

from rythmiq_ray.artifact_names import LOG_NAME, MANIFEST_NAME, fault_of_name
from rythmiq_ray.checks import Between, FaultList, Text, kind_of, quote
from rythmiq_ray.duration import PATTERN, seconds_of
from rythmiq_ray.model import Input

MAX_COMMAND_BYTES: Final = 256 * 1024
MAX_ENV_BYTES: Final = 256 * 1024
MAX_ENV_ENTRY_BYTES: Final = 128 * 1024 - 1
"""The longest ``NAME=value`` with which Linux starts a process (MAX_ARG_STRLEN)."""
MAX_ENTRIES: Final = 1000
"""The most entries of each list: inputs, outputs, env, secrets."""
MAX_URI_BYTES: Final = 8 * 1024

BUNDLE_NAMES: Final = frozenset({"run.sh", "job.json"})
"""Files of the bundle in the attempt's path, beside those whose names start with :data:`BUNDLE_PREFIX`."""
BUNDLE_PREFIX: Final = "rythmiq-"
STORE_NAMES: Final = frozenset({LOG_NAME, MANIFEST_NAME})
"""Files that rythmiq-ray stores beside the outputs."""
RESERVED_ENV: Final = frozenset(
    {
        *("BASH", "BASHOPTS", "BASH_ALIASES", "BASH_ARGC", "BASH_ARGV", "BASH_CMDS", "BASH_ENV", "BASH_LINENO"),
        *("BASH_SOURCE", "BASH_VERSINFO", "BASH_VERSION", "EUID", "IFS", "OLDPWD", "OPTERR", "OPTIND", "PPID", "PS4"),
        *("PWD", "SHELLOPTS", "SHLVL", "UID"),
    }
)
"""BASH_ENV would run a file before the command. The others are read-only in bash, or bash sets them when it starts, so
the command would never see the value."""
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
_STORED: Final = re.compile(r"(job|group):(?!//)")
"""The start of a URI of files that another job, or the members of a group, stored."""
_ENDING: Final = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,9}$")
"""A file name's extension."""
_CACHED: Final = 4096
_SURROGATE: Final = "holds a lone surrogate, which is not a character"


def default_name(uri: str) -> str:
    """The name of an input that is given none: the last segment of its URI's path; '' if there is none.

    Of an http URI the query is left out and ``%20`` becomes a space; S3 keys and local paths are literal. An input that
    may be several files has a folder, ending in ``/``: that of the URI, or ``./``, the working directory itself.
    """
    scheme, _, rest = uri.partition("://")
    if scheme in ("http", "https"):
        return unquote(re.split(r"[?#]", rest, maxsplit=1)[0]).rpartition("/")[2]
    if is_several(uri):
        return f"{uri.rstrip('/').rpartition('/')[2]}/" if uri.endswith("/") and not _STORED.match(uri) else "./"
    name = uri.rpartition("/")[2]
    return "./" if name in (".", "..") else name


def is_local(uri: str) -> bool:
    """Whether an input is a path on the enqueuing machine, that is, has no scheme."""
    return not _SCHEME.match(uri) and not _STORED.match(uri)


def is_stored(uri: str) -> bool:
    """Whether an input is files that other jobs stored: ``job:ID/GLOB`` or ``group:ID/GLOB``."""
    return _STORED.match(uri) is not None


def is_several(uri: str) -> bool:
    """Whether an input may be several files: an S3 folder or pattern, a pattern of a job's files, a group's files."""
    scheme, mark, rest = uri.partition("://")
    if mark:
        # `?` and `[` occur in ordinary keys, so they are wildcards only together with a `*`.
        return scheme == "s3" and (rest.endswith("/") or "*" in rest)
    if _STORED.match(uri):
        return uri.startswith("group:") or bool(_WILD.search(uri))
    return uri.endswith("/")


def input_of(text: str) -> dict[str, str]:
    """Parses ``URI[=NAME]`` into the fields of an input. Raises nothing; validation comes later.

    URIs may contain ``=`` as well: in queries, and in keys such as ``dt=1/x.csv`` or ``epoch=3-step=1000.ckpt``.
    """
    uri, mark, name = text.rpartition("=./")
    if mark:
        return {"uri": uri, "name": name or "./"}
    folder = text.endswith("/")
    uri, mark, name = text.removesuffix("/").rpartition("=")
    query = text.startswith(("http://", "https://")) and "?" in uri
    last = uri.rpartition("/")[2]
    part_of_key = not _ENDING.search(last) and ("=" in last or name[:1].isdigit())
    if uri.endswith("/") or "*" in last:
        part_of_key = False
    if not mark or "/" in name or query or part_of_key:
        return {"uri": text, "name": default_name(text)}
    return {"uri": uri, "name": f"{name}/" if folder else name}


class _Files:
    """The names of a job's inputs so far. No two may be one file on any file system, or one the folder of the other."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def add(self, name: str) -> str | None:
        """Adds a name; returns the fault if it clashes with another one."""
        key = name if name.isascii() else unicodedata.normalize("NFC", name)
        key = key.casefold()
        parents = [key[: slash.start()] for slash in _SLASH.finditer(key)]
        fault = None
        if (twin := self._files.get(key)) is not None:
            fault = f"{quote(name)} is there twice" if twin == name else f"{quote(name)} clashes with {quote(twin)}"
        elif other := self._folders.get(key) or next((self._files[up] for up in parents if up in self._files), None):
            fault = f"{quote(name)} and {quote(other)} make one name both a file and a folder"
        self._files.setdefault(key, name)
        for parent in parents:
            self._folders.setdefault(parent, name)
        return fault


def _fault_of_uri(uri: str) -> str | None:
    size = _utf8_size(uri)
    if size is None:
        return _SURROGATE
    if size > MAX_URI_BYTES:
        return f"has {size:,} bytes; the most is {MAX_URI_BYTES:,}"
    if _CONTROL.search(uri):
        return "holds a control character"
    if _STORED.match(uri):
        reference, _, glob = uri.partition(":")[2].partition("/")
        return None if reference and glob else "must be job:ID/GLOB or group:ID/GLOB"
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return None if uri.strip() else "is empty"
    if scheme[1] not in _SCHEMES:
        return "its scheme is none of s3://bucket/key, file:///path, http://… or https://…"
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
        return "names a bucket with characters that bucket names do not allow"
    if not key.strip("/"):
        return "names no object of the bucket"
    if any(part in (".", "..") for part in key.split("/")):
        return "has . or .. in its key"
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


def fault_of_notify(url: str) -> str | None:
    scheme, _, _ = url.partition("://")
    return _fault_of_http(url) if scheme in ("http", "https") else "must be an http or https URL"


def _fault_of_input_name(name: str) -> str | None:
    if not name:
        return "is missing, and the URI ends in no file name"
    if name == "./":
        return None
    path = name.removesuffix("/")
    fault = fault_of_name(path)
    return _fault_of_reserved(path, BUNDLE_NAMES) if fault is None else f"{quote(name)} {fault}"


def _fault_of_output(glob: str) -> str | None:
    """Matching files are stored under their own names, so the rules for names apply to a glob too."""
    path = _undotted(glob)
    fault = fault_of_name(path)
    if fault is not None:
        return f"{quote(path)} {fault}"
    return None if _WILD.search(path) else _fault_of_reserved(path, BUNDLE_NAMES | STORE_NAMES)


def _undotted(glob: str) -> str:
    """Without the ``./`` that people write before a path, and the ``/`` behind a folder."""
    return _DOTTED.sub("", glob).removesuffix("/")


def _fault_of_reserved(path: str, names: frozenset[str]) -> str | None:
    first = path.partition("/")[0].casefold()
    if first in names or first.startswith(BUNDLE_PREFIX):
        return f"{quote(path)} is a name that rythmiq uses itself"
    return None


def _fault_of_env_name(name: str) -> str | None:
    if not _ENV_NAME.fullmatch(name):
        return "must be letters, digits and _, and start with no digit"
    if name in RESERVED_ENV or name.upper().startswith(RESERVED_ENV_PREFIX):
        return "is a name that bash or rythmiq uses itself"
    return None


# The types. A function that checks a whole value raises ValueError, or FaultList with the faults of its parts.


def _refusing(fault_of: Callable[[str], str | None], *, cached: bool = True) -> AfterValidator:
    """A validator that refuses what ``fault_of`` finds. Valid texts are cached: jobs of one file share most URIs, names
    and globs."""

    def refuse(text: str) -> str:
        if (fault := fault_of(text)) is not None:
            raise ValueError(fault)
        return text

    return AfterValidator(lru_cache(_CACHED)(refuse) if cached else refuse)


def any_case(*words: str) -> str:
    """A case-insensitive pattern for words; patterns of JSON Schema have no flags."""
    return "|".join("".join(f"[{c.upper()}{c.lower()}]" if c.isalpha() else f"[{c}]" for c in word) for word in words)


_MAX_NAME: Final = 900
_MAX_SEGMENT: Final = 255
"""Both in bytes, see :mod:`rythmiq_ray.artifact_names`; a schema can count characters only."""
_CONTROLS: Final = r"[\x00-\x1f\x7f-\x9f]"
_BAD_NAME: Final = rf"{_CONTROLS}|^/|\\|(^|/)\.{{0,2}}(/|$)|(^|/)\s|\s(/|$)|[^/]{{{_MAX_SEGMENT + 1}}}"
_OWN_NAMES: Final = rf"^({any_case(*sorted(BUNDLE_NAMES))})(/|$)|^{any_case(BUNDLE_PREFIX)}"
NAMELESS: Final = r"^(s3|file)://|^https?://[^?#]*[^/?#]([?#]|$)"
"""Matches URIs that end in a file name, as far as a pattern can tell."""
_BAD_GLOB: Final = (
    rf"{_CONTROLS}|\\|^(\./)*(/|$)|//|(^|/)\.\.(/|$)|(^|/)\.$|([^/]{{2,}}|[^./])/\./|(^|/)\s|\s(/|$)"
    rf"|[^/]{{{_MAX_SEGMENT + 1}}}"
)
_OWN_GLOBS: Final = (
    rf"^(\./)*({any_case(*sorted(BUNDLE_NAMES | STORE_NAMES))})(/[^*?\[]*)?$"
    rf"|^(\./)*{any_case(BUNDLE_PREFIX)}[^*?\[]*$"
)


def _no(pattern: str, **more: Any) -> WithJsonSchema:
    """The schema of text that does not contain the pattern; JSON Schema searches for patterns anywhere in the text."""
    return WithJsonSchema({"type": "string", "not": {"pattern": pattern}, **more})


def _fault_of_command(command: str) -> str | None:
    if not command or command.isspace():
        return "is missing or blank"
    if "\0" in command:
        return "holds a NUL byte"
    size = _utf8_size(command)
    if size is None:
        return _SURROGATE
    if size > MAX_COMMAND_BYTES:
        return f"has {size:,} bytes; the most is {MAX_COMMAND_BYTES:,}: send a script as an input"
    return None


def _list_of(what: str) -> BeforeValidator:
    """A validator for lists and tuples. Pydantic itself also accepts sets, which have no order, and generators."""

    def listed(value: object) -> object:
        if type(value) is tuple:
            return value
        if isinstance(value, tuple | list):
            return tuple(value)
        raise ValueError(f"must be a list of {what}, not {kind_of(value)}")

    return BeforeValidator(listed)


def _mapped(value: object) -> object:
    if type(value) is dict:  # the check for Mapping below is slow
        return value
    if isinstance(value, Mapping):
        return dict(value)
    raise ValueError(f"must be an object of strings, not {kind_of(value)}")


@dataclass(frozen=True)
class OneLine:
    """Text of one line without control characters, ``low`` to ``high`` characters long."""

    low: int
    high: int
    but: str | None = None
    """What means something else where such a text is named."""

    def check(self, text: str) -> str:
        if not self.low <= len(text) <= self.high:
            raise ValueError(f"must have {f'{self.low} to' if self.low else 'at most'} {self.high} characters")
        if text == self.but:
            raise ValueError(f"must not be {text!r}")
        if _CONTROL.search(text):
            raise ValueError("holds a control character")
        if _utf8_size(text) is None:
            raise ValueError(_SURROGATE)
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        refused = _CONTROLS if self.but is None else f"{_CONTROLS}|^{re.escape(self.but)}$"
        return {**handler(schema), "minLength": self.low, "maxLength": self.high, "not": {"pattern": refused}}


@dataclass(frozen=True)
class Duration:
    """A duration of at most ``most_s`` seconds, as a number or text with a unit. Validation turns it into seconds."""

    most_s: float
    zero: bool = False

    def check(self, value: object) -> float:
        seconds = seconds_of(value)
        if 0 < seconds <= self.most_s or (self.zero and seconds == 0):
            return seconds
        raise ValueError(f"must be {'from' if self.zero else 'more than'} 0 to {self.most_s:,} seconds")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        least = {"minimum": 0} if self.zero else {"exclusiveMinimum": 0}
        number = {"type": "number", **least, "maximum": self.most_s}
        return {"anyOf": [number, {"type": "string", "pattern": PATTERN}]}


def _fault_of_secret_name(name: str) -> str | None:
    if not _SECRET_NAME.fullmatch(name):
        # Not quoted: whoever takes the option for one with NAME=VALUE has put the secret itself here.
        return "must be a name of capital letters, digits and _, without the value"
    fault = _fault_of_env_name(name)
    return None if fault is None else f"{quote(name)} {fault}"


@with_config(ConfigDict(extra="forbid", title="Input"))
class InputFields(TypedDict):
    """A file that is put into the working directory before the command starts."""

    uri: Annotated[
        Text,
        _refusing(_fault_of_uri),
        WithJsonSchema(
            {
                "type": "string",
                "description": "s3://bucket/key, file:///path, http://…, https://…, job:ID/GLOB, group:ID/GLOB, or a"
                " path of the machine that enqueues.",
                "pattern": r"^(s3://[A-Za-z0-9][A-Za-z0-9._-]{0,254}/|file://(localhost)?/|https?://[^\s/?#@]"
                r"|(job|group):(?!//)[^/]+/.|(?![A-Za-z][A-Za-z0-9+.-]*://|(job|group):).*\S)",
                "not": {"pattern": rf"{_CONTROLS}|^file://.*/$|^s3://[^/]*/+$|^s3://.*/\.{{1,2}}(/|$)"},
                "maxLength": MAX_URI_BYTES,
            }
        ),
    ]
    name: NotRequired[
        Annotated[
            Text,
            _refusing(_fault_of_input_name),
            WithJsonSchema(
                {
                    "type": ["string", "null"],
                    "description": "Path relative to the working directory; left out, the last part of the URI's path.",
                    "not": {"type": "string", "pattern": rf"{_BAD_NAME}|{_OWN_NAMES}"},
                    "maxLength": _MAX_NAME,
                }
            ),
        ]
    ]


def _named(item: object) -> object:
    """The fields of an input, with its default name if it has none."""
    if isinstance(item, Input):
        return _placed(item.uri, item.name)
    if not isinstance(item, Mapping):
        raise ValueError(f"must be an object with uri and name, not {kind_of(item)}")
    uri, name = item.get("uri"), item.get("name")
    if name is None:
        return {**item, "name": default_name(uri) if isinstance(uri, str) else "x"}  # The missing URI is the fault.
    return {**item, **_placed(uri, name)} if isinstance(uri, str) and isinstance(name, str) else dict(item)


def _placed(uri: object, name: object) -> dict[str, object]:
    """Completes the name: one file in a folder keeps its own name there, and several files need a folder."""
    if isinstance(uri, str) and isinstance(name, str) and name:
        if is_several(uri):
            name = name if name.endswith("/") else f"{name}/"
        elif name.endswith("/") and not is_local(uri):
            name = f"{name.removeprefix('./')}{default_name(uri)}"
    return {"uri": uri, "name": name}


def _inputs_apart(inputs: tuple[InputFields, ...]) -> tuple[InputFields, ...]:
    if len(inputs) < 2:
        return inputs
    files = _Files()
    names = ((at, item["name"]) for at, item in enumerate(inputs) if not item["name"].endswith("/"))
    _refuse([(f"[{at}].name", fault) for at, name in names if (fault := files.add(name))])
    return inputs


def _outputs_apart(globs: tuple[str, ...]) -> tuple[str, ...]:
    keys = tuple(map(_file_key, globs))
    if len(set(keys)) == len(keys):
        return globs
    faults = []
    for at, (glob, key) in enumerate(zip(globs, keys, strict=True)):
        twin = globs[keys.index(key)]
        if key in keys[:at]:
            said = "is there twice" if twin == glob else f"and {quote(twin)} clash"
            faults.append((f"[{at}]", f"{quote(glob)} {said}"))
    raise FaultList(faults)


@lru_cache(_CACHED)
def _file_key(glob: str) -> str:
    """A key that is equal for names of the same file. The case of a glob stays: [A-Z]* differs from [a-z]*."""
    path = _undotted(glob)
    return path if _WILD.search(path) else path.casefold()


def _secrets_apart(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        twice = [at for at, name in enumerate(names) if name in names[:at]]
        _refuse([(f"[{at}]", f"{quote(names[at])} is there twice") for at in twice])
    return names


def _env_fits(env: dict[str, str]) -> dict[str, str]:
    faults: list[tuple[str, str]] = []
    total = 0
    for name, text in env.items():
        size = _utf8_size(text)
        if size is None or "\0" in text:
            faults.append((f".{name}", _SURROGATE if size is None else "holds a NUL byte"))
            continue
        size += len(name) + 1
        if size > MAX_ENV_ENTRY_BYTES:
            faults.append((f".{name}", f"has {size:,} bytes; the most is {MAX_ENV_ENTRY_BYTES:,}"))
        total += size
    if total > MAX_ENV_BYTES:
        faults.append(("", f"has {total:,} bytes in all; the most is {MAX_ENV_BYTES:,}"))
    _refuse(faults)
    return env


def _refuse(faults: list[tuple[str, str]]) -> None:
    if faults:
        raise FaultList(faults)


def _utf8_size(text: str) -> int | None:
    """The size in UTF-8, in bytes; None if a lone surrogate cannot be encoded."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


_ENV_NAMES: Final = {
    "pattern": "^[A-Za-z_][A-Za-z0-9_]{0,254}$",
    "not": {"pattern": rf"\n|^({'|'.join(sorted(RESERVED_ENV))})$|^[Rr][Yy][Tt][Hh][Mm][Ii][Qq]_"},
}

Command = Annotated[
    Text,
    _refusing(_fault_of_command, cached=False),
    _no(r"\x00|^\s*$", maxLength=MAX_COMMAND_BYTES),
]
Flag = Annotated[bool, Strict()]
Integer = Annotated[int, Strict()]
Entries = Field(max_length=MAX_ENTRIES)
Inputs = Annotated[
    tuple[Annotated[InputFields, BeforeValidator(_named)], ...],
    Entries,
    _list_of("objects with uri and name"),
    AfterValidator(_inputs_apart),
]
Outputs = Annotated[
    tuple[
        Annotated[
            Text,
            _refusing(_fault_of_output),
            _no(rf"{_BAD_GLOB}|{_OWN_GLOBS}", maxLength=_MAX_NAME),
        ],
        ...,
    ],
    Entries,
    _list_of("strings"),
    AfterValidator(_outputs_apart),
]
Env = Annotated[
    dict[Annotated[Text, _refusing(_fault_of_env_name)], Text],
    Entries,
    BeforeValidator(_mapped),
    AfterValidator(_env_fits),
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": _ENV_NAMES,
            "additionalProperties": {"type": "string", "not": {"pattern": r"\x00"}, "maxLength": MAX_ENV_ENTRY_BYTES},
            "maxProperties": MAX_ENTRIES,
        }
    ),
]
Secrets = Annotated[
    tuple[
        Annotated[
            Text,
            _refusing(_fault_of_secret_name),
            WithJsonSchema({"type": "string", **_ENV_NAMES, "pattern": "^[A-Z][A-Z0-9_]{0,254}$"}),
        ],
        ...,
    ],
    Entries,
    _list_of("names"),
    AfterValidator(_secrets_apart),
    Field(json_schema_extra={"uniqueItems": True}),
]
ExitCodes = Annotated[tuple[Annotated[Integer, Between(1, 255)], ...], Entries, _list_of("exit codes")]
Name = Annotated[Text, OneLine(1, 200)]
Labels = Annotated[
    dict[Annotated[Text, OneLine(1, 63)], Annotated[Text, OneLine(0, 200)]],
    Field(max_length=64),
    BeforeValidator(_mapped),
]
Notify = Annotated[Text, OneLine(1, 2000), _refusing(fault_of_notify)]
_TRACEPARENT: Final = r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
Traceparent = Annotated[
    Text,
    _refusing(
        lambda text: None if re.fullmatch(_TRACEPARENT, text) else "must be one of W3C Trace Context, version 00"
    ),
    WithJsonSchema({"type": "string", "pattern": f"^{_TRACEPARENT}$"}),
]
Reference = Annotated[
    Text, OneLine(1, 200), BeforeValidator(lambda value: str(value) if isinstance(value, UUID) else value)
]
"""An id or a name."""
References = Annotated[tuple[Reference, ...], Entries, _list_of("ids or names")]
