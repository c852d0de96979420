"""Finds external programs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

TETHER: Final = "setpriv"
"""A program of util-linux. Started by it, another program is killed by the kernel when its parent thread has ended."""


def find_program(name: str) -> str | None:
    """The path of a program, given as path or name: on PATH, or beside this Python, where pip puts them; else None."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    return None if found is None else str(Path(found).absolute())
