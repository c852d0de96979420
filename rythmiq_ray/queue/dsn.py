"""Finds faults in ``DATABASE_URL``. No message shows a part of it: in a malformed URL a password may be anywhere."""

from __future__ import annotations

import difflib
import re
from typing import Final

import psycopg2
from psycopg2.extensions import parse_dsn

from rythmiq_ray.secret import Secret

_SCHEMES: Final = ("postgresql://", "postgres://")
_FORM: Final = "postgresql://user:password@host/database"
_ENCODE: Final = (
    "percent-encode what is special in user and password: % is %25, / is %2F, @ is %40, : is %3A, space is %20"
)
_UNKNOWN_OPTION: Final = re.compile(r'invalid (?:URI query parameter|connection option)[^"]*"(.*)"', re.DOTALL)
_OPTIONS: Final = (
    *("host", "hostaddr", "port", "dbname", "user", "password", "passfile", "connect_timeout", "client_encoding"),
    *("options", "application_name", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
    *("tcp_user_timeout", "sslmode", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl", "gssencmode"),
    *("channel_binding", "target_session_attrs", "load_balance_hosts", "service", "require_auth"),
)
"""Common options, to suggest one for a misspelling."""
_REFUSALS: Final = re.compile(
    r"password authentication failed|no password supplied|no pg_hba\.conf entry|role .* does not exist"
    r"|database .* does not exist|invalid .* value|invalid integer value|definition of service .* not found"
    r"|service file .* not found|certificate file .* does not exist|server does not support SSL|invalid port number"
    r"|syntax error in service file"
)


def check_dsn(dsn: Secret) -> str | None:
    """What is wrong with a URL or libpq keywords, and the remedy; None if libpq can use them."""
    text = dsn.reveal()
    if text != text.strip():
        return "has white space around it: remove it"
    if any(letter < " " for letter in text):
        return "has a control character in it: copy it again"
    if text.startswith(_SCHEMES):
        return _fault_of_parsing(text) or _fault_of_parts(text)
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)
    if scheme and scheme[0].startswith("postgresql+"):
        return "names a driver after the scheme, as SQLAlchemy does: begin it with postgresql://"
    if scheme or "=" not in text:
        return f"must start with postgresql:// or be libpq keywords: write {_FORM}"
    return _fault_of_parsing(text)


def refused(message: str) -> bool:
    """Whether an error message about a connection means that the URL is wrong, and not the server."""
    return _REFUSALS.search(message) is not None


def _fault_of_parsing(text: str) -> str | None:
    try:
        parse_dsn(text)
    except psycopg2.Error as error:
        found = str(error)
    except (ValueError, UnicodeError):
        return f"holds a character that it must not: {_ENCODE}"
    else:
        return None
    option = _UNKNOWN_OPTION.search(found)
    if option:
        # The option's name is not shown, because it may be a piece of a password.
        near = difflib.get_close_matches(option[1], _OPTIONS, 1, 0.7)
        return f"has an option that libpq does not know: {f'did you mean {near[0]}?' if near else _ENCODE}"
    if "percent" in found:
        return f"has a % that is followed by no code: {_ENCODE}"
    return f"cannot be read: write {_FORM}, and {_ENCODE}"


def _fault_of_parts(text: str) -> str | None:
    """Faults that libpq accepts but misunderstands: it ends user and password at the first / or @."""
    rest = text.partition("://")[2]
    before_options = rest.rpartition("?")[0] or rest
    if set("@/") & set(before_options.rpartition("@")[0]):
        return f"has an @ or / in user or password: {_ENCODE}"
    parts = parse_dsn(text)
    if any(each and not (each.isdecimal() and 0 < int(each) < 65_536) for each in parts.get("port", "").split(",")):
        return f"has a port that is not a number from 1 to 65535, or a special character in the password: {_ENCODE}"
    if any(letter.isspace() for letter in parts.get("host", "")):
        return f"has white space in the host: {_ENCODE}"
    if any(letter.isspace() for letter in rest):
        return f"has white space in it: {_ENCODE}"
    return None
