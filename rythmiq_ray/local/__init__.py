"""The embedded default: a Postgres, an S3 and a Camber emulator from wheels, all on this machine, all real."""

from __future__ import annotations

from rythmiq_ray.errors import ErrorCode, RythmiqError


class PartFailed(RythmiqError):
    """A part of the embedded default did not start."""


class NotInstalled(RythmiqError, ModuleNotFoundError):
    """What the extra ``local`` brings is not here.

    Also a ModuleNotFoundError, for who only wants to know whether the embedded default can be used at all.
    """

    code = ErrorCode.CONFIGURATION

    def __init__(self, name: str) -> None:
        super().__init__(f"The embedded default needs {name}: pip install 'rythmiq-ray[local]'")
        self.name = name

    def __reduce__(self) -> tuple[type[NotInstalled], tuple[str]]:
        return type(self), (str(self.name),)
