"""A durable job runner on Ray: jobs in Postgres, work on Camber Cloud, artifacts in S3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rythmiq_ray.client import Client, FunctionHandle, GroupHandle, JobFailed, JobHandle, Result, Table
    from rythmiq_ray.model import Input, JobSpec, NewGroup, NewJob
    from rythmiq_ray.queue import enqueue, enqueue_group, enqueue_many
    from rythmiq_ray.sweeps import grid, zipped

    __version__: str

__all__ = [
    "Client",
    "FunctionHandle",
    "GroupHandle",
    "Input",
    "JobFailed",
    "JobHandle",
    "JobSpec",
    "NewGroup",
    "NewJob",
    "Result",
    "Table",
    "__version__",
    "enqueue",
    "enqueue_group",
    "enqueue_many",
    "grid",
    "zipped",
]
_PLACES = {
    **dict.fromkeys(("Client", "FunctionHandle", "GroupHandle", "JobFailed", "JobHandle", "Result", "Table"), "client"),
    **dict.fromkeys(("Input", "JobSpec", "NewGroup", "NewJob"), "model"),
    **dict.fromkeys(("enqueue", "enqueue_group", "enqueue_many"), "queue"),
    **dict.fromkeys(("grid", "zipped"), "sweeps"),
}


def __getattr__(name: str) -> Any:
    # Imported on first use, so that a driver can set its signal handlers within milliseconds of its start.
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("rythmiq-ray")
        except PackageNotFoundError:  # run from a source tree that was not installed
            return "0+source"
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(f"rythmiq_ray.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
