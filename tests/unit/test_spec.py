"""The check of a job: what is refused, with which field, and that nothing else ever comes out of it."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from rythmiq_ray.config import CamberCatalog, NodeSize
from rythmiq_ray.errors import InvalidJob
from rythmiq_ray.model import Input, JobSpec, NewJob
from rythmiq_ray.spec import Line, check, default_name, json_schema, parse, parse_lines, read_spec

_SIZE = NodeSize(cpus=1, memory_gb=4, gpus=0, credits_per_hour=0.04)
CATALOG = CamberCatalog(
    engines=("BASE", "MPI", "OPENFOAM"),
    cpu_sizes={"XXSMALL": _SIZE, "XSMALL": _SIZE, "MEDIUM": _SIZE},
    gpu_sizes={"XSMALL": _SIZE, "MEDIUM": _SIZE},
)


def faults_of(**fields: Any) -> list[str]:
    """The faults of one JSON object with a fine command, by way of the same door as a file's line."""
    with pytest.raises(InvalidJob) as caught:
        parse_lines([json.dumps({"command": "true"} | fields)], CATALOG)
    assert all(fault.startswith("line 1: ") for fault in caught.value.faults)
    return [fault.removeprefix("line 1: ") for fault in caught.value.faults]


def parsed(**fields: Any) -> NewJob:
    (job,) = parse_lines([json.dumps({"command": "true"} | fields)], CATALOG)
    return job


def test_a_whole_job_is_read() -> None:
    job = parsed(
        command="python3 in.py\n",
        engine="OpenFOAM",
        node_size="Medium",
        num_nodes=2,
        gpu=True,
        inputs=[{"uri": "s3://bucket/in.py", "name": "in.py"}, {"uri": "https://host/a%20b.csv?x=1/2"}],
        outputs=["results/*.csv", "./log/**", "[A-Z]*", "[a-z]*"],
        env={"A": "1", "_b": ""},
        secrets=["TOKEN"],
        timeout="2h",
        retry_exit_codes=[1, 255],
        max_attempts=5,
        priority=-3,
        queue="night",
        user_id="u1",
        unique_key="k",
        delay=60,
    )
    assert job == NewJob(
        spec=JobSpec(
            command="python3 in.py\n",
            engine="OpenFOAM",
            node_size="Medium",
            num_nodes=2,
            gpu=True,
            inputs=(
                Input(uri="s3://bucket/in.py", name="in.py"),
                Input(uri="https://host/a%20b.csv?x=1/2", name="a b.csv"),
            ),
            outputs=("results/*.csv", "./log/**", "[A-Z]*", "[a-z]*"),
            env={"A": "1", "_b": ""},
            secrets=("TOKEN",),
            timeout=7200,
            retry_exit_codes=(1, 255),
        ),
        max_attempts=5,
        priority=-3,
        queue="night",
        user_id="u1",
        unique_key="k",
        delay=60,
    )


def test_defaults_are_the_models() -> None:
    assert parsed() == NewJob(spec=JobSpec(command="true"))
    assert parsed(timeout=None, user_id=None, unique_key=None, retry_exit_codes=None) == parsed()


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"command": ""}, "command: is missing or blank"),
        ({"command": " \n\t"}, "command: is missing or blank"),
        ({"command": None}, "command: must be a string, not null"),
        ({"command": ["a"]}, "command: must be a string, not a list"),
        ({"command": "a\0b"}, "command: holds a NUL byte"),
        ({"command": "a\ud800"}, "command: holds a lone surrogate"),
        ({"command": "x" * (256 * 1024 + 1)}, "command: has 262,145 bytes"),
        ({"command": "é" * (128 * 1024 + 1)}, "command: has 262,146 bytes"),
        ({"engine": "bsae"}, "engine: there is no 'bsae'; did you mean BASE?"),
        ({"engine": "qqqqqq"}, "engine: there is no 'qqqqqq'; known are BASE, MPI, OPENFOAM"),
        ({"engine": 1}, "engine: must be a string, not a number"),
        ({"node_size": "xsmal"}, "node_size: there is no 'xsmal'; did you mean XSMALL?"),
        (
            {"node_size": "xxsmall", "gpu": True},
            "node_size: XXSMALL has no GPU; those that have one are XSMALL, MEDIUM",
        ),
        ({"node_size": "x\0"}, "node_size: there is no 'x\\x00'"),
        ({"num_nodes": 0}, "num_nodes: must be a whole number from 1 to 100"),
        ({"num_nodes": 101}, "num_nodes: must be a whole number from 1 to 100"),
        ({"num_nodes": True}, "num_nodes: must be a whole number from 1 to 100"),
        ({"num_nodes": 1.0}, "num_nodes: must be a whole number from 1 to 100"),
        ({"gpu": 1}, "gpu: must be true or false, not a number"),
        ({"inputs": {}}, "inputs: must be a list of objects with uri and name, not an object"),
        ({"inputs": ["s3://bucket/key"]}, "inputs[0]: must be an object with uri and name, not a string"),
        ({"inputs": [{"uri": "s3://b/k", "path": "x"}]}, "inputs[0].'path': is not a field of an input"),
        ({"inputs": [{"name": "x"}]}, "inputs[0].uri: is missing"),
        ({"inputs": [{"uri": "s3://b/k", "name": 1}]}, "inputs[0].name: must be a string, not a number"),
        ({"inputs": [{"uri": "https://host/"}]}, "inputs[0].name: is missing, and the URI ends in no file name"),
        ({"inputs": [{"uri": f"s3://b/{n}"} for n in range(1001)]}, "inputs: has 1,001 entries"),
        ({"outputs": "*.csv"}, "outputs: must be a list of strings, not a string"),
        ({"outputs": [1]}, "outputs[0]: must be a string, not a number"),
        ({"outputs": [""]}, "outputs[0]: '' is empty"),
        ({"outputs": ["/etc/*"]}, "outputs[0]: '/etc/*' is absolute"),
        ({"outputs": [".//etc/*"]}, "outputs[0]: '/etc/*' is absolute"),
        ({"outputs": ["a/../../b"]}, "outputs[0]: 'a/../../b' has a segment '..'"),
        ({"outputs": ["results//"]}, "outputs[0]: 'results/' has a segment ''"),
        ({"outputs": ["a\n"]}, "outputs[0]: 'a\\n' has a control character"),
        ({"outputs": ["a", "b", "a"]}, "outputs[2]: 'a' is there twice"),
        ({"outputs": ["a", "./a"]}, "outputs[1]: './a' and 'a' clash"),
        ({"outputs": ["a.txt", "A.TXT"]}, "outputs[1]: 'A.TXT' and 'a.txt' clash"),
        ({"outputs": ["*", "*"]}, "outputs[1]: '*' is there twice"),
        ({"outputs": ["log.txt"]}, "outputs[0]: 'log.txt' is a name that rythmiq uses itself"),
        ({"outputs": ["./Manifest.json"]}, "outputs[0]: 'Manifest.json' is a name that rythmiq uses itself"),
        ({"outputs": ["rythmiq-result.json"]}, "outputs[0]: 'rythmiq-result.json' is a name that rythmiq uses itself"),
        ({"outputs": [f"{n}" for n in range(1001)]}, "outputs: has 1,001 entries"),
        ({"outputs": ["x" * 256]}, f"outputs[0]: {'x' * 77 + '...'!r} has a segment longer than 255 bytes"),
        ({"env": ["A=1"]}, "env: must be an object of strings, not a list"),
        ({"env": {"A": 1}}, "env.A: must be a string, not a number"),
        ({"env": {"1A": ""}}, "env.'1A': must be letters, digits and _"),
        ({"env": {"A\n": ""}}, "env.'A\\n': must be letters, digits and _"),
        ({"env": {"BASH_ENV": ""}}, "env.'BASH_ENV': is a name that bash or rythmiq uses itself"),
        ({"env": {"PWD": ""}}, "env.'PWD': is a name that bash or rythmiq uses itself"),
        ({"env": {"UID": ""}}, "env.'UID': is a name that bash or rythmiq uses itself"),
        ({"env": {"RYTHMIQ_X": ""}}, "env.'RYTHMIQ_X': is a name that bash or rythmiq uses itself"),
        ({"env": {"A": "\0"}}, "env.A: holds a NUL byte"),
        ({"env": {"A": "\udfff"}}, "env.A: holds a lone surrogate"),
        ({"env": {"A": "x" * (128 * 1024)}}, "env.A: has 131,074 bytes"),
        ({"env": dict.fromkeys("ABC", "x" * 100_000)}, "env: has 300,006 bytes in all"),
        ({"secrets": "TOKEN"}, "secrets: must be a list of names, not a string"),
        ({"secrets": ["token"]}, "secrets[0]: must be a name of capital letters"),
        ({"secrets": ["RYTHMIQ_X"]}, "secrets[0]: 'RYTHMIQ_X' is a name that bash or rythmiq uses itself"),
        ({"secrets": ["A", "A"]}, "secrets[1]: 'A' is there twice"),
        ({"secrets": ["A"], "env": {"A": ""}}, "secrets: 'A' is in env too"),
        ({"timeout_s": 0}, "timeout_s: must be more than 0 to 2,592,000 seconds"),
        ({"timeout_s": 2_592_001}, "timeout_s: must be more than 0 to 2,592,000 seconds"),
        ({"timeout_s": 10**400}, "timeout_s: must be more than 0 to 2,592,000 seconds"),
        ({"timeout": "31d"}, "timeout: must be more than 0 to 2,592,000 seconds"),
        ({"timeout": "2 h"}, "timeout: must be a number of seconds, or text such as 90s, 2h or 1d"),
        ({"timeout": "2H"}, "timeout: must be a number of seconds, or text"),
        ({"timeout": "-1s"}, "timeout: must be a number of seconds, or text"),
        ({"timeout": "\u0662h"}, "timeout: must be a number of seconds, or text"),
        ({"timeout": "h"}, "timeout: must be a number of seconds, or text"),
        ({"timeout": {"h": 2}}, "timeout: must be a number of seconds, or text"),
        ({"timeout_s": True}, "timeout_s: must be a number of seconds, or text"),
        ({"timeout": 1, "timeout_s": 1}, "'timeout_s': is the former name of timeout, which is given too"),
        ({"delay": -0.1}, "delay: must be from 0 to 31,536,000 seconds"),
        ({"delay": "1000000000s"}, "delay: must be a number of seconds, or text"),
        ({"delay_s": None}, "delay_s: must be a number of seconds, or text"),
        ({"retry_exit_codes": [0]}, "retry_exit_codes[0]: must be a whole number from 1 to 255"),
        ({"retry_exit_codes": 1}, "retry_exit_codes: must be a list of exit codes, not a number"),
        ({"max_attempts": 0}, "max_attempts: must be a whole number from 1 to 100"),
        ({"max_attempts": 101}, "max_attempts: must be a whole number from 1 to 100"),
        ({"priority": 1001}, "priority: must be a whole number from -1,000 to 1,000"),
        ({"queue": ""}, "queue: must have 1 to 100 characters"),
        ({"queue": "q" * 101}, "queue: must have 1 to 100 characters"),
        ({"queue": "a\tb"}, "queue: holds a control character"),
        ({"queue": None}, "queue: must be a string, not null"),
        ({"user_id": "u" * 201}, "user_id: must have at most 200 characters"),
        ({"user_id": "*"}, "user_id: must not be '*'"),
        ({"user_id": "\0"}, "user_id: holds a control character"),
        ({"user_id": "\ud800"}, "user_id: holds a lone surrogate"),
        ({"unique_key": ""}, "unique_key: must have 1 to 500 characters"),
        ({"nodesize": "x"}, "'nodesize': is not a field of a job; did you mean node_size?"),
        ({"spec": {}}, "'spec': is not a field of a job"),
    ],
)
def test_a_fault_is_named_with_its_field(fields: dict[str, Any], fault: str) -> None:
    found = faults_of(**fields)
    assert len(found) == 1
    assert found[0].startswith(fault)


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        ("", "is empty"),
        ("ftp://host/x", "its scheme is none of"),
        ("S3://bucket/x", "its scheme is none of"),
        ("s3:///key", "names no bucket"),
        ("s3://bucket", "names no object"),
        ("s3://bucket/", "names no object"),
        ("s3://buck et/key", "names a bucket with characters"),
        ("s3://AKIA:hush@bucket/key", "holds credentials"),
        ("file://relative/path", "must be absolute"),
        ("file:///", "names no file"),
        ("http://", "names no host"),
        ("http:///x", "names no host"),
        ("https://user:hush@host/x", "holds credentials"),
        ("https://hush@host/x", "holds credentials"),
        ("https://[::1/x", "has a malformed host or port"),
        ("https://host:99999/x", "has a malformed host or port"),
        ("https://host/a b", "holds white space"),
        ("https://host/a\r\nHost: b", "holds a control character"),
        ("s3://bucket/a\0", "holds a control character"),
        ("s3://bucket/\ud800", "holds a lone surrogate"),
        ("s3://bucket/" + "x" * 9000, "has 9,012 bytes"),
    ],
)
def test_bad_uris_are_refused_and_not_repeated(uri: str, fault: str) -> None:
    (found,) = faults_of(inputs=[{"uri": uri, "name": "x"}])
    assert found.startswith(f"inputs[0].uri: {fault}")
    assert "hush" not in found


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/dt=2026-01-01/a b?c#d.csv",
        "file:///tmp/x",
        "file://localhost/tmp/x",
        "http://127.0.0.1:8333/x",
        "https://[::1]:80/x?sig=a%3D",
    ],
)
def test_good_uris_pass(uri: str) -> None:
    assert parsed(inputs=[{"uri": uri, "name": "x"}]).spec.inputs[0].uri == uri


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["/abs"], "inputs[0].name: '/abs' is absolute"),
        (["../up"], "inputs[0].name: '../up' has a segment '..'"),
        (["a/./b"], "inputs[0].name: 'a/./b' has a segment '.'"),
        (["a//b"], "inputs[0].name: 'a//b' has a segment ''"),
        (["a\x85"], "inputs[0].name: 'a\\x85' has a control character"),
        (["run.sh"], "inputs[0].name: 'run.sh' is a name that rythmiq uses itself"),
        (["Job.JSON"], "inputs[0].name: 'Job.JSON' is a name that rythmiq uses itself"),
        (["rythmiq-env"], "inputs[0].name: 'rythmiq-env' is a name that rythmiq uses itself"),
        (["a", "b", "a"], "inputs[2].name: 'a' is there twice"),
        (["a/B", "A/b"], "inputs[1].name: 'A/b' clashes with 'a/B'"),
        (["\u00e9", "e\u0301"], "inputs[1].name: 'e\u0301' clashes with '\u00e9'"),
        (["a", "A/b"], "inputs[1].name: 'A/b' and 'a' make one name both a file and a folder"),
        (["a/b/c", "a"], "inputs[1].name: 'a' and 'a/b/c' make one name both a file and a folder"),
    ],
)
def test_input_names(names: list[str], fault: str) -> None:
    (found,) = faults_of(inputs=[{"uri": "s3://bucket/key", "name": name} for name in names])
    assert found.startswith(fault)


def test_own_names_are_reserved_at_the_top_only_and_any_script_is_fine() -> None:
    names = ["sub/run.sh", "log.txt", "данные 1.csv", "my rythmiq-file"]
    job = parsed(inputs=[{"uri": "s3://bucket/key", "name": name} for name in names], outputs=["sub/log.txt", "*.txt"])
    assert [item.name for item in job.spec.inputs] == names


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://bucket/a/b.csv", "b.csv"),
        ("s3://bucket/a/b%20c?d", "b%20c?d"),
        ("file:///tmp/b%20c", "b%20c"),
        ("https://host/a/b%20c.csv?sig=x/y#z", "b c.csv"),
        ("https://host/a%2Fb", "b"),
        ("https://host?x=/y", "host"),
    ],
)
def test_default_name_is_the_last_segment(uri: str, name: str) -> None:
    assert default_name(uri) == name


def test_all_faults_of_a_job_come_at_once() -> None:
    found = faults_of(command="", engine="nix", num_nodes=0, outputs=["../x"], max_attempts=0, colour=1)
    assert [fault.partition(":")[0] for fault in found] == [
        "command",
        "num_nodes",
        "outputs[0]",
        "max_attempts",
        "'colour'",
        "engine",
    ]


def test_a_secret_put_where_its_name_belongs_is_not_repeated() -> None:
    assert "hunter2" not in "".join(faults_of(secrets=["TOKEN=hunter2"], env={"A": "hunter2\0"}))


def test_check_trusts_no_type_hint() -> None:
    spec = JobSpec(command=b"x", outputs="*.csv", env=[("A", "1")], gpu="no")  # type: ignore[arg-type]
    assert check(NewJob(spec=spec, priority=True), CATALOG) == [
        "command: must be a string, not bytes",
        "gpu: must be true or false, not a string",
        "outputs: must be a list of strings, not a string",
        "env: must be an object of strings, not a list",
        "priority: must be a whole number from -1,000 to 1,000",
    ]


_LOOKALIKES: dict[str, list[object]] = {
    "num_nodes": [True, 1.0],
    "gpu": [0, 0.0],
    "inputs": ["", {}],
    "outputs": ["", {}],
    "env": [None, (), ""],
    "secrets": ["", {}],
    "timeout": [False, 0],
    "retry_exit_codes": [False, ""],
    "queue": [None, ""],
    "priority": [False, 0.0, -0.0],
    "max_attempts": [3.0],
    "user_id": [False, 0],
    "unique_key": [False, ""],
    "delay": [False, None, ""],
}


@given(st.fixed_dictionaries({}, optional={name: st.sampled_from(odd) for name, odd in _LOOKALIKES.items()}))
def test_what_equals_a_default_or_is_as_empty_is_checked_too(odd: dict[str, Any]) -> None:
    """Also beside any other fields, faulty or not: each fault is there, in the order of the fields."""
    of_spec = {name: value for name, value in odd.items() if name in JobSpec.__dataclass_fields__}
    of_queue = {name: value for name, value in odd.items() if name not in of_spec}
    found = check(NewJob(spec=JobSpec(command="true", **of_spec), **of_queue), CATALOG)
    assert [fault.partition(":")[0] for fault in found] == [name for name in _LOOKALIKES if name in odd]


def test_every_bad_line_is_named_and_refuses_the_file() -> None:
    lines = [
        b'\xef\xbb\xbf{"command": "true"}\n',
        b"\n",
        b"   \r\n",
        b'{"command": "true", "command": "false"}\n',
        b'{"command": tru}\n',
        b"[]\n",
        b'{"command": "\xff"}\n',
        b'{"command": "true", "timeout_s": NaN}\n',
        b'{"command": "true", "timeout_s": 1e999}\n',
        b"[" * 100_000 + b"\n",
        b'{"command": "true", "priority": ' + b"9" * 5000 + b"}\n",
        b'{"command": "true"} x\n',
        b'\xef\xbb\xbf{"command": "true"}\n',
        b"{}",
    ]
    with pytest.raises(InvalidJob) as caught:
        parse_lines(lines, CATALOG)
    assert caught.value.faults == [
        "line 4: 'command': is there twice",
        "line 5: is not JSON: Expecting value at column 13",
        "line 6: must be an object, not a list",
        "line 7: is not UTF-8 (byte 14)",
        "line 8: is not JSON: NaN is not a number there",
        "line 9: timeout_s: must be more than 0 to 2,592,000 seconds",
        "line 10: is not a job: its JSON is nested too deeply",
        "line 11: is not JSON: a number in it is too long",
        "line 12: is not JSON: Extra data at column 21",
        "line 13: is not JSON: Expecting value at column 1",
        "line 14: command: is missing",
    ]


def test_good_lines_keep_their_order_and_text_lines_work_too() -> None:
    jobs = parse_lines(['\ufeff{"command": "a"}\n', "\n", '{"command": "b", "queue": "q"}'], CATALOG)
    assert [(job.spec.command, job.queue) for job in jobs] == [("a", "default"), ("b", "q")]
    assert parse_lines([], CATALOG) == []


_NAMES = st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8})?\.x", fullmatch=True)
_INPUTS = st.builds(Input, uri=_NAMES.map("s3://bucket/{}".format), name=_NAMES)
_SPECS = st.builds(
    JobSpec,
    command=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).map("x{}".format),
    engine=st.sampled_from(["base", "MPI"]),
    node_size=st.sampled_from(["xsmall", "MEDIUM"]),
    num_nodes=st.integers(1, 100),
    gpu=st.booleans(),
    inputs=st.lists(_INPUTS, max_size=3, unique_by=lambda item: item.name).map(tuple),
    outputs=st.lists(_NAMES, max_size=3, unique=True).map(tuple),
    env=st.dictionaries(st.from_regex(r"[a-z_]{1,5}", fullmatch=True), st.text("aé \n'\"$"), max_size=3),
    secrets=st.lists(st.from_regex(r"[A-Z]{6,9}", fullmatch=True), max_size=3, unique=True).map(tuple),
    timeout=st.none() | st.floats(0.001, 2_592_000) | st.integers(1, 2_592_000),
    retry_exit_codes=st.none() | st.lists(st.integers(1, 255), max_size=3).map(tuple),
)


@given(_SPECS)
def test_what_the_model_writes_is_read_back(spec: JobSpec) -> None:
    written = json.loads(json.dumps(spec.as_dict()))
    assert parse(written) == NewJob(spec=spec)
    assert check(NewJob(spec=spec), CATALOG) == []


_KEYS = [field.name for field in dataclasses.fields(JobSpec)] + [field.name for field in dataclasses.fields(NewJob)]
_TEXT = st.text(max_size=8) | st.text(st.characters(categories=["Cs", "Cc"]), max_size=3)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(_TEXT | st.sampled_from(["uri", "name"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def outcome(line: str | bytes) -> list[NewJob] | list[str]:
    """The jobs or the faults; any other exception is the test's failure."""
    try:
        return parse_lines([line], CATALOG)
    except InvalidJob as error:
        return error.faults


@given(st.dictionaries(st.sampled_from(_KEYS) | _TEXT, _JSON, max_size=6))
def test_arbitrary_json_is_a_job_or_named_faults(data: dict[str, Any]) -> None:
    for line in (json.dumps(data), json.dumps(data, ensure_ascii=False).encode(errors="surrogatepass")):
        for found in outcome(line):
            if isinstance(found, NewJob):
                assert check(found, CATALOG) == []
            else:
                assert found.startswith("line 1: ")
                assert found.isprintable()


@given(st.binary(max_size=40))
def test_arbitrary_bytes_are_no_job(line: bytes) -> None:
    assert all(str(fault).startswith("line 1: ") for fault in outcome(line))


# Durations, and the names that fields had before


@pytest.mark.parametrize(
    ("written", "seconds"),
    [(90, 90), (1.5, 1.5), ("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1d", 86_400), ("1w", 604_800)],
)
def test_a_time_is_seconds_or_text_with_a_unit(written: float | str, seconds: float) -> None:
    for key in ("timeout", "timeout_s"):
        assert parsed(**{key: written}).spec.timeout_s == seconds
    for key in ("delay", "delay_s"):
        assert parsed(**{key: written}).delay_s == seconds
    job = NewJob(spec=JobSpec(command="true", timeout=written), delay=written)
    assert check(job, CATALOG) == []
    assert (job.spec.timeout_s, job.delay_s) == (seconds, seconds)


def test_former_names_are_read_and_warned_of() -> None:
    with pytest.warns(DeprecationWarning, match="now called"):
        spec = JobSpec(command="true", timeout_s=5)  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning, match="now called"):
        job = NewJob(spec=spec, delay_s=6)  # type: ignore[call-arg]
    assert job == NewJob(spec=JobSpec(command="true", timeout=5), delay=6)
    assert pickle.loads(pickle.dumps(job)) == job
    with pytest.raises(TypeError):
        JobSpec(command="true", timeout=5, timeout_s=5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="colour"):
        JobSpec(command="true", colour=5)  # type: ignore[call-arg]


def test_rows_keep_the_name_that_older_drivers_read() -> None:
    stored = JobSpec(command="true", timeout="2h").as_dict()
    assert stored == {"command": "true", "engine": "base", "node_size": "xsmall", "timeout_s": 7200}
    assert read_spec(stored) == (JobSpec(command="true", timeout=7200), [])
    assert read_spec({"command": "true", "timeout": "2h"}) == read_spec(stored)


# What a row of any origin holds


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ({"command": "true", "node_sise": "xsmall"}, "'node_sise': is not a field of a spec; did you mean node_size?"),
        (
            {"command": "true", "inputs": [{"uri": "s3://b/k", "nane": "x"}]},
            "inputs[0].'nane': is not a field of",
        ),
        ({}, "command: is missing"),
        ([], "spec: must be an object"),
        (None, "spec: must be an object"),
        ({"command": 1}, "command: must be a string, not a number"),
        ({"command": "true", "num_nodes": True}, "num_nodes: must be a whole number from 1 to 100"),
        ({"command": "true", "num_nodes": 1.0}, "num_nodes: must be a whole number from 1 to 100"),
        ({"command": "true", "gpu": 1}, "gpu: must be true or false, not a number"),
        ({"command": "true", "timeout_s": [1]}, "timeout_s: must be a number of seconds"),
        ({"command": "true", "timeout_s": 1, "timeout": 1}, "'timeout_s': is the former name of timeout"),
        ({"command": "true", "env": {"A": 1}}, "env.A: must be a string, not a number"),
        ({"command": "true", "outputs": "*.csv"}, "outputs: must be a list of strings, not a string"),
        ({"command": "true", "num_nodes": 10**5000}, "num_nodes: must be a whole number from 1 to 100"),
        ({"command": {1, 2}}, "command: must be a string, not set"),
    ],
)
def test_a_row_that_is_no_spec_is_refused_with_its_field(data: object, fault: str) -> None:
    assert fault in "; ".join(read_spec(data)[1])


def test_a_row_that_nests_without_end_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert read_spec({"command": deep})[1] == ["command: must be a string, not a list"]


@given(st.dictionaries(st.sampled_from([*_KEYS, "timeout_s"]) | _TEXT, _JSON, max_size=6) | _JSON)
def test_any_json_in_a_row_is_a_spec_of_the_right_types_or_a_fault(data: Any) -> None:
    spec, faults = read_spec(data)
    assert all(": " in fault for fault in faults)
    if not faults:
        assert read_spec(spec.as_dict()) == (spec, [])
        check(NewJob(spec=spec), CATALOG)


# The schema

_SCHEMA = Draft202012Validator(json_schema(CATALOG))


def test_the_schema_is_one_and_names_every_field_with_its_default() -> None:
    Draft202012Validator.check_schema(_SCHEMA.schema)
    properties = _SCHEMA.schema["properties"]
    models = [*dataclasses.fields(JobSpec), *dataclasses.fields(NewJob)]
    assert {name for name, item in properties.items() if "deprecated" not in item} == set(Line.__annotations__)
    assert set(Line.__annotations__) == {field.name for field in models} - {"spec"}
    for name, item in properties.items():
        assert item["description"], name
    assert (properties["num_nodes"]["default"], properties["queue"]["default"]) == (1, "default")
    assert json.loads(json.dumps(_SCHEMA.schema)) == json.loads(json.dumps(json_schema(CATALOG)))


def test_the_schema_takes_whatever_form_a_good_line_has() -> None:
    for line in (
        {"command": "true"},
        {"command": "a\nb\n", "engine": "oPenFoam", "node_size": "Medium", "gpu": True, "num_nodes": 2},
        {"command": "x", "inputs": [{"uri": "https://h/a?b=/"}, {"uri": "s3://b/k=1/x.csv", "name": "a b/c.csv"}]},
        {"command": "x", "inputs": [{"uri": "file:///x/y", "name": None}]},
        {"command": "x", "outputs": ["./a/**", "[A-Z]*", "a/.b", ".b", "sub/log.txt", "rythmiq-*"]},
        {"command": "x", "env": {"_a": "", "A1": "\n"}, "secrets": ["TOKEN"], "retry_exit_codes": [1, 255]},
        {"command": "x", "timeout": "2h", "delay": 0, "priority": -1000, "user_id": "", "unique_key": None},
        {"command": "x", "timeout_s": 1.5, "delay_s": "1d"},
    ):
        assert [error.message for error in _SCHEMA.iter_errors(line)] == []
        assert outcome(json.dumps(line)) == [parse(line)]


@pytest.mark.parametrize(
    "fields",
    [
        {"command": None},
        {"command": " \n"},
        {"command": "a\0"},
        {"engine": "bsae"},
        {"engine": "xbase"},
        {"node_size": "xxsmall", "gpu": True},
        {"node_size": "giant"},
        {"num_nodes": 0},
        {"num_nodes": True},
        {"gpu": 1},
        {"inputs": ["s3://b/k"]},
        {"inputs": [{"name": "x"}]},
        {"inputs": [{"uri": "s3://b/k", "path": "x"}]},
        {"inputs": [{"uri": "ftp://h/x"}]},
        {"inputs": [{"uri": "https://h/x/"}]},
        {"inputs": [{"uri": "https://h/x/", "name": None}]},
        {"inputs": [{"uri": "s3://b/k", "name": "../x"}]},
        {"inputs": [{"uri": "s3://b/k", "name": "Run.sh"}]},
        {"inputs": [{"uri": "s3://b/k", "name": "a//b"}]},
        {"outputs": [""]},
        {"outputs": ["/x"]},
        {"outputs": [".//x"]},
        {"outputs": ["a/../b"]},
        {"outputs": ["a/./b"]},
        {"outputs": ["a//"]},
        {"outputs": ["./LOG.txt"]},
        {"outputs": "x"},
        {"env": {"1A": ""}},
        {"env": {"A\n": ""}},
        {"env": {"A": 1}},
        {"env": {"UID": "0"}},
        {"secrets": ["token"]},
        {"secrets": ["RYTHMIQ_X"]},
        {"secrets": ["A", "A"]},
        {"timeout": 0},
        {"timeout": "2 h"},
        {"timeout": 2_592_001},
        {"timeout": 1, "timeout_s": 1},
        {"delay": -1},
        {"delay": None},
        {"retry_exit_codes": [0]},
        {"max_attempts": 101},
        {"priority": 1001},
        {"queue": ""},
        {"queue": "a\tb"},
        {"user_id": "u" * 201},
        {"user_id": "*"},
        {"unique_key": ""},
        {"colour": 1},
    ],
)
def test_the_schema_refuses_what_the_check_refuses(fields: dict[str, Any]) -> None:
    line = {"command": "true"} | fields
    assert not _SCHEMA.is_valid(line)
    assert faults_of(**fields)


@given(_SPECS)
def test_the_schema_takes_what_the_model_writes(spec: JobSpec) -> None:
    assert [error.message for error in _SCHEMA.iter_errors(json.loads(json.dumps(spec.as_dict())))] == []


@given(st.dictionaries(st.sampled_from(_KEYS) | _TEXT, _JSON, max_size=4))
def test_the_schema_takes_each_line_that_the_check_takes(data: dict[str, Any]) -> None:
    data |= {"command": "true"}
    if isinstance((outcome(json.dumps(data)) or [""])[0], NewJob):
        assert [error.message for error in _SCHEMA.iter_errors(data)] == []
