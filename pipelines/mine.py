"""Stage `mine`: the tiles of train slides that the next fine-tuning is to learn from."""

from hnm.loop.mine import mine_tiles
from hnm.loop.paths import MineFiles
from hnm.params import Mining
from hnm.tracking.runs import Tracker
from pipelines import stage


def main(files: MineFiles, round: int, *, mining: Mining, tracker: Tracker) -> None:
    """Writes the mined tiles of one round, what each slide supplies to them, what guards refused,
    and their summary.
    """
    summary = mine_tiles(files, round, mining)
    tracker.mining(summary, round)
    tracker.file(files.summary)
    suspects = ", ".join(summary["suspect_slides"])
    print(
        f"round {round}: mined {summary['positive']['tiles']} positives and"
        f" {summary['hard_negative']['tiles']} negatives"
        f"{f'; suspect slides: {suspects}' if suspects else ''}",
        flush=True,
    )


if __name__ == "__main__":
    stage.run(main)
