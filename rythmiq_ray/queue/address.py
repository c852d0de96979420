"""The check of ``DATABASE_URL``. libpq's own messages quote what they could not read, which may be the password."""

from __future__ import annotations

import re
from typing import Final

import psycopg2
import psycopg2.extensions

from rythmiq_ray.errors import ConfigurationError
from rythmiq_ray.secret import Secret

_SCHEME: Final = re.compile(r"postgres(ql)?://")
_BAD_PERCENT: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%00")
_HOST: Final = re.compile(r"\[[0-9A-Fa-f:.%A-Za-z0-9]+\]|[A-Za-z0-9._~%-]*")
_PORT: Final = re.compile(r"[0-9]{0,5}")
_FORM: Final = "postgresql://user:password@host:port/database"
_ENCODE: Final = "percent-encode what is special in user and password (@ as %40, / as %2F, : as %3A, % as %25)"


def check_address(dsn: Secret) -> None:
    """Raises ConfigurationError for what cannot be read; the message names the fault and shows no part of it."""
    text = dsn.reveal()
    fault = _fault_of_url(text) if _SCHEME.match(text) else None
    if fault is None:
        try:
            psycopg2.extensions.parse_dsn(text)
        except psycopg2.Error:
            url = _SCHEME.match(text) is not None
            fault = (
                f"it is not of the form {_FORM}; {_ENCODE}"
                if url
                else "its keywords cannot be read: quote values as in key='a b'"
            )
    if fault is not None:
        raise ConfigurationError(
            f"database.url: {fault} (correct DATABASE_URL; it is not shown, as it may hold a password)"
        )


def _fault_of_url(text: str) -> str | None:
    rest = _SCHEME.sub("", text, count=1)
    if any(character.isspace() or not character.isprintable() for character in rest):
        return f"it holds white space or a control character; {_ENCODE}"
    if _BAD_PERCENT.search(rest):
        return f"a % is not followed by two hexadecimal digits; {_ENCODE}"
    # libpq takes all up to the first @ for user and password, where no / comes before it.
    user, at, after = rest.partition("@")
    if at and "/" in user:
        return f"a / comes before the @; {_ENCODE}"
    if "@" in after:
        return f"it has more than one @; {_ENCODE}"
    authority, _, tail = (after if at else rest).partition("/")
    authority, question, options = authority.partition("?")
    if not question:
        options = tail.partition("?")[2]
    for host in authority.split(","):
        name, _, port = host.rpartition(":") if re.search(r":[^\]]*$", host) else (host, "", "")
        if not _HOST.fullmatch(name) or not _PORT.fullmatch(port):
            return f"its host or port cannot be read; {_ENCODE}"
    if any("=" not in option for option in options.split("&") if option):
        return f"an option after the ? has no =; {_ENCODE}"
    return None
