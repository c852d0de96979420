"""WORKER_DEPLOYMENT.md says what the code does: its variables, messages, files and commands are real."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from functools import cache
from pathlib import Path

from samples import variable_defaults

from rythmiq_ray.config_loader import VARIABLES

ROOT = Path(__file__).resolve().parents[2]


@cache
def document() -> str:
    return (ROOT / "WORKER_DEPLOYMENT.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    """What stands between ``<!-- name: begin … -->`` and ``<!-- name: end -->`` of the document."""
    match = re.search(rf"<!-- {name}: begin.*?-->\n(.*?)<!-- {name}: end -->", document(), re.DOTALL)
    assert match, name
    return match[1]


def table(name: str) -> list[list[str]]:
    lines = [line for line in section(name).splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_document_has_every_variable_with_its_key_and_default() -> None:
    found = {row[0].strip("`"): (row[1].strip("`"), row[2].strip("`")) for row in table("variables")}
    defaults = variable_defaults()
    assert found == {name: (key, defaults[name]) for name, key in VARIABLES.items()}
    assert all(row[3] for row in table("variables")), "each says what it is for"


@cache
def texts() -> list[str]:
    """Every constant text of the package, those between the fields of an f-string as well."""
    found = []
    for path in (ROOT / "rythmiq_ray").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
        found += [value for value in constants if isinstance(value, str)]
    return found


def test_every_message_of_the_troubleshooting_table_is_in_the_code() -> None:
    rows = table("messages")
    assert len(rows) >= 15
    for message in (row[0].replace("\\|", "|") for row in rows):
        assert re.fullmatch(r"(`[^`]+`|``.+``)", message), message
        for part in message.strip("` ").split("…"):
            words = part.strip()
            assert not words or any(words in text for text in texts()), f"{words!r} of {message}"


def test_files_that_the_document_names_exist() -> None:
    below, top = r"(?:deploy|conf|docs)/[\w./-]*\w", r"\.?[\w.]+\.(?:md|camber|worker|yaml)"
    named = set(re.findall(rf"(?<![$\w/.~-])({below}|{top})(?!\.?[\w/])", document()))
    assert {name for name in named if not (ROOT / name).exists()} == set()
    assert named >= {"deploy/sql/roles.sql", "docs/metrics.md", ".env.worker.camber", "CHANGELOG.md"}


def test_commands_of_ours_in_the_document_are_ones_that_exist() -> None:
    from typer.main import get_command

    from rythmiq_ray.cli.app import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    found = re.findall(r"(?:^|`)rythmiq ([a-z]+)([^`\n]*)", document(), re.MULTILINE)
    assert len(found) >= 5
    for name, rest in found:
        assert name in commands, name
        command = commands[name]
        for word in re.findall(r"^ ([a-z]+)\b", rest):
            command = getattr(command, "commands", {}).get(word, command)
        known = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in known, f"rythmiq {name} {option}"


def test_shell_blocks_of_the_document_are_valid() -> None:
    for block in re.findall(r"```sh\n(.*?)```", document(), re.DOTALL):
        subprocess.run(["bash", "-n", "-c", block], check=True, env={"PATH": os.defpath})
