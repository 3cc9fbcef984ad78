"""The tiles of train slides that the next fine-tuning is to learn from."""

from pathlib import Path
from typing import Any

from hnm.errors import MiningError
from hnm.mining.audit import slide_supply, summarise
from hnm.mining.select import mine
from hnm.mining.vetoes import vetoed_tiles, without
from hnm.params import Mining
from hnm.store import write_json
from hnm.tables import LABELS, MINED, MINED_SLIDES, SLIDES, TILE_SCORES


def mine_tiles(
    tile_scores: Path,
    cross_fitted: Path,
    train_labels: Path,
    slides: Path,
    vetoes: Path,
    mined: Path,
    mined_slides: Path,
    summary: Path,
    round_: int,
    *,
    mining: Mining,
) -> dict[str, Any]:
    """Writes the mined tiles of one round, what each slide supplies to them, and their summary, which it returns.

    Raises:
        MiningError: `mining.scores` asks for cross-fitted scores, of which there are none; or as `mine`.
    """
    tiles, labels, cohort = TILE_SCORES.read(tile_scores), LABELS.read(train_labels), SLIDES.read(slides)
    scores = tiles if mining.scores == "in_sample" else TILE_SCORES.read(cross_fitted)
    if scores.empty:
        raise MiningError(f"mining.scores={mining.scores}, but {cross_fitted} holds no scores; set head.score_folds to 2 or more")
    patients = dict(zip(cohort["slide_id"], cohort["patient_id"], strict=True))
    vetoed = vetoed_tiles(vetoes, tiles, cohort)
    allowed = without(scores, vetoed)
    table = mine(scores, labels, mining, round_, patients=patients, vetoed=vetoed)
    supply = slide_supply(table, allowed, labels, patients, mining)
    found = {**summarise(table, supply, allowed, labels, mining, round_), "vetoed": int(vetoed["slide_id"].isin(labels["slide_id"]).sum())}
    MINED.write(table, mined)
    MINED_SLIDES.write(supply, mined_slides)
    write_json(found, summary)
    return found
