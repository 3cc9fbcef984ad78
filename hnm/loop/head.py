"""The step `head`: a head trained from slide labels alone, and its scores of all slides."""

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
from hnm.loop.paths import HeadFiles
from hnm.tables import LABELS, MINED, PATIENTS, SLIDE_SCORES, TILE_SCORES, TILES


def train_head(
    files: HeadFiles,
    *,
    head: params.Head,
    ranking: params.Ranking,
    compute: params.Compute,
    on_epoch: OnEpoch,
    features: Mapping[str, torch.Tensor] | None = None,
) -> list[dict[str, float]]:
    """Writes the head with its history, and its scores. Returns the history.

    The scores are those of all slides and tiles, whatever their split. The cross-fitted ones are
    those of the train slides' tiles, a table without rows where `head.score_folds` is 0.

    Args:
        files: the paths of the step.
        head: the settings of the head.
        ranking: the settings of the ranking loss.
        compute: the settings of torch.
        on_epoch: takes each epoch's metrics.
        features: the features of all slides, where `slide_features` has read them before; the
            folder of the features is not read then.
    """
    set_up_torch(compute)
    tiles = TILES.read(files.index)
    if features is None:
        features = slide_features(files.features, tiles["slide_id"].unique())
    mined = MINED.read(files.mined)
    train = _labelled(LABELS.read(files.train_labels), features, mined)
    validation = _labelled(LABELS.read(files.validation_labels), features, mined)
    fitted, history = fit_head(train, validation, head, ranking, on_epoch)
    save_head(fitted, head, files.folder)
    write_history(history, files.folder / "history.csv")
    slide_scores, tile_scores = predict(fitted, features, tiles)
    SLIDE_SCORES.write(slide_scores, files.slide_scores)
    TILE_SCORES.write(tile_scores, files.tile_scores)
    table = PATIENTS.read(files.patients)
    patients = dict(zip(table["slide_id"], table["patient_id"], strict=True))
    cross_fitted = cross_fitted_scores(train, patients, validation, tiles, head, ranking)
    TILE_SCORES.write(cross_fitted, files.cross_fitted)
    return history


def slide_features(folder: Path, slide_ids: Iterable[str]) -> dict[str, torch.Tensor]:
    """Returns the features `(tiles, features)` of each slide, from the files in `folder`."""
    return {
        slide_id: torch.from_numpy(feature_files.read(folder / f"{slide_id}.h5"))
        for slide_id in slide_ids
    }


def _labelled(
    labels: pd.DataFrame, features: Mapping[str, torch.Tensor], mined: pd.DataFrame
) -> list[LabelledSlide]:
    """Returns the labelled slides that have tiles, each with its mined tiles. The other slides are
    in quarantine.
    """
    mined_tiles = {
        str(slide_id): torch.tensor(sorted(tiles), dtype=torch.int64)
        for slide_id, tiles in mined.groupby("slide_id")["tile"]
    }
    none = None if mined.empty else torch.empty(0, dtype=torch.int64)
    return [
        LabelledSlide(slide_id, features[slide_id], label, mined_tiles.get(slide_id, none))
        for slide_id, label in zip(labels["slide_id"], labels["label"], strict=True)
        if slide_id in features
    ]
