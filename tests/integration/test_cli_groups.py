"""Sweeps, chains and what is done with groups, by the command line, as a scientist does it in a day."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from rythmiq_ray import Client, JobSpec, NewJob, cli, grid

pytest_plugins = ["rythmiq_ray.testing"]

FIT = """
import json, os, sys
print("fitting", os.environ["LR"], os.environ["SEED"])
json.dump({"loss": float(os.environ["LR"]) * int(os.environ["SEED"])}, open("score.json", "w"))
if os.environ["SEED"] == "3" and not os.path.exists("mended"):
    sys.exit("seed 3 is bad: %s" % os.environ["LR"])
"""
SWEEP = (
    *("sweep", "--name", "lr", "--command", "python3 fit.py", "--input", "./fit.py", "--output", "score.json"),
    *("--param", "LR=0.1,0.01", "--param", "SEED=1..3", "--label", "team=ml", "--max-attempts", "1"),
)


class Shell:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str, code: int = 0) -> str:
        found = cli.run(list(arguments))
        printed = self._capsys.readouterr()
        assert found == code, printed.err
        self.err = printed.err
        return printed.out

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code))


@pytest.fixture
def shell(
    rythmiq: Client, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Shell:
    (tmp_path / "fit.py").write_text(FIT)
    monkeypatch.chdir(tmp_path)
    return Shell(capsys)


def test_a_day_with_a_sweep(shell: Shell, tmp_path: Path) -> None:
    said = shell(*SWEEP, "--timeout", "1h", "--dry-run")
    assert said.startswith("6 members; nothing was enqueued\n  LR=0.1 SEED=1: python3 fit.py\n")
    assert "1.92 credits at most" in said
    assert shell.json("groups")["total"] == 0
    group_id = shell(*SWEEP, "--max-parallel", "4").strip()
    merge = shell(
        *("enqueue", "--name", "merge", "--command", "cat scores/*/score.json > all.txt", "--output", "all.txt"),
        *("--input", "group:lr/score.json=scores/", "--after-ended", "lr"),
    ).strip()
    assert shell.json("wait", "lr", code=3)["items"] == [
        {"id": group_id, "kind": "group", "state": "FAILED", "members": 6, "ended": 6, "failed": 2}
    ]
    assert shell("wait", merge, "--timeout", "60s") == f"{merge}  SUCCEEDED\n"
    shown = shell("show", "lr")
    for words in ("name         lr", "4 SUCCEEDED, 2 FAILED", "team=ml", "2 x command_failed", "such as "):
        assert words in shown, shown
    record = shell.json("show", group_id[:8])
    assert record["states"]["SUCCEEDED"] == 4
    assert record["errors"][0]["jobs"] == 2
    rows = list(csv.DictReader(io.StringIO(shell("gather", "lr", "--file", "score.json"))))
    assert [(row["LR"], row["SEED"], row["loss"]) for row in rows if row["state"] == "SUCCEEDED"] == [
        ("0.1", "1", "0.1"),
        ("0.1", "2", "0.2"),
        ("0.01", "1", "0.01"),
        ("0.01", "2", "0.02"),
    ]
    shell("gather", "lr", "--file", "score.json", "-o", "table.jsonl")
    assert len((tmp_path / "table.jsonl").read_text().splitlines()) == 6
    assert "seed 3 is bad: 0.1" in shell("logs", "lr", "-n", "3")
    assert shell("artifacts", "lr", "--download", "out").startswith("12 files, ")
    assert (tmp_path / "out/0000_LR=0.1_SEED=1/score.json").exists()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    (tmp_path / "out/0000_LR=0.1_SEED=1/score.json").write_text("cut")
    shell("artifacts", "lr", "--download", "out")
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    assert [path.parent.name for path in after if after[path] != before[path]] == ["0000_LR=0.1_SEED=1"], "it goes on"
    listed = shell.json("jobs", "--group", "lr", "--state", "failed", "--label", "team=ml", "--limit", "1")
    assert (listed["total"], len(listed["items"]), listed["next"]) == (2, 1, listed["items"][0]["job_id"])
    rest = shell.json("jobs", "--group", "lr", "--state", "failed", "--limit", "1", "--before", listed["next"])
    assert (len(rest["items"]), rest["next"]) == (1, None)
    manifest = json.loads(Path(shell.json("show", merge)["artifact_uri"].removeprefix("file://")).read_text())
    assert [item["name"] for item in manifest["inputs"]] == [f"scores/{at:04}/score.json" for at in (0, 1, 3, 4)]
    assert all(len(item["sha256"]) == 64 and item["bytes"] for item in manifest["inputs"])
    assert len(shell("retry", "lr").split()) == 2
    shell("wait", "lr", code=3)
    shell("prune", "lr", "--artifacts", "--yes")
    assert shell.json("groups")["total"] in (0, 1), "the janitor has to be first"


def test_a_failure_goes_down_the_chain_and_a_retry_brings_it_back(shell: Shell, tmp_path: Path) -> None:
    flag = tmp_path / "mended"
    first = shell("enqueue", "--command", f"test -e {flag}", "--max-attempts", "1", "--name", "one").strip()
    second = shell("enqueue", "--command", "true", "--after", first).strip()
    assert shell.json("wait", second, code=3)["items"][0]["state"] == "CANCELLED"
    assert shell.json("show", second)["error_code"] == "dependency_failed"
    flag.touch()
    assert shell("retry", "one", "--downstream").split() == [first, second]
    shell("wait", second, "--timeout", "60s")


def test_filters_mean_the_same_everywhere(shell: Shell, rythmiq: Client) -> None:
    rythmiq.submit_many(
        [
            NewJob(
                spec=JobSpec(command="true"),
                queue="nobody's",
                name=f"job-{at}",
                user_id=user,
                labels={"n": str(at)},
                delay=3600,
            )
            for at, user in enumerate(["ann", "bob", "ann"])
        ]
    )
    names = lambda *filters: sorted(job["name"] for job in shell.json("jobs", *filters)["items"])  # noqa: E731
    assert names("--user", "ann") == ["job-0", "job-2"]
    assert names("--name", "job-[12]") == ["job-1", "job-2"]
    assert names("--label", "n=1") == ["job-1"]
    assert names("--since", "1h", "--queue", "nobody's") == ["job-0", "job-1", "job-2"]
    assert names("--until", "1h") == []
    assert shell("jobs", "--user", "bob").endswith("1 job: 1 QUEUED\n")
    shell("cancel", "--user", "ann", code=1)
    assert "Cancel 2 jobs?" in shell.err
    assert len(shell.json("cancel", "--user", "ann", "--yes")["items"]) == 2
    assert len(shell.json("retry", "--error", "cancelled", "--name", "job-0", "--yes")["items"]) == 1
    shell("wait", "--name", "job-2", code=3)
    shell("wait", "job-1", "--timeout", "0.2", code=124)
    shell("wait", "--label", "n=none", code=4)
    for command in ("jobs", "groups", "cancel"):
        shell(command, "--name", "[z-a]", code=2)
        assert "--name: is not a pattern" in shell.err
    shell("gather", "--name", "job-0", "-o", "table.xlsx", code=2)
    assert "table.xlsx: a table is written as one of .csv, .json, .jsonl" in shell.err
    shell("gather", "--name", "job-0", "-o", "table.json", "--json", code=2)
    assert "--json writes to stdout" in shell.err
    for command in ("cancel", "retry", "collect", "wait", "gather", "logs", "artifacts", "prune"):
        shell(command, code=2)
        assert "give ids, names or groups, or filters" in shell.err
    for command in ("show", "wait", "logs", "artifacts", "gather", "cancel", "retry", "collect"):
        shell(command, "no-such-thing", code=4)


def test_what_is_wrong_is_said_before_anything_is_stored(shell: Shell) -> None:
    for arguments, said in (
        (("--input", "./none.py"), "there is no file './none.py' here"),
        (("--label", "x"), "label[0]: must be K=V"),
        (("--after", "nobody"), "after: there is no job or group 'nobody': give a whole id, a group's name, or"),
        (("--input", "job:nobody/x"), "inputs[0].uri: there is no job 'nobody'"),
        (("--input", "group:/x"), "must be job:ID/GLOB or group:ID/GLOB"),
    ):
        shell("enqueue", "--command", "true", *arguments, code=2)
        assert said in shell.err
    for arguments, said in (
        ((), "give --param or --params"),
        (("--param", "N"), "must be NAME=VALUE"),
        (("--param", "N=1,2", "--param", "N=3"), "given twice"),
        (("--param", "N=1,2", "--param", "M=1", "--zip"), "N has 2, M has 1"),
        (("--params", "none.csv"), "No such file"),
    ):
        shell("sweep", "--command", "true", *arguments, code=2)
        assert said in shell.err
    assert shell.json("jobs")["total"] == 0


def test_a_queue_that_nobody_serves_is_said(shell: Shell, rythmiq: Client) -> None:
    with rythmiq._database() as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE rythmiq.drivers SET queues = '{default}'")
    shell("enqueue", "--command", "true", "--queue", "defualt")
    assert "no live driver serves the queue 'defualt'" in shell.err


def test_folders_and_patterns_are_inputs(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "src/deep").mkdir(parents=True)
    (tmp_path / "src/a.py").write_text("a")
    (tmp_path / "src/deep/b.py").write_text("b")
    first = shell(
        *("enqueue", "--command", "find . -name '*.py' | sort; mkdir out; echo 1 > out/x.txt; echo 2 > out/y.txt"),
        *("--input", "./src", "--input", "src/=code/", "--output", "out/*"),
    ).strip()
    shell("wait", first, "--timeout", "60s")
    assert shell("logs", first).split() == ["./code/a.py", "./code/deep/b.py", "./src/a.py", "./src/deep/b.py"]
    second = shell("enqueue", "--command", "cat in/out/*.txt", "--input", f"job:{first}/out/*.txt=in/").strip()
    shell("wait", second, "--timeout", "60s")
    assert shell("logs", second).split() == ["1", "2"]
    third = shell("enqueue", "--command", "true", "--input", f"job:{first}/none/*", "--max-attempts", "1").strip()
    shell("wait", third, "--timeout", "60s", code=3)
    assert shell.json("show", third)["error_code"] == "input_missing"


def test_two_groups_do_not_share_a_folder(shell: Shell, rythmiq: Client, tmp_path: Path) -> None:
    spec = JobSpec(command="echo $N > n.txt", outputs=("n.txt",))
    sweeps = [rythmiq.sweep(spec, grid(N=[n, n + 1]), name=name) for n, name in ((1, "lr"), (5, "lr"), (9, "mo/re"))]
    alone = rythmiq.submit(JobSpec(command="echo 0 > n.txt", outputs=("n.txt",)))
    asked = [str(each.id) for each in (*sweeps, alone)]
    shell("wait", *asked, "--timeout", "120s")
    assert shell("artifacts", *asked, "--download", "out").startswith("14 files, ")
    found = {
        str(path.relative_to(tmp_path / "out").parent): path.read_text().strip() for path in tmp_path.rglob("n.txt")
    }
    assert found == {
        **{
            f"lr_{sweeps[at].id}/{place:04}_N={n}": str(n)
            for at, place, n in ((0, 0, 1), (0, 1, 2), (1, 0, 5), (1, 1, 6))
        },
        "mo_re/0000_N=9": "9",
        "mo_re/0001_N=10": "10",
        str(alone.id): "0",
    }


def test_sizes_and_completion(shell: Shell) -> None:
    items = shell.json("sizes")["items"]
    assert {"node_size": "XSMALL", "gpu": True, "cpus": 8, "memory_gb": 32, "gpus": 1, "credits_per_hour": 1.5} in items
    for name in ("bash", "zsh", "fish"):
        assert "rythmiq" in shell("completion", name)
    shell("completion", "tcsh", code=2)
