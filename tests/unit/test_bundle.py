"""The bundle and its wrapper: every script here is run by a real bash, in a folder of its own."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rythmiq_ray.backends.bundle import OWNED_BY_BASH, StopTimes, Upload, env_file, is_own, script
from rythmiq_ray.backends.bundle.result import parse_result
from rythmiq_ray.errors import InputUnreadable, SecretMissing, SpecRejected, StoreUnavailable
from rythmiq_ray.job_fields import RESERVED_ENV
from rythmiq_ray.model import Input, Job, JobSpec, RemoteResult
from rythmiq_ray.secret import Secret

QUICK = StopTimes(grace_s=0.3, drain_s=0.3)


def make_job(command: str = "true", **spec: Any) -> Job:
    return samples.job(UUID(int=7), attempt=2, driver_id=None, spec=JobSpec(command=command, **spec))


class Attempt:
    """A folder with an unpacked bundle, and what running it there gave."""

    def __init__(
        self,
        folder: Path,
        job: Job,
        *,
        timeout_s: float,
        times: StopTimes,
        secrets: Mapping[str, Secret],
        cpus: int | None = None,
    ):
        self.folder = folder
        (folder / "run.sh").write_bytes(script(job, timeout_s=timeout_s, times=times, cpus=cpus))
        if (variables := env_file(job.spec, secrets)) is not None:
            (folder / "rythmiq-env").write_bytes(variables)

    def start(self, **more: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["bash", "run.sh"],
            cwd=self.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
            start_new_session=True,
            **more,
        )

    def finish(self, process: subprocess.Popen[bytes]) -> Attempt:
        try:
            self.stdout, self.stderr = process.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        self.exit_code = process.returncode
        return self

    @property
    def log(self) -> bytes:
        return (self.folder / "rythmiq-log.txt").read_bytes()

    @property
    def result(self) -> RemoteResult:
        result = parse_result((self.folder / "rythmiq-result.json").read_bytes())
        assert result is not None
        return result

    @property
    def outputs(self) -> list[str]:
        return sorted(file.name for file in self.result.outputs)


Run = Callable[..., Attempt]


@pytest.fixture
def prepare(tmp_path: Path) -> Run:
    def prepared(
        command: str,
        *,
        timeout_s: float = 60,
        times: StopTimes = QUICK,
        secrets: Mapping[str, Secret] | None = None,
        secret_names: tuple[str, ...] = (),
        cpus: int | None = None,
        **spec: Any,
    ) -> Attempt:
        spec["secrets"] = secret_names
        job = make_job(command, **spec)
        return Attempt(tmp_path, job, timeout_s=timeout_s, times=times, secrets=secrets or {}, cpus=cpus)

    return prepared


@pytest.fixture
def run(prepare: Run) -> Run:
    def ran(command: str, **more: Any) -> Attempt:
        attempt = prepare(command, **more)
        return attempt.finish(attempt.start())

    return ran


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


# ---- The command reaches bash as it was given


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("echo 'it''s' \"a \\\"b\\\"\"", b'its a "b"\n'),
        ("cat <<'EOF'\n$HOME `x` \\\nEOF\necho end", b"$HOME `x` \\\nend\n"),
        ("cat <<EOF\nEOF\necho after", b"after\n"),
        ("printf %s '$(touch owned) `touch owned` $x \\ !'", b"$(touch owned) `touch owned` $x \\ !"),
        ("x='&'; echo \"a${x}b\" # no newline at the end", b"a&b\n"),
        ("printf '%s' 'a\r\nb'", b"a\r\nb"),
        ("echo 'grüße 日本 🚀'", "grüße 日本 🚀\n".encode()),
        ("\n\n  echo indented\n\n", b"indented\n"),
        ("echo a | tr a b && (echo c; echo d) >&2", b"b\nc\nd\n"),
        ("echo ${BASH_VERSION:+bash} $0", b"bash rythmiq-command.sh\n"),
        ("echo $RYTHMIQ_JOB_ID $RYTHMIQ_ATTEMPT", f"{UUID(int=7)} 2\n".encode()),
    ],
)
def test_command_is_kept_exactly(run: Run, command: str, printed: bytes) -> None:
    attempt = run(command)
    assert (attempt.log, attempt.stdout, attempt.stderr, attempt.exit_code) == (printed, printed, b"", 0)
    assert not (attempt.folder / "owned").exists()


def test_command_of_200_kb(run: Run) -> None:
    text = "x'\"$`\\&\n" * 25_000
    attempt = run(f"cat <<'END' >out\n{text}END\n", outputs=("out",))
    assert (attempt.folder / "out").read_text() == text
    assert attempt.result.outputs[0].sha256 == hashlib.sha256(text.encode()).hexdigest()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60),
    value=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60),
)
def test_any_text_survives_as_command_and_as_variable(tmp_path: Path, text: str, value: str) -> None:
    # The text stands behind a quoted marker that ends it, as data of a command that prints it.
    command = f"printf %s \"$V\"; tail -c +$(( $(grep -abm1 '^#DATA$' $0 | cut -d: -f1) + 7 )) $0; exit\n#DATA\n{text}"
    job = make_job(command, env={"V": value})
    attempt = Attempt(tmp_path, job, timeout_s=60, times=QUICK, secrets={})
    attempt.finish(attempt.start())
    assert attempt.log == (value + text).encode()


# ---- Variables


def test_variables_arrive_exactly_and_their_file_is_gone_before_the_command_starts(run: Run) -> None:
    values = {
        "PLAIN": "1",
        "LINES": "a\nb\n\n",
        "QUOTES": "'\"'\"' $HOME `id` \\ !",
        "EMPTY": "",
        "SCRIPT": "日本 🚀\t\r",
        "shell": "x",
        "status": "y",
        "IFS": ",",
        "LARGE": "z" * 100_000,
    }
    names = " ".join(values)
    attempt = run(
        f'for n in {names}; do printf "%s\\0" "${{!n}}"; done; ls -A >files',
        env=values,
        outputs=("files",),
    )
    # bash does not take IFS from its environment, so `for` splits as ever.
    assert attempt.log.decode().split("\0")[:-1] == [
        value if name != "IFS" else " \t\n" for name, value in values.items()
    ]
    assert "rythmiq-env" not in (attempt.folder / "files").read_text().split()
    assert not (attempt.folder / "rythmiq-env").exists()
    assert attempt.outputs == ["files"]


def test_variables_do_not_reach_the_wrapper(run: Run) -> None:
    hostile = {"GLOBIGNORE": "*", "PATH": "/nowhere", "rythmiq_outputs": "x", "LC_ALL": "xx", "TMPDIR": "/nowhere"}
    attempt = run("echo hi >out.txt", env=hostile, outputs=("*.txt",))
    assert (attempt.exit_code, attempt.outputs) == (0, ["out.txt"])


def test_secret_is_in_no_file_that_stays(prepare: Run) -> None:
    attempt = prepare('printf %s "${#TOKEN}"', secrets={"TOKEN": Secret("canary-1f3")}, secret_names=("TOKEN",))
    attempt.finish(attempt.start())
    assert attempt.log == b"10"
    assert not any(b"canary" in path.read_bytes() for path in attempt.folder.iterdir())


def test_parameters_of_the_wrapper_do_not_reach_the_command(run: Run) -> None:
    attempt = run("env")
    names = {line.partition(b"=")[0] for line in attempt.log.splitlines()}
    assert names <= {b"PATH", b"LANG", b"PWD", b"OLDPWD", b"SHLVL", b"_"} | {
        b"RYTHMIQ_JOB_ID",
        b"RYTHMIQ_ATTEMPT",
        b"PYTHONUNBUFFERED",
    }


@pytest.mark.parametrize(("given_value", "seen"), [(None, b"1"), ("", b""), ("x", b"x")])
def test_python_is_unbuffered_unless_the_job_says_otherwise(run: Run, given_value: str | None, seen: bytes) -> None:
    env = {} if given_value is None else {"PYTHONUNBUFFERED": given_value}
    assert run('printf %s "$PYTHONUNBUFFERED"', env=env).log == seen


def test_command_is_not_run_without_its_variables(prepare: Run) -> None:
    attempt = prepare("touch ran", env={"A": "1"})
    (attempt.folder / "rythmiq-env").unlink()
    attempt.finish(attempt.start())
    assert (attempt.exit_code, attempt.result.exit_code) == (125, 125)
    assert b"rythmiq-env is missing" in attempt.log
    assert not (attempt.folder / "ran").exists()


def test_env_file_refuses_what_would_break_or_is_not_there() -> None:
    with pytest.raises(SpecRejected, match="A-B"):
        env_file(JobSpec(command="", env={"A-B": "canary"}), {})
    with pytest.raises(SpecRejected, match="NUL") as refused:
        env_file(JobSpec(command="", env={"A": "canary\0"}), {})
    assert "canary" not in str(refused.value)
    with pytest.raises(SecretMissing, match="TOKEN"):
        env_file(JobSpec(command="", secrets=("TOKEN",)), {})


def test_script_holds_no_value_and_no_uri() -> None:
    job = make_job(
        "true",
        env={"A": "canary-a"},
        secrets=("B",),
        inputs=(Input(uri="https://host/x?signature=canary-u", name="in.txt"),),
    )
    text = script(job, timeout_s=1).decode()
    assert "canary" not in text
    assert env_file(job.spec, {"B": Secret("canary-b")}) == b"export A=canary-a\nexport B=canary-b\n"


def test_variables_that_bash_owns_arrive_in_the_command_and_in_what_it_starts(run: Run) -> None:
    names = sorted(OWNED_BY_BASH)
    values = {name: f"it's {name}\n" for name in names} | {"PLAIN": "1"}
    shown = 'for n in "$@"; do printf "%s\\0" "${!n}"; done'
    attempt = run(f"set -- {' '.join(names)}; {shown}; env -0; env >seen", env=values, outputs=("seen",))
    said = attempt.log.decode().split("\0")
    assert said[: len(names)] == [values[name] for name in names]
    assert {f"{name}={value}" for name, value in values.items()} <= set(said)
    assert not [line for line in said if line.startswith("BASH_ENV=")]


def test_every_name_of_bashs_own_arrives_or_is_refused_when_the_job_is_enqueued(run: Run) -> None:
    # A bash without any environment knows best which these are.
    bare = subprocess.run(["bash", "-c", "compgen -v"], env={}, capture_output=True, text=True, check=True)
    names = sorted(
        {*bare.stdout.split(), "FUNCNAME", "BASH_ARGV0", "BASH_MONOSECONDS", "HISTCMD"} - RESERVED_ENV - {"_"}
    )
    shown = 'for n in "$@"; do printf "%s=%s\\n" "$n" "${!n}"; done'
    attempt = run(f"set -- {' '.join(names)}; PATH={os.environ['PATH']}; {shown}", env=dict.fromkeys(names, "7"))
    expected = [f"{name}=7" for name in names if name != "PATH"]
    assert [line for line in attempt.log.decode().splitlines() if not line.startswith("PATH=")] == expected


def test_a_secret_that_bash_owns_is_in_no_file_that_stays(prepare: Run) -> None:
    attempt = prepare('printf %s "${#GROUPS}"', secrets={"GROUPS": Secret("canary-1f3")}, secret_names=("GROUPS",))
    attempt.finish(attempt.start())
    assert attempt.log == b"10"
    assert not any(b"canary" in path.read_bytes() for path in attempt.folder.iterdir())


THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def test_threads_are_those_of_the_node_size_unless_the_job_says_otherwise(prepare: Run) -> None:
    attempt = prepare(f"for n in {' '.join(THREADS)}; do echo ${{!n}}; done", cpus=8, env={"MKL_NUM_THREADS": "2"})
    assert attempt.finish(attempt.start()).log == b"8\n8\n2\n8\n"


def test_folders_of_outputs_are_there_before_the_command_starts(run: Run) -> None:
    outputs = ("out/a b/*.txt", "models/**", "./deep/er/x", "top*/y", "plain")
    attempt = run("echo 1 >'out/a b/1.txt'; echo 2 >models/m; echo 3 >deep/er/x", outputs=outputs)
    assert attempt.outputs == ["deep/er/x", "models/m", "out/a b/1.txt"]
    assert not (attempt.folder / "plain").exists()


def test_a_command_that_makes_its_folders_itself_finds_none(run: Run) -> None:
    assert run("mkdir out && echo 1 >out/x", outputs=("out/*",)).outputs == ["out/x"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to somebody else")
def test_a_folder_of_somebody_elses_becomes_writable(prepare: Run) -> None:
    attempt = prepare("cat out/in && echo 1 >out/x", outputs=("out/x", "**/in"))
    (attempt.folder / "out").mkdir(mode=0o755)
    (attempt.folder / "out" / "in").write_text("in")
    with tempfile.TemporaryDirectory() as place:
        home = Path(shutil.copytree(attempt.folder, Path(place) / "home"))
        Path(place).chmod(0o755)
        os.chown(home, 65534, 65534)
        attempt.folder = home
        attempt.finish(attempt.start(user=65534, group=65534))
        assert (attempt.log, attempt.outputs) == (b"in", ["out/in", "out/x"])


# ---- How it ends


@pytest.mark.parametrize("code", [0, 1, 3, 124, 127, 255])
def test_exit_code_is_the_commands(run: Run, code: int) -> None:
    attempt = run(f"exit {code}")
    assert (attempt.exit_code, attempt.result.exit_code, attempt.result.reason) == (code, code, "exited")


@pytest.mark.parametrize(("name", "code"), [("KILL", 137), ("SEGV", 139), ("TERM", 143), ("USR1", 138)])
def test_command_killed_by_a_signal_gives_128_and_its_number(run: Run, name: str, code: int) -> None:
    attempt = run(f"kill -{name} $$; read -r < /dev/zero")
    assert (attempt.exit_code, attempt.result.exit_code, attempt.result.reason) == (code, code, "exited")
    assert attempt.log == b""


def test_syntax_error_is_in_the_log(run: Run) -> None:
    attempt = run("if; then")
    assert attempt.exit_code == 2
    assert b"syntax error" in attempt.log


def test_stdin_is_empty(run: Run) -> None:
    assert run("cat; echo $?").log == b"0\n"


def test_timeout_stops_the_whole_group(run: Run) -> None:
    attempt = run("sleep 61.7 & sleep 61.7", timeout_s=0.3)
    assert (attempt.exit_code, attempt.result.exit_code, attempt.result.reason) == (124, 124, "timeout")
    assert attempt.log == b"rythmiq: stopped after its timeout of 0.3 s\n"


def test_timeout_kills_what_ignores_term(run: Run) -> None:
    attempt = run("trap '' TERM; touch out; while :; do sleep 61.7; done", timeout_s=0.2, outputs=("out",))
    assert (attempt.exit_code, attempt.outputs) == (124, ["out"])


def test_timeout_lets_the_command_end_in_peace(run: Run) -> None:
    command = "trap 'echo saved >out; exit 0' TERM; while :; do sleep 0.05; done"
    attempt = run(command, timeout_s=0.3, times=StopTimes(grace_s=20), outputs=("out",))
    assert (attempt.exit_code, attempt.result.reason, attempt.outputs) == (124, "timeout", ["out"])


def test_stopped_command_times_out_too(run: Run) -> None:
    assert run("kill -STOP $$", timeout_s=0.3).exit_code == 124


def test_cancel_marker_stops_the_command(prepare: Run) -> None:
    attempt = prepare("echo working; touch started; sleep 61.7")
    process = attempt.start()
    wait_for((attempt.folder / "started").exists)
    (attempt.folder / "rythmiq-cancel").touch()
    attempt.finish(process)
    assert (attempt.exit_code, attempt.result.exit_code, attempt.result.reason) == (143, 143, "cancelled")
    assert attempt.log == b"working\nrythmiq: cancelled\n"


def test_cancelled_before_it_began_runs_nothing(prepare: Run) -> None:
    attempt = prepare("touch ran")
    (attempt.folder / "rythmiq-cancel").touch()
    attempt.finish(attempt.start())
    assert (attempt.exit_code, attempt.result.reason) == (143, "cancelled")
    assert not (attempt.folder / "ran").exists()


@pytest.mark.parametrize("to_group", [False, True])
def test_sigterm_to_the_wrapper_still_leaves_a_result(prepare: Run, to_group: bool) -> None:
    attempt = prepare(
        "trap 'echo bye >out; exit 3' TERM; touch started; while :; do sleep 0.05; done", outputs=("out",)
    )
    process = attempt.start()
    wait_for((attempt.folder / "started").exists)
    (os.killpg if to_group else os.kill)(process.pid, signal.SIGTERM)
    attempt.finish(process)
    assert (attempt.exit_code, attempt.result.reason, attempt.outputs) == (143, "cancelled", ["out"])


def test_a_signal_that_ended_the_watchdog_too_still_stops_the_command(prepare: Run) -> None:
    attempt = prepare("touch started; sleep 61.7")
    process = attempt.start()
    wait_for((attempt.folder / "started").exists)

    def watchdogs() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children()
        return [child for child in children if child.cmdline()[1:] == ["run.sh"]]

    wait_for(watchdogs)
    # As a signal to the group does that comes before the watchdog ignores it.
    watchdogs()[0].kill()
    os.kill(process.pid, signal.SIGTERM)
    attempt.finish(process)
    assert (attempt.exit_code, attempt.result.reason) == (143, "cancelled")


def test_background_child_is_ended_with_the_command(run: Run) -> None:
    attempt = run("sleep 61.7 & echo $! >pid; echo done", outputs=("pid",))
    assert (attempt.exit_code, attempt.log) == (0, b"done\n")
    pid = int((attempt.folder / "pid").read_text())
    wait_for(lambda: not running(pid))


def test_child_that_left_the_group_does_not_hold_the_wrapper(run: Run) -> None:
    attempt = run("setsid sleep 61.7 & echo $! >pid; echo done", outputs=("pid",))
    pid = int((attempt.folder / "pid").read_text())
    try:
        assert (attempt.exit_code, attempt.outputs) == (0, ["pid"])
        assert attempt.result.log.size_bytes == len(b"done\n")
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nothing_is_left_running(prepare: Run) -> None:
    attempt = prepare("echo hi")
    process = attempt.start()
    process.communicate(timeout=60)
    # What was killed may still wait for its parent to look at it.
    deadline = time.monotonic() + 10
    while is_there(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# ---- The log


def test_empty_log(run: Run) -> None:
    attempt = run("true")
    assert attempt.result.log.size_bytes == 0
    assert attempt.result.log.sha256 == hashlib.sha256(b"").hexdigest()


def test_large_log_is_whole_in_both_places(run: Run) -> None:
    attempt = run("head -c 5000000 /dev/zero | tr '\\0' x; echo end >&2")
    assert len(attempt.log) == 5_000_004
    assert attempt.stdout == attempt.log
    assert attempt.result.log.size_bytes == len(attempt.log)
    assert attempt.result.log.sha256 == hashlib.sha256(attempt.log).hexdigest()


def test_log_can_be_read_while_the_command_runs(prepare: Run) -> None:
    attempt = prepare("echo first; while [ ! -e go ]; do sleep 0.02; done; echo second")
    process = attempt.start()
    log = attempt.folder / "rythmiq-log.txt"
    wait_for(lambda: log.exists() and log.read_bytes() == b"first\n")
    (attempt.folder / "go").touch()
    assert attempt.finish(process).stdout == b"first\nsecond\n"


def test_job_goes_on_when_nobody_reads_its_output(prepare: Run) -> None:
    attempt = prepare("while [ ! -e go ]; do sleep 0.02; done; head -c 300000 /dev/zero; touch out", outputs=("out",))
    process = attempt.start()
    assert process.stdout is not None
    process.stdout.close()
    (attempt.folder / "go").touch()
    assert process.wait(timeout=60) == 0
    assert process.stderr is not None
    process.stderr.close()
    assert process.stdin is not None
    process.stdin.close()
    assert attempt.outputs == ["out"]
    assert attempt.result.log.size_bytes == 300_000


@pytest.mark.parametrize(
    "damage",
    [
        "rm -f rythmiq-log.txt",
        "rm -rf ./* .[!.]*",
        "git init -q . && git clean -qfdx",
        "echo other >other && mv other rythmiq-log.txt",
        "rm rythmiq-log.txt && mkdir -p rythmiq-log.txt/x",
        "ln -sf /etc/hostname rythmiq-log.txt",
        ": >run.sh; echo exit 9 >rythmiq-command.sh",
        "echo false >run.sh",
        "mkdir -p rythmiq-result.json/x rythmiq-result.tmp/x",
        "echo '{}' >rythmiq-result.json",
        "chmod 000 . run.sh",
    ],
)
def test_a_command_that_damages_its_folder_still_leaves_its_whole_log(run: Run, damage: str) -> None:
    attempt = run(f"echo before; {damage}\nsleep 0.05; echo after; exit 3")
    assert (attempt.exit_code, attempt.result.exit_code, attempt.stdout) == (3, 3, b"before\nafter\n")
    assert attempt.log == b"before\nafter\n"
    assert (attempt.result.log.size_bytes, attempt.result.log_cut) == (13, False)
    assert attempt.result.log.sha256 == hashlib.sha256(attempt.log).hexdigest()


@pytest.mark.parametrize("cut", [": >rythmiq-log.txt", "truncate -s 3 rythmiq-log.txt"])
def test_a_log_that_the_command_cut_is_said_to_be(run: Run, cut: str) -> None:
    attempt = run(f"echo a long line before; {{ sleep 0.3; {cut}; }}; echo after")
    assert attempt.stdout == b"a long line before\nafter\n"
    assert attempt.log.endswith(b"after\n")
    assert attempt.result.log_cut
    assert attempt.result.log.size_bytes == len(attempt.log)
    assert not run("echo whole").result.log_cut


def test_a_folder_that_the_command_removed_is_made_again_for_the_result(run: Run) -> None:
    attempt = run('echo said; cd / && rm -rf "$OLDPWD"; exit 4', outputs=("*.txt",))
    assert (attempt.exit_code, attempt.result.exit_code, attempt.result.unmatched) == (4, 4, ("*.txt",))
    assert attempt.log.startswith(b"said\nrythmiq: the command removed its own working directory")
    assert attempt.result.warnings == (
        "the command removed its own working directory, and with it what it had written there",
    )


def test_where_nothing_can_be_written_the_log_says_so_and_the_exit_code_is_kept(prepare: Run) -> None:
    attempt = prepare('echo said; d=$PWD; cd / && rm -rf "$d" && : >"$d"; exit 4')
    process = attempt.start()
    attempt.finish(process)
    assert attempt.exit_code == 4
    assert b"nothing can be written into the working directory; the exit code was 4\n" in attempt.stdout


# ---- What it left


ODD_NAMES = (
    "a b.txt",
    " leading.txt",
    "trailing .txt",
    "new\nline.txt",
    "tab\t.txt",
    "quote\"'.txt",
    "back\\slash.txt",
    "-n.txt",
    "*.txt",
    "[x].txt",
    "$(id).txt",
    "日本 grüße.txt",
    "\x01\x1f\x7f.txt",
    "&.txt",
    ".hidden.txt",
)


def test_odd_names_come_through(prepare: Run) -> None:
    attempt = prepare("true", outputs=("*.txt", ".*.txt", "sub/**/*.txt"))
    deep = attempt.folder / "sub" / "de ep"
    deep.mkdir(parents=True)
    for name in ODD_NAMES:
        (attempt.folder / name).write_text(name)
        (deep / name).write_text("deep")
    invalid = os.fsencode(attempt.folder) + b"/caf\xe9.txt"
    Path(os.fsdecode(invalid)).write_text("x")
    attempt.finish(attempt.start())
    deep_names = [f"sub/de ep/{name}" for name in ODD_NAMES if not name.startswith(".")]
    assert attempt.outputs == sorted([*ODD_NAMES, *deep_names, "caf\udce9.txt"])
    for file in attempt.result.outputs:
        content = (attempt.folder / file.name).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert attempt.stderr == b""


def test_only_files_inside_and_not_our_own(prepare: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "secret.txt"
    outside.write_text("secret")
    command = f"""
        mkdir -p dir/sub; echo 1 >dir/sub/f; echo 2 >plain; : >empty; mkfifo pipe
        ln -s plain inside; ln -s {outside} leak; ln -s {outside.parent} folder; ln -s nowhere dangling; ln -s / root
        ln -s . loop; echo mine >dir/run.sh
    """
    attempt = prepare(command, outputs=("**", "*", "folder/*", "dir/../plain", "root/etc/passwd", f"{outside}"))
    attempt.finish(attempt.start())
    assert attempt.outputs == ["dir/run.sh", "dir/sub/f", "empty", "inside", "plain"]
    assert attempt.result.unmatched == ("dir/../plain", str(outside).removeprefix("/"))
    assert {f.name: f.size_bytes for f in attempt.result.outputs}["empty"] == 0
    assert b"'leak' is left out" in attempt.log
    assert b"'folder/secret.txt' is left out" in attempt.log


def test_globs_are_not_split_and_match_once(run: Run) -> None:
    attempt = run(
        "touch 'a b' c 'x[1]' x1 '{p,q}'",
        outputs=("a b", "a*", "./c", "c", "x[1]", "no such*", "none.txt", "{p,q}", "a b\\*"),
    )
    assert attempt.outputs == ["a b", "c", "x1", "x[1]", "{p,q}"]
    assert attempt.result.unmatched == ("no such*", "none.txt", "a b\\*")
    assert b"rythmiq: output 'none.txt' matched no file\n" in attempt.log
    assert attempt.result.log.size_bytes == len(attempt.log)


def test_a_folder_as_an_output_means_all_that_is_in_it(run: Run) -> None:
    command = "mkdir -p results/sub/.deep run_1 run_2; touch results/{a,.b,sub/c,sub/.deep/d} run_1/x run_2/y z"
    whole = ["results/.b", "results/a", "results/sub/.deep/d", "results/sub/c"]
    attempt = run(command, outputs=("results", "run_*"))
    assert attempt.outputs == [*whole, "run_1/x", "run_2/y"]
    assert (attempt.result.unmatched, attempt.result.warnings) == ((), ())
    # Beside files a folder is matched by the way.
    assert run("true", outputs=("*",)).outputs == ["z"]


def test_what_a_wildcard_leaves_out_for_its_dot_is_said(run: Run) -> None:
    command = "mkdir -p d/.git e; touch a .env d/.hidden d/.git/x d/y e/.z"
    attempt = run(command, outputs=("**", "e/.*", "d/*"))
    assert attempt.outputs == ["a", "d/y", "e/.z"]
    assert attempt.result.warnings == (
        "output '**' leaves out 3 with a dot in front, such as '.env': name them, or a folder",
    )
    assert attempt.result.warnings[0].encode() in attempt.log
    assert run("true", outputs=("d", ".env", "a", "e")).result.warnings == ()


def test_links_and_files_that_are_left_out_are_warnings_in_the_result(run: Run) -> None:
    command = "touch in; ln -s /etc/hostname leak; ln -s nowhere dangling; mkdir d; ln -s d linked; ln -s in fine"
    attempt = run(command, outputs=("**", "none*", "dangling"))
    assert attempt.outputs == ["fine", "in"]
    assert sorted(attempt.result.warnings) == [
        "output 'dangling' is left out: it is a link to nothing",
        "output 'leak' is left out: it leads outside the working directory",
        "output 'linked' is left out: it is a link to a folder, which ** does not follow",
    ]
    assert attempt.result.unmatched == ("none*", "dangling")


def test_of_many_left_out_fifty_are_named(run: Run) -> None:
    attempt = run("for i in {1..70}; do ln -s /etc/hostname l$i; done", outputs=("l*",))
    assert len(attempt.result.warnings) == 51
    assert attempt.result.warnings[-1] == "and 20 more were left out"
    assert attempt.log.count(b"is left out") == 50


def test_2000_files_are_hashed_in_batches(prepare: Run) -> None:
    attempt = prepare("true", outputs=("out/*",))
    (attempt.folder / "out").mkdir()
    for number in range(2000):
        (attempt.folder / "out" / f"{number}.bin").write_bytes(b"%d" % number)
    # Far fewer processes than files: a bash of its own counts how often the hash program is started.
    counter = attempt.folder / "count"
    bin_ = attempt.folder / "bin"
    bin_.mkdir()
    for tool in ("sha256sum", "stat", "realpath"):
        (bin_ / tool).write_text(f'#!/bin/sh\necho {tool} >>"{counter}"\nPATH=${{PATH#*:}} exec {tool} "$@"\n')
        (bin_ / tool).chmod(0o755)
    process = subprocess.Popen(
        ["bash", "run.sh"],
        cwd=attempt.folder,
        env={"PATH": f"{bin_}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    attempt.finish(process)
    assert len(attempt.result.outputs) == 2000
    assert all(
        file.sha256 == hashlib.sha256(Path(file.name).stem.encode()).hexdigest() for file in attempt.result.outputs
    )
    assert len(counter.read_text().splitlines()) <= 12


def test_result_is_there_only_when_it_is_whole(prepare: Run) -> None:
    attempt = prepare("while [ ! -e go ]; do sleep 0.02; done")
    process = attempt.start()
    wait_for((attempt.folder / "rythmiq-log.txt").exists)
    assert not (attempt.folder / "rythmiq-result.json").exists()
    (attempt.folder / "go").touch()
    attempt.finish(process)
    assert not (attempt.folder / "rythmiq-result.tmp").exists()
    assert not (attempt.folder / "rythmiq-command.sh").exists()
    assert attempt.result.started_at <= attempt.result.finished_at


# ---- Reading what the wrapper wrote

WHOLE = b"""{"version":1,"exit_code":0,"reason":"exited","started_at":"2026-01-07T10:00:00.000Z",
"finished_at":"2026-01-07T10:00:01Z","log":{"name":"rythmiq-log.txt","bytes":0,"sha256":"%s"},
"outputs":[],"unmatched":[]}""" % (b"a" * 64)


def test_result_cut_anywhere_is_not_a_result() -> None:
    assert parse_result(WHOLE) is not None
    assert all(parse_result(WHOLE[:end]) is None for end in range(len(WHOLE) - 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"version":1', b'"version":2'),
        (b'"exit_code":0', b'"exit_code":true'),
        (b'"exit_code":0', b'"exit_code":-1'),
        (b'"exit_code":0', b'"exit_code":' + b"9" * 5000),
        (b'"exited"', b'"done"'),
        (b'"exited"', b'["exited"]'),
        (b'"bytes":0', b'"bytes":-1'),
        (b'"bytes":0', b'"bytes":1e3'),
        (b'"bytes":0', b'"bytes":99999999999999999999'),
        (b"a" * 64, b"A" * 64),
        (b"a" * 64, b"a" * 63),
        (b'"outputs":[]', b'"outputs":{"a":1}'),
        (b'"outputs":[]', b'"outputs":[{"name":"","bytes":1}]'),
        (b'"outputs":[]', b'"outputs":null'),
        (b'"outputs":[]', b'"outputs":' + b"[" * 100_000),
        (b'"unmatched":[]', b'"unmatched":[1]'),
        (b'"unmatched":[]', b'"unmatched":[],"warnings":["a",{}]'),
        (b'"unmatched":[]', b'"unmatched":[],"warnings":"a"'),
        (b'"unmatched":[]', b'"unmatched":[],"more":NaN'),
        (b'"unmatched":[]', b'"more":[]'),
        (
            b'"outputs":[]',
            b'"outputs":[' + b",".join([b'{"name":"a","bytes":0,"sha256":"%s"}' % (b"a" * 64)] * 2) + b"]",
        ),
        (b'"outputs":[]', b'"outputs":[' + b",".join([b"0"] * 1_000_000) + b"]"),
        (b"2026-01-07T10:00:01Z", b"yesterday"),
        (b"2026-01-07T10:00:01Z", b"9999-12-31T23:59:59-23:00"),
        (b"2026-01-07T10:00:01Z", b"0001-01-01T00:00:00+23:00"),
        (b'"log":{', b'"log":[{'),
    ],
)
def test_hostile_result_is_none(old: bytes, new: bytes) -> None:
    assert old in WHOLE
    assert parse_result(WHOLE.replace(old, new, 1)) is None


def test_result_of_a_newer_wrapper_is_read() -> None:
    newer = WHOLE.replace(b'"unmatched":[]', b'"unmatched":[],"peak_mb":7,"warnings":["w"],"log_cut":true')
    result, plain = parse_result(newer), parse_result(WHOLE)
    assert result is not None
    assert plain is not None
    assert (result.warnings, result.log_cut, plain.warnings, plain.log_cut) == (("w",), True, (), False)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists),
    st.sampled_from(
        [
            "version",
            "exit_code",
            "reason",
            "started_at",
            "finished_at",
            "log",
            "outputs",
            "unmatched",
            "warnings",
            "log_cut",
        ]
    ),
)
def test_result_with_any_value_in_a_field_raises_nothing(value: object, field: str) -> None:
    parse_result(json.dumps(json.loads(WHOLE) | {field: value}).encode())


@given(st.binary(max_size=200))
def test_result_of_any_bytes_raises_nothing(raw: bytes) -> None:
    assert parse_result(raw) is None


# ---- Inputs as bodies


class Pipe(io.RawIOBase):
    """A stream that cannot seek and gives at most ``step`` bytes at once."""

    def __init__(self, data: bytes, step: int = 1000, fault: Exception | None = None) -> None:
        self._data, self._step, self._fault = io.BytesIO(data), step, fault

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._data.read(min(size, self._step) if size >= 0 else self._step)
        if not data and self._fault is not None:
            raise self._fault
        return data


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 300_000])
def test_upload_gives_all_bytes_and_knows_its_length_where_it_can(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    seekable, pipe = Upload(io.BytesIO(data)), Upload(Pipe(data))  # type: ignore[arg-type]
    assert seekable.len == size
    assert pipe.len in (None, size)
    assert b"".join(seekable) == data
    assert b"".join(pipe) == data
    by_read = Upload(io.BytesIO(data))
    assert b"".join(iter(lambda: by_read.read(7000), b"")) == data


def test_upload_tells_a_fault_of_the_source_from_one_of_the_connection() -> None:
    with pytest.raises(InputUnreadable):
        list(Upload(Pipe(b"x" * 200_000, 50_000, OSError("reset"))))  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable):
        list(Upload(Pipe(b"x" * 200_000, 50_000, StoreUnavailable("down"))))  # type: ignore[arg-type]


def test_upload_notices_that_its_source_shrank(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 1_000_000)
    with path.open("rb", buffering=0) as stream:
        upload = Upload(stream)
        os.truncate(path, 200_000)
        with pytest.raises(InputUnreadable, match="changed"):
            list(iter(lambda: upload.read(100_000), b""))


def test_own_names() -> None:
    assert [name for name in ("run.sh", "job.json", "rythmiq-x", "x/run.sh", "run.sh.txt") if is_own(name)] == [
        "run.sh",
        "job.json",
        "rythmiq-x",
    ]
