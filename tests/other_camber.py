"""A service that keeps Camber's contract by other routes, names and envelopes: a translator before the emulator."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import requests
from samples import config

PREFIX = "/api/cli"


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a service differs from the contract."""

    routes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """By operation: method and path."""
    envelope: str | None = "data"
    create: Mapping[str, str] = field(default_factory=dict)
    """Names: the contract's to the service's."""
    job: Mapping[str, str] = field(default_factory=dict)
    paging: Mapping[str, str] = field(default_factory=dict)
    stash: Mapping[str, str] = field(default_factory=dict)
    order: Sequence[str] | None = None
    """The contract's names in the order in which the service complains; None = in the order of what was sent."""


class OtherCamber:
    def __init__(self, origin: str, dialect: Dialect) -> None:
        contract = config().camber.routes
        self.origin = origin
        self.dialect = dialect
        self.contract = {operation: (route.method, route.path) for operation, route in contract.items()}
        self.routes = {**self.contract, **dialect.routes}
        self.created: list[Any] = []
        """Bodies of all that could have created a job."""

    def operation_of(self, method: str, path: str) -> tuple[str, str] | None:
        for operation, (known, pattern) in sorted(self.routes.items(), key=lambda item: "{" in item[1][1]):
            found = re.fullmatch(re.escape(pattern).replace(r"\{job_id\}", r"([^/]+)"), path)
            if found and known == method:
                return operation, found[1] if found.groups() else ""
        return None

    def answer(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(target)
        found = self.operation_of(method, parts.path.removeprefix(PREFIX))
        if found is None:
            return 404, {"Content-Type": "application/json"}, b'{"message":"Not Found"}'
        operation, job_id = found
        dialect = self.dialect
        sent = {"create": dialect.create, "list": dialect.paging}.get(operation, dialect.stash)
        if operation in ("create", "stash_list") and body:
            known = dict(_known(json.loads(body), sent))
            if operation == "create":
                self.created.append(known)
                if dialect.order:
                    known = {name: known[name] for name in dialect.order if name in known}
            body = json.dumps(known).encode()
        query = urlencode(dict(_known(dict(parse_qsl(parts.query)), sent)))
        true_method, path = self.contract[operation]
        url = f"{self.origin}{PREFIX}{path.replace('{job_id}', job_id)}?{query}"
        forwarded = {name: headers[name] for name in ("Authorization", "Range") if name in headers}
        response = requests.request(true_method, url, data=body, headers=forwarded, timeout=30)
        content = response.content
        if response.headers.get("Content-Type") == "application/json" and operation != "stash_read":
            content = json.dumps(self.translated(operation, response.json(), sent)).encode()
        kept = {
            name: response.headers[name]
            for name in ("Content-Type", "Content-Range", "Date")
            if name in response.headers
        }
        return response.status_code, kept, content

    def translated(self, operation: str, data: Any, sent: Mapping[str, str]) -> Any:
        names = self.dialect.stash if operation == "stash_list" else self.dialect.job
        data = _renamed(data, names)
        if isinstance(data.get("message"), str):
            data["message"] = re.sub(
                r"field=(\w+)", lambda found: f"field={sent.get(found[1], found[1])}", data["message"]
            )
        if "data" in data and self.dialect.envelope != "data":
            inner = data.pop("data")
            return inner if self.dialect.envelope is None else {**data, self.dialect.envelope: inner}
        return data


def _known(given: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    """What the service knows of it, by the contract's names; a name that it has another one for is ignored."""
    inverse = {theirs: ours for ours, theirs in names.items()}
    for name, value in given.items():
        if name in inverse:
            yield inverse[name], value
        elif name not in names:
            yield name, value


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    return [_renamed(item, names) for item in value] if isinstance(value, list) else value


@contextmanager
def serving(service: OtherCamber) -> Iterator[str]:
    """The endpoint at which it answers."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding"):
                body = b"".join(iter(self._chunk, b""))
            status, headers, content = service.answer(self.command, self.path, self.headers, body)
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _chunk(self) -> bytes:
            size = int(self.rfile.readline(), 16)
            data = self.rfile.read(size)
            self.rfile.readline()
            return data

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
