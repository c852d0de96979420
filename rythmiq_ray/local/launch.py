"""Replaces itself by another program, which gets a signal when the thread that started it ends.

It is run by its path in a separate interpreter, so it imports nothing of this package::

    python -I -S launch.py PARENT_PID SIGNAL UID:GID PROGRAM [ARGUMENT …]

``SIGNAL`` 0 means no signal, ``-`` for ``UID:GID`` means the same user. This is a separate process and not a function
between fork and exec, because such a function can wait forever for a lock that another thread held at the fork.
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
        # After the change of user, which clears it. The next line notices a parent that ended before this one.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != int(parent):
            sys.exit(1)
    os.execv(command[0], command)  # noqa: S606


main()
