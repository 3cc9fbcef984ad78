"""How stages and commands end: one line, the right exit code, nothing that goes on without them."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
STAGE = ROOT / "tests" / "support" / "stage.py"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in {"DVC_ROOT", "DVC_STAGE", "PYTHONUNBUFFERED"}
    }
    return {**kept, "PYTHONPATH": str(ROOT), "HNM_TRACKING": "off", "HNM_WORKERS": "2", **more}


def started(project: Path, *before: str, **more: str) -> subprocess.Popen[bytes]:
    command = [*before, sys.executable, str(STAGE), "--folder", str(project)]
    return subprocess.Popen(
        command,
        cwd=project,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        close_fds=True,
    )


def workers_of(project: Path) -> list[psutil.Process]:
    """The two workers, once both are at work."""
    for _ in range(600):
        texts = [path.read_text() for path in project.glob("*.pid")]
        if len(texts) == 2 and all(texts):
            return [psutil.Process(int(text)) for text in texts]
        time.sleep(0.05)
    raise AssertionError("the workers have not begun")


def all_gone(processes: list[psutil.Process]) -> bool:
    end = time.monotonic() + 10.0
    while time.monotonic() < end:
        if not any(map(is_alive, processes)):
            return True
        time.sleep(0.05)
    return False


def is_alive(process: psutil.Process) -> bool:
    """Not so a dead one whose end nobody has asked for, as where a container's first process is no
    init.
    """
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize(
    ("number", "group", "code", "name"),
    [
        (signal.SIGINT, True, 130, "Ctrl-C"),
        (signal.SIGTERM, False, 143, "SIGTERM"),
        (signal.SIGTERM, True, 143, "SIGTERM"),
        (signal.SIGHUP, False, 129, "SIGHUP"),
    ],
)
def test_a_stage_that_is_interrupted_says_so_in_one_line_and_leaves_no_process(
    project: Path, number: int, group: bool, code: int, name: str
) -> None:
    stage = started(project)
    everyone = [*workers_of(project), *psutil.Process(stage.pid).children(recursive=True)]
    (os.killpg if group else os.kill)(stage.pid, number)
    out, err = stage.communicate(timeout=20)
    assert (stage.returncode, out) == (code, b"")
    assert (
        err.decode()
        == f"interrupted ({name}); what was finished is kept, and the same command (dvc repro) goes"
        " on\n"
    )
    assert all_gone(everyone)


@pytest.mark.parametrize("shell", [[], ["sh", "-c", 'exec "$@"', "sh"]])
def test_a_parent_that_is_killed_alone_takes_its_stage_and_the_workers_along(
    project: Path, shell: list[str]
) -> None:
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    parent = started(project, sys.executable, "-c", code, *shell)
    workers = workers_of(project)
    everyone = [*workers, *psutil.Process(parent.pid).children(recursive=True)]
    parent.kill()
    parent.wait()
    assert all_gone(everyone)


def test_a_stage_that_is_killed_leaves_no_worker(project: Path) -> None:
    stage = started(project)
    everyone = [*workers_of(project), *psutil.Process(stage.pid).children(recursive=True)]
    stage.kill()
    stage.wait()
    assert all_gone(everyone)


@pytest.mark.parametrize(
    ("does", "said"),
    [("error", "error: the thing is wrong; mend it\n"), ("defect", None)],
)
def test_errors_are_one_line_and_a_defect_keeps_its_traceback_without_secrets(
    project: Path, does: str, said: str | None
) -> None:
    ended = subprocess.run(
        [sys.executable, str(STAGE), "--folder", "."],
        cwd=project,
        env=environment(TINY_STAGE=does),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    if said:
        assert ended.stderr == said
    else:
        assert (
            "Traceback" in ended.stderr
            and "direct cause" in ended.stderr
            and "RuntimeError" in ended.stderr
        )
        assert "hunter22" not in ended.stderr and "abc123" not in ended.stderr


def test_a_stage_goes_on_though_nobody_reads_it_and_the_terminal_knows_few_letters(
    project: Path,
) -> None:
    read, write = os.pipe()
    talks = environment(TINY_STAGE="talk", PYTHONIOENCODING="ascii", TINY_SECONDS="0.1")
    stage = subprocess.Popen(
        [sys.executable, str(STAGE), "--folder", "."],
        cwd=project,
        env=talks,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    first = os.read(read, 1000)
    os.close(read)
    _, err = stage.communicate(timeout=30)
    assert (stage.returncode, err, first) == (0, b"", b"10 \\xb5m\n") and (
        project / "done"
    ).exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_log_on_a_full_disk_ends_no_stage_and_a_command_says_so(project: Path) -> None:
    with Path("/dev/full").open("w") as full:
        stage = [sys.executable, str(STAGE), "--folder", "."]
        ended = subprocess.run(
            stage,
            cwd=project,
            env=environment(TINY_STAGE="talk"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert (ended.returncode, ended.stderr) == (0, "") and (project / "done").exists()
        command = [sys.executable, "-m", "hnm.cli", "store", "ls"]
        ended = subprocess.run(
            command, cwd=project, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1
    assert (
        ended.stderr
        == f"error: {os.strerror(errno.ENOSPC)}; free some room. What was finished is kept: the"
        " same command goes on\n"
    )


def test_costs_that_cannot_be_written_fail_no_stage(project: Path) -> None:
    (project / ".hnm").mkdir()
    (project / ".hnm" / "cost").write_text("no folder")
    ended = subprocess.run(
        [sys.executable, str(STAGE), "--folder", "."],
        cwd=project,
        env=environment(TINY_STAGE="talk"),
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0 and (project / "done").exists()
    assert ended.stderr.startswith(
        "cost: what stage took cannot be written ("
    ) and ended.stderr.endswith("; the stage is complete without it\n")


def test_ctrl_c_while_libraries_are_imported_is_one_line(project: Path) -> None:
    stage = subprocess.Popen(
        [sys.executable, "-m", "pipelines.head", "--help"],
        cwd=project,
        env=environment(PYTHONPROFILEIMPORTTIME="1"),
        stderr=subprocess.PIPE,
    )
    assert stage.stderr is not None
    while b"torch" not in (line := stage.stderr.readline()):
        assert line
    stage.send_signal(signal.SIGINT)
    said = [
        line
        for line in stage.stderr.read().decode().splitlines()
        if not line.startswith("import time:")
    ]
    assert said == [
        "interrupted (Ctrl-C); what was finished is kept, and the same command (dvc repro) goes on"
    ]
    assert stage.wait() in (130, -signal.SIGINT)
