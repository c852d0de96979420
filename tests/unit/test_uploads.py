"""Local inputs: what a folder brings is what a job may have, before anything is uploaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from rythmiq_ray import Input, JobSpec, NewJob
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.uploads import Uploads


def of(*inputs: Input) -> Uploads:
    return Uploads.of([NewJob(spec=JobSpec(command="true", inputs=inputs))])


@pytest.mark.parametrize(
    ("files", "name", "said"),
    [
        (["a.py", "run.sh"], "./", "'run.sh' is a name that rythmiq uses itself"),
        (["rythmiq-result.json"], "./", "is a name that rythmiq uses itself"),
        (["a\\b"], "src/", "backslash"),
        (["a\nb"], "src/", "control character"),
        (["A.txt", "a.txt"], "src/", "clashes with"),
        ([f"{n}.txt" for n in range(1001)], "src/", "1,001 entries; the most is 1,000: pack them"),
    ],
)
def test_names_in_a_folder_are_checked(tmp_path: Path, files: Sequence[str], name: str, said: str) -> None:
    for each in files:
        (tmp_path / each).touch()
    with pytest.raises(InvalidJob, match=re.escape(said)):
        of(Input(uri=str(tmp_path), name=name))


def test_two_folders_do_not_bring_one_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        (folder / "x.csv").write_text(folder.name)
    with pytest.raises(InvalidJob, match=rf"inputs\[1\]: '{two}' contains a file .*'in/x\.csv' is there twice"):
        of(Input(uri=str(one), name="in/"), Input(uri=str(two), name="in/"))
    apart = of(Input(uri=str(one), name="one/"), Input(uri=str(two), name="two/"))
    assert list(apart.files) == [one / "x.csv", two / "x.csv"]
