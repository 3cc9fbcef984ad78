"""The painting of one slide: its tissues, their two stains, and the light that the scanner gets.

All but the nuclei is drawn on a plan of `GRAIN` level-0 pixels a pixel. Stains are densities in
thousandths of what 1 of the stain's vector absorbs.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import convolve1d
from scipy.spatial import KDTree
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
    Canvas,
    directions_along,
    large_cells,
    scatter,
    stamp,
)

GRAIN = 2
"""Level-0 pixels of a pixel of the plan."""
TUMOUR_PLEOMORPHISM = (40, 100)
LOOK_ALIKE_PLEOMORPHISM = (0, 15)
BUNDLE_PERIOD = 176
STRAND_PERIOD = 120
"""Heights of the landscape of fibres from one bundle, or strand, to the next."""
# rounding leaves nothing of the last bits in which machines' powers differ
TRANSMITTED = np.rint(65536 * 10.0 ** (-np.arange(4096) / 1024)).astype(np.int32)
"""Share of the light, in 65536ths, that passes an optical density, in 1024ths (Beer-Lambert)."""
ONE_ISLAND = ((32, 36, 36),)
TWO_ISLANDS = ((16, 22, 38), (53, 14, 36))
"""Centre and half axes of each, in 64ths of the slide's width and height."""
INKS = ((38, 58, 168), (28, 128, 72), (34, 32, 38))

Speckles = tuple[tuple[int, int], ...]
"""Noises that are added up: for each the width of its features, and the divisor of its height."""


@dataclass(frozen=True)
class Edge:
    """The soft edge of a region: none of it where a field is `low`, all of it from `high`."""

    low: int
    high: int
    speckles: Speckles = ()
    """Noises that are added to the field."""
    is_ridge: bool = False
    """Whether each noise counts by its distance from 0, which is small along winding lines."""


EDGES = {
    "tissue": Edge(110, 150, ((32, 6), (5, 10))),
    "spot": Edge(90, 170, ((8, 6),)),
    "nests": Edge(-230, -150, ((28, 1), (10, 4))),
    "below the capsule": Edge(130, 170),
    "between trabeculae": Edge(22, 50, ((112, 1), (20, 5)), is_ridge=True),
    "sinus": Edge(160, 175),
    "below the outer sinus": Edge(180, 196),
    "between inner sinuses": Edge(16, 34, ((88, 1),), is_ridge=True),
    "fat": Edge(110, 130, ((144, 1),)),
    "too deep for fat": Edge(190, 230),
    "cracks": Edge(150, 230, ((5, 1), (14, 2))),
    "crowds": Edge(-260, 60, ((64, 1), (24, 2))),
    "clefts": Edge(34, 42),
    "loose stroma": Edge(0, 80, ((22, 1),)),
}


@dataclass(frozen=True)
class Texture:
    """The density of one stain in a material."""

    density: int
    speckles: Speckles = ()
    highest: int | None = None
    """Where it is given, each slide has a density between `density` and this one."""


MATERIALS = {  # haematoxylin, eosin
    "lymphoid": (Texture(130, ((10, 4), (3, 5))), Texture(170, ((6, 4), (2, 4)))),
    "cracks": (Texture(10), Texture(25)),
    "nests": (Texture(80, ((6, 4),), highest=150), Texture(190, ((5, 3),), highest=290)),
    "stroma": (Texture(60), Texture(310)),
    "clefts": (Texture(15), Texture(15)),
    "fat walls": (Texture(50), Texture(260)),
}


@dataclass(frozen=True)
class Lymphocytes:
    """The share of places, in 256ths, that hold a lymphocyte: outside and inside of crowds, in
    sinuses, and among large cells.
    """

    sparse: int
    crowded: int
    sinus: int
    large: int


LYMPHOCYTES = Lymphocytes(sparse=135, crowded=245, sinus=90, large=14)


@dataclass(frozen=True)
class Stain:
    """The stain of a patient's slides: optical densities in red, green and blue, in 1024ths, and
    the colour of the empty slide.
    """

    haematoxylin: tuple[int, ...]
    eosin: tuple[int, ...]
    glass: tuple[int, ...]

    @classmethod
    def drawn(cls, dice: Dice) -> "Stain":
        """Returns a plausible stain."""
        hue = dice.one(0, 71)
        strengths = (dice.one(900, 1060), dice.one(880, 1120))
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
    """A slide's pixels (height, width, 3), with the level-0 polygons of its tumour and
    look-alikes, which do not overlap.
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
    """Returns tissue on glass, of which about these shares are tumour and look-alike."""
    islands = _islands(dice, height, width)
    area = sum(island.area for island in islands)
    slide = box(0, 0, width, height)
    tumour = _spots(dice, slide, islands, area * tumour_share, ())
    look_alike = _spots(dice, slide, islands, area * look_alike_share, tumour)
    plan = _Plan(dice, height, width)
    regions = _regions_of(plan, islands, tumour, look_alike)
    stains, slopes = _stained(plan, regions)
    canvas = np.zeros((height + 2 * MARGIN, width + 2 * MARGIN), np.int16)
    _nuclei(plan, regions, slopes, canvas)
    haematoxylin, eosin = (smooth(density, GRAIN, height, width) for density in stains)
    haematoxylin = np.maximum(haematoxylin, canvas[MARGIN:-MARGIN, MARGIN:-MARGIN])
    return Painting(_scanned(dice, haematoxylin, eosin, stain), tumour, look_alike)


def paint_glass(dice: Dice, stain: Stain, height: int, width: int) -> Painting:
    """Returns a slide without tissue."""
    empty = np.zeros((height, width), np.int32)
    return Painting(_scanned(dice, empty, empty, stain))


def mark_with_pen(dice: Dice, painting: Painting) -> Painting:
    """Returns the slide with a line of each ink, from its upper edge across glass and tissue."""
    pixels = painting.pixels.copy()
    height, width, _ = pixels.shape
    thickness = max(width // 110, 6)
    step = np.arange(ONE + 1)
    left = ONE - step
    curve = np.column_stack([left**2, 2 * step * left, step**2])  # of Bézier, through three points
    for ink in INKS:
        bends = [
            (dice.one(0, width), 0),
            (dice.one(0, width), dice.one(0, height)),
            (dice.one(0, width), dice.one(0, height)),
        ]
        for x, y in (curve @ np.array(bends) >> 16).tolist():
            spot = pixels[
                max(y - thickness, 0) : y + thickness, max(x - thickness, 0) : x + thickness
            ]
            np.minimum(spot, np.array(ink, np.uint8), out=spot)
    return replace(painting, pixels=pixels)


def _islands(dice: Dice, height: int, width: int) -> tuple[Polygon, ...]:
    """Returns one piece of tissue, or two."""
    return tuple(
        star(
            dice, width * x // 64, height // 2, width * radius_x // 64, height * radius_y // 64, 50
        )
        for x, radius_x, radius_y in (ONE_ISLAND if dice.one(0, 3) else TWO_ISLANDS)
    )


def _spots(
    dice: Dice,
    slide: Polygon,
    islands: tuple[Polygon, ...],
    area: float,
    taken: tuple[Polygon, ...],
) -> tuple[Polygon, ...]:
    """Returns one to three rounded polygons of about `area` together.

    They lie on the islands, mostly on the slide, apart from each other and from `taken`.
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


class _Plan:
    """The plan of a slide, and the dice that it is drawn by."""

    def __init__(self, dice: Dice, height: int, width: int) -> None:
        self.dice = dice
        self._size = (height, width)
        self._shape = (-(-height // GRAIN), -(-width // GRAIN))

    def speckled(self, field: Ints | int, speckles: Speckles, *, is_ridge: bool = False) -> Ints:
        """Returns `field` with noises added."""
        total = np.zeros(self._shape, np.int32) + field
        for step, divisor in speckles:
            speckle = noise(self.dice, step, *self._shape)
            total += (np.abs(speckle) if is_ridge else speckle) // divisor
        return total

    def region(self, name: str, field: Ints | int = 0) -> Ints:
        """Returns the weight of the region that `EDGES` bounds by `field`."""
        edge = EDGES[name]
        return ramp(
            self.speckled(field, edge.speckles, is_ridge=edge.is_ridge), edge.low, edge.high
        )

    def material(self, name: str) -> Ints:
        """Returns the stains, (2, height, width), of a material that covers the plan."""
        stains = []
        for texture in MATERIALS[name]:
            density = texture.density
            if texture.highest is not None:
                density = self.dice.one(density, texture.highest)
            stains.append(self.speckled(density, texture.speckles))
        return np.stack(stains)

    def outline(self, polygons: tuple[Polygon, ...], step: int) -> Ints:
        """Returns the inside of polygons, whose outline is blurred over `step` pixels."""
        return smooth(raster(polygons, step * GRAIN, *self._size), step, *self._shape)


@dataclass(frozen=True)
class _Regions:
    """The weights of the parts of a slide's tissue, on its plan."""

    tissue: Ints
    tumour: Ints
    look_alike: Ints
    large: Ints
    """Tumour and look-alike, whose cells are large."""
    nests: Ints
    """Groups of large cells, with stroma between them."""
    stroma: Ints
    sinus: Ints
    fat: Ints


def _regions_of(
    plan: _Plan,
    islands: tuple[Polygon, ...],
    tumour_spots: tuple[Polygon, ...],
    look_alike_spots: tuple[Polygon, ...],
) -> _Regions:
    tissue = plan.region("tissue", plan.outline(islands + tumour_spots + look_alike_spots, 8))
    depth = plan.speckled(plan.outline(islands, 64), ((48, 8),))
    tumour = plan.region("spot", plan.outline(tumour_spots, 4))
    look_alike = plan.region("spot", plan.outline(look_alike_spots, 4))
    large = np.maximum(tumour, look_alike)
    small = ONE - large
    nests = both(large, plan.region("nests"))
    parenchyma = np.minimum(
        plan.region("below the capsule", depth), plan.region("between trabeculae")
    )
    stroma = np.maximum(both(ONE - parenchyma, small), large - nests)
    pulp = np.minimum(
        plan.region("below the outer sinus", depth), plan.region("between inner sinuses")
    )
    sinus = both(plan.region("sinus", depth), ONE - pulp, parenchyma, small)
    fat = both(plan.region("fat"), small, ONE - plan.region("too deep for fat", depth))
    return _Regions(tissue, tumour, look_alike, large, nests, stroma, sinus, fat)


def _stained(plan: _Plan, regions: _Regions) -> tuple[Ints, tuple[Ints, Ints]]:
    """Returns haematoxylin and eosin without nuclei, (2, height, width), and the fibres' slopes."""
    cracks = plan.region("cracks", regions.sinus // 2)
    fibres, slopes, clefts = _fibres(plan)
    stains = blend(plan.material("lymphoid"), plan.material("cracks"), cracks)
    stains = blend(stains, plan.material("nests"), regions.nests)
    stroma = plan.material("stroma") + np.stack([fibres // 8, fibres])
    stains = blend(stains, stroma, regions.stroma)
    stains = blend(stains, plan.material("clefts"), both(clefts, regions.stroma))
    fat = blend(0, plan.material("fat walls"), _fat_walls(plan.dice, regions.fat))
    stains = blend(stains, fat, regions.fat)
    return np.maximum(stains, 0) * regions.tissue >> 8, slopes


def _nuclei(plan: _Plan, regions: _Regions, slopes: tuple[Ints, Ints], canvas: Canvas) -> None:
    """Draws the nuclei of all kinds into `canvas`; those of fibroblasts lie along the fibres."""
    dice = plan.dice
    share = blend(LYMPHOCYTES.sparse, LYMPHOCYTES.crowded, plan.region("crowds"))
    share = blend(share, LYMPHOCYTES.sinus, regions.sinus)
    share = blend(share, LYMPHOCYTES.large, regions.large)
    cellular = both(regions.tissue, ONE - regions.fat)
    lymphoid = both(cellular, ONE - regions.stroma)
    stamp(dice, canvas, LYMPHOCYTE, *scatter(dice, LYMPHOCYTE, both(lymphoid, share), GRAIN))
    x, y = scatter(dice, FIBROBLAST, both(regions.stroma, cellular) * 4 // 5, GRAIN)
    slope_x, slope_y = (slope[y // GRAIN, x // GRAIN] for slope in slopes)
    stamp(dice, canvas, FIBROBLAST, x, y, directions_along(slope_x, slope_y))
    for spots, pleomorphism in (
        (regions.look_alike, LOOK_ALIKE_PLEOMORPHISM),
        (regions.tumour, TUMOUR_PLEOMORPHISM),
    ):
        kind = large_cells(dice, dice.one(*pleomorphism))
        where = both(spots, regions.nests, lymphoid) * 15 // 16
        stamp(dice, canvas, kind, *scatter(dice, kind, where, GRAIN))


def _fibres(plan: _Plan) -> tuple[Ints, tuple[Ints, Ints], Ints]:
    """Returns wavy fibres of about ± 120, their slopes in x and y, and the clefts between bundles.

    The fibres are the contour lines of a smooth landscape, which has the slopes.
    """
    landscape = plan.speckled(0, ((52, 1),)) * 4
    slope_y, slope_x = (np.gradient(landscape, axis=axis).astype(np.int32) for axis in (0, 1))
    bundles = _wave(plan.speckled(landscape, ((14, 2),)), BUNDLE_PERIOD)
    strands = _wave(plan.speckled(landscape * 2, ((6, 2),)), STRAND_PERIOD)
    clefts = both(plan.region("clefts", bundles), plan.region("loose stroma"))
    return plan.speckled(bundles + strands * 2, ((2, 4),)), (slope_x, slope_y), clefts


def _wave(field: Ints, period: int) -> Ints:
    """Returns a triangle wave of the field's heights, a quarter of `period` up and down."""
    return np.asarray(np.abs(field % period - period // 2) - period // 4, np.int32)


def _fat_walls(dice: Dice, fat: Ints) -> Ints:
    """Returns the walls (ONE) between fat cells (0), which lie where two cells are equally far."""
    spacing = 26
    reach = 34
    coarse = fat[:-spacing:spacing, :-spacing:spacing]
    # smoothed, so that cells surround the fat's border
    corners = np.argwhere(smooth(coarse, 1, *coarse.shape)) * spacing
    centres = corners + dice.many(0, spacing, len(corners), 2)
    inside = np.nonzero(fat)
    distances, _ = KDTree(centres).query(np.transpose(inside), k=2)
    nearest, second = np.rint(4 * np.minimum(distances, reach)).astype(np.int32).T
    walls = np.zeros_like(fat)
    walls[inside] = ONE - ramp(second - nearest, 4, 12)
    return walls


def _scanned(dice: Dice, haematoxylin: Ints, eosin: Ints, stain: Stain) -> Bytes:
    """Returns pixels (height, width, 3) of the light that passes the stains (height, width).

    They are a little blurred and noisy.
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
    """Returns the binomial mean, 1 6 1, of each pixel and its neighbours, along both axes."""
    total = light
    for axis in (0, 1):
        total = convolve1d(total, (1, 6, 1), axis, mode="nearest")
    return np.asarray((total + 32) >> 6)
