"""The whole pipeline under the real `dvc repro`, killed at random moments of every stage and
started again each time.

`make soak KILLS=200` kills 200 times; it prints how often each stage was hit, and how long it took.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from hnm.synthetic import make_demo_cohort
from tests.support.stages import ORDER, SMALL
from tests.test_pipeline import change_params, environment, make_repository

pytestmark = [pytest.mark.soak, pytest.mark.timeout(4 * 3600)]
KILLS = int(os.environ.get("KILLS", "20"))
SECONDS = float(os.environ.get("KILLS_SECONDS", "inf"))
"""After so long no more are begun; how many there were is printed."""
SEED = 20260702
HITS = 3
"""How often a stage is hit before its turn is over and it may end."""
VICTIMS = ("dvc alone", "the stage alone", "the whole group")


@dataclass
class Repository:
    """A repository, and what was seen of its stages."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each stage took in the undisturbed run, from its start to its end."""
    results: dict[str, int] = field(default_factory=dict)
    """When each result in the store was made, by its place."""

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        settings = environment(
            self.folder, HNM_WORKERS="2", OMP_WAIT_POLICY="passive", DVC_NO_ANALYTICS="1"
        )
        with (self.folder / "repro.log").open("ab") as log:
            return subprocess.Popen(
                ["dvc", "repro", *arguments],
                cwd=self.folder,
                env=settings,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def finish(self) -> None:
        """The undisturbed run; how long each stage takes is seen from outside."""
        process = self.start()
        running = ""
        begin = 0.0
        while process.poll() is None:
            stage = running_stage(process)
            if stage is not None and stage[0] != running:
                running = stage[0]
                begin = time.monotonic()
            if running:
                self.seconds[running] = time.monotonic() - begin
            time.sleep(0.02)
        assert process.returncode == 0, self.log()

    def log(self) -> str:
        return (self.folder / "repro.log").read_text(errors="replace")[-3000:]

    def complete(self, lock: bytes) -> None:
        """Runs to the end, which must be that of the undisturbed run."""
        assert self.start().wait() == 0, self.log()
        self.check_results()
        assert (self.folder / "dvc.lock").read_bytes() == lock, (
            "dvc.lock is not that of the undisturbed run"
        )

    def wipe(self) -> None:
        """Back to before the first run: no outputs, no lock, no cache, no store. The ledger of
        openings stays.
        """
        for name in ("data", "results"):
            for path in (self.folder / name).iterdir():
                if path.name != "demo":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        (self.folder / "dvc.lock").unlink()
        for name in (".dvc/cache", ".dvc/tmp", ".hnm/store"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.results = {}

    def check_results(self) -> None:
        """No finished slide may be lost or made twice."""
        store = self.folder / ".hnm" / "store"
        now = {
            path.relative_to(store).as_posix(): path.stat().st_mtime_ns
            for path in store.rglob("[!.]*.h5")
        }
        assert self.results.items() <= now.items(), "a finished slide was lost or made again"
        self.results = now


def running_stage(process: "subprocess.Popen[bytes]") -> tuple[str, psutil.Process] | None:
    """DVC's name and the process of the stage that runs below `dvc repro`."""
    try:
        children = psutil.Process(process.pid).children(recursive=True)
    except psutil.Error:
        return None
    for child in children:
        try:
            words = child.cmdline()
            if len(words) > 2 and words[1] == "-m" and words[2].startswith("pipelines."):
                return child.environ()["DVC_STAGE"].rpartition(":")[2], child
        except (psutil.Error, KeyError):
            continue
    return None


def wait_for(process: "subprocess.Popen[bytes]", wanted: str) -> psutil.Process | None:
    """The process of the stage `wanted`, once it runs; None where the run ends without it."""
    while process.poll() is None:
        if (stage := running_stage(process)) is not None and stage[0] == wanted:
            return stage[1]
        time.sleep(0.02)
    return None


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def kill(process: "subprocess.Popen[bytes]", stage: psutil.Process, victim: str) -> bool:
    """Kills, and waits until nothing of this run lives; whether the stage was still running."""
    lived = not gone(stage) and process.poll() is None
    family = [stage, *stage.children(recursive=True)] if lived else []
    if victim == "dvc alone":
        process.kill()
    elif victim == "the stage alone" and lived:
        stage.kill()
    # of a stage that had ended DVC is killed too, so that the stages after it have their turn
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=180)
    end = (
        time.monotonic() + 120
        # a stage that still imports notices afterwards that its parent is gone, which takes its
        # time on
        # a busy machine
    )
    while not all(gone(member) for member in family):
        assert time.monotonic() < end, f"{victim} was killed, and its stage goes on"
        time.sleep(0.02)
    return lived


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    cohort = make_demo_cohort(
        tmp_path_factory.mktemp("cohort"), slides=8, width_px=512, odd_slides=False
    ).parent
    folder = make_repository(tmp_path_factory.mktemp("soak") / "repository", cohort)
    change_params(
        folder, rounds=1, **{name: values for name, values in SMALL.items() if name != "cohort"}
    )
    return Repository(folder)


def test_killed_at_random_moments_of_every_stage(repository: Repository) -> None:
    begin = time.monotonic()
    repository.finish()
    undisturbed = (repository.folder / "dvc.lock").read_bytes()
    whole = time.monotonic() - begin
    assert set(repository.seconds) == {"causes", *ORDER}, repository.seconds
    repository.wipe()

    def is_enough() -> bool:
        return sum(caught.values()) >= KILLS or time.monotonic() - begin > SECONDS

    dice = random.Random(SEED)
    caught = Counter[str]()
    missed = 0
    cycles = 0
    while not is_enough():
        before = "causes"
        for wanted in (stage for stage in ORDER for _ in range(HITS)):
            if is_enough():
                break
            # three of four times from the stage that was hit last, which spares those before, and
            # else all
            process = (
                repository.start("--downstream", before)
                if dice.random() < 0.75
                else repository.start()
            )
            victim = wait_for(process, wanted)
            if victim is not None:
                time.sleep(dice.uniform(0.0, 1.0) * repository.seconds[wanted])
                hit = kill(process, victim, VICTIMS[sum(caught.values()) % len(VICTIMS)])
                caught[wanted] += hit
                missed += not hit
                if not hit:  # a stage that goes on where it stopped takes less time than at first
                    repository.seconds[wanted] *= 0.7
            else:
                assert process.returncode == 0, repository.log()
                missed += 1
            repository.check_results()
            before = wanted
            print(
                f"{time.monotonic() - begin:.0f} s: {sum(caught.values())} kills, the last of"
                f" {wanted}",
                flush=True,
            )
        else:
            repository.complete(undisturbed)
            repository.wipe()
            cycles += 1
    repository.complete(undisturbed)
    hits = ", ".join(f"{stage} {caught[stage]}" for stage in ORDER)
    print(
        f"\n{sum(caught.values())} kills in {time.monotonic() - begin:.0f} s ({hits}; {missed} came"
        f" too late); {cycles} whole runs; dvc.lock is that of the undisturbed run ({whole:.0f} s)"
    )
    assert HITS * len(ORDER) > sum(caught.values()) or set(caught) == set(ORDER)
