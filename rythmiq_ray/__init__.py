"""A durable job runner on Ray: jobs in Postgres, work on Camber Cloud, artifacts in S3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rythmiq_ray.model import Input, JobSpec, NewJob
    from rythmiq_ray.queue import enqueue, enqueue_many

    __version__: str

__all__ = ["Input", "JobSpec", "NewJob", "__version__", "enqueue", "enqueue_many"]


def __getattr__(name: str) -> Any:
    # Imported when used: a driver sets its signal handlers within milliseconds of its start, before all else.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("rythmiq-ray")
        except PackageNotFoundError:  # run from a source tree that was not installed
            return "0+source"
    if name in ("Input", "JobSpec", "NewJob"):
        from rythmiq_ray import model

        return getattr(model, name)
    if name in ("enqueue", "enqueue_many"):
        from rythmiq_ray import queue

        return getattr(queue, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
