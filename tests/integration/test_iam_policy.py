"""deploy/aws: each policy allows the calls that its holder makes of S3, as recorded here, and nothing more."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import parliament
import pytest

from rythmiq_ray.artifacts.s3 import S3ArtifactStore
from rythmiq_ray.config import ArtifactsConfig
from rythmiq_ray.errors import ArtifactCorrupt
from rythmiq_ray.local.s3 import S3

FOLDER = Path(__file__).parents[2] / "deploy/aws"
WORKER, OPERATOR, ENQUEUE = "iam-policy.json", "iam-policy-operator.json", "iam-policy-enqueue.json"
BUCKET_IN_POLICY = "my-artifacts"
PART_BYTES = 5 * 1024 * 1024
# Which permission an S3 operation needs, where they differ in name: AWS's Service Authorization Reference for S3.
PERMISSIONS = {
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
    "ListMultipartUploads": "ListBucketMultipartUploads",
    "ListObjectsV2": "ListBucket",
    "HeadObject": "GetObject",
}


@dataclass(frozen=True)
class Call:
    action: str
    resource: str
    prefix: str | None


class Recorder:
    """Real calls of the store to a real S3, as what IAM would see of them."""

    def __init__(self, s3: S3, bucket: str) -> None:
        self.client = s3.client()
        self.client.meta.events.register("provide-client-params.s3", self._note)
        config = ArtifactsConfig(
            type="s3", bucket=bucket, path=None, prefix="rythmiq", part_size_bytes=PART_BYTES, concurrency=1
        )
        self.store = S3ArtifactStore(config, bucket, client=lambda: self.client)
        self.calls: set[Call] = set()

    def _note(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        place = "/".join(filter(None, (BUCKET_IN_POLICY, params.get("Key"))))
        action = PERMISSIONS.get(model.name, model.name)
        self.calls.add(Call(f"s3:{action}", f"arn:aws:s3:::{place}", params.get("Prefix")))


@pytest.fixture
def recorder(s3: S3, s3_bucket: str) -> Recorder:
    return Recorder(s3, s3_bucket)


def statements(policy: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((FOLDER / policy).read_text(encoding="utf-8"))["Statement"]
    return loaded


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allowed(policy: str, call: Call) -> bool:
    for statement in statements(policy):
        prefix = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", "*")
        if (
            call.action in listed(statement["Action"])
            and any(fnmatchcase(call.resource, pattern) for pattern in listed(statement["Resource"]))
            and fnmatchcase(call.prefix or "", prefix)
        ):
            return True
    return False


def check(policy: str, calls: set[Call]) -> None:
    assert {call for call in calls if not allowed(policy, call)} == set(), "refused"
    granted = {action for statement in statements(policy) for action in listed(statement["Action"])}
    assert granted - {call.action for call in calls} == set(), "granted and not needed"


def test_the_nodes_policy_is_what_a_driver_and_its_tasks_do(recorder: Recorder) -> None:
    store, job_id = recorder.store, uuid4()
    parts = [b"x" * PART_BYTES] * 2
    store.check()
    store.write(job_id, 1, "small", [b"x"], expected_bytes=1)
    large = store.write(job_id, 1, "large", parts)
    store.write_manifest(job_id, 1, {"artifacts": []})
    with pytest.raises(ArtifactCorrupt):
        store.write(job_id, 1, "half", parts, expected_bytes=3 * PART_BYTES)
    recorder.client.create_multipart_upload(Bucket=recorder.store._bucket, Key=f"rythmiq/{job_id}/1/dangling")
    store.discard_partial(job_id, 1)
    with store.open_input(large.uri) as source:
        assert source.read(1)
    recorder.client.put_object(Bucket=recorder.store._bucket, Key="inputs/a.csv", Body=b"1")
    recorder.calls = {call for call in recorder.calls if not call.resource.endswith("inputs/a.csv")}
    assert [name for _, name in store.list_inputs(f"s3://{recorder.store._bucket}/inputs/*.csv")] == ["a.csv"]
    check(WORKER, recorder.calls)
    assert not allowed(WORKER, Call("s3:DeleteObject", f"arn:aws:s3:::{BUCKET_IN_POLICY}/rythmiq/{job_id}/1/x", None))
    assert not allowed(WORKER, Call("s3:PutObject", f"arn:aws:s3:::{BUCKET_IN_POLICY}/elsewhere", None))


def test_the_operators_policy_is_what_reading_and_pruning_do(recorder: Recorder) -> None:
    uri = stored(recorder, job_id := uuid4())
    recorder.calls.clear()
    with recorder.store.open(uri) as source:
        assert source.read() == b"x"
    assert list(recorder.store.list_files(job_id)) == [uri]
    recorder.store.delete(uri)
    check(OPERATOR, recorder.calls)
    assert not allowed(OPERATOR, Call("s3:ListBucket", f"arn:aws:s3:::{BUCKET_IN_POLICY}", ""))


def test_the_policy_of_who_enqueues_is_what_uploading_inputs_does(recorder: Recorder) -> None:
    parts = [b"x" * PART_BYTES] * 2
    whole = b"".join(parts)
    digest = hashlib.sha256(whole).hexdigest()
    assert recorder.store.find_input(digest, len(whole)) is None
    uri = recorder.store.write_input(digest, len(whole), parts)
    assert recorder.store.find_input(digest, len(whole)) == uri
    assert recorder.store.find_input(digest, 1) is None, "half a file is none"
    with pytest.raises(ArtifactCorrupt):
        recorder.store.write_input("0" * 64, len(whole), parts)
    check(ENQUEUE, recorder.calls)


def stored(recorder: Recorder, job_id: UUID) -> str:
    return recorder.store.write(job_id, 1, "file", [b"x"]).uri


def test_every_call_of_the_store_was_recorded() -> None:
    """A new method has to be added to one of the tests above."""
    public = {name for name in vars(S3ArtifactStore) if not name.startswith("_")}
    assert public == {
        *("check", "uri", "write", "write_manifest", "open_input", "discard_partial"),
        *("open", "list_files", "delete", "list_inputs", "find_input", "write_input"),
    }


@pytest.mark.parametrize("policy", sorted(path.name for path in FOLDER.glob("*.json")))
def test_iam_takes_the_policy(policy: str) -> None:
    findings = parliament.analyze_policy_string((FOLDER / policy).read_text(encoding="utf-8")).findings
    assert [(finding.issue, finding.detail) for finding in findings] == []
