"""A procrastinate worker: asynchronous tasks on one event loop, enqueued in one batch."""

from __future__ import annotations

import os
import time
from uuid import uuid4

import aiohttp
import procrastinate
import uvloop

from benchmarks.peers import arguments
from benchmarks.peers.work import Site, new_session, run_async


async def main() -> None:
    options = arguments.parse(__doc__)
    site = Site.from_environ()
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["DATABASE_URL"]))
    sessions: list[aiohttp.ClientSession] = []

    @app.task(queue="work", retry=3)
    async def work(path: str) -> int:
        return await run_async(site, sessions[0], path)

    @app.task(queue="empty")
    async def empty(path: str) -> None:
        pass

    task = empty if options.empty else work

    async def put(count: int) -> float:
        paths = [f"procrastinate/{uuid4()}" for _ in range(count)]
        begun = time.perf_counter()
        await task.batch_defer_async(*({"path": path} for path in paths))
        return time.perf_counter() - begun

    async def run() -> float:
        begun = time.perf_counter()
        await app.run_worker_async(
            queues=[task.queue], wait=False, concurrency=options.concurrency, install_signal_handlers=False
        )
        return time.perf_counter() - begun

    async with app.open_async(), new_session() as session:
        sessions.append(session)
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        await put(options.warm)
        await run()
        arguments.report(enqueue=await put(options.jobs), work=await run())


if __name__ == "__main__":
    uvloop.run(main())
