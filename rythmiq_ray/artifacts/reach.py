"""Finds out which jobs' stored files an input reads.

Nodes can read the whole artifact store, but a job may only read files that its enqueuer may see.
"""

from __future__ import annotations

import posixpath
import re
from enum import Enum
from typing import Final
from urllib.parse import unquote, urlsplit
from uuid import UUID

from rythmiq_ray.config import ArtifactsConfig

_WILDCARD: Final = re.compile(r"[*?\[]")
INPUTS: Final = "inputs"
"""The folder of uploaded inputs. A file's name is its hash, which only somebody who has the file can know."""


class Reach(Enum):
    """What an input reads if it is not the files of one job."""

    NOTHING = "nothing"
    """No stored file of any job."""
    ALL = "all"
    """Possibly files of several jobs."""


def reach_of(uri: str, config: ArtifactsConfig) -> UUID | Reach:
    """The job whose stored files an input reads, or which other files they may be."""
    root, place = _root(config), _place(uri)
    head = place[: found.start()] if (found := _WILDCARD.search(place)) else place
    several = found is not None or place.endswith("/")
    if not head.startswith(root):
        return Reach.ALL if several and root.startswith(head) else Reach.NOTHING
    first, slash, _ = head[len(root) :].partition("/")
    if not slash:
        return Reach.ALL if several else Reach.NOTHING
    if first == INPUTS:
        return Reach.ALL if several else Reach.NOTHING
    try:
        return UUID(first)
    except ValueError:
        return Reach.NOTHING


def _root(config: ArtifactsConfig) -> str:
    """The root of the artifact store, with a slash at its end."""
    folder = f"s3://{config.bucket}" if config.type == "s3" else posixpath.normpath(str(config.path))
    return "/".join(filter(None, (folder, config.prefix))) + "/"


def _place(uri: str) -> str:
    """A URI in the form that :func:`_root` has."""
    scheme = uri.partition(":")[0].lower()
    if scheme == "s3":
        return "s3:" + uri.partition(":")[2]
    if scheme == "file":
        path = unquote(urlsplit(uri).path)
        return posixpath.normpath(path) + ("/" if path.endswith("/") else "")
    return uri
