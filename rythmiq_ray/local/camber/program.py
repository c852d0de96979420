#!/usr/bin/env python3
"""A program like the vendor's ``camber``, for the emulator, with the same commands and the same recorded output.

It shares no code with the client that reads this output. It imports only the standard library, so that it starts fast:
each call is a process.

Environment: ``CAMBER_API_KEY``, ``CAMBER_API_ENDPOINT`` (the emulator's), and for tests ``RYTHMIQ_CAMBER_ODDITIES``, a
folder with ``oddities.json`` (the fields of :class:`Oddities`), in which the program also records its calls.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import quote, urlsplit

VERSION = "1.0.40"
BLOCK_BYTES = 1024 * 1024


class Failure(Exception):
    """Ends the program with an error; its text is printed."""


@dataclass(frozen=True, kw_only=True)
class Oddities:
    """Odd behaviour that the vendor's program has shown. Commands are named after their methods, as ``job_create``."""

    banner: bool = False
    """Prints a line before the output."""
    garbage: bool = False
    """Prints lines after the output."""
    asks: bool = False
    """A create asks for a ``y`` on standard input."""
    error_exit: int = 1
    """The exit code of errors; if it is 0, they are printed on standard output."""
    upload_exit: int = 0
    """The exit code of good uploads."""
    placeholders: int = 0
    """How many downloads of each file bring only one byte."""
    needs_folders: bool = False
    """An upload makes no folders and fails without them."""
    slow_s: float = 0.0
    """Seconds to wait before each command."""
    hangs: tuple[str, ...] = ()
    """Commands that do not end when they are done."""
    says: Mapping[str, str] = field(default_factory=dict)
    """Text by command; these commands print it and do nothing else."""
    child: bool = False
    """Leaves a child process behind."""
    records: bool = False
    """Writes arguments and environment of each call to ``calls.jsonl``."""


class Notebook:
    """Reads the oddities and keeps what one run must know of earlier ones. Without a folder there are no oddities."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self.oddities = Oddities() if folder is None else Oddities(**json.loads((folder / "oddities.json").read_text()))

    def record(self, arguments: Sequence[str]) -> None:
        if self._folder is not None and self.oddities.records:
            line = json.dumps({"pid": os.getpid(), "arguments": arguments, "environ": dict(os.environ)})
            with (self._folder / "calls.jsonl").open("a") as file:
                file.write(f"{line}\n")

    def count(self, what: str) -> int:
        """Counts an event; returns how often it has been counted, this time included."""
        if self._folder is None:
            return 1
        with self._place(self._folder, what).open("ab") as file:
            file.write(b".")
            return file.tell()

    def seen(self, what: str) -> bool:
        return self._folder is not None and self._place(self._folder, what).exists()

    @staticmethod
    def _place(folder: Path, what: str) -> Path:
        return folder / f"seen-{quote(what, safe='')[-200:]}"


class Api:
    """Makes requests to the emulator, each on its own connection."""

    def __init__(self, endpoint: str, key: str) -> None:
        where = urlsplit(endpoint)
        self._host, self._port, self._base = where.hostname or "", where.port, where.path
        self._key = key

    def open(self, method: str, path: str, body: Any = None, length: int | None = None) -> http.client.HTTPResponse:
        """Sends a request; the answer if its status is 2xx. Raises Failure."""
        headers = {"Authorization": f"Bearer {self._key}"}
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            headers["Content-Type"] = "application/json"
        elif length is not None:
            headers["Content-Length"] = str(length)
        connection = http.client.HTTPConnection(self._host, self._port, blocksize=BLOCK_BYTES)
        try:
            connection.request(method, f"{self._base}{path}", body, headers)
            answer = connection.getresponse()
        except ConnectionRefusedError:
            raise Failure(
                f'Error: Get "{path}": dial tcp {self._host}:{self._port}: connect: connection refused'
            ) from None
        except (OSError, http.client.HTTPException):
            raise Failure(f'Error: Get "{path}": EOF') from None
        if 200 <= answer.status < 300:
            return answer
        raise _failure(answer.status, answer.read())

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Sends a request; the JSON of the answer, without its envelope. Raises Failure."""
        told = json.loads(self.open(method, path, body).read())
        return told.get("data", told)


def _failure(status: int, body: bytes) -> Failure:
    try:
        told = json.loads(body)
    except ValueError:
        return Failure(f"Error: API error: status={status}, unexpected response")
    if status in (401, 403) and "code" not in told:
        return Failure(f"Error: authentication error: {told.get('message')}")
    if "code" not in told:
        return Failure(f"Error: API error: status={status}, {told.get('message')}")
    details = "; ".join(str(detail.get("message")) for detail in told.get("error_details", ()))
    return Failure(
        f"Error: API error: code={told['code']}, message={told['message']}" + (f" ({details})" if details else "")
    )


def _copy(answer: http.client.HTTPResponse, target: BinaryIO) -> None:
    while block := answer.read(BLOCK_BYTES):
        target.write(block)
    target.flush()
    if answer.length:
        raise Failure("Error: unexpected EOF")


class Program:
    """The commands."""

    def __init__(self, api: Api, notebook: Notebook) -> None:
        self._api = api
        self._notebook = notebook
        self._oddities = notebook.oddities

    def me(self, _: argparse.Namespace) -> int:
        return self._show(self._api.ask("GET", "/me"))

    def job_create(self, given: argparse.Namespace) -> int:
        if self._oddities.asks:
            sys.stdout.write("Continue? [y/N] ")
            if sys.stdin.readline().strip() != "y":
                raise Failure("Aborted.")
            sys.stdout.write("\n")
        job = self._api.ask(
            "POST",
            "/jobs",
            {
                "command": given.cmd,
                "engine_type": given.engine.upper(),
                "node_size": given.size.upper(),
                "num_nodes": given.num_nodes,
                "with_gpu": given.gpu,
                "mount_dir": given.path.removeprefix("stash://").partition("/")[2].strip("/"),
                "tags": [],
            },
        )
        sys.stdout.write(f"Job created successfully\nStatus: Submitted\nJob ID: {job['job_id']}\n")
        return 0

    def job_get(self, given: argparse.Namespace) -> int:
        return self._show(self._api.ask("GET", f"/jobs/{given.job_id}"))

    def job_list(self, given: argparse.Namespace) -> int:
        return self._show(self._api.ask("GET", f"/jobs?page={given.page}&size={given.size}"))

    def job_logs(self, given: argparse.Namespace) -> int:
        _copy(self._api.open("GET", f"/jobs/{given.job_id}/logs"), sys.stdout.buffer)
        return 0

    def stash_cp(self, given: argparse.Namespace) -> int:
        if given.source.startswith("stash://"):
            self._download(given.source, Path(given.target))
            return 0
        self._upload(Path(given.source), given.target)
        return self._oddities.upload_exit

    def stash_ls(self, given: argparse.Namespace) -> int:
        return self._show(self._listed(given.uri, recursive=given.recursive))

    def stash_rm(self, given: argparse.Namespace) -> int:
        self._api.ask("DELETE", f"/stash/file?path={quote(given.uri, safe='')}&recursive=true")
        return 0

    def stash_mkdir(self, given: argparse.Namespace) -> int:
        # Over HTTP an upload makes the folders, so this only records the call.
        self._notebook.count(f"folder {given.uri.rstrip('/')}")
        return 0

    def stash_test(self, given: argparse.Namespace) -> int:
        try:
            self._listed(given.uri, recursive=False)
        except Failure:
            return 1
        return 0

    def _listed(self, uri: str, *, recursive: bool) -> Any:
        return self._api.ask("POST", "/stash", {"path": uri, "recursive": recursive})

    def _upload(self, source: Path, uri: str) -> None:
        parent = uri.rpartition("/")[0]
        if self._oddities.needs_folders and not self._notebook.seen(f"folder {parent}"):
            raise Failure("Error: API error: code=2, message=directory not found")
        with source.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            self._api.open("PUT", f"/stash/file?path={quote(uri, safe='', errors='surrogateescape')}", file, length)
        sys.stdout.write(f"Uploaded {uri.rpartition('/')[2]!r}\n")

    def _download(self, uri: str, target: Path) -> None:
        answer = self._api.open("GET", f"/stash/file?path={quote(uri, safe='', errors='surrogateescape')}")
        if self._notebook.count(f"download {uri}") <= self._oddities.placeholders:
            target.write_bytes(b"\0")
            return
        with target.open("wb") as file:
            _copy(answer, file)

    def _show(self, data: Any) -> int:
        json.dump(data, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return 0


def main() -> int:
    """Runs one command like the vendor's program; its exit code is as unreliable."""
    given = _parser().parse_args()
    folder = os.environ.get("RYTHMIQ_CAMBER_ODDITIES")
    notebook = Notebook(Path(folder) if folder else None)
    notebook.record(sys.argv[1:])
    name, oddities = given.name, notebook.oddities
    time.sleep(oddities.slow_s)
    if oddities.child and os.fork() == 0:
        _sleep()
    if oddities.banner:
        sys.stdout.write("A new version is available: 1.0.41 [run `camber update`]\n")
    if name in oddities.says:
        sys.stdout.write(oddities.says[name])
        return 0
    program = Program(Api(os.environ.get("CAMBER_API_ENDPOINT", ""), os.environ.get("CAMBER_API_KEY", "")), notebook)
    try:
        code: int = getattr(program, name)(given)
    except Failure as failure:
        code = oddities.error_exit
        (sys.stderr if code else sys.stdout).write(f"{failure}\n")
    if oddities.garbage:
        sys.stdout.write("Done {in 0.1s]\n}\n")
    sys.stdout.flush()
    if name in oddities.hangs:
        _sleep()
    return code


def _sleep() -> NoReturn:
    while True:
        time.sleep(3600)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rythmiq-camber", description="The vendor's commands, for the emulator.")
    parser.add_argument("--version", action="version", version=f"camber version {VERSION}")
    groups = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(of: Any, name: str, calls: str, *flags: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = of.add_parser(name)
        added.set_defaults(name=calls)
        for flag in flags:
            added.add_argument(flag)
        return added

    command(groups, "me", "me", "--output")
    job = groups.add_parser("job").add_subparsers(required=True)
    create = command(job, "create", "job_create", "--path", "--cmd")
    create.add_argument("--engine", default="mpi")
    create.add_argument("--size", default="xsmall")
    create.add_argument("--gpu", action="store_true")
    create.add_argument("--num-nodes", type=int, default=1)
    command(job, "get", "job_get", "job_id", "--output")
    command(job, "list", "job_list", "--page", "--size", "--output")
    command(job, "logs", "job_logs", "job_id")
    stash = groups.add_parser("stash").add_subparsers(required=True)
    command(stash, "cp", "stash_cp", "source", "target")
    listing = command(stash, "ls", "stash_ls", "uri", "--output")
    listing.add_argument("-r", dest="recursive", action="store_true")
    listing.add_argument("-a", dest="hidden", action="store_true")
    removal = command(stash, "rm", "stash_rm", "uri")
    removal.add_argument("-rf", action="store_true")
    command(stash, "mkdir", "stash_mkdir", "uri")
    test = command(stash, "test", "stash_test", "uri")
    for kind in ("-e", "-f", "-d"):
        test.add_argument(kind, action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
