"""Real servers for the integration tests, one of each for a whole run."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2
import psycopg2.extensions
import pytest

from rythmiq_ray.local.s3 import S3


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS with the bucket ``artifacts``; it cannot outlive the tests."""
    server = S3.tethered(
        tmp_path_factory.mktemp("s3"),
        access_key="test-key",
        secret_key="canary-s3-secret-7d21",
        bucket="artifacts",
    )
    yield server
    server.stop()


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg2.extensions.connection]:
    """To the test's own database; each statement is a transaction."""
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    yield connection
    connection.close()
