"""Log lines in the text form that existing log filters expect, or as JSON. Secrets are masked in both.

Text, at INFO: ``[2026-01-07T10:30:45.123Z] [WORKER] Worker ready uptime=123ms backend=camber``; at any other level the
level precedes the message: ``[…] [WORKER] WARNING Dispatch paused part=store``. JSON: one object a line with
``time``, ``level``, ``message`` and the fields.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO
from urllib.parse import quote, unquote, urlsplit

from rythmiq_ray.config import LoggingConfig
from rythmiq_ray.secret import MASK, Secret

_SHORTEST_SECRET: Final = 6
"""Shorter secrets are not masked, because that would mask ordinary words."""
_QUIET: Final = ("boto3", "botocore", "s3transfer", "urllib3", "smart_open", "ray", "alembic")


_more: Final[dict[str, Callable[[Mapping[str, object]], object]]] = {}


class Logger:
    """A logger whose calls take fields: ``log.info("Worker ready", uptime="123ms")``."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, message: str, /, **fields: object) -> None:
        self._log(logging.DEBUG, message, fields)

    def info(self, message: str, /, **fields: object) -> None:
        self._log(logging.INFO, message, fields)

    def warning(self, message: str, /, **fields: object) -> None:
        self._log(logging.WARNING, message, fields)

    def error(self, message: str, /, **fields: object) -> None:
        self._log(logging.ERROR, message, fields)

    def exception(self, message: str, /, **fields: object) -> None:
        """As :meth:`error`, with the traceback of the exception being handled."""
        self._log(logging.ERROR, message, fields, with_traceback=True)

    def _log(self, level: int, message: str, fields: dict[str, object], *, with_traceback: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", message, extra={"fields": fields}, exc_info=with_traceback)


def get_logger(name: str) -> Logger:
    """The logger ``rythmiq.<name>``."""
    return Logger(logging.getLogger(f"rythmiq.{name}"))


def setup(config: LoggingConfig, *, secrets: Iterable[Secret] = (), stream: TextIO | None = None) -> None:
    """Sends the log of this process to ``stream`` (standard output), with all ``secrets`` masked."""
    handler = logging.StreamHandler(stream or sys.stdout)
    form = _Json() if config.format == "json" else _Text()
    handler.setFormatter(_Masking(form, secrets))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("rythmiq").setLevel(config.level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def add_field(name: str, value: Callable[[Mapping[str, object]], object]) -> None:
    """Gives the lines of this process's log one more field, made from those that a line has; None = not this line."""
    _more[name] = value


def mask_also(secret: Secret) -> None:
    """Masks one more secret in this process's log from now on."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, _Masking):
            handler.formatter.add(secret)


def spellings(secrets: Iterable[Secret]) -> list[str]:
    """Every form in which a secret could appear, longest first: itself, as JSON, in a URL, a URL's password."""
    found: set[str] = set()
    for secret in secrets:
        value = secret.reveal()
        found.add(value)
        try:
            password = urlsplit(value).password
        except ValueError:
            password = None
        if password is None and (match := re.search(r"password=('[^']*'|\S+)", value)):
            password = match[1].strip("'")
        if password:
            found |= {password, unquote(password)}
    found |= {quote(text, safe="") for text in found} | {json.dumps(text)[1:-1] for text in found}
    return sorted((text for text in found if len(text) >= _SHORTEST_SECRET), key=len, reverse=True)


class _Masking(logging.Formatter):
    """Masks secrets as a last line of defence: no code should log one."""

    def __init__(self, form: logging.Formatter, secrets: Iterable[Secret]) -> None:
        super().__init__()
        self._form = form
        self._secrets = list(secrets)
        self._pattern = self._pattern_of_all()

    def add(self, secret: Secret) -> None:
        self._secrets.append(secret)
        self._pattern = self._pattern_of_all()

    def _pattern_of_all(self) -> re.Pattern[str] | None:
        words = spellings(self._secrets)
        return re.compile("|".join(map(re.escape, words))) if words else None

    def format(self, record: logging.LogRecord) -> str:
        text = self._form.format(record)
        return self._pattern.sub(MASK, text) if self._pattern else text


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        message = _one_line(record.getMessage())
        fields = "".join(f" {name}={_field(value)}" for name, value in _fields(record).items())
        text = f"[{_time(record)}] [WORKER] {level}{message}{fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        # A field never replaces one of the entry's own names.
        entry.update({name if name not in entry else f"{name}_": value for name, value in _fields(record).items()})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    if not isinstance(fields, dict):
        return {}
    fields = fields | {name: make(fields) for name, make in _more.items() if name not in fields}
    return {name: value for name, value in fields.items() if value is not None}


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _field(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r'[\s"=\x00-\x1f]', text) else text


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())
