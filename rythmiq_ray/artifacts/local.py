"""Artifacts in a folder, for one machine or a file system that all nodes share. Links below the folder are refused."""

# Files are written without pathlib: its objects cost as much time as the write, and each job writes two.

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR
from typing import Any, BinaryIO, Final
from urllib.parse import quote_from_bytes
from uuid import UUID, uuid4

from rythmiq_ray.artifact_names import MANIFEST_NAME, input_key, key_of, refuse_unsafe
from rythmiq_ray.artifacts.manifest import manifest_bytes
from rythmiq_ray.artifacts.s3 import input_client
from rythmiq_ray.artifacts.streaming import PROBE, Meter, content_type, source_errors_as_they_were
from rythmiq_ray.config import ArtifactsConfig, InputsConfig
from rythmiq_ray.errors import NotFound, StoreUnavailable
from rythmiq_ray.inputs import list_inputs, open_input, path_below
from rythmiq_ray.model import Artifact

_PARTIAL: Final = re.compile(r"\.[0-9a-f]{32}\.part")
"""A partial file: it is being written, or its writer was killed."""


class LocalArtifactStore:
    """An :class:`~rythmiq_ray.artifacts.ArtifactStore` in a folder."""

    def __init__(self, config: ArtifactsConfig, root: Path, inputs: InputsConfig | None = None) -> None:
        self._inputs = inputs or InputsConfig()
        self._root = root.absolute()
        self._prefix = "/".join(filter(None, config.prefix.split("/")))

    def check(self) -> None:
        with self._translated():
            folder = self._root / self._prefix
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".probe-{uuid4().hex}"
            probe.write_bytes(PROBE)
            if probe.read_bytes() != PROBE:
                raise OSError("a file that was written comes back changed")
            probe.unlink()

    def uri(self, job_id: UUID, attempt: int, name: str) -> str:
        return (self._root / key_of(self._prefix, job_id, attempt, name)).as_uri()

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
        target = self._target(key_of(self._prefix, job_id, attempt, name))
        return self._write(target, name, chunks, expected_bytes, expected_sha256)

    def _write(
        self, target: str, name: str, chunks: Iterable[bytes], expected_bytes: int | None, expected_sha256: str | None
    ) -> Artifact:
        meter = Meter(name, expected_bytes, expected_sha256)
        with source_errors_as_they_were(), self._translated(), replacing(target) as file:
            for chunk in meter.passing(chunks):
                file.write(chunk)
        return Artifact(
            name=name,
            uri=_uri(target),
            bytes=meter.bytes,
            sha256=meter.sha256,
            content_type=content_type(name),
        )

    def write_manifest(self, job_id: UUID, attempt: int, manifest: Mapping[str, Any]) -> str:
        target = self._target(key_of(self._prefix, job_id, attempt, MANIFEST_NAME))
        with self._translated(), replacing(target) as file:
            file.write(manifest_bytes(manifest))
        return _uri(target)

    @contextmanager
    def open(self, uri: str) -> Iterator[BinaryIO]:
        path = self._path(uri)
        with self._translated():
            try:
                file = path.open("rb")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise NotFound(f"There is no {uri}") from None
        with file:
            yield file

    def open_input(self, uri: str) -> AbstractContextManager[BinaryIO]:
        return open_input(uri, s3_client=lambda: input_client(uri, self._inputs), local_root=self._root)

    def list_inputs(self, uri: str) -> list[tuple[str, str]]:
        return list_inputs(uri, s3_client=lambda: input_client(uri, self._inputs))

    def find_input(self, sha256: str, size: int) -> str | None:
        path = self._root / input_key(self._prefix, sha256)
        with self._translated():
            return path.as_uri() if path.is_file() and path.stat().st_size == size else None

    def write_input(self, sha256: str, size: int, chunks: Iterable[bytes]) -> str:
        return self._write(self._target(input_key(self._prefix, sha256)), sha256, chunks, size, sha256).uri

    def delete(self, uri: str) -> None:
        path = self._path(uri)
        with self._translated():
            path.unlink(missing_ok=True)

    def discard_partial(self, job_id: UUID, attempt: int) -> None:
        with self._translated():
            for path in (self._root / key_of(self._prefix, job_id, attempt, "")).rglob(".*.part"):
                if _PARTIAL.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def list_files(self, job_id: UUID) -> Iterator[str]:
        with self._translated():
            found = sorted(
                path
                for path in (self._root / self._prefix / str(job_id)).rglob("*")
                if path.is_file() and not _PARTIAL.fullmatch(path.name)
            )
        return iter([path.as_uri() for path in found])

    def _target(self, key: str) -> str:
        """The path of a file; makes its folder, and refuses links in the path."""
        path = str(self._root)
        steps = key.split("/")
        with self._translated():
            for step in steps[:-1]:
                path = f"{path}/{step}"
                self._make_folder(path)
        return f"{path}/{steps[-1]}"

    def _make_folder(self, path: str) -> None:
        try:
            os.mkdir(path)
            _sync_folder(os.path.dirname(path))
        except FileExistsError:
            if not S_ISDIR(os.lstat(path).st_mode):
                raise StoreUnavailable(
                    f"The artifact store {self._root} has a link or a file at {path}: remove it"
                ) from None
        except FileNotFoundError:
            os.makedirs(path, exist_ok=True)  # The root does not exist yet, or a folder above was removed.

    def _path(self, uri: str) -> Path:
        path = path_below(self._root, uri)
        if path is None:
            raise NotFound(f"{uri} is not in the artifact store {self._root}")
        return path

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(
                f"The artifact store {self._root} cannot be used: {error.strerror or type(error).__name__}: "
                "check its permissions and the disk's free space"
            ) from None


def _uri(path: str) -> str:
    """The same as Path.as_uri, but faster."""
    return "file://" + quote_from_bytes(os.fsencode(path))


def _sync_folder(path: str) -> None:
    """Makes files that were created or renamed in a folder survive a power cut."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def replacing(target: str | Path) -> Iterator[BinaryIO]:
    """A temporary file beside ``target``: it replaces the target once it is on disk, or is removed after an error."""
    folder = os.path.dirname(target) or "."
    partial = os.path.join(folder, f".{os.urandom(16).hex()}.part")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    _sync_folder(folder)
