"""The scores of slides and tiles by a head, as tables."""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from hnm.errors import HeadError
from hnm.learning.heads import Head
from hnm.tables import SLIDE_SCORES, TILE_SCORES


@torch.inference_mode()
def predict(
    head: Head, slides: Mapping[str, Tensor], tiles: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the tables `SLIDE_SCORES` and `TILE_SCORES` of slides.

    Args:
        head: a fitted head.
        slides: slide id -> features `(tiles, features)`.
        tiles: the `TILES` index. By the number of the tile, the rows of a slide are in the order of
            its features.

    Raises:
        HeadError: a slide has more or fewer features than tiles.
    """
    head.eval()
    tiles = tiles.sort_values(["slide_id", "tile"])
    outputs = {}
    for slide_id, count in tiles.groupby("slide_id").size().items():
        features = slides[str(slide_id)]
        if len(features) != count:
            raise HeadError(
                f"slide {slide_id} has {len(features)} features, but {count} tiles; embed it again"
            )
        outputs[str(slide_id)] = head(features)
    slide_logits, tile_logits, attentions = zip(*outputs.values(), strict=True)
    slide_logit = torch.stack(slide_logits)
    tile_logit = torch.cat(tile_logits)
    slide_table = pd.DataFrame(
        {
            "slide_id": list(outputs),
            "logit": slide_logit.cpu().numpy(),
            "score": slide_logit.sigmoid().cpu().numpy(),
        }
    )
    tile_table = tiles.assign(
        logit=tile_logit.cpu().numpy(),
        score=tile_logit.sigmoid().cpu().numpy(),
        attention=torch.cat(attentions).cpu().numpy().clip(0, 1),
    )
    return (
        slide_table[list(SLIDE_SCORES.columns)],
        tile_table[list(TILE_SCORES.columns)].reset_index(drop=True),
    )
