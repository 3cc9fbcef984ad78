"""Stage `head`: a head trained from slide labels alone, and what it says of every slide and tile."""

from pathlib import Path

import pandas as pd
import torch

from hnm import params
from hnm.experiments.tracking import Tracker
from hnm.learning import features as feature_files
from hnm.learning.fit_head import LabelledSlide, fit_head
from hnm.learning.heads import save_head
from hnm.learning.history import write_history
from hnm.learning.predict import predict
from hnm.tables import LABELS, SLIDE_SCORES, TILE_SCORES, TILES
from pipelines import stage


def main(
    features: Path,
    index: Path,
    train_labels: Path,
    validation_labels: Path,
    folder: Path,
    tile_scores: Path,
    slide_scores: Path,
    round: int,
    *,
    head: params.Head,
    ranking: params.Ranking,
    compute: params.Compute,
    tracker: Tracker,
) -> None:
    """Writes the head, its history, and the scores of all slides and tiles, whatever their split."""
    torch.set_num_threads(compute.threads)
    torch.use_deterministic_algorithms(True)
    tiles = TILES.read(index)
    slides = {slide_id: torch.from_numpy(feature_files.read(features / f"{slide_id}.h5")) for slide_id in tiles["slide_id"].unique()}
    train, validation = (_labelled(LABELS.read(path), slides) for path in (train_labels, validation_labels))
    fitted, history = fit_head(train, validation, head, ranking, tracker.epoch)
    save_head(fitted, head, folder)
    write_history(history, folder / "history.csv")
    slide_table, tile_table = predict(fitted, slides, tiles)
    SLIDE_SCORES.write(slide_table, slide_scores)
    TILE_SCORES.write(tile_table, tile_scores)
    best = max(history, key=lambda row: (row["validation_auc"], -row["validation_loss"]))
    tracker.metrics({"validation/auc": best["validation_auc"], "validation/loss": best["validation_loss"]})
    tracker.model(folder, "head")
    print(f"round {round}: validation AUC {best['validation_auc']:.3f} in epoch {best['epoch']} of {len(history)}", flush=True)


def _labelled(labels: pd.DataFrame, slides: dict[str, torch.Tensor]) -> list[LabelledSlide]:
    """The labelled slides that have tiles; the others are in quarantine."""
    return [LabelledSlide(slide_id, slides[slide_id], label) for slide_id, label in zip(labels["slide_id"], labels["label"], strict=True) if slide_id in slides]


if __name__ == "__main__":
    stage.run(main)
