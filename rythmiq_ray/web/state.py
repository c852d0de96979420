"""The state that all pages of one console share."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rythmiq_ray.access import Backends
from rythmiq_ray.console.database import FAULTS, Database
from rythmiq_ray.console.why import Why
from rythmiq_ray.queue import listing
from rythmiq_ray.secret import Secret
from rythmiq_ray.web.daily_costs import DailyCosts
from rythmiq_ray.web.feed import SLOW_S, Feed
from rythmiq_ray.web.output_numbers import OutputNumbers
from rythmiq_ray.web.security import Keys

if TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection
    from starlette.requests import Request

_T = TypeVar("_T")
_COUNTED_S: Final = 2.0
"""For so long the counts of all jobs are good, however many pages ask."""
_MOST_SAID: Final = 100


@dataclass(frozen=True)
class Settings:
    """How a console is served."""

    token: Secret
    port: int
    hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]")
    """Names under which it may be asked for."""
    actions: bool = False
    base: str = ""
    """The prefix that a proxy serves it under, such as ``/rythmiq``; without a slash at its end."""
    secure: bool = False
    """Whether browsers reach it by TLS."""
    slow_s: float = SLOW_S


class Console:
    """Everything that is kept between two requests."""

    def __init__(self, url: Secret, settings: Settings, why: Why) -> None:
        self.settings = settings
        self.keys = Keys(settings.token)
        self.database = Database(url)
        self.feed = Feed(url, slow_s=settings.slow_s)
        self.daily_costs = DailyCosts(self.database)
        self.output_numbers = OutputNumbers(self.database)
        self.backends = Backends()
        self.why = why
        self.said = Said()
        self._lock = threading.Lock()
        self.ending = False
        self._kept: dict[str, tuple[float, Any]] = {}

    def counts(self, connection: Connection) -> list[listing.Count]:
        """All jobs by state, up to a bound each, as they were at most two seconds ago."""
        return self.kept("counts", _COUNTED_S, lambda: listing.counts(connection))

    def kept(self, name: str, for_s: float, look: Callable[[], _T]) -> _T:
        """The result of ``look``, cached for a time, so that many open pages cost one query."""
        with self._lock:
            at, found = self._kept.get(name, (0.0, None))
        if not at or time.monotonic() - at > for_s:
            found = look()
            with self._lock:
                self._kept[name] = (time.monotonic(), found)
        return found  # type: ignore[no-any-return]

    def forget(self) -> None:
        """After an action."""
        with self._lock:
            self._kept.clear()

    def warm(self) -> None:
        """Prepares what the first page would otherwise wait for; errors are ignored, as that page will show them."""
        with suppress(*FAULTS), self.database.read() as connection:
            listing.counts(connection)
            self.daily_costs.days(wait_s=0.0)

    async def ends_within(self, seconds: float) -> bool:
        """Waits; returns whether the console is ending."""
        until = time.monotonic() + seconds
        while not self.ending and time.monotonic() < until:
            await asyncio.sleep(min(0.25, seconds))
        return self.ending

    def end(self) -> None:
        """Ends streams, which would otherwise delay the end of the server."""
        self.ending = True
        self.feed.close()

    def close(self) -> None:
        """Ends what runs in the background."""
        self.end()
        self.output_numbers.close()
        self.database.close()
        with self.backends:
            pass


@dataclass
class Said:
    """What an action did, for the page that comes next; a reference stands in its address."""

    _texts: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def keep(self, text: str) -> str:
        """Returns the reference."""
        reference = secrets.token_urlsafe(9)
        self._texts[reference] = text
        while len(self._texts) > _MOST_SAID:
            self._texts.popitem(last=False)
        return reference

    def of(self, reference: str) -> str | None:
        """The text, as long as it is kept."""
        return self._texts.get(reference)


def console_of(request: Request) -> Console:
    """The console that a request came to."""
    found: Console = request.app.state.console
    return found
