"""Camber Cloud as an execution backend. Inferred facts about its API are data, in ``conf/camber.yaml``."""

from rythmiq_ray.backends.camber.backend import CamberExecutionBackend

__all__ = ["CamberExecutionBackend"]
