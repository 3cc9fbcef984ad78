"""Slides on a real dask cluster: a scheduler and workers that are processes of their own, one of which is killed."""

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

from hnm.errors import MachineError, ParamsError, SlideError
from hnm.params import Cohort, Tiles, Tissue
from hnm.slides.reader import OpenSlideReader
from hnm.slides.workers import each
from hnm.tables import QUARANTINE, SLIDES
from pipelines import tiles

pytestmark = pytest.mark.services
pytest.importorskip("dask_jobqueue", reason="dask is not installed: pip install 'hnm[dask]'")
ROOT = Path(__file__).parents[2]
SLIDE_COUNT = 16


def start(*command: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *command], env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, start_new_session=True)


def end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """The address of a scheduler, and its two workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    scheduler = start("-m", "distributed.cli.dask_scheduler", "--host", address, "--no-dashboard", "--no-show")
    command = ("-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path / "scratch"))
    workers = [start(*command) for _ in range(2)]
    yield address, workers
    for process in (*workers, scheduler):
        end(process)


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
            rows.append((path.stem, path.name, path.stem, "train", "aperio", 1.0, 1.0, *scan, slide.fingerprint(), "", ""))
    SLIDES.write(pd.DataFrame(rows, columns=list(SLIDES.columns)), tmp_path / "slides.parquet")
    QUARANTINE.write(QUARANTINE.empty(), tmp_path / "unopened.csv")
    return tmp_path


def cut_all(folder: Path, out: str, monkeypatch, executor: str) -> dict[str, bytes]:
    monkeypatch.setenv("HNM_EXECUTOR", executor)
    monkeypatch.setenv("HNM_STORE", str(folder / f"store-{out}"))
    sections = {"cohort": Cohort(name="c", manifest="in/slides.csv"), "tissue": Tissue(min_area_um2=1000.0), "tiles": Tiles(mpp=1.0, tile_px=32)}
    tiles.main(folder / "slides.parquet", folder / "unopened.csv", *(folder / out / name for name in ("packs", "index.parquet", "q.csv")), **sections)
    return {str(path.relative_to(folder / out)): path.read_bytes() for path in sorted((folder / out).rglob("*")) if path.is_file()}


def test_a_cluster_of_which_a_worker_dies_gives_the_same_bytes(slides, cluster, monkeypatch, capsys):
    address, workers = cluster
    known = cut_all(slides, "local", monkeypatch, "local")
    assert len(known) == SLIDE_COUNT - 1 + 2
    finished = []

    def kill_one_half_way() -> None:
        while (count := len(list((slides / "store-dask").rglob("[!.]*.h5")))) < 4:
            time.sleep(0.005)
        os.killpg(workers[0].pid, signal.SIGKILL)
        finished.append(count)

    killer = threading.Thread(target=kill_one_half_way, daemon=True)
    killer.start()
    assert cut_all(slides, "dask", monkeypatch, address) == known
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
    with pytest.raises(MachineError, match=r"^1 of 2 slides could not be read .*\n  30: it took longer than 2 s and was given up; raise tiles.slide_seconds$"):
        result.update(each(time.sleep, [30, 0.01], seconds=2, step="tiles"))
    assert result == {0.01: None}
    result = dict(each(crash, [3, 4], seconds=30, step="tiles"))
    assert result[4] == 4
    assert isinstance(result[3], SlideError)
    assert str(result[3]) == "the process that read it crashed (SIGSEGV), twice"
    assert [worker.poll() for worker in workers] == [None, None]


def test_an_executor_that_is_not_there(monkeypatch):
    monkeypatch.setattr("hnm.slides.cluster.SECONDS_TO_ANSWER", "1s")
    monkeypatch.setenv("HNM_EXECUTOR", "tcp://127.0.0.1:1")
    with pytest.raises(
        ParamsError, match=r"HNM_EXECUTOR='tcp://127.0.0.1:1' is neither local, nor one of slurm, pbs, lsf, nor the address of a dask scheduler"
    ):
        list(each(abs, [-3], seconds=60, step="tiles"))


def test_a_batch_system(tmp_path, monkeypatch):
    """SLURM is two scripts here: `sbatch` runs what it is given, `scancel` ends it."""
    (tmp_path / "bin").mkdir()
    run = f'cp "${{@: -1}}" {tmp_path}/script.sh\nsetsid bash {tmp_path}/script.sh >{tmp_path}/job.log 2>&1 &\necho $! >{tmp_path}/job'
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

    with dask.config.set({"jobqueue.slurm.cores": 1, "jobqueue.slurm.memory": "1GiB", "jobqueue.slurm.walltime": "00:10:00"}):
        assert dict(each(abs, [-3, 4], seconds=60, step="tiles")) == {-3: 3, 4: 4}
    script = (tmp_path / "script.sh").read_text()
    assert "#SBATCH -t 00:10:00" in script
    assert "--no-nanny" in script
    assert (tmp_path / "cancelled").read_text().split() == ["7"]
    with dask.config.set({"jobqueue.slurm.cores": None}), pytest.raises(ParamsError, match=r"dask's configuration jobqueue.slurm is not whole: "):
        list(each(abs, [-3], seconds=60, step="tiles"))
    assert shutil.which("sbatch") == str(tmp_path / "bin" / "sbatch")
