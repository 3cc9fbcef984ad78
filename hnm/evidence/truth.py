"""What is true of a tile, from its slide's label and from the regions that people drew. Only
`evaluate` asks.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from hnm.evidence.numbers.predictions import Floats
from hnm.evidence.numbers.tile_metrics import Detections
from hnm.params import Evaluate
from hnm.slides.annotations import Region, covered_shares, joined, names_lesion

LESION = "lesion"
NORMAL = "normal"
UNCLEAR = "unclear"
NAMED = 10
"""Slides that a text names at most."""


@dataclass(frozen=True)
class DrawnClass:
    """One class of regions that people drew."""

    name: str
    regions: int
    slides: int
    is_lesion: bool


def tile_truth(
    tiles: pd.DataFrame,
    labels: Mapping[str, int],
    annotations: Mapping[str, Collection[Region]],
    aspects: Mapping[str, float],
    section: Evaluate,
) -> pd.DataFrame:
    """The truth of each tile of the labelled slides.

    Args:
        tiles: a `TILES` table, or one with its columns slide_id, tile, x, y and side.
        labels: slide id -> 0 or 1; tiles of other slides are dropped.
        annotations: slide id -> its regions, for the slides that have any.
        aspects: slide id -> height of a tile over its width, in level-0 pixels.
        section: which class names are lesion, and how much of a tile they must cover.

    Returns:
        slide_id, tile, `truth` (`lesion`, `normal`, or `unclear` where nobody can tell: a tile on a
        lesion's border, of a positive slide without a lesion drawn, or under a lesion that is drawn
        on a negative slide), and `region`: `lesion`, or the other class that was drawn over most of
        the tile, if at least over `lesion_share`; "" where none was, None where the slide has no
        annotation.
    """
    parts = [
        _slide_truth(
            slide_tiles, labels[slide_id], annotations.get(slide_id), aspects[slide_id], section
        )
        for slide_id, slide_tiles in _by_slide(tiles)
        if slide_id in labels
    ]
    columns = ["slide_id", "tile", "truth", "region"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def detect(
    tiles: pd.DataFrame,
    labels: Mapping[str, int],
    annotations: Mapping[str, Collection[Region]],
    aspects: Mapping[str, float],
    section: Evaluate,
) -> Detections:
    """Peaks against lesions, on the slides whose lesions are known: the negative ones, and the
    positive ones with lesions drawn.

    A peak is a tile that no neighbour, diagonal ones included, outscores (of equal ones the first
    tile). Lesions are the separate parts of the union of the lesion regions. Those of a negative
    slide contradict its label, so that they count for nothing, and neither do the peaks on them.

    Args:
        tiles: slide_id, patient_id, x, y, side and score.
        labels: as for `tile_truth`.
        annotations: as for `tile_truth`.
        aspects: as for `tile_truth`.
        section: which class names are lesion.
    """
    slides = []
    for slide_id, slide_tiles in _by_slide(tiles):
        lesions = shapely.get_parts(
            joined(
                [
                    region.geometry
                    for region in annotations.get(slide_id, ())
                    if is_lesion(region.name, section)
                ]
            )
        )
        if len(lesions) or labels[slide_id] == 0:
            lesion_scores, false_scores = _scores_of_peaks(slide_tiles, lesions, aspects[slide_id])
            slides.append(
                _SlideDetections(
                    str(slide_tiles["patient_id"].iloc[0]),
                    lesion_scores if labels[slide_id] else lesion_scores[:0],
                    false_scores,
                )
            )
    none = np.zeros(0)
    patients = np.array([slide.patient for slide in slides], dtype=str)
    return Detections(
        np.concatenate([none, *(slide.lesion_scores for slide in slides)]),
        np.repeat(patients, [len(slide.lesion_scores) for slide in slides]),
        np.concatenate([none, *(slide.false_scores for slide in slides)]),
        np.repeat(patients, [len(slide.false_scores) for slide in slides]),
        patients,
    )


@dataclass(frozen=True)
class _SlideDetections:
    patient: str
    lesion_scores: Floats
    false_scores: Floats


def _scores_of_peaks(
    tiles: pd.DataFrame, lesions: NDArray[np.object_], aspect: float
) -> tuple[Floats, Floats]:
    """Returns the score of the best peak on each of the slide's lesions (-inf where none touches
    it), and the scores of the peaks that touch no lesion.
    """
    at_peaks = tiles[peaks(tiles, aspect)]
    x, y, width, scores = (
        at_peaks[column].to_numpy(np.float64) for column in ("x", "y", "side", "score")
    )
    outlines = shapely.box(x, y, x + width, y + width * aspect)
    touched = shapely.intersects(outlines[:, None], lesions[None, :])
    best = np.where(touched, scores[:, None], -np.inf).max(axis=0, initial=-np.inf)
    return best, scores[~touched.any(axis=1)]


def peaks(tiles: pd.DataFrame, aspect: float) -> NDArray[np.bool_]:
    """`(tiles,)`: whether no neighbour outscores a tile of this slide; of equal neighbours the
    first is the peak.
    """
    places = tiles[["x", "y"]].to_numpy() / (tiles["side"].to_numpy()[:, None] * [1, aspect])
    rank = np.argsort(np.argsort(-tiles["score"].to_numpy(), kind="stable"))
    neighbours = cKDTree(places).query_pairs(1.5, p=np.inf, output_type="ndarray")
    lower = rank[neighbours].argmax(axis=1)
    is_peak = np.ones(len(tiles), dtype=bool)
    is_peak[np.take_along_axis(neighbours, lower[:, None], axis=1)] = False
    return is_peak


def is_lesion(name: str, section: Evaluate) -> bool:
    """Whether regions of this class are lesions."""
    return names_lesion(name, section.lesion_names)


def drawn_classes(
    annotations: Mapping[str, Collection[Region]], section: Evaluate
) -> list[DrawnClass]:
    """The classes that were drawn, the one with the most regions first."""
    regions = Counter(region.name for drawn in annotations.values() for region in drawn)
    slides = Counter(
        name for drawn in annotations.values() for name in {region.name for region in drawn}
    )
    order = sorted(regions, key=lambda name: (-regions[name], name))
    return [
        DrawnClass(name, regions[name], slides[name], is_lesion(name, section)) for name in order
    ]


def contradictions(
    annotations: Mapping[str, Collection[Region]], labels: Mapping[str, int], section: Evaluate
) -> list[str]:
    """What to say of slides whose label and regions contradict each other; nothing where they
    agree.
    """
    silent: list[str] = []
    wrong: list[str] = []
    for slide_id, regions in sorted(annotations.items()):
        counts = Counter(region.name for region in regions)
        has_lesions = any(is_lesion(name, section) for name in counts)
        classes = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
        if labels.get(slide_id) == 1 and not has_lesions:
            silent.append(f"{slide_id} ({classes or 'no region'})")
        elif labels.get(slide_id) == 0 and has_lesions:
            wrong.append(f"{slide_id} ({classes})")
    texts = []
    if wrong:
        texts.append(
            f"{len(wrong)} annotated slides of label 0 have lesions drawn on them:"
            f" {_listed(wrong)}; mining takes such tumour for the hardest negatives, so correct the"
            " label or the annotation in the manifest, or veto the tiles"
        )
    if silent:
        texts.append(
            f"{len(silent)} annotated slides of label 1 have no lesion among their regions:"
            f" {_listed(silent)}; the truth of their tiles is unclear, so name the classes that are"
            f" lesions in evaluate.lesion_names (now {', '.join(section.lesion_names)}), or draw"
            " the lesions"
        )
    return texts


def _by_slide(tiles: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    for slide_id, slide_tiles in tiles.groupby("slide_id", sort=True):
        yield str(slide_id), slide_tiles


def _listed(slides: list[str]) -> str:
    """The first slides, and how many more there are."""
    more = f" and {len(slides) - NAMED} more" if len(slides) > NAMED else ""
    return ", ".join(slides[:NAMED]) + more


def _slide_truth(
    tiles: pd.DataFrame,
    label: int,
    regions: Collection[Region] | None,
    aspect: float,
    section: Evaluate,
) -> pd.DataFrame:
    lesions = [region for region in regions or [] if is_lesion(region.name, section)]
    lesion = _shares(tiles, lesions, aspect)
    if label == 0:
        truth = np.where(lesion == 0, NORMAL, UNCLEAR)
    else:
        truth = np.select(
            [lesion >= section.lesion_share, (lesion == 0) & bool(lesions)],
            [LESION, NORMAL],
            UNCLEAR,
        )
    return tiles[["slide_id", "tile"]].assign(
        truth=truth,
        region=None if regions is None else _regions(tiles, regions, lesion, aspect, section),
    )


def _regions(
    tiles: pd.DataFrame,
    regions: Collection[Region],
    lesion: Floats,
    aspect: float,
    section: Evaluate,
) -> NDArray[np.object_]:
    names = sorted({region.name for region in regions if not is_lesion(region.name, section)})
    just_too_little = np.full(len(tiles), np.nextafter(section.lesion_share, 0))
    largest = np.stack(
        [
            just_too_little,
            *(_shares(tiles, [r for r in regions if r.name == name], aspect) for name in names),
        ]
    ).argmax(axis=0)
    return np.where(
        lesion >= section.lesion_share, LESION, np.array(["", *names], dtype=object)[largest]
    )


def _shares(tiles: pd.DataFrame, regions: Collection[Region], aspect: float) -> Floats:
    """(tiles,): share of each tile that `regions` cover together."""
    width = float(tiles["side"].iloc[0])
    return covered_shares(
        regions,
        {region.name for region in regions},
        tiles["x"].to_numpy(),
        tiles["y"].to_numpy(),
        width,
        width * aspect,
    )
