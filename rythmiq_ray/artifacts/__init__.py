"""The artifact store: streams into S3 or a folder, whole or not at all, with size and SHA-256 taken on the way.

Layout: ``<prefix>/<job_id>/<attempt>/<name>``, ``manifest.json`` last. An ``s3://`` URI holds the key as it is, as
``aws s3`` takes it; a ``file://`` URI is percent-encoded (RFC 8089).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote
from uuid import UUID

from rythmiq_ray.artifact_names import refuse_unsafe
from rythmiq_ray.artifacts.local import LocalArtifactStore, replacing
from rythmiq_ray.artifacts.manifest import manifest, read_manifest
from rythmiq_ray.artifacts.s3 import S3ArtifactStore
from rythmiq_ray.artifacts.streaming import CHUNK_BYTES, Meter, content_type, source_errors_as_they_were
from rythmiq_ray.config import ArtifactsConfig, InputsConfig
from rythmiq_ray.errors import ArtifactCorrupt
from rythmiq_ray.model import Artifact

__all__ = ["ArtifactStore", "content_type", "download", "is_own", "manifest", "open_store", "read_manifest"]


class ArtifactStore(Protocol):
    """Where artifacts lie. Thread-safe. Every method raises StoreUnavailable when the store does not answer."""

    def check(self) -> None:
        """One cheap probe that what is written below the prefix can be read back as it was, and deleted."""
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
        """Writes ``manifest.json`` and returns its URI; again is fine."""
        ...

    def open(self, uri: str) -> AbstractContextManager[BinaryIO]:
        """Opens a file of this store for streaming; raises NotFound."""
        ...

    def open_input(self, uri: str) -> AbstractContextManager[BinaryIO]:
        """Opens a job's input, of this store or elsewhere; see :mod:`rythmiq_ray.inputs`."""
        ...

    def list_inputs(self, uri: str) -> list[tuple[str, str]]:
        """The files that an ``s3://`` folder or pattern stands for, each as its URI and its name below that.

        Raises InputMissing where there are none, or more than a job can have.
        """
        ...

    def find_input(self, sha256: str, size: int) -> str | None:
        """The URI of a local input that was uploaded before; None where it was not."""
        ...

    def write_input(self, sha256: str, size: int, chunks: Iterable[bytes]) -> str:
        """Uploads a local input to ``<prefix>/inputs/<sha256>``; raises ArtifactCorrupt where it has another hash."""
        ...

    def delete(self, uri: str) -> None:
        """Deletes a file of this store; fine if it is gone."""
        ...

    def discard_partial(self, job_id: UUID, attempt: int) -> None:
        """Removes what a killed writer left of an attempt: unfinished files, dangling multipart uploads."""
        ...

    def list_files(self, job_id: UUID) -> Iterator[str]:
        """The URIs of all that the store holds of a job, in order of name."""
        ...


def is_own(uri: str, job_id: UUID) -> bool:
    """Whether a URI can be that of a file which this job stored: a row may name anything."""
    return f"/{job_id}/" in uri and ".." not in unquote(uri).split("/")


def open_store(config: ArtifactsConfig, inputs: InputsConfig | None = None) -> ArtifactStore:
    """The store that the configuration names. Nothing is asked of it yet; that is :meth:`ArtifactStore.check`."""
    if config.type == "s3":
        assert config.bucket is not None  # noqa: S101 - config_loader.load requires it
        return S3ArtifactStore(config, config.bucket, inputs=inputs)
    assert config.path is not None  # noqa: S101 - config_loader.load requires it
    return LocalArtifactStore(config, Path(config.path), inputs)


def download(
    store: ArtifactStore, artifact: Artifact, folder: Path, progress: Callable[[int], None] = lambda _bytes: None
) -> Path:
    """Streams an artifact to ``folder/<name>`` and checks it on the way; ``progress`` is told of bytes as they come.

    Raises ArtifactCorrupt, with nothing left, where it is not what its row says or its name would lead out of the
    folder, and OSError where the folder cannot be written.
    """
    refuse_unsafe(artifact.name)
    target = folder / artifact.name
    if target.parent.resolve() != folder.resolve() / target.parent.relative_to(folder) or target.is_dir():
        raise ArtifactCorrupt(f"{artifact.name!r} meets a link or a folder in {folder}")
    target.parent.mkdir(parents=True, exist_ok=True)
    meter = Meter(artifact.name, artifact.bytes, artifact.sha256)
    with source_errors_as_they_were(), store.open(artifact.uri) as source, replacing(target) as file:
        for chunk in meter.passing(iter(lambda: source.read(CHUNK_BYTES), b"")):
            file.write(chunk)
            progress(len(chunk))
    return target
