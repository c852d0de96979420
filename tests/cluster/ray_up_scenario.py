"""An operator's afternoon: ``ray up``, ``ray job submit``, ``ray job stop`` in mid-run, a second submit, ``ray down``.

Run by test_ray_up.py in namespaces of its own (processes, network, mounts): what ``ray stop`` ends there is all that is
there, the default ports are free, and root's home is a folder given as the argument.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import psycopg2

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
DASHBOARD = "http://127.0.0.1:8265"
CANARY = "canary-secret-value-4711"
OPTIONS = ["driver.poll_interval_s=0.3", "driver.lease_s=60", "camber.settle_s=0.5"]
DRIVER = ["python", "-m", "rythmiq_ray.driver", *OPTIONS]
# Ray waits for all of it, even where the driver ended long before: to 2.60 it lives until it is reaped.
PATIENT = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "8"}}'
JOBS = 6


def main(home: Path) -> None:
    loopback_up()
    become_at_home(home)
    sshd = serve_ssh(home)
    rythmiq("local", "up")
    settings = environment()
    (home / "driver.env").write_text(
        "# secrets, some of a kind that a shell would trip over\n"
        + "".join(f"{name}={value}\n" for name, value in settings.items() if not name.startswith("AWS_"))
        + f"RYTHMIQ_SECRET_TOKEN={CANARY} & $(false) 'quoted\n"
    )
    (home / "node.env").write_text(
        "".join(f"{name}={value}\n" for name, value in settings.items() if name.startswith("AWS_"))
    )
    cluster = home / "cluster.yaml"
    text = (ROOT / "cluster.local.yaml").read_text()
    text = text.replace("192.0.2.10", "127.0.0.1").replace("[192.0.2.11, 192.0.2.12]", "[]").replace(": 2\n", ": 0\n")
    text = text.replace("ssh_user: rythmiq", "ssh_user: root").replace("/opt/rythmiq/bin", str(PROGRAMS))
    cluster.write_text(text)
    run("ray", "get-auth-token", "--generate")

    run("ray", "up", str(cluster), "--yes", timeout_s=150)
    say("the cluster is up")
    assert status_without_token("/api/jobs/") == 401, "the job API answers nobody without the token"

    # They do not end before the first driver has stopped, however slow the machine is.
    go = home / "go"
    command = f'test "${{#TOKEN}}" -gt 20 && until [ -e {go} ]; do sleep 0.2; done'
    lines = [{"command": command, "secrets": ["TOKEN"], "max_attempts": 1} for _ in range(JOBS)]
    (home / "jobs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rythmiq("enqueue", "--file", str(home / "jobs.jsonl"))
    submit("first", "--runtime-env-json", PATIENT)
    refused = run("ray", "job", "submit", *at(), "--submission-id", "first", "--no-wait", "--", *DRIVER, ok=False)
    assert "already exists" in refused, refused
    until(lambda: count("phase = 'waiting' AND remote_status = 'RUNNING'") > 0, "a remote job runs", 60)

    run("ray", "job", "stop", *at(), "first", timeout_s=90)
    assert "Jobs given back" in logs("first"), logs("first")
    assert "Worker stopped" in logs("first"), logs("first")
    assert count("driver_id IS NOT NULL AND state = 'RUNNING' AND phase = 'waiting'") == 0
    assert count("stopped_at IS NOT NULL", "drivers") == 1, "the driver ended in order"
    say("stopped in mid-run, with its jobs given back")
    go.touch()

    submit("second", "--runtime-env-json", PATIENT, extra=["--drain"])
    until(lambda: count("state = 'SUCCEEDED' AND attempt = 1") == JOBS, "the second driver ends all jobs", 90)
    until(lambda: "succeeded" in run("ray", "job", "status", *at(), "second"), "the driver exits 0", 60)
    assert count("attempt <> 1", "attempts") == 0
    assert count("remote_id IS NULL", "attempts") == 0
    creates = [event["mount_dir"] for event in journal(home) if event["event"] == "create"]
    assert len(creates) == len(set(creates)) == JOBS, "one remote job for each attempt"

    search(home, [CANARY, settings["CAMBER_API_KEY"], settings["AWS_SECRET_ACCESS_KEY"]])
    run("ray", "down", str(cluster), "--yes", timeout_s=90)
    until(lambda: not ray_processes(), "nothing of Ray is left running", 30)
    rythmiq("local", "down")
    sshd.terminate()
    say("done")


def loopback_up() -> None:
    """A new network namespace has a loopback that is down; ``ip`` need not be installed."""
    up_and_running = 0x1 | 0x40
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh", b"lo", up_and_running))


def become_at_home(home: Path) -> None:
    """For us and for whoever logs in, root's home is this folder."""
    lines = Path("/etc/passwd").read_text().splitlines()
    fields = [line.split(":") for line in lines]
    for entry in fields:
        if entry[0] == "root":
            entry[5], entry[6] = str(home), "/bin/bash"
    (home / "passwd").write_text("\n".join(":".join(entry) for entry in fields) + "\n")
    (home / "passwd").chmod(0o644)
    subprocess.run(["mount", "--bind", str(home / "passwd"), "/etc/passwd"], check=True)
    (home / ".bash_profile").write_text(f"export PATH={PROGRAMS}:$PATH\n")
    (home / ".bashrc").write_text(f"export PATH={PROGRAMS}:$PATH\n")
    for name in list(os.environ):
        if name.startswith(("RAY_", "AWS_", "RYTHMIQ_", "CAMBER_", "ARTIFACT_")) or name in (
            "SERVICE_ENV",
            "DATABASE_URL",
        ):
            del os.environ[name]
    os.environ |= {
        "HOME": str(home),
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}:/usr/sbin",
        "RAY_AUTH_MODE": "token",
        "RYTHMIQ_LOCAL_DIR": str(home / "stack"),
    }
    os.chdir(home)


def serve_ssh(home: Path) -> subprocess.Popen[bytes]:
    ssh = home / ".ssh"
    ssh.mkdir(mode=0o700)
    for name in ("id_ed25519", "host"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ssh / name)], check=True)
    (ssh / "authorized_keys").write_bytes((ssh / "id_ed25519.pub").read_bytes())
    (ssh / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nHostKey {ssh / 'host'}\nPermitRootLogin prohibit-password\n"
        "PasswordAuthentication no\nStrictModes no\nUsePAM no\nPidFile none\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", str(ssh / "sshd_config")])

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", 22)) == 0

    until(answers, "sshd listens", 10)
    return process


@cache
def environment() -> dict[str, str]:
    """What ``rythmiq local env`` prints, as a dict."""
    words = shlex.split(rythmiq("local", "env"))
    pairs = [word.split("=", 1) for word in words if "=" in word]
    return {**dict(pairs), "SERVICE_ENV": "prod", "EXECUTION_BACKEND": "camber"}


def status_without_token(path: str) -> int:
    try:
        with urllib.request.urlopen(DASHBOARD + path, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def submit(name: str, *options: str, extra: list[str] | None = None) -> None:
    run("ray", "job", "submit", *at(), "--submission-id", name, "--no-wait", *options, "--", *DRIVER, *(extra or []))
    until(lambda: "Worker ready" in logs(name), f"driver {name} is ready", 60)
    say(f"driver {name} is ready")


def at() -> list[str]:
    return ["--address", DASHBOARD]


def logs(name: str) -> str:
    return run("ray", "job", "logs", *at(), name)


def count(condition: str, table: str = "jobs") -> int:
    with psycopg2.connect(environment()["DATABASE_URL"]) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM rythmiq.{table} WHERE {condition}")
        (found,) = cursor.fetchone() or (0,)
        return int(found)


def journal(home: Path) -> list[dict[str, Any]]:
    """What the emulator wrote down."""
    (found,) = (home / "stack").rglob("journal.jsonl")
    return [json.loads(line) for line in found.read_text().splitlines()]


def search(home: Path, secrets: list[str]) -> None:
    """No secret is in the dashboard's answers or in any log of Ray's."""
    token = (home / ".ray" / "auth_token").read_text().strip()
    texts: dict[str, str] = {}
    for path in ("/api/jobs/", "/nodes?view=details", "/api/v0/tasks?detail=1", "/api/v0/runtime_envs"):
        request = urllib.request.Request(DASHBOARD + path, headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                texts[path] = answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:  # Not each is served by each Ray; what it says counts all the same.
            texts[path] = error.read().decode(errors="replace")
    assert '"second"' in texts["/api/jobs/"], texts["/api/jobs/"]
    for file in Path("/tmp/ray").glob("session_*/logs/**/*"):
        if file.is_file():
            texts[str(file)] = file.read_text(errors="replace")
    assert sum("Worker ready" in text for text in texts.values()) >= 2, "the drivers' logs are among them"
    found = [(where, secret[:6]) for where, text in texts.items() for secret in secrets if secret in text]
    assert found == [], found


def ray_processes() -> list[str]:
    names = []
    for process in psutil.process_iter(["name", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if "raylet" in line or "gcs_server" in line or line.startswith("ray::"):
            names.append(line[:80])
    return names


def rythmiq(*arguments: str) -> str:
    return run("rythmiq", *arguments)


def run(*command: str, timeout_s: float = 60, ok: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if (done.returncode == 0) is not ok:
        raise AssertionError(f"{shlex.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout if ok else done.stdout + done.stderr


def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.3)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
