"""``rythmiq schema``: the JSON Schema of a line of ``enqueue --file``, for editors and other programs."""

from __future__ import annotations

from rythmiq_ray.cli.output import print_json


def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of a line of `rythmiq enqueue --file`.

    \b
    Examples:
      rythmiq schema > job.schema.json
    """
    from rythmiq_ray.config_loader import load_catalog
    from rythmiq_ray.spec import json_schema

    print_json(json_schema(load_catalog()))
