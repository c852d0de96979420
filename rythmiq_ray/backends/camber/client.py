"""Camber's API over HTTP: pooled connections, a deadline for every call, our own error classes, bounded retries.

Only idempotent calls are repeated, so never a create. Each call's method and path are configuration
(``camber.routes``), because much of the contract is inferred (camber-api, section 5).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Any, BinaryIO, Final, Self
from urllib.parse import quote

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from rythmiq_ray.backends import CallObserver
from rythmiq_ray.backends.bundle import Upload
from rythmiq_ray.backends.camber.answers import (
    Answer,
    create_error_of,
    error_of,
    items_of,
    job_of,
    printable,
    total_of,
)
from rythmiq_ray.backends.camber.calls import JobPage
from rythmiq_ray.backends.camber.download import Download
from rythmiq_ray.backends.camber.transport import Request, Transport, Unanswered, whole
from rythmiq_ray.config import CamberConfig
from rythmiq_ray.errors import (
    BackendBusy,
    BackendRefusedKey,
    BackendUnavailable,
    CreateUncertain,
    NotFound,
    RythmiqError,
    SpecRejected,
)
from rythmiq_ray.model import RemoteJob
from rythmiq_ray.secret import MASK, Secret

_MAX_BACKOFF_S: Final = 5.0
_MAX_PATIENCE_S: Final = 15.0
"""The longest pause before a retry here. For a longer one the driver waits, which blocks no thread."""
_QUOTED_ASCII: Final = {code: quote(chr(code), safe="") for code in range(128)}
_GLOBAL: Final = frozenset({"me", "list"})
"""Operations that name no job or file: if they answer 404, the endpoint is wrong."""


class CamberClient:
    """:class:`~rythmiq_ray.backends.camber.calls.CamberCalls` over HTTP. Thread-safe.

    Every method may raise BackendUnavailable, BackendRefusedKey or BackendBusy, and the errors that it names.
    """

    def __init__(
        self,
        config: CamberConfig,
        *,
        key: Callable[[], Secret] | None = None,
        threads: int = 32,
        on_call: CallObserver | None = None,
        backoff_s: float = 0.2,
    ) -> None:
        """``threads``: how many connections the pool keeps; ``backoff_s``: seconds before the first retry.

        ``key`` returns the API key for each call; without it, the configuration's key is used.

        Raises ConfigurationError for a key that cannot be sent in a header, and BackendUnavailable if the certificates
        that the environment names cannot be read.
        """
        self._config = config
        self._key = key or (lambda: config.api_key)
        self._transport = Transport(config.endpoint, self._key, threads)
        self._on_call = on_call
        fields = config.fields
        self._sent = {"create": fields.create, "list": fields.list}
        self._sent |= dict.fromkeys(("stash_list", "stash_read", "stash_write", "stash_remove"), fields.stash)
        self._received = dict.fromkeys(("create", "get", "list", "cancel"), _inverse(fields.job))
        self._received |= {"stash_list": _inverse(fields.stash)}
        self._count = threading.Lock()
        self.calls: Counter[str] = Counter()
        """The number of calls so far, by operation; each try counts."""
        self._backoff = wait_random_exponential(multiplier=backoff_s, max=_MAX_BACKOFF_S)
        self._retrying = Retrying(
            stop=stop_after_attempt(config.call_attempts),
            wait=self._pause_s,
            retry=retry_if_exception(_worth_retrying),
            reraise=True,
        )

    def close(self) -> None:
        """Closes the pooled connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def me(self) -> str:
        """The name of the key's owner, whose stash is used."""
        data = self._call("me").data
        name = data.get("username") if isinstance(data, dict) else None
        if not isinstance(name, str) or not name or name != printable(name) or "/" in name:
            raise BackendUnavailable("Camber's answer to me names no user (is camber.endpoint right?)")
        return name

    def create(self, body: Mapping[str, object]) -> RemoteJob:
        """Creates a job with one call, which is never repeated.

        Raises CreateUncertain if the call was sent and had no readable answer, SpecRejected if the server refused the
        job; any other error means that nothing was created.
        """
        try:
            answer = self._once("create", json=body, timeout_s=self._config.create_timeout_s, fresh=True)
        except Unanswered as error:
            raise (BackendUnavailable if error.never_sent else CreateUncertain)(_reason("create", error)) from error
        if not answer.accepted:
            raise self._masked(create_error_of(answer))
        remote = job_of(answer.data)
        if remote is None:
            raise CreateUncertain("Camber's answer to create holds no job")
        return remote

    def get(self, remote_id: int) -> RemoteJob:
        """One job. Raises NotFound."""
        remote = job_of(self._call("get", job_id=remote_id).data)
        if remote is None or remote.remote_id != remote_id:
            raise BackendUnavailable("Camber's answer to get does not hold the job that was asked for")
        return remote

    def list_page(self, page: int) -> JobPage:
        """A page of ``camber.page_size`` jobs of the list, the newest on page 1."""
        answer = self._call("list", params={"page": str(page), "size": str(self._config.page_size)})
        jobs = items_of(answer, "job_id")
        if jobs is None:
            raise BackendUnavailable("Camber's answer to list holds no list of jobs")
        return JobPage(jobs=jobs, total=total_of(answer), at=answer.date)

    def cancel(self, remote_id: int) -> bool:
        """Asks a job to end; returns False if the server refuses or has no such route (404, 405, a finished job)."""

        def attempt() -> bool:
            answer = self._try_once("cancel", job_id=remote_id)
            error = None if answer.accepted else error_of(answer, "cancel")
            if error is None:
                return True
            refused = isinstance(error, NotFound | SpecRejected) or (
                400 <= answer.status < 500
                and answer.status != HTTPStatus.REQUEST_TIMEOUT
                and not isinstance(error, BackendRefusedKey | BackendBusy)
            )
            if refused:
                return False
            raise self._masked(error)

        return self._retrying(attempt)

    def open_log(self, remote_id: int) -> AbstractContextManager[Iterator[bytes]]:
        """Streams a job's log. Raises NotFound if there is none, as for a PENDING or CANCELLED job."""
        return self._stream("logs", 0, job_id=remote_id)

    def stash_list(self, uri: str) -> list[dict[str, Any]]:
        """The entries below a ``stash://`` folder, as the service sent them. Raises NotFound."""
        files = items_of(self._call("stash_list", json={"path": uri, "recursive": True}), "path", "name")
        if files is None:
            raise BackendUnavailable("Camber's answer to stash_list holds no list of files")
        return files

    def stash_read(self, uri: str) -> bytes:
        """The content of a small file. Raises NotFound."""
        return self._call("stash_read", params={"path": uri}).body

    def stash_open(self, uri: str, start: int = 0) -> AbstractContextManager[Iterator[bytes]]:
        """Streams a file from byte ``start``; an interrupted transfer is resumed where it stopped.

        Raises NotFound, and ArtifactCorrupt if the file changed meanwhile.
        """
        return self._stream("stash_read", start, params={"path": uri})

    def stash_write(self, uri: str, data: bytes) -> None:
        """Writes a file; missing folders above it are created."""
        self._call("stash_write", params={"path": uri}, data=data)

    def stash_stream(self, uri: str, open_source: Callable[[], AbstractContextManager[BinaryIO]]) -> None:
        """Writes a file in constant memory; ``open_source`` is called again for each try, and its errors are passed on.

        Raises InputUnreadable if reading the source fails.
        """

        def attempt() -> None:
            with open_source() as source:
                upload = Upload(source)
                # requests sends no Content-Length of 0 for a stream.
                self._checked("stash_write", params={"path": uri}, data=upload if upload.len != 0 else b"")

        self._retrying(attempt)

    def stash_remove(self, uri: str) -> None:
        """Removes a folder with its content. May raise NotFound if the folder does not exist."""
        self._call("stash_remove", params={"path": uri, "recursive": "true"})

    def _call(self, operation: str, **parts: Any) -> Answer:
        """Makes an idempotent call, with a limited number of tries."""
        return self._retrying(self._checked, operation, **parts)

    def _checked(self, operation: str, **parts: Any) -> Answer:
        answer = self._try_once(operation, **parts)
        if answer.ok if operation == "stash_read" else answer.accepted:
            return answer
        error = error_of(answer, operation)
        if operation in _GLOBAL and isinstance(error, NotFound | SpecRejected):
            error = BackendUnavailable(f"{error.message} (is camber.endpoint right?)")
        raise self._masked(error)

    def _try_once(self, operation: str, **parts: Any) -> Answer:
        try:
            return self._once(operation, **parts)
        except Unanswered as error:
            raise BackendUnavailable(_reason(operation, error)) from error

    def _once(self, operation: str, **parts: Any) -> Answer:
        request = self._request(operation, **parts)
        began = self._begin(operation)
        status = None
        try:
            answer = self._transport.call(request)
            status = answer.status
        finally:
            self._end(operation, status, began)
        return replace(answer, envelope=self._config.envelope, names=self._received.get(operation, {}))

    @contextmanager
    def _stream(self, operation: str, start: int, **parts: Any) -> Iterator[Iterator[bytes]]:
        def open_at(position: int) -> requests.Response:
            return self._retrying(self._open_at, operation, position, **parts)

        with closing(Download(open_at, start, self._config.call_attempts)) as download:
            yield iter(download)

    def _open_at(self, operation: str, position: int, **parts: Any) -> requests.Response:
        """An answer of status 200, 206 or 416, its body not read yet."""
        headers = {"Range": f"bytes={position}-"} if position else None
        request = self._request(operation, headers=headers, **parts)
        try:
            began = self._begin(operation)
            status = None
            try:
                response = self._transport.open(request)
                status = response.status_code
            finally:
                self._end(operation, status, began)
            if response.status_code in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
                return response
            if position and response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return response
            answer = whole(response)
        except Unanswered as error:
            raise BackendUnavailable(_reason(operation, error)) from error
        error_of_answer = error_of(answer, operation)
        if operation == "logs" and answer.status == HTTPStatus.BAD_REQUEST:
            raise self._masked(NotFound(error_of_answer.message))
        raise self._masked(error_of_answer)

    def _request(
        self,
        operation: str,
        *,
        job_id: int | None = None,
        params: Mapping[str, str] | None = None,
        json: object = None,
        data: bytes | Upload | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        fresh: bool = False,
    ) -> Request:
        route = self._config.routes[operation]
        if (names := self._sent.get(operation)) and isinstance(json, Mapping):
            json = {names.get(name, name): value for name, value in json.items()}
        if names and params:
            params = {names.get(name, name): value for name, value in params.items()}
        path = route.path.replace("{job_id}", str(job_id))
        return Request(
            method=route.method,
            path=f"{path}{_query(params)}",
            json=json,
            data=data,
            headers=headers,
            connect_timeout_s=self._config.connect_timeout_s,
            timeout_s=timeout_s or self._config.read_timeout_s,
            fresh=fresh,
        )

    def _begin(self, operation: str) -> float:
        """Counts a call; returns when it began."""
        with self._count:
            self.calls[operation] += 1
        return time.monotonic()

    def _end(self, operation: str, status: int | None, began: float) -> None:
        """Reports a call; ``status`` None: no answer came."""
        if self._on_call is not None:
            outcome = "error" if status is None else f"{status // 100}xx"
            self._on_call(operation, outcome, time.monotonic() - began)

    def _pause_s(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.retry_after_s if isinstance(error, RythmiqError) else None
        return max(self._backoff(state), asked_s or 0.0)

    def _masked(self, error: RythmiqError) -> RythmiqError:
        """The same error without the key, in case the server has echoed it."""
        message = error.message
        # If the key has changed meanwhile, it may be either.
        for key in (self._config.api_key, self._key()):
            message = message.replace(key.reveal(), MASK)
        return error if message == error.message else type(error)(message, error.retry_after_s)


def _inverse(names: Mapping[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in names.items()}


def _query(params: Mapping[str, str] | None) -> str:
    return "?" + "&".join([f"{name}={_quoted(value)}" for name, value in params.items()]) if params else ""


def _quoted(value: str) -> str:
    if value.isascii():
        return value.translate(_QUOTED_ASCII)  # What quote does letter by letter in Python.
    # A name's bytes that are no UTF-8 came in as lone surrogates, and go out as the same bytes.
    return quote(value, safe="", errors="surrogateescape")


def _worth_retrying(error: BaseException) -> bool:
    return isinstance(error, BackendUnavailable | BackendBusy) and (error.retry_after_s or 0.0) <= _MAX_PATIENCE_S


def _reason(operation: str, error: Unanswered) -> str:
    return f"Camber cannot be reached for {operation}: {error}"
