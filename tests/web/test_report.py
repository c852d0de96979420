"""The report: one file that asks nobody for anything, small for ten thousand members, harmless whatever rows hold."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from web_console import is_harmless
from web_rows import HOSTILE, LONG, Connection, Rows, execute

from rythmiq_ray.errors import NotFound
from rythmiq_ray.web.report import group_report, period_report

ROOT = Path(__file__).parents[2]


def run(url: str, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", "from rythmiq_ray.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DATABASE_URL": url},
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def asks_nobody(page: str) -> None:
    """Nothing in it is fetched from anywhere."""
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "@import" not in page
    assert "url(" not in page
    found = re.findall(r'(?:href|src|action)="([^"]*)"', page)
    assert set(found) <= {"data:,"}, found


def test_a_group_of_ten_thousand_is_one_small_file(rows: Rows, connection: Connection) -> None:
    group = rows.sweep("big", 100, 100)
    page = group_report(connection, group)
    assert len(page.encode()) < 2_000_000
    asks_nobody(page)
    assert page.count('<svg class="chart cells"') == 3, "by state, seconds and credits"
    assert "ValueError: loss is nan" in page
    assert "9,500 more" in page


def test_a_sweep_of_one_parameter_is_a_scatter(rows: Rows, connection: Connection) -> None:
    page = group_report(connection, rows.sweep("line", 300, 1, one_param=True))
    assert "Members seconds by LR" in page
    assert '<svg class="chart dots"' in page


def test_what_rows_hold_is_text_in_a_report(rows: Rows, connection: Connection) -> None:
    group = rows.group(HOSTILE, user_id=HOSTILE, labels={HOSTILE: LONG})
    for n, state in enumerate(("SUCCEEDED", "FAILED", "QUEUED", "FAILED")):
        rows.job(
            state,
            group_id=str(group),
            group_index=n,
            name=HOSTILE,
            user_id=HOSTILE,
            queue=HOSTILE,
            params={HOSTILE: f"{HOSTILE}{n}", "x": LONG},
            error_code=HOSTILE,
            error_message=HOSTILE,
        )
    now = datetime.now(UTC)
    for page in (group_report(connection, group), period_report(connection, now - timedelta(days=1))):
        asks_nobody(page)
        is_harmless(page.replace("data:,", "/").partition("</style>")[2])
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_a_period_has_all_that_ended_in_it(rows: Rows, connection: Connection) -> None:
    for n in range(5):
        rows.job(
            "SUCCEEDED", user_id="alice", cost_credits=2.0, finished_at=rows.ago(n * 86400 + 5), age_s=n * 86400 + 60
        )
    rows.job("FAILED", user_id="bob", queue="night", error_message="exit code 17 in step 4")
    rows.job("FAILED", user_id="bob", queue="night", error_message="exit code 3 in step 99")
    rows.group("lr", members=4, succeeded=4, finished_at=rows.ago(3))
    page = period_report(connection, rows.ago(2.5 * 86400))
    asks_nobody(page)
    words = " ".join(re.sub(r"<[^>]+>", " ", page.partition("</style>")[2]).split())
    assert "Ended 5 Succeeded 3 Failed 2 Cancelled 0 Credits 6.0246" in words
    assert "alice 6.0000 3 0" in words
    assert "night 0.0246 2 2" in words
    assert "2 \u00d7 command_failed" in words
    assert "lr 4 0" in words
    assert "by hour" in words
    assert "by day" in period_report(connection, rows.ago(20 * 86400))


def test_nothing_is_reported_too(rows: Rows, connection: Connection) -> None:
    asks_nobody(group_report(connection, rows.group(None)))
    asks_nobody(period_report(connection, rows.ago(3600)))
    with pytest.raises(NotFound):
        group_report(connection, uuid4())


def test_the_command_writes_the_file(database_url: str, rows: Rows, connection: Connection, tmp_path: Path) -> None:
    group = rows.sweep("lr", 4, 3, ended=1.0)
    for (job,) in execute(connection, "SELECT job_id FROM rythmiq.jobs WHERE state = 'SUCCEEDED'"):
        values = {"remote_path": "x", "state": "SUCCEEDED", "started_at": rows.ago(9), "finished_at": rows.ago(3)}
        rows.attempt(job, 1, values)
        rows.artifact(job, "score.json", b'{"loss": 0.25}')
    out = tmp_path / "report.html"
    assert "KiB in" in run(database_url, "report", "lr", "--file", "score.json", "-o", str(out)).stderr
    page = out.read_text(encoding="utf-8")
    asks_nobody(page)
    assert str(group) in page
    assert "Members by loss" in page
    run(database_url, "report", "--since", "30d", "-o", str(out))
    assert "What ran from" in out.read_text(encoding="utf-8")
    assert "no member has a number" in run(database_url, "report", "lr", "--file", "x", "-o", str(out)).stderr
    run(database_url, "report", "nobody", code=4)
    for wrong in ((), ("lr", "--since", "1d"), ("--since", "1d", "--file", "x"), ("--since", "tomorrow")):
        run(database_url, "report", *wrong, code=2)
    run(database_url, "report", "lr", "-o", str(tmp_path / "no" / "folder.html"), code=1)
