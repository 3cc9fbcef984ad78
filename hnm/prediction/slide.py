"""The scores of slides: they are read in worker processes, then encoded and scored here by the very
steps of the pipeline.
"""

import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hnm.errors import PredictionError, SlideError
from hnm.evidence.numbers.threshold import called
from hnm.learning.compute import Machine, set_up_torch
from hnm.learning.embed import embed_tiles
from hnm.learning.predict import predict
from hnm.params import Compute
from hnm.prediction.model import Model
from hnm.prediction.reading import Reading, SlideRead, read_slide
from hnm.slides.cutting.pack import Pack
from hnm.slides.drawings import warn_of_origins, warn_of_places
from hnm.slides.reading.canvas import OriginParam
from hnm.slides.reading.urls import place_of
from hnm.slides.workers import each


@dataclass(frozen=True)
class Outcome:
    """What became of one slide."""

    slide_id: str
    source: str
    """Path or URL of its file, as the user gave it."""


@dataclass(frozen=True)
class Prediction(Outcome):
    """What a model says of one slide."""

    score: float
    called: str
    """The class that the score is called at the model's threshold."""
    tiles: pd.DataFrame
    """The table `TILE_SCORES`."""
    read: SlideRead


@dataclass(frozen=True)
class Refusal(Outcome):
    """Why a slide has no prediction."""

    error: SlideError


@dataclass(frozen=True)
class Unchanged(Outcome):
    """A slide that was predicted before, and whose file is still the same."""


def predict_slides(
    model: Model,
    slides: Mapping[str, str],
    *,
    mpp: float | None = None,
    mask: Path | None = None,
    origin: OriginParam = "auto",
    device: str | None = None,
    done: Mapping[str, str] | None = None,
) -> Iterator[Prediction | Refusal | Unchanged]:
    """Yields a prediction of each slide as soon as it is done, or why the slide has none.

    Args:
        model: the model. A slide of its cohort gets the very scores of the pipeline on the same
            device, with as many threads and the mask and µm per pixel of the manifest.
        slides: slide id -> path or URL of its file.
        mpp: µm per pixel in place of those of the files.
        mask: a tissue mask of the one slide, GeoJSON or an image, in place of the classical one.
        origin: what a mask counts from that does not say so, as `cohort.origin`.
        device: as `compute.device`. None takes that of the model, or the CPU where it is not here.
        done: slide id -> fingerprint of a file that is not predicted again.

    Raises:
        PredictionError: the mask does not exist, or there are several slides that it could be of.
        MachineError: the machine failed. It is raised after the outcomes of all other slides.
    """
    check_mask(mask, slides)
    record = model.record
    machine = machine_of(record.compute, device)
    with tempfile.TemporaryDirectory(prefix="hnm-predict-") as packs:
        readings = [
            Reading(
                slide_id=slide_id,
                source=place_of(source, Path.cwd()),
                mpp=mpp,
                mpp_from_objective=record.mpp_from_objective,
                mask=mask and mask.absolute(),
                tissue=record.tissue,
                tiles=record.tiles,
                pack=Path(packs) / f"{slide_id}.h5",
                origin=origin,
                done=(done or {}).get(slide_id),
            )
            for slide_id, source in slides.items()
        ]
        for reading, read in each(
            read_slide,
            readings,
            seconds=record.tiles.slide_seconds,
            read_seconds=record.tiles.read_seconds,
            step="tiles",
            here=True,
        ):
            source = slides[reading.slide_id]
            if read is None:
                yield Unchanged(reading.slide_id, source)
            elif isinstance(read, SlideError):
                yield Refusal(reading.slide_id, source, read)
            else:
                yield _scored(model, machine, reading, read, source)


def _scored(
    model: Model, machine: Machine, reading: Reading, read: SlideRead, source: str
) -> Prediction | Refusal:
    """Returns the prediction of a slide that was read, and removes its pack."""
    warn_of_places(read.mask_placement.notes)
    warn_of_origins("mask", {reading.slide_id: (read.mask_placement.by, read.canvas)})
    section = model.record.embed
    pack = Pack(reading.pack)
    (features,) = embed_tiles(
        model.encoder,
        [len(pack)],
        lambda _, first, end: pack.tiles(range(first, end)),
        batch_tiles=section.batch_tiles,
        machine=machine,
    )
    stored = torch.from_numpy(features.astype(section.dtype).astype("float32"))
    slide, tiles = predict(model.head, {pack.slide_id: stored}, pack.index())
    reading.pack.unlink()
    score = float(slide["score"].iloc[0])
    numbers = tiles[["logit", "score", "attention"]].to_numpy()
    if not np.isfinite(score) or not np.isfinite(numbers).all():
        error = SlideError(
            "the model gives numbers that are not finite; look at the model", step="score"
        )
        return Refusal(reading.slide_id, source, error)
    class_called = model.record.classes[int(called(score, model.record.threshold))]
    return Prediction(reading.slide_id, source, score, class_called, tiles, read)


def check_mask(mask: Path | None, slides: Collection[str]) -> None:
    """Refuses a mask that does not exist, or that could be of several slides."""
    if mask is not None and len(slides) > 1:
        raise PredictionError(
            f"--mask {mask} is of one slide, but {len(slides)} are named; predict the slides with"
            " masks one by one"
        )
    if mask is not None and not mask.is_file():
        raise PredictionError(
            f"--mask {mask} is no file; name GeoJSON or an image of the slide's tissue"
        )


def machine_of(trained: Compute, device: str | None) -> Machine:
    """Returns where a model computes: on `device`, or where it was trained if that is here."""
    device = device or ("auto" if trained.device == "cuda" else trained.device)
    return set_up_torch(Compute.model_validate({**trained.model_dump(), "device": device}))
