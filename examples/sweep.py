"""A hyper-parameter sweep: submit it, see members end, and get a table. Prints the best member."""

from __future__ import annotations

from rythmiq_ray import Client, JobSpec, grid

FIT = """
import json, math, os
rate, seed = float(os.environ["LR"]), int(os.environ["SEED"])
json.dump({"loss": (math.log10(rate) + 2) ** 2 + seed / 10}, open("score.json", "w"))
"""

with Client() as client:
    sweep = client.sweep(
        JobSpec(command=f"python3 -c '{FIT}'", outputs=("score.json",), timeout="10m"),
        grid(LR=[0.1, 0.01, 0.001], SEED=range(2)),
        name="lr",
        max_parallel=4,
    )
    for member in sweep.as_completed(timeout=600):
        print(dict(member.params), member.result().state)
    rows = sorted(sweep.table("score.json"), key=lambda row: float(row["loss"]))
    print(f"best: LR={rows[0]['LR']} SEED={rows[0]['SEED']} loss={rows[0]['loss']:.2f}")
