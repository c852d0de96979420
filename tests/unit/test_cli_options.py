"""What the command line's own notations mean."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from rythmiq_ray.cli import output
from rythmiq_ray.cli.enqueue import env_of, input_of
from rythmiq_ray.cli.output import age, printable, size
from rythmiq_ray.errors import InvalidJob


@pytest.mark.parametrize(
    ("text", "uri", "name"),
    [
        ("s3://b/k.csv", "s3://b/k.csv", "k.csv"),
        ("s3://b/k.csv=x.csv", "s3://b/k.csv", "x.csv"),
        ("s3://b/dt=1/k.csv", "s3://b/dt=1/k.csv", "k.csv"),
        ("s3://b/dt=1/k.csv=x.csv", "s3://b/dt=1/k.csv", "x.csv"),
        ("s3://b/dt=1/k.csv=./in/x.csv", "s3://b/dt=1/k.csv", "in/x.csv"),
        ("s3://b/k?x=y", "s3://b/k?x", "y"),
        ("s3://b/k=", "s3://b/k", ""),
        ("https://h/f.csv?a=1&b=2", "https://h/f.csv?a=1&b=2", "f.csv"),
        ("https://h/f.csv?a=1&b=2=./x=y.csv", "https://h/f.csv?a=1&b=2", "x=y.csv"),
        ("https://h/f.csv=x.csv", "https://h/f.csv", "x.csv"),
        ("file:///data/a=b", "file:///data/a", "b"),
        ("s3://b/weights=w.bin", "s3://b/weights", "w.bin"),
        ("s3://b/x.csv=1.csv", "s3://b/x.csv", "1.csv"),
        *(
            (f"s3://b/ckpt/{key}", f"s3://b/ckpt/{key}", key)
            for key in ("epoch=3-step=1000.ckpt", "step=1000.ckpt", "epoch=3-loss=0.5-step=a.ckpt", "a=b=c", "dt=2024")
        ),
        ("s3://b/epoch=3-step=1000.ckpt=./in.ckpt", "s3://b/epoch=3-step=1000.ckpt", "in.ckpt"),
        ("s3://b/epoch=3-step=1000.ckpt=in.ckpt", "s3://b/epoch=3-step=1000.ckpt", "in.ckpt"),
        ("https://h/epoch=3-step=1000.ckpt", "https://h/epoch=3-step=1000.ckpt", "epoch=3-step=1000.ckpt"),
    ],
)
def test_input_notation(text: str, uri: str, name: str) -> None:
    assert input_of(text) == {"uri": uri, "name": name}


def test_env_notation() -> None:
    assert env_of(["A=1", "B=", "C=x=y"]) == {"A": "1", "B": "", "C": "x=y"}


def test_env_faults_show_no_value() -> None:
    with pytest.raises(InvalidJob) as caught:
        env_of(["A=hush", "A=hush", "hush"])
    assert caught.value.faults == ["env: 'A' is there twice", "env[2]: must be K=V"]


def test_ages_and_sizes_are_short() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    ages = [age(now - timedelta(seconds=s), now) for s in (0, 119, 120, 7199, 7200, 172_799, 172_800)]
    assert ages == ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]
    assert age(now + timedelta(seconds=300), now) == "in 5m"
    assert age(None, now) == "-"
    assert [size(n) for n in (0, 1023, 1024, 1536 * 1024, 5 * 1024**4)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 MiB",
        "5.0 TiB",
    ]


def test_a_row_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[2Jb\r\nc\u202e") == "a\\x1b[2Jb\\r c\\u202e"
    assert printable("данные 1") == "данные 1"


def test_json_is_json_whatever_a_result_holds(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_items([{"loss": float("nan"), "by": [float("-inf"), {"x": 1.5}]}])
    refuse = lambda name: pytest.fail(f"{name} is not JSON")  # noqa: E731
    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found["items"] == [{"loss": None, "by": [None, {"x": 1.5}]}]
