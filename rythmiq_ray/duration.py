"""Durations as people write them: a number of seconds, or text such as ``90s``, ``2h`` or ``1d``."""

from __future__ import annotations

import math
import re
from types import MappingProxyType
from typing import Final

PATTERN: Final = r"^[0-9]{1,9}(\.[0-9]{1,9})?[smhdw]?$"
"""The text form, as a regular expression for JSON Schema; without a unit it is seconds."""
UNITS_S: Final = MappingProxyType({"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800})

_TEXT: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw]?)")


def seconds_of(value: object) -> float:
    """``value`` in seconds. Raises ValueError, whose message is meant to follow the name of a field or key."""
    if isinstance(value, str) and (text := _TEXT.fullmatch(value)):
        number = float(text[1]) if "." in text[1] else int(text[1])
        return number * UNITS_S[text[2]]
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            if not math.isnan(float(value)):
                return value
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    raise ValueError("must be a number of seconds, or text such as 90s, 2h or 1d")
