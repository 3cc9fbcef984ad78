"""Stage `mine`: the tiles of train slides that the next fine-tuning is to learn from."""

from pathlib import Path

from hnm.mining.audit import summarise
from hnm.mining.select import mine
from hnm.params import Mining
from hnm.store import write_json
from hnm.tables import LABELS, MINED, TILE_SCORES
from pipelines import stage


def main(tile_scores: Path, train_labels: Path, mined: Path, summary: Path, round: int, *, mining: Mining) -> None:
    """Writes the mined tiles of one round and their summary."""
    scores, labels = TILE_SCORES.read(tile_scores), LABELS.read(train_labels)
    table = mine(scores, labels, mining, round)
    MINED.write(table, mined)
    found = summarise(table, scores, labels, mining, round)
    write_json(found, summary)
    print(f"round {round}: mined {found['positive']['tiles']} positives and {found['hard_negative']['tiles']} hard negatives", flush=True)


if __name__ == "__main__":
    stage.run(main)
