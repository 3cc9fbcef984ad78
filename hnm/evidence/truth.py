"""What is true of a tile, from its slide's label and from the regions that people drew. Only `evaluate` asks."""

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from hnm.evidence.metrics import Detections, Floats
from hnm.params import Evaluate
from hnm.slides.annotations import Region, covered_shares, joined

LESION, NORMAL, UNCLEAR = "lesion", "normal", "unclear"


def tile_truth(
    tiles: pd.DataFrame, labels: Mapping[str, int], annotations: Mapping[str, Collection[Region]], aspects: Mapping[str, float], section: Evaluate
) -> pd.DataFrame:
    """The truth of each tile of the labelled slides.

    Args:
        tiles: a `TILES` table, or one with its columns slide_id, tile, x, y and side.
        labels: slide id -> 0 or 1; tiles of other slides are dropped.
        annotations: slide id -> its regions, for the slides that have any.
        aspects: slide id -> height of a tile over its width, in level-0 pixels.
        section: which class names are lesion, and how much of a tile they must cover.

    Returns:
        slide_id, tile, `truth` (`lesion`, `normal`, or `unclear` where nobody can tell: a tile on a lesion's border,
        or of a positive slide without a lesion drawn), and `region`: `lesion`, or the other class that was drawn over
        most of the tile, if at least over `lesion_share`; "" where none was, None where the slide has no annotation.
    """
    parts = [
        _slide_truth(own, labels[slide_id], annotations.get(slide_id), aspects[slide_id], section)
        for slide_id, own in ((str(key), own) for key, own in tiles.groupby("slide_id", sort=True))
        if slide_id in labels
    ]
    columns = ["slide_id", "tile", "truth", "region"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def detect(
    tiles: pd.DataFrame, labels: Mapping[str, int], annotations: Mapping[str, Collection[Region]], aspects: Mapping[str, float], section: Evaluate
) -> Detections:
    """Peaks against lesions, on the slides whose lesions are known: the negative ones, and the positive ones with lesions drawn.

    A peak is a tile that no neighbour, diagonal ones included, outscores (of equal ones the first tile). Lesions are
    the separate parts of the union of the lesion regions.

    Args:
        tiles: slide_id, patient_id, x, y, side and score.
        labels: as for `tile_truth`.
        annotations: as for `tile_truth`.
        aspects: as for `tile_truth`.
        section: which class names are lesion.
    """
    lesion_scores, false_scores, patients = [], [], []
    for slide_id, own in ((str(key), own) for key, own in tiles.groupby("slide_id", sort=True)):
        lesions = shapely.get_parts(joined([r.geometry for r in annotations.get(slide_id, ()) if is_lesion(r.name, section)]))
        if labels[slide_id] == 1 and not len(lesions):
            continue
        found = own[peaks(own, aspects[slide_id])]
        x, y, width, scores = (found[column].to_numpy(np.float64) for column in ("x", "y", "side", "score"))
        touched = shapely.intersects(shapely.box(x, y, x + width, y + width * aspects[slide_id])[:, None], lesions[None, :] if labels[slide_id] else [])
        lesion_scores.append(np.where(touched, scores[:, None], -np.inf).max(axis=0, initial=-np.inf))
        false_scores.append(scores[~touched.any(axis=1)])
        patients.append(str(own["patient_id"].iloc[0]))
    of_slides = np.array(patients, dtype=str)
    of_lesions, of_false = (np.repeat(of_slides, [len(scores) for scores in kind]) for kind in (lesion_scores, false_scores))
    return Detections(np.concatenate([np.zeros(0), *lesion_scores]), of_lesions, np.concatenate([np.zeros(0), *false_scores]), of_false, of_slides)


def peaks(tiles: pd.DataFrame, aspect: float) -> NDArray[np.bool_]:
    """`(tiles,)`: whether no neighbour outscores a tile of this slide; of equal neighbours the first is the peak."""
    places = tiles[["x", "y"]].to_numpy() / (tiles["side"].to_numpy()[:, None] * [1, aspect])
    order = np.argsort(np.argsort(-tiles["score"].to_numpy(), kind="stable"))
    neighbours = cKDTree(places).query_pairs(1.5, p=np.inf, output_type="ndarray")
    is_peak = np.ones(len(tiles), dtype=bool)
    is_peak[np.where(order[neighbours[:, 0]] < order[neighbours[:, 1]], neighbours[:, 1], neighbours[:, 0])] = False
    return is_peak


def is_lesion(name: str, section: Evaluate) -> bool:
    """Whether regions of this class are lesions."""
    return name.casefold() in {lesion.casefold() for lesion in section.lesion_names}


def _slide_truth(tiles: pd.DataFrame, label: int, regions: Collection[Region] | None, aspect: float, section: Evaluate) -> pd.DataFrame:
    lesion = _shares(tiles, regions or [], section.lesion_names, aspect)
    drawn = any(is_lesion(region.name, section) for region in regions or [])
    truth = np.select([np.full(len(tiles), label == 0), lesion >= section.lesion_share, (lesion == 0) & drawn], [NORMAL, LESION, NORMAL], UNCLEAR)
    return tiles[["slide_id", "tile"]].assign(truth=truth, region=None if regions is None else _regions(tiles, regions, lesion, aspect, section))


def _regions(tiles: pd.DataFrame, regions: Collection[Region], lesion: Floats, aspect: float, section: Evaluate) -> NDArray[np.object_]:
    names = sorted({region.name for region in regions if not is_lesion(region.name, section)})
    just_too_little = np.full(len(tiles), np.nextafter(section.lesion_share, 0))
    largest = np.stack([just_too_little, *(_shares(tiles, regions, [name], aspect) for name in names)]).argmax(axis=0)
    return np.where(lesion >= section.lesion_share, LESION, np.array(["", *names], dtype=object)[largest])


def _shares(tiles: pd.DataFrame, regions: Collection[Region], names: Collection[str], aspect: float) -> Floats:
    width = float(tiles["side"].iloc[0])
    return covered_shares(regions, names, tiles["x"].to_numpy(), tiles["y"].to_numpy(), width, width * aspect)
