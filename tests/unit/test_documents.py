"""The documents say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rythmiq_ray.errors import RULES, Verdict

ROOT = Path(__file__).resolve().parents[2]


def error_table() -> str:
    """The table of errors that a job can end with, as README has it."""
    lines = ["| error_code | the job | what happened | what to do |", "|---|---|---|---|"]
    said = {Verdict.RETRY_ATTEMPT: "is retried", Verdict.GIVE_UP: "ends", Verdict.REFUSE: "ends"}
    lines.extend(
        f"| `{code}` | {said[rule.verdict]} | {rule.meaning} | {rule.remedy} |"
        for code, rule in RULES.items()
        if rule.verdict in said and code not in ("configuration", "not_found", "ray_unavailable")
    )
    return "\n".join(lines)


def test_readme_has_the_table_of_errors() -> None:
    assert error_table() in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "WORKER_DEPLOYMENT.md"]
)
def test_what_a_document_names_is_there(name: str) -> None:
    document = ROOT / name
    text = document.read_text(encoding="utf-8")
    linked = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    named = re.findall(r"`((?:[\w.-]+/)*[\w.-]+(?:\.py|\.sql|\.md|/))`", text)
    missing = [target for target in linked if not (document.parent / target).exists()]
    missing += [path for path in named if not any((root / path).exists() for root in (ROOT, ROOT / "rythmiq_ray"))]
    assert not missing
