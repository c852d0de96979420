"""An emulator of Camber Cloud's API, for development, tests and benchmarks.

It follows the contract over HTTP and runs jobs as real processes, on this machine and for anybody who has its only key.
It imports nothing else of this project, so that it cannot share a misunderstanding with the client.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rythmiq_ray.local.camber.emulator import Emulator
    from rythmiq_ray.local.camber.faults import Cancelling, Faults, ListShape, Outage
    from rythmiq_ray.local.camber.settings import Settings

__all__ = ["Cancelling", "Emulator", "Faults", "ListShape", "Outage", "Settings"]


def __getattr__(name: str) -> Any:
    # Imported late: program.py is a process for each call and needs none of this.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rythmiq_ray.local.camber import emulator, faults, settings

    return next(getattr(module, name) for module in (emulator, faults, settings) if hasattr(module, name))
