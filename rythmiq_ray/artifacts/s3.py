"""Artifacts in an S3 bucket: a single PUT up to a part's size, above it a multipart upload, aborted after any error.

Streams use ``smart_open.s3.open``, which takes bucket and key unchanged; ``smart_open.open`` would take ``?versionId=``
in a name as a version.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import cache, partial
from typing import Any, BinaryIO, Final, cast
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import boto3
import smart_open.s3
from botocore import UNSIGNED
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

from rythmiq_ray.artifact_names import MANIFEST_NAME, input_key, key_of, refuse_unsafe
from rythmiq_ray.artifacts.manifest import manifest_bytes
from rythmiq_ray.artifacts.parts import BackgroundParts, PartBuffer
from rythmiq_ray.artifacts.streaming import PROBE, Meter, budget, content_type, source_errors_as_they_were
from rythmiq_ray.config import ArtifactsConfig, InputsConfig
from rythmiq_ray.errors import NotFound, StoreRefused, StoreUnavailable
from rythmiq_ray.hosts import is_loopback
from rythmiq_ray.inputs import list_inputs, open_input
from rythmiq_ray.model import Artifact

_CONNECT_TIMEOUT_S: Final = 5
_READ_TIMEOUT_S: Final = 60
_TRIES: Final = 4
_CONNECTIONS: Final = 128
"""Size of the process's connection pool, which all jobs share; more are opened when needed and closed after use."""
_MAX_PARTS: Final = 10_000
_CHECKSUMS: Final = "AWS_REQUEST_CHECKSUM_CALCULATION"
"""boto3's own environment variable, which decides whether uploads have a checksum beside the signature."""
_CURE: Final = f"set {_CHECKSUMS}=when_required for drivers and Ray nodes"
_REQUESTER_PAYS: Final = (("RequestPayer", "requester"),)
_GONE_CODES: Final = frozenset({"NoSuchKey", "NoSuchBucket", "404", "NotFound"})

# botocore retries by itself; smart-open's own retries would sleep a minute if the endpoint cannot be reached.
smart_open.s3.RETRY.exceptions = []
smart_open.s3.RETRY.client_error_codes = []


@cache
def shared_client(
    parameters: tuple[tuple[str, str], ...] = (), *, anonymous: bool = False, checksums: str | None = None
) -> Any:
    """The process's S3 client, which is thread-safe. boto3 reads credentials and endpoint itself (``AWS_*``).

    ``parameters`` are added to each call that accepts them; ``checksums`` overrides boto3's own variable.
    """
    session = boto3.session.Session()
    config = BotoConfig(
        signature_version=UNSIGNED if anonymous else None,
        request_checksum_calculation=checksums,
        connect_timeout=_CONNECT_TIMEOUT_S,
        read_timeout=_READ_TIMEOUT_S,
        retries={"mode": "standard", "total_max_attempts": _TRIES},
        max_pool_connections=_CONNECTIONS,
    )
    client = session.client("s3", config=config)
    endpoint = urlsplit(client.meta.endpoint_url)
    more: dict[str, Any] = {}
    if endpoint.scheme == "http" and _CHECKSUMS not in os.environ:
        # The signature already covers the body's SHA-256, so a CRC would add no protection.
        more["request_checksum_calculation"] = "when_required"
    if is_loopback(endpoint.hostname or ""):
        more["proxies"] = {}
    if more:
        client = session.client("s3", config=config.merge(BotoConfig(**more)))

    def add_parameters(params: dict[str, Any], model: Any, **_: Any) -> None:
        params.update((name, value) for name, value in parameters if name in model.input_shape.members)

    def send_at_once(request: Any, **_: Any) -> None:
        # Expect: 100-continue costs a round trip, and a second with servers that do not answer it.
        del request.headers["Expect"]

    client.meta.events.register("provide-client-params.s3", add_parameters)
    client.meta.events.register("request-created.s3", send_at_once)
    return client


def input_client(uri: str, config: InputsConfig) -> Any:
    """The client that reads an input."""
    bucket = uri.partition("://")[2].partition("/")[0]
    anonymous = "*" in config.anonymous or bucket in config.anonymous
    if not config.requester_pays and not anonymous:
        return shared_client()
    return shared_client(_REQUESTER_PAYS if config.requester_pays else (), anonymous=anonymous)


class S3ArtifactStore:
    """An :class:`~rythmiq_ray.artifacts.ArtifactStore` in a bucket."""

    def __init__(
        self,
        config: ArtifactsConfig,
        bucket: str,
        *,
        client: Callable[[], Any] | None = None,
        inputs: InputsConfig | None = None,
    ) -> None:
        """``client`` replaces the process's shared client."""
        self._bucket = bucket
        self._prefix = config.prefix
        self._part_bytes = config.part_size_bytes
        self._parameters = _parameters(config)
        ours = partial(shared_client, self._parameters) if self._parameters else shared_client
        self._client = client or ours
        self._inputs = inputs
        self._input_client = client

    def check(self) -> None:
        with self._translated():
            client = self._client()
            try:
                whole = self._comes_back(client)
            except ClientError as error:
                if not _sends_checksums(client) or not self._works_without_checksums():
                    raise
                raise StoreUnavailable(
                    f"{self._name()} refuses boto3's checksums ({_reason(error)}): {_CURE}"
                ) from None
            if not whole:
                cure = _CURE if _sends_checksums(client) else "look at proxies and gateways between it and this machine"
                raise StoreUnavailable(f"{self._name()} returns different bytes from those written: {cure}")

    def _comes_back(self, client: Any) -> bool:
        """Whether a written file can be read back unchanged."""
        place = {"Bucket": self._bucket, "Key": "/".join(filter(None, (self._prefix, f".probe-{uuid4().hex}")))}
        client.put_object(**place, Body=PROBE)
        try:
            with closing(client.get_object(**place)["Body"]) as body:
                return bool(body.read() == PROBE)
        finally:
            client.delete_object(**place)

    def _works_without_checksums(self) -> bool:
        try:
            return self._comes_back(shared_client(self._parameters, checksums="when_required"))
        except (BotoCoreError, ClientError, HTTPError):
            return False

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
        return self._write(key, name, chunks, expected_bytes, expected_sha256)

    def _write(
        self, key: str, name: str, chunks: Iterable[bytes], expected_bytes: int | None, expected_sha256: str | None
    ) -> Artifact:
        kind = content_type(name)
        meter = Meter(name, expected_bytes, expected_sha256)
        passing = meter.passing(chunks)
        part_bytes = max(self._part_bytes, -(-(expected_bytes or 0) // _MAX_PARTS))
        small = expected_bytes is not None and expected_bytes <= part_bytes
        with budget.hold(expected_bytes or 0 if small else part_bytes), source_errors_as_they_were():
            # If the size is not known, up to one part is read to decide between a PUT and a multipart upload.
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
        client = self._input_client or (lambda: input_client(uri, self._inputs or InputsConfig()))
        return open_input(uri, s3_client=client, local_root=None)

    def list_inputs(self, uri: str) -> list[tuple[str, str]]:
        client = self._input_client or (lambda: input_client(uri, self._inputs or InputsConfig()))
        return list_inputs(uri, s3_client=client)

    def find_input(self, sha256: str, size: int) -> str | None:
        key = input_key(self._prefix, sha256)
        with self._translated():
            try:
                found = self._client().head_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                # Without the right to list the bucket, S3 answers 403 for a missing object. If another right is
                # missing, the write will fail.
                if _code(error) in {*_GONE_CODES, "403"}:
                    return None
                raise
        return self._uri(key) if found["ContentLength"] == size else None

    def write_input(self, sha256: str, size: int, chunks: Iterable[bytes]) -> str:
        return self._write(input_key(self._prefix, sha256), sha256, chunks, size, sha256).uri

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
        # smart-open raises ValueError for a refusal; urllib3's errors come from an interrupted body.
        except (BotoCoreError, ClientError, HTTPError, ValueError, OSError) as error:
            raise (StoreRefused if _refused(error) else StoreUnavailable)(
                f"{self._name(bucket)} cannot be used: {_reason(error)}: "
                "check the bucket, its permissions, AWS_* and AWS_ENDPOINT_URL_S3"
            ) from None

    def _name(self, bucket: str | None = None) -> str:
        """The store's name for messages."""
        name = f"The artifact store s3://{bucket or self._bucket}"
        try:
            return f"{name} at {self._client().meta.endpoint_url.rpartition('@')[2]}"
        except (BotoCoreError, ValueError):
            return name  # There is no client if AWS_* itself is wrong.


class _Reader:
    """An object's body that raises our errors."""

    def __init__(self, body: Any, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._body = body
        self._translated = translated

    def read(self, size: int = -1) -> bytes:
        with self._translated():
            return cast(bytes, self._body.read(None if size < 0 else size))


def _parameters(config: ArtifactsConfig) -> tuple[tuple[str, str], ...]:
    """Parameters that are added to each call."""
    encryption = config.encryption or ("aws:kms" if config.kms_key_id else None)
    found = {"ServerSideEncryption": encryption, "SSEKMSKeyId": config.kms_key_id}
    parameters = tuple((name, value) for name, value in found.items() if value)
    return (*parameters, *_REQUESTER_PAYS) if config.requester_pays else parameters


def _sends_checksums(client: Any) -> bool:
    """Whether boto3 adds its own checksums, which older stores do not support."""
    return bool(client.meta.config.request_checksum_calculation == "when_supported")


def _abort(writer: Any) -> None:
    """Aborts a multipart upload. Errors in here are suppressed, because the original error matters."""
    try:
        writer.terminate()
    except (BotoCoreError, ClientError):
        # The writer is still open. When it is garbage-collected, it would complete the upload with the parts so far,
        # and a truncated object would appear.
        writer._upload_id = None


def _place(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket or not key:
        raise NotFound(f"{uri} names no object in S3")
    return bucket, key


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "error"))


def _refused(error: Exception) -> bool:
    """Whether the service refused the request for good; not if it is busy or a clock is wrong."""
    cause = error.__cause__ if isinstance(error.__cause__, ClientError) else error
    if isinstance(cause, (NoCredentialsError, PartialCredentialsError, ProfileNotFound, NoRegionError)):
        return True
    status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(cause, ClientError) else 0
    return status in (301, 400, 401, 403, 404)


def _reason(error: Exception) -> str:
    """The service's code and message, or botocore's; neither contains a secret."""
    cause = error.__cause__ if isinstance(error.__cause__, ClientError) else error
    if isinstance(cause, ClientError):
        message = str(cause.response.get("Error", {}).get("Message", "")).rstrip(".")
        return f"{_code(cause)} {message}".strip()
    return " ".join(str(cause).split()) or type(cause).__name__
