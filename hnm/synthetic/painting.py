"""One slide: where its tissues lie, their two stains, and the light that passes them to the
scanner.

All but the nuclei is drawn on a plan of `GRAIN` level-0 pixels a pixel. Stains are densities in
thousandths of what 1 of the stain's vector absorbs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from shapely import Polygon, box, contains_xy

from hnm.synthetic.fields import (
    DIRECTIONS,
    ONE,
    Bytes,
    Dice,
    Ints,
    blend,
    both,
    noise,
    ramp,
    raster,
    smooth,
    star,
)
from hnm.synthetic.nuclei import (
    FIBROBLAST,
    LYMPHOCYTE,
    MARGIN,
    directions_along,
    large_cells,
    scatter,
    stamp,
)

GRAIN = 2
TUMOUR_PLEOMORPHISM = (40, 100)
LOOK_ALIKE_PLEOMORPHISM = (0, 15)
# rounding leaves nothing of the last bits in which machines' powers differ
TRANSMITTED = np.rint(65536 * 10.0 ** (-np.arange(4096) / 1024)).astype(np.int32)
"""Share of the light, in 65536ths, that passes an optical density, in 1024ths (Beer-Lambert)."""
INKS = ((38, 58, 168), (28, 128, 72), (34, 32, 38))


@dataclass(frozen=True)
class Stain:
    """How a patient's slides are stained: optical density in red, green and blue, in 1024ths, and
    the colour of the empty slide.
    """

    haematoxylin: tuple[int, ...]
    eosin: tuple[int, ...]
    glass: tuple[int, ...]

    @classmethod
    def drawn(cls, dice: Dice) -> "Stain":
        """A plausible stain."""
        hue, strengths = dice.one(0, 71), (dice.one(900, 1060), dice.one(880, 1120))
        haematoxylin = (620 + dice.one(-25, 26), 740 + dice.one(-25, 26), 280 + hue * 3 // 2)
        eosin = (100 + hue, 880 + dice.one(-30, 31), 360 + hue * 3 // 2)
        brightness = dice.one(239, 248)
        glass = tuple(brightness + dice.one(-3, 4) for _ in range(3))
        return cls(
            tuple(part * strengths[0] >> 10 for part in haematoxylin),
            tuple(part * strengths[1] >> 10 for part in eosin),
            glass,
        )


@dataclass(frozen=True)
class Painting:
    """A slide's pixels (height, width, 3), and where its tumour and look-alikes lie: level-0
    polygons that do not overlap.
    """

    pixels: Bytes
    tumour: tuple[Polygon, ...] = ()
    look_alike: tuple[Polygon, ...] = ()


def paint_tissue(
    dice: Dice,
    stain: Stain,
    height: int,
    width: int,
    *,
    tumour_share: float,
    look_alike_share: float,
) -> Painting:
    """Tissue on glass, of which about these shares are tumour and look-alike."""
    islands = _islands(dice, height, width)
    area = sum(island.area for island in islands)
    slide = box(0, 0, width, height)
    tumour = _spots(dice, slide, islands, area * tumour_share, ())
    look_alike = _spots(dice, slide, islands, area * look_alike_share, tumour)
    haematoxylin, eosin = _stains(dice, islands, tumour, look_alike, height, width)
    return Painting(_scanned(dice, haematoxylin, eosin, stain), tumour, look_alike)


def paint_glass(dice: Dice, stain: Stain, height: int, width: int) -> Painting:
    """A slide without tissue."""
    empty = np.zeros((height, width), np.int32)
    return Painting(_scanned(dice, empty, empty, stain))


def mark_with_pen(dice: Dice, painting: Painting) -> Painting:
    """The same slide with a line of each ink, from its upper edge across glass and tissue."""
    pixels = painting.pixels.copy()
    height, width, _ = pixels.shape
    thickness = max(width // 110, 6)
    for ink in INKS:
        bends = [
            (dice.one(0, width), 0),
            (dice.one(0, width), dice.one(0, height)),
            (dice.one(0, width), dice.one(0, height)),
        ]
        for step in range(ONE + 1):
            left = ONE - step
            x, y = (
                (left**2 * start + 2 * step * left * bend + step**2 * end) >> 16
                for start, bend, end in zip(*bends, strict=True)
            )
            spot = pixels[
                max(y - thickness, 0) : y + thickness, max(x - thickness, 0) : x + thickness
            ]
            np.minimum(spot, np.array(ink, np.uint8), out=spot)
    return Painting(pixels, painting.tumour, painting.look_alike)


def _islands(dice: Dice, height: int, width: int) -> tuple[Polygon, ...]:
    """One piece of tissue, or two."""
    if dice.one(0, 3):
        return (star(dice, width // 2, height // 2, width * 36 // 64, height * 36 // 64, 50),)
    return (
        star(dice, width * 8 // 32, height // 2, width * 22 // 64, height * 38 // 64, 50),
        star(dice, width * 53 // 64, height // 2, width * 14 // 64, height * 36 // 64, 50),
    )


def _spots(
    dice: Dice,
    slide: Polygon,
    islands: tuple[Polygon, ...],
    area: float,
    taken: tuple[Polygon, ...],
) -> tuple[Polygon, ...]:
    """One to three rounded polygons of about `area` together on the islands, mostly on the slide,
    apart from each other and from `taken`.
    """
    placed: tuple[Polygon, ...] = ()
    count = dice.one(1, 4) if area else 0
    for _ in range(count):
        radius = int(np.sqrt(area / count / 3))
        while True:
            island = islands[dice.one(0, len(islands))]
            left, top, right, bottom = (int(edge) for edge in island.bounds)
            spot = star(
                dice,
                dice.one(left, right),
                dice.one(top, bottom),
                radius * dice.one(80, 125) // 100,
                radius,
                90,
            )
            on_island, on_slide = (
                contains_xy(outline, *np.asarray(spot.exterior.coords[1:]).T).sum()
                for outline in (island, slide)
            )
            if (
                on_island >= DIRECTIONS * 3 // 4
                and on_slide >= DIRECTIONS // 2
                and not any(spot.intersects(other) for other in placed + taken)
            ):
                break
            radius -= radius // 200  # sooner or later it fits
        placed += (spot,)
    return placed


def _stains(
    dice: Dice,
    islands: tuple[Polygon, ...],
    tumour: tuple[Polygon, ...],
    look_alike: tuple[Polygon, ...],
    height: int,
    width: int,
) -> tuple[Ints, Ints]:
    """Haematoxylin and eosin (height, width)."""
    rows, columns = -(-height // GRAIN), -(-width // GRAIN)

    def speckle(step: int) -> Ints:
        return noise(dice, step, rows, columns)

    def outline(polygons: tuple[Polygon, ...], step: int) -> Ints:
        return smooth(raster(polygons, step * GRAIN, height, width), step, rows, columns)

    tissue = ramp(
        outline(islands + tumour + look_alike, 8) + speckle(32) // 6 + speckle(5) // 10, 110, 150
    )
    depth = outline(islands, 64) + speckle(48) // 8
    lesion, alike = (
        ramp(outline(spots, 4) + speckle(8) // 6, 90, 170) for spots in (tumour, look_alike)
    )
    large = np.maximum(lesion, alike)
    nests = both(large, ramp(speckle(28) + speckle(10) // 4, -230, -150))
    septa = np.maximum(
        ONE - ramp(depth, 130, 170),
        ONE - ramp(np.abs(speckle(112)) + np.abs(speckle(20)) // 5, 22, 50),
    )
    stroma = np.maximum(both(septa, ONE - large), large - nests)
    sinus = both(
        ramp(depth, 160, 175),
        ONE - np.minimum(ramp(depth, 180, 196), ramp(np.abs(speckle(88)), 16, 34)),
        ONE - septa,
        ONE - large,
    )
    fat = both(ramp(speckle(144), 110, 130), ONE - large, ONE - ramp(depth, 190, 230))
    cellular = both(tissue, ONE - fat)

    cracks = ramp(speckle(5) + speckle(14) // 2 + sinus // 2, 150, 230)
    fibres, slopes, clefts = _fibres(speckle)
    haematoxylin, eosin = (
        blend(130 + speckle(10) // 4 + speckle(3) // 5, 10, cracks),
        blend(170 + speckle(6) // 4 + speckle(2) // 4, 25, cracks),
    )
    haematoxylin, eosin = (
        blend(haematoxylin, dice.one(80, 150) + speckle(6) // 4, nests),
        blend(eosin, dice.one(190, 290) + speckle(5) // 3, nests),
    )
    haematoxylin, eosin = (
        blend(haematoxylin, 60 + fibres // 8, stroma),
        blend(eosin, 310 + fibres, stroma),
    )
    haematoxylin, eosin = (
        blend(stain, 15, both(clefts, stroma)) for stain in (haematoxylin, eosin)
    )
    walls = _fat_walls(dice, fat)
    haematoxylin, eosin = (
        blend(haematoxylin, walls * 50 // ONE, fat),
        blend(eosin, walls * 260 // ONE, fat),
    )

    canvas = np.zeros((height + 2 * MARGIN, width + 2 * MARGIN), np.int16)
    crowded = ramp(speckle(64) + speckle(24) // 2, -260, 60) * 110 // ONE + 135
    lymphoid = both(cellular, ONE - stroma)
    stamp(
        dice,
        canvas,
        LYMPHOCYTE,
        *scatter(
            dice, LYMPHOCYTE, both(lymphoid, blend(blend(crowded, 90, sinus), 14, large)), GRAIN
        ),
    )
    x, y = scatter(dice, FIBROBLAST, both(stroma, cellular) * 4 // 5, GRAIN)
    stamp(
        dice,
        canvas,
        FIBROBLAST,
        x,
        y,
        directions_along(*(slope[y // GRAIN, x // GRAIN] for slope in slopes)),
    )
    for spots, pleomorphism in ((alike, LOOK_ALIKE_PLEOMORPHISM), (lesion, TUMOUR_PLEOMORPHISM)):
        kind = large_cells(dice, dice.one(*pleomorphism))
        stamp(
            dice, canvas, kind, *scatter(dice, kind, both(spots, nests, lymphoid) * 15 // 16, GRAIN)
        )

    haematoxylin, eosin = (
        smooth(np.maximum(stain, 0) * tissue >> 8, GRAIN, height, width)
        for stain in (haematoxylin, eosin)
    )
    return np.maximum(haematoxylin, canvas[MARGIN:-MARGIN, MARGIN:-MARGIN]), eosin


def _fibres(speckle: Callable[[int], Ints]) -> tuple[Ints, tuple[Ints, Ints], Ints]:
    """Wavy fibres of about ± 120, the contour lines of a smooth landscape; its slopes in x and y;
    the clefts between bundles.
    """
    landscape = speckle(52) * 4
    y, x = (np.gradient(landscape, axis=axis).astype(np.int32) for axis in (0, 1))
    bundles = np.abs((landscape + speckle(14) // 2) % 176 - 88) - 44
    strands = np.abs((landscape * 2 + speckle(6) // 2) % 120 - 60) - 30
    clefts = both(ramp(bundles, 34, 42), ramp(speckle(22), 0, 80))
    return bundles + strands * 2 + speckle(2) // 4, (x, y), clefts


def _fat_walls(dice: Dice, fat: Ints) -> Ints:
    """Walls (ONE) between fat cells (0): where the two nearest centres are about equally far."""
    spacing, reach = 26, 34
    nearest, second = (
        np.full((fat.shape[0] + 2 * reach, fat.shape[1] + 2 * reach), 4 * reach, np.int32)
        for _ in range(2)
    )
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.rint(4 * np.sqrt(np.square(x) + np.square(y))).astype(np.int32)
    coarse = fat[:-spacing:spacing, :-spacing:spacing]
    corners = (
        np.argwhere(smooth(coarse, 1, *coarse.shape)) * spacing
    )  # smoothed, so that cells surround the fat's border
    for at_y, at_x in (corners + dice.many(0, spacing, len(corners), 2)).tolist():
        window = np.s_[at_y : at_y + 2 * reach + 1, at_x : at_x + 2 * reach + 1]
        second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
        nearest[window] = np.minimum(nearest[window], distance)
    inner = np.s_[reach:-reach, reach:-reach]
    return ONE - ramp(second[inner] - nearest[inner], 4, 12)


def _scanned(dice: Dice, haematoxylin: Ints, eosin: Ints, stain: Stain) -> Bytes:
    """Pixels (height, width, 3): what passes the stains (height, width), a little blurred and
    noisy.
    """
    pixels = np.empty((*haematoxylin.shape, 3), np.uint8)
    for channel, (by_haematoxylin, by_eosin, glass) in enumerate(
        zip(stain.haematoxylin, stain.eosin, stain.glass, strict=True)
    ):
        density = (haematoxylin * by_haematoxylin + eosin * by_eosin) // 1000
        light = (
            np.take(TRANSMITTED, np.minimum(density, len(TRANSMITTED) - 1)) * glass + 32768
        ) >> 16
        raw = dice.bytes(*light.shape)
        pixels[..., channel] = np.clip(
            _blurred(light) + ((raw & 15).astype(np.int32) + (raw >> 4) - 15) // 5, 0, 255
        )
    return pixels


def _blurred(light: Ints) -> Ints:
    """The binomial mean, 1 6 1, of each pixel and its neighbours, along both axes."""
    padded = np.pad(light, 1, mode="edge")
    rows = padded[:-2] + 6 * padded[1:-1] + padded[2:]
    return np.asarray((rows[:, :-2] + 6 * rows[:, 1:-1] + rows[:, 2:] + 32) >> 6)
