"""What a console is given to say why a job does not run: the command line's own answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

    from rythmiq_ray.model import Job


class Reason(Protocol):
    """What keeps a job from running, and what would change it."""

    @property
    def message(self) -> str: ...

    @property
    def remedy(self) -> str: ...


Why = Callable[["Connection", "Job"], Iterable[Reason]]
