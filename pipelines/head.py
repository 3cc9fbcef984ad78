"""Stage `head`: a head trained from slide labels alone, and its scores of all slides and tiles."""

from hnm import params
from hnm.loop.head import train_head
from hnm.loop.paths import HeadFiles
from hnm.selection import best_epoch
from hnm.tracking.runs import Tracker
from pipelines import stage


def main(
    files: HeadFiles,
    round: int,
    *,
    head: params.Head,
    ranking: params.Ranking,
    compute: params.Compute,
    tracker: Tracker,
) -> None:
    """Writes the head, its history, the scores of all slides and tiles, whatever their split, and
    the cross-fitted scores of the train slides' tiles.
    """
    history = train_head(files, head=head, ranking=ranking, compute=compute, on_epoch=tracker.epoch)
    best = best_epoch(history)
    tracker.metrics(
        {"validation/auc": best["validation_auc"], "validation/loss": best["validation_loss"]}
    )
    tracker.model(files.folder, "head")
    print(
        f"round {round}: validation AUC {best['validation_auc']:.3f} in epoch {best['epoch']} of"
        f" {len(history)}",
        flush=True,
    )


if __name__ == "__main__":
    stage.run(main)
