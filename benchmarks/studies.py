"""What a study costs: 20 trials of head-only params on cached features, and a trial beside its own
rounds run bare.

    python benchmarks/studies.py --project . --out studies.md

The project holds what `dvc repro` has made up to round 0's encoder. Both parts study one round and
params of the head alone, with features in the store and one thread a process. The first is the
command `hnm tune` itself, from its start to its end, with its workers, MLflow and plots. The second
runs some trials twice in this process, which has trained a head before: by a study with one worker,
and bare, that is by the steps that the stages call.

Processor seconds, user's and system's, are told of the second part alone: where other work holds
the cores too, they still say what wall-clock seconds no longer do. The command's workers are no
children of this process.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from hnm.files import whole
from hnm.loop.embed import embed_slides
from hnm.loop.head import train_head
from hnm.loop.rounds import Loop, Upstream
from hnm.params import Params, check_params, load_params
from hnm.processes import keep_freed_memory
from hnm.store import Store
from hnm.studies.files import StudyFiles, read_trials
from hnm.studies.space import with_values
from hnm.studies.study import StudySettings, run_study
from hnm.tables import PATIENTS, SLIDES

SPACE = {
    "head.learning_rate": {"low": 5e-5, "high": 1e-3, "log": True},
    "head.dropout": {"low": 0.0, "high": 0.5},
    "ranking.margin": {"low": 0.0, "high": 1.0},
    "ranking.top_k": {"low": 1, "high": 20, "log": True},
    "ranking.weight": {"low": 0.1, "high": 3.0, "log": True},
}


def head_only(params: Params, threads: int) -> Params:
    """One round, a space of head params, and no pruning."""
    raw = params.model_dump(mode="json")
    raw |= {
        "rounds": {"0": {}},
        "later_rounds": {},
        "compute": {**raw["compute"], "threads": threads},
    }
    return check_params({**raw, "tune": {"space": SPACE, "pruner": "none"}})


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock seconds of `work`, and processor seconds of this process."""
    before, began = time.process_time(), time.perf_counter()
    work()
    return time.perf_counter() - began, time.process_time() - before


def scratch_project(project: Path, params: Params, folder: Path) -> None:
    """A project in `folder` with the data of `project` and these params."""
    folder.mkdir()
    for name in ("data", "vetoes", "extra", "dvc.yaml"):
        (folder / name).symlink_to((project / name).resolve())
    if (project / "mlflow.db").exists():  # making one takes seconds, once in a project's life
        shutil.copy(project / "mlflow.db", folder)
    with (folder / "params.yaml").open("w", encoding="utf-8") as stream:
        YAML().dump(params.model_dump(mode="json"), stream)


def tune(folder: Path, store: Store, trials: int, workers: int) -> None:
    """The command `hnm tune` in the project `folder`."""
    command = [
        sys.executable,
        "-m",
        "hnm.cli",
        "tune",
        "--trials",
        str(trials),
        "--workers",
        str(workers),
    ]
    subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "HNM_STORE": str(store.root), "DVC_ROOT": str(folder)},
        check=True,
    )


def bare(params: Params, upstream: Upstream, store: Store) -> None:
    """One trial's round by the steps that the stages call."""
    paths = upstream.paths
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = replace(paths.embed(0), features=folder / "features")
        embed_slides(files, store, embed=params.embed, compute=params.compute)
        patients = folder / "patients.csv"
        PATIENTS.write(SLIDES.read(paths.cohort.slides)[list(PATIENTS.columns)], patients)
        train_head(
            replace(
                paths.head(0),
                features=files.features,
                patients=patients,
                folder=folder / "head",
                tile_scores=folder / "tiles.parquet",
                slide_scores=folder / "slides.parquet",
                cross_fitted=folder / "cross_fitted.parquet",
            ),
            head=params.head,
            ranking=params.ranking,
            compute=params.compute,
            on_epoch=untold,
        )


def untold(epoch: int, metrics: object) -> None:
    """Epochs of a head that is measured are told to nobody."""


def report(
    project: Path, trials: int, workers: int, compared: int, say: Callable[[str], None] = print
) -> str:
    """The table of both parts; `compared` trials are run twice."""
    upstream, original = Upstream(project), load_params(project / "params.yaml")
    params = head_only(original, threads=1)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        store = Store(scratch / "store")
        bare(params, upstream, store)  # features into the store, and all that torch does once
        scratch_project(project, params, scratch / "project")
        together, _ = measured(lambda: tune(scratch / "project", store, trials, workers))
        say(f"{trials} trials, {workers} workers: {together:.1f} s")

        files = StudyFiles(scratch / "one")
        alone = Store(scratch / "alone")
        alone.root.mkdir()
        (alone.root / "features").symlink_to(store.root / "features")
        loop = Loop(upstream, alone)
        settings = StudySettings(files, params, upstream, loop, alone, compared)
        study = measured(lambda: run_study(settings, say))
        table, names = read_trials(files)
        rows: list[Any] = table[names].to_dict("records")
        trials_params = [with_values(params, row) for row in rows]
        seconds = [measured(partial(bare, one, upstream, alone)) for one in trials_params]
    wall, processor = map(sum, zip(*seconds, strict=True))
    lines = [
        f"| `hnm tune --trials {trials} --workers {workers}` | {together:.1f} s | | |",
        (
            f"| {compared} trials, 1 worker, in a process that is warm | {study[0]:.1f} s |"
            f" {study[1]:.1f} s | {study[1] / processor:.2f} |"
        ),
        f"| the same rounds bare | {wall:.1f} s | {processor:.1f} s | 1 |",
    ]
    slides = len(list(upstream.paths.tiles.packs.glob("*.h5")))
    head = [
        f"{slides} slides, {upstream.tile_count} tiles, one thread a process.",
        "",
        "| | wall | processor | against bare |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *lines]) + "\n"


def write(text: str, path: Path | None, show: Callable[[str], None] = print) -> None:
    """`text` to the screen, and to `path` where one is named."""
    show(text)
    if path is not None:
        with whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--project", type=Path, default=Path())
    parser.add_argument("--trials", type=int, default=20, help="of the first part")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--compared", type=int, default=5, help="trials of the second part")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    write(
        report(arguments.project, arguments.trials, arguments.workers, arguments.compared),
        arguments.out,
    )
