"""An emulator of Camber Cloud's API, for development, tests and benchmarks.

It follows the contract over HTTP and runs real processes, but on this machine and for whoever holds its one key. It
imports nothing else of this project, so that it cannot share a misunderstanding with the client.
"""

from rythmiq_ray.local.camber.emulator import Emulator
from rythmiq_ray.local.camber.faults import Cancelling, Faults, ListShape, Outage
from rythmiq_ray.local.camber.settings import Settings

__all__ = ["Cancelling", "Emulator", "Faults", "ListShape", "Outage", "Settings"]
