"""What a head says of slides and their tiles, as tables."""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from hnm.errors import HeadError
from hnm.learning.heads import Head
from hnm.tables import SLIDE_SCORES, TILE_SCORES


@torch.inference_mode()
def predict(
    head: Head, slides: Mapping[str, Tensor], tiles: pd.DataFrame, label: int = 1
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The `SLIDE_SCORES` and `TILE_SCORES` of slides, for one label.

    Args:
        head: a fitted head.
        slides: slide id -> features `(tiles, features)`.
        tiles: the `TILES` index; a slide's rows stand in the order of its features.
        label: one of the head's `labels`; its scores are those of the label against the rest.

    Raises:
        HeadError: a slide has another number of features than of tiles.
    """
    head.eval()
    tiles = tiles.sort_values(["slide_id", "tile"])
    outputs = {
        str(slide_id): head(slides[str(slide_id)]).of(label)
        for slide_id in tiles["slide_id"].unique()
    }
    counts = tiles["slide_id"].value_counts()
    if unlike := [
        slide_id
        for slide_id, output in outputs.items()
        if len(output.tile_logits) != counts[slide_id]
    ]:
        raise HeadError(
            f"slide {unlike[0]} has {len(slides[unlike[0]])} features, but {counts[unlike[0]]}"
            " tiles; embed it again"
        )
    logit = torch.stack([output.slide_logit for output in outputs.values()])
    tile_logit, attention = (
        torch.cat(parts)
        for parts in zip(
            *((output.tile_logits, output.attention) for output in outputs.values()), strict=True
        )
    )
    slide_table = pd.DataFrame(
        {
            "slide_id": list(outputs),
            "logit": logit.cpu().numpy(),
            "score": logit.sigmoid().cpu().numpy(),
        }
    )
    columns = {
        "logit": tile_logit.cpu().numpy(),
        "score": tile_logit.sigmoid().cpu().numpy(),
        "attention": attention.cpu().numpy().clip(0, 1),
    }
    return slide_table[list(SLIDE_SCORES.columns)], tiles.assign(**columns)[
        list(TILE_SCORES.columns)
    ].reset_index(drop=True)
