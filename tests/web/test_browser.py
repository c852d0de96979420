"""The console in a real browser: every page, live, by keyboard, on a narrow screen, dark and light."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg2
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from web_console import Serve, Served
from web_rows import HOSTILE, LONG, Connection, Rows, execute, png

from rythmiq_ray import Client, JobSpec
from rythmiq_ray.testing import rythmiq, rythmiq_environment  # noqa: F401 - fixtures
from rythmiq_ray.web.report import group_report, period_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not here; scripts/packages installs it")
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
# Chromium by itself speaks to its makers; a test of "no other host" must not see that.
ARGUMENTS = [
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests here, with a profile of its own; it ends with the module, as its event loop would else stay."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, chromium_sandbox=False)
        yield browser
        browser.close()


@dataclass
class Watched:
    """A page, and all that it complained of and asked for."""

    page: Page
    base: str
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def go(self, path: str) -> Page:
        self.page.goto(f"{self.base}{path}")
        return self.page

    def fine(self) -> None:
        assert self.complaints == []
        assert self.hosts <= {urlsplit(self.base).netloc}

    def fits(self) -> None:
        """Nothing is wider than the screen, but for what scrolls by itself."""
        inner, outer = self.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert inner <= outer, self.page.url

    def accessible(self) -> None:
        found = Axe().run(self.page)
        said = [
            (each["id"], [node["html"][:200] for node in each["nodes"]][:3]) for each in found.response["violations"]
        ]
        assert said == [], self.page.url


Look = Callable[..., Any]


@pytest.fixture
def look(browser: Browser) -> Look:
    """Opens a page of a console as a person does: by the address with the token."""

    @contextmanager
    def opened(
        console: Served, viewport: dict[str, int] = WIDE, scheme: str = "light", **options: Any
    ) -> Iterator[Watched]:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, **options)  # type: ignore[arg-type]
        context.set_default_timeout(10_000)
        page = context.new_page()
        watched = Watched(page, console.url)
        page.on("console", lambda message: watched.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        page.on("request", lambda request: watched.hosts.add(urlsplit(request.url).netloc))
        page.on("dialog", lambda dialog: (watched.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.goto(console.address)
        page.wait_for_url(f"{console.url}/")
        yield watched
        watched.fine()
        context.close()

    return opened


@pytest.fixture
def full(rows: Rows, connection: Connection) -> dict[str, str]:
    """A database with something on every page, hostile and long names too; the pages by what they show."""
    rows.driver(hostname=LONG)
    rows.driver(alive=False, hostname=HOSTILE, queues=[HOSTILE])
    for state in ("QUEUED", "BLOCKED", "RETRYING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"):
        rows.job(state, name=LONG, user_id=LONG, queue=LONG)
    rows.job("RUNNING", wait_reason=HOSTILE)
    group = rows.sweep("lr", 12, 8)
    line = rows.sweep("line", 200, 1, one_param=True)
    job = rows.job(
        "FAILED",
        name=HOSTILE,
        labels={HOSTILE: LONG},
        params={"LR": "0.1"},
        warnings=[HOSTILE],
        error_code=HOSTILE,
        error_message=HOSTILE * 3,
        spec={"command": HOSTILE, "inputs": [{"uri": "s3://b/in.csv", "name": "in.csv"}]},
    )
    rows.artifact(job, "log.txt", b"".join(b"line %d\n" % n for n in range(2_000)))
    rows.artifact(job, "plot.png", png())
    rows.artifact(job, "t.csv", b"a,b\n1,2\n3,4\n")
    rows.artifact(job, "page.html", HOSTILE.encode())
    rows.manifest(job, [{"name": "in.csv", "uri": "s3://b/in.csv", "bytes": 1, "sha256": "ab" * 32}])
    execute(
        connection,
        "INSERT INTO rythmiq.schedules (name, cron, job, next_at, last_at, last_outcome)"
        " VALUES (%s, '0 2 * * *', '{\"command\": \"x\"}', now(), now(), %s)",
        *(HOSTILE[:150], f"not enqueued: {HOSTILE}"),
    )
    execute(connection, "SELECT rythmiq.set_limit('user', %s, 3, 60)", HOSTILE)
    execute(connection, "SELECT rythmiq.set_budget('user', '*', 20, 'day', false)")
    execute(connection, "SELECT rythmiq.pause('queue', 'night', %s, false)", HOSTILE)
    return {
        "overview": "/",
        "jobs": "/jobs?user=&state=failed&state=queued&name=*",
        "job": f"/jobs/{job}",
        "groups": "/groups",
        "group": f"/groups/{group}",
        "scatter": f"/groups/{line}",
        "queues": "/queues",
        "drivers": "/drivers",
        "schedules": "/schedules",
        "cost": "/cost",
        "nothing": "/nothing",
    }


@pytest.mark.parametrize(("viewport", "scheme"), [(WIDE, "light"), (NARROW, "dark")])
def test_every_page_is_whole_and_accessible(
    serve: Serve, database_url: str, look: Look, full: dict[str, str], viewport: dict[str, int], scheme: str
) -> None:
    with look(serve(database_url, actions=True), viewport, scheme) as seen:
        for name, path in full.items():
            page = seen.go(path)
            expect(page.locator("h1")).to_have_count(1)
            if name == "job":
                expect(page.locator("#logpart .log")).to_contain_text("line 1999")
                expect(page.get_by_text("abababababab")).to_be_visible()
            seen.fits()
            seen.accessible()
            if name == "nothing":
                assert any("404" in each for each in seen.complaints)
                seen.complaints.clear()
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", dark))) < 200) is (scheme == "dark")


def test_an_empty_database_is_whole_and_accessible(console: Served, look: Look) -> None:
    with look(console, NARROW) as seen:
        for path in ("/", "/jobs", "/groups", "/queues", "/drivers", "/schedules", "/cost"):
            seen.go(path)
            seen.fits()
            seen.accessible()


def test_a_page_follows_what_happens(console: Served, look: Look, rows: Rows, connection: Connection) -> None:
    rows.driver()
    job = rows.job("QUEUED", name="fit")
    with look(console) as seen:
        page = seen.go("/jobs")
        page.locator("body[data-listening=yes]").wait_for()
        page.locator("tr[data-row] a").first.focus()
        execute(
            connection, "UPDATE rythmiq.jobs SET state = 'CANCELLED', finished_at = now() WHERE job_id = %s", str(job)
        )
        expect(page.locator("tr[data-row] .state")).to_have_text("CANCELLED")
        assert page.evaluate("document.activeElement.getAttribute('href')") == f"/jobs/{job}", (
            "who was there stays there"
        )
        button = page.get_by_role("button", name="Live")
        button.click()
        expect(page.get_by_role("button", name="Paused")).to_have_attribute("aria-pressed", "false")
        looked = page.evaluate("document.body.dataset.looked")
        rows.job("QUEUED")
        page.reload()
        expect(page.get_by_role("button", name="Paused")).to_be_visible()
        assert looked is not None


def test_by_keyboard_alone(console: Served, look: Look, rows: Rows) -> None:
    jobs = [rows.job("SUCCEEDED", age_s=900 - n) for n in range(60)]
    with look(console) as seen:
        page = seen.page
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        page.keyboard.press("g")
        page.keyboard.press("j")
        page.wait_for_url("**/jobs")
        page.keyboard.press("n")
        page.wait_for_url("**before=**")
        page.keyboard.press("p")
        page.wait_for_url(re.compile(r"/jobs\?$"))
        for key in "jjk":
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/jobs/{jobs[-1]}")
        page.keyboard.press("/")
        page.keyboard.type(str(jobs[3])[:23])
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/jobs/{jobs[3]}")


def test_a_groups_picture_leads_to_its_members(console: Served, look: Look, rows: Rows, connection: Connection) -> None:
    group = rows.sweep("lr", 10, 5)
    place = "SELECT job_id::text FROM rythmiq.jobs WHERE group_id = %s AND group_index = %s"
    with look(console) as seen:
        page = seen.go(f"/groups/{group}")
        canvas = page.locator("[data-picture] .canvas")
        box = canvas.bounding_box()
        assert box is not None
        at = {"x": box["width"] * 0.35, "y": box["height"] * 0.5}
        canvas.hover(position=at)  # type: ignore[arg-type]
        expect(page.locator("#readout a")).to_contain_text("SEED=2")
        canvas.click(position=at)  # type: ignore[arg-type]
        ((job,),) = execute(connection, place, str(group), 23)
        page.wait_for_url(f"**/jobs/{job}")
        seen.go(f"/groups/{group}").locator("[data-picture] .canvas").focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
        expect(page.locator("#readout a")).to_contain_text("SEED=1")
        page.keyboard.press("Enter")
        ((job,),) = execute(connection, place, str(group), 12)
        page.wait_for_url(f"**/jobs/{job}")
        seen.go(f"/groups/{group}").get_by_label("colour").select_option("seconds")
        page.wait_for_url("**colour=seconds**")
        expect(page.locator(".legend.scale li").first).to_contain_text("s")


def test_files_a_search_and_a_command(console: Served, look: Look, full: dict[str, str]) -> None:
    with look(console, permissions=["clipboard-read", "clipboard-write"]) as seen:
        page = seen.go(full["job"])
        for name, shown in (("plot.png", "#preview img"), ("t.csv", "#preview td"), ("page.html", "#preview .log")):
            page.get_by_role("row", name=name).get_by_role("link", name="show").click()
            expect(page.locator(shown).first).to_be_visible()
        assert page.evaluate("document.querySelector('#preview script')") is None
        page.get_by_role("row", name="plot.png").get_by_role("link", name="show").click()
        expect(page.locator("#preview img")).to_have_js_property("naturalWidth", 64)
        page.get_by_role("button", name="Close").click()
        expect(page.locator("#preview")).to_be_hidden()
        page.get_by_label("Search in the log").fill("LINE 19")
        page.keyboard.press("Enter")
        expect(page.locator("#logpart .note")).to_contain_text("111 lines of 2,000")
        page.get_by_role("button", name="Copy rythmiq retry").click()
        assert page.evaluate("navigator.clipboard.readText()").startswith("rythmiq retry ")
        with page.expect_download() as download:
            page.get_by_role("row", name="page.html").get_by_role("link", name="download").click()
        assert download.value.suggested_filename == "page.html"


def test_an_action_is_asked_for_and_done(serve: Serve, database_url: str, look: Look, rows: Rows) -> None:
    job = rows.job("QUEUED", name="fit")
    with look(serve(database_url, actions=True), NARROW) as seen:
        page = seen.go(f"/jobs/{job}")
        page.get_by_role("link", name="Cancel", exact=True).click()
        seen.accessible()
        page.get_by_role("button", name="Cancel 1 job").click()
        expect(page.get_by_role("status").first).to_have_text("Cancelled 1 job.")
        expect(page.locator(".lead .state")).to_have_text("CANCELLED")
        page.get_by_role("link", name="Retry", exact=True).click()
        page.get_by_role("button", name="Retry 1 job").click()
        expect(page.locator(".lead .state")).to_have_text("RETRYING")


def test_without_scripts_everything_can_be_read(console: Served, look: Look, full: dict[str, str]) -> None:
    with look(console, java_script_enabled=False) as seen:
        page = seen.go(full["job"])
        page.get_by_role("link", name="show the log").click()
        expect(page.locator(".log")).to_contain_text("line 1999")
        expect(seen.go(full["group"]).locator("svg.cells")).to_be_visible()


def test_a_running_jobs_log_is_followed_to_its_end(serve: Serve, look: Look, rythmiq: Client, tmp_path: Path) -> None:  # noqa: F811
    """A real driver, and a process that waits to be let go on."""
    gate = tmp_path / "gate"
    command = f"echo first line; while [ ! -e {gate} ]; do sleep 0.1; done; echo '<b>second</b> line'"
    job = rythmiq.submit(JobSpec(command=command, node_size="xmicro"))
    console = serve(rythmiq._url.reveal())
    with look(console) as seen:
        page = seen.go(f"/jobs/{job.id}")
        expect(page.locator(".lead .stage")).to_have_text("running", timeout=20_000)
        page.reload()
        log = page.locator("#logpart .log")
        expect(log).to_contain_text("first line", timeout=20_000)
        expect(page.get_by_role("button", name="Following")).to_have_attribute("aria-pressed", "true")
        gate.touch()
        expect(log).to_contain_text("<b>second</b> line", timeout=20_000)
        expect(page.locator(".lead .state")).to_have_text("SUCCEEDED", timeout=20_000)
        expect(page.locator("[data-follow]")).to_have_text("Ended")
        assert log.inner_text().count("first line") == 1
        expect(page.locator("table", has_text="log.txt")).to_be_visible()


def test_a_report_is_a_page_without_a_network(
    browser: Browser, rows: Rows, connection: Connection, tmp_path: Path
) -> None:
    pages = {
        "group": group_report(connection, rows.sweep(HOSTILE, 12, 6)),
        "period": period_report(connection, rows.ago(86400)),
    }
    context = browser.new_context(viewport=NARROW, color_scheme="dark", offline=True)  # type: ignore[arg-type]
    for name, text in pages.items():
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))  # type: ignore[misc]
        page.on("console", lambda message, asked=asked: asked.append(message.text))  # type: ignore[misc]
        page.goto((tmp_path / f"{name}.html").as_uri())
        watched = Watched(page, "")
        watched.fits()
        watched.accessible()
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert page.locator("svg").first.is_visible()
        printed = page.pdf(format="A4")
        assert printed.startswith(b"%PDF")
    context.close()


def test_postgres_away_is_said_and_forgotten(console: Served, look: Look, connection: Connection) -> None:
    """A page says what is wrong, and is whole again once that is over."""
    name = connection.info.dbname
    with look(console) as seen, closing(psycopg2.connect(connection.dsn.replace(name, "postgres"))) as other:
        other.autocommit = True
        execute(other, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        execute(other, f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = '{name}'")
        expect(seen.go("/jobs").get_by_role("alert")).to_contain_text("Postgres")
        execute(other, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        seen.go("/jobs")
        expect(seen.page.get_by_role("heading", name="Jobs")).to_be_visible()
        assert any("503" in each for each in seen.complaints)
        seen.complaints.clear()
