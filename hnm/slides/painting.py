"""The demo's tissue, drawn without any data: lymph-node-like H&E with tumour and its look-alikes, and where they are.

Everything is exact integer arithmetic, or float64 with nothing but + - * / and square roots (which IEEE 754 rounds
correctly), and all randomness is the raw bits of PCG64: so the pixels are the same on every machine and under every
version of numpy. A field is an int32 array with 256 (`ONE`) for "wholly"; a density is in thousandths of the optical
density that 1 of the stain's vector adds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from shapely import Polygon

Ints: TypeAlias = npt.NDArray[np.int32]
Pixels: TypeAlias = npt.NDArray[np.uint8]

ONE = 256
GRAIN = 2
"""Level-0 pixels per pixel of the plan, on which all but nuclei is drawn."""
DIRECTIONS = 32
MARGIN = 32
"""Level-0 pixels around the slide, so that a nucleus may lie across its border."""

# rounding leaves nothing of the last bits in which machines' cosines and powers differ
COSINES = np.rint(4096 * np.cos(2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS)).astype(np.int64)
SINES = np.roll(COSINES, DIRECTIONS // 4)
TRANSMITTED = np.rint(65535 * 10.0 ** (-np.arange(4096) / 1024)).astype(np.int32)
"""Share of the light, in 65535ths, that passes an optical density, in 1024ths (Beer-Lambert)."""


class Dice:
    """Random integers from PCG64's raw bits."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def many(self, low: int, high: int, *shape: int) -> npt.NDArray[np.int64]:
        """Integers in [low, high) of `shape`."""
        raw = np.asarray(self._bits.random_raw(int(np.prod(shape)))) >> np.uint64(32)
        return low + (raw * np.uint64(high - low) >> np.uint64(32)).astype(np.int64).reshape(shape)

    def one(self, low: int, high: int) -> int:
        """An integer in [low, high)."""
        return int(self.many(low, high, 1)[0])

    def bytes(self, count: int) -> Pixels:
        """Uniform bytes."""
        return np.asarray(self._bits.random_raw(-(-count // 8))).astype("<u8").view(np.uint8)[:count]


@dataclass(frozen=True)
class Stain:
    """How a patient's slides are stained and scanned: 1024ths of optical density in red, green and blue."""

    haematoxylin: tuple[int, int, int]
    eosin: tuple[int, int, int]
    glass: tuple[int, int, int]
    """Colour of the empty slide."""

    @classmethod
    def drawn(cls, dice: Dice) -> "Stain":
        """A plausible stain."""
        strength = (dice.one(800, 1100), dice.one(750, 1250))
        haematoxylin = (dice.one(560, 720), dice.one(690, 790), dice.one(250, 460))
        eosin = (dice.one(90, 260), dice.one(860, 960), dice.one(300, 560))
        red, green, blue = (dice.one(238, 250) for _ in range(3))
        return cls(
            tuple(strength[0] * part // 1024 for part in haematoxylin),  # type: ignore[arg-type]
            tuple(strength[1] * part // 1024 for part in eosin),  # type: ignore[arg-type]
            (red, green, blue),
        )


@dataclass(frozen=True)
class Painting:
    """A slide's pixels (height, width, 3) and what is true of them: level-0 polygons that do not overlap."""

    pixels: Pixels
    tumour: tuple[Polygon, ...] = ()
    look_alike: tuple[Polygon, ...] = ()


def paint_tissue(dice: Dice, stain: Stain, height: int, width: int, *, tumour_share: float, look_alike_share: float) -> Painting:
    """Tissue on glass of which about the given shares are tumour and look-alike."""
    islands = _islands(dice, height, width)
    area = sum(island.area for island in islands)
    tumour = _spots(dice, islands, area * tumour_share, taken=())
    look_alike = _spots(dice, islands, area * look_alike_share, taken=tumour)
    haematoxylin, eosin = _draw(dice, islands, tumour, look_alike, height, width)
    return Painting(_scan(dice, _stained(haematoxylin, eosin, stain)), tumour, look_alike)


def paint_glass(dice: Dice, stain: Stain, height: int, width: int) -> Painting:
    """A slide without tissue."""
    empty = np.zeros((height, width), np.int32)
    return Painting(_scan(dice, _stained(empty, empty, stain)))


def mark_with_pen(dice: Dice, painting: Painting) -> Painting:
    """The same slide with lines of blue, green and black ink across glass and tissue."""
    pixels = painting.pixels.copy()
    height, width, _ = pixels.shape
    thickness = max(width // 90, 6)
    for ink in ((40, 60, 170), (30, 130, 70), (35, 32, 38)):
        ends = [(dice.one(0, width), dice.one(0, height)) for _ in range(3)]
        ends[0] = (ends[0][0], 0)
        for step in range(257):
            x, y = (((256 - step) ** 2 * a + 2 * step * (256 - step) * b + step**2 * c) >> 16 for a, b, c in zip(*ends, strict=True))
            spot = pixels[max(y - thickness, 0) : y + thickness, max(x - thickness, 0) : x + thickness]
            np.minimum(spot, np.array(ink, np.uint8), out=spot)
    return Painting(pixels, painting.tumour, painting.look_alike)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _star(dice: Dice, x: int, y: int, radius_x: int, radius_y: int, roughness: int) -> Polygon:
    """A rounded polygon around (x, y); its radii vary by ± `roughness` 256ths before they are smoothed."""
    radii = ONE + dice.many(-roughness, roughness + 1, DIRECTIONS)
    for _ in range(2):
        radii = (np.roll(radii, 1) + 2 * radii + np.roll(radii, -1)) >> 2
    return Polygon(np.column_stack([x + (radius_x * radii * COSINES >> 20), y + (radius_y * radii * SINES >> 20)]))


def _islands(dice: Dice, height: int, width: int) -> tuple[Polygon, ...]:
    """One or two pieces of tissue."""
    if dice.one(0, 3):
        return (_star(dice, width // 2, height // 2, width * 29 // 64, height * 29 // 64, 60),)
    return (
        _star(dice, width * 9 // 32, height // 2, width * 16 // 64, height * 29 // 64, 60),
        _star(dice, width * 25 // 32, height // 2, width * 12 // 64, height * 26 // 64, 60),
    )


def _spots(dice: Dice, islands: tuple[Polygon, ...], area: float, taken: tuple[Polygon, ...]) -> tuple[Polygon, ...]:
    """One to three rounded polygons of about `area` together, inside the islands, apart from each other and from `taken`."""
    count = dice.one(1, 4)
    radius = int(np.sqrt(area / (3.2 * count)))
    placed: tuple[Polygon, ...] = ()
    for _ in range(count if area else 0):
        for _ in range(400):
            island = islands[dice.one(0, len(islands))]
            left, top, right, bottom = (int(edge) for edge in island.bounds)
            spot = _star(dice, dice.one(left, right), dice.one(top, bottom), radius * dice.one(80, 120) // 100, radius, 90)
            if (
                island.contains(spot.centroid)
                and spot.intersection(island).area > 0.8 * spot.area
                and not any(spot.intersects(other) for other in placed + taken)
            ):
                placed += (spot,)
                break
    return placed


def _raster(polygons: tuple[Polygon, ...], step: int, height: int, width: int) -> Ints:
    """Polygons as a field of 0 and ONE on a grid of `step` pixels, by parity of the edges to the left."""
    field = np.zeros((-(-height // step), -(-width // step)), np.int32)
    for polygon in polygons:
        crossings = np.zeros((len(field), field.shape[1] + 1), np.int32)
        corners = np.asarray(polygon.exterior.coords).astype(np.int64)
        for (x0, y0), (x1, y1) in pairwise(corners):
            first, last = sorted((-(-y0 // step), -(-y1 // step)))
            rows = np.arange(max(first, 0), min(last, len(crossings)))
            columns = -(-(x0 * (y1 - y0) + (rows * step - y0) * (x1 - x0)) // ((y1 - y0) * step)) if y1 != y0 else rows
            crossings[rows, np.clip(columns, 0, field.shape[1])] ^= 1
        field |= np.bitwise_xor.accumulate(crossings, axis=1)[:, :-1]
    return ONE * field


def _weights(length: int, step: int) -> csr_array:
    """Quadratic B-spline weights (length, knots + 2), in 1 / (8 step²), of knots that lie `step` apart."""
    at = np.arange(length)
    phase, span = 2 * (at % step) + 1, 2 * step
    weights = np.column_stack([(span - phase) ** 2, 2 * span**2 - (span - phase) ** 2 - phase**2, phase**2]).astype(np.int32)
    return csr_array((weights.ravel(), (at[:, None] // step + np.arange(3)).ravel(), 3 * np.arange(length + 1)), shape=(length, -(-length // step) + 2))


def _spread(knots: Ints, step: int, height: int, width: int) -> Ints:
    """Knots (rows + 2, columns + 2) that lie `step` apart as a smooth field (height, width)."""
    unit = 8 * step**2
    wide = np.ascontiguousarray((_weights(width, step) @ knots.T.astype(np.int32)).T) // unit
    return np.asarray((_weights(height, step) @ wide) // unit, np.int32)


def _smooth(coarse: Ints, step: int, height: int, width: int) -> Ints:
    """A coarse field, spread."""
    return _spread(np.pad(coarse, 1, mode="edge"), step, height, width)


def _noise(dice: Dice, step: int, height: int, width: int) -> Ints:
    """Smooth noise of about ± 300 around 0 whose features are `step` pixels wide."""
    return _spread(dice.many(-512, 513, -(-height // step) + 2, -(-width // step) + 2).astype(np.int32), step, height, width)


def _ramp(field: Ints, low: int, high: int) -> Ints:
    """0 below `low`, ONE above `high`, linear between."""
    return np.clip((field - low) * ONE // (high - low), 0, ONE)


def _blend(below: Ints, above: Ints | int, weight: Ints) -> Ints:
    return below + ((above - below) * weight >> 8)


# ---- nuclei ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Kind:
    """How nuclei of one kind look and lie; lengths in level-0 pixels, the rest in hundredths."""

    spacing: int
    jitter: int
    """Displacement from the lattice, at most, in hundredths of the spacing."""
    radius: tuple[int, int]
    flat: tuple[int, int]
    """Long over short axis."""
    rough: int
    """Irregularity of the outline."""
    density: tuple[int, int]
    """Haematoxylin, in thousandths."""
    clumps: int
    """Contrast of the chromatin."""
    rim: int
    """How much paler the centre is than the membrane."""
    nucleoli: int = 0


LYMPHOCYTE = _Kind(spacing=17, jitter=28, radius=(6, 8), flat=(100, 125), rough=12, density=(800, 1150), clumps=30, rim=0)
FIBROBLAST = _Kind(spacing=34, jitter=60, radius=(10, 15), flat=(280, 480), rough=15, density=(550, 900), clumps=20, rim=0)
TUMOUR = _Kind(spacing=25, jitter=52, radius=(9, 15), flat=(100, 170), rough=32, density=(420, 950), clumps=45, rim=20, nucleoli=2)
LOOK_ALIKE = _Kind(spacing=25, jitter=22, radius=(9, 12), flat=(100, 120), rough=10, density=(420, 760), clumps=30, rim=35, nucleoli=1)
VARIANTS = 64
DARKEST = 1400


def _nucleus(dice: Dice, kind: _Kind) -> npt.NDArray[np.int16]:
    """One nucleus's haematoxylin (side, side), in the middle of a square of odd side."""
    long = dice.one(16 * kind.radius[0], 16 * kind.radius[1] + 1) / 16
    flat = dice.one(kind.flat[0], kind.flat[1] + 1) / 100
    a, b = long * np.sqrt(flat) if flat < 2 else long, long / np.sqrt(flat) if flat < 2 else long / flat
    reach = int(a * 1.3) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    turn = dice.one(0, DIRECTIONS)
    u, v = (x * COSINES[turn] + y * SINES[turn]) / 4096 / a, (y * COSINES[turn] - x * SINES[turn]) / 4096 / b
    side = 2 * reach + 1
    distance = np.sqrt(u * u + v * v) + _noise(dice, 8, side, side) / 512 * kind.rough / 100
    inside = np.clip((1 - distance) * b / 2.2 + 0.5, 0, 1)
    chromatin = 1 + (_noise(dice, 3, side, side) / 512) * kind.clumps / 50
    pale = 1 - kind.rim / 100 * np.clip((0.9 - distance) * 3, 0, 1)
    density = dice.one(kind.density[0], kind.density[1] + 1) * chromatin * pale
    for _ in range(dice.one(0, kind.nucleoli + 1)):
        at_x, at_y = dice.one(-40, 41) * a / 100, dice.one(-40, 41) * b / 100
        density = density + 450 * np.clip(2.2 - np.sqrt((x - at_x) ** 2 + (y - at_y) ** 2), 0, 1)
    return np.asarray(np.clip(np.rint(inside * density), 0, DARKEST), np.int16)


def _scatter(dice: Dice, kind: _Kind, where: Ints) -> tuple[list[int], list[int]]:
    """Level-0 corners x, y of nuclei on a jittered hexagonal lattice, each kept with the share that the plan says at its place."""
    height, width = where.shape[0] * GRAIN, where.shape[1] * GRAIN
    rise = kind.spacing * 7 // 8
    y, x = (part.ravel().astype(np.int64) for part in np.mgrid[0:height:rise, 0 : width : kind.spacing])
    x = x + (y // rise % 2) * (kind.spacing // 2)
    reach = max(kind.spacing * kind.jitter // 100, 1)
    x = x + dice.many(-reach, reach + 1, len(x))
    y = y + dice.many(-reach, reach + 1, len(y))
    chance = dice.many(0, ONE, len(x))
    kept = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    x, y, chance = x[kept], y[kept], chance[kept]
    chosen = where[y // GRAIN, x // GRAIN] > chance
    return x[chosen].tolist(), y[chosen].tolist()


def _stamp(dice: Dice, haematoxylin: npt.NDArray[np.int16], kind: _Kind, where: Ints) -> None:
    """Draws nuclei of one kind into the padded canvas; where two overlap the darker shows."""
    variants = [_nucleus(dice, kind) for _ in range(VARIANTS)]
    xs, ys = _scatter(dice, kind, where)
    for x, y, variant in zip(xs, ys, dice.many(0, VARIANTS, len(xs)).tolist(), strict=True):
        nucleus = variants[variant]
        left, top = x + MARGIN - len(nucleus) // 2, y + MARGIN - len(nucleus) // 2
        below = haematoxylin[top : top + len(nucleus), left : left + len(nucleus)]
        np.maximum(below, nucleus, out=below)


# ---- tissue ----------------------------------------------------------------------------------------------------------


def _draw(dice: Dice, islands: tuple[Polygon, ...], tumour: tuple[Polygon, ...], look_alike: tuple[Polygon, ...], height: int, width: int) -> tuple[Ints, Ints]:
    """Haematoxylin and eosin (height, width), in thousandths."""
    rows, columns = -(-height // GRAIN), -(-width // GRAIN)

    def noise(step: int) -> Ints:
        return _noise(dice, step, rows, columns)

    def mask(polygons: tuple[Polygon, ...], step: int) -> Ints:
        return _smooth(_raster(polygons, step * GRAIN, height, width), step, rows, columns)

    tissue = _ramp(mask(islands + tumour + look_alike, 8) + noise(32) // 6 + noise(5) // 10, 110, 150)
    depth = mask(islands, 64) + noise(48) // 8
    lesion, alike = _ramp(mask(tumour, 4) + noise(8) // 6, 90, 170), _ramp(mask(look_alike, 4) + noise(12) // 8, 90, 170)
    elsewhere = ONE - np.maximum(lesion, alike)
    capsule = ONE - _ramp(depth, 130, 170)
    septa = ONE - _ramp(np.abs(noise(112)) + np.abs(noise(20)) // 5, 22, 50)
    nests = _ramp(noise(28) + noise(10) // 4, -190, -110)
    stroma = np.maximum(np.maximum(capsule, septa) * elsewhere >> 8, (ONE - nests) * lesion >> 8)
    fat = _ramp(noise(144), 150, 170) * elsewhere * (ONE - _ramp(depth, 190, 230)) >> 16
    fibres = _fibres(noise)

    eosin = 170 + noise(6) // 4 + noise(2) // 4
    haematoxylin = 130 + noise(10) // 4 + noise(3) // 5
    cracks = _ramp(noise(5) + noise(14) // 2, 110, 190)
    eosin, haematoxylin = _blend(eosin, 25, cracks), _blend(haematoxylin, 10, cracks)
    eosin, haematoxylin = _blend(eosin, 230 + noise(5) // 4, alike), _blend(haematoxylin, 110 + noise(6) // 5, alike)
    nest = nests * lesion >> 8
    eosin, haematoxylin = _blend(eosin, 260 + noise(5) // 4, nest), _blend(haematoxylin, 130 + noise(6) // 5, nest)
    eosin, haematoxylin = _blend(eosin, 330 + fibres, stroma), _blend(haematoxylin, 50 + fibres // 8, stroma)
    walls = _vacuoles(dice, rows, columns, fat)
    eosin, haematoxylin = _blend(eosin, walls * 280 // ONE, fat), _blend(haematoxylin, walls * 60 // ONE, fat)

    cellular = tissue * (ONE - fat) >> 8
    canvas = np.zeros((height + 2 * MARGIN, width + 2 * MARGIN), np.int16)
    packed = _ramp(noise(64) + noise(24) // 2, -260, 60) * 110 // ONE + 130
    lymphoid = cellular * (ONE - stroma) >> 8
    _stamp(dice, canvas, LYMPHOCYTE, lymphoid * (packed * elsewhere // ONE + 14 * (ONE - elsewhere) // ONE) >> 8)
    _stamp(dice, canvas, FIBROBLAST, stroma * cellular * 200 // ONE // ONE)
    _stamp(dice, canvas, LOOK_ALIKE, alike * lymphoid * 235 // ONE // ONE)
    _stamp(dice, canvas, TUMOUR, nest * lymphoid * 245 // ONE // ONE)

    canvas = canvas[MARGIN:-MARGIN, MARGIN:-MARGIN]
    haematoxylin = _spread_plan(np.clip(haematoxylin, 0, None) * tissue >> 8, height, width)
    eosin = _spread_plan(np.clip(eosin, 0, None) * tissue >> 8, height, width)
    return np.maximum(haematoxylin, canvas), eosin


def _spread_plan(field: Ints, height: int, width: int) -> Ints:
    return _smooth(field, GRAIN, height, width)


def _fibres(noise: Callable[[int], Ints]) -> Ints:
    """Wavy fibres of about ± 130: the contour lines of smooth noise."""
    height = noise(40) * 3 + noise(12) // 3
    return np.asarray((np.abs(height % 128 - 64) - 32) * 3 + noise(3) // 5)


def _vacuoles(dice: Dice, rows: int, columns: int, fat: Ints) -> Ints:
    """Walls (ONE) between fat cells (0): where the two nearest centres are about equally far."""
    spacing, reach = 26, 34
    nearest, second = (np.full((rows + 2 * reach, columns + 2 * reach), 4 * reach, np.int32) for _ in range(2))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance = np.rint(4 * np.sqrt(x * x + y * y)).astype(np.int32)
    for top in range(0, rows, spacing):
        for left in range(0, columns, spacing):
            at_y, at_x = min(top + dice.one(0, spacing), rows - 1), min(left + dice.one(0, spacing), columns - 1)
            if fat[at_y, at_x] or fat[top, left]:
                window = np.s_[at_y : at_y + 2 * reach + 1, at_x : at_x + 2 * reach + 1]
                second[window] = np.minimum(second[window], np.maximum(nearest[window], distance))
                nearest[window] = np.minimum(nearest[window], distance)
    inner = np.s_[reach:-reach, reach:-reach]
    return ONE - _ramp(second[inner] - nearest[inner], 4, 12)


# ---- light -----------------------------------------------------------------------------------------------------------


def _stained(haematoxylin: Ints, eosin: Ints, stain: Stain) -> Ints:
    """Colour (height, width, 3) of the stained tissue."""
    colours = np.empty((*haematoxylin.shape, 3), np.int32)
    for channel in range(3):
        density = (haematoxylin * stain.haematoxylin[channel] + eosin * stain.eosin[channel]) // 1000
        colours[..., channel] = (np.take(TRANSMITTED, np.minimum(density, 4095)) * stain.glass[channel] + 32768) >> 16
    return colours


def _scan(dice: Dice, colours: Ints) -> Pixels:
    """What the scanner makes of it: slight blur and noise."""
    for axis in (0, 1):
        before, after = (np.take(colours, np.clip(np.arange(colours.shape[axis]) + shift, 0, colours.shape[axis] - 1), axis=axis) for shift in (-1, 1))
        colours = (before + 6 * colours + after + 4) >> 3
    raw = dice.bytes(colours.size).reshape(colours.shape)
    grain = ((raw & 15).astype(np.int32) + (raw >> 4) - 15) // 5
    return np.asarray(np.clip(colours + grain, 0, 255), np.uint8)
