"""What a study costs: 20 trials of head-only params on cached features, and a trial beside its own rounds run bare.

    python benchmarks/studies.py --project . --out studies.md

The project holds what `dvc repro` has made up to round 0's encoder. Both parts study one round and params of the head
alone. The second runs each trial's rounds twice, in turns: by a study with one worker, and bare, that is by the steps
that the stages call, with features in the store.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hnm.experiments.space import with_values
from hnm.experiments.study import Limits, run_study
from hnm.experiments.study_files import StudyFiles, read_trials
from hnm.experiments.trial import Loop, Upstream
from hnm.loop.embed import embed_slides
from hnm.loop.head import train_head
from hnm.params import Params, check_params, load_params
from hnm.processes import keep_freed_memory
from hnm.store import Store, whole
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
    raw |= {"rounds": {"0": {}}, "later_rounds": {}, "compute": {**raw["compute"], "threads": threads}}
    return check_params({**raw, "tune": {"space": SPACE, "pruner": "none"}})


def study_seconds(folder: Path, params: Params, upstream: Upstream, store: Store, trials: int, workers: int) -> tuple[float, float]:
    """Wall-clock and processor seconds of a study; the latter of this process alone."""
    began, cpu = time.perf_counter(), time.process_time()
    run_study(StudyFiles(folder), params, upstream, Loop(upstream, store), store, Limits(trials), workers=workers, say=quiet)
    return time.perf_counter() - began, time.process_time() - cpu


def bare_seconds(params: Params, upstream: Upstream, store: Store) -> tuple[float, float]:
    """Wall-clock and processor seconds of one trial's round by the steps that the stages call."""
    began, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        embed_slides(upstream.packs, upstream.index, upstream.encoder, folder / "features", store, embed=params.embed, compute=params.compute)
        patients = folder / "patients.csv"
        PATIENTS.write(SLIDES.read(upstream.slides)[list(PATIENTS.columns)], patients)
        inputs = (folder / "features", upstream.index, patients, upstream.mined, upstream.labels("train"), upstream.labels("validation"))
        written = (folder / "head", folder / "tiles.parquet", folder / "slides.parquet", folder / "cross_fitted.parquet")
        train_head(*inputs, *written, head=params.head, ranking=params.ranking, compute=params.compute, on_epoch=untold)
    return time.perf_counter() - began, time.process_time() - cpu


def quiet(line: str) -> None:
    """Lines of a study that is measured are not printed."""


def untold(epoch: int, metrics: object) -> None:
    """Epochs of a head that is measured are told to nobody."""


def report(project: Path, trials: int, workers: int) -> str:
    """The table of both parts."""
    upstream, original = Upstream(project / "data"), load_params(project / "params.yaml")
    params = head_only(original, threads=1)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        store = Store(scratch / "store")
        with tempfile.TemporaryDirectory() as features:  # both parts find them in the store
            embed_slides(upstream.packs, upstream.index, upstream.encoder, Path(features), store, embed=params.embed, compute=params.compute)
        together, _ = study_seconds(scratch / "together", params, upstream, store, trials, workers)

        alone = Store(scratch / "alone")
        (scratch / "alone").mkdir()
        (scratch / "alone" / "features").symlink_to(scratch / "store" / "features")
        study_wall, study_cpu = study_seconds(scratch / "one", params, upstream, alone, trials, 1)
        table, names = read_trials(StudyFiles(scratch / "one"))
        settings = [with_values(params, {own: row[own] for own in names}) for row in table[names].to_dict("records")]
        bare = [bare_seconds(own, upstream, alone) for own in settings]
    bare_wall, bare_cpu = (sum(own[part] for own in bare) for part in range(2))
    slides, tiles = len(list(upstream.packs.glob("*.h5"))), upstream.tile_count
    rows = [
        f"| {trials} trials, {workers} workers | {together:.1f} s | | |",
        f"| {trials} trials, 1 worker | {study_wall:.1f} s | {study_cpu:.1f} s | {study_cpu / bare_cpu:.2f} |",
        f"| the same rounds bare | {bare_wall:.1f} s | {bare_cpu:.1f} s | 1 |",
    ]
    head = [f"{slides} slides, {tiles} tiles, one thread a process.", "", "| | wall | processor | against bare |", "|---|---|---|---|"]
    return "\n".join([*head, *rows]) + "\n"


def write(text: str, path: Path | None, show: Callable[[str], None] = print) -> None:
    """`text` to the screen, and to `path` where one is named."""
    show(text)
    if path is not None:
        with whole(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=Path())
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    write(report(arguments.project, arguments.trials, arguments.workers), arguments.out)
