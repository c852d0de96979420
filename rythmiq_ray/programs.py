"""Where programs are that we start."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

TETHER: Final = "setpriv"
"""Of util-linux. It has the kernel end a program when the thread that waits for it is gone, however that went."""


def find_program(name: str) -> str | None:
    """The path of a program, by a path, on PATH, or beside this Python, where pip puts programs; None: nowhere."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    return None if found is None else str(Path(found).absolute())
