"""Checks that this machine can run a local Ray, before it starts: Ray's own errors come late, or not at all."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from pathlib import Path
from typing import Final

from rythmiq_ray.errors import ConfigurationError, RayUnavailable

_SOCKET_PATH_BYTES: Final = 107
"""The longest path of a socket on Linux."""
_SOCKET_BELOW: Final = "/ray/session_2026-01-07_10-30-45_123456_{pid}/sockets/plasma_store"
"""The longest path of a socket that Ray makes in its temporary folder."""
_LEAST_FILES: Final = 256
"""With fewer open files, Ray's processes end or wait for each other without any message."""
_LEAST_FREE_BYTES: Final = 1024 * 1024
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def check() -> None:
    """Raises ConfigurationError, or RayUnavailable for a fault that may pass; both name cause and remedy."""
    _check_files()
    _check_temporary_folder(Path(temporary_folder()))


def ensure_home() -> None:
    """Sets ``HOME`` if it is unset, as for a container's user without a name: libraries read it when imported."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = "/"


def temporary_folder() -> str:
    """Where Ray puts its sockets and logs, below a folder ``ray``."""
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()


def _check_files() -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ray raises the soft limit to the hard one.
    if hard != resource.RLIM_INFINITY and hard < _LEAST_FILES:
        raise ConfigurationError(
            f"A process may open {hard} files here, and Ray needs {_LEAST_FILES} at the very least:"
            " raise the limit, with `ulimit -n 65536`, LimitNOFILE= or --ulimit nofile=65536"
        )


def _check_temporary_folder(folder: Path) -> None:
    remedy = "set RAY_TMPDIR to a folder with a short name that can be written, such as /tmp"
    longest = len(os.fsencode(f"{folder}{_SOCKET_BELOW.format(pid=os.getpid())}"))
    if longest > _SOCKET_PATH_BYTES:
        most = _SOCKET_PATH_BYTES - longest + len(os.fsencode(folder))
        raise ConfigurationError(
            f"Ray's temporary folder {folder} has a name of {len(os.fsencode(folder))} bytes, and its sockets allow"
            f" {most}: {remedy}"
        )
    try:
        place = folder / "ray"
        place.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=place) as probe:
            probe.write(b"\0" * _LEAST_FREE_BYTES)
            probe.flush()
    except OSError as error:
        reason = f"Ray's temporary folder {folder} cannot be used: {error.strerror or error}"
        if error.errno in _FULL:
            raise RayUnavailable(f"{reason}: make room, or {remedy}") from None
        raise ConfigurationError(f"{reason}: {remedy}") from None
