"""Opens the database, the artifact store and the backend for CLI commands and clients."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from rythmiq_ray.errors import NotFound, RythmiqError, StoreUnavailable
from rythmiq_ray.secret import Secret

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from rythmiq_ray.artifacts import ArtifactStore
    from rythmiq_ray.backends import ExecutionBackend
    from rythmiq_ray.model import Artifact

_CHUNK_BYTES: Final = 256 * 1024
_AT_ONCE: Final = 8


@cache
def embedded() -> dict[str, str]:
    """The variables of the local stack, if it runs and no other services are configured; otherwise empty."""
    configured = os.environ.get("DATABASE_URL") or os.environ.get("RYTHMIQ_CONFIG")
    if configured or os.environ.get("SERVICE_ENV", "local") != "local":
        return {}
    try:
        from rythmiq_ray.local.stack import Stack, local_root, parts_needed
    except ModuleNotFoundError:
        return {}  # The extra "local" is not installed.
    if not (local_root() / "stack.json").exists():
        return {}
    stack = Stack(local_root())
    running = {name for name, pid in stack.status().items() if pid is not None}
    variables = stack.environment(running & parts_needed(os.environ)) if running else {}
    for name, value in variables.items():
        # boto3 reads AWS_* from the environment; the other variables become a layer of the configuration.
        if name.startswith("AWS_"):
            os.environ.setdefault(name, value)
    return variables


def database_url() -> Secret:
    """The database's address; raises ConfigurationError if there is none."""
    from rythmiq_ray import config_loader

    return config_loader.database_url(defaults=embedded())


@contextmanager
def database(*, statement_timeout_s: float = 30.0) -> Iterator[Connection]:
    """A connection whose transaction is committed at the end; raises ConfigurationError and DatabaseUnavailable."""
    from rythmiq_ray.queue.connection import translated
    from rythmiq_ray.queue.schema import connect_checked

    connection = connect_checked(database_url(), statement_timeout_s=statement_timeout_s)
    try:
        yield connection
        with translated():
            connection.commit()
    finally:
        connection.close()


def store_of(uri: str) -> ArtifactStore:
    """The store of an artifact. Its URI contains the bucket or folder, so reading needs no other configuration."""
    parts = urlsplit(uri)
    embedded()
    if parts.scheme == "s3" and parts.netloc:
        return _store("s3", parts.netloc)
    if parts.scheme == "file":
        return _store("local", None)
    raise NotFound("The row of this artifact names no store that can be read")


@cache
def _store(kind: str, bucket: str | None) -> ArtifactStore:
    from rythmiq_ray.artifacts import open_store
    from rythmiq_ray.config import ArtifactsConfig

    return open_store(
        ArtifactsConfig(
            type="s3" if kind == "s3" else "local",
            bucket=bucket,
            path="/",
            prefix="",
            part_size_bytes=_CHUNK_BYTES,
            concurrency=8,
            requester_pays=True,
        )
    )


def own_store() -> ArtifactStore:
    """The configured store, for local inputs; raises ConfigurationError if there is none."""
    from rythmiq_ray import config_loader
    from rythmiq_ray.artifacts import open_store

    return open_store(config_loader.artifacts(defaults=embedded()))


@contextmanager
def reading() -> Iterator[None]:
    """Turns errors while an artifact is streamed into StoreUnavailable; ``open`` itself does so for its own errors."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except BotoCoreError as error:
        raise StoreUnavailable(f"Reading from the artifact store failed: {type(error).__name__}") from None


def read(uri: str) -> Iterator[bytes]:
    """Streams an artifact; raises NotFound or StoreUnavailable."""
    with reading(), store_of(uri).open(uri) as source:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk


def bring(
    files: Sequence[tuple[Artifact, Path]], progress: Callable[[int], None] = lambda _bytes: None
) -> list[Exception | None]:
    """Downloads artifacts into folders, several at once; returns for each its fault, RythmiqError or OSError, or None.

    Files that are there already and match are skipped.
    """
    from rythmiq_ray.artifacts import download

    def bring_one(one: tuple[Artifact, Path]) -> Exception | None:
        file, folder = one
        try:
            if _is_there(folder / file.name, file):
                progress(file.bytes)
                return None
            with reading():
                download(store_of(file.uri), file, folder, progress)
        except (RythmiqError, OSError) as error:
            return error
        return None

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            return list(pool.map(bring_one, files))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _is_there(path: Path, file: Artifact) -> bool:
    """Whether the file was downloaded before, with the right size and SHA-256."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest() == file.sha256


class Backends:
    """The execution backend, made on first use: a command that only reads the store needs no API key."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._backend: ExecutionBackend | None = None

    def __enter__(self) -> Backends:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def get(self) -> ExecutionBackend:
        """The backend; raises ConfigurationError."""
        if self._backend is None:
            from rythmiq_ray import config_loader
            from rythmiq_ray.assembly import open_backend

            config = config_loader.load(defaults=embedded()).config
            backend = open_backend(config.execution, config.camber)
            self._stack.callback(backend.close)
            self._backend = backend
        return self._backend
