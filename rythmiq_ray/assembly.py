"""Puts executors together from the configuration: the one module that knows which backends and stores there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from rythmiq_ray.artifacts import open_store
from rythmiq_ray.backends import ExecutionBackend, OnCall
from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.backends.camber.key import ApiKey
from rythmiq_ray.backends.camber.probe import Learnt, probe
from rythmiq_ray.backends.local import LocalExecutionBackend
from rythmiq_ray.config import ArtifactsConfig, CamberConfig, Config, ExecutionConfig, InputsConfig
from rythmiq_ray.executor import Executor
from rythmiq_ray.secret import Secret

Key = Callable[[], Secret]
"""Asked for the key of each call, which may change while we run."""


def open_backend(
    execution: ExecutionConfig,
    camber: CamberConfig,
    *,
    key: Key | None = None,
    threads: int = 1,
    on_call: OnCall | None = None,
) -> ExecutionBackend:
    """The backend that the configuration names; without ``key``, its key is used. No call is made.

    ``threads``: how many call at once; ``on_call`` is told of every call. Raises ConfigurationError.
    """
    if execution.backend == "local":
        assert execution.local_path is not None  # noqa: S101 - config_loader.load requires it
        return LocalExecutionBackend(Path(execution.local_path))
    return CamberExecutionBackend(camber, key=key, threads=threads, on_call=on_call)


def probe_camber(camber: CamberConfig) -> Learnt:
    """What the live service has where the contract is inferred; see :mod:`rythmiq_ray.backends.camber.probe`."""
    return probe(camber, ApiKey(camber, on_change=lambda _key: None))


@dataclass(frozen=True, kw_only=True)
class ExecutorFactory:
    """A :class:`~rythmiq_ray.cluster.ExecutorFactory`: what of the configuration a task needs, and no more of it."""

    execution: ExecutionConfig
    camber: CamberConfig
    artifacts: ArtifactsConfig
    inputs: InputsConfig
    threads: int
    report_calls: bool

    @classmethod
    def of(cls, config: Config) -> Self:
        return cls(
            execution=config.execution,
            camber=config.camber,
            artifacts=config.artifacts,
            inputs=config.inputs,
            threads=config.ray.threads_per_task,
            report_calls=config.health.port is not None,
        )

    def build(self, *, key: Key | None = None, on_call: OnCall | None = None) -> Executor:
        return Executor(
            backend=open_backend(self.execution, self.camber, key=key, threads=self.threads, on_call=on_call),
            store=open_store(self.artifacts, self.inputs),
            timeout_s=self.execution.timeout_ms / 1000,
            concurrency=self.artifacts.concurrency,
        )

    def renewed(self, key: Key) -> Self:
        """With the key as it is now; this one itself where it has that."""
        now = key()
        return self if now == self.camber.api_key else replace(self, camber=replace(self.camber, api_key=now))


def key_of(config: Config, *, on_change: Callable[[Secret], None]) -> Key:
    """The key of the backend; ``on_change`` is told of a new one before it is used."""
    return ApiKey(config.camber, on_change=on_change)
