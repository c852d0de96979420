"""Builds executors from the configuration. Only this module knows which backends and stores exist."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from rythmiq_ray.artifacts import open_store
from rythmiq_ray.backends import CallObserver, ExecutionBackend
from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.backends.camber.key import ApiKey
from rythmiq_ray.backends.camber.probe import Learnt, probe
from rythmiq_ray.backends.local import LocalExecutionBackend
from rythmiq_ray.config import ArtifactsConfig, CamberConfig, Config, ExecutionConfig, InputsConfig
from rythmiq_ray.executor import Executor
from rythmiq_ray.secret import Secret

Key = Callable[[], Secret]
"""Returns the API key for a call; it may change while the process runs."""


def open_backend(
    execution: ExecutionConfig,
    camber: CamberConfig,
    *,
    key: Key | None = None,
    threads: int = 1,
    on_call: CallObserver | None = None,
) -> ExecutionBackend:
    """The configured backend; without ``key``, the configuration's key is used. Makes no call.

    ``threads``: how many threads call at once; ``on_call`` is called for every call. Raises ConfigurationError.
    """
    if execution.backend == "local":
        assert execution.local_path is not None  # noqa: S101 - config_loader.load requires it
        return LocalExecutionBackend(Path(execution.local_path))
    return CamberExecutionBackend(camber, key=key, threads=threads, on_call=on_call)


def probe_camber(camber: CamberConfig) -> Learnt:
    """Probes the inferred parts of Camber's API; see :mod:`rythmiq_ray.backends.camber.probe`."""
    return probe(camber, ApiKey(camber, on_change=lambda _key: None))


@dataclass(frozen=True, kw_only=True)
class ExecutorFactory:
    """A :class:`~rythmiq_ray.cluster.ExecutorFactory` with only those parts of the configuration that a task needs."""

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

    def build(self, *, key: Key | None = None, on_call: CallObserver | None = None) -> Executor:
        return Executor(
            backend=open_backend(self.execution, self.camber, key=key, threads=self.threads, on_call=on_call),
            store=open_store(self.artifacts, self.inputs),
            timeout_s=self.execution.timeout_ms / 1000,
            concurrency=self.artifacts.concurrency,
        )

    def renewed(self, key: Key) -> Self:
        """A factory with the present key; this one if the key has not changed."""
        now = key()
        return self if now == self.camber.api_key else replace(self, camber=replace(self.camber, api_key=now))


def key_of(config: Config, *, on_change: Callable[[Secret], None]) -> Key:
    """The backend's key; ``on_change`` is called with a new one before it is used."""
    return ApiKey(config.camber, on_change=on_change)
