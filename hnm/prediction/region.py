"""The region of a slide that a model takes for positive, and GeoJSON of it and of the top tiles."""

from typing import Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy import ndimage

from hnm.mining.export import tile_feature
from hnm.slides.annotations import Feature, feature_collection

REACH = 1.0
"""Standard deviation, in tiles, of the Gaussian that smooths scores. With it a single high tile
among low ones makes no region.
"""
ROUNDING = 0.25
"""Radius that corners are rounded by, in tiles."""
COLOUR = [200, 0, 0]
"""Red, green and blue of the region and of the top tiles."""
TOP_TILES = 20
TILE_CALLED = 0.5
"""The smoothed tile score from which on a place belongs to the region: that of the tile logit 0."""


def smoothed(
    scores: NDArray[np.float32], columns: NDArray[np.int64], rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns `(tiles,)`: the mean score around each tile, weighted by a Gaussian of `REACH` tiles.
    Places without a tile weigh nothing.
    """
    grids = np.zeros((2, int(rows.max()) + 1, int(columns.max()) + 1))
    grids[0, rows, columns] = scores
    grids[1, rows, columns] = 1
    blurred, weights = (
        ndimage.gaussian_filter(grid, REACH, mode="constant", truncate=3)[rows, columns]
        for grid in grids
    )
    return np.asarray(blurred / weights)


def positive_region(tiles: pd.DataFrame, aspect: float) -> shapely.MultiPolygon:
    """Returns the area where the smoothed tile scores are at least `TILE_CALLED`, with round
    corners, in whole level-0 pixels. It is empty where no score is so high.

    Args:
        tiles: the table `TILE_SCORES` of one slide.
        aspect: height of a tile over its width, in level-0 pixels.
    """
    side = int(tiles["side"].iloc[0])
    size = np.array([side, side * aspect])
    corners = tiles[["x", "y"]].to_numpy()
    columns, rows = (places(corners[:, axis], size[axis]) for axis in (0, 1))
    chosen = corners[smoothed(tiles["score"].to_numpy(), columns, rows) >= TILE_CALLED]
    # corners are rounded to whole pixels: a pixel more closes the gaps between neighbours
    union = shapely.union_all(shapely.box(*chosen.T, *(chosen + np.ceil(size) + 1).T))
    reach = ROUNDING * side
    rounded = union.buffer(reach).buffer(-2 * reach).buffer(reach)
    polygons = [
        part
        for part in shapely.get_parts(shapely.set_precision(rounded, 1.0))
        if part.geom_type == "Polygon" and not part.is_empty
    ]
    return shapely.MultiPolygon([shapely.geometry.polygon.orient(part) for part in polygons])


def places(corners: NDArray[np.int64], step: float) -> NDArray[np.int64]:
    """Returns `(tiles,)`: the column (or row) of each tile, from its corner along one axis.

    `step`, the side of a tile, may be off by the rounding of corners to whole pixels. The last
    column, which is moved in to end with the slide, counts as a column however little of it lies
    behind the one before.
    """
    distinct = np.unique(corners)
    gaps = np.maximum(np.rint(np.diff(distinct) / step), 1)
    numbers = np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64)
    return np.asarray(numbers[np.searchsorted(distinct, corners)])


def prediction_geojson(
    tiles: pd.DataFrame, aspect: float, class_name: str, corner: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    """Returns a FeatureCollection that QuPath opens: each part of the positive region, then the
    `TOP_TILES` tiles of the highest scores.

    Args:
        tiles: the table `TILE_SCORES` of one slide.
        aspect: height of a tile over its width, in level-0 pixels.
        class_name: of the region.
        corner: the upper left corner of the scan in level-0 pixels, which QuPath counts from.
    """
    features = [
        Feature(part, class_name, f"region {number}", COLOUR)
        for number, part in enumerate(shapely.get_parts(positive_region(tiles, aspect)), 1)
    ]
    best = tiles.sort_values(["score", "tile"], ascending=[False, True]).head(TOP_TILES)
    for rank, tile in enumerate(best.to_dict("records"), 1):
        measurements = {"score": round(float(tile["score"]), 6), "rank": rank}
        features.append(tile_feature(tile, aspect, "top tile", COLOUR, measurements))
    return feature_collection(features, "bounds", corner)
