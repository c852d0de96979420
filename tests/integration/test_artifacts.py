"""Both stores against one suite, on a real S3 and a real file system; then what only one of them can do wrong."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit
from uuid import UUID, uuid4

import boto3
import pytest
from botocore.config import Config as BotoConfig
from botocore.exceptions import ConnectionClosedError

from rythmiq_ray import inputs
from rythmiq_ray.artifacts import ArtifactStore, download, manifest, open_store, read_manifest
from rythmiq_ray.artifacts.local import LocalArtifactStore
from rythmiq_ray.artifacts.s3 import S3ArtifactStore, shared_client
from rythmiq_ray.artifacts.streaming import budget
from rythmiq_ray.backends.bundle import Upload
from rythmiq_ray.config import ArtifactsConfig, InputsConfig
from rythmiq_ray.errors import ArtifactCorrupt, InputMissing, InputUnreadable, NotFound, StoreUnavailable
from rythmiq_ray.local.process import free_ports
from rythmiq_ray.local.s3 import S3
from rythmiq_ray.model import Artifact, JobState

PART_BYTES = 5 * 1024 * 1024
SECRET = "canary-s3-secret-7d21"
ODD_NAMES = [
    *("plain.txt", "with space/a b.csv", "日本語/結果.csv", "a#b.txt", "a?b=c&d.txt", "100%.txt", "%2e%2e/x", "a+b~c"),
    *(
        "x?versionId=7",
        "key:secret@host/y",
        "~/x",
        "e\u0301",
        "data:text/html;шш,x",
        "[1]/(2)'3'\"4\"<5>|*.txt",
        "x.part",
    ),
]


@dataclass(frozen=True)
class Place:
    """A store, and how to look at it from outside of our code."""

    store: ArtifactStore
    names: Callable[[UUID], list[str]]
    dangling: Callable[[], int]


@pytest.fixture(scope="module")
def s3(s3_server: S3) -> Iterator[Any]:
    """A client of the tests' own; the product reads the same server from its environment."""
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            environment.delenv(name)
        environment.setenv("AWS_ENDPOINT_URL_S3", s3_server.endpoint)
        environment.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
        environment.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
        environment.setenv("AWS_REGION", "us-east-1")
        environment.setenv("NO_PROXY", "127.0.0.1,localhost")
        shared_client.cache_clear()
        yield s3_server.client()
    shared_client.cache_clear()


@pytest.fixture
def fresh_client(s3: Any) -> Iterator[None]:
    """For a test that changes the process's client."""
    shared_client.cache_clear()
    yield
    shared_client.cache_clear()


def s3_config(prefix: str = "pre/fix", bucket: str = "artifacts") -> ArtifactsConfig:
    return ArtifactsConfig(
        type="s3", bucket=bucket, path=None, prefix=prefix, part_size_bytes=PART_BYTES, concurrency=4
    )


def local_config(path: Path) -> ArtifactsConfig:
    return replace(s3_config(), type="local", bucket=None, path=str(path))


def s3_place(s3: Any) -> Place:
    def names(job_id: UUID) -> list[str]:
        found = s3.list_objects_v2(Bucket="artifacts", Prefix=f"pre/fix/{job_id}/").get("Contents", [])
        return sorted(entry["Key"].split("/", 4)[4] for entry in found)

    def dangling() -> int:
        return len(s3.list_multipart_uploads(Bucket="artifacts").get("Uploads", []))

    return Place(open_store(s3_config()), names, dangling)


def local_place(folder: Path) -> Place:
    def names(job_id: UUID) -> list[str]:
        attempt = folder / "pre/fix" / str(job_id) / "1"
        return sorted(str(path.relative_to(attempt)) for path in attempt.rglob("*") if path.is_file())

    return Place(open_store(local_config(folder)), names, lambda: 0)


@pytest.fixture(params=["s3", "local"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return local_place(tmp_path / "store # 1%")
    return s3_place(request.getfixturevalue("s3"))


def pieces(content: bytes, size: int = 700_001) -> Iterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def content_of(store: ArtifactStore, uri: str) -> bytes:
    with store.open(uri) as file:
        return file.read()


CONTENTS = {
    "empty": b"",
    "one byte": b"x",
    "a part": os.urandom(1024) * (PART_BYTES // 1024),
    "a part and a byte": os.urandom(1024) * (PART_BYTES // 1024) + b"x",
    "two parts": os.urandom(1024) * (2 * PART_BYTES // 1024),
    "parts and a rest": os.urandom(1024) * (2 * PART_BYTES // 1024) + b"rest",
}


@pytest.mark.parametrize("known", [True, False], ids=["size known", "size unknown"])
@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_what_is_written_is_read_back(place: Place, content: bytes, known: bool) -> None:
    job_id = uuid4()
    artifact = place.store.write(
        job_id,
        1,
        "out/x.png",
        pieces(content),
        expected_bytes=len(content) if known else None,
        expected_sha256=sha256(content) if known else None,
    )
    assert artifact == Artifact(
        name="out/x.png",
        uri=place.store.uri(job_id, 1, "out/x.png"),
        bytes=len(content),
        sha256=sha256(content),
        content_type="image/png",
    )
    assert sha256(content_of(place.store, artifact.uri)) == artifact.sha256
    assert place.dangling() == 0


def test_an_odd_name_is_one_file_of_that_name_and_its_uri_leads_there(place: Place) -> None:
    job_id = uuid4()
    written = {name: place.store.write(job_id, 1, name, iter([name.encode()])).uri for name in ODD_NAMES}
    assert place.names(job_id) == sorted(ODD_NAMES)
    assert sorted(written.values()) == sorted(place.store.list_files(job_id))
    for name, uri in written.items():
        assert content_of(place.store, uri) == name.encode()
        with place.store.open_input(uri) as file:
            assert file.read() == name.encode()
        assert uri == place.store.uri(job_id, 1, name)
        if uri.startswith("s3:"):
            assert uri == f"s3://artifacts/pre/fix/{job_id}/1/{name}"
        else:
            assert uri.isascii()
            assert unquote(uri).endswith(f"/pre/fix/{job_id}/1/{name}")


@pytest.mark.parametrize("content", [b"small", CONTENTS["parts and a rest"]], ids=["small", "large"])
@pytest.mark.parametrize(
    ("change_bytes", "sha"), [(0, "0" * 64), (1, None), (-1, None)], ids=["other hash", "too short", "too long"]
)
def test_what_is_not_as_expected_never_appears(place: Place, content: bytes, change_bytes: int, sha: str) -> None:
    job_id = uuid4()
    with pytest.raises(ArtifactCorrupt, match=r"'x\.bin'"):
        place.store.write(
            job_id, 1, "x.bin", pieces(content), expected_bytes=len(content) + change_bytes, expected_sha256=sha
        )
    assert place.names(job_id) == []
    assert place.dangling() == 0


def test_what_was_there_stays_when_its_replacement_fails(place: Place) -> None:
    job_id = uuid4()
    uri = place.store.write(job_id, 1, "x", iter([b"old"])).uri
    with pytest.raises(ArtifactCorrupt):
        place.store.write(job_id, 1, "x", iter([b"new"]), expected_bytes=3, expected_sha256="0" * 64)
    assert content_of(place.store, uri) == b"old"
    place.store.write(job_id, 1, "x", iter([b"newer"]))
    assert content_of(place.store, uri) == b"newer"


def test_a_source_that_never_ends_is_given_up_at_the_first_byte_too_many(place: Place) -> None:
    served = 0

    def endless() -> Iterator[bytes]:
        nonlocal served
        while True:
            served += 1
            yield b"x" * 65_536

    with pytest.raises(ArtifactCorrupt, match="more than"):
        place.store.write(uuid4(), 1, "x", endless(), expected_bytes=100_000)
    assert served == 2
    assert place.dangling() == 0


@pytest.mark.parametrize("error", [OSError(28, "source"), NotFound("source"), KeyboardInterrupt()])
@pytest.mark.parametrize("after_bytes", [0, 10, 2 * PART_BYTES + 10])
@pytest.mark.parametrize("expected_bytes", [None, 3 * PART_BYTES])
def test_a_source_that_breaks_leaves_nothing_and_its_error_stays_its_own(
    place: Place, error: BaseException, after_bytes: int, expected_bytes: int | None
) -> None:
    def broken() -> Iterator[bytes]:
        yield from pieces(bytes(after_bytes))
        raise error

    job_id, threads = uuid4(), threading.active_count()
    with pytest.raises(type(error)) as caught:
        place.store.write(job_id, 1, "x", broken(), expected_bytes=expected_bytes)
    assert caught.value is error
    assert place.names(job_id) == []
    assert place.dangling() == 0
    assert threading.active_count() <= threads


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a\\b", "a\nb", "\u202ex", ""])
def test_an_unsafe_name_is_not_written(place: Place, name: str) -> None:
    job_id = uuid4()
    with pytest.raises(ArtifactCorrupt):
        place.store.write(job_id, 1, name, iter([b"x"]))
    assert place.names(job_id) == []


def test_the_manifest_says_what_the_contract_says(place: Place) -> None:
    job_id = uuid4()
    log = place.store.write(job_id, 1, "log.txt", iter([b"hello\n"]))
    document = manifest(
        job_id=job_id,
        attempt=1,
        state=JobState.FAILED,
        exit_code=7,
        remote_id=42,
        started_at=datetime(2026, 1, 7, 10, 30, 45, 123000, tzinfo=UTC),
        finished_at=None,
        artifacts=[log],
        warnings=("output 'x' matched no file", "höh"),
    )
    uri = place.store.write_manifest(job_id, 1, document)
    assert place.store.write_manifest(job_id, 1, document) == uri == place.store.uri(job_id, 1, "manifest.json")
    assert read_manifest(place.store, uri) == {
        "version": 1,
        "job_id": str(job_id),
        "attempt": 1,
        "state": "FAILED",
        "exit_code": 7,
        "remote_id": 42,
        "started_at": "2026-01-07T10:30:45.123000Z",
        "finished_at": None,
        "artifacts": [
            {
                "name": "log.txt",
                "uri": log.uri,
                "bytes": 6,
                "sha256": sha256(b"hello\n"),
                "content_type": "text/plain; charset=utf-8",
            }
        ],
        "warnings": ["output 'x' matched no file", "höh"],
    }


def test_deleting_is_final_and_may_be_repeated(place: Place) -> None:
    uri = place.store.write(uuid4(), 1, "x", iter([b"x"])).uri
    place.store.delete(uri)
    place.store.delete(uri)
    with pytest.raises(NotFound), place.store.open(uri):
        pass


@pytest.mark.parametrize("uri", ["file:///etc/hostname", "ftp://x/y", "s3://", "s3://artifacts", "nonsense"])
def test_a_uri_that_is_not_the_stores_is_not_found(place: Place, uri: str) -> None:
    with pytest.raises(NotFound), place.store.open(uri):
        pass
    with pytest.raises(NotFound):
        place.store.delete(uri)


def test_the_probe_leaves_nothing(place: Place, tmp_path: Path, s3: Any) -> None:
    place.store.check()
    assert not list(tmp_path.rglob(".probe*"))
    assert "Contents" not in s3.list_objects_v2(Bucket="artifacts", Prefix="pre/fix/.probe")


def test_many_threads_write_at_once(place: Place) -> None:
    job_id = uuid4()
    large, errors = CONTENTS["parts and a rest"], []

    def write(at: int) -> None:
        content = large if at % 8 == 0 else f"{at}".encode()
        try:
            place.store.write(
                job_id, 1, f"{at}", pieces(content), expected_bytes=len(content), expected_sha256=sha256(content)
            )
        except Exception as error:  # noqa: BLE001 - the test's own thread tells of it
            errors.append(error)

    threads = [threading.Thread(target=write, args=(at,)) for at in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(place.names(job_id)) == 16
    assert place.dangling() == 0


def test_a_download_is_whole_and_right(place: Place, tmp_path: Path) -> None:
    content = CONTENTS["parts and a rest"]
    artifact = place.store.write(uuid4(), 1, "a b/x.bin", pieces(content))
    told: list[int] = []
    path = download(place.store, artifact, tmp_path / "down", told.append)
    assert path == tmp_path / "down" / "a b" / "x.bin"
    assert path.read_bytes() == content
    assert sum(told) == len(content)


def test_a_download_that_differs_from_its_row_leaves_nothing(place: Place, tmp_path: Path) -> None:
    artifact = place.store.write(uuid4(), 1, "x", iter([b"abc"]))
    for wrong in (replace(artifact, sha256="0" * 64), replace(artifact, bytes=2), replace(artifact, bytes=4)):
        with pytest.raises(ArtifactCorrupt):
            download(place.store, wrong, tmp_path / "down")
    assert list((tmp_path / "down").iterdir()) == []


def test_a_download_does_not_leave_its_folder(place: Place, tmp_path: Path) -> None:
    artifact = place.store.write(uuid4(), 1, "x", iter([b"abc"]))
    (tmp_path / "down").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "down" / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("../x", "/tmp/x", "link/x", "link/deeper/x"):
        with pytest.raises(ArtifactCorrupt):
            download(place.store, replace(artifact, name=name), tmp_path / "down")
    assert list((tmp_path / "elsewhere").iterdir()) == []


# What only S3 can do wrong.


def test_an_object_has_the_content_type_of_its_name_however_it_came(s3: Any) -> None:
    store, job_id = open_store(s3_config()), uuid4()
    for content in (b"", b"x", CONTENTS["two parts"]):
        for known in (len(content), None):
            store.write(job_id, 1, "log.txt", pieces(content), expected_bytes=known)
            head = s3.head_object(Bucket="artifacts", Key=f"pre/fix/{job_id}/1/log.txt")
            assert head["ContentType"] == "text/plain; charset=utf-8"
            assert head["ContentLength"] == len(content)


def test_small_files_are_one_request_and_large_ones_are_parts_of_the_configured_size(
    s3: Any, fresh_client: None
) -> None:
    store, calls = open_store(s3_config()), list[str]()
    shared_client().meta.events.register("before-call.s3", lambda model, **_: calls.append(model.name))
    store.write(uuid4(), 1, "x", iter([b"x"]), expected_bytes=1)
    assert calls == ["PutObject"]
    calls.clear()
    store.write(uuid4(), 1, "x", iter([b"x"]))
    assert calls == ["PutObject"]
    calls.clear()
    store.write(uuid4(), 1, "x", pieces(CONTENTS["parts and a rest"]))
    assert calls == ["CreateMultipartUpload", *["UploadPart"] * 3, "CompleteMultipartUpload"]


@pytest.mark.parametrize("call", ["UploadPart", "CompleteMultipartUpload"])
def test_a_multipart_upload_that_the_server_breaks_is_aborted(s3: Any, fresh_client: None, call: str) -> None:
    place, job_id = s3_place(s3), uuid4()

    def fail(**_: Any) -> None:
        raise ConnectionClosedError(endpoint_url="http://s3")

    shared_client().meta.events.register(f"before-call.s3.{call}", fail)
    with pytest.raises(StoreUnavailable):
        place.store.write(job_id, 1, "x", pieces(CONTENTS["parts and a rest"]))
    assert place.names(job_id) == []
    assert place.dangling() == 0


def test_parts_are_sent_while_the_next_one_is_read(s3: Any, fresh_client: None) -> None:
    place, job_id, read_on = s3_place(s3), uuid4(), threading.Event()

    def hold(**_: Any) -> None:
        assert read_on.wait(20), "the source was not read while a part was sent"

    def source() -> Iterator[bytes]:
        yield bytes(2 * PART_BYTES)
        yield b"more"
        read_on.set()

    shared_client().meta.events.register("before-call.s3.UploadPart", hold)
    artifact = place.store.write(job_id, 1, "x", source())
    assert content_of(place.store, artifact.uri) == bytes(2 * PART_BYTES) + b"more"


def test_a_part_under_way_is_waited_for_before_its_upload_is_aborted(s3: Any, fresh_client: None) -> None:
    place, job_id, calls, broken = s3_place(s3), uuid4(), list[str](), threading.Event()

    def slow(**_: Any) -> None:
        assert broken.wait(20)
        time.sleep(0.2)

    def source() -> Iterator[bytes]:
        yield bytes(PART_BYTES)
        broken.set()
        raise OSError("source")

    events = shared_client().meta.events
    events.register("before-call.s3.UploadPart", slow)
    events.register("after-call.s3", lambda model, **_: calls.append(model.name))
    with pytest.raises(OSError, match="source"):
        place.store.write(job_id, 1, "x", source(), expected_bytes=3 * PART_BYTES)
    assert calls == ["CreateMultipartUpload", "UploadPart", "AbortMultipartUpload"]
    assert place.dangling() == 0


def test_without_memory_for_parts_to_wait_in_they_are_sent_one_by_one(s3: Any, fresh_client: None) -> None:
    place, job_id, at_once, most = s3_place(s3), uuid4(), Counter[str](), Counter[str]()

    def begin(**_: Any) -> None:
        at_once["parts"] += 1
        most["parts"] = max(most["parts"], at_once["parts"])

    events = shared_client().meta.events
    events.register("before-call.s3.UploadPart", begin)
    events.register("after-call.s3.UploadPart", lambda **_: at_once.subtract(["parts"]))
    with budget.hold(75 * 1024**2):
        artifact = place.store.write(job_id, 1, "x", pieces(CONTENTS["parts and a rest"]))
    assert most["parts"] == 1
    assert content_of(place.store, artifact.uri) == CONTENTS["parts and a rest"]
    with budget.hold(80 * 1024**2):
        pass  # All of it was given back.


def test_an_upload_whose_abort_fails_too_is_never_completed_afterwards(s3: Any, fresh_client: None) -> None:
    place, job_id, calls = s3_place(s3), uuid4(), list[str]()

    def fail(**_: Any) -> None:
        raise ConnectionClosedError(endpoint_url="http://s3")

    def source() -> Iterator[bytes]:
        yield from pieces(bytes(PART_BYTES + 10))
        raise OSError("source")

    events = shared_client().meta.events
    events.register("before-call.s3", lambda model, **_: calls.append(model.name))
    events.register("before-call.s3.AbortMultipartUpload", fail)
    with pytest.raises(OSError, match="source"):
        place.store.write(job_id, 1, "x", source())
    assert "CompleteMultipartUpload" not in calls
    assert place.names(job_id) == []
    for upload in s3.list_multipart_uploads(Bucket="artifacts")["Uploads"]:
        s3.abort_multipart_upload(Bucket="artifacts", Key=upload["Key"], UploadId=upload["UploadId"])


def test_a_store_that_cannot_be_used_says_which_and_no_secret(
    s3: Any, fresh_client: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(bucket: str = "artifacts") -> str:
        shared_client.cache_clear()
        store = open_store(s3_config(bucket=bucket))
        messages = []
        for use in (
            store.check,
            lambda: store.write(uuid4(), 1, "x", iter([b"x"])),
            lambda: store.write(uuid4(), 1, "x", pieces(CONTENTS["two parts"]), expected_bytes=2 * PART_BYTES),
            lambda: store.write_manifest(uuid4(), 1, {"artifacts": []}),
            lambda: list(store.list_files(uuid4())),
        ):
            with pytest.raises(StoreUnavailable) as caught:
                use()
            messages.append(str(caught.value))
            assert "\n" not in messages[-1]
            assert SECRET not in messages[-1]
            assert f"s3://{bucket}" in messages[-1]
        with pytest.raises((StoreUnavailable, InputMissing)), store.open_input(f"s3://{bucket}/x"):
            pass
        return messages[0]

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    assert "InvalidBucketName" in fails(bucket="Bad_Bucket")  # SeaweedFS makes a bucket that is missing
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET + "x")
    assert "SignatureDoesNotMatch" in fails()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "InvalidAccessKeyId" in fails()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    assert "Unable to locate credentials" in fails()
    monkeypatch.setenv("AWS_PROFILE", "no-such-profile")
    assert "no-such-profile" in fails()


def test_an_endpoint_that_nobody_listens_at_is_named(s3: Any) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    client = boto3.session.Session().client(
        "s3", endpoint_url=endpoint, config=BotoConfig(retries={"total_max_attempts": 1})
    )
    store = S3ArtifactStore(s3_config(), "artifacts", client=lambda: client)
    for content in (b"x", CONTENTS["two parts"]):
        with pytest.raises(StoreUnavailable, match=endpoint):
            store.write(uuid4(), 1, "x", pieces(content), expected_bytes=len(content))
    with pytest.raises(StoreUnavailable, match=endpoint), store.open_input("s3://artifacts/x"):
        pass
    with pytest.raises(StoreUnavailable, match=endpoint), store.open("s3://artifacts/x"):
        pass


class _FakeS3(http.server.BaseHTTPRequestHandler):
    """A store that does with objects as ``behaviour`` says, and notes the headers of each request."""

    protocol_version = "HTTP/1.1"
    behaviour = ""
    objects: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[list[tuple[str, dict[str, str]]]] = []

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        checked = any(name.lower().startswith(("x-amz-checksum", "x-amz-sdk-checksum")) for name in self.headers)
        if self.behaviour == "knows no checksums" and checked:
            self._answer(501, b"<Error><Code>NotImplemented</Code><Message>a header</Message></Error>")
            return
        if self.behaviour == "frames" and checked:
            body = b"%x\r\n%s\r\n0\r\n" % (len(body), body)
        elif self.behaviour == "changes":
            body = body.upper()
        self.objects[self.path] = body
        self._answer(200, b"")

    def do_GET(self) -> None:
        body = self.objects.get(self.path)
        self._answer(404 if body is None else 200, body or b"<Error><Code>NoSuchKey</Code></Error>")

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self._answer(204, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.requests.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def fake_s3(s3: Any, fresh_client: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_FakeS3]]:
    class Handler(_FakeS3):
        objects: ClassVar[dict[str, bytes]] = {}
        requests: ClassVar[list[tuple[str, dict[str, str]]]] = []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    yield Handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("behaviour", ["knows no checksums", "frames"])
def test_a_store_that_does_not_know_the_new_checksums_is_told_with_its_cure(
    fake_s3: type[_FakeS3], monkeypatch: pytest.MonkeyPatch, behaviour: str
) -> None:
    fake_s3.behaviour = behaviour
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    with pytest.raises(StoreUnavailable, match="AWS_REQUEST_CHECKSUM_CALCULATION=when_required"):
        open_store(s3_config()).check()
    assert fake_s3.objects == {}
    shared_client.cache_clear()
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    open_store(s3_config()).check()


def test_a_store_that_gives_back_other_bytes_is_not_usable(fake_s3: type[_FakeS3]) -> None:
    fake_s3.behaviour = "changes"
    with pytest.raises(StoreUnavailable, match="returns different bytes"):
        open_store(s3_config()).check()
    assert fake_s3.objects == {}


def test_no_request_waits_for_the_servers_leave_to_send_its_body(fake_s3: type[_FakeS3]) -> None:
    store = open_store(s3_config())
    store.check()
    store.write(uuid4(), 1, "x", iter([b"x"]))
    store.write_manifest(uuid4(), 1, {"artifacts": []})
    assert [command for command, _ in fake_s3.requests] == ["PUT", "GET", "DELETE", "PUT", "PUT"]
    assert not [headers for _, headers in fake_s3.requests if "expect" in headers]


def test_encryption_and_who_pays_go_with_every_object(fake_s3: type[_FakeS3]) -> None:
    def sent(**changes: Any) -> dict[str, str]:
        fake_s3.requests.clear()
        open_store(replace(s3_config(), **changes)).write(uuid4(), 1, "x", iter([b"x"]))
        ((_, headers),) = fake_s3.requests
        names = ("x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id", "x-amz-request-payer")
        return {name.removeprefix("x-amz-"): headers[name] for name in names if name in headers}

    assert sent() == {}
    assert sent(encryption="AES256") == {"server-side-encryption": "AES256"}
    assert sent(kms_key_id="k") == {"server-side-encryption": "aws:kms", "server-side-encryption-aws-kms-key-id": "k"}
    assert sent(requester_pays=True) == {"request-payer": "requester"}


def test_encryption_and_who_pays_go_with_an_object_in_parts(s3: Any, fresh_client: None) -> None:
    store, told = open_store(replace(s3_config(), encryption="AES256", requester_pays=True)), Counter[Any]()
    client = shared_client((("ServerSideEncryption", "AES256"), ("RequestPayer", "requester")))

    def note(model: Any, params: Any, **_: Any) -> None:
        told[model.name, "paid"] += params["headers"].get("x-amz-request-payer") == "requester"
        # The server here has no key to encrypt with.
        told[model.name, "encrypted"] += params["headers"].pop("x-amz-server-side-encryption", None) == "AES256"

    client.meta.events.register("before-call.s3", note)
    content = CONTENTS["parts and a rest"]
    artifact = store.write(uuid4(), 1, "x", pieces(content))
    assert sha256(content_of(store, artifact.uri)) == artifact.sha256
    assert +told == {
        ("CreateMultipartUpload", "encrypted"): 1,
        ("CreateMultipartUpload", "paid"): 1,
        ("UploadPart", "paid"): 3,
        ("CompleteMultipartUpload", "paid"): 1,
        ("GetObject", "paid"): 1,
    }


def test_public_buckets_are_read_without_credentials_and_others_with_them(
    fake_s3: type[_FakeS3], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_s3.objects |= {"/public/a": b"a", "/mine/a": b"b"}
    options = InputsConfig(anonymous=("public",), requester_pays=True)
    for store in (open_store(s3_config(), options), open_store(local_config(tmp_path), options)):
        fake_s3.requests.clear()
        for uri, content in (("s3://public/a", b"a"), ("s3://mine/a", b"b")):
            with store.open_input(uri) as file:
                assert file.read() == content
        unsigned, signed = (headers for _, headers in fake_s3.requests)
        assert "authorization" not in unsigned
        assert "authorization" in signed
        assert unsigned["x-amz-request-payer"] == signed["x-amz-request-payer"] == "requester"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    shared_client.cache_clear()
    with open_store(s3_config(), InputsConfig(anonymous=("*",))).open_input("s3://public/a") as file:
        assert file.read() == b"a"
    with pytest.raises(StoreUnavailable), open_store(s3_config()).open_input("s3://public/a"):
        pass


# What only a folder can do wrong.


def test_a_link_below_the_store_is_not_followed(tmp_path: Path) -> None:
    outside, job_id = tmp_path / "outside", uuid4()
    outside.mkdir()
    (outside / "secret").write_text("secret")
    store = open_store(local_config(tmp_path / "store"))
    store.write(job_id, 1, "a/x", iter([b"x"]))
    attempt = tmp_path / "store" / "pre/fix" / str(job_id) / "1"
    (attempt / "link").symlink_to(outside)
    (attempt / "file").symlink_to(outside / "secret")
    with pytest.raises(StoreUnavailable, match="link"):
        store.write(job_id, 1, "link/deeper/x", iter([b"x"]))
    store.write(job_id, 1, "file", iter([b"mine"]))
    assert (outside / "secret").read_text() == "secret"
    assert [path.name for path in outside.iterdir()] == ["secret"]
    uri = f"{(attempt / 'link').as_uri()}/secret"
    with pytest.raises(NotFound), store.open(uri):
        pass
    with pytest.raises(InputMissing), store.open_input(uri):
        pass


def test_a_root_that_is_itself_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    store = open_store(local_config(tmp_path / "link"))
    assert content_of(store, store.write(uuid4(), 1, "a/b", iter([b"x"])).uri) == b"x"


@contextmanager
def files_end_at(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_is_the_stores_fault_and_nothing_is_left(tmp_path: Path) -> None:
    place, job_id = local_place(tmp_path / "store"), uuid4()
    with files_end_at(1_000_000), pytest.raises(StoreUnavailable, match="free space"):
        place.store.write(job_id, 1, "x", pieces(CONTENTS["two parts"]))
    assert place.names(job_id) == []


def test_a_root_that_cannot_be_a_folder_is_the_stores_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = open_store(local_config(tmp_path / "file"))
    for use in (store.check, lambda: store.write(uuid4(), 1, "x", iter([b"x"]))):
        with pytest.raises(StoreUnavailable, match=str(tmp_path / "file")):
            use()


# Inputs.


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "s3://artifacts/not-there",
            "s3://no-such-bucket/x",
            "s3://artifacts",
            "s3://artifacts/",
            "s3://Bad_Bucket!/x",
        ),
        *("file:///etc/hostname", "file://host/etc/hostname", "file:///etc/%00", "file:///%ff", "ftp://x/y", "x"),
    ],
)
def test_an_input_that_is_not_there_is_missing(place: Place, s3: Any, uri: str) -> None:
    with pytest.raises(InputMissing), place.store.open_input(uri):
        pass


def test_a_file_input_must_lie_below_the_local_store(tmp_path: Path, s3: Any) -> None:
    store = LocalArtifactStore(local_config(tmp_path / "store"), tmp_path / "store")
    inside, outside = tmp_path / "store" / "in put.txt", tmp_path / "outside.txt"
    inside.parent.mkdir()
    inside.write_text("in")
    outside.write_text("out")
    os.mkfifo(tmp_path / "store" / "pipe")
    with store.open_input(inside.as_uri()) as file:
        assert file.read() == b"in"
    for uri in (
        outside.as_uri(),
        f"file://{tmp_path}/store/../outside.txt",
        f"file://{tmp_path}/store/%2e%2e/outside.txt",
        (tmp_path / "store").as_uri(),
        (tmp_path / "store" / "pipe").as_uri(),
        (tmp_path / "store" / "none").as_uri(),
    ):
        with pytest.raises(InputMissing), store.open_input(uri):
            pass
    with pytest.raises(InputMissing, match="local store"), open_store(s3_config()).open_input(inside.as_uri()):
        pass


def test_credentials_in_an_s3_input_are_refused_and_not_repeated(s3: Any) -> None:
    with pytest.raises(InputMissing) as caught, open_store(s3_config()).open_input(f"s3://key:{SECRET}@artifacts/x"):
        pass
    assert SECRET not in str(caught.value)


PACKED = gzip.compress(b"a table\n" * 1000)


class _Web(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/ok":
            self._answer(200, b"content")
        elif path == "/to":
            self._answer(302, b"", Location=unquote(query))
        elif path == "/ring":
            self._answer(302, b"", Location="/ring")
        elif path.startswith("/encoded"):
            coding = "gzip" if "gz" in path or "gzip" in self.headers["Accept-Encoding"] else "identity"
            self._answer(200, PACKED, **{"Content-Encoding": coding})
        elif path == "/chunked.gz":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(b"5\r\n" + PACKED[:5] + b"\r\n" + (b"0\r\n\r\n" if query else b""))
            self.close_connection = True
        elif path == "/cut.gz":
            self.send_response(200)
            self.send_header("Content-Length", str(len(PACKED)))
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(PACKED[:-4])
            self.close_connection = True
        elif path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        else:
            self._answer(int(path[1:]), b"")

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost,169.254.169.254")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def opened(uri: str) -> bytes:
    with inputs.open_input(uri, s3_client=lambda: None, local_root=None) as file:
        return file.read()


def test_an_http_input_is_read_and_redirects_are_followed(web: str) -> None:
    assert opened(f"{web}/ok") == b"content"
    assert opened(f"{web}/to?/ok") == b"content"
    assert opened(f"{web}/to?{web}/to?{web}/ok") == b"content"


@pytest.mark.parametrize(
    ("path", "error"),
    [
        *((f"/{status}", InputMissing) for status in (400, 401, 403, 404, 410)),
        *((f"/{status}", InputUnreadable) for status in (429, 500, 503)),
        ("/cut", InputUnreadable),
        ("/to?/to?/ok", None),
        ("/to?file:///etc/hostname", InputMissing),
        ("/to?ftp://127.0.0.1/x", InputMissing),
        ("/to?http://169.254.169.254/latest/meta-data/", InputMissing),
    ],
)
def test_an_http_input_that_fails_says_how(web: str, path: str, error: type[Exception] | None) -> None:
    if error is None:
        assert opened(web + path) == b"content"
        return
    with pytest.raises(error):
        opened(web + path)


@pytest.mark.parametrize("path", ["/encoded.csv.gz", "/encoded.csv"])
def test_an_http_input_is_the_bytes_that_were_sent(web: str, path: str) -> None:
    with inputs.open_input(web + path, s3_client=lambda: None, local_root=None) as file:
        assert file.length == len(PACKED)  # type: ignore[attr-defined]
        upload = Upload(file)
        assert (upload.len, b"".join(upload)) == (len(PACKED), PACKED)


def test_a_cut_http_input_never_passes_for_whole(web: str) -> None:
    for path in ("/cut.gz", "/chunked.gz"):
        for read in (opened, lambda uri: b"".join(uploaded(uri))):
            with pytest.raises(InputUnreadable):
                read(web + path)
    assert opened(f"{web}/chunked.gz?whole") == PACKED[:5]


def uploaded(uri: str) -> Iterator[bytes]:
    with inputs.open_input(uri, s3_client=lambda: None, local_root=None) as file:
        yield from Upload(file)


def test_a_compressed_input_of_the_store_stays_as_it_is(place: Place) -> None:
    artifact = place.store.write(uuid4(), 1, "x.csv.gz", iter([PACKED[:-4]]))
    with place.store.open_input(artifact.uri) as file:
        assert file.read() == PACKED[:-4]


def test_redirects_in_a_ring_end(web: str) -> None:
    with pytest.raises(InputMissing, match="redirects"):
        opened(f"{web}/ring")


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[::ffff:a9fe:a9fe]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "169.254.0.1",
    ],
)
def test_no_connection_is_made_to_a_metadata_address(host: str) -> None:
    with pytest.raises(InputMissing, match="metadata"):
        opened(f"http://{host}/latest/meta-data/")


@pytest.mark.parametrize("host", ["localhost", "2130706433", "0x7f.1"])
def test_a_name_or_an_odd_number_that_leads_to_a_metadata_address_gets_no_request(
    web: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.0/8 stands in for it here: no such address can be listened at without rights."""
    import ipaddress

    monkeypatch.setenv("NO_PROXY", f"localhost,{host}")
    url = web.replace("127.0.0.1", host) + "/ok"
    assert opened(url) == b"content"
    monkeypatch.setattr(inputs, "_METADATA", (ipaddress.ip_network("127.0.0.0/8"),))
    with pytest.raises(InputMissing, match="metadata"):
        opened(url)


def test_a_presigned_query_is_not_repeated(web: str) -> None:
    with pytest.raises(InputMissing) as caught:
        opened(f"{web}/404?X-Amz-Signature={SECRET}")
    assert SECRET not in str(caught.value)
    with pytest.raises(InputMissing) as caught:
        opened(f"http://user:{SECRET}@{web.removeprefix('http://')}/404")
    assert SECRET not in str(caught.value)


def test_what_a_killed_writer_left_is_discarded_and_no_others(s3: Any, fresh_client: None) -> None:
    place, mine, other = s3_place(s3), uuid4(), uuid4()
    for job_id in (mine, other):
        key = place.store.uri(job_id, 1, "half.bin").removeprefix("s3://artifacts/")
        s3.create_multipart_upload(Bucket="artifacts", Key=key)
    assert place.dangling() == 2
    place.store.discard_partial(mine, 1)
    assert place.dangling() == 1
    place.store.discard_partial(other, 1)
    assert place.dangling() == 0


def test_unfinished_files_of_a_folder_are_discarded(tmp_path: Path) -> None:
    place, job_id = local_place(tmp_path), uuid4()
    whole = place.store.write(job_id, 1, "a/whole.part", [b"x"])
    left = Path(unquote(urlsplit(whole.uri).path)).with_name(f".{uuid4().hex}.part")
    left.touch()
    place.store.discard_partial(job_id, 1)
    assert not left.exists()
    with place.store.open(whole.uri) as file:
        assert file.read() == b"x"
