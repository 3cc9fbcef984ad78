"""Stage `mine`: the tiles of train slides that the next fine-tuning is to learn from."""

from pathlib import Path

from hnm.loop.mine import mine_tiles
from hnm.params import Mining
from hnm.tracking.runs import Tracker
from pipelines import stage


def main(
    tile_scores: Path,
    cross_fitted: Path,
    train_labels: Path,
    slides: Path,
    vetoes: Path,
    features: Path,
    packs: Path,
    extra: Path,
    mined_before: Path,
    mined: Path,
    mined_slides: Path,
    passed_over: Path,
    summary: Path,
    round: int,
    *,
    mining: Mining,
    tracker: Tracker,
) -> None:
    """Writes the mined tiles of one round, what each slide supplies to them, what guards refused,
    and their summary.
    """
    found = mine_tiles(
        tile_scores=tile_scores,
        cross_fitted=cross_fitted,
        train_labels=train_labels,
        slides=slides,
        vetoes=vetoes,
        features=features,
        packs=packs,
        extra=extra,
        mined_before=mined_before,
        mined=mined,
        mined_slides=mined_slides,
        passed_over=passed_over,
        summary=summary,
        round_=round,
        mining=mining,
    )
    tracker.mining(found, round)
    tracker.file(summary)
    suspects = (
        f"; suspect slides: {', '.join(found['suspect_slides'])}" if found["suspect_slides"] else ""
    )
    print(
        f"round {round}: mined {found['positive']['tiles']} positives and"
        f" {found['hard_negative']['tiles']} negatives{suspects}",
        flush=True,
    )


if __name__ == "__main__":
    stage.run(main)
