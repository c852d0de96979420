"""Artifacts in a bucket: a single PUT up to a part's size, multipart above it, aborted when anything goes wrong.

What is streamed goes through ``smart_open.s3.open``, which takes bucket and key as they are; ``smart_open.open`` would
read ``?versionId=`` in a name as a version.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import cache
from typing import Any, BinaryIO, Final, cast
from uuid import UUID, uuid4

import boto3
import smart_open.s3
from botocore.config import Config as BotoConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    PartialCredentialsError,
    ProfileNotFound,
)
from urllib3.exceptions import HTTPError

from rythmiq_ray.artifacts.manifest import manifest_bytes
from rythmiq_ray.artifacts.parts import BackgroundParts, PartBuffer
from rythmiq_ray.artifacts.streaming import Meter, budget, content_type, source_errors_as_they_were
from rythmiq_ray.config import ArtifactsConfig
from rythmiq_ray.errors import NotFound, StoreRefused, StoreUnavailable
from rythmiq_ray.inputs import open_input
from rythmiq_ray.model import Artifact
from rythmiq_ray.names import MANIFEST_NAME, key_of, refuse_unsafe

_CONNECT_TIMEOUT_S: Final = 5
_READ_TIMEOUT_S: Final = 60
_TRIES: Final = 4
_CONNECTIONS: Final = 128
"""Of the one pool of a process, which all its jobs share; more are opened when needed and closed after use."""
_MAX_PARTS: Final = 10_000
_CHECKSUMS: Final = "AWS_REQUEST_CHECKSUM_CALCULATION"
"""boto3's own variable, for a bucket that wants a checksum whatever the signature covers."""
_GONE_CODES: Final = frozenset({"NoSuchKey", "NoSuchBucket", "404", "NotFound"})

# botocore retries by itself; smart-open's own retries would sleep a minute when the endpoint cannot be reached.
smart_open.s3.RETRY.exceptions = []
smart_open.s3.RETRY.client_error_codes = []


@cache
def shared_client() -> Any:
    """The process's one S3 client, which is thread-safe. Credentials and endpoint are boto3's business (``AWS_*``)."""
    session = boto3.session.Session()
    config = BotoConfig(
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": _TRIES},
        max_pool_connections=_CONNECTIONS,
    )
    client = session.client("s3", config=config)
    if client.meta.endpoint_url.startswith("http://") and _CHECKSUMS not in os.environ:
        # The signature covers the body's SHA-256 there, so that a CRC beside it would guard nothing more.
        config = config.merge(BotoConfig(request_checksum_calculation="when_required"))
        client = session.client("s3", config=config)
    return client


class S3ArtifactStore:
    """An :class:`~rythmiq_ray.artifacts.ArtifactStore` in a bucket."""

    def __init__(self, config: ArtifactsConfig, bucket: str, client: Callable[[], Any] = shared_client) -> None:
        self._bucket = bucket
        self._prefix = config.prefix
        self._part_bytes = config.part_size_bytes
        self._client = client

    def check(self) -> None:
        place = {"Bucket": self._bucket, "Key": "/".join(filter(None, (self._prefix, f".probe-{uuid4().hex}")))}
        with self._translated():
            self._client().put_object(**place, Body=b"")
            self._client().delete_object(**place)

    def uri(self, job_id: UUID, attempt: int, name: str) -> str:
        return self._uri(key_of(self._prefix, job_id, attempt, name))

    def write(
        self,
        job_id: UUID,
        attempt: int,
        name: str,
        chunks: Iterable[bytes],
        *,
        expected_bytes: int | None = None,
        expected_sha256: str | None = None,
    ) -> Artifact:
        refuse_unsafe(name)
        key = key_of(self._prefix, job_id, attempt, name)
        kind = content_type(name)
        meter = Meter(name, expected_bytes, expected_sha256)
        passing = meter.passing(chunks)
        part_bytes = max(self._part_bytes, -(-(expected_bytes or 0) // _MAX_PARTS))
        small = expected_bytes is not None and expected_bytes <= part_bytes
        with budget.hold(expected_bytes or 0 if small else part_bytes), source_errors_as_they_were():
            # Of a size that is not known, as much as a part may hold is read before it is clear which way to go.
            head = io.BytesIO()
            whole = small or expected_bytes is None
            while whole and (chunk := next(passing, None)) is not None:
                head.write(chunk)
                whole = head.tell() <= part_bytes
            if whole:
                self._put(key, head.getvalue(), kind)
            else:
                self._put_parts(key, head, passing, kind, part_bytes)
        return Artifact(name=name, uri=self._uri(key), bytes=meter.bytes, sha256=meter.sha256, content_type=kind)

    def write_manifest(self, job_id: UUID, attempt: int, manifest: Mapping[str, Any]) -> str:
        key = key_of(self._prefix, job_id, attempt, MANIFEST_NAME)
        self._put(key, manifest_bytes(manifest), content_type(MANIFEST_NAME))
        return self._uri(key)

    @contextmanager
    def open(self, uri: str) -> Iterator[BinaryIO]:
        bucket, key = _place(uri)
        with self._translated(bucket):
            try:
                body = self._client().get_object(Bucket=bucket, Key=key)["Body"]
            except ClientError as error:
                if _code(error) in _GONE_CODES:
                    raise NotFound(f"There is no {uri}") from None
                raise
        with closing(body):
            yield cast(BinaryIO, _Reader(body, lambda: self._translated(bucket)))

    def open_input(self, uri: str) -> AbstractContextManager[BinaryIO]:
        return open_input(uri, s3_client=self._client, local_root=None)

    def delete(self, uri: str) -> None:
        bucket, key = _place(uri)
        with self._translated(bucket):
            self._client().delete_object(Bucket=bucket, Key=key)

    def discard_partial(self, job_id: UUID, attempt: int) -> None:
        prefix = key_of(self._prefix, job_id, attempt, "")
        with self._translated():
            client = self._client()
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self._bucket, Prefix=prefix)
            for upload in (upload for page in pages for upload in page.get("Uploads", ())):
                with suppress(client.exceptions.NoSuchUpload):
                    client.abort_multipart_upload(Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def list_files(self, job_id: UUID) -> Iterator[str]:
        prefix = "/".join(filter(None, (self._prefix, f"{job_id}/")))
        with self._translated():
            pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return iter([self._uri(key) for key in keys])

    def _uri(self, key: str) -> str:
        return f"s3://{self._bucket}/{key}"

    def _put(self, key: str, content: bytes, kind: str) -> None:
        # As bytes, not as a file: botocore would ask the server first whether it wants that (Expect: 100-continue).
        with self._translated():
            self._client().put_object(Bucket=self._bucket, Key=key, Body=content, ContentType=kind)

    def _put_parts(self, key: str, head: io.BytesIO, rest: Iterator[bytes], kind: str, part_bytes: int) -> None:
        with self._translated(), BackgroundParts(self._client()) as client:
            writer = smart_open.s3.open(
                self._bucket,
                key,
                "wb",
                min_part_size=part_bytes,
                writebuffer=cast(io.BytesIO, PartBuffer()),
                client=client,
                client_kwargs={"S3.Client.create_multipart_upload": {"ContentType": kind}},
            )
            try:
                with head.getbuffer() as view:
                    writer.write(view)
                head.close()
                for chunk in rest:
                    writer.write(chunk)
                writer.close()
            except BaseException:
                _abort(writer)
                raise

    @contextmanager
    def _translated(self, bucket: str | None = None) -> Iterator[None]:
        try:
            yield
        # ValueError is what smart-open makes of a refusal; urllib3's errors come from a body that breaks off.
        except (BotoCoreError, ClientError, HTTPError, ValueError, OSError) as error:
            raise (StoreRefused if _refused(error) else StoreUnavailable)(
                f"The artifact store s3://{bucket or self._bucket}{self._where()} cannot be used: {_reason(error)}: "
                "check the bucket, its permissions, AWS_* and AWS_ENDPOINT_URL_S3"
            ) from None

    def _where(self) -> str:
        try:
            return f" at {self._client().meta.endpoint_url.rpartition('@')[2]}"
        except (BotoCoreError, ValueError):
            return ""  # The fault is in AWS_* itself: there is no client.


class _Reader:
    """An object's body whose errors are ours."""

    def __init__(self, body: Any, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._body = body
        self._translated = translated

    def read(self, size: int = -1) -> bytes:
        with self._translated():
            return cast(bytes, self._body.read(None if size < 0 else size))


def _abort(writer: Any) -> None:
    """Ends a multipart upload so that nothing is left of it; the error that led here is the one to tell of."""
    try:
        writer.terminate()
    except (BotoCoreError, ClientError):
        # The writer still counts as open, and would complete the upload with the parts so far when it is collected
        # as garbage: half an object would appear.
        writer._upload_id = None


def _place(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket or not key:
        raise NotFound(f"{uri} names nothing in S3")
    return bucket, key


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "error"))


def _refused(error: Exception) -> bool:
    """Whether the service understood, and said no; not where it has no time, or where a clock is wrong for now."""
    cause = error.__cause__ if isinstance(error.__cause__, ClientError) else error
    if isinstance(cause, (NoCredentialsError, PartialCredentialsError, ProfileNotFound, NoRegionError)):
        return True
    status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(cause, ClientError) else 0
    return status in (301, 400, 401, 403, 404)


def _reason(error: Exception) -> str:
    """The service's code and sentence, or botocore's; neither holds a secret."""
    cause = error.__cause__ if isinstance(error.__cause__, ClientError) else error
    if isinstance(cause, ClientError):
        message = str(cause.response.get("Error", {}).get("Message", "")).rstrip(".")
        return f"{_code(cause)} {message}".strip()
    return " ".join(str(cause).split()) or type(cause).__name__
