"""The embedded default: Postgres, S3 and a Camber emulator, installed from wheels and run on this machine."""

from __future__ import annotations

from rythmiq_ray.errors import ErrorCode, RythmiqError


class PartFailed(RythmiqError):
    """A part of the embedded default did not start."""


class NotInstalled(RythmiqError, ModuleNotFoundError):
    """A package of the extra ``local`` is not installed.

    Also a ModuleNotFoundError, for code that only checks whether the embedded default can be used.
    """

    code = ErrorCode.CONFIGURATION

    def __init__(self, name: str) -> None:
        super().__init__(f"The embedded default needs {name}: pip install 'rythmiq-ray[local]'")
        self.name = name

    def __reduce__(self) -> tuple[type[NotInstalled], tuple[str]]:
        return type(self), (str(self.name),)
