"""The demo cohort: painted slides as TIFF pyramids in Aperio's layout, with manifest and truth."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
import shapely
import tifffile

from hnm.errors import CohortError
from hnm.files import whole
from hnm.processes import worker_pool
from hnm.seeds import seed_of
from hnm.slides.annotations import Region, write_annotation
from hnm.slides.workers import worker_count
from hnm.synthetic.fields import Bytes, Dice
from hnm.synthetic.painting import Painting, Stain, mark_with_pen, paint_glass, paint_tissue

MPP = 0.5
MAGNIFICATION = 20
TILE_PX = 256
LEVEL_STEP = 4
JPEG_QUALITY = 85
FEWEST_SLIDES = 8
LEAST_PX = 512
Split: TypeAlias = Literal["train", "validation", "test"]
Content: TypeAlias = Literal["tissue", "glass", "tissue and pen"]
ODD_SLIDES: dict[int, Content] = {1: "glass", 2: "tissue and pen"}
"""The content of the last negative slide, and of the last but one."""


@dataclass(frozen=True)
class _Subject:
    """One slide to be made."""

    slide_id: str
    patient_id: str
    label: int
    split: Split
    content: Content
    tumour_share: float
    look_alike_share: float


def make_demo_cohort(
    out: Path, *, seed: int = 0, slides: int = 72, width_px: int = 1568, odd_slides: bool = True
) -> Path:
    """Makes a demo cohort under the folder `out`, and returns its manifest, `out`/slides.csv.

    Half of the slides have tumour. All but the empty glass have an annotation, which may hold no
    polygon: GeoJSON in level-0 pixels, whose `properties.classification.name` is "tumour" or
    "look-alike". Look-alikes are large crowded cells, yet benign, in about half of the slides of
    either label. Equal arguments give equal bytes, whatever the machine or HNM_WORKERS.

    Args:
        out: gets slides/<slide_id>.svs, annotations/<slide_id>.geojson and slides.csv (slide_id,
            path, label, patient_id, split, annotation; paths relative to `out`). Files that are
            there are overwritten.
        seed: another seed makes another cohort.
        slides: how many, even and at least 8; about 2/9 each go to validation and test. Two train
            patients have two slides.
        width_px: level-0 width of the widest slide at 0.5 µm per pixel, at least 512; a slide of
            768 takes about 0.3 s.
        odd_slides: whether one negative train slide is empty glass (its place in a cohort is
            quarantine) and another has pen marks.

    Raises:
        CohortError: `slides` or `width_px` is out of range.
    """
    if slides < FEWEST_SLIDES or slides % 2:
        raise CohortError(
            f"a demo cohort of slides={slides} cannot be split with both labels in each; ask for an"
            f" even number from {FEWEST_SLIDES}"
        )
    if width_px < LEAST_PX:
        raise CohortError(
            f"width_px={width_px} leaves no room for tissue; ask for at least {LEAST_PX}"
        )
    subjects = _subjects(seed, slides, odd_slides)
    make = partial(_make_slide, out.absolute(), seed, width_px)
    with worker_pool(worker_count(), [__name__]) as pool:
        list(pool.map(make, subjects).result())  # raises what a worker raised
    manifest = pd.DataFrame(
        {
            "slide_id": subject.slide_id,
            "path": f"slides/{subject.slide_id}.svs",
            "label": subject.label,
            "patient_id": subject.patient_id,
            "split": subject.split,
            "annotation": (
                "" if subject.content == "glass" else f"annotations/{subject.slide_id}.geojson"
            ),
        }
        for subject in subjects
    )
    with whole(out / "slides.csv") as temporary:
        manifest.to_csv(temporary, index=False, lineterminator="\n")
    return out / "slides.csv"


def _subjects(seed: int, slides: int, odd_slides: bool) -> list[_Subject]:
    """Returns the slides to be made, sorted by id; labels and splits are dealt to shuffled ids.

    Tumour is 7 to 35 % of a positive slide's tissue.
    """
    dice = Dice(seed_of(seed, "demo", "subjects"))
    held_out = round(slides / 9)
    pairs = slides // 2
    order = np.argsort(dice.many(0, 1 << 32, slides), kind="stable").tolist()
    subjects = []
    for place, number in enumerate(order):
        label, pair = divmod(place, pairs)
        # the last two of each label, both train, are one patient's
        owner = place - 1 if pair == pairs - 1 else place
        # the golden ratio's multiples: few slides, of one split, already have small and large ones
        evenly = pair * 55 % 89 / 88
        is_odd = odd_slides and label == 0
        look_alike = dice.one(-60, 60) if label else dice.one(-80, 120)
        subjects.append(
            _Subject(
                slide_id=f"demo-{number + 1:03d}",
                patient_id=f"patient-{order[owner] + 1:03d}",
                label=label,
                split=(
                    "test" if pair < held_out else "validation" if pair < 2 * held_out else "train"
                ),
                content=ODD_SLIDES.get(pairs - pair, "tissue") if is_odd else "tissue",
                tumour_share=label * (0.07 + 0.28 * evenly * evenly),
                look_alike_share=max(look_alike, 0) / 1000,
            )
        )
    return sorted(subjects, key=lambda subject: subject.slide_id)


def _make_slide(out: Path, seed: int, width_px: int, subject: _Subject) -> None:
    """Writes one slide and, unless it is glass, its truth."""
    painting = _paint(seed, width_px, subject)
    with whole(out / "slides" / f"{subject.slide_id}.svs") as temporary:
        _write_svs(painting.pixels, temporary)
    if subject.content != "glass":
        height, width, _ = painting.pixels.shape
        scan = shapely.box(0, 0, width, height)
        polygons = {"tumour": painting.tumour, "look-alike": painting.look_alike}
        regions = [
            Region(name, part)
            for name, drawn in polygons.items()
            for polygon in drawn
            for part in shapely.get_parts(polygon.intersection(scan))
        ]
        write_annotation(regions, out / "annotations" / f"{subject.slide_id}.geojson")


def _paint(seed: int, width_px: int, subject: _Subject) -> Painting:
    dice = Dice(seed_of(seed, "demo", "slide", subject.slide_id))
    stain = Stain.drawn(Dice(seed_of(seed, "demo", "stain", subject.patient_id)))
    height = width_px * dice.one(80, 96) // 100
    width = width_px * dice.one(90, 101) // 100
    if subject.content == "glass":
        return paint_glass(dice, stain, height, width)
    painting = paint_tissue(
        dice,
        stain,
        height,
        width,
        tumour_share=subject.tumour_share,
        look_alike_share=subject.look_alike_share,
    )
    return mark_with_pen(dice, painting) if subject.content == "tissue and pen" else painting


def _write_svs(pixels: Bytes, path: Path) -> None:
    """Writes `pixels` (height, width, 3) in Aperio's layout.

    Level 0 comes first, then a thumbnail in strips, then levels of a quarter of the side each.
    """
    height, width, _ = pixels.shape
    levels = [pixels]
    while min(levels[-1].shape[:2]) >= TILE_PX:
        levels.append(_reduced(levels[-1], LEVEL_STEP))
    head = f"Aperio Image Library v11.2.1 \r\n{width}x{height}"
    tiled = f"[0,0 {width}x{height}] ({TILE_PX}x{TILE_PX})"
    properties = f"AppMag = {MAGNIFICATION}|MPP = {MPP:.4f}"
    with tifffile.TiffWriter(path, byteorder="<") as file:
        write = partial(
            file.write,
            photometric="rgb",
            subsampling=(2, 2),
            compression="jpeg",
            compressionargs={"level": JPEG_QUALITY},
            metadata=None,
            software=False,
        )
        for number, level in enumerate(levels):
            shrunk = f" -> {level.shape[1]}x{level.shape[0]}" if number else ""
            write(
                _tiles(level),
                shape=level.shape,
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                description=f"{head} {tiled}{shrunk} JPEG/RGB Q={JPEG_QUALITY}|{properties}",
            )
            if not number:
                write(
                    levels[1],
                    rowsperstrip=len(levels[1]),
                    description=(
                        f"{head} -> {levels[1].shape[1]}x{levels[1].shape[0]} - |{properties}"
                    ),
                )


def _tiles(pixels: Bytes) -> Iterator[Bytes]:
    """Yields tiles row by row.

    Those that reach over the border repeat its pixels, so that no black rings into the image.
    """
    height, width, _ = pixels.shape
    padded = np.pad(pixels, ((0, -height % TILE_PX), (0, -width % TILE_PX), (0, 0)), mode="edge")
    for top in range(0, height, TILE_PX):
        for left in range(0, width, TILE_PX):
            yield np.ascontiguousarray(padded[top : top + TILE_PX, left : left + TILE_PX])


def _reduced(pixels: Bytes, step: int) -> Bytes:
    """Returns the means of step x step pixels, without what is left over at the border."""
    height = pixels.shape[0] // step
    width = pixels.shape[1] // step
    blocks = pixels[: height * step, : width * step].reshape(height, step, width, step, 3)
    return np.asarray(
        (blocks.sum(axis=(1, 3), dtype=np.uint32) + step * step // 2) // (step * step), np.uint8
    )
