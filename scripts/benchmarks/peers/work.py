"""The remote work of one job, as a user would write it by hand: with requests for threads, with aiohttp for asyncio.

Bundle up, create, look until it has ended, result and log down, log and manifest into the store, path removed; the
log's hash is checked, and both files are on the disk before the job counts as done, as with the runner.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import requests

POLL_S = 1.0
"""Seconds between two polls of a job; the first poll is at once."""
TIMEOUT_S = 30.0
SCRIPT = b"#!/usr/bin/env bash\n" + b"# as long as the runner's own wrapper, so that as many bytes are sent\n" * 150
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"})


@dataclass(frozen=True)
class Site:
    """Where to do the remote work, read from the benchmark's environment."""

    endpoint: str
    headers: dict[str, str]
    store: Path
    owner: str = "camber-local"

    @classmethod
    def from_environ(cls) -> Site:
        return cls(
            endpoint=os.environ["CAMBER_API_ENDPOINT"],
            headers={"Authorization": f"Bearer {os.environ['CAMBER_API_KEY']}"},
            store=Path(os.environ["ARTIFACT_STORE_PATH"]),
        )

    def uri(self, name: str) -> str:
        return f"stash://{self.owner}/{name}"

    def body(self, path: str) -> dict[str, Any]:
        return {
            "command": "bash run.sh",
            "engine_type": "BASE",
            "node_size": "XXSMALL",
            "num_nodes": 1,
            "with_gpu": False,
            "mount_dir": path,
        }

    def keep(self, path: str, remote_id: int, result: dict[str, Any], log: bytes) -> None:
        """Writes log and manifest. Raises ValueError for an incomplete log."""
        digest = hashlib.sha256(log).hexdigest()
        if digest != result["log"]["sha256"]:
            raise ValueError(f"the log of {path} is not whole")
        folder = self.store / path
        folder.mkdir(parents=True, exist_ok=True)
        manifest = {
            "remote_id": remote_id,
            "exit_code": result["exit_code"],
            "artifacts": [{"name": "log.txt", "bytes": len(log), "sha256": digest}],
        }
        write_durably(folder / "log.txt", log)
        write_durably(folder / "manifest.json", json.dumps(manifest).encode())


def write_durably(target: Path, data: bytes) -> None:
    partial = target.with_suffix(".part")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@cache
def blocking_client() -> tuple[Site, requests.Session]:
    """Made once in each process that runs one job at a time."""
    return Site.from_environ(), requests.Session()


def run_blocking(site: Site, session: requests.Session, path: str) -> int:
    """Does one job, from the bundle to the removal of its path, in the calling thread."""
    stash = f"{site.endpoint}/stash/file"

    def call(method: str, url: str, **rest: Any) -> requests.Response:
        answer = session.request(method, url, headers=site.headers, timeout=TIMEOUT_S, **rest)
        answer.raise_for_status()
        return answer

    call("PUT", stash, params={"path": site.uri(f"{path}/run.sh")}, data=SCRIPT)
    remote_id = int(data_of(call("POST", f"{site.endpoint}/jobs", json=site.body(path)).json())["job_id"])
    while True:
        status = data_of(call("GET", f"{site.endpoint}/jobs/{remote_id}").json())["job_status"]
        if status in ENDED:
            break
        time.sleep(POLL_S)
    result = call("GET", stash, params={"path": site.uri(f"{path}/rythmiq-result.json")}).json()
    log = call("GET", stash, params={"path": site.uri(f"{path}/rythmiq-log.txt")}).content
    site.keep(path, remote_id, result, log)
    call("DELETE", stash, params={"path": site.uri(path), "recursive": "true"})
    return remote_id


async def run_async(site: Site, session: aiohttp.ClientSession, path: str) -> int:
    """Does one job on an event loop."""
    stash = f"{site.endpoint}/stash/file"

    async def call(method: str, url: str, **rest: Any) -> bytes:
        async with session.request(method, url, headers=site.headers, **rest) as answer:
            answer.raise_for_status()
            return await answer.read()

    await call("PUT", stash, params={"path": site.uri(f"{path}/run.sh")}, data=SCRIPT)
    created = json.loads(await call("POST", f"{site.endpoint}/jobs", json=site.body(path)))
    remote_id = int(data_of(created)["job_id"])
    while True:
        status = data_of(json.loads(await call("GET", f"{site.endpoint}/jobs/{remote_id}")))["job_status"]
        if status in ENDED:
            break
        await asyncio.sleep(POLL_S)
    result = json.loads(await call("GET", stash, params={"path": site.uri(f"{path}/rythmiq-result.json")}))
    log = await call("GET", stash, params={"path": site.uri(f"{path}/rythmiq-log.txt")})
    await asyncio.to_thread(site.keep, path, remote_id, result, log)
    await call("DELETE", stash, params={"path": site.uri(path), "recursive": "true"})
    return remote_id


def new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=64), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
    )


def data_of(answer: Any) -> Any:
    """An answer without its envelope, if it has one."""
    return answer["data"] if isinstance(answer, dict) and "data" in answer else answer
