"""Stage `head`: a head trained from slide labels alone, and what it says of every slide and
tile.
"""

from pathlib import Path

from hnm import params
from hnm.loop.head import train_head
from hnm.selection import best_epoch
from hnm.tracking.runs import Tracker
from pipelines import stage


def main(
    features: Path,
    index: Path,
    patients: Path,
    mined: Path,
    train_labels: Path,
    validation_labels: Path,
    folder: Path,
    tile_scores: Path,
    slide_scores: Path,
    cross_fitted: Path,
    round: int,
    *,
    head: params.Head,
    ranking: params.Ranking,
    compute: params.Compute,
    tracker: Tracker,
) -> None:
    """Writes the head, its history, the scores of all slides and tiles, whatever their split, and
    the cross-fitted ones of the train slides' tiles.
    """
    inputs, written = (
        (features, index, patients, mined, train_labels, validation_labels),
        (
            folder,
            tile_scores,
            slide_scores,
            cross_fitted,
        ),
    )
    history = train_head(
        *inputs, *written, head=head, ranking=ranking, compute=compute, on_epoch=tracker.epoch
    )
    best = best_epoch(history)
    tracker.metrics(
        {"validation/auc": best["validation_auc"], "validation/loss": best["validation_loss"]}
    )
    tracker.model(folder, "head")
    print(
        f"round {round}: validation AUC {best['validation_auc']:.3f} in epoch {best['epoch']} of"
        f" {len(history)}",
        flush=True,
    )


if __name__ == "__main__":
    stage.run(main)
