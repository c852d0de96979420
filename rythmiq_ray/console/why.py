"""The type of the function that tells a console why a job does not run; it is the one of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from rythmiq_ray.model import Job


class Reason(Protocol):
    """A reason why a job does not run, and what would change it."""

    @property
    def message(self) -> str: ...

    @property
    def remedy(self) -> str: ...


Why = Callable[["Connection", "Job"], Iterable[Reason]]
