"""Each page of the console over a real Postgres: what it shows, within which bounds, and what its actions do."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from uuid import UUID, uuid4

import psycopg2
import pytest
import requests
from web_console import Serve, Served, csrf_of, until
from web_rows import Connection, Rows, execute, png

from rythmiq_ray.model import JobState
from rythmiq_ray.queue import console as looks
from rythmiq_ray.queue import listing
from rythmiq_ray.queue.listing import Filter

ROOT = Path(__file__).resolve().parents[2]


def text_of(answer: requests.Response) -> str:
    """What is read on a page."""
    assert answer.status_code == 200, answer.text[-500:]
    body = answer.text.partition("<main")[2] or answer.text
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


# ------------------------------------------------------------------------------------------------------------ overview


def test_an_empty_database_has_every_page(console: Served) -> None:
    for path in ("/", "/jobs", "/groups", "/queues", "/drivers", "/schedules", "/cost"):
        assert "Not shown" not in text_of(console.get(path)), path
    assert "No problems are known" in text_of(console.get("/"))
    assert "rythmiq enqueue --command" in text_of(console.get("/jobs"))


def test_the_overview_has_six_numbers_and_what_is_wrong(console: Served, rows: Rows, connection: Connection) -> None:
    rows.driver(queues=["default"])
    lost = rows.driver(alive=False, hostname="gone.example")
    for _ in range(3):
        rows.job("QUEUED", queue="night", age_s=1000, next_visible_at=rows.ago(1000))
    rows.job("BLOCKED", waits_for=1)
    rows.job("RUNNING", driver_id=str(lost), remote_status="PENDING", running_at=None, age_s=7200)
    rows.job("RUNNING", wait_reason="the bucket does not answer")
    for _ in range(4):
        rows.job("SUCCEEDED")
    for _ in range(2):
        rows.job("FAILED", error_code="remote_killed")
    kept = rows.job("FAILED")
    execute(
        connection, "UPDATE rythmiq.attempts SET keep_until = now() + interval '1 hour' WHERE job_id = %s", str(kept)
    )
    until(lambda: "0.0861" in text_of(console.get("/")))
    page = text_of(console.get("/"))
    for said in (
        "Waiting 3 oldest",
        "Blocked 1",
        "Running 2 1 pending at Camber",
        "Succeeded 4 in 24 hours",
        "Failed 3 in 24 hours",
        "Credits today 0.0861",
        "No live driver serves the queue night",
        "A driver on gone.example is gone and still holds 1 job",
        "1 running job cannot go on: the bucket does not answer",
        "1 job PENDING at Camber, the first for 1 h 5",
        "1 attempt could not be stored",
        "3 jobs FAILED in the last 24 hours, most with remote_killed",
        "2 \u00d7 remote_killed",
    ):
        assert said in page, said
    for span in ("day", "30 days", "nonsense"):
        until(lambda span=span: "7 ended in the last" in text_of(console.get("/", params={"span": span})))


# ---------------------------------------------------------------------------------------------------------------- jobs


def ids_of(answer: requests.Response) -> list[str]:
    return re.findall(r'href="/jobs/([0-9a-f-]{36})"', answer.text)


def test_jobs_by_filter_a_page_at_a_time(console: Served, rows: Rows) -> None:
    group = rows.group("lr")
    ids = [
        str(
            rows.job(
                "FAILED" if n % 2 else "SUCCEEDED",
                age_s=1000 - n,
                user_id=f"user-{n % 3}",
                name=f"fit-{n}",
                labels={"n": str(n % 5)},
            )
        )
        for n in range(60)
    ]
    member = str(rows.job("QUEUED", group_id=str(group), group_index=0, age_s=1, queue="night"))
    first = console.get("/jobs")
    assert ids_of(first) == [member, *reversed(ids[11:])]
    older = unescape(re.findall(r'href="([^"]+)" rel="next"', first.text)[0])
    assert ids_of(console.get(older)) == list(reversed(ids[:11]))
    assert ids_of(console.get("/jobs?state=failed&user=user-1")) == [i for i in reversed(ids) if ids.index(i) % 6 == 1]
    assert ids_of(console.get("/jobs?name=fit-1*&label=n=0")) == [ids[15], ids[10]]
    assert ids_of(console.get("/jobs?name=fit-7")) == [ids[7]]
    assert ids_of(console.get("/jobs?group=lr")) == ids_of(console.get("/jobs?queue=night")) == [member]
    assert ids_of(console.get("/jobs?error=command_failed&until=1d")) == []
    assert ids_of(console.get("/jobs?since=5m")) == [member]
    page = text_of(console.get("/jobs?state=failed&name=fit-*"))
    assert "rythmiq jobs --state failed --name 'fit-*'" in page
    assert "exit code 1: ValueError: loss is nan" in page
    assert "FAILED 30" not in page, "the counts are of all jobs"
    assert "FAILED 30" in text_of(console.get("/jobs?state=failed"))


def test_what_a_filter_cannot_mean_is_said(console: Served, rows: Rows) -> None:
    rows.job()
    page = text_of(console.get("/jobs?state=nonsense&since=tomorrow&label=x&group=nobody"))
    for said in (
        "state: 'nonsense' is not one of",
        "since: give how long ago",
        "label[0]: must be K=V",
        "There is no job or group 'nobody'",
    ):
        assert said in page


def test_an_id_its_first_digits_and_a_name_are_found(console: Served, rows: Rows) -> None:
    job, group = rows.job("SUCCEEDED", name="fit"), rows.group("lr")
    for text, path in (
        (str(job), f"/jobs/{job}"),
        (str(job)[:18], f"/jobs/{job}"),
        ("fit", f"/jobs/{job}"),
        ("lr", f"/groups/{group}"),
    ):
        assert console.get("/find", params={"q": f" {text} "}).url == f"{console.url}{path}"
    missing = console.get("/find?q=nobody")
    assert missing.status_code == 404
    assert "There is no job or group &#39;nobody&#39;" in missing.text
    for path in (f"/jobs/{uuid4()}", f"/groups/{uuid4()}", "/nothing", f"/groups/{group}/members/7"):
        assert console.get(path).status_code == 404


def test_a_page_of_jobs_reads_no_more_than_its_window(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, window = 20_000, 1_000
    execute(
        connection,
        "INSERT INTO rythmiq.jobs (job_id, user_id, queue, spec, state, finished_at, created_at, name)"
        " SELECT rythmiq.new_job_id(), 'user-' || n %% 50, 'default', '{\"command\": \"true\"}',"
        " CASE WHEN n %% 2000 = 7 THEN 'CANCELLED' ELSE 'SUCCEEDED' END, now(), now(), 'fit-' || n %% 100"
        " FROM generate_series(1, %s) AS n",
        rows,
    )
    execute(connection, "VACUUM ANALYZE rythmiq.jobs")
    read: list[int] = []
    original = looks.fetch

    def explained(opened: Connection, sql: str, parameters: dict[str, object]) -> list[dict[str, object]]:
        with opened.cursor() as cursor:
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", parameters)
            (plan,) = cursor.fetchone() or ({},)
        read.append(_rows_read(plan[0]["Plan"]))
        return original(opened, sql, parameters)

    monkeypatch.setattr(looks, "fetch", explained)
    counts = listing.counts(connection)
    now = datetime.now(UTC)
    for wanted in (
        Filter(queues=["nobody"]),
        Filter(labels={"no": "body"}),
        Filter(name="no*"),
        Filter(name="nobody"),
        Filter(users=["user-7"], queues=["nobody"]),
        Filter(states=[JobState.CANCELLED]),
        Filter(states=[JobState.QUEUED, JobState.FAILED]),
        Filter(since=now - timedelta(days=9), queues=["nobody"]),
        Filter(until=now - timedelta(days=9)),
        Filter(errors=["nobody"], states=[JobState.SUCCEEDED, JobState.CANCELLED]),
    ):
        read.clear()
        found = looks.page(connection, wanted, limit=50, counts=counts, window=window)
        few = wanted.states is not None and JobState.SUCCEEDED in wanted.states
        assert sum(read) <= (rows + 100 if few else 2 * window + 200), wanted
        assert found.searched in (None, window)
    assert len(looks.page(connection, Filter(states=[JobState.CANCELLED]), limit=50, counts=counts).jobs) == 10


def _rows_read(plan: dict[str, object]) -> int:
    inner = plan.get("Plans", [])
    assert isinstance(inner, list)
    if "Scan" in str(plan["Node Type"]) and plan.get("Relation Name") == "jobs":
        return int(float(str(plan["Actual Rows"])) + float(str(plan.get("Rows Removed by Filter", 0))))
    return sum(_rows_read(each) for each in inner)


def test_a_search_goes_on_behind_its_window(connection: Connection, rows: Rows) -> None:
    wanted = rows.job(name="old", queue="rare", age_s=5000)
    for n in range(250):
        rows.job(age_s=1000 - n)
    found = looks.page(connection, Filter(queues=["rare"]), limit=10, window=100)
    pages = 0
    while not found.jobs:
        assert found.searched == 100
        found = looks.page(connection, Filter(queues=["rare"]), limit=10, before=found.next, window=100)
        pages += 1
    assert ([job.job_id for job in found.jobs], found.next, pages) == ([wanted], None, 2)


def test_rows_that_were_inserted_by_hand_are_found_by_time(connection: Connection, rows: Rows) -> None:
    by_hand = rows.job(job_id=UUID("f" * 8 + str(uuid4())[8:]), age_s=3600)
    old, new = rows.job(age_s=90 * 86400), rows.job(age_s=10)
    now = datetime.now(UTC)
    days = lambda n: now - timedelta(days=n)  # noqa: E731
    assert [job.job_id for job in looks.page(connection, Filter(since=days(1)), limit=9).jobs] == [by_hand, new]
    assert [job.job_id for job in looks.page(connection, Filter(until=days(60)), limit=9).jobs] == [old]
    assert looks.page(connection, Filter(since=days(50), until=days(40)), limit=9).jobs == []


# --------------------------------------------------------------------------------------------------------------- a job


def test_a_job_has_its_time_line_facts_and_commands(console: Served, rows: Rows, connection: Connection) -> None:
    need = rows.job("SUCCEEDED", name="download")
    job = rows.job(
        "FAILED",
        name="fit",
        params={"LR": "0.1"},
        labels={"team": "ml"},
        user_id="alice",
        warnings=["no file matched *.bin"],
        spec={"command": "python3 fit.py\necho done", "secrets": ["HF_TOKEN"], "outputs": ["*.csv"]},
    )
    execute(
        connection,
        "INSERT INTO rythmiq.dependencies (job_id, on_job_id, satisfied) VALUES (%s, %s, true)",
        str(job),
        str(need),
    )
    page = text_of(console.get(f"/jobs/{job}"))
    for said in (
        "fit LR=0.1",
        "command_failed (exit code 1)",
        "What to do: read the log",
        "no file matched *.bin",
        "it has ended FAILED with command_failed : rythmiq retry runs it again",
        "queued 20 s",
        "submitting 2.0 s",
        "PENDING 28 s",
        "RUNNING 7 min 10 s",
        "syncing, collecting 3.0 s",
        "0.0123 credits, estimated",
        "team = ml",
        "job download",
        f"rythmiq retry {job}",
        "HF_TOKEN",
    ):
        assert said in page, said
    assert f'data-copy="rythmiq logs {job}"' in console.get(f"/jobs/{job}").text


def test_a_waiting_job_says_why(console: Served, rows: Rows) -> None:
    job = rows.job("QUEUED", queue="night")
    assert "no driver is running : start one" in text_of(console.get(f"/jobs/{job}"))
    rows.driver(queues=["default"])
    assert "none of 1 live drivers serves the queue 'night'" in text_of(console.get(f"/jobs/{job}"))


def test_a_log_has_its_last_lines_and_is_searched(console: Served, rows: Rows) -> None:
    job = rows.job("SUCCEEDED")
    rows.artifact(job, "log.txt", b"".join(b"line %d of it\r\n" % n for n in range(2500)) + b"\xff no end")
    page = console.get(f"/jobs/{job}/1/log").text
    assert "2,501 lines" in page
    assert "line 1500 of it" not in page
    assert "line 1501 of it\n" in page
    assert "\ufffd no end" in page
    found = console.get(f"/jobs/{job}/1/log?q=LINE%20249").text
    assert "11 lines of 2,501" in text_of(console.get(f"/jobs/{job}/1/log?q=LINE%20249"))
    assert '<span class="no">250</span> line 249 of it' in found
    assert "0 lines of" in text_of(console.get(f"/jobs/{job}/1/log?q=nobody"))
    odd = rows.job("SUCCEEDED")
    rows.artifact(odd, "log.txt", b"\x1b[32mgreen\x1b[0m\n10%\r50%\r100%\r\n\x1b]0;title\x07")
    assert "green\n100%\n\\x1b]0;title\\x07" in console.get(f"/jobs/{odd}/1/log").text
    for state, said in (("QUEUED", "has not started yet"), ("CANCELLED", "left no log")):
        assert said in text_of(console.get(f"/jobs/{rows.job(state)}/1/log"))
    running = rows.job("RUNNING")
    assert "live log needs the driver's configuration" in text_of(console.get(f"/jobs/{running}/1/log"))


def test_files_are_shown_in_place(console: Served, rows: Rows) -> None:
    job = rows.job("SUCCEEDED")
    contents = {
        "plot.png": png(),
        "t.csv": b'a,b\n1,"x, y"\n' + b"2,z\n" * 300,
        "score.json": b'{"loss": 0.5, "deep": {"acc": 1}}',
        "lines.jsonl": b'{"a": 1}\n{"a": 2, "b": null}\n',
        "odd.json": b"{not json",
        "deep.json": b"[" * 100_000,
        "notes.md": b"# hi\n" + b"x" * 70_000,
        "model.bin": b"\0\1\2",
        "null": b"a\0b",
        "odd.parquet": b"PAR1 no",
    }
    for name, content in contents.items():
        rows.artifact(job, name, content)
    said = {
        "plot.png": 'src="/jobs/',
        "t.csv": "<td>x, y</td>",
        "score.json": "deep.acc",
        "lines.jsonl": '<th scope="col"><bdi class="name">b</bdi></th>',
        "odd.json": "{not json",
        "deep.json": "[[[[",
        "notes.md": "4.4 KiB more are not shown",
        "model.bin": "cannot be shown here",
        "null": "cannot be shown here",
        "odd.parquet": "be shown",
    }
    for name, words in said.items():
        answer = console.get(f"/jobs/{job}/1/preview?name={name}")
        assert answer.status_code == 200
        assert words in answer.text, name
    assert "More than 200 rows" in console.get(f"/jobs/{job}/1/preview?name=t.csv").text
    assert console.get(f"/jobs/{job}/1/file?name=plot.png&show=1").content == contents["plot.png"]
    assert console.get(f"/jobs/{job}/1/preview?name=nothing").status_code == 404
    assert console.get(f"/jobs/{job}/7/file?name=plot.png").status_code == 404


def test_inputs_have_the_hashes_of_the_manifest(console: Served, rows: Rows) -> None:
    job = rows.job("SUCCEEDED", spec={"command": "x", "inputs": [{"uri": "s3://b/in.csv", "name": "in.csv"}]})
    assert "written when the attempt is stored" in text_of(console.get(f"/jobs/{job}/1/inputs"))
    rows.manifest(job, [{"name": "in.csv", "uri": "s3://b/in.csv", "bytes": 2048, "sha256": "ab" * 32}])
    page = text_of(console.get(f"/jobs/{job}/1/inputs"))
    assert "in.csv 2.0 KiB abababababab s3://b/in.csv" in page


# ------------------------------------------------------------------------------------------------------------- a group


def test_a_group_has_progress_pictures_and_errors(console: Served, rows: Rows) -> None:
    group = rows.sweep("lr", 12, 10)
    page = text_of(console.get(f"/groups/{group}"))
    assert re.search(r"ended \d+ of 120 time left", page)
    assert "ValueError: loss is nan" in page
    assert "SEED" in page
    data = console.get(f"/groups/{group}/picture.json").json()
    assert (data["kind"], data["across"], data["down"], len(data["members"])) == ("heat", 12, 10, 120)
    place = data["members"][5][0]
    assert re.fullmatch(r".*/jobs/[0-9a-f-]{36}", console.get(f"/groups/{group}/members/{place}").url)
    for query, kind in (("x=LR&y=seconds", "scatter"), ("x=-", "places"), ("x=SEED&y=LR&colour=credits", "heat")):
        assert f"k-{kind}" in console.get(f"/groups/{group}?{query}").text, query
        assert console.get(f"/groups/{group}/picture.json?{query}").json()["kind"] == kind


def test_members_are_coloured_by_a_number_of_a_file(console: Served, rows: Rows, connection: Connection) -> None:
    group = rows.group("scores")
    for n in range(6):
        job = rows.job("SUCCEEDED", group_id=str(group), group_index=n, params={"LR": str(n), "SEED": str(n % 2)})
        rows.artifact(job, "score.json", json.dumps({"loss": n * 2.5, "note": "x", "ok": True}).encode())
        rows.artifact(job, "log.txt", b"x")
    path = f"/groups/{group}?file=score.json"
    until(lambda: "have been read so far" not in console.get(path).text)
    page = console.get(path).text
    assert '<option value="file:loss" selected>loss</option>' in page
    assert "file:note" not in page
    assert "file:ok" not in page
    assert "log.txt" not in page.partition("numbers of")[2].partition("</select>")[0]
    said = [member[3] for member in console.get(f"/groups/{group}/picture.json?file=score.json").json()["members"]]
    assert said[0] == "LR=0 SEED=0 · SUCCEEDED · 0"
    assert said[-1].endswith("12.5")


def test_a_group_of_ten_thousand_is_shown_whole(console: Served, rows: Rows, connection: Connection) -> None:
    group = rows.sweep("big", 100, 100)
    execute(connection, "VACUUM ANALYZE")
    console.get(f"/groups/{group}")
    answer = console.get(f"/groups/{group}?colour=seconds")
    assert len(answer.content) < 600_000
    assert len(console.get(f"/groups/{group}/picture.json").json()["members"]) == 10_000


def test_groups_are_listed_by_state_and_name(console: Served, rows: Rows) -> None:
    for n in range(60):
        rows.group(
            f"g-{n}",
            members=4,
            succeeded=2,
            failed=1,
            finished_at=rows.ago(5) if n % 2 else None,
            created_at=rows.ago(n),
        )
    first = console.get("/groups")
    assert len(re.findall(r'href="/groups/[0-9a-f-]{36}"', first.text)) == 50
    older = unescape(re.findall(r'href="([^"]+)" rel="next"', first.text)[0])
    assert "g-59" in text_of(console.get(older))
    page = text_of(console.get("/groups?only=unfinished&name=g-1*"))
    assert "g-10" in page
    assert "g-11" not in page


def test_operations_and_cost(serve: Serve, database_url: str, rows: Rows, connection: Connection) -> None:
    rows.driver(hostname="node-7", queues=["default", "night"])
    rows.job("QUEUED", queue="night", next_visible_at=rows.ago(100))
    rows.job("RETRYING", queue="night")
    rows.job("BLOCKED", queue="other", waits_for=1)
    rows.job("RUNNING", queue="night")
    for day in range(3):
        execute(
            connection,
            "INSERT INTO rythmiq.costs (day, user_id, queue, group_id, labels, credits, jobs)"
            " VALUES ((now() AT TIME ZONE 'UTC')::date - %s, 'alice', 'night', %s, '{}', 1.5, 2)",
            day,
            "00000000-0000-0000-0000-000000000000",
        )
    rows.job("RUNNING", user_id="bob", running_at=rows.ago(3600), credits_per_hour=2.0)
    execute(
        connection,
        "INSERT INTO rythmiq.schedules (name, cron, time_zone, job, next_at, paused, reason)"
        " VALUES ('nightly', '0 2 * * *', 'Europe/Berlin', '{\"command\": \"make report\"}', now(), true, 'moving')",
    )
    console = serve(database_url)
    page = text_of(console.get("/queues"))
    assert "night 1 1 0 1 0 1 min 40 s 1" in page
    assert "other 0 0 1 0 0 \u2013 none" in page
    assert "alive node-7 4711 0.1.0" in text_of(console.get("/drivers"))
    assert "nightly 0 2 * * * Europe/Berlin paused moving" in text_of(console.get("/schedules"))
    page = text_of(console.get("/cost"))
    assert re.search(r"alice 4\.50* 6", page), page
    assert re.search(r"bob 2\.\d+ 2\.\d+ 1", page), page
    assert re.search(r"night 4\.50* 6", page), page


def test_limits_are_shown_and_scopes_paused_and_resumed(
    serve: Serve, database_url: str, rows: Rows, connection: Connection
) -> None:
    rows.job("QUEUED", queue="a/b<i>")
    group = rows.group("lr")
    rows.job("QUEUED", group_id=group)
    execute(connection, "SELECT rythmiq.set_limit('user', 'ann', 3, NULL)")
    execute(connection, "SELECT rythmiq.set_budget('user', '*', 20, 'day', false)")
    console = serve(database_url)
    page = text_of(console.get("/queues"))
    assert "user:ann 0 3 open" in page
    assert "20 credits (day)" in page or "20.00 credits (day)" in page
    assert "/act/" not in console.get("/queues").text
    console = serve(database_url, actions=True)
    for path, what in (
        ("/act/{}/queue?name=a%2Fb%3Ci%3E", ("queue", "a/b<i>")),
        ("/act/{}/account?name=", ("account", "")),
        ("/act/{}/user?name=ann", ("user", "ann")),
        (f"/act/{{}}/group?name={group}", ("group", str(group))),
    ):
        pause, resume = path.format("pause"), path.format("resume")
        asked = console.get(pause)
        assert asked.status_code == 200
        assert "Nothing new is submitted" in asked.text
        said = text_of(console.post(pause, {"csrf": csrf_of(asked.text)}))
        assert "Paused" in said, said
        where = "SELECT paused FROM rythmiq.limits WHERE scope = %s AND name = %s AND period IS NULL"
        assert execute(connection, where, *what) == [(True,)]
        assert "paused by" in text_of(console.get("/queues"))
        assert "Resumed" in text_of(console.post(resume, {"csrf": csrf_of(console.get(resume).text)}))
        assert execute(connection, where, *what) in ([], [(False,)])
    assert console.get("/act/pause/schedule?name=x").status_code == 404
    assert "Pause" in console.get(f"/groups/{group}").text


@pytest.mark.parametrize("name", [".", "..", "../../..", "a/b?c#d&name=e%2e%2f<i>"])
def test_a_button_acts_on_the_queue_it_stands_beside_whatever_its_name(
    serve: Serve, database_url: str, rows: Rows, connection: Connection, name: str
) -> None:
    """Browsers take ``..`` out of a path, also where it is percent-encoded; so does this client."""
    rows.job("QUEUED", queue=name)
    console = serve(database_url, actions=True)
    (button,) = re.findall(r'href="(/act/pause/queue[^"]*)"', console.get("/queues").text)
    asked = console.get(unescape(button)).text
    (form,) = re.findall(r'action="([^"]+)" class="ask"', asked)
    assert "Paused" in text_of(console.post(unescape(form), {"csrf": csrf_of(asked)}))
    assert execute(connection, "SELECT scope, name FROM rythmiq.limits WHERE paused") == [("queue", name)]


# --------------------------------------------------------------------------------------------------------------- roles


def test_a_reader_sees_all_pages_and_changes_nothing(
    serve: Serve, database_url: str, rows: Rows, connection: Connection
) -> None:
    execute(connection, (ROOT / "deploy/sql/roles.sql").read_text(encoding="utf-8"))
    login = f"reader_{uuid4().hex[:8]}"
    execute(connection, f"CREATE ROLE {login} LOGIN IN ROLE rythmiq_reader")
    group = rows.sweep("lr", 3, 2)
    rows.driver(queues=["other"])
    job = rows.job("QUEUED")
    try:
        console = serve(database_url.replace("postgres@", f"{login}@", 1), actions=True)
        for path in (
            "/",
            "/jobs",
            f"/jobs/{job}",
            "/groups",
            f"/groups/{group}",
            "/queues",
            "/drivers",
            "/schedules",
            "/cost",
        ):
            assert console.get(path).status_code == 200, path
        until(lambda: "being summed" not in console.get("/cost").text)
        assert "cannot" not in text_of(console.get("/cost"))
        path = f"/act/cancel/job?name={job}"
        assert "may not do this" in text_of(console.post(path, {"csrf": csrf_of(console.get(path).text)}))
        assert execute(connection, "SELECT state FROM rythmiq.jobs WHERE job_id = %s", str(job)) == [("QUEUED",)]
    finally:
        console.server.stop()
        execute(connection, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{login}'")
        execute(connection, f"DROP ROLE {login}")


def test_reading_connections_can_change_nothing(serve: Serve, database_url: str) -> None:
    from rythmiq_ray.console.database import Database
    from rythmiq_ray.secret import Secret

    database = Database(Secret(database_url))
    for opened in (database.read, database.patient):
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction), opened() as connection:
            execute(connection, "DELETE FROM rythmiq.jobs")
    database.close()


# ------------------------------------------------------------------------------------------------------------- actions


@pytest.fixture
def acting(serve: Serve, database_url: str) -> Served:
    return serve(database_url, actions=True)


def act(console: Served, path: str, **data: str) -> str:
    csrf = csrf_of(console.get(path).text)
    return text_of(console.post(path, {"csrf": csrf, **data}))


def test_a_job_a_group_and_what_a_filter_means_are_cancelled_and_retried(
    acting: Served, rows: Rows, connection: Connection
) -> None:
    group = rows.group("lr")
    jobs = [rows.job("QUEUED", group_id=str(group), group_index=n, queue="a" if n else "b") for n in range(4)]
    assert "Cancelled 1 job." in act(acting, f"/act/cancel/job?name={jobs[0]}")
    assert "Queued 1 job again." in act(acting, f"/act/retry/job?name={jobs[0]}")
    assert "2 jobs are affected" not in text_of(acting.get("/act/cancel/filter?queue=a"))
    assert "3 jobs are affected now" in text_of(acting.get("/act/cancel/filter?queue=a"))
    assert "Cancelled 3 jobs." in act(acting, "/act/cancel/filter?queue=a")
    assert "Queued 3 jobs again." in act(acting, f"/act/retry/group?name={group}", option="1")
    running = rows.job("RUNNING", group_id=str(group), group_index=9)
    assert "Cancelled 5 jobs, 1 of them will be stopped by their drivers." in act(
        acting, f"/act/cancel/group?name={group}"
    )
    asked = "SELECT cancel_requested_at IS NOT NULL FROM rythmiq.jobs WHERE job_id = %s"
    assert execute(connection, asked, str(running)) == [(True,)]
    assert "None of its jobs is in a state" in text_of(acting.get(f"/act/cancel/job?name={jobs[0]}"))


def test_buttons_are_there_where_they_can_do_something(acting: Served, rows: Rows) -> None:
    buttons = {"QUEUED": {"cancel"}, "RUNNING": {"cancel"}, "FAILED": {"retry"}, "SUCCEEDED": set()}
    for state, names in buttons.items():
        page = acting.get(f"/jobs/{rows.job(state)}").text
        assert set(re.findall(r'href="/act/(\w+)/job\?', page)) == names, state
    assert "/act/" not in acting.get("/jobs").text, "not for every job there is"
    assert "/act/retry/filter?state=failed" in acting.get("/jobs?state=failed").text
    assert acting.get("/act/nothing/job?name=x").status_code == 404


# ---------------------------------------------------------------------------------------------------------------- live


def events_of(answer: requests.Response) -> Iterator[tuple[str, str]]:
    """Name and data of each event."""
    name = ""
    for line in answer.iter_lines(chunk_size=1, decode_unicode=True):
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, line[6:]


def test_pages_are_told_when_a_job_ends(serve: Serve, database_url: str, rows: Rows, connection: Connection) -> None:
    console = serve(database_url)
    job = rows.job("QUEUED")
    feed = console_feed(console)
    feed._slow_s = 600.0  # so that only a notification can be the cause
    with console.get("/events", stream=True) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = threading.Event()
        threading.Thread(target=lambda: (next(events_of(answer), None), told.set()), daemon=True).start()
        listening = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE query = 'LISTEN rythmiq_events' AND datname = current_database()"
        )
        until(lambda: execute(connection, listening) == [(1,)])
        assert not told.is_set()
        execute(
            connection, "UPDATE rythmiq.jobs SET state = 'CANCELLED', finished_at = now() WHERE job_id = %s", str(job)
        )
        assert told.wait(10)
    until(lambda: not feed._listeners)


def console_feed(console: Served) -> object:
    """Its feed, to see into."""
    return console.server.console.feed


def test_a_lost_connection_is_made_anew(serve: Serve, database_url: str, rows: Rows, connection: Connection) -> None:
    console = serve(database_url)
    assert console.get("/jobs").status_code == 200
    execute(
        connection,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    assert console.get("/jobs").status_code == 200
