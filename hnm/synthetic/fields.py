"""Fields from which tissue is drawn: random, smooth, or outlines. They are exact on every machine.

A field is an int32 array (height, width); as a weight it runs from 0 to `ONE`. Arithmetic is exact
integers, or float64 with nothing but + - * / and square roots, which IEEE 754 rounds correctly;
randomness is the raw bits of PCG64. So neither the processor nor the version of numpy can change a
pixel.
"""

from functools import reduce
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from shapely import Polygon

Ints: TypeAlias = npt.NDArray[np.int32]
Bytes: TypeAlias = npt.NDArray[np.uint8]

ONE = 256
"""The weight of what is wholly there."""
DIRECTIONS = 32
# rounding leaves nothing of the last bits in which machines' cosines differ
COSINES = np.rint(4096 * np.cos(2 * np.pi * np.arange(DIRECTIONS) / DIRECTIONS)).astype(np.int64)
"""Of evenly spaced directions, in 4096ths."""
SINES = np.roll(COSINES, DIRECTIONS // 4)
SMOOTHINGS = 2


class Dice:
    """Random integers from PCG64's raw bits.

    No new version may change these, unlike numpy's distributions.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def many(self, low: int, high: int, *shape: int) -> npt.NDArray[np.int64]:
        """Returns integers in [low, high), of `shape`."""
        raw = np.asarray(self._bits.random_raw(int(np.prod(shape)))) >> np.uint64(32)
        return low + (raw * np.uint64(high - low) >> np.uint64(32)).astype(np.int64).reshape(shape)

    def one(self, low: int, high: int) -> int:
        """Returns an integer in [low, high)."""
        return int(self.many(low, high, 1)[0])

    def bytes(self, *shape: int) -> Bytes:
        """Returns uniform bytes, of `shape`."""
        count = int(np.prod(shape))
        raw = np.asarray(self._bits.random_raw(-(-count // 8)), "<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


def star(dice: Dice, x: int, y: int, radius_x: int, radius_y: int, roughness: int) -> Polygon:
    """Returns a rounded polygon around (x, y) with integer corners.

    Before smoothing, its radii vary by ± `roughness` 256ths.
    """
    radii = ONE + dice.many(-roughness, roughness + 1, DIRECTIONS)
    for _ in range(SMOOTHINGS):
        radii = (np.roll(radii, 1) + 2 * radii + np.roll(radii, -1)) >> 2
    across = x + (radius_x * radii * COSINES >> 20)
    down = y + (radius_y * radii * SINES >> 20)
    return Polygon(np.column_stack([across, down]))


def raster(polygons: tuple[Polygon, ...], step: int, height: int, width: int) -> Ints:
    """Returns ONE inside polygons with integer corners and 0 outside, every `step` pixels.

    The number of edges to the left of a point tells: it is odd inside.
    """
    field = np.zeros((-(-height // step), -(-width // step)), np.int32)
    for polygon in polygons:
        crossings = np.zeros((len(field), field.shape[1] + 1), np.int32)
        corners = np.asarray(polygon.exterior.coords).astype(np.int64)[:, ::-1].tolist()
        for edge in pairwise(corners):
            (y0, x0), (y1, x1) = sorted(edge)
            # there are no rows for a level edge
            rows = np.arange(max(-(-y0 // step), 0), min(-(-y1 // step), len(field)))
            columns = -(-(x0 * (y1 - y0) + (rows * step - y0) * (x1 - x0)) // ((y1 - y0) * step))
            crossings[rows, np.clip(columns, 0, field.shape[1])] ^= 1
        field |= np.bitwise_xor.accumulate(crossings, axis=1)[:, :-1]
    return ONE * field


def smooth(coarse: Ints, step: int, height: int, width: int) -> Ints:
    """Returns a field, which was sampled every `step` pixels, at every pixel."""
    return _spread(np.pad(coarse, 1, mode="edge"), step, height, width)


def noise(dice: Dice, step: int, height: int, width: int) -> Ints:
    """Returns smooth noise around 0, most of it within ± 300, with features `step` pixels wide."""
    knots = dice.many(-512, 513, -(-height // step) + 2, -(-width // step) + 2)
    return _spread(knots.astype(np.int32), step, height, width)


def ramp(field: Ints, low: int, high: int) -> Ints:
    """Returns 0 up to `low`, ONE from `high`, and a linear rise between."""
    return np.asarray(np.clip((field - low) * ONE // (high - low), 0, ONE), np.int32)


def both(*weights: Ints) -> Ints:
    """Returns the product of weights."""
    return reduce(lambda product, weight: product * weight >> 8, weights)


def blend(below: Ints | int, above: Ints | int, weight: Ints) -> Ints:
    """Returns `above` where `weight` is ONE, `below` where it is 0."""
    return below + ((above - below) * weight >> 8)


def _spread(knots: Ints, step: int, height: int, width: int) -> Ints:
    """Returns a quadratic B-spline (height, width) of knots that lie `step` pixels apart.

    The knots are (rows + 2, columns + 2): one more at each border.
    """
    unit = 8 * step**2
    rows = np.ascontiguousarray((_spline(width, step) @ knots.T).T) // unit
    return np.asarray((_spline(height, step) @ rows) // unit, np.int32)


def _spline(length: int, step: int) -> csr_array:
    """Returns the weights (length, knots) of quadratic B-splines, in 1 / (8 step²).

    They are a sparse matrix of integers, whose products are exact.
    """
    at = np.arange(length)
    phase = 2 * (at % step) + 1
    span = 2 * step
    weights = np.column_stack(
        [(span - phase) ** 2, 2 * span**2 - (span - phase) ** 2 - phase**2, phase**2]
    ).astype(np.int32)
    knots = at[:, None] // step + np.arange(3)
    return csr_array(
        (weights.ravel(), knots.ravel(), 3 * np.arange(length + 1)),
        shape=(length, -(-length // step) + 2),
    )
