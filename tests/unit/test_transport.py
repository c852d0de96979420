"""How calls travel, against a server that sends exactly the bytes it is told to, when it is told to."""

from __future__ import annotations

import gzip
import io
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from test_camber_client import make_config

from rythmiq_ray import http_adapter as adapter
from rythmiq_ray.backends.camber.client import CamberClient
from rythmiq_ray.backends.camber.transport import Request, Transport, Unanswered
from rythmiq_ray.errors import BackendUnavailable, CreateUncertain, RythmiqError
from rythmiq_ray.secret import Secret

KEY = "canary0123456789abcdef0123456789abcdef01"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SLACK_S = 1.5
"""How much later than its deadline a call may end on a busy machine."""

Answer = Callable[[socket.socket, bytes], None]


class Wire:
    """Answers each request with the next of its answers, the last one again and again, and then keeps listening."""

    def __init__(self, *answers: bytes | Answer, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self._tls = tls
        self._listener = socket.create_server((host, 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def close(self) -> None:
        for sock in (self._listener, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                self._open.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError, EOFError), closing(sock):
            if self._tls is not None:
                sock = self._tls.wrap_socket(sock, server_side=True)
            while True:
                request = self._read(sock)
                self.requests.append(request)
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if callable(answer):
                    answer(sock, request)
                else:
                    sock.sendall(answer)

    def _read(self, sock: socket.socket) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            byte = sock.recv(1)
            if not byte:
                raise EOFError
            head += byte
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                left = int(line.partition(b":")[2])
                while left and (data := sock.recv(left)):
                    left -= len(data)
        return head


@contextmanager
def against(*answers: bytes | Answer, **options: Any) -> Iterator[tuple[Transport, Wire]]:
    wire = Wire(*answers, **options)
    transport = Transport(wire.url, lambda: Secret(KEY), 10)
    try:
        yield transport, wire
    finally:
        transport.close()
        wire.close()


def get(**changes: Any) -> Request:
    return Request(**{"method": "GET", "path": "/x", "connect_timeout_s": 5.0, "timeout_s": 20.0, **changes})


def drop(sock: socket.socket, _: bytes) -> None:
    sock.close()


def slowly(answer: bytes, pause_s: float = 0.02) -> Answer:
    def trickle(sock: socket.socket, _: bytes) -> None:
        for index in range(len(answer)):
            sock.sendall(answer[index : index + 1])
            time.sleep(pause_s)

    return trickle


# ---- Deadlines


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + b"x" * 9999,
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 9999,
        b"HTTP/1.1 200 " + b"O" * 9999,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 2000,
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(range(256)) * 40),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 500,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 9999,
    ],
)
@pytest.mark.parametrize("fresh", [True, False])
def test_an_answer_that_trickles_in_holds_its_caller_no_longer_than_the_deadline(answer: bytes, fresh: bool) -> None:
    with against(slowly(answer)) as (transport, _):
        began = time.monotonic()
        with pytest.raises(Unanswered, match="no answer in time") as raised:
            transport.call(get(timeout_s=0.4, fresh=fresh))
        assert time.monotonic() - began < 0.4 + SLACK_S
        assert not raised.value.never_sent


def reads_nothing(wire: Wire) -> threading.Event:
    """Lets it read nothing until the event is set."""
    release = threading.Event()

    def read(_sock: socket.socket) -> bytes:
        release.wait(20)
        return b""

    wire._read = read  # type: ignore[method-assign]
    return release


def test_a_server_that_does_not_read_holds_its_caller_no_longer_either() -> None:
    wire = Wire(OK)
    release = reads_nothing(wire)
    with closing(wire), closing(Transport(wire.url, lambda: Secret(KEY), 1)) as transport:
        began = time.monotonic()
        with pytest.raises(Unanswered, match="no answer in time"):
            transport.call(get(method="PUT", data=b"x" * 50_000_000, timeout_s=0.4))
        assert time.monotonic() - began < 0.4 + SLACK_S
        release.set()


def test_a_resolver_that_hangs_holds_its_caller_no_longer_either(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: release.wait(20) and [])
    with closing(Transport("http://camber.example", lambda: Secret(KEY), 1)) as transport:
        began = time.monotonic()
        with pytest.raises(Unanswered, match="no connection in time") as raised:
            transport.call(get(connect_timeout_s=0.2))
        assert time.monotonic() - began < 0.2 + SLACK_S
        assert raised.value.never_sent
    release.set()


def test_a_handshake_that_never_ends_is_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with closing(Transport(url, lambda: Secret(KEY), 1)) as transport:
            with pytest.raises(Unanswered, match="no connection in time") as raised:
                transport.call(get(connect_timeout_s=0.2, fresh=True))
            assert raised.value.never_sent


def test_a_dead_address_does_not_keep_the_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with against(OK) as (transport, wire), socket.create_server(("127.0.0.3", wire.port), backlog=0) as dead:
        waiting = [socket.socket() for _ in range(3)]
        for sock in waiting:  # Once its queue is full, it answers nobody any more.
            sock.setblocking(False)
            sock.connect_ex(dead.getsockname())
        places = [("127.0.0.3", wire.port), ("127.0.0.1", wire.port)]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        began = time.monotonic()
        assert transport.call(get(connect_timeout_s=10.0, fresh=True)).body == b"ok"
        assert time.monotonic() - began < 2.0
        for sock in waiting:
            sock.close()


@pytest.mark.parametrize("place", [("255.255.255.255", 9), ("127.0.0.1", 1)])
def test_an_address_that_fails_at_once_is_not_taken_for_a_connection(
    place: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with against(OK) as (transport, wire):
        places = [place, ("127.0.0.1", wire.port)]
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        began = time.monotonic()
        assert transport.call(get(fresh=True)).body == b"ok"
        assert time.monotonic() - began < SLACK_S
        del found[1]
        with pytest.raises(Unanswered, match="no connection") as raised:
            transport.call(get(fresh=True))
        assert raised.value.never_sent


def body_of(transport: Transport, **changes: Any) -> Iterator[bytes]:
    response = transport.open(get(**changes))
    while data := response.raw.read1(65_536):
        yield data


def test_a_stream_takes_as_long_as_it_gets_on() -> None:
    piece = b"x" * adapter.STEP_BYTES

    def steady(sock: socket.socket, _: bytes) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(piece) * 10))
        for _ in range(10):
            sock.sendall(piece)
            time.sleep(0.1)

    with against(steady) as (transport, _):
        assert sum(len(data) for data in body_of(transport, timeout_s=0.5)) == len(piece) * 10


def test_a_stream_whose_reader_pauses_goes_on() -> None:
    data = b"x" * 3_000_000
    with against(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n" + data) as (transport, _):
        received = 0
        for piece in body_of(transport, timeout_s=0.3):
            if not received:
                time.sleep(0.6)
            received += len(piece)
        assert received == len(data)


def test_a_stream_that_hardly_gets_on_ends() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000
    with closing(Wire(slowly(answer, 0.005))) as wire:
        config = make_config(wire.url, read_timeout_s=0.5, call_attempts=2)
        with CamberClient(config, backoff_s=0.001) as client:
            began = time.monotonic()
            with client.stash_open("stash://ada/x") as chunks, pytest.raises(BackendUnavailable, match="2 times"):
                list(chunks)
            assert time.monotonic() - began < 2 * (0.5 + SLACK_S)


def test_an_upload_that_its_server_hardly_reads_ends() -> None:
    @contextmanager
    def source() -> Iterator[BinaryIO]:
        yield io.BytesIO(b"x" * 50_000_000)

    wire = Wire(OK)
    release = reads_nothing(wire)
    config = make_config(wire.url, read_timeout_s=0.3, call_attempts=1)
    with closing(wire), CamberClient(config, backoff_s=0.001) as client:
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match="no answer in time"):
            client.stash_stream("stash://ada/x", source)
        assert time.monotonic() - began < 0.3 + SLACK_S
        release.set()


# ---- Connections


def test_a_create_goes_over_a_fresh_connection_and_other_calls_do_not() -> None:
    with against(OK) as (transport, wire):
        for _ in range(3):
            transport.call(get())
        assert wire.connections == 1
        for _ in range(3):
            transport.call(get(method="POST", fresh=True))
        assert wire.connections == 4
        transport.call(get())
        assert wire.connections == 4


def test_no_create_is_lost_where_a_gateway_closes_each_connection_after_its_answer() -> None:
    """The connection is closed when the next request comes: no client can tell beforehand."""
    job = b'{"job_id": 7}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(job), job)
    served: set[socket.socket] = set()

    def once(sock: socket.socket, _: bytes) -> None:
        if sock in served:
            sock.close()
        else:
            served.add(sock)
            sock.sendall(answer)

    with closing(Wire(once)) as wire, CamberClient(make_config(wire.url), backoff_s=0.001) as client:
        for _ in range(20):
            client.get(7)
            assert client.create({}).remote_id == 7
        assert client.calls["create"] == 20


def test_an_idle_connection_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with against(OK) as (transport, wire):
        transport.call(get())
        monkeypatch.setattr(adapter, "KEEP_S", 0.0)
        transport.call(get())
        assert wire.connections == 2


def test_an_interim_answer_is_not_taken_for_the_next_ones() -> None:
    late = OK.replace(b"\r\nok", b"\r\nme")

    def hints(sock: socket.socket, _: bytes) -> None:
        sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        time.sleep(0.1)
        sock.sendall(OK)

    with against(hints, late) as (transport, _):
        with pytest.raises(Unanswered, match="interim"):
            transport.call(get())
        assert transport.call(get()).body == b"me"


def test_the_loopback_is_never_called_by_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with against(OK) as (transport, _):
        assert transport.call(get()).body == b"ok"


@pytest.mark.parametrize("refusal", [b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", drop, b"SSH-2.0\r\n"])
def test_what_a_proxy_refuses_was_never_sent(refusal: bytes | Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Wire(refusal)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        with closing(Transport("https://camber.invalid", lambda: Secret(KEY), 1)) as transport:
            with pytest.raises(Unanswered) as raised:
                transport.call(get(fresh=True))
            assert raised.value.never_sent
        assert KEY.encode() not in b"".join(proxy.requests)


@pytest.mark.parametrize("proxy", ["http://[::1", "http://:::", "///", "http://a b:1", "http://a:99999", "\xff"])
def test_a_proxy_that_is_no_url_is_an_outage_that_names_it(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", proxy)
    with closing(Transport("https://camber.invalid", lambda: Secret(KEY), 1)) as transport:
        with pytest.raises(Unanswered, match="proxy") as raised:
            transport.call(get())
        assert raised.value.never_sent


# ---- Certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 127.0.0.1, with its key, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "here")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    plain = serialization.NoEncryption()
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    return path


@pytest.fixture
def no_bundle(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.fixture
def theirs(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_are_those_that_the_environment_names(
    variable: str, certificate: Path, theirs: ssl.SSLContext, no_bundle: pytest.MonkeyPatch
) -> None:
    no_bundle.setenv(variable, str(certificate))
    with against(OK, tls=theirs) as (transport, wire):
        assert [transport.call(get(fresh=fresh)).body for fresh in (True, False, False)] == [b"ok"] * 3
        assert wire.connections == 2


def test_a_trickle_under_tls_is_bounded_too(
    certificate: Path, theirs: ssl.SSLContext, no_bundle: pytest.MonkeyPatch
) -> None:
    no_bundle.setenv("SSL_CERT_FILE", str(certificate))
    with against(slowly(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 9999), tls=theirs) as (transport, _):
        began = time.monotonic()
        with pytest.raises(Unanswered, match="no answer in time"):
            transport.call(get(timeout_s=0.5))
        assert time.monotonic() - began < 0.5 + SLACK_S


def test_a_server_of_another_certificate_is_told_nothing(theirs: ssl.SSLContext, no_bundle: pytest.MonkeyPatch) -> None:
    with against(OK, tls=theirs) as (transport, wire):
        for fresh in (True, False):
            with pytest.raises(Unanswered, match="not trusted") as raised:
                transport.call(get(fresh=fresh))
            assert raised.value.never_sent
        assert wire.requests == []


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_certificates_that_cannot_be_read_are_an_outage_that_names_them(
    variable: str, content: bytes | None, tmp_path: Path, no_bundle: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "bundle.pem"
    if content is not None:
        place.write_bytes(content)
    no_bundle.setenv(variable, str(place))
    with pytest.raises(BackendUnavailable, match=variable) as raised:
        CamberClient(make_config("https://camber.example"))
    assert str(place) in raised.value.message


# ---- What an answer may look like

ZIPPED = gzip.compress(b"ok", mtime=0)


def framed(headers: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n" + body


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        framed(b"Content-Length: 99\r\nTransfer-Encoding: chunked\r\n", b"2\r\nok\r\n0\r\n\r\n"),
        framed(b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n"),
        framed(b"Content-Encoding: gzip\r\nContent-Length: %d\r\n" % len(ZIPPED), ZIPPED),
        framed(b"Content-Encoding: Identity\r\nContent-Length: 2\r\n", b"ok"),
        framed(b"Content-Encoding: \r\nContent-Length: 2\r\n", b"ok"),
        framed(b"Content-Encoding: never-heard-of\r\nContent-Length: 2\r\n", b"ok"),
        framed(b"".join(b"X-%d: y\r\n" % n for n in range(90)) + b"Content-Length: 2\r\n", b"ok"),
        framed(b"Content-Length: 2, 2\r\nConnection: close\r\n", b"ok"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_in_any_framing_is_whole_whether_it_is_streamed_or_not(answer: bytes, streamed: bool) -> None:
    def once(sock: socket.socket, _: bytes) -> None:
        sock.sendall(answer)
        if b"close" in answer:
            sock.close()

    with closing(Wire(once)) as wire, CamberClient(make_config(wire.url, call_attempts=1)) as client:
        if streamed:
            with client.stash_open("stash://ada/x") as chunks:
                assert b"".join(chunks) == b"ok"
        else:
            assert client.stash_read("stash://ada/x") == b"ok"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (framed(b"".join(b"X-%d: y\r\n" % n for n in range(101)) + b"Content-Length: 2\r\n", b"ok"), "not HTTP"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (framed(b"X: " + b"y" * 70_000 + b"\r\nContent-Length: 2\r\n", b"ok"), "not HTTP"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_what_cannot_be_read_is_refused_in_the_same_words_whether_it_is_streamed_or_not(
    answer: bytes, words: str, streamed: bool
) -> None:
    def once(sock: socket.socket, _: bytes) -> None:
        sock.sendall(answer)
        sock.close()

    with closing(Wire(once)) as wire, CamberClient(make_config(wire.url, call_attempts=1)) as client:
        read = client.stash_open("stash://ada/x").__enter__ if streamed else partial(client.stash_read, "stash://ada/x")
        with pytest.raises(BackendUnavailable, match=words):
            read()
        with pytest.raises(CreateUncertain, match=words):
            client.create({})


def test_an_encoded_stream_that_breaks_off_is_taken_up_from_its_start() -> None:
    data = bytes(range(256)) * 4096
    zipped = gzip.compress(data, 0)
    head = b"HTTP/1.1 %s\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n%s\r\n"

    def answer(sock: socket.socket, request: bytes) -> None:
        start = int(request.partition(b"Range: bytes=")[2].partition(b"-")[0] or 0)
        if start:
            about = b"Content-Range: bytes %d-%d/%d\r\n" % (start, len(zipped) - 1, len(zipped))
            sock.sendall(head % (b"206 Partial", len(zipped) - start, about) + zipped[start:])
        else:
            whole = len(wire.requests) > 1
            sock.sendall(head % (b"200 OK", len(zipped), b"") + (zipped if whole else zipped[:500_000]))
            if not whole:
                sock.close()

    wire = Wire(answer)
    with (
        closing(wire),
        CamberClient(make_config(wire.url), backoff_s=0.001) as client,
        client.stash_open("stash://ada/x") as chunks,
    ):
        assert b"".join(chunks) == data
    assert len(wire.requests) == 3


ODD: dict[str, list[bytes]] = {
    "Retry-After": [
        b"Wed, 21 Oct 99999 07:28:00 GMT",
        b"Mon, 01 Jan 0001 00:00:00 +2359",
        b"1e999",
        b"nan",
        b"Wed, 21",
    ],
    "Content-Length": [b"-1", b"1_0", b"5, 6", b"0x2"],
    "Content-Range": [b"bytes 0-1/" + b"9" * 5000, b"bytes 5-\xb2/9", b"bytes 5-6/*", b"bytes 9-5/1", b"bytes */2"],
    "Content-Encoding": [b"gzip", b"br", b"zstd", b"deflate, gzip", b"gzip" + b", gzip" * 20, b"GZIP", b","],
    "Content-Type": [b"text/html; charset=\x00", b"multipart/mixed; boundary=" + b"a" * 900, b";;=;"],
    "Location": [b"//[", b"http://[::1", b"\xc3\x28", b"http://a:b@c:99999/", b"file:///etc/passwd", b"//\xff\xfe:x"],
    "Set-Cookie": [b"a=b; Max-Age=" + b"9" * 5000, b"a=b; Expires=Wed, 99 Oct 2015", b"=;=;=", b"a=\xff; Domain=\xfe"],
    "Transfer-Encoding": [b"chunked, chunked", b"gzip, chunked", b"CHUNKED", b"identity", b"\xb2"],
    "Connection": [b"close, close", b"upgrade", b"\xff"],
    "Keep-Alive": [b"timeout=" + b"9" * 5000],
}
ANYWHERE = [b"", b"\xb2", b"\xff\xfe", b"9" * 5000, b"," * 5000, b"=?utf-8?q?=ff?=", b"\x00", b"\x0b\x0c", b"a\r\n b"]


@pytest.mark.parametrize("name", ODD)
def test_no_header_raises_anything_but_our_errors(name: str) -> None:
    answer = b""

    def once(sock: socket.socket, _: bytes) -> None:
        sock.sendall(answer)
        sock.close()

    with closing(Wire(once)) as wire, CamberClient(make_config(wire.url, call_attempts=1), backoff_s=0.0) as client:
        whole: list[Callable[[], Any]] = [
            client.me,
            partial(client.create, {}),
            partial(client.stash_read, "stash://a/x"),
        ]
        for value in (*ODD[name], *ANYWHERE):
            for status in (200, 206, 301, 416, 429):
                answer = b"HTTP/1.1 %d X\r\n%b: %b\r\n\r\n" % (status, name.encode(), value) + b'{"username": "ada"}'
                asked = len(wire.requests)
                for call in whole:
                    with suppress(RythmiqError):
                        call()
                with suppress(RythmiqError), client.stash_open("stash://a/x", 5) as chunks:
                    list(chunks)
                assert len(wire.requests) <= asked + 5, "nothing is followed"


@pytest.mark.parametrize("place", ODD["Location"])
def test_where_a_redirect_leads_is_not_looked_at(place: bytes) -> None:
    answer = b"HTTP/1.1 301 Moved\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % place
    with closing(Wire(answer)) as wire, CamberClient(make_config(wire.url, call_attempts=1)) as client:
        with pytest.raises(BackendUnavailable, match="answered me with 301"):
            client.me()
        assert len(wire.requests) == 1
