"""Camber Cloud as an execution backend. What is inferred about its API is data, in ``conf/camber.yaml``."""

from rythmiq_ray.backends.camber.backend import CamberExecutionBackend

__all__ = ["CamberExecutionBackend"]
