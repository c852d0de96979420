"""The artifact store: streams files to S3 or a folder, completely or not at all, and measures size and SHA-256.

Layout: ``<prefix>/<job_id>/<attempt>/<name>``, ``manifest.json`` last. An ``s3://`` URI contains the key unencoded, as
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
    """A store of artifacts. Thread-safe. Every method raises StoreUnavailable when the store does not answer."""

    def check(self) -> None:
        """Probes that a file below the prefix can be written, read back unchanged, and deleted."""
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
        """Streams one file. It becomes visible only when it is complete and as expected; otherwise nothing is stored.

        Raises ArtifactCorrupt if size or SHA-256 differ, and whatever ``chunks`` raises.
        """
        ...

    def write_manifest(self, job_id: UUID, attempt: int, manifest: Mapping[str, Any]) -> str:
        """Writes ``manifest.json`` and returns its URI; may be repeated."""
        ...

    def open(self, uri: str) -> AbstractContextManager[BinaryIO]:
        """Opens a file of this store for streaming; raises NotFound."""
        ...

    def open_input(self, uri: str) -> AbstractContextManager[BinaryIO]:
        """Opens a job's input, of this store or elsewhere; see :mod:`rythmiq_ray.inputs`."""
        ...

    def list_inputs(self, uri: str) -> list[tuple[str, str]]:
        """The files of an ``s3://`` folder or pattern, each as its URI and its name below the folder.

        Raises InputMissing if there are none, or more than a job may have.
        """
        ...

    def find_input(self, sha256: str, size: int) -> str | None:
        """The URI of a local input that was uploaded before; None if it was not."""
        ...

    def write_input(self, sha256: str, size: int, chunks: Iterable[bytes]) -> str:
        """Uploads a local input to ``<prefix>/inputs/<sha256>``; raises ArtifactCorrupt if its hash or size differs."""
        ...

    def delete(self, uri: str) -> None:
        """Deletes a file of this store; it is no error if the file does not exist."""
        ...

    def discard_partial(self, job_id: UUID, attempt: int) -> None:
        """Removes what a killed writer left of an attempt: partial files, unfinished multipart uploads."""
        ...

    def list_files(self, job_id: UUID) -> Iterator[str]:
        """The URIs of all files of a job in the store, sorted by name."""
        ...


def is_own(uri: str, job_id: UUID) -> bool:
    """Whether a URI can belong to a file of this job. A row may contain any URI."""
    return f"/{job_id}/" in uri and ".." not in unquote(uri).split("/")


def open_store(config: ArtifactsConfig, inputs: InputsConfig | None = None) -> ArtifactStore:
    """The store that the configuration names. Makes no call to it; :meth:`ArtifactStore.check` does."""
    if config.type == "s3":
        assert config.bucket is not None  # noqa: S101 - config_loader.load requires it
        return S3ArtifactStore(config, config.bucket, inputs=inputs)
    assert config.path is not None  # noqa: S101 - config_loader.load requires it
    return LocalArtifactStore(config, Path(config.path), inputs)


def download(
    store: ArtifactStore, artifact: Artifact, folder: Path, progress: Callable[[int], None] = lambda _bytes: None
) -> Path:
    """Streams an artifact to ``folder/<name>`` and verifies it; ``progress`` is called with the size of each piece.

    Raises ArtifactCorrupt if the content differs from the row or the name leads out of the folder (no file is left
    then), and OSError if the folder cannot be written.
    """
    refuse_unsafe(artifact.name)
    target = folder / artifact.name
    if target.parent.resolve() != folder.resolve() / target.parent.relative_to(folder) or target.is_dir():
        raise ArtifactCorrupt(f"{artifact.name!r}: there is a link or a folder in its place in {folder}")
    target.parent.mkdir(parents=True, exist_ok=True)
    meter = Meter(artifact.name, artifact.bytes, artifact.sha256)
    with source_errors_as_they_were(), store.open(artifact.uri) as source, replacing(target) as file:
        for chunk in meter.passing(iter(lambda: source.read(CHUNK_BYTES), b"")):
            file.write(chunk)
            progress(len(chunk))
    return target
