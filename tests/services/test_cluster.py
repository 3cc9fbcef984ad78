"""Slides on a real dask cluster: a scheduler and workers that are processes of their own, one of
which is killed.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import hnm.slides.cluster
from hnm.errors import MachineError, ParamsError, SlideError
from hnm.loop.paths import TilesFiles
from hnm.params import Cohort, Tiles, Tissue
from hnm.slides.reading.reader import OpenSlideReader
from hnm.slides.workers import each
from hnm.tables import QUARANTINE, SLIDES
from pipelines import tiles

pytestmark = pytest.mark.services
pytest.importorskip("dask_jobqueue", reason="dask is not installed: pip install 'hnm[dask]'")
ROOT = Path(__file__).parents[2]
SLIDE_COUNT = 16


def start(*command: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Cluster:
    """A scheduler that loses patience with a job as soon as one worker dies of it, and workers, all
    of them processes.
    """

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        self._folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.scheduler = self.start_scheduler()

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        command = (
            "-m",
            "distributed.cli.dask_scheduler",
            "--host",
            self.address,
            "--no-dashboard",
            "--no-show",
        )
        return self._start(*command, DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0")

    def start_workers(self, count: int) -> list[subprocess.Popen[bytes]]:
        scratch = str(self._folder / "scratch")
        command = (
            "-m",
            "distributed.cli.dask_worker",
            self.address,
            "--no-nanny",
            "--nthreads",
            "1",
            "--no-dashboard",
            "--local-directory",
            scratch,
        )
        return [self._start(*command) for _ in range(count)]

    def _start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        self.processes.append(start(*command, **environment))
        return self.processes[-1]


@pytest.fixture
def a_cluster(tmp_path: Path) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path)
    yield cluster
    for process in reversed(cluster.processes):
        end(process)


@pytest.fixture
def cluster(a_cluster: Cluster) -> tuple[str, list[subprocess.Popen[bytes]]]:
    """The address of a scheduler, and its two workers."""
    return a_cluster.address, a_cluster.start_workers(2)


@pytest.fixture
def slides(tmp_path: Path, tiny, monkeypatch) -> Path:
    """Slides as the stage cohort leaves them, one of them without tissue."""
    monkeypatch.chdir(tmp_path)
    rows = []
    for number in range(SLIDE_COUNT):
        path = tmp_path / "in" / f"s{number:02d}.svs"
        patches = ((32, 32, 900, 64 + 32 * number, tiny.STROMA),) if number else ()
        tiny.aperio(path, tiny.painted(700, 1000, *patches, seed=number), tile=256)
        with OpenSlideReader(path) as slide:
            scan = (1000, 700, 0, 0, 1000, 700, "auto")
            rows.append(
                (
                    path.stem,
                    path.name,
                    path.stem,
                    "train",
                    "aperio",
                    1.0,
                    1.0,
                    *scan,
                    slide.fingerprint(),
                    "",
                    "",
                )
            )
    SLIDES.write(pd.DataFrame(rows, columns=list(SLIDES.columns)), tmp_path / "slides.parquet")
    QUARANTINE.write(QUARANTINE.empty(), tmp_path / "unopened.csv")
    return tmp_path


def cut_all(folder: Path, out: str, monkeypatch, executor: str) -> dict[str, bytes]:
    monkeypatch.setenv("HNM_EXECUTOR", executor)
    monkeypatch.setenv("HNM_STORE", str(folder / f"store-{out}"))
    sections = {
        "cohort": Cohort(name="c", manifest="in/slides.csv"),
        "tissue": Tissue(min_area_um2=1000.0),
        "tiles": Tiles(mpp=1.0, tile_px=32),
    }
    written = (folder / out / name for name in ("packs", "packs.csv", "index.parquet", "q.csv"))
    files = TilesFiles(folder / "slides.parquet", folder / "unopened.csv", *written)
    tiles.main(files, **sections)
    return {
        str(path.relative_to(folder / out)): path.read_bytes()
        for path in sorted((folder / out).rglob("*"))
        if path.is_file()
    }


def test_a_cluster_of_which_a_worker_dies_gives_the_same_bytes(
    slides, cluster, monkeypatch, capsys
):
    address, workers = cluster
    by_processes = cut_all(slides, "local", monkeypatch, "local")
    # packs, and the tables of tiles, packs and quarantine
    assert len(by_processes) == SLIDE_COUNT - 1 + 3
    finished = []

    def kill_one_half_way() -> None:
        while (count := len(list((slides / "store-dask").rglob("[!.]*.h5")))) < 4:
            time.sleep(0.005)
        os.killpg(workers[0].pid, signal.SIGKILL)
        finished.append(count)

    killer = threading.Thread(target=kill_one_half_way, daemon=True)
    killer.start()
    assert cut_all(slides, "dask", monkeypatch, address) == by_processes
    killer.join(10)
    assert workers[0].wait(10) == -signal.SIGKILL
    assert workers[1].poll() is None
    assert 4 <= finished[0] < SLIDE_COUNT - 1
    assert "s00: it has no tissue of at least tissue.min_area_um2=1000" in capsys.readouterr().out


def crash(job: int) -> int:
    if job == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    return job


def test_a_crash_costs_one_slide_and_a_hang_fails_all_after_the_others(cluster, monkeypatch):
    """As on one machine, and no dask worker dies of it."""
    address, workers = cluster
    monkeypatch.setenv("HNM_EXECUTOR", address)
    result = {}
    with pytest.raises(
        MachineError,
        match=(
            r"^1 of 2 slides could not be read .*\n  30: it took longer than 2 s and was given up;"
            r" raise tiles.slide_seconds$"
        ),
    ):
        result.update(each(time.sleep, [30, 0.01], seconds=2, step="tiles"))
    assert result == {0.01: None}
    result = dict(each(crash, [3, 4], seconds=30, step="tiles"))
    assert result[4] == 4
    assert isinstance(result[3], SlideError)
    assert str(result[3]) == "the process that read it crashed (SIGSEGV), twice"
    assert [worker.poll() for worker in workers] == [None, None]


def crash_cluster(job: int) -> int:
    """Kills the worker of dask that has this process read a slide: the parent of the server that it
    is forked from.
    """
    if job == 3:
        server = os.getppid()
        os.kill(
            int(Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()[1]),
            signal.SIGKILL,
        )
        time.sleep(60)
    return job


def test_a_slide_that_kills_every_worker_fails_the_stage_by_name_after_the_others(
    a_cluster, monkeypatch
):
    workers = a_cluster.start_workers(3)
    monkeypatch.setenv("HNM_EXECUTOR", a_cluster.address)
    result = {}
    says = (
        r"^1 of 4 slides could not be read for causes of the machine, .*\n  3: the workers that"
        r" read it died \(the last: tcp://"
    )
    with pytest.raises(MachineError, match=says):
        result.update(each(crash_cluster, [1, 2, 3, 4], seconds=60, step="tiles"))
    assert result == {1: 1, 2: 2, 4: 4}
    assert sorted(worker.poll() or 0 for worker in workers) == [-signal.SIGKILL, -signal.SIGKILL, 0]


def test_when_all_workers_are_dead_the_stage_ends(a_cluster, monkeypatch):
    """Two workers, two tries: nobody is left for the jobs that wait."""
    monkeypatch.setattr(hnm.slides.cluster, "SECONDS_TO_LOOK", 0.2)
    monkeypatch.setattr(hnm.slides.cluster, "SECONDS_WITHOUT", 2.0)
    monkeypatch.setenv("HNM_EXECUTOR", a_cluster.address)
    (worker,) = a_cluster.start_workers(1)
    result: dict[int, object] = {}
    began = None
    with pytest.raises(MachineError) as raised:
        for job, outcome in each(crash_cluster, [1, 3, 4], seconds=60, step="tiles"):
            began = time.monotonic()
            result[job] = outcome
    assert began is None or time.monotonic() - began < 20
    causes = str(raised.value).splitlines()[1:]
    assert [cause.partition(":")[0].strip() for cause in causes] == [
        str(job) for job in (1, 3, 4) if job not in result
    ]
    assert all("the cluster has had no worker for 2 s; start workers" in cause for cause in causes)
    assert worker.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_scheduler_that_goes_away_while_slides_are_cut(slides, a_cluster, monkeypatch, signal_):
    """The stage ends in time, names each slide that is left, keeps what was cut, and the same
    command goes on.
    """
    by_processes = cut_all(slides, "local", monkeypatch, "local")
    monkeypatch.setattr(hnm.slides.cluster, "SECONDS_TO_ANSWER", "3s")
    monkeypatch.setattr(hnm.slides.cluster, "SECONDS_TO_LOOK", 0.2)
    a_cluster.start_workers(1)
    gone_at = []

    def packs() -> set[str]:
        return {path.name for path in (slides / "store-dask").rglob("[!.]*.h5")}

    def away() -> None:
        while len(packs()) < 4:
            time.sleep(0.005)
        monkeypatch.setattr(
            hnm.slides.cluster, "SECONDS_WITHOUT", 3.0
        )  # not before: a worker may take as long to start
        os.killpg(a_cluster.scheduler.pid, signal_)
        gone_at.append(time.monotonic())

    killer = threading.Thread(target=away, daemon=True)
    killer.start()
    with pytest.raises(MachineError) as raised:
        cut_all(slides, "dask", monkeypatch, a_cluster.address)
    assert time.monotonic() - gone_at[0] < 45
    causes = str(raised.value).splitlines()
    assert "All others are done, and what was finished is kept" in causes[0]
    named = {cause.partition(":")[0].strip() for cause in causes[1:]}
    assert 1 <= len(named) <= SLIDE_COUNT - 4 and all(name.startswith("s") for name in named)
    assert all(
        "start its scheduler again" in cause or "has had no worker for 3 s" in cause
        for cause in causes[1:]
    )
    assert len(packs()) >= 4 and not (slides / "dask" / "index.parquet").exists()
    end(a_cluster.scheduler)
    before = {path: path.stat().st_mtime_ns for path in (slides / "store-dask").rglob("[!.]*.h5")}
    monkeypatch.setattr(hnm.slides.cluster, "SECONDS_WITHOUT", 120.0)
    monkeypatch.setattr(hnm.slides.cluster, "SECONDS_TO_ANSWER", "60s")
    a_cluster.start_scheduler()  # the worker comes back to it by itself, or is away
    a_cluster.start_workers(1)
    assert cut_all(slides, "dask", monkeypatch, a_cluster.address) == by_processes
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_executor_that_is_not_there(monkeypatch):
    monkeypatch.setattr("hnm.slides.cluster.SECONDS_TO_ANSWER", "1s")
    monkeypatch.setenv("HNM_EXECUTOR", "tcp://127.0.0.1:1")
    with pytest.raises(
        ParamsError,
        match=(
            r"HNM_EXECUTOR='tcp://127.0.0.1:1' is neither local, nor one of slurm, pbs, lsf, nor"
            r" the address of a dask scheduler"
        ),
    ):
        list(each(abs, [-3], seconds=60, step="tiles"))


def test_a_batch_system(tmp_path, monkeypatch):
    """SLURM is two scripts here: `sbatch` runs what it is given, `scancel` ends it."""
    (tmp_path / "bin").mkdir()
    run = (
        f'cp "${{@: -1}}" {tmp_path}/script.sh\nsetsid bash {tmp_path}/script.sh'
        f" >{tmp_path}/job.log 2>&1 &\necho $! >{tmp_path}/job"
    )
    submit = f'#!/bin/bash\n{run}\necho "Submitted batch job 7"\n'
    cancel = f'#!/bin/bash\necho "$@" >{tmp_path}/cancelled\nkill -9 -- -$(cat {tmp_path}/job)\n'
    for name, text in (("sbatch", submit), ("scancel", cancel)):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HNM_WORKERS", "1")
    monkeypatch.setenv("HNM_EXECUTOR", "slurm")
    import dask

    with dask.config.set(
        {
            "jobqueue.slurm.cores": 1,
            "jobqueue.slurm.memory": "1GiB",
            "jobqueue.slurm.walltime": "00:10:00",
        }
    ):
        assert dict(each(abs, [-3, 4], seconds=60, step="tiles")) == {-3: 3, 4: 4}
    script = (tmp_path / "script.sh").read_text()
    assert "#SBATCH -t 00:10:00" in script
    assert "--no-nanny" in script
    assert (tmp_path / "cancelled").read_text().split() == ["7"]
    with (
        dask.config.set({"jobqueue.slurm.cores": None}),
        pytest.raises(ParamsError, match=r"dask's configuration jobqueue.slurm is not whole: "),
    ):
        list(each(abs, [-3], seconds=60, step="tiles"))
    assert shutil.which("sbatch") == str(tmp_path / "bin" / "sbatch")
