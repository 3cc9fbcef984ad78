"""Workers: what they are forked from has imported beforehand what they need; they end with their
parent, and an interrupt of it interrupts them.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hnm.errors import StudyError
from hnm.studies.workers import run_workers

SCRIPT = """
import os
import sys
import time
from pathlib import Path

from hnm.studies.workers import expect_workers, run_workers


def has_it() -> bool:
    return "colorsys" in sys.modules


def waits(folder: str) -> bool:
    try:
        Path(folder, "begun.part").write_text(str(os.getpid()))
        Path(folder, "begun.part").rename(Path(folder, "begun"))
        time.sleep(600)
    except KeyboardInterrupt:
        Path(folder, "withdrawn").touch()
        raise
    return False


if __name__ == "__main__":
    if sys.argv[1] == "wait":
        run_workers(waits, [(sys.argv[2],)], print)
    else:
        expect_workers(sys.argv[1])
        print(*run_workers(has_it, [(), ()], print), has_it())
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    return tmp_path / "script.py"


def eventually(happens: Callable[[], bool], seconds: float = 120.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if happens():
            return True
        time.sleep(0.05)
    return False


def is_alive(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_workers_find_the_expected_module_imported(script: Path) -> None:
    for expected, line in (("colorsys", "True 0 False"), ("hnm.seeds", "False 0 False")):
        done = subprocess.run(
            [sys.executable, script, expected], check=True, capture_output=True, text=True
        )
        assert done.stdout.strip() == line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_worker_ends_with_its_parent_and_an_interrupt_reaches_it(
    script: Path, number: signal.Signals
) -> None:
    parent = subprocess.Popen(
        [sys.executable, script, "wait", script.parent], stderr=subprocess.DEVNULL
    )
    try:
        begun = script.parent / "begun"
        assert eventually(begun.exists)
        worker = int(begun.read_text(encoding="utf-8"))
        assert is_alive(worker)
        parent.send_signal(number)
        assert parent.wait(60) != 0
        assert eventually(lambda: not is_alive(worker))
    finally:
        parent.kill()
    assert (script.parent / "withdrawn").exists() == (number == signal.SIGINT)


def acts(folder: Path, act: str) -> bool:
    """Ends as `act` says, and leaves a file of its name where it ends well."""
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if act == "fail":
        raise StudyError("the study cannot go on")
    time.sleep(0.5)
    (folder / act).touch()
    return act == "exhausted"


def test_one_that_is_killed_stops_no_other_and_is_counted(tmp_path: Path) -> None:
    lines: list[str] = []
    acted = [(tmp_path, act) for act in ("kill", "exhausted", "done")]
    assert run_workers(acts, acted, lines.append) == (True, 1)
    assert lines == ["worker 0 was killed (exit code -9); its trial is run again"]
    assert {path.name for path in tmp_path.iterdir()} == {"exhausted", "done"}


def test_an_error_of_one_is_raised_when_the_others_have_ended(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"^the study cannot go on$"):
        run_workers(acts, [(tmp_path, "fail"), (tmp_path, "done")], print)
    assert (tmp_path / "done").exists()
