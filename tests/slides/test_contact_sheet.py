"""Contact sheets: where pictures and captions stand."""

from itertools import pairwise

import numpy as np
from PIL import Image, ImageFont

from hnm.slides.contact_sheet import GAP_PX, HEADING_PX, LINE_PX, Cell, contact_sheet, wrapped


def cells(count: int, caption: list[str]) -> list[Cell]:
    return [
        Cell(Image.new("RGB", (100, 80), (20 * number, 0, 0)), caption) for number in range(count)
    ]


def test_pictures_stand_in_reading_order() -> None:
    sheet = np.asarray(contact_sheet(cells(5, ["a"]), side_px=100, columns=3, lines=2))
    height = 100 + 2 * GAP_PX + 2 * LINE_PX
    width = 100 + 2 * GAP_PX
    assert sheet.shape == (2 * height, 3 * width, 3)
    assert [sheet[50 + height * (i // 3), 50 + width * (i % 3), 0] for i in range(5)] == [
        0,
        20,
        40,
        60,
        80,
    ]
    assert (sheet[height:, 2 * width :] == 255).all()
    assert (sheet[GAP_PX + 80 : GAP_PX + 100] == 255).all()


def test_a_heading_moves_the_pictures_down() -> None:
    bare = np.asarray(contact_sheet(cells(2, ["a"]), side_px=100, columns=2, lines=1))
    headed = np.asarray(
        contact_sheet(cells(2, ["a"]), side_px=100, columns=2, lines=1, heading="eleven")
    )
    np.testing.assert_array_equal(headed[HEADING_PX:], bare)
    assert (headed[:HEADING_PX] < 255).any()


def test_long_lines_are_cut_and_further_ones_left_out() -> None:
    long = "a-slide-with-a-name-that-is-longer-than-a-tile-is-wide"
    sheet = np.asarray(contact_sheet(cells(2, [long, "b", "c"]), side_px=100, columns=2, lines=2))
    captions = sheet[GAP_PX + 100 :]
    assert (captions[:LINE_PX, GAP_PX : GAP_PX + 100] < 255).any()
    assert (captions[:, 100 + GAP_PX : 100 + 3 * GAP_PX] == 255).all()
    two = np.asarray(contact_sheet(cells(2, [long, "b"]), side_px=100, columns=2, lines=2))
    np.testing.assert_array_equal(sheet, two)


def test_a_caption_is_wrapped_between_words() -> None:
    text = "6 tiles of a grid of 80, 4 with too little tissue"
    lines = wrapped(text, 100)
    font = ImageFont.load_default(12)
    assert " ".join(lines) == text and len(lines) > 1
    assert all(font.getlength(line) <= 100 for line in lines)
    for line, after in pairwise(lines):
        assert font.getlength(f"{line} {after.split()[0]}") > 100
