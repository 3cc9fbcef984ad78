"""The contact sheets of mined tiles."""

from pathlib import Path

import numpy as np
from PIL import Image

from hnm.mining.gallery import LINES, TILE_SIDE_PX, write_gallery
from hnm.slides.contact_sheet import GAP_PX, HEADING_PX, LINE_PX
from hnm.tables import PASSED_OVER
from tests.support import evidence as tiny


def shown(sheet: Path, number: int) -> tuple[int, ...]:
    """The colour in the middle of a sheet's n-th tile."""
    width = TILE_SIDE_PX + 2 * GAP_PX
    x = number % 4 * width + width // 2
    y = HEADING_PX + number // 4 * (width + LINES * LINE_PX) + width // 2
    return Image.open(sheet).getpixel((x, y))  # type: ignore[return-value]


def near(colour: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return bool(np.abs(np.subtract(colour, wanted)).max() <= 3)  # packs are JPEG


def test_a_sheet_a_role_with_the_best_first(tmp_path: Path) -> None:
    tiny.write_packs(tmp_path / "packs")
    hard, positive = write_gallery(
        tiny.mined(1), PASSED_OVER.empty(), tmp_path / "packs", tmp_path / "out", 2
    )
    assert (hard.name, positive.name) == ("hard_negative.png", "positive.png")
    # slides in alphabetical order are te1..te4, tr1 (4), tr2, tr3 (6), tr4 (7): the colour of tile
    # n is (200 - 9 n, 90 + 10 slide, 40 + 15 n)
    assert near(shown(hard, 0), (155, 150, 115)) and near(
        shown(hard, 1), (173, 160, 85)
    )  # tr3's 5, tr4's 3; tr3's 6 is the third of two
    assert near(shown(positive, 0), (200, 130, 40)) and near(shown(positive, 1), (182, 130, 70))
    assert near(shown(hard, 2), (255, 255, 255))
    again = write_gallery(
        tiny.mined(1), PASSED_OVER.empty(), tmp_path / "packs", tmp_path / "again", 2
    )
    assert [path.read_bytes() for path in again] == [hard.read_bytes(), positive.read_bytes()]


def test_what_was_passed_over_has_a_sheet_too(tmp_path: Path) -> None:
    tiny.write_packs(tmp_path / "packs")
    refused = (
        tiny.mined(1)
        .query("slide_id == 'tr3'")
        .assign(reason=["pen", "blur"])[list(PASSED_OVER.columns)]
    )
    *_, sheet = write_gallery(tiny.mined(2), refused, tmp_path / "packs", tmp_path / "out", 60)
    assert (
        sheet.name == "passed_over.png"
        and near(shown(sheet, 0), (155, 150, 115))
        and near(shown(sheet, 1), (146, 150, 130))
    )
