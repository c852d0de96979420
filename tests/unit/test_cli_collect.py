"""What the command line says of what could not be stored, and of warnings; the queue behind it is replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from samples import NOW, job

from rythmiq_ray.cli import collect, jobs, output, run
from rythmiq_ray.errors import NotFound
from rythmiq_ray.model import Job, JobState, Phase, RemoteStatus
from rythmiq_ray.queue import inspect, listing

LATER = datetime.now(UTC) + timedelta(days=6, hours=12)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``rows`` by id, and which of them the queue has ``refused``."""
    held: dict[str, Any] = {"rows": {}, "refused": {}}

    @contextmanager
    def database() -> Iterator[Any]:
        yield SimpleNamespace(rollback=lambda: None)

    def find(_: Any, job_ids: list[str]) -> list[listing.Found]:
        for job_id in job_ids:
            if job_id not in held["rows"]:
                raise NotFound(f"There is no job {job_id}")
        return [listing.Found(UUID(job_id), True) for job_id in job_ids]

    def selected_states(_: Any, job_ids: list[str], _wanted: Any) -> dict[UUID, JobState]:
        return {UUID(job_id): held["rows"][job_id].state for job_id in job_ids}

    def rows(_: Any, wanted: listing.Filter, *, limit: int | None) -> list[Job]:
        assert wanted.ids is not None
        return [held["rows"][str(job_id)] for job_id in wanted.ids]

    def answer(_: Any, ids: list[UUID]) -> dict[UUID, str]:
        held["asked"] = ids
        refused: dict[UUID, str] = held["refused"]
        return refused

    monkeypatch.setattr(collect, "database", database)
    monkeypatch.setattr(collect, "found_of", find)
    monkeypatch.setattr(collect, "selected_states", selected_states)
    monkeypatch.setattr(listing, "jobs", rows)
    monkeypatch.setattr(inspect, "collect", answer)
    return held


def put(queue: dict[str, Any], **changes: Any) -> UUID:
    row = job(uuid4(), **changes)
    queue["rows"][str(row.job_id)] = row
    return row.job_id


def test_collect_tells_what_happens_with_each_job(queue: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    taken = put(queue, state=JobState.FAILED, phase=None, collect_until=LATER)
    waits = put(queue, state=JobState.RETRYING, phase=None, collect_until=LATER)
    under_way = put(queue, phase=Phase.COLLECTING)
    queue["refused"] = {waits: "it is RETRYING", under_way: "it is RUNNING"}
    assert run(["collect", str(taken), str(waits), str(under_way)]) == 0
    assert queue["asked"] == [taken, waits, under_way]
    said = capsys.readouterr()
    assert said.err == ""
    first, second, third = said.out.splitlines()
    assert first == f"{taken}  its driver will bring in what it left; no new remote job is created"
    assert second == f"{waits}  is being collected already"
    assert third == f"{under_way}  is being collected already"


def test_collect_of_what_cannot_be_collected_says_why(
    queue: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    gone, taken = put(queue, state=JobState.SUCCEEDED, phase=None), put(queue, state=JobState.FAILED, phase=None)
    queue["refused"] = {gone: "no files of it are kept"}
    assert run(["collect", "--json", str(gone), str(taken)]) == 1
    said = capsys.readouterr()
    assert said.err == f"rythmiq: {gone} was left alone: no files of it are kept\n"
    assert [(row["job_id"], row["collecting"]) for row in json.loads(said.out)["items"]] == [
        (str(gone), False),
        (str(taken), True),
    ]


def test_collect_of_no_such_job_exits_4(queue: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["collect", "ffffffff"]) == 4
    assert capsys.readouterr().err == "rythmiq: There is no job ffffffff\n"
    assert "asked" not in queue


def attempt(number: int, **changes: Any) -> inspect.Attempt:
    values: dict[str, Any] = dict.fromkeys(
        ("remote_id", "remote_status", "exit_code", "error_code", "error_message", "retryable", "artifact_uri")
    )
    values |= {"cost_credits": None, "finished_at": NOW, "cleaned_at": None, "started_at": NOW}
    values |= {"state": JobState.FAILED, "remote_path": f"rythmiq/x/{number}", "attempt": number}
    return inspect.Attempt(**values | changes)


def test_show_tells_where_what_was_not_stored_lies_and_how_it_is_brought_in() -> None:
    row = job(attempt=2, state=JobState.FAILED, phase=None, collect_until=LATER)
    said = jobs._kept(row, attempt(2, keep_until=LATER))
    assert said is not None
    assert said.startswith("attempt 2: not stored; it is in Camber's stash at rythmiq/x/2 until ")
    assert f"{LATER:%Y-%m-%d %H:%M} UTC (6d); `rythmiq collect {row.job_id}` stores it" in said
    older = jobs._kept(row, attempt(1, keep_until=LATER))
    assert older is not None
    assert "rythmiq/x/1" in older
    assert "stores it" not in older
    for nothing in (attempt(1), attempt(2, keep_until=NOW), attempt(2, keep_until=LATER, cleaned_at=NOW)):
        assert jobs._kept(row, nothing) is None


def test_jobs_marks_those_with_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    output.rows(*jobs._listing([job(warnings=("a", "b")), job()], wide=False))
    head, *_, warned, plain = capsys.readouterr().out.splitlines()
    at = head.index("!")
    assert (warned[at], plain[at]) == ("2", " ")
    output.rows(*jobs._listing([job()], wide=False))
    assert "!" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("phase", "status", "stage"),
    [
        (Phase.SUBMITTING, None, "submitting"),
        (Phase.WAITING, None, "waiting"),
        (Phase.WAITING, RemoteStatus.PENDING, "pending at Camber"),
        (Phase.WAITING, RemoteStatus.RUNNING, "running at Camber"),
        (Phase.COLLECTING, RemoteStatus.COMPLETED, "collecting"),
    ],
)
def test_a_job_that_is_pending_at_camber_is_not_shown_as_one_that_runs(
    phase: Phase, status: RemoteStatus | None, stage: str
) -> None:
    row = job(command="echo x", phase=phase, remote_status=status)
    assert jobs._what(row) == f"{stage}: echo x"
    assert str(jobs._facts(row)["state"]).startswith(f"RUNNING ({stage}")


def test_show_tells_since_when_and_what_a_job_waits_for() -> None:
    minutes_ago = datetime.now(UTC) - timedelta(minutes=5)
    pending = job(phase=Phase.WAITING, remote_status=RemoteStatus.PENDING, submitted_at=minutes_ago)
    assert jobs._facts(pending)["state"] == "RUNNING (pending at Camber for 5m)"
    stuck = job(phase=Phase.COLLECTING, ended_at=minutes_ago, wait_reason="store_unavailable: denied", free_attempts=2)
    facts = jobs._facts(stuck)
    assert facts["state"] == "RUNNING (collecting for 5m)"
    assert facts["waits for"] == "store_unavailable: denied"
    assert facts["attempt"] == "1 of 3, 2 free"
