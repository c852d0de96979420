"""Opening a job's inputs for streaming: s3://, https://, http://, and file:// where there is a local store.

An input's URI comes from whoever enqueues, and is opened on a Ray node with that node's rights: a file must lie below
the local store, and no request goes to the link-local addresses where clouds keep their credentials.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, cast
from urllib.parse import unquote, urljoin, urlsplit

import requests
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from rythmiq_ray.errors import InputMissing, InputUnreadable

_TIMEOUT_S: Final = (5.0, 60.0)
_MAX_REDIRECTS: Final = 5
_MISSING_STATUS: Final = frozenset({400, 401, 403, 404, 405, 410})
_MISSING_CODES: Final = frozenset({"NoSuchKey", "NoSuchBucket", "AccessDenied", "403", "404", "InvalidBucketName"})


def open_input(uri: str, *, s3_client: Callable[[], Any], local_root: Path | None) -> AbstractContextManager[BinaryIO]:
    """Opens ``uri``; raises InputMissing where it is not there or may not be read, InputUnreadable where it broke."""
    scheme = urlsplit(uri).scheme
    if scheme == "s3":
        return _open_s3(uri, s3_client)
    if scheme in ("http", "https"):
        return _open_http(uri)
    if scheme == "file":
        return _open_file(uri, local_root)
    raise InputMissing(f"input {uri}: only s3, https, http and file can be read")


class _Reader:
    """A stream whose errors are ours."""

    def __init__(self, uri: str, read: Callable[[int], bytes], length: int | None) -> None:
        self._uri = uri
        self._read = read
        self.length = length
        """Bytes, where known beforehand; else the upload is chunked."""

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        try:
            return self._read(size)
        except Exception as error:  # noqa: BLE001 - each scheme has errors of its own
            raise InputUnreadable(f"input {self._uri}: reading broke off: {type(error).__name__}") from None


@contextmanager
def _open_s3(uri: str, s3_client: Callable[[], Any]) -> Iterator[BinaryIO]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        answer = s3_client().get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "error")
        kind = InputMissing if code in _MISSING_CODES else InputUnreadable
        raise kind(f"input {uri}: {code}") from None
    except NoCredentialsError:
        raise InputUnreadable(f"input {uri}: the Ray node has no AWS credentials") from None
    except (BotoCoreError, ValueError) as error:
        raise InputUnreadable(f"input {uri}: {type(error).__name__}") from None
    with closing(answer["Body"]) as body:
        yield cast(BinaryIO, _Reader(uri, lambda size: body.read(None if size < 0 else size), answer["ContentLength"]))


@contextmanager
def _open_http(uri: str) -> Iterator[BinaryIO]:
    shown = _without_query(uri)
    with requests.Session() as session:
        at = uri
        for _ in range(_MAX_REDIRECTS):
            _refuse_link_local(at, shown)
            try:
                answer = session.get(at, stream=True, timeout=_TIMEOUT_S, allow_redirects=False)
            except requests.RequestException as error:
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
            # A compressed answer has another length than what is read of it.
            encoded = answer.headers.get("Content-Encoding", "identity") != "identity"
            length = answer.headers.get("Content-Length")
            raw = answer.raw
            known = int(length) if length is not None and length.isdigit() and not encoded else None
            yield cast(
                BinaryIO, _Reader(shown, lambda size: raw.read(None if size < 0 else size, decode_content=True), known)
            )


@contextmanager
def _open_file(uri: str, local_root: Path | None) -> Iterator[BinaryIO]:
    path = Path(unquote(urlsplit(uri).path)).resolve()
    if local_root is None or not path.is_relative_to(local_root.resolve()):
        raise InputMissing(f"input {uri}: file:// inputs must lie below ARTIFACT_STORE_PATH of a local store")
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputMissing(f"input {uri}: {error.strerror}") from None
    with file:
        yield cast(BinaryIO, _Reader(uri, file.read, path.stat().st_size))


def _refuse_link_local(uri: str, shown: str) -> None:
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputMissing(f"input {shown}: redirected to something that is not http(s)")
    try:
        addresses = socket.getaddrinfo(parts.hostname, parts.port or 0, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        raise InputUnreadable(f"input {shown}: the host {parts.hostname} cannot be resolved") from None
    for *_, address in addresses:
        if ipaddress.ip_address(str(address[0]).partition("%")[0]).is_link_local:
            raise InputMissing(f"input {shown}: link-local addresses are not read")


def _without_query(uri: str) -> str:
    """A presigned URL's query is a credential and must not get into a message."""
    parts = urlsplit(uri)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{parts.path}"
