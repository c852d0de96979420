"""The screens of `rythmiq top` over a real Postgres: what they show, and where keys lead."""

from __future__ import annotations

from top_screen import Screen, watch
from web_rows import HOSTILE, LONG, Connection, Rows, execute

from rythmiq_ray.queue import control
from rythmiq_ray.queue.control import Scope

MARKUP = "[red]not red[/red] [@click=app.quit]quit[/] \x1b[31m\x07\x9b31m\r\n"


def busy(rows: Rows, connection: Connection) -> None:
    """Queues in each of the states that a queue can be in."""
    rows.driver(queues=["night", "day", "gpu"], hostname="node-7")
    for queue, state, age_s in (
        ("night", "QUEUED", 1_500),
        ("night", "QUEUED", 90),
        ("night", "RUNNING", 60),
        ("day", "RUNNING", 50),
        ("day", "QUEUED", 200),
        ("gpu", "BLOCKED", 40),
        ("nobody", "RETRYING", 30),
    ):
        at = {"next_visible_at": rows.ago(age_s)} if state == "QUEUED" else {}
        rows.job(state, queue=queue, age_s=age_s, **at)
    for n in range(12):
        rows.job("FAILED" if n == 0 else "SUCCEEDED", queue="day", age_s=400 + n, finished_at=rows.ago(70 + n))
    control.set_limit(connection, Scope("queue", "day"), max_running=1)
    control.pause(connection, Scope("queue", "gpu"), reason="new nodes")


def test_queues_at_80_by_24(database_url: str, rows: Rows, connection: Connection) -> None:
    busy(rows, connection)

    async def script(screen: Screen) -> None:
        await screen.until("night")
        assert screen.row(" 1 Queues") == "1 Queues 2 Groups 3 Jobs 4 Drivers"
        assert screen.row("3 queued") == "3 queued 1 retrying 1 blocked 2 running"
        assert "in 30 min: 11 succeeded, 1 failed" in screen.row("ended")
        assert screen.row("QUEUE") == "QUEUE STATE WAITING RUNNING OLDEST A MINUTE ENDED"
        assert screen.row("night").startswith("night open 2 1 25 min 0")
        assert screen.row("day").startswith("day full 1 1/1 3 min")
        assert screen.row("gpu").startswith("gpu paused 0 0 \u2013")
        assert screen.row("nobody").startswith("nobody unserved 1 0")
        assert "queue:gpu was paused by postgres (new nodes)." in screen.text
        assert "█" in screen.row("day")
        assert screen.row("1-4 view").endswith("? help q quit")
        await screen.resize(120, 40)
        await screen.until(lambda: len(screen.lines) == 40)
        await screen.until(lambda: screen.row("gpu").startswith("gpu paused 0 0 1 0 0 \u2013 1 0"))
        assert screen.row("QUEUE") == (
            "QUEUE STATE WAITING RETRYING BLOCKED RUNNING PENDING OLDEST DRIVERS A MINUTE ENDED"
        )

    watch(database_url, script)


def test_empty_tables_say_what_to_do(database_url: str) -> None:
    async def script(screen: Screen) -> None:
        for key, said in (
            ("1", "Nothing is queued or running, and nothing has ended recently."),
            ("2", "rythmiq sweep"),
            ("3", "rythmiq enqueue --command"),
            ("4", "No driver yet: python -m rythmiq_ray.driver"),
        ):
            await screen.press(key)
            await screen.until(said)
            # There is nothing for these keys to be about.
            await screen.press("enter", "c", "p", "r", "d", "l")

    watch(database_url, script)


def test_a_group_its_members_and_a_job(database_url: str, rows: Rows, connection: Connection) -> None:
    group = rows.sweep("lr", 20, 10)
    execute(connection, "UPDATE rythmiq.groups SET max_parallel = 8 WHERE group_id = %s", str(group))

    async def script(screen: Screen) -> None:
        await screen.until("lr", "[##", "/200")
        assert screen.row("STATE") == "STATE GROUP PROGRESS ENDED FAILED AGE"
        await screen.press("enter")
        await screen.until("at most 8 at once", "credits in total", "LR=")
        assert "of 200" in screen.row("progress")
        assert "with remote_killed" in screen.text
        await screen.press("enter")
        await screen.until("command      python3 fit.py", "group        lr")
        await screen.press("o")
        await screen.until("at most 8 at once")
        await screen.press("escape", "escape")
        await screen.until("LR=")
        await screen.press("escape")
        await screen.until("1 Queues")

    watch(database_url, script, view="groups")


def test_everything_of_a_job(database_url: str, rows: Rows, connection: Connection) -> None:
    job = rows.job(
        "FAILED",
        age_s=700,
        name="fit",
        user_id="alice",
        labels={"team": "ml"},
        params={"LR": "0.1"},
        warnings=["no *.csv"],
    )
    rows.artifact(job, "log.txt", b"hello\n")
    waits = rows.job("BLOCKED", name="merge", waits_for=1)
    execute(
        connection,
        "INSERT INTO rythmiq.dependencies (job_id, on_job_id, needs) VALUES (%s, %s, 'succeeded')",
        str(waits),
        str(job),
    )

    async def script(screen: Screen) -> None:
        await screen.until("fit LR=0.1  command_failed: exit code 1")
        await screen.press("/")
        await screen.type("fit")
        await screen.press("enter")
        await screen.until("filter: name=", lambda: "merge" not in screen.text)
        await screen.press("enter")
        await screen.until(
            "name         fit",
            "user         alice",
            "labels       team=ml",
            "parameters   LR=0.1",
            "warnings     no *.csv",
            "error        command_failed: exit code 1: ValueError: loss is nan",
            "ATTEMPTS",
            "FILES",
            "log.txt",
        )
        await screen.press("escape", "escape")
        await screen.until("merge")
        await screen.press("g", "enter")
        await screen.until(
            "why          it waits for job fit, which is FAILED", "WAITS FOR", "job fit: FAILED, not yet"
        )

    watch(database_url, script, view="jobs", size=(120, 40))


def test_filters_are_those_of_the_command_line(database_url: str, rows: Rows, connection: Connection) -> None:
    busy(rows, connection)

    async def script(screen: Screen) -> None:
        await screen.until("filter: queue=night state=queued")
        await screen.until(lambda: screen.text.count("QUEUED") == 2)
        await screen.press("1")
        await screen.until("The filter state does not apply here.", lambda: "nobody" not in screen.text)
        await screen.press("/")
        await screen.type("quue=night")
        await screen.press("enter")
        await screen.until("there is no filter 'quue'; filters are group, queue", "since, until.")
        await screen.type("state=nonsense")
        await screen.press("enter")
        await screen.until("3 Jobs", "'nonsense' is not one of")
        await screen.press("/", "escape", "escape")
        await screen.until(lambda: "filter:" not in screen.text)
        await screen.press("1")
        await screen.until("nobody")
        await screen.press("j", "enter")
        await screen.until("filter: queue=gpu", "BLOCKED")

    watch(database_url, script, view="jobs", given=[("queue", "night"), ("state", "queued")])


def test_older_jobs_are_a_key_away(database_url: str, rows: Rows) -> None:
    for n in range(230):
        rows.job(age_s=1000 - n, name=f"n{n}")

    async def script(screen: Screen) -> None:
        await screen.until("n229", "200 are shown: > continues")
        await screen.press("G")
        await screen.until("n30")
        await screen.press(">")
        await screen.until("n29", "< shows the newest")
        await screen.press("<")
        await screen.until("n229")

    watch(database_url, script, view="jobs")


def test_the_cursor_stays_on_its_row(database_url: str, rows: Rows) -> None:
    for name in ("b", "d"):
        rows.job(queue=name)

    async def script(screen: Screen) -> None:
        await screen.until("b ", "d ")
        await screen.press("j")
        rows.job(queue="c")
        rows.job(queue="a")
        await screen.until("a ", "c ")
        await screen.press("enter")
        await screen.until("filter: queue=d")

    watch(database_url, script)


def test_drivers_and_the_help(database_url: str, rows: Rows) -> None:
    rows.driver(hostname="node-7", queues=["night"])
    gone = rows.driver(hostname="node-8", alive=False)
    rows.job("RUNNING", driver_id=gone)

    async def script(screen: Screen) -> None:
        await screen.until("node-7", "node-8")
        assert screen.row("alive") == "alive node-7 4711 3 h 0 0 0 night"
        assert screen.row("lost") == "lost node-8 4711 3 h 0 1 0 all"
        await screen.press("enter")
        await screen.until("heard of", "process      4711")
        await screen.press("escape", "?")
        await screen.until("NAVIGATE", "open: a queue")
        await screen.press("G")
        await screen.until("succeeded, x failed")
        await screen.press("escape")
        await screen.until("node-7")

    watch(database_url, script, view="drivers")


def test_a_stored_log_with_hostile_lines(database_url: str, rows: Rows) -> None:
    job = rows.job("SUCCEEDED", name="fit")
    log = (
        "".join(f"line {n}\n" for n in range(60))
        + "a\tb \x1b[31mred\x1b[0m \x1b]0;title\x07 [bold]x[/bold] \u202eevil\n"
    )
    rows.artifact(job, "log.txt", log.encode())

    async def script(screen: Screen) -> None:
        await screen.until("fit")
        await screen.press("l")
        await screen.until("a       b red \\x1b]0;title\\x07 [bold]x[/bold] \\u202eevil", f"job {job} is SUCCEEDED")
        assert "following" in screen.lines[0]
        await screen.press("g")
        await screen.until("line 0", "not following")
        await screen.press("f")
        await screen.until("is SUCCEEDED")

    watch(database_url, script, view="jobs")


def test_a_log_that_is_not_there_yet_comes(database_url: str, rows: Rows, connection: Connection) -> None:
    job = rows.job("QUEUED", name="fit")

    async def script(screen: Screen) -> None:
        await screen.until("fit")
        await screen.press("l")
        await screen.until("It has not started yet, so there is no log.")
        rows.attempt(job, 1, {"state": "SUCCEEDED", "remote_path": "x", "started_at": rows.now})
        rows.artifact(job, "log.txt", b"hello from the job\n")
        execute(
            connection,
            "UPDATE rythmiq.jobs SET state = 'SUCCEEDED', attempt = 1, finished_at = now() WHERE job_id = %s",
            str(job),
        )
        await screen.until("hello from the job", "is SUCCEEDED")
        assert screen.text.count("hello from the job") == 1

    watch(database_url, script, view="jobs")


def test_hostile_names_are_texts(database_url: str, rows: Rows, connection: Connection) -> None:
    for n, name in enumerate((HOSTILE, LONG, MARKUP, "\u05e9\u05dc\u05d5\u05dd", "漢字" * 200)):
        group = rows.group(name, user_id=name)
        rows.job(
            "FAILED",
            queue=name,
            name=name,
            user_id=name,
            group_id=str(group),
            group_index=n,
            labels={name: name},
            error_message=name,
            error_code=name[:100],
        )
        rows.job("QUEUED", queue=name, name=name)
        rows.driver(hostname=name, queues=[name])
        control.pause(connection, Scope("queue", name), reason=name)

    async def script(screen: Screen) -> None:
        for columns, lines in ((80, 24), (120, 40)):
            await screen.resize(columns, lines)
            for key in "1234":
                await screen.press(key)
                await screen.until("[red]not r", "…", "漢字")
                harmless(screen)
                await screen.press("enter")
                await screen.until("UTC")
                harmless(screen)
                await screen.press("escape")

    def harmless(screen: Screen) -> None:
        for line in screen.lines:
            assert line.replace("\u200e", "").isprintable(), ascii(line)
        assert "\u202e" not in screen.text

    watch(database_url, script)


def test_a_lost_connection_is_said_and_mended(database_url: str, rows: Rows, postgres: object) -> None:
    import psycopg2

    rows.job(queue="night")
    name = database_url.partition("?")[0].rpartition("/")[2]
    owner = psycopg2.connect(postgres.url)  # type: ignore[attr-defined]
    owner.autocommit = True

    async def script(screen: Screen) -> None:
        await screen.until("night")
        execute(owner, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        execute(owner, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        await screen.until("As of ", "UTC. Postgres cannot be reached", "night")
        await screen.press("3", "?")
        await screen.until("NAVIGATE")
        await screen.press("escape", "1")
        execute(owner, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await screen.until(lambda: "As of" not in screen.text, "night")

    try:
        watch(database_url, script)
    finally:
        execute(owner, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        owner.close()
