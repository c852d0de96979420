"""Fixtures: a Postgres and an S3 for the whole run, a fresh database, bucket prefix or emulator for each test."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from samples import API_KEY

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from web_rows import Rows

    from rythmiq_ray.local.camber import Emulator
    from rythmiq_ray.local.postgres import Postgres
    from rythmiq_ray.local.s3 import S3

TEMPLATE = "rythmiq_template"
MAY_SKIP_IN_CI = (
    "only root",  # CI may run as anybody,
    "may not mount",  # in a container without the right to mount,
    "not allowed to mount",
    "no git history",  # from a shallow clone,
    "this machine allows too few",  # and with limits of its own.
)
_OTHER_POSTGRES = os.environ.get("RYTHMIQ_TEST_POSTGRES")


LONG = ("cluster", "chaos", "web", "top")
"""Folders whose files take long: begun last, they would keep one process busy while the others have nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts what takes long first. Files stay together."""
    folders = {folder: place for place, folder in enumerate(LONG)}
    items.sort(key=lambda item: folders.get(item.path.parent.name, len(folders)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a skipped test is a failure, but for those that cannot run everywhere."""
    report = yield
    if (
        report.skipped
        and os.environ.get("CI") == "true"
        and not any(why in str(report.longrepr) for why in MAY_SKIP_IN_CI)
    ):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, and not on the short list in tests/conftest.py: {report.longrepr}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _hermetic() -> Iterator[None]:
    """Nothing of the caller's decides what a test does, and Ray writes no token into the home folder."""
    # A shell starts what it puts in the background with SIGINT ignored, and children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    patch = pytest.MonkeyPatch()
    for name in list(os.environ):
        if name.startswith(("AWS_", "CAMBER_", "ARTIFACT_STORE_", "RYTHMIQ_")) or name in (
            "DATABASE_URL",
            "EXECUTION_BACKEND",
            "SERVICE_ENV",
            "PORT",
            "LOG_LEVEL",
            "LOG_FORMAT",
            "RAY_ADDRESS",
        ):
            patch.delenv(name)
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_MODE", "disabled")
    yield
    patch.undo()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A server without fsync; RYTHMIQ_TEST_POSTGRES names the folder of another version's programs."""
    from rythmiq_ray.local.postgres import Postgres

    # Not pytest's own folder, which only root could enter, and root's Postgres is another user.
    root = Path(tempfile.mkdtemp(prefix="rythmiq-test-"))
    root.chmod(0o711)
    server = Postgres(root, fsync=False, programs=Path(_OTHER_POSTGRES) if _OTHER_POSTGRES else None)
    try:
        server.start(tethered=True)
        server.wait()
        yield server
    finally:
        server.stop()
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def template(postgres: Postgres) -> str:
    """The name of a migrated database, from which copies are made in milliseconds."""
    from rythmiq_ray.queue.migrations import migrate
    from rythmiq_ray.secret import Secret

    _administer(postgres, f"CREATE DATABASE {TEMPLATE}")
    migrate(Secret(_url(postgres, TEMPLATE)))
    return TEMPLATE


@pytest.fixture
def database_url(postgres: Postgres, template: str) -> Iterator[str]:
    """A fresh, migrated database."""
    name = f"test_{uuid4().hex}"
    _administer(postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _url(postgres, name)
    _administer(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection]:
    """To the test's own database; each statement is a transaction."""
    import psycopg2

    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    yield connection
    connection.close()


@pytest.fixture
def rows(connection: Connection, tmp_path: Path) -> Rows:
    """Puts rows in, as a busy database has them."""
    from web_rows import Rows

    return Rows.of(connection, tmp_path / "store")


@pytest.fixture
def empty_database_url(postgres: Postgres) -> Iterator[str]:
    """A fresh database that nobody migrated."""
    name = f"test_{uuid4().hex}"
    _administer(postgres, f"CREATE DATABASE {name}")
    yield _url(postgres, name)
    _administer(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server with one bucket."""
    from rythmiq_ray.local.s3 import S3

    server = S3.tethered(
        tmp_path_factory.mktemp("s3"),
        access_key="test-access-key",
        secret_key=f"canary-s3-{secrets.token_hex(12)}",
        bucket="artifacts",
    )
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_client(s3: S3) -> Any:
    """One for all tests, because a session of boto3 reads its description of S3 anew."""
    return s3.client()


@pytest.fixture
def s3_environment(s3: S3, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """``AWS_*`` for boto3 in this process; the same as a dict for others."""
    from rythmiq_ray.local.s3 import REGION

    environment = {
        "AWS_ACCESS_KEY_ID": s3.access_key,
        "AWS_SECRET_ACCESS_KEY": s3.secret_key,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL_S3": s3.endpoint,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.fixture
def s3_bucket(s3_client: Any, s3_environment: dict[str, str]) -> Iterator[str]:
    """The name of an empty bucket, and ``AWS_*`` set for it."""
    name = f"test-{uuid4().hex}"
    s3_client.create_bucket(Bucket=name)
    yield name
    for page in s3_client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for found in page.get("Contents", []):
            s3_client.delete_object(Bucket=name, Key=found["Key"])
    s3_client.delete_bucket(Bucket=name)


@pytest.fixture
def camber(tmp_path: Path) -> Iterator[Emulator]:
    """A Camber emulator that runs real processes, with short waits."""
    from rythmiq_ray.local.camber import Emulator

    emulator = Emulator(tmp_path / "camber", api_key=API_KEY)
    emulator.start()
    try:
        yield emulator
    finally:
        emulator.stop()


def _administer(postgres: Postgres, statement: str) -> None:
    import psycopg2

    connection = psycopg2.connect(postgres.url)
    connection.autocommit = True
    try:
        connection.cursor().execute(statement)
    finally:
        connection.close()


def _url(postgres: Postgres, name: str) -> str:
    return postgres.url.replace("/postgres?", f"/{name}?")
