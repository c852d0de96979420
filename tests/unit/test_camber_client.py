"""The client against a loopback server that answers as told, also in ways that no server does on demand."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rythmiq_ray.backends import Unclear
from rythmiq_ray.backends.camber import CamberExecutionBackend
from rythmiq_ray.backends.camber.answers import (
    Answer,
    create_error_of,
    error_of,
    items_of,
    job_id_of,
    job_of,
    time_of,
    total_of,
)
from rythmiq_ray.backends.camber.client import CamberClient
from rythmiq_ray.config import CamberCatalog, CamberConfig, CamberFields, CamberRoute, NodeSize
from rythmiq_ray.errors import (
    ArtifactCorrupt,
    BackendBusy,
    BackendRefusedKey,
    BackendUnavailable,
    ConfigurationError,
    CreateUncertain,
    InputUnreadable,
    NotFound,
    RythmiqError,
    SpecRejected,
)
from rythmiq_ray.model import RemoteJob, RemoteStatus
from rythmiq_ray.secret import Secret

KEY = "canary0123456789abcdef0123456789abcdef01"
ROUTES = {
    "me": CamberRoute(method="GET", path="/me"),
    "create": CamberRoute(method="POST", path="/jobs"),
    "get": CamberRoute(method="GET", path="/jobs/{job_id}"),
    "list": CamberRoute(method="GET", path="/jobs"),
    "logs": CamberRoute(method="GET", path="/jobs/{job_id}/logs"),
    "cancel": CamberRoute(method="DELETE", path="/jobs/{job_id}"),
    "stash_list": CamberRoute(method="POST", path="/stash"),
    "stash_read": CamberRoute(method="GET", path="/stash/file"),
    "stash_write": CamberRoute(method="PUT", path="/stash/file"),
    "stash_remove": CamberRoute(method="DELETE", path="/stash/file"),
}


def make_config(endpoint: str, **changes: Any) -> CamberConfig:
    size = NodeSize(cpus=8, memory_gb=32, gpus=0, credits_per_hour=0.32)
    config = CamberConfig(
        api_key=Secret(KEY),
        api_key_file=None,
        endpoint=endpoint,
        transport="http",
        program="camber",
        program_at_once=8,
        region=None,
        max_in_flight=10,
        keep_unstored_s=60,
        connect_timeout_s=5,
        read_timeout_s=5,
        create_timeout_s=5,
        settle_s=1,
        sync_timeout_s=1,
        page_size=100,
        call_attempts=3,
        routes=ROUTES,
        envelope="data",
        fields=CamberFields(create={}, job={}, list={}, stash={}),
        catalog=CamberCatalog(engines=("BASE",), cpu_sizes={"XSMALL": size}, gpu_sizes={"XSMALL": size}),
    )
    return replace(config, **changes)


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def params(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}


@dataclass
class Reply:
    status: int = 200
    data: object = None
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    declared: int | None = None
    """Content-Length, where it is to differ from what is sent before the connection is cut."""

    @property
    def payload(self) -> bytes:
        return json.dumps(self.data).encode() if self.body is None else self.body


DROP = Reply(status=0)
"""The request is read, and the connection closed without an answer."""


class Server:
    def __init__(self) -> None:
        self.replies: list[Reply | Callable[[Request], Reply]] = []
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b""
                    while size := int(self.rfile.readline(), 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, self.path, dict(self.headers), body)
                server.requests.append(request)
                reply = server.replies.pop(0) if len(server.replies) > 1 else server.replies[0]
                if callable(reply):
                    reply = reply(request)
                if reply.status == 0:
                    self.close_connection = True
                    return
                self.send_response_only(reply.status)
                for name, value in {"Date": self.date_time_string(), **reply.headers}.items():
                    self.send_header(name, value)
                declared = len(reply.payload) if reply.declared is None else reply.declared
                self.send_header("Content-Length", str(declared))
                self.end_headers()
                self.wfile.write(reply.payload)
                if declared != len(reply.payload):
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_DELETE = handle_any

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that went away is part of the test."""

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}/api/cli"
        self._thread = threading.Thread(target=lambda: self._http.serve_forever(0.01))
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def client(server: Server) -> Iterator[CamberClient]:
    with CamberClient(make_config(server.endpoint), backoff_s=0.001) as client:
        yield client


def ok(data: object) -> Reply:
    return Reply(data={"code": 0, "message": "ok", "data": data})


JOB = {
    "job_id": 7,
    "job_status": "PENDING",
    "mount_dir": "rythmiq/a/1",
    "created_at": "2026-01-07T10:00:00Z",
    "started_at": "0001-01-01T00:00:00Z",
    "finished_at": None,
}


# ---- The wire


def test_key_goes_into_the_header_and_nowhere_else(server: Server, client: CamberClient) -> None:
    server.replies = [ok({"username": "ada"})]
    assert client.me() == "ada"
    request = server.requests[0]
    assert (request.method, request.target) == ("GET", "/api/cli/me")
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert KEY not in repr(vars(client))


@pytest.mark.parametrize("key", ["", "a b", "a\n", "schlüssel", "a\r\nX: y"])
def test_key_that_cannot_be_sent_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        CamberClient(make_config("http://127.0.0.1:1", api_key=Secret(key)))
    assert not key or key not in str(refused.value)


def test_key_is_not_sent_after_a_redirect(server: Server, client: CamberClient) -> None:
    other = Server()
    try:
        server.replies = [Reply(status=307, headers={"Location": f"{other.endpoint}/me"})]
        with pytest.raises(BackendUnavailable, match="307"):
            client.me()
        assert other.requests == []
    finally:
        other.close()


def test_netrc_does_not_replace_the_key(
    server: Server, client: CamberClient, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login x password y\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.replies = [ok({"username": "ada"})]
    client.me()
    assert server.requests[0].headers["Authorization"] == f"Bearer {KEY}"


def test_calls_are_counted_and_told(server: Server) -> None:
    told: list[tuple[str, str, float]] = []
    server.replies = [Reply(status=503), ok({"username": "ada"})]
    with CamberClient(make_config(server.endpoint), on_call=lambda *call: told.append(call), backoff_s=0.001) as client:
        client.me()
        assert client.calls == {"me": 2}
    assert [(operation, status) for operation, status, _ in told] == [("me", "5xx"), ("me", "2xx")]
    assert all(seconds >= 0 for _, _, seconds in told)


def test_calls_go_by_the_proxy_that_the_environment_names(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.endpoint.removesuffix("/api/cli"))
    server.replies = [ok({"username": "ada"})]
    with CamberClient(make_config("http://camber.invalid/api/cli")) as client:
        assert client.me() == "ada"
    assert server.requests[0].target == "http://camber.invalid/api/cli/me"


def test_a_create_that_did_not_get_past_the_proxy_is_certain(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with (
            CamberClient(make_config("http://camber.invalid")) as client,
            pytest.raises(BackendUnavailable, match="proxy") as raised,
        ):
            client.create({})
    assert type(raised.value) is BackendUnavailable


def test_threads_share_the_client(server: Server, client: CamberClient) -> None:
    server.replies = [lambda request: ok({**JOB, "job_id": int(request.path.rpartition("/")[2])})]
    got: list[int] = []
    threads = [threading.Thread(target=lambda n=n: got.append(client.get(n).remote_id)) for n in range(1, 41)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(1, 41))
    assert client.calls["get"] == 40


# ---- What answers mean


@pytest.mark.parametrize("envelope", [True, False])
def test_get(server: Server, client: CamberClient, envelope: bool) -> None:
    server.replies = [ok(JOB) if envelope else Reply(data=JOB)]
    job = client.get(7)
    assert (job.remote_id, job.status, job.path) == (7, RemoteStatus.PENDING, "rythmiq/a/1")
    assert (job.created_at, job.started_at, job.finished_at) == (datetime(2026, 1, 7, 10, tzinfo=UTC), None, None)


@pytest.mark.parametrize(
    "data",
    [
        {"code": 0, "data": {"jobs": [JOB], "total": 1}},
        {"code": 0, "data": {"items": [JOB], "other": [1, 2]}},
        {"jobs": [JOB, "junk", {"no": "id"}], "total": 1},
        {"code": 0, "data": [JOB]},
        [JOB],
    ],
)
def test_list_in_any_wrapping(server: Server, client: CamberClient, data: object) -> None:
    server.replies = [Reply(data=data)]
    assert client.list_page(3).jobs == [JOB]
    assert server.requests[0].params == {"page": "3", "size": "100"}


@pytest.mark.parametrize("data", [[], {"jobs": [], "total": 0}, {"jobs": None, "total": 0}, {"code": 0, "data": None}])
def test_empty_list(server: Server, client: CamberClient, data: object) -> None:
    server.replies = [Reply(data=data)]
    assert client.list_page(1).jobs == []


@pytest.mark.parametrize("body", [b"<html>maintenance</html>", b"", b"null", b"{}", b'{"status":null}', b"[" * 100_000])
def test_what_is_no_list_does_not_pass_for_an_empty_one(server: Server, client: CamberClient, body: bytes) -> None:
    server.replies = [Reply(body=body)]
    with pytest.raises(BackendUnavailable):
        client.list_page(1)


VALIDATION = {
    "code": 1,
    "message": "Validation failed",
    "error_details": [{"key": "Job.NodeSize", "field": "node_size", "message": "must be one of\x1b[31m XSMALL"}],
}


FREE_TIER = {"code": 1005, "message": "Job creation is not available on the free tier"}


def test_a_job_that_the_account_may_not_create_says_so_in_cambers_words(server: Server, client: CamberClient) -> None:
    server.replies = [Reply(status=403, data=FREE_TIER)]
    with pytest.raises(SpecRejected, match="not available on the free tier"):
        client.create({})


def test_no_call_is_sent_again_behind_the_clients_back(server: Server) -> None:
    routes = {**make_config(server.endpoint).routes, "create": CamberRoute(method="PUT", path="/jobs")}
    with CamberClient(replace(make_config(server.endpoint), routes=routes)) as client:
        server.replies = [Reply(status=200, data={"code": 0, "data": {"username": "ada"}}), DROP]
        client.me()
        with pytest.raises(CreateUncertain):
            client.create({})
    assert [request.method for request in server.requests] == ["GET", "PUT"]


@pytest.mark.parametrize(
    ("reply", "error", "tries"),
    [
        (Reply(status=401, data={"message": "unauthorized - invalid token"}), BackendRefusedKey, 1),
        (Reply(status=403), BackendRefusedKey, 1),
        (Reply(status=403, data=FREE_TIER), SpecRejected, 1),
        (Reply(status=400, data={"code": 10, "message": "agent gone"}), NotFound, 1),
        (Reply(status=500, data={"code": 2, "message": "User not found"}), BackendRefusedKey, 1),
        (Reply(status=404, data={"message": "Not Found"}), NotFound, 1),
        (Reply(status=500, data={"code": 2, "message": "job does not exist"}), NotFound, 1),
        (Reply(status=200, data={"code": 2, "message": "job not found"}), NotFound, 1),
        (Reply(status=400, data=VALIDATION), SpecRejected, 1),
        (Reply(status=400, data={"message": "Unmarshal type error: expected=int"}), SpecRejected, 1),
        (Reply(status=500, data={"code": 2, "message": "internal"}), BackendUnavailable, 3),
        (Reply(status=502, body=b"<html>bad gateway</html>"), BackendUnavailable, 3),
        (Reply(status=301, headers={"Location": "/x"}), BackendUnavailable, 3),
        (Reply(status=429), BackendBusy, 3),
        (Reply(status=429, headers={"Retry-After": "0.01"}), BackendBusy, 3),
        (Reply(status=429, headers={"Retry-After": "600"}), BackendBusy, 1),
        (Reply(status=200, body=b"not json"), BackendUnavailable, 1),
        (Reply(status=200, data={**JOB, "job_id": 8}), BackendUnavailable, 1),
        (DROP, BackendUnavailable, 3),
        (Reply(status=200, body=b"{", declared=100), BackendUnavailable, 3),
    ],
)
def test_error_of_an_idempotent_call(
    server: Server, client: CamberClient, reply: Reply, error: type[RythmiqError], tries: int
) -> None:
    server.replies = [reply]
    with pytest.raises(error) as raised:
        client.get(7)
    assert type(raised.value) is error
    assert len(server.requests) == tries
    assert pickle.loads(pickle.dumps(raised.value)).message == raised.value.message


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply(status=401, data={"message": "unauthorized"}), BackendRefusedKey),
        (Reply(status=400, data={"code": 2, "message": "user not found"}), BackendRefusedKey),
        (Reply(status=403, data=FREE_TIER), SpecRejected),
        (Reply(status=403, data={"message": "forbidden"}), BackendRefusedKey),
        (Reply(status=404, data={"code": 10, "message": "agent not found"}), CreateUncertain),
        (Reply(status=429, headers={"Retry-After": "1"}), BackendBusy),
        (Reply(status=400, data=VALIDATION), SpecRejected),
        (Reply(status=400, data={"message": "Unmarshal type error: expected=int, field=num_nodes"}), SpecRejected),
        (Reply(status=404, data={"message": "Not Found"}), BackendUnavailable),
        (Reply(status=405, data={"message": "Method Not Allowed"}), BackendUnavailable),
        (Reply(status=500, data={"code": 2, "message": "failed"}), CreateUncertain),
        (Reply(status=400, data={"code": 2, "message": "failed"}), CreateUncertain),
        (Reply(status=404, data={"code": 2, "message": "mount not found"}), CreateUncertain),
        (Reply(status=503, headers={"Retry-After": "1"}), CreateUncertain),
        (Reply(status=400, body=b"<html>"), CreateUncertain),
        (Reply(status=303, headers={"Location": "/jobs/1"}), CreateUncertain),
        (Reply(status=200, data={"code": 0, "message": "ok", "data": {}}), CreateUncertain),
        (Reply(status=200, data={"code": 2, "message": "failed"}), CreateUncertain),
        (Reply(status=200, body=b"not json"), CreateUncertain),
        (Reply(status=200, body=b'{"job_id": 7', declared=100), CreateUncertain),
        (DROP, CreateUncertain),
    ],
)
def test_create_is_never_repeated(
    server: Server, client: CamberClient, reply: Reply, error: type[RythmiqError]
) -> None:
    server.replies = [reply]
    with pytest.raises(error) as raised:
        client.create({"command": "bash run.sh"})
    assert type(raised.value) is error
    assert len(server.requests) == 1


def test_create(server: Server, client: CamberClient) -> None:
    server.replies = [Reply(status=201, data={"code": 0, "data": {"job": {**JOB, "job_status": "SUBMITTED"}}})]
    assert client.create({"command": "bash run.sh"}).remote_id == 7
    assert json.loads(server.requests[0].body) == {"command": "bash run.sh"}
    server.replies = [ok({**JOB, "job_status": "QUEUED_SOMEHOW"})]
    assert client.create({}).status is RemoteStatus.UNKNOWN


def test_slow_create_is_uncertain_and_a_slow_get_is_an_outage(server: Server) -> None:
    release = threading.Event()

    def slow(_: Request) -> Reply:
        release.wait(10)
        return ok(JOB)

    server.replies = [slow]
    config = make_config(server.endpoint, create_timeout_s=0.05, read_timeout_s=0.05, call_attempts=2)
    with CamberClient(config, backoff_s=0.001) as client:
        with pytest.raises(CreateUncertain, match="no answer in time"):
            client.create({})
        with pytest.raises(BackendUnavailable, match="no answer in time"):
            client.get(7)
        assert client.calls == {"create": 1, "get": 2}
    release.set()


def test_create_that_reached_nobody_is_certain() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}"
        for endpoint, words in ((closed, "no connection"), ("http://name.invalid", "does not resolve")):
            with (
                CamberClient(make_config(endpoint), backoff_s=0.001) as client,
                pytest.raises(BackendUnavailable, match=words) as raised,
            ):
                client.create({})
            assert type(raised.value) is BackendUnavailable


def test_server_that_speaks_no_tls_gets_no_key() -> None:
    seen: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                seen.append(connection.recv(10_000))
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        endpoint = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with CamberClient(make_config(endpoint, call_attempts=1)) as client, pytest.raises(BackendUnavailable):
            client.me()
        thread.join()
    assert KEY.encode() not in seen[0]


def test_messages_are_cut_cleaned_and_without_the_key(server: Server, client: CamberClient) -> None:
    server.replies = [Reply(status=400, data=VALIDATION)]
    with pytest.raises(SpecRejected, match=r"node_size: must be one of \[31m XSMALL") as raised:
        client.create({})
    assert "\x1b" not in str(raised.value)
    server.replies = [Reply(status=401, data={"message": f"token {KEY}\n" + "x" * 9000})]
    with pytest.raises(BackendRefusedKey) as refused:
        client.get(1)
    assert KEY not in repr(refused.value)
    assert len(str(refused.value)) < 600


def test_global_calls_blame_the_endpoint(server: Server, client: CamberClient) -> None:
    server.replies = [Reply(status=404, data={"message": "Not Found"})]
    for call in (client.me, lambda: client.list_page(1)):
        with pytest.raises(BackendUnavailable, match="endpoint"):
            call()
    for data in ({"username": ""}, {"username": "a/b"}, {"username": "a\n"}, {"username": 3}, "x"):
        server.replies = [ok(data)]
        with pytest.raises(BackendUnavailable):
            client.me()


def test_retry_after() -> None:
    def asked(value: str) -> float | None:
        return Answer(429, {"retry-after": value}, b"").retry_after_s

    assert asked("7") == 7
    assert asked("-1") == asked("nan") == 0
    assert asked("inf") == 3600
    assert asked("soon") is None
    in_a_minute = asked(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert in_a_minute is not None
    assert 50 < in_a_minute <= 60
    assert asked("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for odd in (
        "",
        "9" * 5000,
        "Wed, 21 Oct 99999 07:28:00 GMT",
        "Mon, 01 Jan 0001 00:00:00 +2359",
        "Wed, 21 Oct",
        ",",
    ):
        assert asked(odd) in (None, 0.0, 3600.0)
    assert Answer(429, {}, b"").retry_after_s is None


def test_times_and_items_of_junk() -> None:
    assert (
        time_of("2026-01-07T10:00:00") == time_of("2026-01-07T12:00:00+02:00") == datetime(2026, 1, 7, 10, tzinfo=UTC)
    )
    odd = (
        "",
        None,
        3,
        1e400,
        "0001-01-01T00:00:00Z",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "x",
        [1],
    )
    assert [time_of(value) for value in odd] == [None] * len(odd)
    assert items_of(Answer(200, {}, b'{"a":[{"x":1}],"b":[{"job_id":1}]}'), "job_id") == [{"job_id": 1}]


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *((7, 7), ("7", 7), (7.0, 7), (2**63 - 1, 2**63 - 1)),
        *((0, None), (-7, None), (7.5, None), (True, None), (2**63, None), (1e300, None), (float("nan"), None)),
        *(("9" * 5000, None), ("²", None), ("", None), (None, None), ([7], None), ({"job_id": 7}, None)),
    ],
)
def test_a_job_id_is_a_whole_number_however_it_is_written(value: object, number: int | None) -> None:
    assert job_id_of({"job_id": value}) == number


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"job_status": "RUNNING", "status": "ok"}, RemoteStatus.RUNNING),
        ({"status": "completed"}, RemoteStatus.COMPLETED),
        ({"job_status": None, "status": "FAILED"}, RemoteStatus.FAILED),
        ({"job_status": ["RUNNING"]}, RemoteStatus.UNKNOWN),
        ({"job_status": "x" * 100_000}, RemoteStatus.UNKNOWN),
        ({}, RemoteStatus.UNKNOWN),
    ],
)
def test_a_status_is_read_under_either_name(fields: dict[str, object], status: RemoteStatus) -> None:
    found = job_of({"job_id": 7, **fields})
    assert found is not None
    assert found.status is status


JUNK = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)),
        st.sampled_from(
            [10**400, "9" * 5000, "\ud800", "9999-12-31T23:59:59-23:59", "stash://", "RUNNING", 1005, 2, 10]
        ),
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*JOB, "code", "message", "data", "jobs", "total", "status", "username"]), inner
        )
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(data=JUNK, status=st.sampled_from([200, 201, 204, 301, 400, 401, 403, 404, 429, 500, 503]))
def test_no_answer_raises_anything_but_our_errors(data: Any, status: int) -> None:
    answer = Answer(status, {}, json.dumps(data).encode())
    job_of(answer.data)
    items_of(answer, "job_id")
    total_of(answer)
    assert isinstance(answer.accepted, bool)
    for error in (error_of(answer, "get"), create_error_of(answer)):
        assert len(error.message) < 600
        error.message.encode()  # It goes into Postgres.


@pytest.mark.parametrize(
    ("reply", "taken"),
    [
        (Reply(status=204, body=b""), True),
        (ok({}), True),
        (Reply(status=404, data={"message": "Not Found"}), False),
        (Reply(status=405, data={"message": "Method Not Allowed"}), False),
        (Reply(status=400, data={"code": 2, "message": "job is already completed"}), False),
    ],
)
def test_cancel(server: Server, client: CamberClient, reply: Reply, taken: bool) -> None:
    server.replies = [reply]
    assert client.cancel(7) is taken
    assert [(request.method, request.path) for request in server.requests] == [("DELETE", "/api/cli/jobs/7")]


def test_cancel_that_could_not_be_asked_raises(server: Server, client: CamberClient) -> None:
    for reply, error in ((Reply(status=503), BackendUnavailable), (Reply(status=401), BackendRefusedKey)):
        server.replies = [reply]
        with pytest.raises(error):
            client.cancel(7)


# ---- The stash


def test_names_of_any_bytes_reach_the_server(server: Server, client: CamberClient) -> None:
    server.replies = [ok(None)]
    for name in ("a b+c&d=e?f#g%20", "日本/ü", "caf\udce9", "new\nline", "*'()"):
        client.stash_write(f"stash://ada/{name}", b"x")
        target = server.requests[-1].target
        raw = unquote_to_bytes(target.partition("?path=")[2])
        assert raw == f"stash://ada/{name}".encode(errors="surrogateescape")


@contextmanager
def opened(stream: Any) -> Iterator[BinaryIO]:
    yield stream


class NoSeek(io.BytesIO):
    def seekable(self) -> bool:
        return False


@pytest.mark.parametrize("size", [0, 10, 1_000_000])
@pytest.mark.parametrize("kind", [io.BytesIO, NoSeek])
def test_streamed_upload_is_whole_also_after_a_fault(
    server: Server, client: CamberClient, size: int, kind: type[io.BytesIO]
) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    server.replies = [DROP, Reply(status=503), ok(None)]
    client.stash_stream("stash://ada/x", lambda: opened(kind(data)))
    assert [request.body for request in server.requests] == [data] * 3
    known = kind is io.BytesIO or size < 100
    assert ("Content-Length" in server.requests[-1].headers) is known


def test_fault_of_the_source_is_not_the_connections(server: Server, client: CamberClient) -> None:
    class Broken(NoSeek):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            if not data:
                raise ConnectionResetError
            return data

    server.replies = [ok(None)]
    with pytest.raises(InputUnreadable):
        client.stash_stream("stash://ada/x", lambda: opened(Broken(b"x" * 500_000)))
    assert client.calls["stash_write"] == 1


DATA = bytes(range(256)) * 4096


def ranged(request: Request, *, cut: int | None = None, honour: bool = True, data: bytes = DATA) -> Reply:
    asked = request.headers.get("Range")
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and honour else 0
    if start >= len(data) and asked and honour:
        return Reply(status=416, body=b"")
    body = data[start:]
    headers = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if asked and honour else {}
    status = 206 if headers else 200
    if cut is not None and cut < len(body):
        return Reply(status=status, body=body[:cut], headers=headers, declared=len(body))
    return Reply(status=status, body=body, headers=headers)


@pytest.mark.parametrize("honour", [True, False])
@pytest.mark.parametrize("start", [0, 1, 300_000, len(DATA) - 1])
def test_cut_download_is_one_unbroken_stream(server: Server, client: CamberClient, start: int, honour: bool) -> None:
    cuts = iter((100_000, 700_000, 0, 800_000))
    server.replies = [lambda request: ranged(request, cut=next(cuts, None), honour=honour)]
    with client.stash_open("stash://ada/x", start) as chunks:
        assert b"".join(chunks) == DATA[start:]


def test_download_from_its_very_end_is_empty(server: Server, client: CamberClient) -> None:
    server.replies = [ranged]
    with client.stash_open("stash://ada/x", len(DATA)) as chunks:
        assert list(chunks) == []


def test_download_that_never_gets_on_ends(server: Server, client: CamberClient) -> None:
    server.replies = [lambda request: ranged(request, cut=0)]
    with client.stash_open("stash://ada/x") as chunks, pytest.raises(BackendUnavailable, match="3 times"):
        list(chunks)
    assert client.calls["stash_read"] == 3


def test_file_that_changes_between_two_parts_is_noticed(server: Server, client: CamberClient) -> None:
    replies = iter((lambda r: ranged(r, cut=1000), lambda r: ranged(r, data=DATA + b"more")))
    server.replies = [lambda request: next(replies)(request)]
    with client.stash_open("stash://ada/x") as chunks, pytest.raises(ArtifactCorrupt):
        list(chunks)


def test_wrong_part_is_noticed(server: Server, client: CamberClient) -> None:
    server.replies = [Reply(status=206, body=b"x", headers={"Content-Range": "bytes 9-9/10"})]
    with client.stash_open("stash://ada/x", 5) as chunks, pytest.raises(BackendUnavailable, match="a different part"):
        list(chunks)


def test_missing_file_is_not_found_when_it_is_opened(server: Server, client: CamberClient) -> None:
    server.replies = [Reply(status=500, data={"code": 2, "message": "file not found"})]
    with pytest.raises(NotFound), client.stash_open("stash://ada/x"):
        pass


@pytest.mark.parametrize(
    "reply",
    [
        Reply(status=400, data={"code": 2, "message": "job status is not completed, failed, or running"}),
        Reply(status=500, data={"code": 15, "message": "credentials"}),
        Reply(status=404, data={"message": "Not Found"}),
    ],
)
def test_refused_log_is_not_found(server: Server, client: CamberClient, reply: Reply) -> None:
    server.replies = [reply]
    with pytest.raises(NotFound), client.open_log(7):
        pass


def test_file_that_looks_like_an_error_is_a_file(server: Server, client: CamberClient) -> None:
    server.replies = [Reply(data={"code": 2, "message": "user not found"})]
    assert client.stash_read("stash://ada/x") == b'{"code": 2, "message": "user not found"}'


def test_connection_goes_back_to_the_pool(server: Server, client: CamberClient) -> None:
    ports: set[int] = set()
    server.replies = [ranged]
    original = socket.socket.connect_ex

    def connect(self: socket.socket, address: Any) -> int:
        code = original(self, address)
        ports.add(self.getsockname()[1])
        return code

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect_ex", connect)
        for _ in range(5):
            client.stash_read("stash://ada/x")
            with client.stash_open("stash://ada/x") as chunks:
                assert b"".join(chunks) == DATA
    assert len(ports) == 1


# ---- The poll of the list


START = datetime(2026, 1, 1, tzinfo=UTC)


class Listing:
    """A list of jobs, newest first, as the server pages it."""

    def __init__(self, ids: list[int], *, page: int = 10, total: bool = True, aged: bool = True) -> None:
        self.ids = sorted(ids, reverse=True)
        self.page, self.total, self.aged = page, total, aged
        self.hidden: set[int] = set()
        self.odd: set[int] = set()
        """Answered with a fault when they are asked for."""
        self.away = False
        """Only the list answers."""
        self.headers = {"Date": format_datetime(START + timedelta(minutes=100), usegmt=True)}

    def job(self, number: int) -> dict[str, Any]:
        created = START + timedelta(minutes=number)
        job = {"job_id": number, "job_status": "RUNNING", "mount_dir": f"/rythmiq/{number}/1/"}
        return {**job, "created_at": created.isoformat()} if self.aged else job

    def __call__(self, request: Request) -> Reply:
        if request.path.endswith("/me"):
            return Reply(status=503) if self.away else ok({"username": "owner"})
        if "page" not in request.params:
            number = int(request.path.rpartition("/")[2])
            if number in self.odd:
                return Reply(status=500, data={"code": 2, "message": "the job's record is malformed"})
            if number in self.ids:
                return ok(self.job(number))
            return Reply(status=500, data={"code": 2, "message": "job not found"})
        first = (int(request.params["page"]) - 1) * self.page
        shown = [self.job(n) for n in self.ids[first : first + self.page] if n not in self.hidden]
        answer = {"jobs": shown, "total": len(self.ids)} if self.total else {"jobs": shown}
        return Reply(data={"code": 0, "message": "ok", "data": answer}, headers=self.headers)


@pytest.fixture
def poll(server: Server) -> Iterator[Callable[..., tuple[list[int], dict[str, int]]]]:
    backend = CamberExecutionBackend(make_config(server.endpoint, page_size=10))

    def polled(
        listing: Listing, waiting: Any = (), searched: Any = (), age_s: float = 1e9, paths: Any = ()
    ) -> tuple[list[int], dict[str, int]]:
        server.replies = [listing]
        backend.client.calls.clear()
        pages = backend.watch(waiting, searched, age_s, paths=paths)
        found = [item.remote_id for page in pages for item in page]
        return found, dict(backend.client.calls)

    yield polled
    backend.close()


Poll = Callable[..., tuple[list[int], dict[str, int]]]
ALL = list(range(1, 101))


def test_poll_costs_pages_not_jobs(poll: Poll) -> None:
    assert poll(Listing(ALL), set(ALL)) == (ALL[::-1], {"list": 10})
    assert poll(Listing(ALL), {100, 95, 91}) == ([100, 95, 91], {"list": 1})
    assert poll(Listing(ALL), set(range(61, 101))) == (list(range(100, 60, -1)), {"list": 4})
    assert poll(Listing(ALL)) == ([], {"list": 1})


def test_stragglers_are_asked_for_when_that_is_cheaper(poll: Poll) -> None:
    assert poll(Listing(ALL), {5, 98}) == ([98, 5], {"list": 2, "get": 1})
    assert poll(Listing(ALL), {1, 2, 3}) == ([1, 2, 3], {"list": 3, "get": 3})


def test_job_that_is_gone_is_not_reported(poll: Poll) -> None:
    assert poll(Listing(ALL), {100, 1000}) == ([100], {"list": 1, "get": 1})
    assert poll(Listing([]), {1, 2}) == ([], {"list": 1, "get": 2})


def test_job_that_the_list_does_not_show_yet_is_found(poll: Poll) -> None:
    listing = Listing(ALL)
    listing.hidden = {97, 99}
    assert poll(listing, {100, 99, 98, 97, 96}) == ([100, 98, 96, 97, 99], {"list": 1, "get": 2})


def test_path_is_found_with_the_age_as_the_limit(poll: Poll) -> None:
    assert poll(Listing(ALL), (), {"rythmiq/85/1"}) == ([85], {"list": 2})
    age_s = (100 - 75) * 60.0  # By the server's own clock, which shows minute 100.
    assert poll(Listing(ALL), (), {"rythmiq/none/1"}, age_s) == ([], {"list": 3})
    assert poll(Listing(ALL), {100}, {"rythmiq/none/1"}, age_s) == ([100], {"list": 3})
    # One that lies behind the limit by no more than the clocks may differ is found.
    assert poll(Listing(ALL), (), {"rythmiq/74/1"}, age_s)[0] == [74]


@pytest.mark.parametrize("total", [True, False])
def test_path_that_is_nowhere_is_looked_for_to_the_end(poll: Poll, total: bool) -> None:
    listing = Listing(ALL, total=total, aged=False)
    assert poll(listing, (), {"rythmiq/none/1"}, 0.0) == ([], {"list": 11})


def test_ids_and_paths_of_one_job_are_reported_once(poll: Poll) -> None:
    assert poll(Listing(ALL), {50}, {"rythmiq/50/1", "/rythmiq/49/1/"})[0] == [50, 49]


def test_list_that_moves_while_it_is_read_repeats_nothing(poll: Poll) -> None:
    class Growing(Listing):
        def __call__(self, request: Request) -> Reply:
            reply = super().__call__(request)
            self.ids = [max(self.ids) + n for n in (3, 2, 1)] + self.ids
            return reply

    found, _ = poll(Growing(ALL), set(ALL))
    assert found == ALL[::-1]


def test_list_that_grows_as_fast_as_it_is_read_is_read_on(poll: Poll) -> None:
    class Burst(Listing):
        """Gets a page of new jobs after each of the first pages."""

        def __call__(self, request: Request) -> Reply:
            reply = super().__call__(request)
            if len(self.ids) < 200:
                self.ids = [max(self.ids) + n for n in range(self.page, 0, -1)] + self.ids
            return reply

    found, calls = poll(Burst(ALL), set(ALL))
    assert found == ALL[::-1]
    assert calls == {"list": 20}


def test_long_and_slow_list_is_read_several_pages_at_once(poll: Poll, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rythmiq_ray.backends.camber.backend._SLOW_LIST_S", 0.0)
    asked, together = itertools.count(1), threading.Event()

    class Slow(Listing):
        """Answers no call for a later page before it has three of them."""

        def __call__(self, request: Request) -> Reply:
            if request.params.get("page", "1") != "1":
                if next(asked) == 3:
                    together.set()
                assert together.wait(10)
            return super().__call__(request)

    assert poll(Slow(ALL), set(ALL)) == (ALL[::-1], {"list": 10})


def test_server_with_pages_smaller_than_asked_for(poll: Poll) -> None:
    assert poll(Listing(ALL, page=7, total=False), set(ALL))[0] == ALL[::-1]


class Stuck(Listing):
    """Gives its first page whatever is asked for."""

    def __call__(self, request: Request) -> Reply:
        if "page" in request.params:
            request.target = request.target.replace(f"page={request.params['page']}", "page=1")
        return super().__call__(request)


def test_server_that_does_not_page_ends_too(poll: Poll) -> None:
    found, calls = poll(Stuck(ALL, total=False), {95, 20})
    assert found == [95, 20]
    assert calls["list"] < 10


def test_a_list_that_breaks_off_proves_nothing_about_a_path(poll: Poll) -> None:
    class Hiccup(Listing):
        def __call__(self, request: Request) -> Reply:
            if request.params.get("page") == "3":
                return ok({"jobs": [], "total": len(self.ids)})
            return super().__call__(request)

    for listing in (Hiccup(ALL, aged=False), Stuck(ALL, total=False, aged=False), Stuck(ALL, aged=False)):
        with pytest.raises(BackendUnavailable, match="ended early"):
            poll(listing, (), {"rythmiq/none/1"})
    assert poll(Stuck(ALL, page=200, total=False, aged=False), (), {"rythmiq/none/1"})[0] == [], "it gave all at once"


def test_what_was_asked_for_one_by_one_is_told_though_the_next_call_is_refused(server: Server) -> None:
    listing = Listing(ALL)
    listing.hidden = set(ALL)
    answered: list[int] = []

    def limited(request: Request) -> Reply:
        if "page" not in request.params:
            if len(answered) % 30 == 29:
                answered.append(0)
                return Reply(status=429, headers={"Retry-After": "60"})
            answered.append(1)
        return listing(request)

    server.replies = [limited]
    backend = CamberExecutionBackend(make_config(server.endpoint, page_size=10))
    seen: set[int] = set()
    for _ in range(4):
        with suppress(BackendBusy):
            for page in backend.watch(set(ALL), (), 0.0):
                seen.update(item.remote_id for item in page)
    assert seen == set(ALL), "the next look begins where the last one ended"
    backend.close()


def test_poll_is_lazy(server: Server) -> None:
    server.replies = [Listing(ALL)]
    backend = CamberExecutionBackend(make_config(server.endpoint, page_size=10))
    pages = backend.watch(set(ALL), (), 0.0)
    assert [item.remote_id for item in next(pages)] == list(range(100, 90, -1))
    assert backend.client.calls["list"] == 1, "what a page told is there before the next one is asked for"
    pages.close()  # type: ignore[attr-defined]
    backend.close()


@pytest.mark.parametrize(
    "date", ["", "yesterday", "Mon, 01 Jan 0001 00:00:00 GMT", "Thu, 01 Jan 99999999 00:00:00 GMT", "\x7f" * 50]
)
def test_a_server_that_does_not_tell_its_time_is_read_to_the_end(poll: Poll, date: str) -> None:
    listing = Listing(ALL)
    listing.headers = {"Date": date}
    assert poll(listing, (), {"rythmiq/none/1"}, 60.0) == ([], {"list": 11})


def test_what_lies_on_a_path_of_ours_is_told_where_it_is_come_upon(poll: Poll) -> None:
    assert poll(Listing(ALL), {99}, paths={"rythmiq/99/1", "rythmiq/98/1", "rythmiq/7/1"}) == ([99, 98], {"list": 1})


@pytest.mark.parametrize(
    "odd",
    {
        "digits": b"9" * 5000,
        "digits below 0": b"-" + b"9" * 5000,
        "nested lists": b"[" * 5000 + b"]" * 5000,
        "nested objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
        "no UTF-8": b'"\xff\xfe"',
        "control characters": b'"a\x01\nb"',
        "NaN": b"NaN",
        "1e999": b"1e999",
        "half a character": b'"\\ud800"',
        "text with a bracket": b'"[" ',
    }.values(),
)
def test_what_is_odd_in_one_entry_of_a_list_hides_none_of_the_others(server: Server, odd: bytes) -> None:
    job = b'{"job_id":%d,"job_status":"RUNNING","mount_dir":"/rythmiq/%d/1/"%b}'
    entries = b",".join([job % (3, 3, b""), job % (2, 2, b',"odd":' + odd), job % (1, 1, b"")])
    server.replies = [Reply(body=b'{"code":0,"data":{"jobs":[%b],"total":3}}' % entries)]
    backend = CamberExecutionBackend(make_config(server.endpoint))
    found = [item.remote_id for page in backend.watch({1, 2, 3}, (), 0.0) for item in page]
    assert found == [3, 2, 1]
    backend.close()


def test_an_odd_answer_about_one_job_is_that_jobs_and_the_others_are_told(server: Server) -> None:
    listing = Listing(ALL)
    listing.hidden, listing.odd = {95, 96, 97}, {96}
    server.replies = [listing]
    backend = CamberExecutionBackend(make_config(server.endpoint, page_size=10))
    found = [item for page in backend.watch(set(range(93, 101)), (), 0.0) for item in page]
    assert [item.remote_id for item in found if isinstance(item, Unclear)] == [96]
    assert sorted(item.remote_id for item in found if isinstance(item, RemoteJob)) == [93, 94, 95, 97, 98, 99, 100]
    listing.hidden = listing.odd = {93, 94, 95, 96, 97}
    found = [item for page in backend.watch(set(range(93, 101)), (), 0.0) for item in page]
    assert sorted(item.remote_id for item in found if isinstance(item, Unclear)) == [93, 94, 95, 96, 97]
    listing.away = True
    with pytest.raises(BackendUnavailable):
        list(backend.watch(set(range(93, 101)), (), 0.0))
    backend.close()


def test_retry_waits_as_long_as_the_server_asks(server: Server, client: CamberClient) -> None:
    server.replies = [Reply(status=429, headers={"Retry-After": "0.2"}), ok(JOB)]
    began = time.monotonic()
    client.get(7)
    assert time.monotonic() - began >= 0.2
