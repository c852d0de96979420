"""A pgqueuer worker: asynchronous entrypoints on one event loop, dequeued in batches over two connections."""

from __future__ import annotations

import asyncio
import os
import time
from datetime import timedelta
from uuid import uuid4

import asyncpg
import uvloop
from pgqueuer import AsyncpgDriver, Job, PgQueuer, Queries
from pgqueuer.types import QueueExecutionMode

from benchmarks.peers import arguments
from benchmarks.peers.work import Site, new_session, run_async

BATCH = 100
CONNECTIONS = 2


async def main() -> None:
    options = arguments.parse(__doc__)
    site = Site.from_environ()
    connections = [await asyncpg.connect(os.environ["DATABASE_URL"]) for _ in range(CONNECTIONS)]
    drivers = [AsyncpgDriver(connection) for connection in connections]
    queries = Queries(drivers[0])
    if not await queries.has_table("pgqueuer"):
        await queries.install()

    async def put(count: int) -> float:
        payloads = [f"pgqueuer/{uuid4()}".encode() for _ in range(count)]
        begun = time.perf_counter()
        await queries.enqueue(["work"] * count, payloads, [0] * count)
        return time.perf_counter() - begun

    async with new_session() as session:

        async def drain(driver: AsyncpgDriver) -> None:
            # A drained PgQueuer has shut down, so each round needs a new one.
            pgq = PgQueuer(driver)

            @pgq.entrypoint("work")
            async def work(job: Job) -> None:
                if not options.empty:
                    assert job.payload is not None
                    await run_async(site, session, job.payload.decode())

            await pgq.qm.run(mode=QueueExecutionMode.drain, batch_size=BATCH, dequeue_timeout=timedelta(seconds=1))

        async def run() -> float:
            begun = time.perf_counter()
            await asyncio.gather(*map(drain, drivers))
            return time.perf_counter() - begun

        await put(options.warm)
        await run()
        arguments.report(enqueue=await put(options.jobs), work=await run())
    for connection in connections:
        await connection.close()


if __name__ == "__main__":
    uvloop.run(main())
