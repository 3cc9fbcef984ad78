"""A head trained from slide labels alone, and what it says of every slide and tile."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import torch

from hnm import params
from hnm.learning import features as feature_files
from hnm.learning.compute import set_up_torch
from hnm.learning.heads import save_head
from hnm.learning.history import OnEpoch, write_history
from hnm.learning.predict import predict
from hnm.learning.training.cross_fit import cross_fitted_scores
from hnm.learning.training.fit_head import LabelledSlide, fit_head
from hnm.tables import LABELS, MINED, PATIENTS, SLIDE_SCORES, TILE_SCORES, TILES


def train_head(
    features: Path | Mapping[str, torch.Tensor],
    index: Path,
    patients: Path,
    mined: Path,
    train_labels: Path,
    validation_labels: Path,
    folder: Path,
    tile_scores: Path,
    slide_scores: Path,
    cross_fitted: Path,
    *,
    head: params.Head,
    ranking: params.Ranking,
    compute: params.Compute,
    on_epoch: OnEpoch,
) -> list[dict[str, float]]:
    """Writes the head with its history into `folder`, and scores; returns the history.

    `features` is the folder of the features files, or what `slide_features` has read from it. The
    scores are those of all slides and tiles, whatever their split, and the cross-fitted ones of the
    train slides' tiles, a table without rows where `head.score_folds` is 0.
    """
    set_up_torch(compute)
    tiles = TILES.read(index)
    slides = (
        slide_features(features, tiles["slide_id"].unique())
        if isinstance(features, Path)
        else features
    )
    tiles_mined = MINED.read(mined)
    train, validation = (
        _labelled(LABELS.read(path), slides, tiles_mined)
        for path in (train_labels, validation_labels)
    )
    fitted, history = fit_head(train, validation, head, ranking, on_epoch)
    save_head(fitted, head, folder)
    write_history(history, folder / "history.csv")
    slide_table, tile_table = predict(fitted, slides, tiles)
    SLIDE_SCORES.write(slide_table, slide_scores)
    TILE_SCORES.write(tile_table, tile_scores)
    known = PATIENTS.read(patients)
    patient_of = dict(zip(known["slide_id"], known["patient_id"], strict=True))
    TILE_SCORES.write(
        cross_fitted_scores(train, patient_of, validation, tiles, head, ranking), cross_fitted
    )
    return history


def slide_features(features: Path, slide_ids: Iterable[str]) -> dict[str, torch.Tensor]:
    """Features `(tiles, features)` of each slide, from the folder `features`."""
    return {
        slide_id: torch.from_numpy(feature_files.read(features / f"{slide_id}.h5"))
        for slide_id in slide_ids
    }


def _labelled(
    labels: pd.DataFrame, slides: Mapping[str, torch.Tensor], mined: pd.DataFrame
) -> list[LabelledSlide]:
    """The labelled slides that have tiles, with those of them that were mined; the other slides are
    in quarantine.
    """
    numbers = {
        str(slide_id): torch.tensor(sorted(own), dtype=torch.int64)
        for slide_id, own in mined.groupby("slide_id")["tile"]
    }
    none = None if mined.empty else torch.empty(0, dtype=torch.int64)
    return [
        LabelledSlide(slide_id, slides[slide_id], label, numbers.get(slide_id, none))
        for slide_id, label in zip(labels["slide_id"], labels["label"], strict=True)
        if slide_id in slides
    ]
