"""``cluster.local.yaml`` brought up over SSH, a driver submitted, stopped and submitted again (ray_up_scenario.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

NAMESPACES = ("unshare", "--pid", "--net", "--mount-proc", "--fork", "--kill-child")


def missing() -> str | None:
    """What this machine lacks for it; none of that comes as a wheel."""
    programs = [name for name in ("ssh", "ssh-keygen", "rsync", "unshare") if shutil.which(name) is None]
    if not Path("/usr/sbin/sshd").exists():
        programs.append("sshd")
    if programs:
        return f"not installed: {', '.join(programs)} (Debian: openssh-server, rsync, util-linux)"
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode != 0:
        return "not allowed to make namespaces (needs root)"
    return None


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
@pytest.mark.timeout(400)
def test_an_operators_afternoon_on_a_cluster_of_ones_own() -> None:
    # A short path, for Ray's sockets; and one that root's Postgres, which is another user, can enter.
    home = Path(tempfile.mkdtemp(prefix="ru-", dir="/tmp"))
    home.chmod(0o755)
    scenario = Path(__file__).with_name("ray_up_scenario.py")
    # A Ray of one namespace must not find what those of others left in the folder that all share.
    inside = 'mkdir -p /tmp/ray && mount -t tmpfs ray /tmp/ray && exec "$0" "$@"'
    try:
        done = subprocess.run(
            [*NAMESPACES, "bash", "-c", inside, sys.executable, str(scenario), str(home)],
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=380,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.rstrip().endswith("done")
    finally:
        shutil.rmtree(home, ignore_errors=True)
