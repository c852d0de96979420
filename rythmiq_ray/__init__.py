"""A durable job runner on Ray: jobs in Postgres, work on Camber Cloud, artifacts in S3."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from rythmiq_ray.model import Input, JobSpec, NewJob

if TYPE_CHECKING:
    from rythmiq_ray.queue import enqueue, enqueue_many

try:
    __version__ = version("rythmiq-ray")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+source"

__all__ = ["Input", "JobSpec", "NewJob", "__version__", "enqueue", "enqueue_many"]


def __getattr__(name: str) -> Any:
    # psycopg2 is imported by those who enqueue, not by everyone who imports the package.
    if name in ("enqueue", "enqueue_many"):
        from rythmiq_ray import queue

        return getattr(queue, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
