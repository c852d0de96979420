"""Opens a job's inputs for streaming: s3://, https://, http://, and file:// with a local store.

The enqueuer chooses an input's URI, and a Ray node opens it with the node's rights. So a file must be below the local
store, and no request is sent to the addresses at which clouds serve credentials.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, cast
from urllib.parse import unquote, urljoin, urlsplit

import requests
from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from rythmiq_ray.errors import InputMissing, InputUnreadable, StoreUnavailable
from rythmiq_ray.job_fields import is_stored

_TIMEOUT_S: Final = (5.0, 60.0)
_MAX_REDIRECTS: Final = 5
_AS_IT_IS: Final = {"Accept-Encoding": "identity"}
_MISSING_STATUS: Final = frozenset({400, 401, 403, 404, 405, 410})
_MISSING_CODES: Final = frozenset(
    {
        *("NoSuchKey", "NoSuchBucket", "NoSuchVersion", "InvalidBucketName", "KeyTooLongError", "404"),
        *("AccessDenied", "AllAccessDisabled", "InvalidObjectState", "MethodNotAllowed", "403"),
    }
)
"""S3's error codes that concern one object. Any other one concerns the keys or the service, and so all inputs."""
MAX_FILES: Final = 10_000
"""The most files of one job, all its inputs together."""
WILDCARD: Final = re.compile(r"[*?\[]")
_GLOB_PARTS: Final = re.compile(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])")
_GLOBS: Final = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
_METADATA: Final = tuple(
    ipaddress.ip_network(network) for network in ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128")
)
"""Link-local addresses, and the one that AWS uses in IPv6."""


def open_input(uri: str, *, s3_client: Callable[[], Any], local_root: Path | None) -> AbstractContextManager[BinaryIO]:
    """Opens ``uri``.

    Raises InputMissing if it does not exist or may not be read, InputUnreadable if reading fails, and StoreUnavailable
    if S3 cannot be reached or refuses our keys. ``local_root`` is the folder of the local store.
    """
    scheme = uri.partition("://")[0].lower()
    if scheme == "s3":
        return _open_s3(uri, s3_client)
    if scheme in ("http", "https"):
        return _open_http(uri)
    if scheme == "file":
        return _open_file(uri, local_root)
    if is_stored(uri):
        raise InputMissing(f"input {uri}: no stored file of it matches")
    raise InputMissing(f"input {uri}: only s3, https, http and file can be read")


def list_inputs(uri: str, *, s3_client: Callable[[], Any]) -> list[tuple[str, str]]:
    """The objects of an ``s3://`` folder or pattern, as (URI, name below the part without wildcards).

    ``*`` and ``?`` stay in a folder, ``**`` crosses folders. Raises as :func:`open_input`, and InputMissing if there
    are none or more than :data:`MAX_FILES`.
    """
    if not uri.startswith("s3://"):
        raise InputMissing(f"input {uri}: no stored file of it matches")
    bucket, _, key = uri[len("s3://") :].partition("/")
    wild = WILDCARD.search(key) if "*" in key else None
    prefix = key[: wild.start()] if wild else key
    pattern = re.compile(regex_of(key)) if wild else None
    found: list[str] = []
    with _s3_errors(uri):
        for page in s3_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", ()):
                name = entry["Key"]
                if not name.endswith("/") and (pattern is None or pattern.fullmatch(name)):
                    found.append(name)
            if len(found) > MAX_FILES:
                raise InputMissing(f"input {uri}: more than {MAX_FILES:,} files, which is the most for one job")
    if not found:
        raise InputMissing(f"input {uri}: it does not exist")
    start = prefix.rfind("/") + 1
    return [(f"s3://{bucket}/{name}", name[start:]) for name in found]


def regex_of(glob: str) -> str:
    """A glob of names as a regular expression, for Python and for Postgres alike."""
    out = []
    for part in _GLOB_PARTS.split(glob):
        if part in _GLOBS:
            out.append(_GLOBS[part])
        elif part.startswith("[") and len(part) > 2:
            inner = part[1:-1].replace("\\", "\\\\")
            out.append(f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]")
        else:
            out.append(re.sub(r"[^A-Za-z0-9_/ -]", lambda found: f"\\{found[0]}", part))
    return "".join(out)


def path_below(root: Path, uri: str) -> Path | None:
    """The path of a ``file://`` URI with every link followed, if it is below ``root`` then; else None."""
    try:
        parts = urlsplit(uri)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            return None
        path = Path(unquote(parts.path, errors="strict")).resolve()
    except (OSError, RuntimeError, ValueError):  # a NUL, bytes that are no UTF-8, a ring of links
        return None
    return path if path.is_relative_to(root.resolve()) else None


class _Reader:
    """A stream that raises our errors."""

    def __init__(self, uri: str, read: Callable[[int], bytes], length: int | None) -> None:
        self._uri = uri
        self._read = read
        self.length = length
        """The size in bytes, if known; None: the upload is chunked."""

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        try:
            return self._read(size)
        except Exception as error:  # noqa: BLE001 - each scheme has errors of its own
            raise InputUnreadable(f"input {self._uri}: reading failed before its end: {type(error).__name__}") from None


@contextmanager
def _open_s3(uri: str, s3_client: Callable[[], Any]) -> Iterator[BinaryIO]:
    bucket, _, key = uri[len("s3://") :].partition("/")
    with _s3_errors(uri):
        answer = s3_client().get_object(Bucket=bucket, Key=key)
    with closing(answer["Body"]) as body:
        yield cast(BinaryIO, _Reader(uri, lambda size: body.read(None if size < 0 else size), answer["ContentLength"]))


@contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    if "@" in uri[len("s3://") :].partition("/")[0]:
        raise InputMissing("an s3:// input holds credentials: take them out, the Ray node's own are used")
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "error"))
        if code in _MISSING_CODES:
            raise InputMissing(f"input {uri}: {code}") from None
        raise StoreUnavailable(f"input {uri}: S3 answers {code}: check AWS_* and AWS_ENDPOINT_URL_S3") from None
    except ParamValidationError:
        raise InputMissing(f"input {uri}: it is not a valid S3 name") from None
    except (BotoCoreError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise StoreUnavailable(f"input {uri}: {reason}: check AWS_* and AWS_ENDPOINT_URL_S3") from None


@contextmanager
def _open_http(uri: str) -> Iterator[BinaryIO]:
    shown = _without_query(uri)
    with requests.Session() as session:
        session.mount("http://", _GuardedAdapter())
        session.mount("https://", _GuardedAdapter())
        at = uri
        for _ in range(_MAX_REDIRECTS + 1):
            _refuse_target(at, shown)
            try:
                answer = session.get(at, headers=_AS_IT_IS, stream=True, timeout=_TIMEOUT_S, allow_redirects=False)
            except (requests.RequestException, ValueError) as error:
                raise InputUnreadable(f"input {shown}: {type(error).__name__}") from None
            if not answer.is_redirect:
                break
            at = urljoin(at, answer.headers["Location"])
            answer.close()
        else:
            raise InputMissing(f"input {shown}: more than {_MAX_REDIRECTS} redirects")
        with answer:
            if answer.status_code != requests.codes.ok:
                kind = InputMissing if answer.status_code in _MISSING_STATUS else InputUnreadable
                raise kind(f"input {shown}: HTTP status {answer.status_code}")
            # The bytes as sent, without decoding a Content-Encoding: they match the Content-Length, and a file named
            # .gz stays compressed.
            length = answer.headers.get("Content-Length", "")
            known = int(length) if length.isascii() and length.isdigit() else None
            raw = answer.raw
            yield cast(
                BinaryIO, _Reader(shown, lambda size: raw.read(None if size < 0 else size, decode_content=False), known)
            )


@contextmanager
def _open_file(uri: str, local_root: Path | None) -> Iterator[BinaryIO]:
    path = None if local_root is None else path_below(local_root, uri)
    if path is None:
        raise InputMissing(f"input {uri}: file:// inputs must lie below ARTIFACT_STORE_PATH of a local store")
    if path.exists() and not path.is_file():
        raise InputMissing(f"input {uri}: is not a file")  # To open a pipe would wait for its writer.
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputMissing(f"input {uri}: {error.strerror}") from None
    with file:
        yield cast(BinaryIO, _Reader(uri, file.read, path.stat().st_size))


def _is_metadata(address: str) -> bool:
    """Whether an IP address is one at which a cloud serves credentials; False for a name."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in _METADATA)


def _refuse_target(uri: str, shown: str) -> None:
    """Refuses what is known before connecting or behind a proxy; :class:`_GuardedAdapter` checks the rest."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputMissing(f"input {shown}: redirected to something that is not http(s)")
    if _is_metadata(parts.hostname):
        raise _refusal()


def _refusal() -> InputMissing:
    return InputMissing("an input's host is a link-local or metadata address: those are not read")


def _checked(connected: socket.socket) -> socket.socket:
    """Checks the address of the connection itself, because a name may resolve to another address each time."""
    if _is_metadata(str(connected.getpeername()[0])):
        connected.close()
        raise _refusal()
    return connected


class _GuardedConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn())


class _GuardedTlsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn())


class _GuardedPool(HTTPConnectionPool):
    ConnectionCls = _GuardedConnection


class _GuardedTlsPool(HTTPSConnectionPool):
    ConnectionCls = _GuardedTlsConnection


class _GuardedAdapter(HTTPAdapter):
    """Sends nothing to a metadata address, whatever name resolves to it."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _GuardedPool, "https": _GuardedTlsPool}


def _without_query(uri: str) -> str:
    """The URI without its query: that of a presigned URL is a credential, which no message may contain."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
