"""The forms of answers: the envelope, and the errors that the real service was seen to send."""

from __future__ import annotations

import json
from typing import Any, Final

from aiohttp import web

JSON: Final = {"Content-Type": "application/json"}


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))


def encode(data: Any) -> bytes:
    return _ENCODER.encode(data).encode()


def plain(data: Any, status: int = 200) -> web.Response:
    """JSON without an envelope."""
    return web.Response(body=encode(data), status=status, headers=JSON)


def enveloped(data: bytes = b"null") -> web.Response:
    """The envelope around data that is already encoded."""
    return web.Response(body=b'{"code":0,"message":"ok","data":' + data + b"}", headers=JSON)


class Refusal(Exception):
    """An answer that is not 2xx; raised anywhere below a route."""

    def __init__(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        super().__init__(status, body, headers)
        self.status = status
        self.body = body
        self.headers = headers or {}

    def answer(self) -> web.Response:
        return web.Response(body=encode(self.body), status=self.status, headers={**JSON, **self.headers})


def invalid(struct: str, *details: tuple[str, str]) -> Refusal:
    """400 for invalid fields; ``details`` are pairs of the Go field's name and what is wrong."""
    return Refusal(
        400,
        {
            "code": 1,
            "message": "Validation failed",
            "error_details": [
                {"key": f"{struct}.{field}", "field": field, "message": message} for field, message in details
            ],
        },
    )


def wrong_type(expected: str, got: str, field: str) -> Refusal:
    """400 for a JSON value whose type the field cannot have; this answer has no code."""
    return Refusal(400, {"message": f"Unmarshal type error: expected={expected}, got={got}, field={field}"})


def failed(message: str, status: int = 400) -> Refusal:
    """An error with code 2, for a request that is well formed but fails; the status may be 400 or 500."""
    return Refusal(status, {"code": 2, "message": message})


def unauthorized(message: str) -> Refusal:
    return Refusal(401, {"message": message})


def not_found() -> Refusal:
    return Refusal(404, {"message": "Not Found"})


def method_not_allowed() -> Refusal:
    return Refusal(405, {"message": "Method Not Allowed"})
