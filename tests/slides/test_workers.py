import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest

from hnm.causes import causes_of
from hnm.errors import CausesError, MachineError, ParamsError, SlideError
from hnm.processes import one_read
from hnm.slides import workers
from hnm.slides.cohort.identity import SlideSource, identify
from hnm.slides.cutting.cut import cut
from hnm.slides.reading.failures import StorageError
from hnm.slides.workers import each, worker_count


def outcomes(function, jobs, **limits):
    return dict(each(function, jobs, **{"seconds": 60.0, "step": "tiles", **limits}))


def read_and_work(job):
    """Sleeps in a read, and then outside of any, for so many seconds each."""
    read, work = job
    with one_read():
        time.sleep(read)
    time.sleep(work)
    return read + work


def test_each_job_has_its_result():
    assert outcomes(abs, [-3, 4, -5]) == {-3: 3, 4: 4, -5: 5}
    assert outcomes(abs, []) == {}


HEADING = (
    "{} of {} slides could not be read for causes of the machine, and not of the slides, each tried"
    " twice. All others are done, and what was finished is kept: mend the causes, or take these"
    " slides out of the manifest, and run the same command again:\n  {}"
)


def until_it_fails(function, jobs, **limits) -> tuple[dict, str]:
    """The outcomes, and the message of the `MachineError` that comes after all of them."""
    outcome_of: dict = {}
    with pytest.raises(MachineError) as caught:
        outcome_of.update(each(function, jobs, **{"seconds": 60.0, "step": "tiles", **limits}))
    return outcome_of, str(caught.value)


@dataclass(frozen=True)
class Try:
    """A job that notes each try in its file, and then ends as `ends` says, one a try."""

    slide_id: str
    log: Path
    ends: tuple[object, ...]


def attempt(job: Try) -> str:
    with job.log.open("a") as stream:
        stream.write(f"{job.slide_id}\n")
    tries = job.log.read_text().split().count(job.slide_id)
    end = job.ends[tries - 1]
    if isinstance(end, signal.Signals):
        os.kill(os.getpid(), end)
    if isinstance(end, Exception):
        raise end
    return str(end)


def tried(tmp_path: Path, **ends: tuple[object, ...]) -> tuple[dict[str, object], str, list[str]]:
    """Outcome by slide, the message of the failure ("" where there is none), and the slides in the
    order in which they were tried.
    """
    log = tmp_path / "log"
    outcome_of, message = {}, ""
    try:
        for job, outcome in each(
            attempt,
            [Try(slide_id, log, end) for slide_id, end in ends.items()],
            seconds=60,
            step="tiles",
        ):
            outcome_of[job.slide_id] = outcome
    except MachineError as error:
        message = str(error)
    return outcome_of, message, log.read_text().split()


def test_a_hang_is_tried_again_alone_and_then_fails_the_whole(monkeypatch):
    """The first sleeps beyond the limit; the others are done by the worker that replaces it, before
    all fails.
    """
    monkeypatch.setenv("HNM_WORKERS", "2")
    result, message = until_it_fails(time.sleep, [30, 0.01, 0.02], seconds=1)
    assert result == {0.01: None, 0.02: None}
    assert message == HEADING.format(
        1, 3, "30: it took longer than 1 s and was given up; raise tiles.slide_seconds"
    )


def test_a_read_that_hangs_likewise():
    """The limit counts for one read; what a job does beside reading may take longer."""
    result, message = until_it_fails(
        read_and_work, [(30, 0), (0, 1.5), (0.01, 0)], read_seconds=0.75
    )
    assert result == {(0, 1.5): 1.5, (0.01, 0): 0.01}
    assert message == HEADING.format(
        1, 3, "(30, 0): one read took longer than 0.75 s and was given up; raise tiles.read_seconds"
    )
    assert outcomes(read_and_work, [(0.2, 0)]) == {(0.2, 0): 0.2}
    _, message = until_it_fails(time.sleep, [30], seconds=0.5, step="open")
    assert message.endswith(
        "30: it took longer than 0.5 s and was given up; copy it to a disk that answers sooner"
    )


def test_a_worker_that_was_killed_once_costs_nothing(tmp_path):
    result, message, order = tried(tmp_path, a=(signal.SIGKILL, "fine"), b=("done",), c=("done",))
    assert (result, message) == ({"a": "fine", "b": "done", "c": "done"}, "")
    assert order[-1] == "a"
    assert sorted(order) == ["a", "a", "b", "c"]


def test_causes_of_the_machine_are_tried_again_at_the_end_and_named_together(tmp_path):
    full, short, files = (
        OSError(errno.ENOSPC, "No space left on device"),
        MemoryError(),
        OSError(errno.EMFILE, "Too many open files"),
    )
    kill, term, away = signal.SIGKILL, signal.SIGTERM, MachineError("its folder is away")
    result, message, order = tried(
        tmp_path,
        k=(kill, kill),
        a=("done",),
        f=(full, full),
        m=(short, short),
        n=(files, "fine"),
        t=(term, term),
        o=(away, away),
    )
    assert result == {"a": "done", "n": "fine"}
    assert sorted(order[:7]) == ["a", "f", "k", "m", "n", "o", "t"]
    assert sorted(order[7:]) == ["f", "k", "m", "n", "o", "t"]
    goes_on = "What was finished is kept: the same command goes on"
    lines = (
        f"f: No space left on device; free some room. {goes_on}",
        (
            "k: the process that read it was killed (SIGKILL), as the system does where memory is"
            " short; free some, or set HNM_WORKERS lower"
        ),
        f"m: there is too little memory; free some, or ask for less at once. {goes_on}",
        "o: its folder is away",
        (
            "t: the process that read it ended (exit code 15); look whether something on this"
            " machine ends processes"
        ),
    )
    assert message == HEADING.format(5, 7, "\n  ".join(lines))


def test_a_slide_that_crashes_its_reader_twice_costs_itself(tmp_path):
    crashes = {
        crash.name: (crash, crash)
        for crash in (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
    }
    result, message, _ = tried(tmp_path, **crashes, b=("done",))
    assert (message, result.pop("b")) == ("", "done")
    reasons = {name: (type(error), str(error), error.step) for name, error in result.items()}
    assert reasons == {
        name: (SlideError, f"the process that read it crashed ({name}), twice", "tiles")
        for name in crashes
    }


def test_a_crash_that_does_not_come_again_costs_nothing(tmp_path):
    result, message, _ = tried(
        tmp_path,
        a=(signal.SIGSEGV, "fine"),
        b=(signal.SIGSEGV, SlideError("blank", step="tissue")),
        c=(signal.SIGKILL, signal.SIGSEGV),
    )
    assert (result["a"], str(result["b"]), result["b"].step) == ("fine", "blank", "tissue")
    assert message.endswith(":\n  c: the process that read it crashed (SIGSEGV)")


def test_a_second_try_has_the_machine_for_itself(tmp_path, monkeypatch):
    """Two that fail at first are tried again one after the other."""
    monkeypatch.setenv("HNM_WORKERS", "2")
    assert outcomes(alone_the_second_time, [tmp_path / "a", tmp_path / "b"]) == {
        tmp_path / "a": "alone",
        tmp_path / "b": "alone",
    }


def alone_the_second_time(path: Path) -> str:
    if not path.exists():
        path.touch()
        raise MachineError("too little memory")
    running = path.parent / "running"
    running.mkdir()  # fails where another runs
    time.sleep(0.3)
    running.rmdir()
    return "alone"


def test_storage_that_stays_away_is_not_waited_for_by_each_slide(monkeypatch):
    """A mount that is away for good costs its slides one wait a pass, in which the first of them is
    patient.
    """
    monkeypatch.setenv("HNM_WORKERS", "1")
    monkeypatch.setattr(workers, "patiently", patiently_for_a_second)
    begin = time.monotonic()
    _, message = until_it_fails(away, ["a", "b", "c", "d", "e", "f"])
    assert message.splitlines()[1:] == [
        f"  {name}: {name} is away" + (" after a wait" if name == "a" else "") for name in "abcdef"
    ]
    assert time.monotonic() - begin < 12


def away(job: str) -> None:
    raise StorageError(f"{job} is away")


def patiently_for_a_second(function, job):
    time.sleep(1)
    try:
        return function(job)
    except StorageError as error:
        raise StorageError(f"{error} after a wait") from None


def no_worker(_: object) -> None:
    raise OSError(errno.EMFILE, "Too many open files")


def test_no_process_can_be_started(monkeypatch):
    monkeypatch.setattr(workers, "limit_reads", no_worker)
    result, message = until_it_fails(abs, [-3])
    assert result == {}
    assert message == HEADING.format(1, 1, f"-3: {workers.NO_PROCESS}")


def test_what_is_wrong_with_a_slide_comes_back_with_its_step(tmp_path):
    (tmp_path / "other.svs").touch()
    ((_, outcome),) = each(
        identify, [SlideSource("a", str(tmp_path / "none.svs"), None)], seconds=60, step="tiles"
    )
    assert isinstance(outcome, SlideError)
    assert (str(outcome), outcome.step) == ("none.svs does not exist", "open")


def test_a_defect_ends_all():
    with pytest.raises(ValueError, match="invalid literal"):
        outcomes(int, ["7", "x"])


def test_the_number_of_workers(monkeypatch):
    monkeypatch.setenv("HNM_WORKERS", "3")
    assert worker_count() == 3
    monkeypatch.delenv("HNM_WORKERS")
    assert worker_count() == os.cpu_count()
    for wrong in ("0", "-1", "two", "1.5", ""):
        monkeypatch.setenv("HNM_WORKERS", wrong)
        with pytest.raises(
            ParamsError,
            match=(
                f"the environment variable HNM_WORKERS='{wrong}' is no whole number of at least 1"
            ),
        ):
            worker_count()


@pytest.mark.parametrize(
    ("code", "is_told"),
    [
        ("Semaphore(1).__setstate__((0, 1, 1, '/gone'))", False),
        ("open('/gone')", True),
        ("int('x')", True),
    ],
)
def test_a_worker_that_begins_too_late_ends_without_a_word_and_no_other(
    code: str, is_told: bool
) -> None:
    program = f"import hnm.fork_server\nfrom multiprocessing import Semaphore\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1 and ("Traceback" in done.stderr) == is_told, done.stderr


def test_a_machine_of_a_cluster_with_another_library_cuts_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its pack would be kept as one of the library that is here."""
    task = workers.Task(cut, "tiles", 60.0, None, causes_of(cut.__module__))
    true = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.1" if name == "numpy" else true(name))
    monkeypatch.setattr(workers, "_causes_here", causes_of)
    with pytest.raises(
        CausesError,
        match=(
            rf"is not as the one that asks it \(numpy {true('numpy')} -> 0\.1\); install the same"
            r" versions there"
        ),
    ):
        workers._run_one(task, None)
