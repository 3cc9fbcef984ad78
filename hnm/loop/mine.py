"""The tiles of train slides that the next fine-tuning is to learn from."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hnm.errors import MiningError
from hnm.files import write_json
from hnm.learning import features as feature_files
from hnm.mining.audit import slide_supply, summarise
from hnm.mining.extra import counts_by_project, extra_negatives
from hnm.mining.select import mine
from hnm.mining.twins import twins
from hnm.mining.vetoes import vetoed_tiles, without
from hnm.params import Mining
from hnm.slides.cutting.pack import Pack
from hnm.slides.reading.canvas import aspects_of
from hnm.tables import LABELS, MINED, MINED_SLIDES, PASSED_OVER, SLIDES, TILE_SCORES


def mine_tiles(
    *,
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
    round_: int,
    mining: Mining,
) -> dict[str, Any]:
    """Writes the mined tiles of one round, what each slide supplies to them, what guards refused,
    and their summary, which it returns.

    Neither vetoed tiles nor twins are mined: of tiles that overlap by more than half along both
    axes, the first alone may be.

    Raises:
        MiningError: `mining.scores` asks for cross-fitted scores, of which there are none; or as
        `mine` and `extra_negatives`. TableError: a table, a file of features or a pack cannot be
        read.
    """
    tiles, labels, cohort = (
        TILE_SCORES.read(tile_scores),
        LABELS.read(train_labels),
        SLIDES.read(slides),
    )
    scores = tiles if mining.scores == "in_sample" else TILE_SCORES.read(cross_fitted)
    if scores.empty:
        raise MiningError(
            f"mining.scores={mining.scores}, but {cross_fitted} holds no scores; set"
            " head.score_folds to 2 or more"
        )
    patients = dict(zip(cohort["slide_id"], cohort["patient_id"], strict=True))
    vetoed = vetoed_tiles(vetoes, tiles, cohort)
    seconds = twins(scores, aspects_of(cohort))
    barred = pd.concat([vetoed[["slide_id", "tile"]], seconds])
    allowed = without(scores, barred)

    def read_features(slide_id: str, tiles: NDArray[np.int64]) -> NDArray[np.float32]:
        return feature_files.read(features / f"{slide_id}.h5", tiles)

    def read_pixels(slide_id: str, tiles: NDArray[np.int64]) -> NDArray[np.uint8]:
        return Pack(packs / f"{slide_id}.h5").tiles(tiles)

    found = mine(
        scores,
        labels,
        mining,
        round_,
        patients=patients,
        vetoed=barred,
        features=read_features,
        pixels=read_pixels,
    )
    supply = slide_supply(found.tiles, allowed, labels, patients, mining)
    told = {
        **summarise(found, MINED.read(mined_before), supply, allowed, labels, mining, round_),
        "vetoed": int(vetoed["slide_id"].isin(labels["slide_id"]).sum()),
        "twins": int(seconds["slide_id"].isin(labels["slide_id"]).sum()),
        "extra": counts_by_project(extra_negatives(extra, mining.extra, packs)),
    }
    MINED.write(found.tiles, mined)
    MINED_SLIDES.write(supply, mined_slides)
    PASSED_OVER.write(found.passed_over, passed_over)
    write_json(told, summary)
    return told
