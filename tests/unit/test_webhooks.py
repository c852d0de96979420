"""A signed POST: what the headers say, and where it may go."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from rythmiq_ray import webhooks
from rythmiq_ray.secret import Secret
from rythmiq_ray.webhooks import Webhooks

SECRET = "whsec_c2VjcmV0IG9mIGEgdGVzdA=="
LOOPBACK = ["127.0.0.0/8"]
BODY = '{"type": "job.ended", "data": {"name": "Größe"}}'


class Receiver(ThreadingHTTPServer):
    """Keeps what it gets, and answers with ``status``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 204
        self.location: str | None = None
        self.got: list[tuple[str, dict[str, str], bytes]] = []

    def url(self, path: str = "/told") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def webhooks_to(*networks: str, timeout_s: float = 10.0) -> Webhooks:
    return Webhooks(Secret(SECRET), timeout_s=timeout_s, private_networks=networks)


def test_a_library_of_standard_webhooks_takes_what_is_sent(receiver: Receiver) -> None:
    assert webhooks_to(*LOOPBACK).send("msg_1", receiver.url("/told?x=1"), BODY).error is None
    ((path, headers, body),) = receiver.got
    assert path == "/told?x=1"
    assert headers["content-type"] == "application/json"
    assert headers["webhook-id"] == "msg_1"
    assert Webhook(SECRET).verify(body, headers)["data"]["name"] == "Größe"
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body.replace(b"ended", b"began"), headers)
    sent_at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    assert abs((datetime.now(UTC) - sent_at).total_seconds()) < 60


def test_a_private_address_is_never_told(receiver: Receiver) -> None:
    for networks in ((), ("10.0.0.0/8",)):
        answer = webhooks_to(*networks).send("msg_1", receiver.url(), BODY)
        assert answer.final
        assert "not public" in str(answer.error)
    assert receiver.got == []


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "172.20.0.1", "0.0.0.0", "::1", "fe80::1", "fd00::1",
     "::ffff:10.0.0.1", "100.64.0.1", "224.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::",
     "::127.0.0.1", "fec0::1", "168.63.129.16"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not webhooks_to()._may_reach(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111"])
def test_public_addresses(address: str) -> None:
    assert webhooks_to()._may_reach(address)


def test_a_name_that_stands_for_a_private_address_is_not_told(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = receiver.server_address[1]
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_more: found)
    answer = webhooks_to().send("msg_1", f"http://public.example:{port}/", BODY)
    assert "not public" in str(answer.error)
    assert receiver.got == []


@pytest.mark.parametrize(("status", "final"), [(500, False), (404, False), (410, True), (302, False)])
def test_what_is_no_2xx_is_tried_again_but_for_410(receiver: Receiver, status: int, final: bool) -> None:
    receiver.status = status
    receiver.location = receiver.url("/elsewhere")
    answer = webhooks_to(*LOOPBACK).send("msg_1", receiver.url(), BODY)
    assert (answer.error, answer.final) == (f"the receiver answered {status}", final)
    assert [path for path, _, _ in receiver.got] == ["/told"], "a redirect was followed"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "http://", "http://[::1", "no url", "http://a b/"])
def test_what_is_no_url_is_given_up(url: str) -> None:
    assert webhooks_to(*LOOPBACK).send("msg_1", url, BODY).final


def test_a_receiver_that_trickles_costs_the_time_out_and_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def trickle() -> None:
            connection, _ = server.accept()
            with connection:
                while not stop.wait(0.02):
                    try:
                        connection.sendall(b"H")
                    except OSError:
                        return

        threading.Thread(target=trickle, daemon=True).start()
        answer = webhooks_to(*LOOPBACK, timeout_s=0.3).send("m", f"http://127.0.0.1:{server.getsockname()[1]}/", BODY)
        stop.set()
    assert answer.error
    assert not answer.final


def test_nobody_there_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not webhooks_to(*LOOPBACK).send("m", f"http://127.0.0.1:{port}/", BODY).final


def test_a_secret_that_is_no_base64_is_refused() -> None:
    with pytest.raises(ValueError, match="base64"):
        Webhooks(Secret("whsec_?"), timeout_s=1.0)
    for short in ("", "x", "whsec_", "whsec_QQ==", "any text"):
        with pytest.raises(ValueError, match="use at least 16"):
            Webhooks(Secret(short), timeout_s=1.0)
    assert webhooks.Webhooks(Secret("any text of enough bytes"), timeout_s=1.0)


@pytest.mark.parametrize("host", ["2852039166", "0xa9fea9fe", "169.254.43518", "10.0.0.5.", "::1"])
def test_a_proxy_is_not_asked_for_a_private_address_however_it_is_written(host: str) -> None:
    assert not webhooks_to()._may_be_asked_for(host)


def test_what_is_wrong_with_a_proxy_gives_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "nonsense://proxy")
    monkeypatch.setenv("https_proxy", "nonsense://proxy")
    answer = webhooks_to().send("m", "https://example.org/", BODY)
    assert answer.error
    assert not answer.final
