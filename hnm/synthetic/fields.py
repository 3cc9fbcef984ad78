"""Fields from which tissue is drawn: random, smooth, or an outline; exact on every machine.

A field is an int32 array (height, width); as a weight it runs from 0 to `ONE`. Arithmetic is exact
integers, or float64 with nothing but + - * / and square roots, which IEEE 754 rounds correctly;
randomness is the raw bits of PCG64. So neither the processor nor the version of numpy can change a
pixel.
"""

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
    """Random integers from PCG64's raw bits, which, unlike numpy's distributions, no new version
    may change.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def many(self, low: int, high: int, *shape: int) -> npt.NDArray[np.int64]:
        """Integers in [low, high) of `shape`."""
        raw = np.asarray(self._bits.random_raw(int(np.prod(shape)))) >> np.uint64(32)
        return low + (raw * np.uint64(high - low) >> np.uint64(32)).astype(np.int64).reshape(shape)

    def one(self, low: int, high: int) -> int:
        """An integer in [low, high)."""
        return int(self.many(low, high, 1)[0])

    def bytes(self, *shape: int) -> Bytes:
        """Uniform bytes of `shape`."""
        count = int(np.prod(shape))
        return (
            np.asarray(self._bits.random_raw(-(-count // 8)))
            .astype("<u8")
            .view(np.uint8)[:count]
            .reshape(shape)
        )


def star(dice: Dice, x: int, y: int, radius_x: int, radius_y: int, roughness: int) -> Polygon:
    """A rounded polygon around (x, y) with integer corners; before smoothing its radii vary by ±
    `roughness` 256ths.
    """
    radii = ONE + dice.many(-roughness, roughness + 1, DIRECTIONS)
    for _ in range(SMOOTHINGS):
        radii = (np.roll(radii, 1) + 2 * radii + np.roll(radii, -1)) >> 2
    return Polygon(
        np.column_stack(
            [x + (radius_x * radii * COSINES >> 20), y + (radius_y * radii * SINES >> 20)]
        )
    )


def raster(polygons: tuple[Polygon, ...], step: int, height: int, width: int) -> Ints:
    """ONE inside polygons with integer corners, 0 outside, sampled every `step` pixels: parity of
    the edges to the left.
    """
    field = np.zeros((-(-height // step), -(-width // step)), np.int32)
    for polygon in polygons:
        crossings = np.zeros((len(field), field.shape[1] + 1), np.int32)
        corners = np.asarray(polygon.exterior.coords).astype(np.int64)[:, ::-1].tolist()
        for edge in pairwise(corners):
            (y0, x0), (y1, x1) = sorted(edge)
            rows = np.arange(
                max(-(-y0 // step), 0), min(-(-y1 // step), len(field))
            )  # none for a level edge
            columns = -(-(x0 * (y1 - y0) + (rows * step - y0) * (x1 - x0)) // ((y1 - y0) * step))
            crossings[rows, np.clip(columns, 0, field.shape[1])] ^= 1
        field |= np.bitwise_xor.accumulate(crossings, axis=1)[:, :-1]
    return ONE * field


def smooth(coarse: Ints, step: int, height: int, width: int) -> Ints:
    """A field that was sampled every `step` pixels, at every pixel."""
    return _spread(np.pad(coarse, 1, mode="edge"), step, height, width)


def noise(dice: Dice, step: int, height: int, width: int) -> Ints:
    """Smooth noise around 0, most of it within ± 300, whose features are `step` pixels wide."""
    return _spread(
        dice.many(-512, 513, -(-height // step) + 2, -(-width // step) + 2).astype(np.int32),
        step,
        height,
        width,
    )


def ramp(field: Ints, low: int, high: int) -> Ints:
    """0 up to `low`, ONE from `high`, linear between."""
    return np.asarray(np.clip((field - low) * ONE // (high - low), 0, ONE), np.int32)


def both(*weights: Ints) -> Ints:
    """Product of weights."""
    product = weights[0]
    for weight in weights[1:]:
        product = product * weight >> 8
    return product


def blend(below: Ints, above: Ints | int, weight: Ints) -> Ints:
    """`above` where `weight` is ONE, `below` where it is 0."""
    return below + ((above - below) * weight >> 8)


def _spread(knots: Ints, step: int, height: int, width: int) -> Ints:
    """Knots (rows + 2, columns + 2) that lie `step` pixels apart as a quadratic B-spline (height,
    width).
    """
    unit = 8 * step**2
    rows = np.ascontiguousarray((_spline(width, step) @ knots.T).T) // unit
    return np.asarray((_spline(height, step) @ rows) // unit, np.int32)


def _spline(length: int, step: int) -> csr_array:
    """Weights (length, knots), in 1 / (8 step²), of quadratic B-splines: a sparse matrix of
    integers, whose products are exact.
    """
    at = np.arange(length)
    phase, span = 2 * (at % step) + 1, 2 * step
    weights = np.column_stack(
        [(span - phase) ** 2, 2 * span**2 - (span - phase) ** 2 - phase**2, phase**2]
    ).astype(np.int32)
    knots = at[:, None] // step + np.arange(3)
    return csr_array(
        (weights.ravel(), knots.ravel(), 3 * np.arange(length + 1)),
        shape=(length, -(-length // step) + 2),
    )
