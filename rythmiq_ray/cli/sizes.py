"""``rythmiq sizes``: Camber's node sizes, with prices."""

from __future__ import annotations

from rythmiq_ray.cli import output
from rythmiq_ray.cli.jobs import Json


def sizes(as_json: Json = False) -> None:
    """List node sizes with their prices, and the engines.

    They are data in conf/camber.yaml; a configuration layer can override prices. 1 credit is 1 USD; every cost is an
    estimate.

    \b
    Examples:
      rythmiq sizes
      rythmiq sizes --json | jq '.items[] | select(.gpus > 0)'
    """
    from rythmiq_ray.config_loader import load_catalog

    catalog = load_catalog()
    items = [
        {
            "node_size": name,
            "gpu": gpu,
            "cpus": size.cpus,
            "memory_gb": size.memory_gb,
            "gpus": size.gpus,
            "credits_per_hour": size.credits_per_hour,
        }
        for gpu, table in ((False, catalog.cpu_sizes), (True, catalog.gpu_sizes))
        for name, size in table.items()
    ]
    if as_json:
        output.print_items(items)
        return
    columns = {"NODE SIZE": "<", "GPU": "<", "CPUS": ">", "MEMORY": ">", "GPUS": ">", "CREDITS/H": ">"}
    output.rows(
        columns,
        [
            [
                str(item["node_size"]).lower(),
                "--gpu" if item["gpu"] else " ",
                item["cpus"],
                f"{item['memory_gb']} GB",
                item["gpus"] or " ",
                item["credits_per_hour"],
            ]
            for item in items
        ],
    )
    print(f"engines: {', '.join(engine.lower() for engine in catalog.engines)}")  # noqa: T201
