"""What a head says of slides and their tiles, as tables."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hnm.learning.heads import Head
from hnm.tables import SLIDE_SCORES, TILE_SCORES


@torch.inference_mode()
def predict(head: Head, slides: Mapping[str, Tensor], tiles: pd.DataFrame, label: int = 1) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `SLIDE_SCORES` and `TILE_SCORES` of slides, for one label.

    Args:
        head: a fitted head.
        slides: slide id -> features `(tiles, features)`.
        tiles: the `TILES` index; a slide's rows stand in the order of its features.
        label: one of the head's `labels`; its scores are those of the label against the rest.
    """
    head.eval()
    slide_rows, tile_frames = [], []
    for slide_id, own in tiles.sort_values(["slide_id", "tile"]).groupby("slide_id", sort=True):
        output = head(slides[str(slide_id)]).of(label)
        slide_rows.append({"slide_id": slide_id, "logit": output.slide_logit.item(), "score": output.slide_logit.sigmoid().item()})
        tile_frames.append(
            own.assign(
                logit=output.tile_logits.cpu().numpy(),
                score=output.tile_logits.sigmoid().cpu().numpy(),
                attention=output.attention.cpu().numpy().clip(0, 1),
            )[list(TILE_SCORES.columns)]
        )
    slide_table = pd.DataFrame(slide_rows, columns=list(SLIDE_SCORES.columns)).astype({"logit": np.float32, "score": np.float32})
    return slide_table, pd.concat(tile_frames, ignore_index=True)
