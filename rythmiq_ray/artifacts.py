"""The artifact store: streams into S3 or a folder, whole or not at all, with size and SHA-256 taken on the way.

Layout: ``<prefix>/<job_id>/<attempt>/<name>``, ``manifest.json`` last. Bytes go through smart-open; what is peculiar
to S3 or to a folder is in the two small classes at the end.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from queue import Queue
from typing import Any, BinaryIO, Final, Protocol
from urllib.parse import unquote, urlsplit
from uuid import UUID, uuid4

import boto3
import smart_open
from botocore.config import Config as BotoConfig
from botocore.exceptions import BotoCoreError, ClientError

from rythmiq_ray.config import ArtifactsConfig
from rythmiq_ray.errors import ArtifactCorrupt, NotFound, RythmiqError, StoreUnavailable
from rythmiq_ray.model import Artifact, JobState
from rythmiq_ray.names import LOG_NAME, MANIFEST_NAME, fault_of_name

_CHUNK_BYTES: Final = 1024 * 1024
_BUFFER_BUDGET_BYTES: Final = 64 * 1024 * 1024
"""What all uploads of a process together keep in memory; the next one waits."""
_READ_AHEAD_BYTES: Final = 8 * 1024 * 1024
"""How far reading the source may run ahead of a multipart upload."""
_CONNECT_TIMEOUT_S: Final = 5
_READ_TIMEOUT_S: Final = 60
_TRIES: Final = 4
_GONE_CODES: Final = frozenset({"NoSuchKey", "NoSuchBucket", "404", "NotFound"})


class ArtifactStore(Protocol):
    """Where artifacts lie. Thread-safe. Every method raises StoreUnavailable when the store does not answer."""

    def check(self) -> None:
        """One cheap probe that writing and deleting below the prefix works."""
        ...

    def uri(self, job_id: UUID, attempt: int, name: str) -> str: ...

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
        """Streams one file. It appears once all of it is there and is what was expected; else nothing appears.

        Raises ArtifactCorrupt where size or SHA-256 differ, and whatever ``chunks`` raises.
        """
        ...

    def write_manifest(self, job_id: UUID, attempt: int, manifest: Mapping[str, Any]) -> str:
        """Writes ``manifest.json`` and returns its URI."""
        ...

    def open(self, uri: str) -> AbstractContextManager[BinaryIO]:
        """Opens a file of this store for streaming; raises NotFound."""
        ...

    def open_input(self, uri: str) -> AbstractContextManager[BinaryIO]:
        """Opens a job's input, of this store or elsewhere; see :mod:`rythmiq_ray.inputs`."""
        ...

    def delete(self, uri: str) -> None:
        """Deletes a file; fine if it is gone."""
        ...


def open_store(config: ArtifactsConfig) -> ArtifactStore:
    """The store that the configuration names."""
    if config.type == "s3":
        assert config.bucket is not None  # noqa: S101 - layers.load requires it
        return S3ArtifactStore(config, config.bucket)
    assert config.path is not None  # noqa: S101 - layers.load requires it
    return LocalArtifactStore(config, Path(config.path))


def manifest(
    *,
    job_id: UUID,
    attempt: int,
    state: JobState,
    exit_code: int | None,
    remote_id: int,
    started_at: datetime | None,
    finished_at: datetime | None,
    artifacts: Iterable[Artifact],
) -> dict[str, Any]:
    """The content of ``manifest.json``, version 1."""
    return {
        "version": 1,
        "job_id": str(job_id),
        "attempt": attempt,
        "state": str(state),
        "exit_code": exit_code,
        "remote_id": remote_id,
        "started_at": _rfc3339(started_at),
        "finished_at": _rfc3339(finished_at),
        "artifacts": [
            {
                "name": artifact.name,
                "uri": artifact.uri,
                "bytes": artifact.bytes,
                "sha256": artifact.sha256,
                "content_type": artifact.content_type,
            }
            for artifact in artifacts
        ],
    }


def download(store: ArtifactStore, artifact: Artifact, folder: Path, progress: Callable[[int], None]) -> Path:
    """Streams an artifact to ``folder/<name>`` and checks it on the way; ``progress`` is told of bytes as they come.

    Raises ArtifactCorrupt, with nothing left, where it is not what the row says.
    """
    target = _below(folder, artifact.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    meter = _Meter()
    with _replacing(target) as file, store.open(artifact.uri) as source:
        for chunk in iter(lambda: source.read(_CHUNK_BYTES), b""):
            meter.add(chunk)
            file.write(chunk)
            progress(len(chunk))
        meter.check(artifact.name, artifact.bytes, artifact.sha256)
    return target


def content_type(name: str) -> str:
    """By the name's ending; UTF-8 for the log, which the wrapper writes as it comes."""
    if name == LOG_NAME:
        return "text/plain; charset=utf-8"
    return mimetypes.guess_type(name, strict=False)[0] or "application/octet-stream"


class _Meter:
    """Counts and hashes what passes."""

    def __init__(self) -> None:
        self.bytes = 0
        self._hash = hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        self.bytes += len(chunk)
        self._hash.update(chunk)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def check(self, name: str, expected_bytes: int | None, expected_sha256: str | None) -> None:
        if expected_bytes is not None and self.bytes != expected_bytes:
            raise ArtifactCorrupt(f"{name!r} has {self.bytes} bytes instead of {expected_bytes}")
        if expected_sha256 is not None and self.sha256 != expected_sha256:
            raise ArtifactCorrupt(f"{name!r} has another SHA-256 than the job's result says")


class _Budget:
    """Bytes of memory that uploads may hold between them."""

    def __init__(self, total: int) -> None:
        self._free = self._total = total
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, amount: int) -> Iterator[None]:
        amount = min(amount, self._total)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


_budget: Final = _Budget(_BUFFER_BUDGET_BYTES)


class S3ArtifactStore:
    """Artifacts in a bucket. Credentials and endpoint are boto3's own business (``AWS_*``, instance profile)."""

    def __init__(self, config: ArtifactsConfig, bucket: str) -> None:
        self._bucket = bucket
        self._prefix = config.prefix
        self._part_bytes = config.part_size_bytes
        self._connections = max(10, config.concurrency * 4)

    @cached_property
    def client(self) -> Any:
        """boto3's S3 client, which is thread-safe; made once, because that takes some 50 ms."""
        return boto3.session.Session().client(
            "s3",
            config=BotoConfig(
                connect_timeout=_CONNECT_TIMEOUT_S,
                read_timeout=_READ_TIMEOUT_S,
                retries={"mode": "standard", "total_max_attempts": _TRIES},
                max_pool_connections=self._connections,
            ),
        )

    def check(self) -> None:
        key = f"{self._prefix}/.probe-{uuid4().hex}" if self._prefix else f".probe-{uuid4().hex}"
        with self._translated():
            self.client.put_object(Bucket=self._bucket, Key=key, Body=b"")
            self.client.delete_object(Bucket=self._bucket, Key=key)

    def uri(self, job_id: UUID, attempt: int, name: str) -> str:
        return f"s3://{self._bucket}/{_key(self._prefix, job_id, attempt, name)}"

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
        _refuse_unsafe(name)
        uri = self.uri(job_id, attempt, name)
        small = expected_bytes is not None and expected_bytes <= self._part_bytes
        kind = content_type(name)
        meter = _Meter()
        source = chunks if small else _read_ahead(chunks)
        held = self._part_bytes if expected_bytes is None else min(expected_bytes, self._part_bytes)
        with _budget.hold(held), self._translated(), self._open_writer(uri, small, kind) as file:
            for chunk in source:
                meter.add(chunk)
                if small and meter.bytes > self._part_bytes:
                    break  # A file that grows is not what was expected, and must not fill the memory.
                file.write(chunk)
            meter.check(name, expected_bytes, expected_sha256)
            if not small and meter.bytes == 0:
                # smart-open would make the empty object without a content type.
                file.terminate()
        if not small and meter.bytes == 0:
            with self._translated():
                self.client.put_object(
                    Bucket=self._bucket, Key=_key(self._prefix, job_id, attempt, name), Body=b"", ContentType=kind
                )
        return Artifact(name=name, uri=uri, bytes=meter.bytes, sha256=meter.sha256, content_type=kind)

    def write_manifest(self, job_id: UUID, attempt: int, manifest: Mapping[str, Any]) -> str:
        with self._translated():
            self.client.put_object(
                Bucket=self._bucket,
                Key=_key(self._prefix, job_id, attempt, MANIFEST_NAME),
                Body=_manifest_bytes(manifest),
                ContentType="application/json",
            )
        return self.uri(job_id, attempt, MANIFEST_NAME)

    @contextmanager
    def open(self, uri: str) -> Iterator[BinaryIO]:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        with self._translated():
            try:
                body = self.client.get_object(Bucket=bucket, Key=key)["Body"]
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in _GONE_CODES:
                    raise NotFound(f"There is no {uri}") from None
                raise
        try:
            yield body
        finally:
            body.close()

    def open_input(self, uri: str) -> AbstractContextManager[BinaryIO]:
        from rythmiq_ray.inputs import open_input

        return open_input(uri, s3_client=lambda: self.client, local_root=None)

    def delete(self, uri: str) -> None:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        with self._translated():
            self.client.delete_object(Bucket=bucket, Key=key)

    def _open_writer(self, uri: str, small: bool, kind: str) -> Any:
        call = "put_object" if small else "create_multipart_upload"
        parameters = {
            "client": self.client,
            "client_kwargs": {f"S3.Client.{call}": {"ContentType": kind}},
            "multipart_upload": not small,
        }
        if not small:
            parameters["part_size"] = self._part_bytes
        return smart_open.open(uri, "wb", compression="disable", transport_params=parameters)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except RythmiqError:
            raise
        except (BotoCoreError, ClientError, ValueError, OSError) as error:
            where = self.client.meta.endpoint_url
            raise StoreUnavailable(
                f"The artifact store s3://{self._bucket} at {where} cannot be used: {_s3_reason(error)}: "
                "check the bucket, its permissions, AWS_* and AWS_ENDPOINT_URL_S3"
            ) from None


class LocalArtifactStore:
    """Artifacts in a folder, for one machine or a file system that all nodes share."""

    def __init__(self, config: ArtifactsConfig, root: Path) -> None:
        self._root = root.absolute()
        self._prefix = config.prefix

    def check(self) -> None:
        with self._translated():
            folder = self._root / self._prefix
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{uuid4().hex}"
            probe.touch()
            probe.unlink()

    def uri(self, job_id: UUID, attempt: int, name: str) -> str:
        return (self._root / _key(self._prefix, job_id, attempt, name)).as_uri()

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
        _refuse_unsafe(name)
        target = _below(self._root, _key(self._prefix, job_id, attempt, name))
        meter = _Meter()
        with self._translated():
            target.parent.mkdir(parents=True, exist_ok=True)
        with self._translated(), _replacing(target) as file:
            for chunk in chunks:
                meter.add(chunk)
                file.write(chunk)
            meter.check(name, expected_bytes, expected_sha256)
        uri = self.uri(job_id, attempt, name)
        return Artifact(name=name, uri=uri, bytes=meter.bytes, sha256=meter.sha256, content_type=content_type(name))

    def write_manifest(self, job_id: UUID, attempt: int, manifest: Mapping[str, Any]) -> str:
        target = self._root / _key(self._prefix, job_id, attempt, MANIFEST_NAME)
        with self._translated():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _replacing(target) as file:
                file.write(_manifest_bytes(manifest))
        return self.uri(job_id, attempt, MANIFEST_NAME)

    @contextmanager
    def open(self, uri: str) -> Iterator[BinaryIO]:
        path = Path(unquote(urlsplit(uri).path))
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise NotFound(f"There is no {uri}") from None
        except OSError as error:
            raise StoreUnavailable(f"{uri} cannot be read: {error.strerror}") from None
        with file:
            yield file

    def open_input(self, uri: str) -> AbstractContextManager[BinaryIO]:
        from rythmiq_ray.inputs import open_input

        return open_input(uri, s3_client=_default_s3_client, local_root=self._root)

    def delete(self, uri: str) -> None:
        with self._translated():
            Path(unquote(urlsplit(uri).path)).unlink(missing_ok=True)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(
                f"The artifact store {self._root} cannot be used: {error.strerror or type(error).__name__}: "
                "check its permissions and the disk's space"
            ) from None


def _default_s3_client() -> Any:
    return boto3.session.Session().client(
        "s3", config=BotoConfig(connect_timeout=_CONNECT_TIMEOUT_S, read_timeout=_READ_TIMEOUT_S)
    )


def _key(prefix: str, job_id: UUID, attempt: int, name: str) -> str:
    path = f"{job_id}/{attempt}/{name}"
    return f"{prefix}/{path}" if prefix else path


def _refuse_unsafe(name: str) -> None:
    """The executor checked all names together; this is for a caller that did not."""
    fault = fault_of_name(name)
    if fault is not None:
        raise ArtifactCorrupt(f"{name!a} {fault}")


def _below(folder: Path, name: str) -> Path:
    """``folder/name`` with every link followed, if that is still below ``folder``; raises ArtifactCorrupt."""
    root = folder.resolve()
    target = (root / name).resolve()
    if not target.is_relative_to(root) or target == root:
        raise ArtifactCorrupt(f"{name!a} would lie outside {folder}")
    return target


@contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """A file that takes ``target``'s place when all went well and is gone otherwise."""
    partial = target.with_name(f".{uuid4().hex}.part")
    try:
        with smart_open.open(str(partial), "wb", compression="disable") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _read_ahead(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same chunks, read by a thread of its own while the last part is uploaded; a bounded number waits."""
    slots: Queue[bytes | BaseException | None] = Queue(maxsize=max(1, _READ_AHEAD_BYTES // _CHUNK_BYTES))
    stopped = threading.Event()

    def read() -> None:
        last: BaseException | None = None
        try:
            for chunk in chunks:
                slots.put(chunk)
                if stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised where the chunks are used
            last = error
        slots.put(last)

    reader = threading.Thread(target=read, name="rythmiq-read-ahead", daemon=True)
    reader.start()
    try:
        while (item := slots.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        with suppress(Exception):
            while reader.is_alive():
                while not slots.empty():
                    slots.get_nowait()
                reader.join(0.01)


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode()


def _rfc3339(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _s3_reason(error: Exception) -> str:
    """The service's code or botocore's sentence; neither holds a key."""
    cause = error.__cause__ if isinstance(error.__cause__, ClientError) else error
    if isinstance(cause, ClientError):
        details = cause.response.get("Error", {})
        return f"{details.get('Code', 'error')} {details.get('Message', '')}".strip()
    return " ".join(str(cause).split()) or type(cause).__name__
