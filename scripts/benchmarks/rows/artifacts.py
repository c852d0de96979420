"""P5: copies artifacts from the stash to S3, one large file and many small ones, compared with uploads from memory."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any
from uuid import UUID, uuid4

from boto3.s3.transfer import TransferConfig

from benchmarks.collector import job_of
from benchmarks.environment import BUCKET, Environment
from benchmarks.measure import Bench, Goal, Row
from rythmiq_ray.backends.camber.client import CamberClient

MB = 1024 * 1024
WARM_BYTES = 32 * MB
"""Uploaded before the measurement, because the server makes its volumes when the first objects come."""
SMALL_BYTES = 64 * 1024
PUT_THREADS = 16
MEMORY_MB = 100


def measure(bench: Bench) -> Row:
    row = Row("P5", "artifacts, stash to S3")
    large_bytes = bench.size(2048, 64) * MB
    small = bench.size(2000, 300)
    for run in range(bench.repeat):
        with Environment(bench.root / f"artifacts-{run}", "--instant") as environment:
            warm = _put_job(environment, [SMALL_BYTES] * 2)
            _upload_large(environment, WARM_BYTES)
            for name, sizes in (("large", [large_bytes]), ("small", [SMALL_BYTES] * small)):
                megabytes = sum(sizes) / 1e6
                seconds = _upload_large(environment, large_bytes) if name == "large" else _put_small(environment, small)
                row.add(f"{name}: upload from memory", "MB/s", megabytes / seconds)
                _empty(environment)
                measured = _put_job(environment, sizes)
                result = _collect(environment, warm, measured)
                row.add(f"{name}: stash to S3", "MB/s", megabytes / result["seconds"])
                row.add(f"{name}: memory above idle", "MB", result["memory_mb"])
                _empty(environment)
            bench.say(", ".join(f"{series.name} {series.values[-1]:.0f} {series.unit}" for series in row.series))
    row.compare("large: stash to S3", "large: upload from memory", 0.9)
    row.compare("small: stash to S3", "small: upload from memory", 0.8)
    for name in ("large", "small"):
        row.goals.append(Goal(f"{name}: memory above idle, MB", row[f"{name}: memory above idle"], MEMORY_MB, True))
    row.notes.append(
        f"large: one file of {large_bytes // MB} MiB beside boto3's upload_fileobj; small: {small} files of 64 KiB"
        f" beside put_object in {PUT_THREADS} threads"
    )
    return row


class _Zeros(io.RawIOBase):
    """A stream of this many zero bytes from memory."""

    def __init__(self, size: int) -> None:
        self.left = size
        self._block = bytes(MB)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        size = min(self.left if size < 0 else size, self.left)
        self.left -= size
        return self._block * (size // MB) + self._block[: size % MB]


def _put_job(environment: Environment, sizes: list[int]) -> UUID:
    """Writes what an ended job leaves: its files and the result that names them."""
    job_id = uuid4()
    path = job_of(job_id).remote_path
    digests: dict[int, str] = {}
    with closing(CamberClient(environment.config(s3=True).camber)) as client:
        folder = f"stash://{client.me()}/{path}"

        def put(number: int) -> dict[str, Any]:
            size = sizes[number]

            @contextmanager
            def opened() -> Iterator[Any]:
                yield _Zeros(size)

            client.stash_stream(f"{folder}/file-{number}.bin", opened)
            return {"name": f"file-{number}.bin", "bytes": size, "sha256": digests[size]}

        for size in set(sizes):
            digest, zeros = hashlib.sha256(), _Zeros(size)
            while block := zeros.read(MB):
                digest.update(block)
            digests[size] = digest.hexdigest()
        with ThreadPoolExecutor(8) as pool:
            outputs = list(pool.map(put, range(len(sizes))))
        log = b"ended\n"
        client.stash_write(f"{folder}/rythmiq-log.txt", log)
        result = {
            "version": 1,
            "exit_code": 0,
            "reason": "exited",
            "started_at": "2026-01-01T00:00:00Z",
            "finished_at": "2026-01-01T00:00:01Z",
            "log": {"name": "rythmiq-log.txt", "bytes": len(log), "sha256": hashlib.sha256(log).hexdigest()},
            "outputs": outputs,
            "unmatched": [],
        }
        client.stash_write(f"{folder}/rythmiq-result.json", json.dumps(result).encode())
    return job_id


def _collect(environment: Environment, warm: UUID, measured: UUID) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.collector", str(warm), str(measured)],
        env=environment.environ(s3=True),
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"the collector ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout))


def _upload_large(environment: Environment, size: int) -> float:
    config = TransferConfig(multipart_chunksize=16 * MB, max_concurrency=10)
    client = environment.s3.client()
    begun = time.perf_counter()
    client.upload_fileobj(_Zeros(size), BUCKET, "peer/large.bin", Config=config)
    return time.perf_counter() - begun


def _put_small(environment: Environment, count: int) -> float:
    client = environment.s3.client()
    body = bytes(SMALL_BYTES)
    with ThreadPoolExecutor(PUT_THREADS) as pool:
        begun = time.perf_counter()
        list(pool.map(lambda n: client.put_object(Bucket=BUCKET, Key=f"peer/{n}", Body=body), range(count)))
        return time.perf_counter() - begun


def _empty(environment: Environment) -> None:
    """Deletes all objects, so that they do not take memory from the next measurement."""
    client = environment.s3.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        if keys := [{"Key": item["Key"]} for item in page.get("Contents", [])]:
            client.delete_objects(Bucket=BUCKET, Delete={"Objects": keys})
