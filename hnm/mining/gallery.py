"""Contact sheets of mined tiles: what the head takes for tumour, for a person to look at."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from hnm.files import whole
from hnm.mining.select import best_first
from hnm.slides.cutting.pack import Pack

TILE_SIDE, GAP, LINE, HEADING = 128, 6, 14, 28
"""Pixels of a sheet: of a tile as it is shown, around it, of a line of its caption, and of the
sheet's heading.
"""
COLUMNS = 10
LINES = 4


def write_gallery(
    mined: pd.DataFrame, passed_over: pd.DataFrame, packs: Path, folder: Path, most: int
) -> list[Path]:
    """Writes `positive.png` and `hard_negative.png` into `folder`, and `passed_over.png` where
    guards refused tiles; returns the paths.

    A sheet shows the `most` best-scoring tiles, the best first, each with slide, tile, score, and
    the level-0 pixels of its corner; of those passed over, the reason too.

    Args:
        mined: the `MINED` table.
        passed_over: the `PASSED_OVER` table.
        packs: the packs of the slides.
        folder: where the sheets go.
        most: how many tiles a sheet shows.
    """
    sheets = {
        str(role): own.sort_values("rank").assign(reason="") for role, own in mined.groupby("role")
    }
    if not passed_over.empty:
        sheets["passed_over"] = best_first(passed_over.assign(logit=passed_over["score"]))
    written = []
    for name, tiles in sheets.items():
        shown = tiles.head(most)
        heading = (
            f"{name.replace('_', ' ')}: the {len(shown)} best-scoring of {len(tiles)} tiles of"
            f" {tiles['slide_id'].nunique()} slides"
        )
        path = folder / f"{name}.png"
        with whole(path) as temporary:
            contact_sheet(
                [_picture(packs, tile) for tile in shown.itertuples()],
                [_caption(tile) for tile in shown.itertuples()],
                heading,
            ).save(temporary)
        written.append(path)
    return written


def contact_sheet(
    pictures: Sequence[Image.Image], captions: Sequence[Sequence[str]], heading: str
) -> Image.Image:
    """`pictures` in rows of `COLUMNS`, in reading order, each `TILE_SIDE` wide above its caption of
    at most `LINES` lines.
    """
    width, height = TILE_SIDE + 2 * GAP, TILE_SIDE + 2 * GAP + LINES * LINE
    columns = min(COLUMNS, max(4, len(pictures)))  # a heading has room
    sheet = Image.new(
        "RGB", (columns * width, HEADING + ceil(len(pictures) / columns) * height), "white"
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    pen.text((GAP, GAP), heading, fill="black", font=font)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = number % columns * width + GAP, HEADING + number // columns * height + GAP
        sheet.paste(picture.resize((TILE_SIDE, TILE_SIDE), Image.Resampling.LANCZOS), (left, top))
        for line, text in enumerate(caption):
            pen.text(
                (left, top + TILE_SIDE + line * LINE),
                _shortened(text, font),
                fill="black",
                font=font,
            )
    return sheet


def _picture(packs: Path, tile: Any) -> Image.Image:
    return Image.fromarray(Pack(packs / f"{tile.slide_id}.h5").tiles([tile.tile])[0])


def _caption(tile: Any) -> list[str]:
    return [
        tile.slide_id,
        f"{tile.score:.4f} {tile.reason}".strip(),
        f"tile {tile.tile}",
        f"{tile.x}, {tile.y}",
    ]


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """`text`, cut off at its end until it fits the width of a tile."""
    if font.getlength(text) <= TILE_SIDE:
        return text
    while font.getlength(f"{text}..") > TILE_SIDE:
        text = text[:-1]
    return f"{text}.."
