"""Finds out which jobs' stored files an input reads.

Nodes can read the whole artifact store, but a job may only read files that its enqueuer may see.
"""

from __future__ import annotations

import posixpath
import re
from enum import Enum
from pathlib import Path
from typing import Final
from uuid import UUID

from rythmiq_ray.config import ArtifactsConfig
from rythmiq_ray.inputs import path_below

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
    """The job whose stored files an input reads, or which other files it may read.

    The URI is read as the store opens it, so that other spellings of a path are recognized.
    """
    if config.type == "s3":
        return _in_bucket(uri, config)
    root = Path(str(config.path))
    path = path_below(root, uri)
    if path is None:
        return Reach.NOTHING
    return _below_prefix(str(path.relative_to(root.resolve())), config.prefix, several=False)


def _in_bucket(uri: str, config: ArtifactsConfig) -> UUID | Reach:
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme.lower() != "s3" or bucket != config.bucket:
        return Reach.NOTHING
    found = _WILDCARD.search(key)
    head = key[: found.start()] if found else key
    # Some S3 servers treat a key as a path, in which double slashes and dots lead to the same file.
    plain = posixpath.normpath("/" + head.lstrip("/")).lstrip("/")
    if plain and head.endswith("/"):
        plain += "/"
    return _below_prefix(plain, config.prefix, several=found is not None or key.endswith("/") or not key)


def _below_prefix(place: str, prefix: str, *, several: bool) -> UUID | Reach:
    """``place`` is a path below the store, up to its first wildcard; ``several``: all paths that begin so are meant."""
    root = f"{prefix}/" if prefix else ""
    if not place.startswith(root):
        return Reach.ALL if several and root.startswith(place) else Reach.NOTHING
    first, slash, _ = place[len(root) :].partition("/")
    if not slash or first == INPUTS:
        return Reach.ALL if several else Reach.NOTHING
    try:
        return UUID(first)
    except ValueError:
        return Reach.NOTHING
