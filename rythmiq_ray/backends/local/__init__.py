"""An execution backend that runs jobs as processes of the node: for tests and for people without Camber.

A command runs as the node's user and can read what that user can: it is not kept apart from anything.
"""

from rythmiq_ray.backends.local.backend import LocalExecutionBackend

__all__ = ["LocalExecutionBackend"]
