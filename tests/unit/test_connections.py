"""Connections of the event loop against a server that sends exactly the bytes it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rythmiq_ray.backends.camber import connections
from rythmiq_ray.backends.camber.answers import Answer
from rythmiq_ray.backends.camber.connections import Connections, Unanswered

REQUEST = b"GET /x HTTP/1.1\r\nHost: here\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSE = b""
"""The server closes the connection."""


@dataclass
class Server:
    """Answers the n-th request with the n-th script, whose pieces are sent one by one."""

    scripts: list[Sequence[bytes]]
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                for piece in self.scripts.pop(0):
                    if piece == CLOSE:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.002)
        except (asyncio.IncompleteReadError, ConnectionError, IndexError):
            pass
        finally:
            writer.close()
            self.closed.set()


@pytest.fixture(params=["asyncio", "uvloop"], autouse=True)
def loop_factory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers' loop, and the one that tells of more mistakes."""
    if request.param == "uvloop":
        monkeypatch.setattr(asyncio, "new_event_loop", uvloop.new_event_loop)


def run(main: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        runner.run(main)


def against(*scripts: Sequence[bytes], work: Callable[[Connections, Server], Awaitable[None]]) -> Server:
    server = Server(list(scripts))

    async def main() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        pool = Connections("127.0.0.1", listening.sockets[0].getsockname()[1], None)
        async with listening, asyncio.timeout(30):
            try:
                await work(pool, server)
            finally:
                pool.close()

    run(main())
    return server


async def ask(pool: Connections, *, timeout_s: float = 20.0) -> Answer:
    return await pool.exchange(REQUEST, connect_timeout_s=20.0, read_timeout_s=timeout_s)


def test_one_connection_serves_many_requests() -> None:
    async def work(pool: Connections, _: Server) -> None:
        assert [(await ask(pool)).body for _ in range(5)] == [b"ok"] * 5

    server = against(*[[OK]] * 5, work=work)
    assert (server.connections, len(server.requests)) == (1, 5)


def test_requests_at_once_have_connections_of_their_own() -> None:
    async def work(pool: Connections, _: Server) -> None:
        answers = await asyncio.gather(*[ask(pool) for _ in range(5)])
        assert [answer.body for answer in answers] == [b"ok"] * 5

    assert against(*[[OK]] * 5, work=work).connections == 5


@pytest.mark.parametrize(
    "pieces",
    [
        [OK],
        [OK[index : index + 1] for index in range(len(OK))],
        [b"HTTP/1.1 100 Continue\r\n\r\n", OK],
        [b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n", b"1\r\nk\r\n0\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\n\r\no", b"k", CLOSE],
        [b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nok", CLOSE],
    ],
)
def test_an_answer_in_any_framing_is_whole(pieces: list[bytes]) -> None:
    async def work(pool: Connections, _: Server) -> None:
        answer = await ask(pool)
        assert (answer.status, answer.body) == (200, b"ok")

    against(pieces, work=work)


def test_an_answer_without_a_body() -> None:
    async def work(pool: Connections, _: Server) -> None:
        assert ((await ask(pool)).status, (await ask(pool)).body) == (204, b"ok")

    assert against([b"HTTP/1.1 204 No Content\r\n\r\n"], [OK], work=work).connections == 1


def test_headers_are_found_in_lower_case() -> None:
    async def work(pool: Connections, _: Server) -> None:
        assert (await ask(pool)).retry_after_s == 7.0

    against([b"HTTP/1.1 429 Slow\r\nRETRY-after: 7\r\nContent-Length: 0\r\n\r\n"], work=work)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([CLOSE], "the connection broke"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", CLOSE], "the connection broke"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok", CLOSE], "the connection broke"),
        ([b"HTTP/1.1 200 OK\r\nContent-Le", CLOSE], "the connection broke"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n", CLOSE], "the connection broke"),
        ([b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"], "no HTTP"),
        ([b"SSH-2.0-OpenSSH\r\n"], "no HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"], "no HTTP"),
        (
            [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 22\r\n\r\n" + gzip.compress(b"ok")],
            "encoded",
        ),
    ],
)
def test_half_an_answer_or_none_is_told_and_may_have_been_carried_out(pieces: list[bytes], words: str) -> None:
    async def work(pool: Connections, _: Server) -> None:
        with pytest.raises(Unanswered, match=words) as raised:
            await ask(pool)
        assert not raised.value.never_sent
        assert (await ask(pool)).body == b"ok"

    server = against(pieces, [OK], work=work)
    assert (server.connections, len(server.requests)) == (2, 2)  # Nothing was sent a second time.


def test_an_answer_that_nobody_asked_for_meets_no_other_request() -> None:
    async def work(pool: Connections, _: Server) -> None:
        assert (await ask(pool)).body == b"ok"
        await asyncio.sleep(0.02)
        assert (await ask(pool)).body == b"me"

    right = OK.replace(b"\r\nok", b"\r\nme")
    assert against([OK + OK], [right], work=work).connections == 2
    assert against([OK, OK], [right], work=work).connections == 2


def test_no_answer_in_time_ends_the_connection_too() -> None:
    async def work(pool: Connections, server: Server) -> None:
        with pytest.raises(Unanswered, match="no answer in time"):
            await ask(pool, timeout_s=0.02)
        await server.closed.wait()
        assert (await ask(pool)).body == b"ok"

    assert against([], [OK], work=work).connections == 2


def test_the_time_limit_is_for_each_piece_and_a_shorter_one_counts_at_once() -> None:
    slow = [OK[index : index + 1] for index in range(len(OK))]

    async def work(pool: Connections, _: Server) -> None:
        assert (await ask(pool, timeout_s=3600.0)).body == b"ok"  # leaves a timer of an hour behind
        assert (await ask(pool, timeout_s=0.05)).body == b"ok"  # takes longer than that in all
        with pytest.raises(Unanswered, match="no answer in time"):
            await ask(pool, timeout_s=0.05)  # is heard of for longer than that, and then no more

    against([OK], slow, slow[:-1], work=work)


def test_a_call_that_is_given_up_leaves_its_answer_to_no_other() -> None:
    async def work(pool: Connections, _: Server) -> None:
        given_up = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.01)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert (await ask(pool)).body == b"me"

    assert against([], [OK.replace(b"\r\nok", b"\r\nme")], work=work).connections == 2


def test_an_old_connection_and_a_closed_one_are_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def closed(pool: Connections, server: Server) -> None:
        assert (await ask(pool)).body == b"ok"
        await server.closed.wait()
        await asyncio.sleep(0.01)
        assert (await ask(pool)).body == b"ok"

    assert against([OK, CLOSE], [OK], work=closed).connections == 2

    async def old(pool: Connections, _: Server) -> None:
        assert (await ask(pool)).body == b"ok"
        assert (await ask(pool)).body == b"ok"

    monkeypatch.setattr(connections, "_KEEP_S", 0.0)
    assert against([OK], [OK], work=old).connections == 2


def test_an_idle_connection_closes_itself_and_holds_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_KEEP_S", 0.05)

    async def work(pool: Connections, server: Server) -> None:
        answer = weakref.ref(await ask(pool, timeout_s=0.1))
        await asyncio.sleep(0)
        assert len(pool._idle) == 1
        assert answer() is None
        await server.closed.wait()
        await asyncio.sleep(0.01)
        assert pool._idle == []

    against([OK], work=work)


def test_a_connection_in_use_while_the_pool_is_closed_is_not_kept() -> None:
    async def work(pool: Connections, server: Server) -> None:
        asking = asyncio.create_task(ask(pool))
        await asyncio.sleep(0.003)
        pool.close()
        assert (await asking).body == b"ok"
        async with asyncio.timeout(5):
            await server.closed.wait()

    against([OK[:9], OK[9:]], work=work)


def test_a_dead_address_does_not_use_up_the_time_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(pool: Connections, _: Server) -> None:
        with contextlib.ExitStack() as stack:
            dead = stack.enter_context(socket.create_server(("127.0.0.3", pool._port), backlog=0))
            for _ in range(3):  # Once its queue is full, it answers nobody any more.
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(dead.getsockname())
            places = [("127.0.0.3", pool._port), ("127.0.0.1", pool._port)]

            async def resolve(_: Connections) -> list[Any]:
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]

            monkeypatch.setattr(Connections, "_resolve", resolve)
            began = time.monotonic()
            for _ in range(10):
                assert (await pool.exchange(REQUEST, connect_timeout_s=1.0, read_timeout_s=20)).body == b"ok"
            assert time.monotonic() - began < 4.0, "the one that answered is not tried first"

    closing = OK.replace(b"200 OK\r\n", b"200 OK\r\nConnection: close\r\n")
    assert against(*[[closing, CLOSE]] * 10, work=work).connections == 10


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_ANSWER_BYTES", 1000)

    async def work(pool: Connections, _: Server) -> None:
        with pytest.raises(Unanswered, match="too long"):
            await ask(pool)

    against([b"HTTP/1.1 200 OK\r\n\r\n", *[b"x" * 600] * 3], work=work)


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


@pytest.mark.parametrize("trusted", [True, False])
def test_tls_is_spoken_with_whom_the_certificate_names_and_nobody_else(certificate: Path, trusted: bool) -> None:
    server = Server([[OK]] * 3)
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(certificate)
    ours = ssl.create_default_context(cafile=certificate if trusted else None)

    async def main() -> None:
        async with await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=theirs) as listening:
            pool = Connections("127.0.0.1", listening.sockets[0].getsockname()[1], ours)
            if trusted:
                assert [(await ask(pool)).body for _ in range(3)] == [b"ok"] * 3
            else:
                with pytest.raises(Unanswered, match="not trusted") as raised:
                    await ask(pool)
                assert raised.value.never_sent
            pool.close()

    run(main())
    assert (server.connections, len(server.requests)) == ((1, 3) if trusted else (0, 0))


def test_a_server_without_tls_gets_no_request() -> None:
    async def work(pool: Connections, _: Server) -> None:
        with pytest.raises(Unanswered, match="a TLS fault") as raised:
            await ask(pool)
        assert raised.value.never_sent

    context = ssl.create_default_context()
    server = Server([])

    async def main() -> None:
        async def junk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            server.requests.append(await reader.read(10_000))
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(junk, "127.0.0.1", 0) as listening:
            await work(Connections("127.0.0.1", listening.sockets[0].getsockname()[1], context), server)

    run(main())
    assert REQUEST not in server.requests[0]
