"""The step `mine`: the tiles of train slides that the next fine-tuning learns from."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hnm.errors import MiningError
from hnm.files import write_json
from hnm.learning import features as feature_files
from hnm.loop.paths import MineFiles
from hnm.mining.audit import slide_supply, summarise
from hnm.mining.extra import counts_by_project, extra_negatives
from hnm.mining.select import mine
from hnm.mining.twins import twins
from hnm.mining.vetoes import vetoed_tiles, without
from hnm.params import Mining
from hnm.slides.cutting.pack import Pack
from hnm.slides.reading.canvas import aspects_of
from hnm.tables import LABELS, MINED, MINED_SLIDES, PASSED_OVER, SLIDES, TILE_SCORES


def mine_tiles(files: MineFiles, round: int, mining: Mining) -> dict[str, Any]:
    """Writes the mined tiles of a round, what each slide supplies to them, what guards refused, and
    their summary. Returns the summary.

    Neither vetoed tiles nor twins are mined: of tiles that overlap by more than half along both
    axes, only the first may be.

    Raises:
        MiningError: `mining.scores` asks for cross-fitted scores, of which there are none; or as
            `mine` and `extra_negatives`.
        TableError: a table, a file of features or a pack cannot be read.
    """
    tiles = TILE_SCORES.read(files.tile_scores)
    labels = LABELS.read(files.train_labels)
    slides = SLIDES.read(files.slides)
    scores = tiles if mining.scores == "in_sample" else TILE_SCORES.read(files.cross_fitted)
    if scores.empty:
        raise MiningError(
            f"mining.scores={mining.scores}, but {files.cross_fitted} holds no scores; set"
            " head.score_folds to 2 or more"
        )
    patients = dict(zip(slides["slide_id"], slides["patient_id"], strict=True))
    vetoed = vetoed_tiles(files.vetoes, tiles, slides)
    later_twins = twins(scores, aspects_of(slides))
    barred = pd.concat([vetoed[["slide_id", "tile"]], later_twins])
    allowed = without(scores, barred)

    def read_features(slide_id: str, tiles: NDArray[np.int64]) -> NDArray[np.float32]:
        return feature_files.read(files.features / f"{slide_id}.h5", tiles)

    def read_pixels(slide_id: str, tiles: NDArray[np.int64]) -> NDArray[np.uint8]:
        return Pack(files.packs / f"{slide_id}.h5").tiles(tiles)

    mined = mine(
        scores,
        labels,
        mining,
        round,
        patients=patients,
        vetoed=barred,
        features=read_features,
        pixels=read_pixels,
    )
    supply = slide_supply(mined.tiles, allowed, labels, patients, mining)
    before = MINED.read(files.mined_before)
    summary = {
        **summarise(mined, before, supply, allowed, labels, mining, round),
        "vetoed": int(vetoed["slide_id"].isin(labels["slide_id"]).sum()),
        "twins": int(later_twins["slide_id"].isin(labels["slide_id"]).sum()),
        "extra": counts_by_project(extra_negatives(files.extra, mining.extra, files.packs)),
    }
    MINED.write(mined.tiles, files.mined)
    MINED_SLIDES.write(supply, files.mined_slides)
    PASSED_OVER.write(mined.passed_over, files.passed_over)
    write_json(summary, files.summary)
    return summary
