"""What a head says of slides and tiles, as tables."""

import pandas as pd
import pytest
import torch

from hnm import params
from hnm.errors import HeadError
from hnm.learning.heads import make_head
from hnm.learning.predict import predict
from hnm.tables import SLIDE_SCORES, TILE_SCORES, TILES

HEAD = make_head(4, params.Head(attention_features=8)).eval()
FEATURES = {
    slide: torch.randn(tiles, 4, generator=torch.Generator().manual_seed(tiles))
    for slide, tiles in (("b", 3), ("a", 2))
}
ROWS = [
    (slide, tile, 10 * tile, 7, 10, 0.5)
    for slide, tile in (("b", 2), ("a", 1), ("b", 0), ("b", 1), ("a", 0))
]
INDEX = pd.DataFrame(ROWS, columns=list(TILES.columns)).astype(
    {"tile": "int32", "tissue": "float32"}
)


def test_each_slide_and_tile_has_its_own_row_in_the_order_of_the_tables() -> None:
    slides, tiles = predict(HEAD, FEATURES, INDEX)
    assert slides.equals(SLIDE_SCORES.check(slides, "slides")) and tiles.equals(
        TILE_SCORES.check(tiles, "tiles")
    )
    with torch.inference_mode():
        a, b = HEAD(FEATURES["a"]), HEAD(FEATURES["b"])
    assert slides["slide_id"].tolist() == ["a", "b"]
    assert slides["logit"].tolist() == pytest.approx([a.slide_logit.item(), b.slide_logit.item()])
    assert slides["score"].tolist() == pytest.approx(
        [a.slide_logit.sigmoid().item(), b.slide_logit.sigmoid().item()]
    )
    assert list(zip(tiles["slide_id"], tiles["tile"], tiles["x"], strict=True)) == [
        ("a", 0, 0),
        ("a", 1, 10),
        ("b", 0, 0),
        ("b", 1, 10),
        ("b", 2, 20),
    ]
    assert tiles["logit"].tolist() == pytest.approx(
        [*a.tile_logits.tolist(), *b.tile_logits.tolist()]
    )
    assert tiles["score"].tolist() == pytest.approx(
        torch.cat([a.tile_logits, b.tile_logits]).sigmoid().tolist()
    )
    assert tiles["attention"].tolist() == pytest.approx(
        [*a.attention.tolist(), *b.attention.tolist()]
    )


def test_features_that_are_not_of_these_tiles_are_refused() -> None:
    swapped = {"a": FEATURES["b"], "b": FEATURES["a"]}
    with pytest.raises(HeadError, match=r"^slide a has 3 features, but 2 tiles; embed it again$"):
        predict(HEAD, swapped, INDEX)
