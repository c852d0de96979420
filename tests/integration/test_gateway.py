"""examples/gateway, a service in TypeScript, as its users meet it: over HTTP, on the real queue, with a real driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import requests

from rythmiq_ray import Client
from rythmiq_ray.local.process import free_ports

pytest_plugins = ["rythmiq_ray.testing"]
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120

pytestmark = pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js and npm")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service, its types made from `rythmiq schema`."""
    folder = tmp_path_factory.mktemp("gateway") / "gateway"
    shutil.copytree(ROOT / "examples/gateway", folder, ignore=shutil.ignore_patterns("node_modules", "dist"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in (["npm", "ci", "--no-fund", "--no-audit"], ["npm", "run", "build"]):
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def gateway(built: Path, rythmiq: Client) -> Iterator[str]:
    """Where it answers; it logs in as a member of rythmiq_enqueue."""
    url = os.environ["DATABASE_URL"]
    owner = psycopg2.connect(url)
    owner.autocommit = True
    with owner.cursor() as cursor:
        cursor.execute((ROOT / "deploy/sql/roles.sql").read_text(encoding="utf-8"))
        cursor.execute("CREATE ROLE a_service LOGIN IN ROLE rythmiq_enqueue")
        cursor.execute("GRANT CREATE, USAGE ON SCHEMA public TO a_service")
    login = url.replace("postgres@", "a_service@", 1)
    own = psycopg2.connect(login)
    with own, own.cursor() as cursor:
        cursor.execute((ROOT / "examples/gateway/schema.sql").read_text(encoding="utf-8"))
    own.close()
    (port,) = free_ports(1)
    # node-postgres reads a socket's folder as the host.
    folder = psycopg2.extensions.parse_dsn(login)["host"]
    name = psycopg2.extensions.parse_dsn(login)["dbname"]
    process = subprocess.Popen(
        ["node", "dist/gateway.js"],
        cwd=built,
        env={**os.environ, "DATABASE_URL": f"postgresql://a_service@/{name}?host={folder}", "PORT": str(port)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(30)
    process.stdout.close()
    with owner.cursor() as cursor:
        cursor.execute("DROP OWNED BY a_service; DROP ROLE a_service")
    owner.close()


@pytest.mark.timeout(400)
def test_an_order_is_taken_run_and_told_of(gateway: str, rythmiq: Client) -> None:
    order = {"customer": "ann", "job": {"command": "echo done > out.txt", "outputs": ["out.txt"], "user_id": "ann"}}
    made = requests.post(f"{gateway}/orders", json=order, timeout=TIMEOUT_S)
    assert made.status_code == 201, made.text
    events = requests.get(f"{gateway}/orders/{made.json()['order']}/events", timeout=TIMEOUT_S)
    assert events.text.startswith('event: ended\ndata: {"order_id":')
    assert '"state":"SUCCEEDED"' in events.text
    shown = requests.get(f"{gateway}/orders/{made.json()['order']}", timeout=TIMEOUT_S).json()
    assert {file["name"] for file in shown["artifacts"]} == {"log.txt", "out.txt"}
    assert rythmiq.job(made.json()["job_id"]).info().enqueued_by == "a_service"
    wrong = requests.post(f"{gateway}/orders", json={"customer": "ann", "job": {"command": ""}}, timeout=TIMEOUT_S)
    assert (wrong.status_code, wrong.json()["field"]) == (400, "command")
    later = {"customer": "bob", "job": {"command": "true", "delay": "1h"}}
    waits = requests.post(f"{gateway}/orders", json=later, timeout=TIMEOUT_S).json()
    ended = requests.delete(f"{gateway}/orders/{waits['order']}", timeout=TIMEOUT_S).json()
    assert ended["state"] == "CANCELLED"
    assert requests.get(f"{gateway}/orders/99999", timeout=TIMEOUT_S).status_code == 404
