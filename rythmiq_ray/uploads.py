"""Local inputs: files and folders of the enqueuing machine, uploaded once for each content."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rythmiq_ray.checks import quote
from rythmiq_ray.config_loader import load_catalog
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.job_fields import is_local
from rythmiq_ray.model import Input, JobSpec, NewJob
from rythmiq_ray.spec import check

if TYPE_CHECKING:
    from rythmiq_ray.artifacts import ArtifactStore

_AT_ONCE: Final = 8
_CHUNK_BYTES: Final = 256 * 1024
_OF_FILE: Final = re.compile(r"inputs\[(\d+)\]")


@dataclass(frozen=True)
class LocalFile:
    """A file and its name in the job's working directory."""

    path: Path
    name: str


@dataclass(frozen=True)
class Uploads:
    """Jobs, and the files of their local inputs."""

    jobs: Sequence[NewJob]
    files: dict[Path, None]
    """Each once, in order."""
    _of_inputs: dict[Input, list[LocalFile]]

    @classmethod
    def of(cls, jobs: Sequence[NewJob]) -> Uploads:
        """Finds the files of all local inputs; raises InvalidJob for each that is missing, unreadable or refused."""
        found: dict[Input, list[LocalFile]] = {}
        faults: list[str] = []
        for job in _with_inputs(jobs):
            for at, item in enumerate(job.spec.inputs):
                if is_local(item.uri) and item not in found:
                    found[item] = list(_files_of(item, f"inputs[{at}].uri", faults))
        for job in _with_inputs(jobs) if found and not faults else ():
            faults += _faults_of(job.spec, found)
        if faults:
            raise InvalidJob(faults)
        return cls(jobs, {file.path: None for files in found.values() for file in files}, found)

    def send(self, store: ArtifactStore, *, progress: Callable[[], object] = lambda: None) -> list[NewJob]:
        """Uploads files that the store does not have yet, several at once; returns the jobs with URIs as inputs.

        Raises StoreUnavailable, and InvalidJob if a file disappears meanwhile.
        """

        def sent(path: Path) -> str:
            uri = _sent(store, path)
            progress()
            return uri

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            uris = dict(zip(self.files, pool.map(sent, self.files), strict=True))
        specs: dict[int, JobSpec] = {}
        return [replace(job, spec=self._spec(job.spec, uris, specs)) if job.spec.inputs else job for job in self.jobs]

    def _spec(self, spec: JobSpec, uris: dict[Path, str], made: dict[int, JobSpec]) -> JobSpec:
        """The spec with uploaded inputs. Members of a sweep share one spec before and after."""
        if (known := made.get(id(spec))) is not None:
            return known
        inputs = [
            item if file is None else Input(uri=uris[file.path], name=file.name)
            for _, item, file in _expanded(spec, self._of_inputs)
        ]
        made[id(spec)] = replace(spec, inputs=tuple(inputs))
        return made[id(spec)]


def _with_inputs(jobs: Iterable[NewJob]) -> Iterator[NewJob]:
    """The jobs with inputs, one of those that share a spec."""
    seen: set[int] = set()
    for job in jobs:
        if job.spec.inputs and id(job.spec) not in seen:
            seen.add(id(job.spec))
            yield job


def _expanded(
    spec: JobSpec, found: Mapping[Input, Sequence[LocalFile]]
) -> Iterator[tuple[int, Input, LocalFile | None]]:
    """Each input with its place; a local one once for each of its files."""
    for at, item in enumerate(spec.inputs):
        for file in found.get(item, [None]):
            yield at, item, file


def _faults_of(spec: JobSpec, found: Mapping[Input, Sequence[LocalFile]]) -> Iterator[str]:
    """What the driver would refuse of the inputs after expansion, such as a file name of a folder."""
    files = list(_expanded(spec, found))
    inputs = tuple(item if file is None else Input(uri=str(file.path), name=file.name) for _, item, file in files)
    for fault in check(NewJob(spec=JobSpec(command="-", inputs=inputs)), load_catalog(), local=True):
        field, _, said = fault.partition(": ")
        if (place := _OF_FILE.match(field)) is None:
            yield f"{fault}: pack them, or give an s3:// folder"
            continue
        at, item, file = files[int(place[1])]
        # URIs of other inputs are not shown, because they may contain secrets.
        brings = "" if file is None else f"{quote(item.uri)} contains a file whose name is refused: "
        yield f"inputs[{at}]: {brings}{said}"


def _files_of(item: Input, field: str, faults: list[str]) -> Iterator[LocalFile]:
    path = Path(item.uri).expanduser()
    try:
        if path.is_dir():
            top = "" if item.name == "./" else item.name.rstrip("/")
            found = sorted(each for each in path.rglob("*") if each.is_file())
            if not found:
                faults.append(f"{field}: the folder {item.uri} holds no files")
            for each in found:
                relative = each.relative_to(path).as_posix()
                yield _readable(each, f"{top}/{relative}" if top else relative, field, faults)
            return
        if not path.is_file():
            faults.append(f"{field}: there is no file {item.uri!r} here; a URI starts with a scheme such as s3://")
            return
        name = item.name
        if name.endswith("/"):
            name = f"{name.removeprefix('./')}{path.name}"
        yield _readable(path, name, field, faults)
    except OSError as error:
        faults.append(f"{field}: {item.uri}: {error.strerror}")


def _readable(path: Path, name: str, field: str, faults: list[str]) -> LocalFile:
    if not os.access(path, os.R_OK):
        faults.append(f"{field}: {path} may not be read")
    return LocalFile(path, name)


def _sent(store: ArtifactStore, path: Path) -> str:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
            if (known := store.find_input(digest, size)) is not None:
                return known
            file.seek(0)
            return store.write_input(digest, size, iter(lambda: file.read(_CHUNK_BYTES), b""))
    except OSError as error:
        raise InvalidJob([f"inputs: {path}: {error.strerror}"]) from None
