"""Which jobs' stored files an input reaches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from rythmiq_ray.artifacts.reach import Reach, reach_of
from rythmiq_ray.config import ArtifactsConfig
from rythmiq_ray.config_loader import load

JOB = UUID("01a21bcb-5556-7ddf-8000-000000000001")


@pytest.fixture(scope="module")
def s3() -> ArtifactsConfig:
    environ = {
        "DATABASE_URL": "postgresql://h/d",
        "ARTIFACT_STORE_TYPE": "s3",
        "ARTIFACT_STORE_BUCKET": "lab",
        "EXECUTION_BACKEND": "camber",
        "CAMBER_API_KEY": "k",
    }
    return load(environ=environ).config.artifacts


@pytest.mark.parametrize(
    ("uri", "reach"),
    [
        (f"s3://lab/rythmiq/{JOB}/1/out.csv", JOB),
        (f"S3://lab/rythmiq/{JOB}/1/out.csv", JOB),
        (f"s3://lab/rythmiq/{JOB}/", JOB),
        (f"s3://lab//rythmiq/{JOB}/1/log.txt", JOB),
        (f"s3://lab/rythmiq//{JOB}/1/log.txt", JOB),
        (f"s3://lab//rythmiq/{JOB}/", JOB),
        (f"s3://lab/x/../rythmiq/{JOB}/1/log.txt", JOB),
        ("s3://lab//rythmiq//*", Reach.ALL),
        (f"s3://lab/rythmiq/{JOB}/*/x", JOB),
        ("s3://lab/rythmiq/*/1/out.csv", Reach.ALL),
        ("s3://lab/rythmiq/01a21*/1/out.csv", Reach.ALL),
        ("s3://lab/rythmiq/", Reach.ALL),
        ("s3://lab/*", Reach.ALL),
        ("s3://lab/ryth*", Reach.ALL),
        ("s3://lab/rythmiq/inputs/", Reach.ALL),
        (f"s3://lab/rythmiq/inputs/{'0' * 64}", Reach.NOTHING),
        ("s3://lab/rythmiq/notes.txt", Reach.NOTHING),
        ("s3://lab/data/", Reach.NOTHING),
        ("s3://lab/data/*.csv", Reach.NOTHING),
        ("s3://other/rythmiq/", Reach.NOTHING),
        (f"https://lab.s3.amazonaws.com/rythmiq/{JOB}/1/x", Reach.NOTHING),
        (f"job:{JOB}/x", Reach.NOTHING),
    ],
)
def test_in_a_bucket(s3: ArtifactsConfig, uri: str, reach: object) -> None:
    assert reach_of(uri, s3) == reach


def test_in_a_bucket_that_has_artifacts_at_its_root_and_other_data_beside_them(s3: ArtifactsConfig) -> None:
    config = replace(s3, prefix="")
    assert reach_of(f"s3://lab/{JOB}/1/x", config) == JOB
    assert reach_of("s3://lab/data/*.csv", config) is Reach.NOTHING
    assert reach_of("s3://lab/*/1/x", config) is Reach.ALL


@pytest.mark.parametrize("path", ["{}/store", "{}/link", "store"])
@pytest.mark.parametrize(
    "uri",
    [
        "file://{}/store/rythmiq/{}/1/x",
        "file://localhost{}/store/rythmiq/{}/1/x",
        "file:///{}/store/rythmiq/{}/1/x",
        "file://{}/link/rythmiq/{}/1/x",
        "file://{}/store/rythmiq/inputs/../{}/1/x",
        "file://{}/store/%72ythmiq/{}/1/x",
    ],
)
def test_in_a_folder_however_it_and_the_uri_are_written(
    s3: ArtifactsConfig, uri: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store" / "rythmiq" / "inputs").mkdir(parents=True)
    (tmp_path / "link").symlink_to("store")
    monkeypatch.chdir(tmp_path)
    config = replace(s3, type="local", path=path.format(tmp_path))
    assert reach_of(uri.format(tmp_path, JOB), config) == JOB
    assert reach_of(f"file://{tmp_path}/elsewhere", config) is Reach.NOTHING
    assert reach_of("http://[", config) is Reach.NOTHING
