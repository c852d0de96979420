"""Who may import whom: each part of the outside has one place in the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "rythmiq_ray"


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize(
    ("imported", "by"),
    [
        ("ray", {"cluster.py"}),
        ("rythmiq_ray.backends.camber", {"backends/camber", "assembly.py"}),
        ("rythmiq_ray.artifacts.open_store", {"assembly.py", "access.py", "diagnosis.py"}),
        ("starlette", {"web"}),
        ("uvicorn", {"web/server.py"}),
        ("jinja2", {"web/render.py"}),
        ("rythmiq_ray.web", {"web", "cli/web.py", "cli/report.py"}),
        ("textual", {"top"}),
        ("rythmiq_ray.top", {"top", "cli/top.py"}),
        ("rythmiq_ray.console", {"console", "web", "top", "cli"}),
        ("rythmiq_ray.assembly", {"driver/lifecycle.py", "access.py", "cli/doctor.py", "diagnosis.py", "testing.py"}),
    ],
)
def test_a_part_of_the_outside_is_imported_in_one_place(imported: str, by: set[str]) -> None:
    found = {
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*.py")
        if any(f"{name}.".startswith(f"{imported}.") for name in imports(path))
    }
    places = {Path(place) for place in by}
    assert {next((place for place in places if path.is_relative_to(place)), path) for path in found} == places
