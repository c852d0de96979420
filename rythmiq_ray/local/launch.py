"""Becomes another program, as another user if asked, that gets a signal when the thread that started it ends.

Run by its path in an interpreter of its own, so it imports nothing of ours::

    python -I -S launch.py PARENT_PID SIGNAL UID:GID PROGRAM [ARGUMENT …]

``SIGNAL`` 0 means no tie, ``UID:GID`` ``-`` means the same user. A process of its own does this, and not a function
between fork and exec, because that one may find any lock held by a thread that the child does not have.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, number, identity, *command = sys.argv[1:]
    if identity != "-":
        user, group = map(int, identity.split(":"))
        os.setgroups([])
        os.setgid(group)
        os.setuid(user)
    if int(number):
        # After the change of user, which clears it. A parent that ended before this line is noticed by the next one.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != int(parent):
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606


main()
