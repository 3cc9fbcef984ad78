"""The identity of a slide: what its file says of itself, and which mask it has, without a look at
pixels.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from hnm.causes import keys_of
from hnm.errors import CohortError, SlideError
from hnm.files import read_bounded, write_json
from hnm.slides.cutting.masks import Placement, mask_bytes, placement_of
from hnm.slides.mpp import slide_mpp
from hnm.slides.reading.canvas import Box, Canvas, OriginParam
from hnm.slides.reading.failures import StorageError
from hnm.slides.reading.reader import OpenSlideReader
from hnm.slides.reading.remote import fetched, version_of
from hnm.slides.reading.slide import Mpp
from hnm.slides.reading.urls import is_url
from hnm.store import Store

MOST_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class SlideSource:
    """Where a slide lies, and what somebody says of it."""

    slide_id: str
    source: str
    """Absolute path or URL of its file."""
    mpp: float | None
    """µm per pixel that override the file's."""
    mask: Path | None = None
    mpp_from_objective: bool = False
    """Whether the objective power may tell the µm per pixel of a file that does not."""
    headers: Store | None = None
    """Holds the headers of files at URLs, so that an unchanged file is not fetched again."""
    origin: OriginParam = "auto"
    """As `cohort.origin`."""


@dataclass(frozen=True)
class SlideHeader:
    """What a slide's file says of itself."""

    vendor: str
    mpp: Mpp | None
    objective_power: float | None
    dimensions: tuple[int, int]
    bounds: Box
    fingerprint: str


@dataclass(frozen=True)
class Identity:
    """What a cohort holds of a slide's file."""

    vendor: str
    mpp: Mpp
    objective_power: float | None
    """Where `mpp` comes from it, and not from the file or the manifest."""
    canvas: Canvas
    fingerprint: str
    mask_digest: str
    """Empty where the slide has no mask from elsewhere."""
    mask_placement: Placement


def identify(slide: SlideSource) -> Identity:
    """Opens a slide and returns its identity.

    Raises:
        SlideError: what is wrong with it, of step `open`, `mpp` or, where its mask is none,
        `tissue`. MachineError: the machine or the storage does not give the slide or its mask.
    """
    header = _header_of(slide)
    mpp = slide_mpp(
        header.mpp,
        header.objective_power,
        given=slide.mpp,
        from_objective=slide.mpp_from_objective,
    )
    states_mpp = header.mpp is not None or slide.mpp is not None
    canvas = Canvas(*header.dimensions, header.bounds, slide.origin)
    mask_digest = ""
    placement = Placement()
    if slide.mask is not None:
        mask = mask_bytes(slide.mask)
        mask_digest = hashlib.sha256(mask).hexdigest()
        placement = placement_of(mask, slide.mask, canvas, f"slide {slide.slide_id}")
    return Identity(
        header.vendor,
        mpp,
        None if states_mpp else header.objective_power,
        canvas,
        header.fingerprint,
        mask_digest,
        placement,
    )


def check_twins(fingerprints: Mapping[str, str]) -> None:
    """Raises `CohortError` where two slide ids are copies of one file.

    Such a file would count twice, or be in two splits.
    """
    first: dict[str, str] = {}
    for slide_id, fingerprint in sorted(fingerprints.items()):
        if (twin := first.setdefault(fingerprint, slide_id)) != slide_id:
            raise CohortError(
                f"slides {twin} and {slide_id} are copies of one file (equal fingerprints); list"
                " one of them"
            )


def _header_of(slide: SlideSource) -> SlideHeader:
    if is_url(slide.source) and slide.headers:
        return _header_at_url(slide.source, slide.headers)
    return _read_header(slide.source)


def _read_header(source: str) -> SlideHeader:
    with fetched(source, stays=True) as path, OpenSlideReader(path) as slide:  # it is cut next
        return SlideHeader(
            slide.vendor,
            slide.mpp,
            slide.objective_power,
            slide.dimensions,
            slide.bounds,
            slide.fingerprint(),
        )


def _header_at_url(url: str, store: Store) -> SlideHeader:
    """Returns the header from `store` where the URL has the size and entity tag that it had."""
    version = version_of(url)
    if not version.etag:  # a file that was replaced by one of equal size could not be told from it
        return _read_header(url)
    key = keys_of("hnm.slides.reading.reader")(url=url, size=version.size, etag=version.etag)
    path = store.path("stated", key, ".json")
    header = _stored_header(path)
    if header is None:
        header = _read_header(url)
        # A later file may have been fetched, and would be stored under the earlier one's name.
        if version_of(url) != version:
            raise StorageError(f"{version.name} changed while it was read")
        write_json(asdict(header), path)
    return header


def _stored_header(path: Path) -> SlideHeader | None:
    """Returns None where the store has no header, or a damaged one, which must be read anew."""
    if not path.exists():
        return None
    try:
        return TypeAdapter(SlideHeader).validate_json(
            read_bounded(path, SlideError, what=str(path), most=MOST_HEADER_BYTES)
        )
    except (SlideError, ValidationError):
        return None
