"""Rows as a busy database has them, put in directly: for the tests of the console and the report, and to look at."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg2.extensions

HOSTILE = (
    "<script>alert(1)</script>\"><img src=x onerror=alert(2)> \u202egnp.exe \u05e9\u05dc\u05d5\u05dd '{{7*7}}' &amp;"
)
"""In every field that is shown."""
LONG = "a-very-long-name-" * 18
"""306 characters without a space."""

_OF_ATTEMPTS = (
    *("remote_path", "remote_id", "remote_status", "state", "exit_code", "error_code", "error_message"),
    *("cost_credits", "started_at", "submitted_at", "running_at", "ended_at", "finished_at"),
)
Connection = psycopg2.extensions.connection


def execute(connection: Connection, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters or None)
        return cursor.fetchall() if cursor.description else []


def id_at(at: datetime, number: int = 0) -> UUID:
    """An id of version 7."""
    digest = int.from_bytes(hashlib.sha256(f"{at}{number}".encode()).digest()[:10]) & ((1 << 74) - 1)
    low = (2 << 62) | (digest & ((1 << 62) - 1))
    return UUID(int=(int(at.timestamp() * 1000) << 80) | (7 << 76) | ((digest >> 62) << 64) | low)


def png(width: int = 64, height: int = 40) -> bytes:
    """A small picture."""
    rows = b"".join(
        b"\0" + bytes(c for x in range(width) for c in ((x * 4) % 256, (y * 6) % 256, 160)) for y in range(height)
    )

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@dataclass
class Rows:
    """Puts rows in. ``folder`` is a local artifact store."""

    connection: Connection
    folder: Path
    now: datetime

    @classmethod
    def of(cls, connection: Connection, folder: Path) -> Rows:
        return cls(connection, folder, datetime.now(UTC))

    def ago(self, seconds: float) -> datetime:
        return self.now - timedelta(seconds=seconds)

    def job(
        self,
        state: str = "QUEUED",
        *,
        age_s: float = 600,
        spec: dict[str, Any] | None = None,
        job_id: UUID | None = None,
        **columns: Any,
    ) -> UUID:
        """A job of that age, in that state, with one attempt where it has begun."""
        created = self.ago(age_s)
        job_id = job_id or id_at(created, int(uuid4()) % 1_000_000)
        begun = state in ("RUNNING", "SUCCEEDED", "FAILED")
        ended = state in ("SUCCEEDED", "FAILED", "CANCELLED")
        path = f"rythmiq/{job_id}/1"
        row: dict[str, Any] = {
            "job_id": job_id,
            "state": state,
            "spec": json.dumps(spec or {"command": "python3 fit.py", "outputs": ["*.csv"]}),
            "created_at": created,
            "phase": "waiting" if state == "RUNNING" else None,
            "attempt": 1 if begun else 0,
            "remote_status": "RUNNING" if state == "RUNNING" else "COMPLETED" if begun else None,
            "remote_id": int(job_id) % 1_000_000 if begun else None,
            "remote_path": path if begun else None,
            "started_at": created + timedelta(seconds=20) if begun else None,
            "submitted_at": created + timedelta(seconds=22) if begun else None,
            "running_at": created + timedelta(seconds=50) if begun else None,
            "ended_at": created + timedelta(seconds=age_s * 0.8) if begun and ended else None,
            "finished_at": created + timedelta(seconds=age_s * 0.8 + 3) if ended else None,
            "exit_code": {"SUCCEEDED": 0, "FAILED": 1}.get(state),
            "cost_credits": 0.0123 if begun and ended else None,
        }
        if state == "FAILED":
            row |= {"error_code": "command_failed", "error_message": "exit code 1: ValueError: loss is nan"}
        if state == "CANCELLED":
            row |= {"error_code": "cancelled", "error_message": "cancelled before it started"}
        row |= columns
        for name in ("labels", "params", "warnings"):
            if name in row:
                row[name] = json.dumps(row[name])
        names = ", ".join(row)
        if isinstance(row["cost_credits"], float) and math.isfinite(row["cost_credits"]):
            # As the end of an attempt does, by its trigger.
            execute(
                self.connection,
                "INSERT INTO rythmiq.costs AS c (day, user_id, queue, group_id, labels, credits, jobs)"
                " VALUES ((%s AT TIME ZONE 'UTC')::date, %s, %s, coalesce(%s, %s)::uuid, '{}', %s, 1)"
                " ON CONFLICT (day, md5(user_id), md5(queue), group_id, md5(labels::text), part)"
                " DO UPDATE SET credits = c.credits + excluded.credits, jobs = c.jobs + 1",
                row["finished_at"],
                row.get("user_id") or "",
                row.get("queue", "default"),
                row.get("group_id"),
                str(UUID(int=0)),
                row["cost_credits"],
            )
        execute(
            self.connection,
            f"INSERT INTO rythmiq.jobs ({names}) VALUES ({', '.join(['%s'] * len(row))})",
            *(str(value) if isinstance(value, UUID) else value for value in row.values()),
        )
        if begun:
            self.attempt(job_id, 1, row | {"error_message": row.get("error_message")})
        return job_id

    def attempt(self, job_id: UUID, number: int, row: dict[str, Any]) -> None:
        values = {name: row.get(name) for name in _OF_ATTEMPTS} | {"job_id": str(job_id), "attempt": number}
        names = ", ".join(values)
        marks = ", ".join(["%s"] * len(values))
        execute(self.connection, f"INSERT INTO rythmiq.attempts ({names}) VALUES ({marks})", *values.values())

    def artifact(self, job_id: UUID, name: str, content: bytes, *, attempt: int = 1, kind: str = "text/plain") -> None:
        """A stored file of a job."""
        path = self.folder / "rythmiq" / str(job_id) / str(attempt) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        execute(
            self.connection,
            "INSERT INTO rythmiq.artifacts (job_id, attempt, name, uri, bytes, sha256, content_type)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s)",
            str(job_id),
            attempt,
            name,
            path.as_uri(),
            len(content),
            hashlib.sha256(content).hexdigest(),
            kind,
        )

    def manifest(self, job_id: UUID, inputs: list[dict[str, Any]], *, attempt: int = 1) -> None:
        path = self.folder / "rythmiq" / str(job_id) / str(attempt) / "manifest.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"version": 1, "job_id": str(job_id), "inputs": inputs, "artifacts": []}))
        for table in ("jobs", "attempts"):
            execute(
                self.connection,
                f"UPDATE rythmiq.{table} SET artifact_uri = %s WHERE job_id = %s",
                path.as_uri(),
                str(job_id),
            )

    def driver(self, *, alive: bool = True, queues: list[str] | None = None, hostname: str = "node-1") -> UUID:
        driver_id = uuid4()
        execute(
            self.connection,
            "INSERT INTO rythmiq.drivers (driver_id, hostname, pid, version, started_at, lease_expires_at, queues)"
            " VALUES (%s, %s, 4711, '0.1.0', now() - interval '3 hours', now() + %s * interval '1 hour', %s)",
            str(driver_id),
            hostname,
            5 if alive else -0.1,
            queues,
        )
        return driver_id

    def group(self, name: str | None, **columns: Any) -> UUID:
        group_id = uuid4()
        row = {"group_id": str(group_id), "name": name} | columns
        if "labels" in row:
            row["labels"] = json.dumps(row["labels"])
        execute(
            self.connection,
            f"INSERT INTO rythmiq.groups ({', '.join(row)}) VALUES ({', '.join(['%s'] * len(row))})",
            *row.values(),
        )
        return group_id

    def sweep(self, name: str, across: int, down: int, *, ended: float = 0.8, one_param: bool = False) -> UUID:
        """A group of ``across * down`` members by two parameters, most of them ended."""
        group_id = self.group(name, user_id="alice", labels={"team": "ml"})
        parameters = {"across": across, "down": down, "ended": ended, "one": one_param, "group_id": str(group_id)}
        with self.connection.cursor() as cursor:
            cursor.execute(_SWEEP, parameters)
        return group_id


_SWEEP = """
INSERT INTO rythmiq.jobs (job_id, user_id, state, phase, attempt, spec, created_at, started_at, submitted_at,
    running_at, ended_at, finished_at, remote_status, remote_id, remote_path, cost_credits, error_code, error_message,
    exit_code,
    group_id, group_index, params)
SELECT gen_random_uuid(), 'alice', state, CASE WHEN state = 'RUNNING' THEN 'waiting' END,
       CASE WHEN state = 'QUEUED' THEN 0 ELSE 1 END, '{"command": "python3 fit.py"}', born,
       CASE WHEN state <> 'QUEUED' THEN began END, CASE WHEN state <> 'QUEUED' THEN began + interval '2 s' END,
       CASE WHEN state <> 'QUEUED' THEN began + interval '9 s' END,
       CASE WHEN rythmiq.ended(state) THEN began + interval '9 s' + took END,
       CASE WHEN rythmiq.ended(state) THEN began + interval '12 s' + took END,
       CASE WHEN state <> 'QUEUED' THEN 'RUNNING' END, CASE WHEN state <> 'QUEUED' THEN n + 1 END, 'rythmiq/x',
       CASE WHEN rythmiq.ended(state) THEN 0.001 * extract(epoch FROM took) END,
       CASE WHEN state = 'FAILED' THEN CASE WHEN n %% 3 = 0 THEN 'remote_killed' ELSE 'command_failed' END END,
       CASE WHEN state = 'FAILED' THEN 'exit code 1: ValueError: loss is nan in step ' || n END,
       CASE WHEN state = 'SUCCEEDED' THEN 0 WHEN state = 'FAILED' THEN 1 END, %(group_id)s, n,
       CASE WHEN %(one)s THEN jsonb_build_object('LR', round((0.0001 * power(1.0005, n))::numeric, 7)::text)
            ELSE jsonb_build_object('LR', round((0.0001 * power(1.12, x))::numeric, 6)::text, 'SEED', y::text) END
FROM (
    SELECT *, (20 + 60 * x::float / %(across)s + 30 * dice) * interval '1 s' AS took,
           now() - interval '2 hours' AS born, now() - interval '2 hours' + n * interval '100 ms' AS began,
           CASE WHEN dice > %(ended)s + 0.1 THEN 'QUEUED' WHEN dice > %(ended)s THEN 'RUNNING'
                WHEN x::float / %(across)s + y::float / %(down)s + dice / 4 > 1.75 THEN 'FAILED'
                ELSE 'SUCCEEDED' END AS state
    FROM (SELECT n, n %% %(across)s AS x, n / %(across)s AS y, (n * 7919 %% 1000) / 1000.0 AS dice
          FROM generate_series(0, %(across)s * %(down)s - 1) AS n) AS m
) AS m
"""
