"""Who may see the console, and what its pages may do: asked of a real one, over the network."""

from __future__ import annotations

import re
import socket
import subprocess
from itertools import product
from pathlib import Path

import pytest
import requests
from samples import API_KEY
from web_console import TOKEN, Serve, Served, cookie_of, csrf_of, is_harmless, until
from web_rows import HOSTILE, Connection, Rows, execute

from rythmiq_ray.errors import ConfigurationError
from rythmiq_ray.secret import Secret
from rythmiq_ray.web.pages import operations
from rythmiq_ray.web.security import Keys, is_loopback
from rythmiq_ray.web.server import Serving

PAGES = ["/", "/jobs", "/groups", "/queues", "/drivers", "/schedules", "/cost", "/events", "/find?q=x"]


# -------------------------------------------------------------------------------------------------------------- token


def test_nothing_is_shown_without_the_token(console: Served) -> None:
    for path, cookies in product(
        PAGES, ({}, {f"rythmiq_{console.server.port}": "0" * 64}, {f"rythmiq_{console.server.port}": TOKEN})
    ):
        answer = requests.get(f"{console.url}{path}", cookies=cookies, timeout=30, allow_redirects=False)
        assert answer.status_code == 401, cookies
        assert "rythmiq web" in answer.text
        assert "<" not in answer.text


def test_a_wrong_token_is_none(console: Served) -> None:
    for token in ("", "x", TOKEN[:-1], f"{TOKEN}x", "\u00e4"):
        answer = requests.get(f"{console.url}/", params={"token": token}, timeout=30)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers


def test_the_cookie_is_sent_by_this_site_alone_and_read_by_no_script(console: Served) -> None:
    answer = requests.get(f"{console.url}/jobs", params={"token": TOKEN, "state": "failed"}, timeout=30)
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert TOKEN not in cookie
    assert TOKEN not in answer.text
    assert 'url=/jobs?state=failed"' in answer.text, "the page goes on to what was asked for, without the token"


def test_a_token_in_an_address_leads_nowhere_else(console: Served) -> None:
    answer = requests.get(f"{console.url}//evil.example/%22%3E%3Cscript%3E", params={"token": TOKEN}, timeout=30)
    assert "evil.example" not in answer.text or "url=//evil" not in answer.text
    assert "<script" not in answer.text


def test_another_start_has_another_session() -> None:
    keys = [Keys(Secret(TOKEN)) for _ in range(2)]
    assert keys[0].session != keys[1].session
    assert keys[0].session != keys[0].csrf


# --------------------------------------------------------------------------------------------------------------- host


def test_a_name_of_somebody_else_that_leads_here_is_refused(console: Served) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "", "[::2]:1", "10.0.0.1"):
        answer = console.get("/", headers={"Host": host})
        assert answer.status_code in (400, 421), host
        assert "rythmiq-ray" not in answer.text


def test_names_of_this_machine_are_served(console: Served, serve: Serve, database_url: str) -> None:
    for host in ("localhost", "127.0.0.1", "LOCALHOST", "[::1]"):
        headers = {"Host": f"{host}:{console.server.port}", "Cookie": cookie_of(console)}
        assert requests.get(f"{console.url}/drivers", headers=headers, timeout=30).status_code == 200
    other = serve(database_url, allow_hosts=("jobs.example.org",))
    headers = {"Host": "jobs.example.org", "Cookie": cookie_of(other)}
    assert requests.get(f"{other.url}/drivers", headers=headers, timeout=30).status_code == 200


def test_no_other_site_may_read_a_page(console: Served) -> None:
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "null"}):
        answer = console.get("/jobs", headers=headers)
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
    asked = console.session.options(
        f"{console.url}/jobs",
        headers={"Origin": "https://e.example", "Access-Control-Request-Method": "GET"},
        timeout=30,
    )
    assert not [name for name in asked.headers if name.lower().startswith("access-control")]


# ------------------------------------------------------------------------------------------------------------ headers


def test_every_answer_says_what_a_browser_must_not_do(console: Served) -> None:
    for path in (*(page for page in PAGES if page != "/events"), "/static/console.js", "/nothing", "/jobs/x"):
        headers = console.get(path).headers
        policy = dict(part.strip().partition(" ")[::2] for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == policy["form-action"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cache-Control"] == ("no-cache" if path.startswith("/static") else "no-store")
        assert "server" not in headers


def test_static_files_are_those_alone(console: Served) -> None:
    for path in (
        "/static/../app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static//etc/passwd",
        "/static/",
    ):
        with socket.create_connection(("127.0.0.1", console.server.port), timeout=30) as raw:
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            with raw.makefile("rb") as answer:
                assert answer.readline().split()[1] in (b"404", b"401"), path


def test_an_answer_without_the_token_has_them_too(console: Served) -> None:
    headers = requests.get(console.url, timeout=30).headers
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


# ----------------------------------------------------------------------------------------------------------- escaping


def hostile_job(rows: Rows, **columns: object) -> str:
    spec = {
        "command": HOSTILE,
        "engine": HOSTILE,
        "outputs": [HOSTILE],
        "inputs": [{"uri": f"s3://b/{HOSTILE}", "name": HOSTILE}],
    }
    values = {
        "name": HOSTILE,
        "user_id": HOSTILE,
        "queue": HOSTILE,
        "labels": {HOSTILE: HOSTILE},
        "params": {HOSTILE: HOSTILE},
        "warnings": [HOSTILE],
        "error_code": HOSTILE,
        "error_message": HOSTILE,
        "unique_key": HOSTILE,
        "wait_reason": HOSTILE,
        "spec": spec,
    }
    return str(rows.job("FAILED", **values | columns))  # type: ignore[arg-type]


def test_what_rows_hold_is_text_on_every_page(console: Served, rows: Rows, connection: Connection) -> None:
    group = rows.group(HOSTILE, user_id=HOSTILE, labels={HOSTILE: HOSTILE})
    job = hostile_job(rows, group_id=str(group), group_index=0)
    rows.artifact(job, "log.txt", HOSTILE.encode())  # type: ignore[arg-type]
    rows.artifact(job, f"{HOSTILE.replace('/', '')}.csv", f"{HOSTILE},b\n{HOSTILE},1\n".encode())  # type: ignore[arg-type]
    rows.driver(hostname=HOSTILE, queues=[HOSTILE])
    rows.job("RUNNING", wait_reason=HOSTILE, queue=HOSTILE)
    execute(
        connection,
        "INSERT INTO rythmiq.schedules (name, cron, time_zone, job, next_at, last_outcome, reason)"
        ' VALUES (%s, %s, %s, \'{"command": "x"}\', now(), %s, %s)',
        *(HOSTILE[:150], HOSTILE, HOSTILE, f"not enqueued: {HOSTILE}", HOSTILE),
    )
    name = requests.utils.quote(f"{HOSTILE.replace('/', '')}.csv", safe="")
    paths = [
        *(
            "/",
            "/jobs",
            f"/jobs/{job}",
            f"/jobs/{job}/1/log",
            f"/jobs/{job}/1/log?q=%3Cscript",
            f"/jobs/{job}/1/inputs",
        ),
        *(
            f"/jobs/{job}/1/preview?name={name}",
            "/groups",
            f"/groups/{group}",
            "/queues",
            "/drivers",
            "/schedules",
            "/cost",
        ),
        *(
            f"/jobs?{field}={requests.utils.quote(HOSTILE)}"
            for field in ("name", "queue", "user", "label", "group", "since", "state")
        ),
        *(f"/find?q={requests.utils.quote(HOSTILE)}", f"/groups/{group}?x=%3Cscript%3E&y=%22&colour=%27&file=%3C"),
    ]
    for path in paths:
        answer = console.get(path)
        assert answer.status_code in (200, 404), path
        is_harmless(answer.text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in console.get(f"/jobs/{job}").text


def test_data_of_a_picture_is_no_page(console: Served, rows: Rows) -> None:
    group = rows.group("g")
    hostile_job(rows, group_id=str(group), group_index=0)
    answer = console.get(f"/groups/{group}/picture.json")
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["members"][0][0] == 0


def test_a_fault_of_the_console_shows_no_value(
    console: Served,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(_connection: object) -> list[object]:
        raise ValueError("canary-value")

    monkeypatch.setattr(operations.listing, "drivers", fails)
    answer = console.get("/drivers")
    assert answer.status_code == 500
    assert "A fault of the console itself: ValueError at test_web_security:" in answer.text
    until(lambda: "A page failed" in caplog.text)
    assert "canary-value" not in answer.text + "".join(capfd.readouterr()) + caplog.text


# -------------------------------------------------------------------------------------------------------------- files

FILES = {
    "page.html": b"<script>alert(1)</script>",
    "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "program.js": b"alert(1)",
    "text.txt": b"<script>alert(1)</script>",
    "page.xhtml": b"<html xmlns='http://www.w3.org/1999/xhtml'><script>alert(1)</script></html>",
    "report.pdf": b"%PDF-1.4",
    "folder/none": b"<html>",
}


@pytest.mark.parametrize("show", ["", "&show=1"])
def test_a_file_is_a_download_of_a_type_that_nothing_is_run_of(console: Served, rows: Rows, show: str) -> None:
    job = rows.job("SUCCEEDED")
    for name, content in FILES.items():
        rows.artifact(job, name, content, kind="text/html")
        answer = console.get(f"/jobs/{job}/1/file?name={name}{show}")
        assert answer.content == content
        assert answer.headers["content-type"] == "application/octet-stream", name
        assert answer.headers["content-disposition"].startswith("attachment;"), name
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]


def test_a_picture_may_be_shown_and_is_still_no_page(console: Served, rows: Rows) -> None:
    job = rows.job("SUCCEEDED")
    rows.artifact(job, "plot.png", b"<script>alert(1)</script>", kind="text/html")
    answer = console.get(f"/jobs/{job}/1/file?name=plot.png&show=1")
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"].startswith("inline;")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert console.get(f"/jobs/{job}/1/file?name=plot.png").headers["content-disposition"].startswith("attachment;")


def test_a_row_leads_to_no_file_but_the_jobs_own(
    console: Served, rows: Rows, connection: Connection, tmp_path: Path
) -> None:
    job = rows.job("SUCCEEDED")
    (tmp_path / "secret").write_text("canary")
    for name in ("log.txt", "x.csv", "y.png"):
        rows.artifact(job, name, b"x")
    for uri in (
        (tmp_path / "secret").as_uri(),
        f"file:///{job}/../../../../../../..{tmp_path}/secret",
        f"http://e/{job}/x",
    ):
        execute(connection, "UPDATE rythmiq.artifacts SET uri = %s", uri)
        execute(connection, "UPDATE rythmiq.attempts SET artifact_uri = %s", uri)
        for path in ("file?name=x.csv", "file?name=y.png&show=1", "preview?name=x.csv", "log", "inputs"):
            answer = console.get(f"/jobs/{job}/1/{path}")
            assert "canary" not in answer.text
            assert answer.status_code == 404 or not path.startswith("file")


def test_a_files_name_cannot_add_a_header(console: Served, rows: Rows, connection: Connection) -> None:
    job = rows.job("SUCCEEDED")
    rows.artifact(job, "a.txt", b"x")
    name = 'a"; filename=evil.html\r\nX-Evil: 1\r\n\r\n<script>.txt'
    execute(connection, "UPDATE rythmiq.artifacts SET name = %s", name)
    answer = console.get(f"/jobs/{job}/1/file", params={"name": name})
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    assert answer.headers["content-disposition"].count('"') == 2


# ------------------------------------------------------------------------------------------------------------ actions


def test_a_console_that_only_shows_changes_nothing(console: Served, rows: Rows, connection: Connection) -> None:
    job = rows.job("QUEUED")
    assert "/act/" not in console.get(f"/jobs/{job}").text
    for path in (f"/act/cancel/job?name={job}", "/act/cancel/filter?state=queued"):
        assert console.get(path).status_code == 403
        assert console.post(path, {"csrf": console.server.token.reveal()}).status_code == 403
    assert execute(connection, "SELECT state FROM rythmiq.jobs") == [("QUEUED",)]


def test_an_action_needs_the_token_of_its_form(
    serve: Serve, database_url: str, rows: Rows, connection: Connection
) -> None:
    console = serve(database_url, actions=True)
    job = rows.job("QUEUED")
    path = f"/act/cancel/job?name={job}"
    csrf = csrf_of(console.get(path).text)
    for data in ({}, {"csrf": ""}, {"csrf": "0" * 64}, {"csrf": TOKEN}):
        assert console.post(path, data, allow_redirects=False).status_code == 403, data
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        assert console.post(path, {"csrf": csrf}, headers=headers, allow_redirects=False).status_code == 403, headers
    assert console.get(path).status_code == 200, "to ask changes nothing"
    assert requests.post(f"{console.url}{path}", data={"csrf": csrf}, timeout=30).status_code == 401
    assert execute(connection, "SELECT state FROM rythmiq.jobs") == [("QUEUED",)]
    done = console.post(path, {"csrf": csrf}, allow_redirects=False)
    assert done.status_code == 303
    assert execute(connection, "SELECT state FROM rythmiq.jobs") == [("CANCELLED",)]
    assert "Cancelled 1 job." in console.get(done.headers["location"]).text


def test_a_form_that_is_too_large_is_refused(serve: Serve, database_url: str, rows: Rows) -> None:
    console = serve(database_url, actions=True)
    assert console.post(f"/act/cancel/job?name={rows.job()}", {"csrf": "x" * 200_000}).status_code == 413


@pytest.mark.parametrize("query", ["", "?state=nonsense", "?since=nonsense", "?before=x", "?group=no-such-group"])
def test_a_filter_that_means_every_job_cancels_none(
    serve: Serve, database_url: str, rows: Rows, connection: Connection, query: str
) -> None:
    console = serve(database_url, actions=True)
    other = csrf_of(console.get(f"/act/cancel/job?name={rows.job()}").text)
    assert console.get(f"/act/cancel/filter{query}").status_code == 400
    answer = console.post(f"/act/cancel/filter{query}", {"csrf": other})
    assert "was not done" in answer.text
    assert execute(connection, "SELECT state FROM rythmiq.jobs") == [("QUEUED",)]


# ---------------------------------------------------------------------------------------------------- how it is served


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("localhost", True),
        ("::1", True),
        ("127.8.8.8", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("jobs.example.org", False),
    ],
)
def test_others_than_this_machine_need_tls_or_a_word(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    if loopback:
        Serving(host=host).check()
        return
    with pytest.raises(ConfigurationError, match="--insecure"):
        Serving(host=host).check()
    Serving(host=host, insecure=True).check()
    Serving(host=host, tls_cert=Path("c"), tls_key=Path("k")).check()


@pytest.mark.parametrize(
    "options",
    [
        {"tls_cert": Path("c")},
        {"tls_key": Path("k")},
        {"root_path": "x"},
        {"root_path": '/"'},
        {"root_path": "//evil"},
        {"token": Secret("short")},
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        Serving(**options).check()  # type: ignore[arg-type]


def test_with_a_certificate_it_speaks_tls(serve: Serve, database_url: str, tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)],
        check=True, capture_output=True,
    )  # fmt: skip
    console = serve(database_url, tls_cert=cert, tls_key=key)
    assert console.address.startswith("https://")
    answer = requests.get(console.address.replace("127.0.0.1", "localhost"), verify=str(cert), timeout=30)
    assert answer.status_code == 200
    assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize("strips", [True, False])
def test_behind_a_prefix_every_address_has_it(serve: Serve, database_url: str, rows: Rows, strips: bool) -> None:
    job = rows.job("SUCCEEDED", group_id=str(rows.group("g")), group_index=0)
    rows.artifact(job, "a.png", b"x")
    console = serve(database_url, root_path="/tools/rythmiq/")
    at = console.url.removesuffix("/tools/rythmiq") if strips else console.url
    (cookie,) = console.session.cookies
    assert cookie.path == "/tools/rythmiq"
    headers = {"Cookie": f"{cookie.name}={cookie.value}"}
    for path in ("/", "/jobs", f"/jobs/{job}", "/groups", f"/jobs/{job}/1/preview?name=a.png"):
        answer = requests.get(f"{at}{path}", headers=headers, timeout=30)
        assert answer.status_code == 200
        found = re.findall(r'(?:href|src|action|data-load|data-base|data-follow)="([^"#][^"]*)"', answer.text)
        assert [each for each in found if not each.startswith("/tools/rythmiq")] == []
    moved = requests.get(f"{at}/find?q={job}", headers=headers, timeout=30, allow_redirects=False)
    assert moved.headers["location"] == f"/tools/rythmiq/jobs/{job}"


def test_pages_name_no_other_host_and_no_secret(console: Served, rows: Rows) -> None:
    job = rows.job("SUCCEEDED", spec={"command": "x", "secrets": ["HF_TOKEN"], "env": {"A": "hush-hush-value"}})
    for path in ("/", "/jobs", f"/jobs/{job}", "/static/console.js", "/static/console.css"):
        text = console.get(path).text
        found = re.findall(r"https?://[\w.-]+", text)
        assert set(found) <= {"http://www.w3.org"}, "the name of a format, which nobody asks for"
        assert TOKEN not in text
        assert API_KEY not in text
        assert "hush-hush-value" not in text
