"""Routes and names that the service may have instead of the contract's (camber-api, section 5), for the probe to try.

The most likely come first: those of the vendor's SDK, then those that similar services use. Names that differ only in
case are left out, because the service's decoder takes them as equal.
"""

from __future__ import annotations

from typing import Final

ROUTES: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "me": (("GET", "/users/me"), ("GET", "/user/me"), ("GET", "/user"), ("GET", "/whoami"), ("GET", "/auth/me")),
    "list": (("GET", "/job"), ("GET", "/jobs/list"), ("GET", "/job/list"), ("GET", "/user/jobs"), ("GET", "/runs")),
    "get": (("GET", "/job/{job_id}"), ("GET", "/jobs/get/{job_id}"), ("GET", "/runs/{job_id}")),
    "create": (
        ("POST", "/job"),
        ("POST", "/jobs/create"),
        ("POST", "/job/create"),
        ("PUT", "/jobs"),
        ("POST", "/jobs/submit"),
        ("POST", "/runs"),
    ),
    "logs": (
        ("GET", "/jobs/{job_id}/log"),
        ("GET", "/job/{job_id}/logs"),
        ("GET", "/job/{job_id}/log"),
        ("GET", "/jobs/logs/{job_id}"),
        ("GET", "/logs/{job_id}"),
        ("GET", "/runs/{job_id}/logs"),
    ),
    "cancel": (
        ("POST", "/jobs/{job_id}/cancel"),
        ("PUT", "/jobs/{job_id}/cancel"),
        ("POST", "/jobs/{job_id}/clear"),
        ("POST", "/jobs/{job_id}/stop"),
        ("POST", "/jobs/{job_id}/terminate"),
        ("DELETE", "/job/{job_id}"),
        ("POST", "/job/{job_id}/cancel"),
        ("POST", "/runs/{job_id}/cancel"),
    ),
    "stash_list": (("POST", "/stash/list"), ("POST", "/stash/ls"), ("POST", "/stash/files"), ("POST", "/files/list")),
    "stash_read": (
        ("GET", "/stash/download"),
        ("GET", "/stash/files"),
        ("GET", "/stash"),
        ("GET", "/files"),
        ("GET", "/files/download"),
    ),
    "stash_write": (
        ("POST", "/stash/file"),
        ("PUT", "/stash/upload"),
        ("POST", "/stash/upload"),
        ("PUT", "/stash/files"),
        ("PUT", "/stash"),
        ("PUT", "/files"),
        ("POST", "/files/upload"),
    ),
    "stash_remove": (
        ("DELETE", "/stash/files"),
        ("DELETE", "/stash"),
        ("DELETE", "/files"),
        ("POST", "/stash/remove"),
        ("POST", "/stash/rm"),
    ),
}
"""Alternatives to the configured methods and paths. None of them creates a job from what the probe sends."""

CREATE: Final[dict[str, tuple[str, ...]]] = {
    "command": ("command", "cmd", "commands", "run_command", "shell_command", "script", "entrypoint"),
    "engine_type": ("engine_type", "engine", "engineType", "job_type"),
    "node_size": ("node_size", "size", "nodeSize", "instance_size", "machine_size"),
    "num_nodes": ("num_nodes", "nodes", "numNodes", "node_count"),
    "with_gpu": ("with_gpu", "gpu", "withGpu", "use_gpu"),
    "mount_dir": ("mount_dir", "path", "mountDir", "stash_path", "working_dir", "workdir", "mount_path"),
    "tags": ("tags", "labels", "job_tags"),
}
"""Fields of a create. The command comes first: each request has one of its names with a value of a wrong type."""

JOB: Final[dict[str, tuple[str, ...]]] = {
    "job_id": ("job_id", "id", "jobId", "run_id"),
    "job_status": ("job_status", "status", "jobStatus", "state"),
    "mount_dir": ("mount_dir", "path", "mountDir", "stash_path", "working_dir", "workdir", "mount_path"),
    "created_at": ("created_at", "createdAt", "created", "submitted_at"),
    "started_at": ("started_at", "startedAt", "started", "start_time"),
    "finished_at": ("finished_at", "finishedAt", "finished", "ended_at", "end_time", "completed_at"),
}
"""Fields of a job object."""

PAGING: Final[tuple[tuple[str, str], ...]] = (
    ("page", "size"),
    ("page", "page_size"),
    ("page", "per_page"),
    ("page", "limit"),
    ("page", "pageSize"),
    ("page_number", "page_size"),
    ("p", "size"),
)
"""Query parameters of a list, for the page's number and its length."""

STASH_PATH: Final = ("path", "uri", "stash_path", "file", "key", "file_path", "name")
"""Parameters by which a stash call names its file."""
STASH_ENTRY: Final[dict[str, tuple[str, ...]]] = {
    "name": ("name", "filename", "file_name", "key"),
    "size": ("size", "bytes", "file_size", "size_bytes", "length"),
    "type": ("type", "kind", "file_type", "entry_type"),
}
"""Fields of an entry of a stash listing, beside its path."""
