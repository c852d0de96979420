"""The routes of the contract, and ``/_emulator/…`` routes for tests and benchmarks."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable
from functools import partial
from time import time
from typing import Final

from aiohttp import web

from rythmiq_ray.local.camber.answers import (
    Refusal,
    encode,
    enveloped,
    failed,
    invalid,
    method_not_allowed,
    not_found,
    plain,
    unauthorized,
    wrong_type,
)
from rythmiq_ray.local.camber.calls import CallLog
from rythmiq_ray.local.camber.creating import read_object, read_request
from rythmiq_ray.local.camber.faults import Cancelling, Faults, ListShape, Mischief, Outage
from rythmiq_ray.local.camber.instant import log_of
from rythmiq_ray.local.camber.ledger import CreateAnswer, Job, Ledger, Status
from rythmiq_ray.local.camber.processes import Processes
from rythmiq_ray.local.camber.scheduler import Scheduler
from rythmiq_ray.local.camber.settings import Settings
from rythmiq_ray.local.camber.stash import Entry, ForeignOwner, InvalidPath, Stash
from rythmiq_ray.local.camber.transfer import hang_up, receive_file, send_bytes, send_file

API: Final = "/api/cli"
_JOBS: Final = f"{API}/jobs/"
_Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
_KEY: Final = re.compile(r"[0-9a-f]{40}")
_LONGEST_BODY: Final = 16 * 1024 * 1024
_LARGEST_PAGE: Final = 100
_NO_LOG: Final = "job status is not completed, failed, or running"
_BAD_GATEWAY: Final = b"<html><head><title>Bad Gateway</title></head><body><h1>Bad Gateway</h1></body></html>"


class Api:
    """Answers requests; the emulator's other parts make the changes."""

    def __init__(
        self,
        *,
        api_key: Callable[[], str],
        settings: Settings,
        ledger: Ledger,
        stash: Stash,
        processes: Processes,
        scheduler: Scheduler,
        mischief: Mischief,
        set_faults: Callable[[Faults], Awaitable[None]],
    ) -> None:
        self._api_key = api_key
        self._settings = settings
        self._ledger = ledger
        self._stash = stash
        self._processes = processes
        self._scheduler = scheduler
        self._mischief = mischief
        self._set_faults = set_faults
        self._calls = CallLog()
        self._routes = self._table()

    def server(self) -> web.Server:
        """The HTTP server; call this in the event loop."""
        # A dict of ten routes takes less processor time than web.Application's router and middlewares.
        request = partial(web.BaseRequest, loop=asyncio.get_running_loop(), client_max_size=_LONGEST_BODY)
        return web.Server(self._answer, request_factory=request, access_log=None)

    def _table(self) -> dict[str, dict[str, _Handler]]:
        """Handlers by path and method."""
        operations: tuple[tuple[str, str, str, _Handler], ...] = (
            ("me", "GET", "/me", self._me),
            ("create", "POST", "/jobs", self._create),
            ("list", "GET", "/jobs", self._list),
            ("get", "GET", "/jobs/{job_id}", self._get),
            ("logs", "GET", "/jobs/{job_id}/logs", self._logs),
            ("cancel", "DELETE", "/jobs/{job_id}", self._cancel),
            ("stash_list", "POST", "/stash", self._stash_list),
            ("stash_read", "GET", "/stash/file", self._stash_read),
            ("stash_write", "PUT", "/stash/file", self._stash_write),
            ("stash_remove", "DELETE", "/stash/file", self._stash_remove),
        )
        table: dict[str, dict[str, _Handler]] = {
            "/_emulator/calls": {"GET": self._show_calls, "DELETE": self._reset_calls},
            "/_emulator/state": {"GET": self._show_state},
            "/_emulator/jobs": {"GET": self._show_jobs},
            "/_emulator/faults": {"GET": self._show_faults, "PUT": self._replace_faults},
        }
        for operation, method, path, handler in operations:
            table.setdefault(f"{API}{path}", {})[method] = partial(self._perform, operation, handler)
        return table

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            expected = request.headers.get("Expect")
            if expected:
                await _meet(request, expected)
            return await self._handler(request)(request)
        except Refusal as refusal:
            return refusal.answer()

    def _handler(self, request: web.BaseRequest) -> _Handler:
        path = request.rel_url.path_safe
        methods = self._routes.get(path)
        if methods is None and path.startswith(_JOBS):
            job_id, slash, rest = path.removeprefix(_JOBS).partition("/")
            methods = self._routes.get(f"{_JOBS}{{job_id}}{slash}{rest}") if job_id else None
        if methods is None:
            raise not_found()
        handler = methods.get(request.method)
        if handler is None:
            raise method_not_allowed()
        return handler

    # Before every operation

    async def _perform(self, operation: str, handler: _Handler, request: web.BaseRequest) -> web.StreamResponse:
        self._calls.arrived(operation, time())
        try:
            early = await self._misbehave(operation, request)
            if early is not None:
                return early
            self._authorize(request)
            return await handler(request)
        except InvalidPath as error:
            return invalid("StashRequest", ("Path", f"Path {error}")).answer()
        except ForeignOwner as error:
            return failed(str(error)).answer()
        except ConnectionError:  # the caller has gone
            hang_up(request)
            return web.Response()
        except OSError as error:
            return failed(f"stash: {error.strerror or 'failure'}").answer()

    async def _misbehave(self, operation: str, request: web.BaseRequest) -> web.StreamResponse | None:
        """Applies the faults that occur before an operation; None = the operation goes on. Raises Refusal."""
        mischief, faults = self._mischief, self._mischief.faults
        outage = mischief.outage
        if outage is Outage.REFUSED:
            hang_up(request)
            return web.Response()
        if outage is Outage.UNAVAILABLE:
            raise Refusal(503, {"message": "Service Unavailable"})
        if faults.latency_s > 0.0:
            await asyncio.sleep(faults.latency_s)
        if mischief.concerns(operation):
            if mischief.strikes("too_many"):
                raise Refusal(429, {"message": "Too Many Requests"}, {"Retry-After": f"{faults.retry_after_s:g}"})
            if mischief.strikes("server_error"):
                status = mischief.draws("server_error").choice((500, 502, 503, 504))
                if status == 502:
                    return web.Response(body=_BAD_GATEWAY, status=status, headers={"Content-Type": "text/html"})
                raise Refusal(status, {"message": "Internal Server Error"})
        return None

    def _authorize(self, request: web.BaseRequest) -> None:
        given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
        if self._mischief.faults.refuse_key:
            raise unauthorized("unauthorized - invalid token")
        if not hmac.compare_digest(given, f"Bearer {self._api_key()}".encode()):
            word, _, key = given.decode(errors="replace").partition(" ")
            known_form = word == "Bearer" and _KEY.fullmatch(key)
            raise unauthorized("user not found" if known_form else "unauthorized - invalid token")

    # Operations

    async def _me(self, _request: web.BaseRequest) -> web.StreamResponse:
        owner = self._settings.owner
        team = {"team_id": 1, "team_name": owner, "is_default": True, "is_selected": True}
        return enveloped(
            encode({"user_id": 1, "username": owner, "email": f"{owner}@example.invalid", "teams": [team]})
        )

    async def _create(self, request: web.BaseRequest) -> web.StreamResponse:
        arrived = time()
        wanted = read_request(await request.read())
        if self._mischief.faults.create_latency_s > 0.0:
            await asyncio.sleep(self._mischief.faults.create_latency_s)
        answer = CreateAnswer.SENT
        if self._mischief.strikes("lost_answer"):
            answer = CreateAnswer.LOST
        elif self._mischief.strikes("ghost_create"):
            answer = CreateAnswer.GHOST
        job = self._ledger.create(wanted, arrived, answer)
        self._scheduler.accept(job)
        if answer is CreateAnswer.LOST:
            hang_up(request)
        elif answer is CreateAnswer.GHOST:
            raise failed("failed to create job", 500)
        return enveloped(encode(job.as_dict("SUBMITTED")))

    async def _list(self, request: web.BaseRequest) -> web.StreamResponse:
        number = _positive(request, "page", 1)
        size = min(_positive(request, "size", 20), _LARGEST_PAGE)
        jobs, total = self._ledger.page(number, size, lag_s=self._mischief.faults.list_lag_s)
        array = b"[" + b",".join([job.encoded() for job in jobs]) + b"]"
        match self._mischief.faults.list_shape:
            case ListShape.BARE:
                return web.Response(body=b'{"jobs":' + array + b"}", headers={"Content-Type": "application/json"})
            case ListShape.OTHER_KEY:
                return enveloped(b'{"items":%b,"total":%d}' % (array, total))
            case ListShape.ENVELOPED:
                return enveloped(b'{"jobs":%b,"total":%d}' % (array, total))

    async def _get(self, request: web.BaseRequest) -> web.StreamResponse:
        return enveloped(self._job(request).encoded())

    async def _logs(self, request: web.BaseRequest) -> web.StreamResponse:
        job = self._job(request)
        if job.status in (Status.PENDING, Status.CANCELLED):
            raise failed(_NO_LOG)
        kind = "text/plain; charset=utf-8"
        cut = self._mischief.strikes("cut_download")
        if self._settings.instant_s is not None:
            return await send_bytes(request, log_of(job), kind, cut=cut)
        try:
            return await send_file(request, self._processes.log(job), kind, cut=cut)
        except FileNotFoundError:  # it failed before it could write any
            return await send_bytes(request, b"", kind)

    async def _cancel(self, request: web.BaseRequest) -> web.StreamResponse:
        match self._mischief.faults.cancel:
            case Cancelling.NOT_FOUND:
                raise not_found()
            case Cancelling.METHOD_NOT_ALLOWED:
                raise method_not_allowed()
            case Cancelling.SUPPORTED:
                job = self._job(request)
                self._scheduler.cancel(job)
                return enveloped(job.encoded())

    async def _stash_list(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = read_object(await request.read(), "StashRequest")
        uri, recursive = asked.get("path"), asked.get("recursive", False)
        if not isinstance(uri, str):
            if uri is None:
                raise invalid("StashRequest", ("Path", "Path is a required field"))
            raise wrong_type("string", "object" if isinstance(uri, dict) else "array", "path")
        path = self._stash.path_of(uri)
        entries = await asyncio.to_thread(self._stash.entries, path, recursive=bool(recursive))
        return enveloped(encode({"files": [_entry(entry) for entry in entries]}))

    async def _stash_read(self, request: web.BaseRequest) -> web.StreamResponse:
        place = self._stash.place(self._path(request))
        cut = self._mischief.strikes("cut_download")
        return await send_file(request, place, "application/octet-stream", cut=cut)

    async def _stash_write(self, request: web.BaseRequest) -> web.StreamResponse:
        path = self._path(request)
        await receive_file(request, self._stash, path)
        await self._processes.written(path)
        return enveloped()

    async def _stash_remove(self, request: web.BaseRequest) -> web.StreamResponse:
        path = self._path(request)
        self._stash.remove(path, recursive=request.query.get("recursive") == "true")
        self._ledger.removed(path)
        return enveloped()

    def _job(self, request: web.BaseRequest) -> Job:
        text = request.rel_url.path_safe.removeprefix(_JOBS).partition("/")[0]
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise invalid("JobRequest", ("JobID", "JobID must be an integer"))
        job = self._ledger.get(int(text))
        if job is None:
            raise failed("job not found", 500)
        return job

    def _path(self, request: web.BaseRequest) -> str:
        path = self._stash.path_of(request.query.get("path", ""))
        if not path:
            raise InvalidPath("must not be the owner's root")
        return path

    # For tests and benchmarks

    async def _show_calls(self, _request: web.BaseRequest) -> web.StreamResponse:
        return plain(self._calls.as_dict())

    async def _reset_calls(self, _request: web.BaseRequest) -> web.StreamResponse:
        self._calls.clear()
        return plain({})

    async def _show_state(self, _request: web.BaseRequest) -> web.StreamResponse:
        files = await asyncio.to_thread(self._stash.count_files)
        return plain({"jobs": self._ledger.statuses(), "stash_files": files})

    async def _show_jobs(self, _request: web.BaseRequest) -> web.StreamResponse:
        jobs = [
            {
                "job_id": job.job_id,
                "mount_dir": job.path,
                "status": job.status,
                "answer": job.answer,
                "arrived_at": job.created,
                "started_at": job.started,
                "ended_at": job.ended,
            }
            for job in self._ledger.all()
        ]
        return plain({"jobs": jobs})

    async def _show_faults(self, _request: web.BaseRequest) -> web.StreamResponse:
        return plain(self._mischief.faults.as_dict())

    async def _replace_faults(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            faults = Faults.from_dict(read_object(await request.read(), "Faults"))
        except ValueError as error:
            raise Refusal(400, {"message": str(error)}) from None
        await self._set_faults(faults)
        return plain(faults.as_dict())


async def _meet(request: web.BaseRequest, what: str) -> None:
    """Tells a caller that waits for ``100 Continue`` to send the body."""
    if what.lower() != "100-continue":
        raise web.HTTPExpectationFailed(text=f"Unknown Expect: {what}")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")


def _positive(request: web.BaseRequest, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and int(text[:18]) > 0):
        raise invalid("ListJobsRequest", (name.capitalize(), f"{name.capitalize()} must be 1 or greater"))
    return int(text[:18])


def _entry(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.path.rpartition("/")[2],
        "path": entry.path,
        "type": "directory" if entry.is_folder else "file",
        "size": entry.size,
    }
