"""Shared by the checks of jobs and of the configuration: pydantic types, and pydantic's errors as sentences.

A sentence follows the name of a field or key. It repeats no value, because that may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import GetCoreSchemaHandler, Strict
from pydantic_core import CoreSchema, core_schema

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

Text = Annotated[str, Strict()]

_EXPECTED: Final = {
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "an object",
    "mapping_type": "an object",
    "model_type": "an object",
    "dataclass_type": "a section of keys",
}
_UNKNOWN: Final = ("unexpected_keyword_argument", "extra_forbidden")
_KINDS: Final[tuple[tuple[Any, str], ...]] = (
    (type(None), "null"),
    (bool, "true or false"),
    (int, "a number"),
    (float, "a decimal number"),
    (str, "a string"),
    ((list, tuple), "a list"),
    (Mapping, "an object"),
)
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SHOWN: Final = 80


class FaultList(ValueError):
    """Faults of parts of a value, as (part, fault); a part is what follows the value's name, such as ``[2].name``."""

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{part} {fault}".lstrip() for part, fault in faults))
        self.faults = faults


@dataclass(frozen=True)
class Between:
    """The range of a number, both ends included."""

    low: float
    high: float

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        number: Any = schema
        while "schema" in number:
            number = number["schema"]
        number |= {"ge": self.low, "le": self.high}
        noun = "a whole number" if number["type"] == "int" else "a number"
        said = f"must be {noun} from {self.low:,.12g} to {self.high:,.12g}"
        return core_schema.custom_error_schema(schema, custom_error_type="between", custom_error_message=said)


def place(error: ErrorDetails) -> str:
    """The field of an error, such as ``inputs[0].uri``. A part that is not a plain name is quoted."""
    path = list(error["loc"])
    named = len(path) - 1
    if error["type"] not in _UNKNOWN:
        named += 1
    if path and path[-1] == "[key]":  # pydantic's mark for an error in a name itself
        path.pop()
        named = len(path) - 1
    out = ""
    for at, part in enumerate(path):
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            out += f".{part if at < named and _NAME.fullmatch(part) else quote(part)}"
    return out.removeprefix(".")


def sentence(error: ErrorDetails, known: tuple[str, ...] = (), shown: str | None = None) -> str:
    """The fault as a sentence. ``known``: names that an unknown one may be a misspelling of; ``shown``: the value."""
    said = _sentence(error, known)
    if shown is None and error["type"] in _EXPECTED:
        shown = kind_of(error["input"])
    return f"{said}, not {shown}" if shown is not None and said.startswith("must be ") else said


def _sentence(error: ErrorDetails, known: tuple[str, ...]) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]}"
    if kind in _UNKNOWN:
        whole = "an input" if len(error["loc"]) > 1 else "a job"
        return f"is not a field of {whole}{suggestion(str(error['loc'][-1]), known)}"
    match kind:
        case "value_error":
            return str(context["error"])
        case "literal_error":
            words = str(context["expected"]).replace("'", "").replace(" or ", ", ")
            return f"must be {'one of ' if ',' in words else ''}{words}"
        case "too_long":
            return f"has {context['actual_length']:,} entries; the most is {context['max_length']:,}"
        case "string_unicode":
            return "holds a lone surrogate, which is not a character"
        case "invalid_key":
            return "must have a name that is a string"
    return "is missing" if kind == "missing" else error["msg"]


def kind_of(value: object) -> str:
    """The JSON name of a value's type."""
    for kinds, name in _KINDS:
        if isinstance(value, kinds):
            return name
    return type(value).__name__


def quote(text: object) -> str:
    """A name in quotes, on one line and of limited length."""
    shown = str(text)
    return repr(shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + "...")


@lru_cache(4096)
def nearest(word: str, known: tuple[str, ...]) -> str | None:
    """The known word that ``word`` is probably a misspelling of; None if no word is close."""
    close = get_close_matches(word[:_SHOWN], known, n=1)
    return close[0] if close else None


def suggestion(word: str, known: tuple[str, ...]) -> str:
    close = nearest(word, known)
    return f"; did you mean {close}?" if close else f"; known are {', '.join(known)}"
