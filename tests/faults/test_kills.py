"""Stages that are killed, alone or with what started them: nothing is lost, nothing is half,
nothing goes on in the dark.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from hnm.files import TEMPORARY, digest_of
from hnm.repository.stages import md5_of
from tests.support.stages import ORDER, SMALL, Project, outs_of
from tests.test_pipeline import change_params, environment, make_repository

SEED = 20260701


def wait_until(true: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "stage",
    [
        "tiles",
        "head@0",
        pytest.param("finetune@1", marks=pytest.mark.soak),
        pytest.param("evaluate", marks=pytest.mark.soak),
    ],
)
def test_random_sigkill_of_a_stage(project: Project, undisturbed: Project, stage: str) -> None:
    dice = random.Random(f"{SEED} {stage}")
    for moment in (dice.uniform(0.05, 0.3), dice.uniform(0.3, 0.8)):
        project.empty(stage)
        pid = project.start(stage)
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        assert project.wait(pid).code in (-signal.SIGKILL, 0)
        project.succeed(stage)
        assert project.bytes_of(*outs_of(stage)) == undisturbed.bytes_of(*outs_of(stage))


@pytest.mark.parametrize(
    "stage", [stage for stage in ORDER if stage not in ("embed@1", "head@1", "evaluate")]
)
def test_torn_rename(project: Project, undisturbed: Project, stage: str) -> None:
    """Killed when the first file is written and has not yet its name: the next run gives the same
    bytes, and what is left disturbs no hash of a folder.
    """
    project.empty(stage)
    name = "index.parquet" if stage == "tiles" else "*"  # the packs are written by workers
    assert project.run(stage, HNM_FAILPOINT=f"whole.renaming:{name}=kill").code == -signal.SIGKILL
    project.clear(stage)  # as DVC does, which leaves what lies beside outputs that are files
    project.succeed(stage)
    assert project.bytes_of(*outs_of(stage)) == undisturbed.bytes_of(*outs_of(stage))
    for folder in {Path(out).parts[:2] for out in outs_of(stage)}:
        here = Path(*folder)
        assert md5_of(project.folder / here) == md5_of(undisturbed.folder / here), (
            "what a kill leaves changes the hash of a dependency"
        )
        assert digest_of(project.folder / here) == digest_of(undisturbed.folder / here)


def test_what_a_kill_leaves_is_nothing_to_dvc_or_git() -> None:
    root = Path(__file__).parents[2]
    for name in (".dvcignore", ".gitignore"):
        assert f"{TEMPORARY}*" in (root / name).read_text().splitlines(), (
            f"{name} must pass over {TEMPORARY}*"
        )


@pytest.mark.parametrize(
    ("stage", "after"),
    [
        ("head@0", "weights.safetensors"),
        ("mine@1", "mined.parquet"),
        ("encoder", "encoder.json"),
        ("cohort", "slides.parquet"),
    ],
)
def test_killed_between_two_files_of_one_result(
    project: Project, undisturbed: Project, stage: str, after: str
) -> None:
    project.empty(stage)
    assert project.run(stage, HNM_FAILPOINT=f"whole.renamed:{after}=kill").code == -signal.SIGKILL
    assert project.bytes_of(*outs_of(stage)) != undisturbed.bytes_of(*outs_of(stage))
    project.succeed(stage)
    assert project.bytes_of(*outs_of(stage)) == undisturbed.bytes_of(*outs_of(stage))


def test_ctrl_c(project: Project, undisturbed: Project) -> None:
    """SIGINT to the whole group of a stage that cuts slides: it ends at once, with its workers, and
    the next run goes on.
    """
    project.empty("tiles")
    pid = project.start("tiles", HNM_WORKERS="2")
    wait_until(
        lambda: [
            child
            for child in psutil.Process(pid).children(recursive=True)
            if "forkserver" in " ".join(child.cmdline())
        ]
    )
    time.sleep(0.2)
    family = psutil.Process(pid).children(recursive=True)
    os.killpg(pid, signal.SIGINT)
    begin = time.monotonic()
    done = project.wait(pid)
    assert done.code != 0 or not family
    assert time.monotonic() - begin < 10
    wait_until(
        lambda: (
            not [
                child
                for child in family
                if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
            ]
        )
    )
    assert "Traceback" not in done.err
    project.succeed("tiles")
    assert project.bytes_of(*outs_of("tiles")) == undisturbed.bytes_of(*outs_of("tiles"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, cohort: Path) -> Path:
    """A real repository in which nothing has run."""
    folder = make_repository(tmp_path_factory.mktemp("dvc") / "repository", cohort)
    change_params(
        folder, rounds=1, **{name: values for name, values in SMALL.items() if name != "cohort"}
    )
    return folder


def start_repro(repository: Path, *targets: str, **changes: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        ["dvc", "repro", *targets],
        cwd=repository,
        env=environment(repository, **changes),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def stage_below(process: "subprocess.Popen[bytes]") -> psutil.Process | None:
    """The process of the stage that `dvc repro` is running."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "pipelines.cohort" in child.cmdline() and child.cmdline()[0].endswith("python"):
                return child
        except psutil.Error:
            continue
    return None


def test_dvc_alone_killed(repository: Path) -> None:
    """The stage dies with DVC, instead of writing its outputs later, and the next repro is not
    locked out.
    """
    process = start_repro(repository, "cohort")
    wait_until(lambda: stage_below(process) is not None)
    stage = stage_below(process)
    assert stage is not None
    time.sleep(0.4)
    process.kill()
    process.wait()
    wait_until(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE, 10)
    before = (
        sorted(path.name for path in (repository / "data" / "cohort").rglob("*"))
        if (repository / "data" / "cohort").exists()
        else []
    )
    time.sleep(0.5)
    after = (
        sorted(path.name for path in (repository / "data" / "cohort").rglob("*"))
        if (repository / "data" / "cohort").exists()
        else []
    )
    assert after == before
    assert start_repro(repository, "cohort").wait() == 0
    assert (repository / "data" / "cohort" / "slides.parquet").exists()


def test_ctrl_c_of_dvc_repro(repository: Path) -> None:
    """SIGINT to the group of a terminal: DVC and its stage end, and the same command goes on."""
    lock = (repository / "dvc.lock").read_bytes() if (repository / "dvc.lock").exists() else None
    process = start_repro(repository, "cohort")
    wait_until(lambda: stage_below(process) is not None)
    time.sleep(0.4)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=20) != 0
    assert start_repro(repository, "cohort").wait() == 0
    if lock is not None:
        assert (repository / "dvc.lock").read_bytes() == lock
