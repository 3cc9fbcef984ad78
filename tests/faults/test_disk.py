"""Disks that are full, read-only, slow to give room or shared: one line with the cure, and the same
command goes on afterwards.
"""

import os
import random
import re
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from hnm.evidence.test_ledger import read_ledger
from tests.support.stages import ORDER, Done, Project, outs_of

STAGES = ORDER[:-1]
SIMCLR: dict[str, dict[str, Any]] = {
    "encoder": {"source": "simclr"},
    "simclr": {"epochs": 1, "batch_tiles": 16, "projection_features": 4},
}
"""Sections with which the stage encoder trains."""
NOBODY = 65534
as_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root may mount a disk or become another user"
)


@pytest.fixture(scope="session")
def finished(
    undisturbed: Project, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Project]:
    """A project in which a stage has run, to compare with; beside it lie the failpoints that it
    reached. `evaluate` runs here alone, as it writes a ledger.
    """

    @cache
    def finish(stage: str, variant: str) -> Project:
        if stage in STAGES and not variant:
            return undisturbed
        project = undisturbed.copy(tmp_path_factory.mktemp("finished") / "project")
        project.set(**(SIMCLR if variant == "simclr" else {}))
        project.clear(stage)
        project.succeed(stage, HNM_FAILPOINT_LOG=str(project.folder.parent / f"{stage}.points"))
        return project

    return finish


def points_of(undisturbed: Project, stage: str) -> list[tuple[str, str]]:
    """The failpoints that a stage reaches, each with the name of its file, in order and once."""
    lines = (undisturbed.folder.parent / f"{stage}.points").read_text().splitlines()
    return list(dict.fromkeys((line.partition("\t")[0], line.partition("\t")[2]) for line in lines))


def sample(undisturbed: Project) -> list[tuple[str, str, str]]:
    """(stage, point, file): every point once, at the stages by turns."""
    chosen: dict[str, tuple[str, str, str]] = {}
    for number in range(len(STAGES)):
        for stage in STAGES[number:] + STAGES[:number]:
            fresh = [
                (point, file)
                for point, file in points_of(undisturbed, stage)
                if point not in chosen
            ]
            if fresh:
                point, file = random.Random(f"{stage} {number}").choice(fresh)
                chosen[point] = (stage, point, file)
    return list(chosen.values())


def check_message(done: Done, where: str) -> None:
    """One line that says what to do, and no traceback."""
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert done.code == 1, f"{where}: exit code {done.code}: {done.err}"
    assert "Traceback" not in done.err + done.out, f"{where}: {done.err}"
    assert lines[0].startswith("error: ") and all(line.startswith("  ") for line in lines[1:]), (
        f"{where}: {done.err}"
    )  # a line a slide may follow
    assert "free some room" in done.err, f"{where}: {done.err}"


def fail_and_go_on(
    project: Project, undisturbed: Project, stage: str, point: str, file: str, action: str
) -> None:
    project.empty(stage)
    where = f"{stage} at {point} of {file}, {action}"
    done = project.run(
        stage, HNM_FAILPOINT=f"{point}:{file}={action}" if file else f"{point}={action}"
    )
    if action == "kill":
        assert done.code in (-signal.SIGKILL, 1), where
    elif point == "store.link":  # where no link can be made, a copy is
        assert done.code == 0, f"{where}: {done.err}"
    elif done.code == 0:  # for want of what it took alone, no stage fails
        assert f"cost: what {stage} took cannot be written" in done.err, f"{where}: {done.err}"
        assert re.search(rf"\.hnm/cost/(keys/)?{re.escape(file)}'", done.err), where
    else:
        check_message(done, where)
    project.clear(stage)  # as DVC does
    if (ledger := project.folder / "test_ledger.csv").exists():
        read_ledger(ledger)
        ledger.unlink()  # it counts each look, and the report says how many there were
    project.succeed(stage)
    assert project.bytes_of(*outs_of(stage)) == undisturbed.bytes_of(*outs_of(stage)), where


def test_every_stage_but_the_last_reaches_failpoints(undisturbed: Project) -> None:
    for stage in STAGES:
        assert {
            "whole.creating",
            "whole.writing",
            "whole.syncing",
            "whole.renaming",
            "whole.renamed",
        } <= {point for point, _ in points_of(undisturbed, stage)}, stage


@pytest.mark.parametrize("action", ["ENOSPC", "kill"])
def test_disk_full_at_every_write(project: Project, undisturbed: Project, action: str) -> None:
    """Every failpoint that there is, each at one stage."""
    for stage, point, file in sample(undisturbed):
        fail_and_go_on(project, undisturbed, stage, point, file, action)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("action", ["ENOSPC", "EDQUOT", "kill"])
@pytest.mark.parametrize(
    ("stage", "variant"), [*((stage, "") for stage in ORDER), ("encoder", "simclr")]
)
def test_disk_full_at_every_write_of_every_stage(
    project: Project, finished: Callable[[str, str], Project], stage: str, variant: str, action: str
) -> None:
    undisturbed = finished(stage, variant)
    project.set(**(SIMCLR if variant == "simclr" else {}))
    points = points_of(undisturbed, stage)
    files = sorted({file for _, file in points})
    first = {
        file
        for suffix in {Path(file).suffix for file in files}
        for file in [file for file in files if Path(file).suffix == suffix][:2]
    }
    points = [
        (point, file) for point, file in points if file in first
    ]  # of many slides, and of many charts, two do
    for point, file in points:
        if action == "EDQUOT" and point != "whole.writing":
            continue
        fail_and_go_on(project, undisturbed, stage, point, file, action)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True
    ).returncode:
        pytest.skip("this machine mounts nothing")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path, left: int) -> Path:
    """Leaves `left` bytes of a disk."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    filler = disk / "filler"
    with filler.open("wb") as stream:
        stream.truncate(0)
        os.posix_fallocate(stream.fileno(), 0, max(1, free - left))
    return filler


@as_root
@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ("tiles", 20_000),
        ("embed@0", 8_000),
        ("head@0", 20_000),
        ("finetune@1", 100_000),
        ("mine@1", 0),
    ],
)
def test_a_really_full_disk(small_disk: Path, undisturbed: Project, stage: str, left: int) -> None:
    project = undisturbed.copy(small_disk / "project")
    project.empty(stage)
    log = small_disk.parent / "log"
    filler = fill(small_disk, left)
    check_message(project.run(stage, log=str(log)), stage)
    filler.unlink()
    project.clear(stage)
    project.succeed(stage)
    assert project.bytes_of(*outs_of(stage)) == undisturbed.bytes_of(*outs_of(stage))


@pytest.mark.parametrize(
    ("code", "cure"),
    [
        ("EROFS", "make the file system writable"),
        ("EDQUOT", "quota"),
        ("EACCES", "give this user the right"),
    ],
)
def test_read_only_and_quota(project: Project, undisturbed: Project, code: str, cure: str) -> None:
    project.empty("mine@1")
    done = project.run("mine@1", HNM_FAILPOINT=f"whole.creating={code}")
    assert (
        (done.code, len(done.err.splitlines())) == (1, 1)
        and done.err.startswith("error: ")
        and cure in done.err
    ), done.err
    project.succeed("mine@1")
    assert project.bytes_of("data/mined") == undisturbed.bytes_of("data/mined")


@as_root
def test_a_disk_that_is_mounted_read_only(small_disk: Path, undisturbed: Project) -> None:
    project = undisturbed.copy(small_disk / "project")
    project.empty("embed@0")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = project.run("embed@0", log=str(small_disk.parent / "log"))
    assert (done.code, len(done.err.splitlines())) == (
        1,
        1,
    ) and "Read-only file system" in done.err, done.err


@pytest.mark.parametrize(("umask", "mode"), [("077", 0o600), ("002", 0o664), ("027", 0o640)])
def test_umask(project: Project, umask: str, mode: int) -> None:
    """Every file that stages make has the mode of the umask; nobody reads under 077."""
    stages = ("tiles", "encoder", "head@0", "mine@1") if umask == "077" else ("head@0", "mine@1")
    for stage in stages:
        project.empty(stage)
    project.succeed(*stages, umask=umask)
    files = [
        file
        for stage in stages
        for out in outs_of(stage)
        for file in [project.folder / out, *(project.folder / out).rglob("*")]
        if file.is_file()
    ]
    assert len(files) >= 3 * len(stages)
    assert not {
        file.relative_to(project.folder).as_posix(): oct(file.stat().st_mode)
        for file in files
        if stat.S_IMODE(file.stat().st_mode) != mode
    }
    folders = [
        project.folder / out
        for stage in stages
        for out in outs_of(stage)
        if (project.folder / out).is_dir()
    ]
    assert folders and not {
        folder for folder in folders if stat.S_IMODE(folder.stat().st_mode) & int(umask, 8)
    }


@as_root
def test_users_and_a_shared_cache(project: Project, undisturbed: Project, tmp_path: Path) -> None:
    """Two users with one store: the second takes what the first has cut; where it may not write, it
    says so in a line.
    """
    store = tmp_path / "store"
    store.mkdir()
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    project.empty("tiles")
    project.succeed("tiles", HNM_STORE=str(store), umask="022")
    packs = {path.name: path.stat().st_mtime_ns for path in store.rglob("*.h5")}
    assert len(packs) == 8
    other = undisturbed.copy(tmp_path / "other")
    other.clear("tiles")
    for path in (other.folder, *other.folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    done = other.run(
        "tiles",
        HNM_STORE=str(store),
        user=str(NOBODY),
        umask="022",
        log=str(tmp_path / "log"),
        HOME=str(tmp_path),
    )
    assert done.code == 0, done.err
    assert other.bytes_of("data/tiles") == undisturbed.bytes_of("data/tiles")
    assert {path.name: path.stat().st_mtime_ns for path in store.rglob("*.h5")} == packs
    other.empty("embed@0")
    done = other.run(
        "embed@0",
        HNM_STORE=str(store),
        user=str(NOBODY),
        umask="022",
        log=str(tmp_path / "log"),
        HOME=str(tmp_path),
    )
    assert (
        done.code == 1 and "Traceback" not in done.err and "give this user the right" in done.err
    ), done.err
