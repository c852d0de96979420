"""P13: pages of `rythmiq web` and refreshes of `rythmiq top` with a large table, and their processor time."""

from __future__ import annotations

import statistics
import sys
import threading
import time

import psutil
import requests

from benchmarks.environment import Environment
from benchmarks.measure import Bench, Goal, Row
from benchmarks.rows.groups import fill
from benchmarks.terminal import Terminal
from rythmiq_ray import JobSpec, NewGroup, NewJob, enqueue_group, grid
from rythmiq_ray.cli.operations import reasons_of
from rythmiq_ray.queue import Queue
from rythmiq_ray.secret import Secret
from rythmiq_ray.sweeps import expand
from rythmiq_ray.web.server import Server, Serving

LOOKS = 5
TOKEN = "benchmark-token-0123456789"
PAGES = ("/", "/?span=day", "/jobs", "/jobs?state=failed", "/jobs?user=user-7", "/jobs?queue=queue-7", "/groups",
         "/queues", "/drivers", "/schedules", "/cost")  # fmt: skip
SCREENS = {"queues": "1", "groups": "2", "a group": "2\r", "jobs": "3", "a job": "3\r", "drivers": "4"}
"""The screens of `rythmiq top`, and the keys that lead to each from any other."""
BACK, REFRESH = "\x7f", " "
REFRESHED = r"\d\d:\d\d:\d\d"
"""Each refresh draws the time at which the screen was read."""
TOP = [sys.executable, "-c", "from rythmiq_ray.cli import main; main()", "top"]


def measure(bench: Bench) -> Row:
    row = Row("P13", "console and top: pages and refreshes in a large table, and processor time while watched")
    table, running, members = bench.size(5_000_000, 100_000), bench.size(10_000, 500), bench.size(10_000, 500)
    with Environment(bench.root / "console", "--instant") as environment:
        sweep = expand(
            NewJob(spec=JobSpec(command="true"), user_id="user-7"), grid(A=range(100), B=range(members // 100))
        )
        group_id, ids = enqueue_group(environment.connection, NewGroup(name="sweep"), sweep)
        environment.put(running)
        queue = Queue(Secret(environment.postgres.url), lease_s=600)
        queue.register()
        while len(queue.claim(1000)) == 1000:
            pass
        fill(environment, table)
        server = Server(Secret(environment.postgres.url), Serving(port=0, token=Secret(TOKEN)), reasons_of)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.port}"
        session = requests.Session()
        session.get(f"{url}/?token={TOKEN}", timeout=60).raise_for_status()
        worst = []
        for path in (*PAGES, f"/groups/{group_id}", f"/jobs/{ids[0]}"):
            took = [_ms(session, url + path) for _ in range(1 + LOOKS)]
            shown = path.replace(str(group_id), "SWEEP").replace(str(ids[0]), "JOB")
            row.add(f"page {shown}", "ms", statistics.median(took[1:]))
            worst.append(statistics.median(took[1:]))
        row.goals.append(Goal("slowest page, ms", [max(worst)], 300.0, at_most=True))
        row.add("processor, while the overview is watched", "% of a core", _watched(session, url, bench.size(60, 5)))
        row.goals.append(Goal("processor, % of a core", row.series[-1].values, 5.0, at_most=True))
        server.stop()
        thread.join(20)
        _top(bench, environment, row)
        queue.close()
    return row


def _top(bench: Bench, environment: Environment, row: Row) -> None:
    worst = []
    with Terminal([*TOP, "--interval", "1h"], environment.environ()) as terminal:
        terminal.shown_after("", REFRESHED)
        for screen, keys in SCREENS.items():
            for key in BACK + keys:
                terminal.press(key)
                terminal.watch(1.0)
            took = []
            for _ in range(bench.size(LOOKS, 1)):
                # Counts of all jobs are kept for 5 s, so this refresh is of those that read them again.
                terminal.watch(bench.size(6, 2))
                took.append(terminal.shown_after(REFRESH, REFRESHED))
            row.add(f"top, {screen}", "ms", statistics.median(took))
            worst.append(statistics.median(took))
    row.goals.append(Goal("slowest refresh of top, ms", [max(worst)], 300.0, at_most=True))
    with Terminal(TOP, environment.environ()) as terminal:
        terminal.shown_after("", REFRESHED)
        process, seconds = terminal.process, bench.size(60, 10)
        own, postgres = sum(process.cpu_times()[:2]), environment.postgres_cpu_s()
        terminal.watch(seconds)
        row.add("processor, while top is watched", "% of a core", 100 * (sum(process.cpu_times()[:2]) - own) / seconds)
        row.goals.append(Goal("processor of top, % of a core", row.series[-1].values, 5.0, at_most=True))
        row.add("the same, Postgres", "% of a core", 100 * (environment.postgres_cpu_s() - postgres) / seconds)


def _ms(session: requests.Session, url: str) -> float:
    begun = time.perf_counter()
    answer = session.get(url, timeout=60)
    answer.raise_for_status()
    return (time.perf_counter() - begun) * 1000


def _watched(session: requests.Session, url: str, seconds: float) -> float:
    """The processor time of the console in percent of a core, while one page is open and reloads when it is told to."""
    process = psutil.Process()
    before, begun = process.cpu_times(), time.monotonic()
    with session.get(f"{url}/events", stream=True, timeout=60) as events:
        for line in events.iter_lines():
            if line.startswith(b"data"):
                _ms(session, url)
            if time.monotonic() - begun > seconds:
                break
    after, took = process.cpu_times(), time.monotonic() - begun
    return 100 * (after.user + after.system - before.user - before.system) / took
