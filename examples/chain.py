"""Download, fit four times, merge: each step waits for the one before, and has what that stored as input."""

from __future__ import annotations

from rythmiq_ray import Client, Input, JobSpec, grid

with Client() as client:
    data = client.submit(JobSpec(command="seq 1 100 > data.txt", outputs=("data.txt",)), name="download")
    fits = client.sweep(
        JobSpec(
            command="awk -v part=$PART 'NR % 4 == part {s += $1} END {print s}' data.txt > sum.txt",
            inputs=(Input(uri=f"job:{data.id}/data.txt", name="data.txt"),),
            outputs=("sum.txt",),
        ),
        grid(PART=range(4)),
        name="fit",
    )
    merge = client.submit(
        JobSpec(
            command="awk '{s += $1} END {print s}' sums/*/sum.txt",
            inputs=(Input(uri=f"group:{fits.id}/sum.txt", name="sums/"),),
        ),
        name="merge",
    )
    merge.wait(timeout=600)
    print("sum:", merge.log().split()[-1])
