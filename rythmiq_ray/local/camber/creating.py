"""Reads the body of a create as the service's Go code does: unknown fields are ignored, wrong types are errors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from rythmiq_ray.local.camber.answers import Refusal, invalid, wrong_type
from rythmiq_ray.local.camber.stash import InvalidPath, checked_path

ENGINES: Final = frozenset(
    ("BASE", "MPI", "MESA", "ATHENA", "NEXTFLOW", "GROMACS", "LAMMPS", "OPENFOAM", "CHANGA", "ESO", "LLM")
)
CPU_SIZES: Final = frozenset(("XMICRO", "MICRO", "XXSMALL", "XSMALL", "SMALL", "MEDIUM", "LARGE"))
GPU_SIZES: Final = frozenset(("XSMALL", "MEDIUM", "LARGE"))


@dataclass(frozen=True, kw_only=True, slots=True)
class JobRequest:
    """A valid request to create a job."""

    command: str
    mount_dir: str
    engine_type: str = "MPI"
    node_size: str = "XSMALL"
    num_nodes: int = 1
    with_gpu: bool = False
    tags: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        # Written out, because dataclasses.asdict makes deep copies, which is slow.
        return {
            "command": self.command,
            "mount_dir": self.mount_dir,
            "engine_type": self.engine_type,
            "node_size": self.node_size,
            "num_nodes": self.num_nodes,
            "with_gpu": self.with_gpu,
            "tags": self.tags,
        }


_TYPES: Final = {
    "command": "string",
    "mount_dir": "string",
    "engine_type": "string",
    "node_size": "string",
    "num_nodes": "int",
    "with_gpu": "bool",
    "tags": "[]string",
}


def read_request(body: bytes) -> JobRequest:
    """The request in a body. Raises Refusal for one that the service would not accept."""
    sent = read_object(body, "CreateJobRequest")
    values: dict[str, Any] = {}
    # In the order in which they were sent: Go's decoder reports the first wrong one.
    for name, value in sent.items():
        expected = _TYPES.get(name)
        if expected is None or value is None:
            continue
        got = _go_type(value)
        if expected == "[]string":
            if got != "array":
                raise wrong_type(expected, got, name)
            strange = [_go_type(item) for item in value if not isinstance(item, str)]
            if strange:
                raise wrong_type("string", strange[0], name)
            value = tuple(value)
        elif got != {"int": "number"}.get(expected, expected):
            raise wrong_type(expected, got, name)
        values[name] = value
    request = JobRequest(**{"command": "", "mount_dir": "", **values})
    problems = _problems(request)
    if problems:
        raise invalid("CreateJobRequest", *problems)
    return request


def read_object(body: bytes, struct: str) -> dict[str, Any]:
    """A JSON object. Raises Refusal."""
    try:
        sent = json.loads(body)
    except ValueError as error:
        at = error.pos if isinstance(error, json.JSONDecodeError) else 0
        raise Refusal(400, {"message": f"Syntax error: offset={at}, error=invalid JSON"}) from None
    if not isinstance(sent, dict):
        raise wrong_type(struct, _go_type(sent), "")
    return sent


def _go_type(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "number"
    if isinstance(value, float):
        return f"number {value}"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _problems(request: JobRequest) -> list[tuple[str, str]]:
    problems: list[tuple[str, str]] = []
    if not request.command:
        problems.append(("Command", "Command is a required field"))
    if not request.mount_dir:
        problems.append(("MountDir", "MountDir is a required field"))
    else:
        try:
            checked_path(request.mount_dir)
        except InvalidPath as error:
            problems.append(("MountDir", f"MountDir {error}"))
    if request.engine_type not in ENGINES:
        problems.append(("EngineType", "EngineType must be one of [" + " ".join(sorted(ENGINES)) + "]"))
    sizes = GPU_SIZES if request.with_gpu else CPU_SIZES
    if request.node_size not in sizes:
        problems.append(("NodeSize", "NodeSize must be one of [" + " ".join(sorted(sizes)) + "]"))
    if request.num_nodes < 1:
        problems.append(("NumNodes", "NumNodes must be 1 or greater"))
    return problems
