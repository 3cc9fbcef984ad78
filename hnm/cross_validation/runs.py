"""Cross-validation: the loop once for each fold and seed, in a folder that holds the fold's own
labels and splits; each is a stage of DVC.

What sees no label is shared: tiles are linked, and features lie in the store by their pack and
encoder, so that round 0 is embedded once for all folds, with those of the pipeline itself. What
sees labels, or chooses by them, happens inside the fold: heads, mining, fine-tuning, the epoch, the
round and the threshold. An encoder that is pre-trained on the cohort (SimCLR) sees no labels but
train tiles, and is trained anew on those of each fold.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from ruamel.yaml import YAML

from hnm.causes import causes_of, keys_of
from hnm.cross_validation.folds import folds_of, split_of_fold
from hnm.errors import StudyError
from hnm.files import digest_of, whole, write_json
from hnm.loop.encoder import check_place, first_encoder, weights_path
from hnm.loop.rounds import Loop, RoundResult, Upstream
from hnm.params import Params
from hnm.store import Store
from hnm.studies.space import with_seed
from hnm.tables import LABELS, SLIDE_SCORES, SLIDES, SPLITS, TILES

SHARED = ("tiles", "encoders", "mined")
"""Folders of the pipeline's data that every fold sees as they are; of the encoders and mined tiles
it reads those of round 0.
"""

CAUSES = {
    "fold": ("hnm.cross_validation.runs", "hnm.evidence.numbers.pooling"),
    "pool": ("hnm.evidence.numbers.pooling",),
}
"""Stage -> the modules that it runs; their causes are a file each, which the stage depends on."""
FOLD_PARAMS = [
    "rounds",
    "split.folds",
    "split.seed",
    "encoder",
    "simclr",
    "embed",
    "head",
    "ranking",
    "mining",
    "finetune",
    "compute",
]
FOLD_DEPS = [
    "data/cohort/slides.parquet",
    *(f"data/cohort/labels/{split}.csv" for split in SPLITS),
    "data/tiles/packs",
    "data/tiles/packs.csv",
    "data/tiles/index.parquet",
    "data/encoders/0",
    "data/mined/0/mined.parquet",
    "vetoes",
    "extra",
    "weights",
]


@dataclass(frozen=True)
class FoldScores:
    """What one fold's loop, with one seed, said of the slides that trained nothing."""

    seed: int
    fold: int
    rounds: tuple[RoundResult, ...]
    slides: pd.DataFrame
    """slide_id, patient_id, split (validation, test), label, round, score."""


def run_fold(data: Path, params: Params, store: Store, *, seed: int, fold: int) -> FoldScores:
    """The loop of one fold with one seed.

    Args:
        data: the pipeline's folder of data, with a cohort, tiles and round 0's encoder.
        params: `split.folds` says how many folds there are.
        store: where results are kept; what was made before comes from it.
        seed: 0, 1, …, added to the seeds of head, mining and fine-tuning.
        fold: 0, 1, …

    Raises:
        StudyError: there is no such fold, or a stage before round 0's head has not run.
        CohortError: too few patients for so many folds.
    """
    own_fold = deal(data, params)
    if not 0 <= fold < params.split.folds:
        raise StudyError(
            f"there is no fold {fold}: split.folds={params.split.folds} counts them from 0"
        )
    slides, labels = _used(data)
    with TemporaryDirectory(prefix="hnm-cv-") as temporary:
        upstream = _fold_folder(
            data, Path(temporary), slides, labels, own_fold, fold, params, store
        )
        results = tuple(Loop(upstream, store).rounds(with_seed(params, seed)))
        return FoldScores(seed, fold, results, _held_out(upstream, results))


def deal(data: Path, params: Params) -> dict[str, int]:
    """Patient -> the fold in which its slides are test, of all patients that have a labelled slide
    with tiles.

    Raises:
        StudyError: `split.folds` asks for no fold.
        CohortError: too few patients for so many folds.
    """
    if not params.split.folds:
        raise StudyError(
            "split.folds=0 asks for no cross-validation; set it to 3 or more in params.yaml"
        )
    slides, labels = _used(data)
    positive = slides.merge(labels, on="slide_id").groupby("patient_id")["label"].max() == 1
    return folds_of(
        {str(patient): bool(value) for patient, value in positive.items()},
        params.split.folds,
        params.split.seed,
    )


def fold_file(seed: int | str, fold: int | str) -> str:
    """Where the out-of-fold predictions of one fold and seed lie, from the repository's root."""
    return f"results/cv/folds/{seed}-{fold}.csv"


def causes_file(module: str) -> str:
    """Where the causes of a module of `CAUSES` lie, from the repository's root."""
    return f"cv/causes/{module.rpartition('.')[2]}.json"


def write_stages(root: Path, *, seeds: int, folds: int, device: str = "cpu") -> Path:
    """Writes cv/dvc.yaml: the stage `fold` as a matrix over seeds and folds, and the stage `pool`;
    `dvc repro` at the root runs neither.

    Beside it lie the causes of both as they are here and now: code, libraries, machine. `device` is
    `compute.device`.
    """
    for module in CAUSES["fold"]:
        write_json(causes_of(module, device), root / causes_file(module))
    causes = {name: [causes_file(module) for module in modules] for name, modules in CAUSES.items()}
    fold = {
        "matrix": {
            "seed": [str(seed) for seed in range(seeds)],
            "fold": [str(number) for number in range(folds)],
        },
        "wdir": "..",
        "cmd": "hnm cv-fold --seed ${item.seed} --fold ${item.fold}",
        "params": FOLD_PARAMS,
        "deps": [*FOLD_DEPS, *causes["fold"]],
        "outs": [fold_file("${item.seed}", "${item.fold}")],
    }
    pool = {
        "wdir": "..",
        "cmd": f"hnm cv-pool --seeds {seeds} --folds {folds}",
        "params": ["evaluate"],
        "deps": [
            *(fold_file(seed, number) for seed in range(seeds) for number in range(folds)),
            *causes["pool"],
        ],
        "outs": ["results/cv/slides.csv"],
        "metrics": [{"results/cv/summary.json": {"cache": False}}],
    }
    path = root / "cv" / "dvc.yaml"
    yaml = YAML()  # keeps the order of keys, as the safe one does not
    yaml.width = 1000
    with whole(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yaml.dump({"stages": {"fold": fold, "pool": pool}}, stream)
    return path


def reproduce(stages: Path) -> None:
    """Runs those stages of cv/dvc.yaml that are not up to date, and none before them.

    Raises:
        StudyError: one has failed.
    """
    bin_ = Path(
        sys.executable
    ).parent  # where `hnm` lies, also where no virtual environment is activated
    environment = {**os.environ, "PATH": f"{bin_}{os.pathsep}{os.environ.get('PATH', '')}"}
    root = stages.parents[1]
    if subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "--single-item", str(stages.relative_to(root))],
        cwd=root,
        env=environment,
    ).returncode:
        raise StudyError(
            f"a stage of {stages.relative_to(root)} has failed; the lines above say why, and hnm cv"
            " goes on where it stopped"
        )


def _used(data: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `SLIDES` that have a label and tiles, and the `LABELS` of all splits."""
    upstream = Upstream(data)
    slides, labels = (
        SLIDES.read(upstream.slides),
        pd.concat([LABELS.read(upstream.labels(split)) for split in SPLITS], ignore_index=True),
    )
    return (
        slides[
            slides["slide_id"].isin(labels["slide_id"])
            & slides["slide_id"].isin(TILES.read(upstream.index)["slide_id"])
        ],
        labels,
    )


def _fold_folder(
    data: Path,
    folder: Path,
    slides: pd.DataFrame,
    labels: pd.DataFrame,
    own_fold: Mapping[str, int],
    fold: int,
    params: Params,
    store: Store,
) -> Upstream:
    """The pipeline's data as the fold sees it."""
    upstream = Upstream(folder / "data")
    own = slides.assign(
        split=[
            split_of_fold(own_fold[patient], fold, params.split.folds)
            for patient in slides["patient_id"]
        ]
    )
    SLIDES.write(own, upstream.slides)
    for split in SPLITS:
        LABELS.write(
            labels[labels["slide_id"].isin(own.loc[own["split"] == split, "slide_id"])],
            upstream.labels(split),
        )
    for name in SHARED:
        if (data / name).exists() and not (
            name == "encoders" and params.encoder.source == "simclr"
        ):
            (upstream.data / name).symlink_to((data / name).resolve())
    for name in (upstream.vetoes.name, upstream.extra.name):
        (folder / name).symlink_to((data.parent / name).resolve())
    if params.encoder.source == "simclr":
        upstream.encoder.parent.mkdir(parents=True)
        upstream.encoder.symlink_to(
            _pretrained(upstream, data.parent / "weights", params, store).resolve()
        )
    return upstream


def _pretrained(upstream: Upstream, weights: Path, params: Params, store: Store) -> Path:
    """Round 0's encoder, pre-trained on the tiles of the fold's own train slides; weights from
    files lie in the folder `weights`.
    """
    sections = {
        name: getattr(params, name).model_dump(mode="json")
        for name in ("encoder", "simclr", "compute")
    }
    inputs = {
        "packs": digest_of(upstream.pack_digests),
        "train": digest_of(upstream.labels("train")),
    }
    if (path := weights_path(params.encoder)) is not None:
        check_place(params.encoder, weights)
        inputs["weights"] = digest_of(path)

    def make(made: Path) -> None:
        first_encoder(
            upstream.packs,
            upstream.labels("train"),
            weights,
            made,
            encoder=params.encoder,
            simclr=params.simclr,
            compute=params.compute,
            on_epoch=lambda epoch, metrics: None,
        )

    return store.folder(
        "cv/encoders",
        keys_of("hnm.loop.encoder", params.compute.device)(**inputs, **sections),
        make,
    )


def _held_out(upstream: Upstream, results: tuple[RoundResult, ...]) -> pd.DataFrame:
    slides = SLIDES.read(upstream.slides)[["slide_id", "patient_id", "split"]]
    labels = pd.concat([LABELS.read(upstream.labels(split)) for split in ("validation", "test")])
    known = slides.merge(labels, on="slide_id")
    parts = [
        known.merge(
            SLIDE_SCORES.read(result.slide_scores)[["slide_id", "score"]], on="slide_id"
        ).assign(round=result.round)
        for result in results
    ]
    return pd.concat(parts, ignore_index=True)[
        ["slide_id", "patient_id", "split", "label", "round", "score"]
    ]
