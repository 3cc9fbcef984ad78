"""Contact sheets: pictures in a grid, each above its caption, for a person to look at."""

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

GAP_PX = 6
"""Around a picture."""
LINE_PX = 14
"""Of a line of a caption."""
HEADING_PX = 28


class Cell(NamedTuple):
    """One picture of a sheet."""

    picture: Image.Image
    caption: Sequence[str]
    """Its lines."""


def contact_sheet(
    cells: Sequence[Cell], *, side_px: int, columns: int, lines: int, heading: str = ""
) -> Image.Image:
    """Returns the sheet of `cells` in reading order, with pictures of at most `side_px` to a side
    and captions of at most `lines` lines.

    What is longer than its picture may be wide is cut off.
    """
    width = side_px + 2 * GAP_PX
    height = width + lines * LINE_PX
    heading_px = HEADING_PX if heading else 0
    rows = ceil(len(cells) / columns)
    sheet = Image.new("RGB", (columns * width, heading_px + rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    pen.text((GAP_PX, GAP_PX), heading, fill="black", font=font)
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        left = column * width + GAP_PX
        top = heading_px + row * height + GAP_PX
        sheet.paste(cell.picture, (left, top))
        for line, text in enumerate(cell.caption[:lines]):
            place = (left, top + side_px + line * LINE_PX)
            pen.text(place, _shortened(text, side_px, font), fill="black", font=font)
    return sheet


def wrapped(text: str, side_px: int) -> list[str]:
    """Returns `text` in lines that fit under a picture of `side_px`."""
    font = ImageFont.load_default(12)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= side_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _shortened(text: str, side_px: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Returns `text`, cut off at its end until it fits."""
    if font.getlength(text) <= side_px:
        return text
    while font.getlength(f"{text}..") > side_px:
        text = text[:-1]
    return f"{text}.."
