"""What keys change: each is asked for first, is what the command line does, and is refused where the login may not."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from top_screen import Screen, watch
from web_rows import Connection, Rows, execute


def state_of(connection: Connection, job_id: UUID) -> str:
    ((state,),) = execute(connection, "SELECT state FROM rythmiq.jobs WHERE job_id = %s", str(job_id))
    return str(state)


def test_a_job_is_cancelled_and_retried_once_that_was_answered(
    database_url: str, rows: Rows, connection: Connection
) -> None:
    job = rows.job("QUEUED", name="fit")

    async def script(screen: Screen) -> None:
        await screen.until("fit")
        await screen.press("c")
        await screen.until(f"Cancel job {str(job)[:13]} (fit)?", "y yes")
        # No other key is taken while it asks.
        await screen.press("2", "x", "enter", "n")
        await screen.until("Cancel: nothing was done.", "3 Jobs", "fit")
        assert state_of(connection, job) == "QUEUED"
        await screen.press("c")
        await screen.until("y yes")
        await screen.press("y")
        await screen.until("Cancelled 1 job.", "CANCELLED")
        assert state_of(connection, job) == "CANCELLED"
        await screen.press("c")
        await screen.until("is left to cancel.")
        await screen.press("r")
        await screen.until("Retry job", "gets one more attempt")
        await screen.press("y")
        await screen.until("Queued 1 job again.")
        assert state_of(connection, job) in ("QUEUED", "RETRYING")

    watch(database_url, script, view="jobs")


def test_a_group_and_a_queue_are_cancelled_whole(database_url: str, rows: Rows, connection: Connection) -> None:
    group = rows.group("lr")
    members = [rows.job("QUEUED", group_id=str(group), group_index=n, queue="day") for n in range(3)]
    others = [rows.job("RUNNING", queue="night"), rows.job("QUEUED", queue="night")]

    async def script(screen: Screen) -> None:
        await screen.press("2")
        await screen.until("lr")
        await screen.press("c")
        await screen.until("Cancel 3 jobs of group lr?")
        await screen.press("y")
        await screen.until("Cancelled 3 jobs.")
        assert {state_of(connection, job) for job in members} == {"CANCELLED"}
        await screen.press("1")
        await screen.until("night")
        await screen.press("G", "c")
        await screen.until("Cancel 2 jobs of queue night?")
        await screen.press("y")
        await screen.until("Cancelled 2 jobs, 1 of them will be stopped by their drivers.")
        assert [state_of(connection, job) for job in others] == ["RUNNING", "CANCELLED"]

    watch(database_url, script)


def test_a_queue_a_group_and_the_account_are_paused_and_go_on(
    database_url: str, rows: Rows, connection: Connection
) -> None:
    group = rows.group("lr")
    rows.job("QUEUED", queue="night", group_id=str(group), group_index=0)

    def paused() -> list[str]:
        return [scope for (scope,) in execute(connection, "SELECT scope FROM rythmiq.limits WHERE paused ORDER BY 1")]

    async def script(screen: Screen) -> None:
        await screen.until("night")
        for view, key, called, scope in (
            ("1", "p", "queue night", "queue"),
            ("2", "p", "group lr", "group"),
            ("3", "P", "the account", "account"),
        ):
            await screen.press(view)
            await screen.until("night" if view == "1" else "lr" if view == "2" else "QUEUED")
            await screen.press(key)
            await screen.until(f"Pause {called}?")
            await screen.press("y")
            await screen.until(f"{called[0].upper()}{called[1:]} is paused.")
            assert paused() == [scope]
            await ready_to_resume(screen, key, called)
            await screen.press("y")
            await screen.until(f"{called[0].upper()}{called[1:]} goes on.")
            assert paused() == []

    async def ready_to_resume(screen: Screen, key: str, called: str) -> None:
        """The screen sees the pause at its next look."""
        while True:
            await screen.press(key)
            await screen.until("y yes")
            if f"Resume {called}?" in screen.text:
                return
            await screen.press("n")
            await screen.until("nothing was done")

    watch(database_url, script)


def test_a_driver_is_drained(database_url: str, rows: Rows, connection: Connection) -> None:
    rows.driver(hostname="node-7")

    async def script(screen: Screen) -> None:
        await screen.until("node-7")
        await screen.press("d")
        await screen.until("Drain the driver on node-7, process 4711?")
        await screen.press("y")
        await screen.until("is being drained.", "draining")

    watch(database_url, script, view="drivers")


def test_a_reader_sees_everything_and_is_told_what_it_may_not(
    login: Callable[[str], str], rows: Rows, connection: Connection
) -> None:
    job = rows.job("QUEUED", name="fit", queue="night")
    group = rows.sweep("lr", 2, 2)
    rows.driver(hostname="node-7")
    url = login("reader")
    name = url.partition("://")[2].partition("@")[0]

    async def script(screen: Screen) -> None:
        for view, seen, refused in (
            ("1", "night", {"c": "cancel", "p": "pause", "P": "pause"}),
            ("2", "lr", {"c": "cancel", "r": "retry", "p": "pause"}),
            ("3", "fit", {"c": "cancel", "r": "retry", "P": "pause"}),
            ("4", "node-7", {"d": "drain"}),
        ):
            await screen.press(view)
            await screen.until(seen)
            for key, verb in refused.items():
                await screen.press(key)
                await screen.until(f"The login {name} may not {verb}: that needs the role")
            await screen.press("enter")
            await screen.until("UTC", lambda: "may not do this" not in screen.text)
            await screen.press("escape")
        assert state_of(connection, job) == "QUEUED"
        assert execute(connection, "SELECT count(*) FROM rythmiq.limits") == [(0,)]
        assert group

    watch(url, script, size=(120, 40))


def test_a_right_that_was_taken_away_meanwhile_is_a_refusal(
    login: Callable[[str], str], rows: Rows, connection: Connection
) -> None:
    job = rows.job("QUEUED", name="fit")
    url = login("operator")

    async def script(screen: Screen) -> None:
        await screen.until("fit")
        await screen.press("c")
        await screen.until("y yes")
        execute(connection, "REVOKE UPDATE ON rythmiq.jobs FROM rythmiq_operator")
        execute(connection, "REVOKE UPDATE (cancel_requested_at) ON rythmiq.jobs FROM rythmiq_operator")
        await screen.press("y")
        await screen.until("Cancel was not done: The database role may not do this")
        assert state_of(connection, job) == "QUEUED"

    watch(url, script, view="jobs", size=(120, 24))
