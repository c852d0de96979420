"""Faults of the emulated service, as data and drawn from a seed, so that a run can be repeated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from random import Random
from time import monotonic
from typing import Any, Final

OPERATIONS: Final = (
    "me",
    "create",
    "get",
    "list",
    "logs",
    "cancel",
    "stash_list",
    "stash_read",
    "stash_write",
    "stash_remove",
)
"""The service's operations."""


class ListShape(StrEnum):
    """The form of the answer to a list of jobs."""

    ENVELOPED = "enveloped"
    """``{"code":0,"message":"ok","data":{"jobs":[…],"total":N}}``, as in the contract."""
    BARE = "bare"
    """``{"jobs":[…]}``: no envelope and no total."""
    OTHER_KEY = "other_key"
    """Enveloped, but the array is called ``items``."""


class Cancelling(StrEnum):
    """How ``DELETE /jobs/{job_id}`` is answered."""

    SUPPORTED = "supported"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"


class Outage(StrEnum):
    """How the service is down."""

    NONE = "none"
    UNAVAILABLE = "503"
    REFUSED = "refused"
    """Nothing listens on the port, and requests on open connections are cut off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """Which faults there are. Probabilities go from 0 (never) to 1 (always); times are in seconds."""

    seed: int = 0
    lost_answer: float = 0.0
    """Probability that a job is created and the connection is then closed without an answer."""
    ghost_create: float = 0.0
    """Probability that a job is created and the answer is 500 with code 2."""
    too_many: float = 0.0
    """Probability of 429 with ``Retry-After``, before anything is done."""
    retry_after_s: float = 1.0
    server_error: float = 0.0
    """Probability of 500, 502, 503 or 504, before anything is done."""
    cut_download: float = 0.0
    """Probability that the connection is closed in the middle of a file or a log."""
    self_cancel: float = 0.0
    """Probability that the service cancels a job that is PENDING, as it does with GPU jobs that waited too long."""
    self_cancel_after_s: float = 0.0
    list_shape: ListShape = ListShape.ENVELOPED
    list_lag_s: float = 0.0
    """How long a created job is missing from the list."""
    outage: Outage = Outage.NONE
    outage_s: float | None = None
    """How long the outage lasts from when it was set; None = until the faults are set again."""
    refuse_key: bool = False
    """Whether the key is refused, as if it had been revoked."""
    cancel: Cancelling = Cancelling.SUPPORTED
    latency_s: float = 0.0
    """Added to every call."""
    create_latency_s: float = 0.0
    """Added to every create, before the job is created."""
    operations: tuple[str, ...] = ()
    """The operations that ``too_many`` and ``server_error`` affect; empty = all."""
    at_most: int | None = None
    """How often each fault with a probability may occur, counted for each fault; None = no limit."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is a probability, from 0 to 1" for name in PROBABILITIES if not 0 <= getattr(self, name) <= 1
        ]
        problems += [f"{name} is not below 0" for name in _SECONDS if (getattr(self, name) or 0) < 0]
        # A misspelt operation would never match, so a test that relies on it would test nothing.
        problems += [f"unknown operation {name!r}" for name in self.operations if name not in OPERATIONS]
        if problems:
            raise ValueError("; ".join(problems))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Faults:
        """Reads what :meth:`as_dict` wrote; missing fields get their defaults. Raises ValueError with all problems."""
        known = {field.name: field.type for field in fields(cls)}
        problems = [f"unknown field {name!r}" for name in data if name not in known]
        values: dict[str, Any] = {}
        for name in known.keys() & data.keys():
            try:
                values[name] = _read(str(known[name]), data[name])
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ValueError("; ".join(sorted(problems)))
        return cls(**values)


PROBABILITIES: Final = ("lost_answer", "ghost_create", "too_many", "server_error", "cut_download", "self_cancel")
_SECONDS: Final = ("retry_after_s", "self_cancel_after_s", "list_lag_s", "outage_s", "latency_s", "create_latency_s")
_WORDS: Final[Mapping[str, type[StrEnum]]] = {"ListShape": ListShape, "Outage": Outage, "Cancelling": Cancelling}


def _read(kind: str, value: Any) -> Any:
    """Converts a JSON value to the type of a field's annotation. Raises ValueError."""
    if value is None and kind.endswith("| None"):
        return None
    kind = kind.removesuffix(" | None")
    if kind in _WORDS:
        return _WORDS[kind](value)
    if kind == "tuple[str, ...]":
        if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError("expected a list of strings")
    if kind == "bool":
        if isinstance(value, bool):
            return value
        raise ValueError("expected true or false")
    if isinstance(value, bool) or not isinstance(value, int if kind == "int" else (int, float)):
        raise ValueError(f"expected {'an integer' if kind == 'int' else 'a number'}")
    return value


class Mischief:
    """Decides when faults occur. Each has its own random stream, so that turning one on does not change the others."""

    def __init__(self, faults: Faults) -> None:
        self.set(faults)

    def set(self, faults: Faults) -> None:
        """Replaces the faults; random streams, counts and the outage's clock start again."""
        self.faults = faults
        self._draws: dict[str, Random] = {}
        self._struck: Counter[str] = Counter()
        self._outage_ends = None if faults.outage_s is None else monotonic() + faults.outage_s

    def strikes(self, fault: str) -> bool:
        """Whether the fault with this name occurs now; draws from its stream."""
        probability: float = getattr(self.faults, fault)
        if probability <= 0.0:
            return False
        if self.faults.at_most is not None and self._struck[fault] >= self.faults.at_most:
            return False
        if self.draws(fault).random() >= probability:
            return False
        self._struck[fault] += 1
        return True

    def draws(self, fault: str) -> Random:
        """The random stream of a fault."""
        if fault not in self._draws:
            self._draws[fault] = Random(f"{self.faults.seed}/{fault}")  # noqa: S311 - to be repeatable is its purpose
        return self._draws[fault]

    def concerns(self, operation: str) -> bool:
        return not self.faults.operations or operation in self.faults.operations

    @property
    def outage(self) -> Outage:
        """The outage at this moment."""
        if self._outage_ends is not None and monotonic() >= self._outage_ends:
            return Outage.NONE
        return self.faults.outage
