"""Whatever stands in a row concerns that row alone: each column at odd values of its type, beside jobs that go on."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import psycopg2
import psycopg2.extras
import pytest
from inline_cluster import in_phase
from inline_driver import Run
from samples import API_KEY

from rythmiq_ray import JobSpec, cli, enqueue
from rythmiq_ray.local.camber import Emulator, Settings
from rythmiq_ray.model import Phase

GOOD: Final = 6
WAIT_S: Final = 150.0
QUICK: Final = ("driver.lease_s=60", "camber.sync_timeout_s=2")
ROLES_SQL: Final = Path(__file__).parents[2] / "deploy/sql/roles.sql"
DEEP: Final = 5000
NUMBER: Final = "1" + "0" * 5000
"""More digits than Python reads."""
JSON: Final = (
    *("null", "[]", '"x"', "true", "0", "-1", "1.5", "1e400", NUMBER, "{}", "[null]", '{"a": 1}'),
    *("[" * DEEP + "]" * DEEP, '{"command": "false", "command": "true"}', json.dumps("x" * 2**20)),
)
TEXTS: Final = (
    *("", " ", "x" * 100_000, "a\x01\x1b[31m\n\t\r\x7f", "\\ud800 \\x00 %s {} %(a)s", "\u202eright to left\u202c"),
    *("\U0001f9a6\ufeff\u2028", "../../..", "/", "None"),
)
VALUES: Final[Mapping[str, Sequence[str]]] = {
    "integer": ("0", "-1", "1", "2147483646", "2147483647", "-2147483648"),
    "bigint": ("0", "-1", "1", "9223372036854775807", "-9223372036854775808"),
    "double precision": ("NaN", "Infinity", "-Infinity", "1e308", "-1e308", "-0", "5e-324"),
    "boolean": ("true", "false"),
    "uuid": ("00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
    "timestamp with time zone": (
        *("infinity", "-infinity", "294276-12-31 23:59:59.999999+00", "4713-01-01 00:00:00+00 BC", "epoch"),
        *("0001-01-01 00:00:00+00", "9999-12-31 23:59:59.999999+00"),
    ),
    "text": TEXTS,
    "name": ("", "\x1b[31m", "nobody"),
    "jsonb": JSON,
}
SPEC_VALUES: Final = (
    *("null", "true", "0", "-1", "1e-300", "1e400", NUMBER, '"x"', '""', "[]", "{}", "[null]", "[[]]", '{"a": 1}'),
    *('["../x"]', '[{"uri": "file:///x"}]', '[{"uri": 1, "name": {}}]', "[" * DEEP + "]" * DEEP),
    *(json.dumps("\x7f\u2028"), json.dumps(["A"] * 2000), json.dumps("x" * 2**20)),
)
SPECS: Final = (
    *(f'{{"command": "true", "{field.name}": {value}}}' for field in fields(JobSpec) for value in SPEC_VALUES),
    '{"command": "true", "node_sise": "small"}',
    '{"command": "true", "secrets": ["PATH", "NO_SUCH"]}',
    '{"command": "true", "env": {"BASH_ENV": "x", "1": "", "A": 1, "": null}}',
    '{"command": "true", "inputs": [{"uri": "file:///etc/hostname", "name": "run.sh", "more": 1}]}',
    json.dumps({"command": "true"} | {f"field{number}": number for number in range(20_000)}),
)
Row = dict[str, Any]
COMMAND: Final = '{"command": "true"}'


OWN_PATH: Final = "rythmiq/{job_id}/1"
RUNNING: Final = {
    "state": "RUNNING",
    "attempt": "1",
    "max_attempts": "1",
    "driver_id": "{dead}",
    "remote_path": OWN_PATH,
}
BASES: Final[Mapping[str, Mapping[str, str]]] = {
    "queued": {},
    "retrying": {"state": "RETRYING", "attempt": "1"},
    "submitting": RUNNING | {"phase": "submitting"},
    # All name one remote job, which there is not.
    "waiting": RUNNING | {"phase": "waiting", "remote_id": "987654321"},
    "collecting": RUNNING | {"phase": "collecting", "remote_id": "987654321"},
    "ended": {"state": "SUCCEEDED", "attempt": "1", "finished_at": "2026-01-01", "remote_path": OWN_PATH},
}
"""Rows that are right but for one column."""
ATTEMPT: Final = {"job_id": "{job_id}", "attempt": "1", "remote_path": OWN_PATH, "started_at": "2026-01-01"}
ENDED_ATTEMPT: Final = ATTEMPT | {"state": "FAILED", "finished_at": "2026-01-01", "cleaned_at": "2026-01-01"}
ARTIFACT: Final = {
    "job_id": "{job_id}",
    "attempt": "1",
    "name": "a",
    "bytes": "1",
    "sha256": "x",
    "content_type": "text/plain",
    "uri": "file:///nowhere/{job_id}/1/a",
}
_CLAIMED: Final = {None, "invalid_job", "secret_missing", "secret_refused", "input_missing", "cancelled"}
_KNOWN_AT_CAMBER: Final = {None, "invalid_job", "remote_lost", "job_timeout", "cancelled"}
ENDS: Final = {
    "queued": _CLAIMED,
    "retrying": _CLAIMED,
    "submitting": _CLAIMED | _KNOWN_AT_CAMBER,
    "waiting": _KNOWN_AT_CAMBER,
    "collecting": _KNOWN_AT_CAMBER,
}
"""How a row may end that was put in like this; None: its command ran, maybe in another attempt."""
LEFT_ALONE: Final = "left alone"


@dataclass(frozen=True, kw_only=True)
class Odd:
    """A job, and which of its rows is odd."""

    job_id: UUID
    base: str
    table: str
    column: str
    value: str

    def __str__(self) -> str:
        return f"{self.base}: {self.table}.{self.column}={self.value[:40]!r}"


class Tables:
    """Puts odd rows into a database, and reads all rows as Postgres itself shows them."""

    def __init__(self, url: str) -> None:
        self.connection = psycopg2.connect(url)
        self.connection.autocommit = True
        self.enqueuer = psycopg2.connect(url.replace("postgres@", "an_enqueuer@", 1))
        self.enqueuer.autocommit = True
        self.dead = uuid4()
        self.insert(
            "drivers",
            {
                "driver_id": str(self.dead),
                "hostname": "",
                "pid": "0",
                "version": "",
                "lease_expires_at": "2026-01-01",
            },
        )

    def close(self) -> None:
        self.connection.close()
        self.enqueuer.close()

    def rows(self, sql: str, *values: object) -> list[Row]:
        with self.connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
            cursor.execute(sql, values or None)
            return [dict(row) for row in cursor.fetchall()]

    @cache  # noqa: B019 - there is one for a test
    def types(self, table: str, role: str = "postgres") -> dict[str, str]:
        """Columns that a role may set, and their types."""
        rows = self.rows(
            "SELECT column_name AS name, data_type AS type FROM information_schema.columns"
            " WHERE table_schema = 'rythmiq' AND table_name = %s"
            " AND has_column_privilege(%s, 'rythmiq.' || table_name, column_name, 'INSERT')",
            table,
            role,
        )
        return {row["name"]: row["type"] for row in rows}

    def insert(self, table: str, values: Mapping[str, str], *, by_role: bool = False) -> None:
        types = self.types(table)
        marks = ", ".join(f"%s::{types[name]}" for name in values)
        with (self.enqueuer if by_role else self.connection).cursor() as cursor:
            cursor.execute(f"INSERT INTO rythmiq.{table} ({', '.join(values)}) VALUES ({marks})", list(values.values()))

    def put(self, base: str, table: str, column: str, value: str, *, by_role: bool = False) -> Odd | None:
        """A job with its attempt and artifact, one column of theirs set to this; None where Postgres refuses it."""
        job_id = uuid4()

        def filled(text: str) -> str:
            return text.replace("{job_id}", str(job_id)).replace("{dead}", str(self.dead))

        about = {"jobs": {"job_id": "{job_id}", "spec": COMMAND} | BASES[base]}
        if base == "ended":
            about |= {"attempts": ENDED_ATTEMPT, "artifacts": ARTIFACT}
        elif table == "attempts":
            about |= {"attempts": ATTEMPT}
        rows = {name: {key: filled(text) for key, text in row.items()} for name, row in about.items()}
        rows[table][column] = value
        try:
            for name, row in rows.items():
                self.insert(name, row, by_role=by_role)
        except (
            psycopg2.errors.DataError,
            psycopg2.errors.IntegrityError,
            psycopg2.errors.ProgramLimitExceeded,
            psycopg2.errors.InsufficientPrivilege,
        ):
            with self.connection.cursor() as cursor:
                cursor.execute("DELETE FROM rythmiq.jobs WHERE job_id = %s", (str(job_id),))
            return None
        return Odd(job_id=UUID(rows["jobs"]["job_id"]), base=base, table=table, column=column, value=value)

    def shown(self, ids: Sequence[UUID]) -> list[str]:
        """Jobs with all that belongs to them, as text."""
        wanted = [str(job_id) for job_id in ids]
        return [
            f"{table} {row['text']}"
            for table in ("jobs", "attempts", "artifacts")
            for row in self.rows(
                f"SELECT t::text AS text FROM rythmiq.{table} AS t WHERE job_id::text = ANY(%s) ORDER BY 1", wanted
            )
        ]


def put_odd_rows(tables: Tables) -> list[Odd]:
    """Each column of each table that is read at each odd value of its type, in each kind of row."""
    put = [
        tables.put("queued", "jobs", column, value, by_role=True)
        for column, kind in tables.types("jobs", "an_enqueuer").items()
        for value in VALUES[kind]
    ]
    put += [tables.put("queued", "jobs", "spec", spec, by_role=True) for spec in SPECS]
    bases = {"jobs": [*BASES], "attempts": ["queued", "waiting", "ended"], "artifacts": ["ended"]}
    for table, which in bases.items():
        for base in which:
            for column, kind in tables.types(table).items():
                put += [tables.put(base, table, column, value) for value in VALUES[kind]]
    return [odd for odd in put if odd is not None]


@pytest.fixture
def tables(database_url: str) -> Iterator[Tables]:
    roles = psycopg2.connect(database_url)
    roles.autocommit = True
    with roles.cursor() as cursor:
        cursor.execute(ROLES_SQL.read_text(encoding="utf-8"))
        cursor.execute("CREATE ROLE an_enqueuer LOGIN IN ROLE rythmiq_enqueue")
        tables = Tables(database_url)
        yield tables
        tables.close()
        cursor.execute("DROP ROLE an_enqueuer")
    roles.close()


@pytest.fixture
def run(database_url: str, tables: Tables, tmp_path: Path) -> Iterator[Run]:
    more = (*QUICK, "camber.max_in_flight=1000", "driver.batch_size=200", "driver.poll_interval_s=0.3")
    with Emulator(tmp_path / "camber", api_key=API_KEY, settings=Settings.instant()) as camber:
        run = Run(database_url, tmp_path / "store", camber.endpoint, *more, threads=16)
        yield run
        run.close()


class Terminal:
    """The command line, in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object, code: int | None = 0) -> str:
        self._capsys.readouterr()
        ended = cli.run([str(argument) for argument in arguments])
        out, err = self._capsys.readouterr()
        assert code is None or ended == code, f"{arguments[:2]}: {ended} {err}"
        assert "unexpected" not in err
        return out

    def json(self, *arguments: object, code: int | None = 0) -> Any:
        """As every other program reads JSON, which has no NaN."""

        def refuse(constant: str) -> Any:
            raise AssertionError(f"{constant} is no JSON")

        data = json.loads(self(*arguments, "--json", code=code), parse_constant=refuse)
        return data["items"] if isinstance(data, dict) and data.keys() == {"items", "total", "next"} else data

    def jobs(self) -> dict[UUID, Row]:
        """All of them; the table for people goes on too."""
        found = self.json("jobs", "--limit", 100_000)
        # A line for each, the titles and the counts.
        assert len(self("jobs", "--limit", 100_000).splitlines()) == len(found) + 2
        return {UUID(row["job_id"]): row for row in found}


@pytest.mark.timeout(400)
def test_odd_rows_concern_themselves_alone(
    run: Run,
    tables: Tables,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="rythmiq")
    monkeypatch.setenv("DATABASE_URL", run.connection.dsn)
    rythmiq = Terminal(capsys)
    put = put_odd_rows(tables)
    odd = {each.job_id: each for each in put}
    ended = [each.job_id for each in put if each.base == "ended"]
    put_off = enqueue(tables.connection, JobSpec(command="true"), queue="later", delay=86_400)
    untouched = tables.shown([*ended, put_off])
    good = [enqueue(tables.connection, JobSpec(command="true"), priority=-1) for _ in range(GOOD)]
    assert rythmiq.jobs().keys() == {*odd, *good, put_off}
    for each in {(each.table, each.column): each for each in put}.values():
        assert str(each.job_id) in rythmiq("show", each.job_id)
        assert rythmiq.json("show", each.job_id)["job_id"] == str(each.job_id)

    def unsettled() -> set[UUID]:
        """What has not ended, is to be worked on now, and of which the log says nothing."""
        rows = tables.rows(
            "SELECT job_id::text FROM rythmiq.jobs WHERE state IN ('QUEUED', 'RETRYING', 'RUNNING')"
            " AND (state = 'RUNNING' OR next_visible_at <= now())"
        )
        fields = [getattr(record, "fields", {}) for record in caplog.records if LEFT_ALONE in record.getMessage()]
        return {UUID(row["job_id"]) for row in rows} - {each.get("jobId") for each in fields}

    try:
        run.until(lambda: not unsettled(), "all are settled", wait_s=WAIT_S)
    finally:
        still = [str(odd.get(job_id, "a good one")) for job_id in unsettled()]
    rows = rythmiq.jobs()
    assert still == []
    assert {rows[job_id]["state"] for job_id in good} == {"SUCCEEDED"}
    assert {rows[job_id]["attempt"] for job_id in good} == {1}
    assert tables.shown([*ended, put_off]) == untouched
    wrong = [
        f"{each} ended {row['state']}, {row['error_code']}: {row['error_message']}"[:300]
        for job_id, each in odd.items()
        if (row := rows[job_id])["state"] in ("SUCCEEDED", "FAILED", "CANCELLED")
        and each.base != "ended"
        and (
            row["error_code"] not in ENDS[each.base]
            or (row["error_code"] == "invalid_job" and not names_a_field(each, row["error_message"]))
        )
    ]
    assert wrong == []
    assert [record.getMessage() for record in caplog.records if "fault of rythmiq" in record.getMessage()] == []

    failed = [job_id for job_id, row in rows.items() if row["state"] in ("FAILED", "CANCELLED")]
    rythmiq("retry", *failed, code=None)
    rythmiq("cancel", *failed, code=None)
    assert rythmiq.json("cancel", "--queue", "default", "--yes") != []
    left = rythmiq.json("prune", "--older-than", "0s", "--artifacts")["left"]
    assert left["odd"] > 0, "rows that name files which are not theirs"
    assert rythmiq.jobs().keys() >= {put_off}


def test_a_row_that_names_another_jobs_path_and_remote_job_touches_neither(
    database_url: str, tables: Tables, tmp_path: Path, camber: Emulator
) -> None:
    run = Run(database_url, tmp_path / "store", camber.endpoint, *QUICK)
    good = enqueue(tables.connection, JobSpec(command="sleep 3; echo whole > out.txt", outputs=("*.txt",)))
    run.until(lambda: in_phase(run.loop, Phase.WAITING), "it waits")
    (row,) = tables.rows("SELECT remote_id::text, remote_path FROM rythmiq.jobs WHERE remote_id IS NOT NULL")
    assert tables.put("waiting", "jobs", "remote_id", row["remote_id"])
    assert tables.put("waiting", "jobs", "remote_path", row["remote_path"])
    assert tables.put("collecting", "jobs", "remote_path", row["remote_path"])
    ended = tables.put("ended", "attempts", "remote_path", row["remote_path"])
    tables.rows("UPDATE rythmiq.attempts SET cleaned_at = NULL, keep_until = NULL WHERE state = 'FAILED' RETURNING 1")
    run.loop._janitor.due_at = 0.0

    def states() -> dict[UUID, str]:
        return {
            UUID(row["job_id"]): f"{row['state']} {row['error_code']}"
            for row in tables.rows("SELECT job_id::text, state, error_code FROM rythmiq.jobs")
        }

    run.until(lambda: not any(state.startswith("RUN") for state in states().values()), "all have ended")
    assert ended is not None
    assert states().pop(good) == "SUCCEEDED None"
    assert sorted(states().values()) == sorted(
        ["SUCCEEDED None", "SUCCEEDED None", "FAILED remote_lost", "FAILED invalid_job", "FAILED invalid_job"]
    )
    (artifact,) = tables.rows("SELECT bytes FROM rythmiq.artifacts WHERE name = 'out.txt'")
    assert artifact["bytes"] == len("whole\n")
    assert tables.rows("SELECT FROM rythmiq.attempts WHERE cleaned_at IS NULL AND job_id = %s", str(ended.job_id)) == []
    run.close()


def names_a_field(odd: Odd, message: str) -> bool:
    """Whether a refusal begins with the column or, of a spec, with the field that is odd."""
    fields_of_spec = {field.name for field in fields(JobSpec)} | {"spec", "'node_sise'", "'field0'", "'a'"}
    # An attempt's number is in its path, and the next one may have a row already.
    known = {"spec": fields_of_spec, "attempt": {"attempt", "remote_path"}}.get(odd.column, {odd.column, "attempt"})
    return re.split(r"[:. \[]", message, maxsplit=1)[0] in known
