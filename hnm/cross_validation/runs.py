"""Cross-validation: the loop of one fold, in a folder with the fold's labels and splits.

What sees no label is shared. Tiles are linked, and features lie in the store by their pack and
encoder, so that round 0 is embedded once for the pipeline and all folds. What sees labels, or
chooses by them, happens inside the fold: heads, mining, fine-tuning, the epoch, the round and the
threshold. An encoder that is pre-trained on the cohort (SimCLR) sees no labels, but train tiles. It
is trained anew on those of each fold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from hnm.causes import keys_of
from hnm.cross_validation.folds import split_of_fold
from hnm.errors import CohortError, StudyError
from hnm.files import digest_of
from hnm.loop.encoder import check_place, first_encoder, weights_path
from hnm.loop.paths import Paths
from hnm.loop.rounds import Loop, RoundResult, Upstream
from hnm.params import Params
from hnm.splits import folds_of
from hnm.store import Store
from hnm.studies.space import with_seed
from hnm.tables import LABELS, SLIDE_SCORES, SLIDES, SPLITS, TILES


@dataclass(frozen=True)
class FoldScores:
    """The scores of one fold's loop, with one seed, of the slides that trained nothing."""

    seed: int
    fold: int
    rounds: tuple[RoundResult, ...]
    slides: pd.DataFrame
    """slide_id, patient_id, split (validation, test), label, round, score."""


def run_fold(root: Path, params: Params, store: Store, *, seed: int, fold: int) -> FoldScores:
    """Runs the loop of one fold with one seed.

    Args:
        root: the folder of the project, with a cohort, tiles and round 0's encoder.
        params: `split.folds` says how many folds there are.
        store: results of earlier runs come from it, and new ones go into it.
        seed: 0, 1, …, added to the seeds of head, mining and fine-tuning.
        fold: 0, 1, …

    Raises:
        StudyError: there is no such fold, or a stage before round 0's head has not run.
        CohortError: too few patients for so many folds.
    """
    fold_of = deal(root, params)
    if not 0 <= fold < params.split.folds:
        raise StudyError(
            f"there is no fold {fold}: split.folds={params.split.folds} counts them from 0"
        )
    splits = {
        patient: split_of_fold(number, fold, params.split.folds)
        for patient, number in fold_of.items()
    }
    project = Paths(root)
    with TemporaryDirectory(prefix="hnm-cv-") as temporary:
        paths = Paths(Path(temporary))
        _write_split(project, paths, splits)
        simclr = params.encoder.source == "simclr"
        for source, target in zip(_shared(project), _shared(paths), strict=True):
            if not (simclr and source == project.evaluate.encoders):
                target.symlink_to(source.resolve())
        if simclr:
            encoder = _pretrained(project, paths, params, store)
            paths.encoder.folder.parent.mkdir()
            paths.encoder.folder.symlink_to(encoder.resolve())
        loop = Loop(Upstream(paths.root), store)
        results = tuple(loop.rounds(with_seed(params, seed)))
        return FoldScores(seed, fold, results, _held_out(paths, results))


def deal(root: Path, params: Params) -> dict[str, int]:
    """Returns the fold in which the slides of a patient are test, of all patients that have a
    labelled slide with tiles.

    Raises:
        StudyError: `split.folds` asks for no fold.
        CohortError: too few patients for so many folds.
    """
    if not params.split.folds:
        raise StudyError(
            "split.folds=0 asks for no cross-validation; set it to 3 or more in params.yaml"
        )
    slides, labels = _labelled_slides(Paths(root))
    labelled = slides.merge(labels, on="slide_id")
    return folds_of(
        zip(labelled["patient_id"], labelled["label"], strict=True),
        params.split.folds,
        params.split.seed,
        "fold",
        "split.folds",
        CohortError,
    )


def _labelled_slides(paths: Paths) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the `SLIDES` that have a label and tiles, and the `LABELS` of all splits."""
    slides = SLIDES.read(paths.cohort.slides)
    labels = _labels(paths, SPLITS)
    usable = set(labels["slide_id"]) & set(TILES.read(paths.tiles.index)["slide_id"])
    return slides[slides["slide_id"].isin(usable)], labels


def _labels(paths: Paths, splits: tuple[str, ...]) -> pd.DataFrame:
    """Returns the `LABELS` of these splits in one table."""
    return pd.concat([LABELS.read(paths.cohort.labels(name)) for name in splits], ignore_index=True)


def _shared(paths: Paths) -> tuple[Path, ...]:
    """Returns the folders that every fold sees as they are. Of the encoders and the mined tiles it
    reads those of round 0.
    """
    return (
        paths.tiles.packs.parent,
        paths.evaluate.encoders,
        paths.evaluate.mined,
        paths.mine(1).vetoes,
        paths.mine(1).extra,
    )


def _write_split(project: Paths, paths: Paths, splits: Mapping[str, str]) -> None:
    """Writes the slides and labels of a fold, from the split of each patient."""
    slides, labels = _labelled_slides(project)
    slides = slides.assign(split=slides["patient_id"].map(splits))
    SLIDES.write(slides, paths.cohort.slides)
    for name in SPLITS:
        of_split = labels["slide_id"].isin(slides.loc[slides["split"] == name, "slide_id"])
        LABELS.write(labels[of_split], paths.cohort.labels(name))


def _pretrained(project: Paths, paths: Paths, params: Params, store: Store) -> Path:
    """Returns the folder of round 0's encoder, pre-trained on the tiles of the fold's train slides.
    Weights from files come from the project.
    """
    weights = project.encoder.weights
    inputs: dict[str, object] = {
        name: getattr(params, name).model_dump(mode="json")
        for name in ("encoder", "simclr", "compute")
    }
    inputs["packs"] = digest_of(paths.tiles.pack_digests)
    inputs["train"] = digest_of(paths.cohort.train_labels)
    if (path := weights_path(params.encoder)) is not None:
        check_place(params.encoder, weights)
        inputs["weights"] = digest_of(path)

    def make(folder: Path) -> None:
        first_encoder(
            replace(paths.encoder, weights=weights, folder=folder),
            encoder=params.encoder,
            simclr=params.simclr,
            compute=params.compute,
            on_epoch=lambda epoch, metrics: None,
        )

    key = keys_of("hnm.loop.encoder", params.compute.device)(**inputs)
    return store.folder("cv/encoders", key, make)


def _held_out(paths: Paths, results: tuple[RoundResult, ...]) -> pd.DataFrame:
    """Returns the scores of the fold's validation and test slides in each round."""
    slides = SLIDES.read(paths.cohort.slides)[["slide_id", "patient_id", "split"]]
    labelled = slides.merge(_labels(paths, ("validation", "test")), on="slide_id")
    parts = []
    for result in results:
        scores = SLIDE_SCORES.read(result.slide_scores)[["slide_id", "score"]]
        parts.append(labelled.merge(scores, on="slide_id").assign(round=result.round))
    columns = ["slide_id", "patient_id", "split", "label", "round", "score"]
    return pd.concat(parts, ignore_index=True)[columns]
