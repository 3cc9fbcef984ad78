"""The stages of cv/dvc.yaml, one for each fold and seed, and one that pools their predictions."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from hnm.causes import causes_of
from hnm.cross_validation.runs import FoldScores, deal, run_fold
from hnm.errors import EvidenceError, StudyError
from hnm.evidence.numbers.pooling import out_of_fold, pooled, read_predictions, write_predictions
from hnm.evidence.test_ledger import LEDGER, LedgerEntry, enter
from hnm.files import digest_of, key_of, read_json, whole, write_json
from hnm.loop.paths import Paths
from hnm.loop.rounds import check_one_process
from hnm.params import load_params
from hnm.project import project_home
from hnm.repository.stages import git_tags
from hnm.store import project_store

CAUSES = {
    "fold": ("hnm.cross_validation.runs", "hnm.evidence.numbers.pooling"),
    "pool": ("hnm.evidence.numbers.pooling",),
}
"""Stage -> the modules that it runs. The stage depends on a file of causes for each."""
SLIDES = "results/cv/slides.csv"
SUMMARY = "results/cv/summary.json"
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


def cross_validate(root: Path, seeds: int) -> dict[str, Any]:
    """Writes cv/dvc.yaml and runs its stages. Returns the pooled numbers.

    Raises:
        HnmError: the patients cannot be dealt into folds, or a stage fails.
    """
    params = load_params(root / "params.yaml")
    check_one_process(params)
    deal(root, params)  # what cannot be dealt is said before DVC starts anything
    write_stages(root, seeds=seeds, folds=params.split.folds, device=params.compute.device)
    reproduce(root)
    summary: dict[str, Any] = read_json(root / SUMMARY, EvidenceError)
    return summary


def write_stages(root: Path, *, seeds: int, folds: int, device: str = "cpu") -> Path:
    """Writes cv/dvc.yaml: the stage `fold` as a matrix over seeds and folds, and the stage `pool`.
    `dvc repro` at the root runs neither. Returns its path.

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
        "deps": [*_fold_deps(), *causes["fold"]],
        "outs": [fold_file("${item.seed}", "${item.fold}")],
    }
    pool = {
        "wdir": "..",
        "cmd": f"hnm cv-pool --seeds {seeds} --folds {folds}",
        "params": ["evaluate"],
        "deps": [*_fold_files(seeds, folds), *causes["pool"]],
        "outs": [SLIDES],
        "metrics": [{SUMMARY: {"cache": False}}],
    }
    path = root / "cv" / "dvc.yaml"
    yaml = YAML()  # keeps the order of keys, as the safe one does not
    yaml.width = 1000
    with whole(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yaml.dump({"stages": {"fold": fold, "pool": pool}}, stream)
    return path


def _fold_deps() -> list[str]:
    """Returns what a fold reads, from the repository's root."""
    paths = Paths()
    cohort = paths.cohort
    files = (
        cohort.slides,
        cohort.train_labels,
        cohort.validation_labels,
        cohort.test_labels,
        paths.tiles.packs,
        paths.tiles.pack_digests,
        paths.tiles.index,
        paths.encoder.folder,
        paths.encoder.mined,
        paths.mine(1).vetoes,
        paths.mine(1).extra,
        paths.encoder.weights,
    )
    return [file.as_posix() for file in files]


def fold_file(seed: int | str, fold: int | str) -> str:
    """Returns where the out-of-fold predictions of one fold and seed lie, from the repository's
    root.
    """
    return f"results/cv/folds/{seed}-{fold}.csv"


def _fold_files(seeds: int, folds: int) -> list[str]:
    """Returns the files of all folds and seeds."""
    return [fold_file(seed, fold) for seed in range(seeds) for fold in range(folds)]


def causes_file(module: str) -> str:
    """Returns where the causes of a module of `CAUSES` lie, from the repository's root."""
    return f"cv/causes/{module.rpartition('.')[2]}.json"


def reproduce(root: Path) -> None:
    """Runs those stages of cv/dvc.yaml that are not up to date, and none before them.

    Raises:
        StudyError: one has failed.
    """
    # `hnm` lies beside the interpreter, also where no virtual environment is activated
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "--single-item", "cv/dvc.yaml"],
        cwd=root,
        env={**os.environ, "PATH": path},
    ).returncode:
        raise StudyError(
            "a stage of cv/dvc.yaml has failed; the lines above say why, and hnm cv goes on where"
            " it stopped"
        )


def fold_stage(root: Path, *, seed: int, fold: int) -> FoldScores:
    """Runs the stage `fold`: the loop of one fold with one seed. Writes its out-of-fold
    predictions, and enters the opening of the test labels into the ledger.
    """
    scores = run_fold(
        root, load_params(root / "params.yaml"), project_store(), seed=seed, fold=fold
    )
    tags = git_tags(root)
    entry = LedgerEntry(
        key_of(slides=scores.slides.to_dict("records")),
        digest_of(root / "params.yaml"),
        tags.get("mlflow.source.git.commit", ""),
        tags.get("hnm.git_dirty", ""),
        "cv",
    )
    enter(project_home() / LEDGER, entry)
    predictions = out_of_fold(scores.slides, seed=seed, fold=fold)
    write_predictions(predictions, root / fold_file(seed, fold))
    return scores


def pool_stage(root: Path, *, seeds: int, folds: int) -> None:
    """Runs the stage `pool`: writes the predictions of all folds together, and their numbers."""
    parts = [read_predictions(root / file) for file in _fold_files(seeds, folds)]
    predictions = pd.concat(parts, ignore_index=True)
    write_predictions(predictions, root / SLIDES)
    numbers = pooled(predictions, load_params(root / "params.yaml").evaluate)
    write_json(numbers, root / SUMMARY)
