"""As in a notebook: a function of one's own on many nodes, awaited together; no script, no upload by hand."""

from __future__ import annotations

import asyncio
import random

from rythmiq_ray import Client, JobSpec


def estimate_pi(seed: int, points: int = 20_000) -> float:
    dice = random.Random(seed)
    inside = sum(dice.random() ** 2 + dice.random() ** 2 < 1 for _ in range(points))
    return 4 * inside / points


async def main() -> None:
    with Client() as client:
        small = JobSpec(command="-", node_size="xmicro")
        handles = [client.submit_function(estimate_pi, seed, _spec=small) for seed in range(4)]
        values = await asyncio.gather(*(handle for handle in handles))
    print(f"pi is about {sum(values) / len(values):.2f}")


asyncio.run(main())
